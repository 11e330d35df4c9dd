//! WebGPU devices: the f32 kernels on any Vulkan driver, such as Mesa's on the CPU. For tests.

use burn::tensor::{Device, DeviceType};

use crate::error::{ModelError, Result};

/// The first WebGPU device.
///
/// # Errors
/// [`ModelError::Device`] when there is no driver.
pub fn select() -> Result<Device> {
    Device::enumerate(DeviceType::Wgpu).into_vec().into_iter().next().ok_or_else(|| {
        ModelError::Device {
            device: "wgpu".to_string(),
            reason: "no Vulkan driver: install one, for the CPU mesa-vulkan-drivers and libvulkan1"
                .to_string(),
        }
    })
}
