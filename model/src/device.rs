//! Where tensors live. The device is chosen by name at run time, never by default.

use altiplano_kernels::{CpuLevel, cpu_level};
use burn::backend::DispatchDevice;
use burn::tensor::Device;

use crate::config::Precision;
use crate::error::{ModelError, Result};

/// The device called `name`: `cpu` is the embedded Flex backend.
///
/// # Errors
/// [`ModelError::Device`] when this binary was built without the backend or the name is unknown.
pub fn select(name: &str) -> Result<Device> {
    let unusable = |reason: &str| {
        Err(ModelError::Device { device: name.to_string(), reason: reason.to_string() })
    };
    match name {
        "cpu" => Ok(Device::flex()),
        _ if name.starts_with("cuda") => {
            unusable("this binary has no CUDA backend; use `device: cpu`")
        }
        _ if name.starts_with("tch") => {
            unusable("this binary has no LibTorch backend; use `device: cpu`")
        }
        _ => unusable("known devices: cpu"),
    }
}

/// What a user should know before computing on `device` in `precision`: nothing, or one line.
pub fn advice(device: &Device, precision: Precision) -> Option<&'static str> {
    let flex = matches!(device.as_dispatch(), DispatchDevice::Flex(_));
    let slow = precision == Precision::Bf16 && cpu_level() < CpuLevel::Avx512Bf16;
    (flex && slow).then_some(
        "this CPU has no AVX512-BF16: products of bf16 numbers are computed in f32, so \
         precision bf16 saves memory but no time",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(select("cpu").unwrap(), Device::flex());
        let error = select("gpu").unwrap_err().to_string();
        assert!(error.contains("\"gpu\"") && error.contains("cpu"), "{error}");
    }
}
