//! What a machine lacks to train on an NVIDIA GPU, and where to get it.

use std::fmt;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use cudarc::driver::{result, sys};

use crate::error::{ModelError, Result};

/// The first compute capability with bf16 tensor cores.
pub const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// The first driver, as CUDA numbers its versions, whose contexts record and wait for events.
pub const FIRST_CONTEXT_EVENTS: i32 = 12_050;

/// Something that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// No `libcuda`.
    Driver,
    /// The driver does not start; its own word for it.
    DriverFails(String),
    /// A driver and no device.
    Device,
    /// No NVRTC, which compiles the kernels at their first use.
    Compiler,
    /// No CUDA headers, which the kernels include; where they were looked for.
    Headers(PathBuf),
    /// No cuBLASLt: matrix products run on slower kernels.
    MatrixProducts,
    /// A driver older than CUDA 12.5, by its version: cuBLASLt and the attention kernels, which
    /// need events of contexts, are not used.
    ContextEvents(i32),
}

impl Missing {
    /// Whether nothing runs without it.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::MatrixProducts | Self::ContextEvents(_))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver => f.write_str(
                "no NVIDIA driver (libcuda.so is not found): install the driver of the machine's \
                 GPU, or, in a container, start it with access to the GPU (--gpus all)",
            ),
            Self::DriverFails(reason) => write!(
                f,
                "the NVIDIA driver does not start ({reason}): see whether nvidia-smi runs"
            ),
            Self::Device => f.write_str(
                "the NVIDIA driver reports no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES",
            ),
            Self::Compiler => f.write_str(
                "no NVRTC (libnvrtc.so is not found): install the CUDA toolkit or its package \
                 cuda-nvrtc, or the Python package nvidia-cuda-nvrtc, and put its folder on \
                 LD_LIBRARY_PATH",
            ),
            Self::Headers(looked) => write!(
                f,
                "no CUDA headers ({} is not found): install the CUDA toolkit or its packages \
                 cuda-cudart-dev and cuda-cccl, or set CUDA_PATH to the folder that has them in \
                 include/",
                looked.display()
            ),
            Self::MatrixProducts => f.write_str(
                "no cuBLASLt (libcublasLt.so is not found), so matrix products are slower: \
                 install the CUDA toolkit or its package libcublas, or the Python package \
                 nvidia-cublas, and put its folder on LD_LIBRARY_PATH",
            ),
            Self::ContextEvents(version) => write!(
                f,
                "the driver is of CUDA {}.{}, so cuBLASLt and the tensor-core attention are not \
                 used: install a driver of CUDA 12.5 or later (version 555)",
                version / 1000,
                version % 1000 / 10
            ),
        }
    }
}

/// A GPU the driver reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedGpu {
    /// Its number, as in `cuda:0`.
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// What was found and what was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The GPUs, in the driver's order.
    pub gpus: Vec<ReportedGpu>,
    /// What is missing, in the order to see to it.
    pub missing: Vec<Missing>,
}

impl Probe {
    /// The missing things without which nothing runs.
    pub fn fatal(&self) -> impl Iterator<Item = &Missing> {
        self.missing.iter().filter(|missing| missing.is_fatal())
    }
}

/// Looks for the driver, its GPUs, NVRTC, the CUDA headers and cuBLASLt. Opens libraries; compiles
/// and allocates nothing.
pub fn probe() -> Probe {
    let mut missing = Vec::new();
    let gpus = match driver_and_gpus() {
        Ok((version, gpus)) => {
            if gpus.is_empty() {
                missing.push(Missing::Device);
            }
            if version < FIRST_CONTEXT_EVENTS {
                missing.push(Missing::ContextEvents(version));
            }
            gpus
        }
        Err(reason) => {
            missing.push(reason);
            Vec::new()
        }
    };
    // SAFETY: these open libraries by their well-known names and close them again.
    let (nvrtc, cublaslt) = unsafe {
        (cudarc::nvrtc::sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present())
    };
    if !nvrtc {
        missing.push(Missing::Compiler);
    }
    let root = cubecl_cuda::install::cuda_path();
    let root = root.as_deref().unwrap_or(Path::new("/usr/local/cuda"));
    let header = root.join("include/cuda_bf16.h");
    if !header.is_file() {
        missing.push(Missing::Headers(header));
    }
    if !cublaslt {
        missing.push(Missing::MatrixProducts);
    }
    // What stops everything comes first.
    missing.sort_by_key(|missing| !missing.is_fatal());
    Probe { gpus, missing }
}

/// The driver's version and its GPUs.
fn driver_and_gpus() -> std::result::Result<(i32, Vec<ReportedGpu>), Missing> {
    let fails = |error: result::DriverError| Missing::DriverFails(format!("{error:?}"));
    // SAFETY: opens the library by its well-known names and closes it again.
    if !unsafe { sys::is_culib_present() } {
        return Err(Missing::Driver);
    }
    // Without a GPU the driver may refuse to start.
    match result::init() {
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(Missing::Device);
        }
        started => started.map_err(fails)?,
    }
    let mut version = 0;
    // SAFETY: writes the version to the integer, which outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut version).result() }.map_err(fails)?;
    let count = result::device::get_count().map_err(fails)?;
    let gpus = (0..count).map(gpu).collect::<std::result::Result<_, _>>().map_err(fails)?;
    Ok((version, gpus))
}

fn gpu(index: i32) -> std::result::Result<ReportedGpu, result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(index)?;
    // SAFETY: `device` came from the driver.
    let (capability, memory) = unsafe {
        let major = result::device::get_attribute(device, MAJOR)?;
        let minor = result::device::get_attribute(device, MINOR)?;
        ((major, minor), result::device::total_mem(device)?)
    };
    Ok(ReportedGpu {
        index: index as usize,
        name: result::device::get_name(device)?,
        capability,
        memory_bytes: memory as u64,
    })
}

/// The device called `cuda` (the first GPU) or `cuda:N`.
///
/// # Errors
/// [`ModelError::Device`] with all that is missing and how to install it, or for a GPU that is
/// not there or too old.
pub fn select(name: &str) -> Result<Device> {
    let unusable = |reason: String| Err(ModelError::Device { device: name.to_string(), reason });
    let index = match name.strip_prefix("cuda") {
        Some("") => 0,
        Some(suffix) => match suffix.strip_prefix(':').and_then(|index| index.parse().ok()) {
            Some(index) => index,
            None => return unusable("write `cuda` or `cuda:N` with N the number of a GPU".into()),
        },
        None => return unusable("write `cuda` or `cuda:N`".into()),
    };
    let found = probe();
    let fatal: Vec<String> = found.fatal().map(ToString::to_string).collect();
    if !fatal.is_empty() {
        return unusable(fatal.join("; "));
    }
    let Some(gpu) = found.gpus.get(index) else {
        return unusable(format!(
            "GPU {index} does not exist; the driver reports {} GPU(s), counted from 0",
            found.gpus.len()
        ));
    };
    if gpu.capability < OLDEST_CAPABILITY {
        let ((major, minor), (wanted_major, wanted_minor)) = (gpu.capability, OLDEST_CAPABILITY);
        return unusable(format!(
            "{} has compute capability {major}.{minor}; bf16 tensor cores came with \
             {wanted_major}.{wanted_minor} (A100)",
            gpu.name
        ));
    }
    Ok(Device::cuda(index))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_part_says_what_to_do() {
        let header = PathBuf::from("/usr/local/cuda/include/cuda_bf16.h");
        for missing in [
            Missing::Driver,
            Missing::DriverFails("CUDA_ERROR_UNKNOWN".into()),
            Missing::Device,
            Missing::Compiler,
            Missing::Headers(header),
            Missing::MatrixProducts,
            Missing::ContextEvents(12_020),
        ] {
            let text = missing.to_string();
            assert!(text.contains("install") || text.contains("nvidia-smi"), "{text}");
        }
        assert!(Missing::ContextEvents(12_020).to_string().contains("CUDA 12.2"));
    }

    #[test]
    fn wrong_names_are_errors() {
        for name in ["cuda0", "cuda:", "cuda:x", "cuda:-1"] {
            let error = select(name).unwrap_err().to_string();
            assert!(error.contains("cuda:N"), "{error}");
        }
    }

    /// On a machine with all of it this selects a device; elsewhere the error lists what the probe
    /// found missing, and nothing panics.
    #[test]
    fn selection_agrees_with_the_probe() {
        let found = probe();
        match select("cuda") {
            Ok(_) => assert_eq!(found.fatal().count(), 0),
            Err(error) => {
                let error = error.to_string();
                assert!(found.fatal().all(|missing| error.contains(&missing.to_string())));
                assert!(error.contains("cuda"), "{error}");
            }
        }
    }
}
