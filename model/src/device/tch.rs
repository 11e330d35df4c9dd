//! libtorch's CPU and NVIDIA GPUs, by burn's LibTorch backend.

#[cfg(feature = "tch")]
pub(super) use built_in::{is_cpu, select, status};
#[cfg(not(feature = "tch"))]
pub(super) use left_out::{select, status};

/// Where the NVIDIA driver for Linux lists the GPUs, each in a folder with a file `information`.
const DRIVER_LIST: &str = "/proc/driver/nvidia/gpus";

/// The driver's name for the GPUs of this machine, if all have the same: libtorch does not say which
/// of them is which.
pub(super) fn gpu_name() -> Option<String> {
    let gpus = std::fs::read_dir(DRIVER_LIST).ok()?;
    let name = |gpu: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(gpu.ok()?.path().join("information")).ok()?;
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(model.trim().to_string())
    };
    let names: Vec<String> = gpus.map(name).collect::<Option<_>>()?;
    let first = names.first()?;
    names.iter().all(|name| name == first).then(|| first.clone())
}

#[cfg(not(feature = "tch"))]
mod left_out {
    use burn::tensor::Device;

    use super::super::{DeviceStatus, unusable};
    use crate::error::Result;

    const NOT_BUILT: &str = "this binary was built without LibTorch: run \
                             `eval \"$(scripts/setup_libtorch)\"` and then \
                             `cargo build --release --features tch`";

    pub(in super::super) fn select(name: &str, _place: Option<&str>) -> Result<Device> {
        Err(unusable(name, NOT_BUILT))
    }

    pub(in super::super) fn status() -> Vec<DeviceStatus> {
        ["tch", "tch:cuda"].map(|name| DeviceStatus::unusable(name, NOT_BUILT)).into()
    }
}

#[cfg(feature = "tch")]
#[allow(deprecated)] // burn means to drop this backend and says so at every name
mod built_in {
    use burn::backend::LibTorchDevice;
    use burn::tensor::Device;

    use super::super::{DeviceStatus, gpu_index, threads, unknown, unusable};
    use crate::error::Result;

    /// The device behind `tch`: its CPU without a place, a GPU for `cuda` and `cuda:N`.
    ///
    /// libtorch then computes with as many threads as rayon.
    ///
    /// # Errors
    /// Why it is not usable and what to do.
    pub(in super::super) fn select(name: &str, place: Option<&str>) -> Result<Device> {
        let device = match place {
            None => Device::libtorch(),
            Some(place) => {
                let index = match place.split_once(':') {
                    Some(("cuda", index)) => Some(index),
                    None if place == "cuda" => None,
                    _ => return Err(unknown(name)),
                };
                let index = gpu_index(name, index)?;
                let count = gpu_count().map_err(|reason| unusable(name, reason))?;
                if index >= count {
                    let reason = format!("libtorch sees {count} GPUs, numbered from 0");
                    return Err(unusable(name, reason));
                }
                Device::libtorch_cuda(index)
            }
        };
        let threads = i32::try_from(rayon::current_num_threads()).unwrap_or(i32::MAX);
        tch::set_num_threads(threads);
        Ok(device)
    }

    /// The CPU, and every GPU or why there is none.
    pub(in super::super) fn status() -> Vec<DeviceStatus> {
        let mut devices = vec![DeviceStatus::usable("tch", format!("libtorch, {}", threads()))];
        match gpu_count() {
            Ok(count) => devices.extend((0..count).map(|n| match n {
                0 => DeviceStatus::usable("tch:cuda", "libtorch on the first GPU"),
                n => DeviceStatus::usable(format!("tch:cuda:{n}"), "libtorch on another GPU"),
            })),
            Err(reason) => devices.push(DeviceStatus::unusable("tch:cuda", reason)),
        }
        devices
    }

    /// Whether it is libtorch's CPU.
    pub(in super::super) fn is_cpu(device: &LibTorchDevice) -> bool {
        *device == LibTorchDevice::Cpu
    }

    /// The GPUs libtorch can use, at least one, or why there is none.
    fn gpu_count() -> std::result::Result<usize, &'static str> {
        if !cfg!(libtorch_has_cuda) {
            return Err("this binary was built with a libtorch for the CPU alone: run \
                        `eval \"$(scripts/setup_libtorch --cuda)\"` and then \
                        `cargo build --release --features tch`");
        }
        match usize::try_from(tch::Cuda::device_count()) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err("libtorch sees no NVIDIA GPU: `nvidia-smi` must list one, with a driver for \
                      CUDA 12.8 or later"),
        }
    }
}
