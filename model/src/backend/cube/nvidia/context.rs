//! The driver's context of a GPU, a stream in it, and what a call of a CUDA library answers.

use cudarc::driver::{result, sys};

use super::probe::{FIRST_CONTEXT_EVENTS, OLDEST_CAPABILITY};

/// The result of a call of a CUDA library: on failure the call and its error as text.
pub(super) type Outcome<T> = Result<T, String>;

/// The text of a driver error.
pub(super) fn driver(what: &str, error: result::DriverError) -> String {
    format!("{what}: {error:?}")
}

/// The primary context of a GPU, which lives as long as the process.
#[derive(Clone, Copy)]
pub(super) struct Context {
    pub handle: sys::CUcontext,
    /// Compute capability.
    pub capability: (i32, i32),
}

// SAFETY: a context may be used from any thread that makes it current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens the primary context of GPU `index`, which the CubeCL runtime retained too, and makes it
    /// current.
    pub fn open(index: i32) -> Outcome<Self> {
        let mut version = 0;
        // SAFETY: writes the version to the integer, which outlives the call.
        unsafe { sys::cuDriverGetVersion(&mut version).result() }
            .map_err(|error| driver("cuDriverGetVersion", error))?;
        if version < FIRST_CONTEXT_EVENTS {
            return Err(format!("the driver is of CUDA {version}"));
        }
        let device = result::device::get(index).map_err(|error| driver("cuDeviceGet", error))?;
        // SAFETY: `device` came from the driver; the context is retained for the process.
        let (handle, capability) = unsafe {
            use sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            };
            let handle = result::primary_ctx::retain(device)
                .map_err(|error| driver("cuDevicePrimaryCtxRetain", error))?;
            result::ctx::set_current(handle).map_err(|error| driver("cuCtxSetCurrent", error))?;
            let attribute = |which| {
                result::device::get_attribute(device, which)
                    .map_err(|error| driver("cuDeviceGetAttribute", error))
            };
            (handle, (attribute(MAJOR)?, attribute(MINOR)?))
        };
        if capability < OLDEST_CAPABILITY {
            return Err(format!("compute capability {capability:?}"));
        }
        Ok(Self { handle, capability })
    }

    /// Makes the context current on the calling thread, for calls that load or plan.
    pub fn enter(&self) -> Outcome<()> {
        // SAFETY: the context is retained for the process.
        unsafe { result::ctx::set_current(self.handle) }
            .map_err(|error| driver("cuCtxSetCurrent", error))
    }
}

/// A stream of a context, which lives as long as the process.
#[derive(Clone, Copy)]
pub(in super::super) struct Stream(pub(super) sys::CUstream);

// SAFETY: a stream takes work from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream in the current context that does not wait for the default stream.
    pub fn create() -> Outcome<Self> {
        result::stream::create(result::stream::StreamKind::NonBlocking)
            .map(Self)
            .map_err(|error| driver("cuStreamCreate", error))
    }

    /// Waits until all its work is done.
    pub fn synchronize(self) -> Outcome<()> {
        // SAFETY: the stream lives as long as the process.
        unsafe { result::stream::synchronize(self.0) }
            .map_err(|error| driver("cuStreamSynchronize", error))
    }
}
