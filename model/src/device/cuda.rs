//! NVIDIA GPUs by burn's CUDA backend.

use burn::tensor::Device;

use super::{DeviceStatus, gpu_index, unusable};
use crate::error::Result;

const NOT_BUILT: &str = "this binary was built without the CUDA backend";

/// The GPU of the number in `index`, the first one without.
///
/// # Errors
/// Why it is not usable and what to do.
pub(super) fn select(name: &str, index: Option<&str>) -> Result<Device> {
    gpu_index(name, index)?;
    Err(unusable(name, NOT_BUILT))
}

/// Every GPU, or why there is none.
pub(super) fn status() -> Vec<DeviceStatus> {
    vec![DeviceStatus::unusable("cuda", NOT_BUILT)]
}
