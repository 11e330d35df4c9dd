//! Where tensors live. The device is chosen by name at run time, never by default.
//!
//! Each backend that a build may lack has a file here with `select` and `status`, which are there
//! in every build: without the backend they say how to build it in.

mod cuda;
mod tch;

use altiplano_kernels::{CpuLevel, cpu_level};
use burn::backend::DispatchDevice;
use burn::tensor::Device;
use serde::Serialize;

use crate::config::Precision;
use crate::error::{ModelError, Result};

/// What can be said about a device on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// As a configuration's `device` takes it.
    pub name: String,
    /// Whether [`select`] gives it.
    pub usable: bool,
    /// What it is, or why it is not usable and what to do.
    pub detail: String,
}

impl DeviceStatus {
    fn usable(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), usable: true, detail: detail.into() }
    }

    fn unusable(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), usable: false, detail: reason.into() }
    }
}

/// The device called `name`: `cpu` is the embedded Flex backend; `cuda`, `tch` and `tch:cuda` need
/// a build with the feature of that name, and a number behind a colon picks one of several GPUs.
///
/// # Errors
/// [`ModelError::Device`] when this binary was built without the backend, the machine lacks what it
/// needs, or the name is unknown.
pub fn select(name: &str) -> Result<Device> {
    let (backend, place) = match name.split_once(':') {
        Some((backend, place)) => (backend, Some(place)),
        None => (name, None),
    };
    match (backend, place) {
        ("cpu", None) => Ok(Device::flex()),
        ("cuda", place) => cuda::select(name, place),
        #[cfg(feature = "wgpu")]
        ("wgpu", None) => crate::backend::cube::wgpu::select(),
        ("tch", place) => tch::select(name, place),
        _ => Err(unknown(name)),
    }
}

/// Every device altiplano knows, usable here or not.
pub fn list() -> Vec<DeviceStatus> {
    let mut devices = vec![cpu()];
    devices.extend(cuda::status());
    devices.extend(tch::status());
    devices
}

/// What the NVIDIA driver calls the GPU behind `name`, as [`select`] takes it; none for a CPU, or
/// where the driver does not say.
pub fn gpu_name(name: &str) -> Option<String> {
    let (backend, place) = match name.split_once(':') {
        Some((backend, place)) => (backend, Some(place)),
        None => (name, None),
    };
    match (backend, place) {
        ("cuda", place) => cuda::gpu_name(place),
        ("tch", Some(_)) => tch::gpu_name(),
        _ => None,
    }
}

/// What a user should know before computing on `device` in `precision`: nothing, or one line.
pub fn advice(device: &Device, precision: Precision) -> Option<&'static str> {
    let slow = precision == Precision::Bf16 && cpu_level() < CpuLevel::Avx512Bf16;
    (is_cpu(device) && slow).then_some(
        "this CPU has no AVX512-BF16: products of bf16 numbers are computed in f32, so \
         precision bf16 saves memory but no time",
    )
}

/// Runs `work`, a series of ops on `device`, where they start fastest: on the CPU inside the pool of
/// threads that its kernels use, because a loop that starts outside it wakes the pool and waits for
/// it, which costs more than a small op. Elsewhere on the calling thread, to which streams and
/// libtorch's threads belong.
///
/// `work` may wait for threads of other kinds, but not for work in the same pool.
pub fn in_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => rayon::scope(|_| work()),
        #[allow(unreachable_patterns)]
        _ => work(),
    }
}

/// Whether `device` is the CPU, of whichever backend.
pub fn is_cpu(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(device) => tch::is_cpu(device),
        _ => false,
    }
}

/// Whether `device` is the CPU through the embedded backend, whose tensors lie in this process'
/// memory.
pub(crate) fn is_flex(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// The CPU: its instructions and threads.
pub fn cpu() -> DeviceStatus {
    DeviceStatus::usable("cpu", format!("{}, {}", cpu_instructions(), threads()))
}

/// The instructions that kernels use on this CPU, in words. Other instructions round differently.
pub fn cpu_instructions() -> &'static str {
    match cpu_level() {
        CpuLevel::Portable => "no vector instructions that its kernels use",
        CpuLevel::Avx2 => "AVX2",
        CpuLevel::Avx512 => "AVX-512",
        CpuLevel::Avx512Bf16 => "AVX-512 with BF16",
        CpuLevel::Amx => "AVX-512 and AMX with BF16",
    }
}

/// The threads of the CPU's computations, in words.
fn threads() -> String {
    match rayon::current_num_threads() {
        1 => "1 thread".into(),
        threads => format!("{threads} threads"),
    }
}

fn unusable(name: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Device { device: name.to_string(), reason: reason.into() }
}

fn unknown(name: &str) -> ModelError {
    unusable(
        name,
        "known devices: cpu, cuda, tch, tch:cuda, and cuda:1 or tch:cuda:1 for the second GPU; \
         `altiplano devices` says which are usable here",
    )
}

/// The number of a GPU behind the colon of a name, 0 without one.
#[cfg(any(feature = "tch", not(feature = "cuda")))]
fn gpu_index(name: &str, index: Option<&str>) -> Result<usize> {
    index.map_or(Ok(0), |index| index.parse().map_err(|_| unknown(name)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(select("cpu").unwrap(), Device::flex());
        for name in ["gpu", "cpu:1", "", ":", "tch:gpu", "tch:cuda:x", "tch:cuda:-1"] {
            assert_eq!(gpu_name(name).filter(|_| !name.starts_with("tch:")), None, "{name}");
            let error = select(name).unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
            assert!(error.contains("cpu") || error.contains("built without"), "{error}");
        }
    }

    /// The list and `select` say the same, in the same words.
    #[test]
    fn the_list_is_what_select_does() {
        let devices = list();
        assert_eq!(devices[0].name, "cpu");
        for wanted in ["cuda", "tch", "tch:cuda"] {
            assert!(devices.iter().any(|device| device.name == wanted), "no {wanted}");
        }
        for device in devices {
            match select(&device.name) {
                Ok(_) => assert!(device.usable, "{device:?}"),
                Err(error) => {
                    assert!(!device.usable, "{device:?}");
                    assert!(error.to_string().contains(&device.detail), "{error}, {device:?}");
                }
            }
        }
    }
}
