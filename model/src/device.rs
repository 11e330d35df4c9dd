//! Where tensors live. The device is chosen by name at run time, never by default.

use burn::tensor::Device;

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
