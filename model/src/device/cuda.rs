//! NVIDIA GPUs by burn's CUDA backend.

use burn::tensor::Device;

use super::DeviceStatus;
use crate::error::Result;

#[cfg(not(feature = "cuda"))]
const NOT_BUILT: &str = "this binary was built without the CUDA backend: build with \
                         `cargo build --release --features cuda`";

/// The GPU of the number in `index`, the first one without.
///
/// # Errors
/// Why it is not usable and what to do.
#[cfg(not(feature = "cuda"))]
pub(super) fn select(name: &str, index: Option<&str>) -> Result<Device> {
    super::gpu_index(name, index)?;
    Err(super::unusable(name, NOT_BUILT))
}

/// Every GPU, or why there is none.
#[cfg(not(feature = "cuda"))]
pub(super) fn status() -> Vec<DeviceStatus> {
    vec![DeviceStatus::unusable("cuda", NOT_BUILT)]
}

/// None: no driver is asked.
#[cfg(not(feature = "cuda"))]
pub(super) fn gpu_name(_index: Option<&str>) -> Option<String> {
    None
}

/// The GPU of the number behind the colon of `name`, the first one without.
///
/// # Errors
/// Why it is not usable and what to do.
#[cfg(feature = "cuda")]
pub(super) fn select(name: &str, _index: Option<&str>) -> Result<Device> {
    crate::backend::cube::nvidia::select(name)
}

/// The driver's name for the GPU of the number in `index`, the first one without.
#[cfg(feature = "cuda")]
pub(super) fn gpu_name(index: Option<&str>) -> Option<String> {
    let index: usize = index.map_or(Some(0), |index| index.parse().ok())?;
    crate::backend::cube::nvidia::probe().gpus.into_iter().nth(index).map(|gpu| gpu.name)
}

/// Every GPU, or what is missing.
#[cfg(feature = "cuda")]
pub(super) fn status() -> Vec<DeviceStatus> {
    let found = crate::backend::cube::nvidia::probe();
    let missing: Vec<String> = found.fatal().map(ToString::to_string).collect();
    if !missing.is_empty() {
        return vec![DeviceStatus::unusable("cuda", missing.join("; "))];
    }
    let of_gpu = |gpu: &crate::backend::cube::nvidia::ReportedGpu| {
        let (major, minor) = gpu.capability;
        let gigabytes = gpu.memory_bytes as f64 / 1e9;
        let detail = format!("{}, sm_{major}{minor}, {gigabytes:.0} GB", gpu.name);
        DeviceStatus::usable(format!("cuda:{}", gpu.index), detail)
    };
    found.gpus.iter().map(of_gpu).collect()
}
