//! Kernels of ours: loaded into the current context, launched on our stream.

use std::ffi::{CString, c_void};

use cudarc::driver::{result, sys};

use super::compile::machine_code;
use super::stream::{Gpu, Outcome, driver};

/// Kernels that were compiled together.
pub(super) struct Module(sys::CUmodule);

impl Module {
    /// Compiles `source` for `architecture` and loads it into the current context.
    pub fn load(source: &str, defines: &[(&str, usize)], architecture: &str) -> Outcome<Self> {
        let code = machine_code(source, architecture, defines, &[])?;
        // SAFETY: `code` is a whole cubin for this device; the module stays loaded for the process.
        unsafe { result::module::load_data(code.as_ptr().cast()) }
            .map(Self)
            .map_err(|error| driver("cuModuleLoadData", error))
    }

    /// The kernel called `name`, which may use `shared` bytes of shared memory.
    pub fn function(&self, name: &str, shared: usize) -> Outcome<sys::CUfunction> {
        let name = CString::new(name).map_err(|error| error.to_string())?;
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded, and stays so.
        unsafe {
            let function = result::module::get_function(self.0, name)
                .map_err(|error| driver("cuModuleGetFunction", error))?;
            result::function::set_function_attribute(function, limit, shared as i32)
                .map_err(|error| driver("cuFuncSetAttribute", error))?;
            Ok(function)
        }
    }
}

/// Launches `function` with `arguments`, which live until it returns, on `grid` blocks of `threads`
/// with `shared` bytes of shared memory.
pub(super) fn launch(
    gpu: &Gpu,
    function: sys::CUfunction,
    grid: (usize, usize, usize),
    threads: usize,
    shared: usize,
    arguments: &mut [*mut c_void],
) -> Outcome<()> {
    let grid = (grid.0 as u32, grid.1 as u32, grid.2 as u32);
    // SAFETY: the arguments are those of the kernel, in order; its buffers have the sizes it is
    // told.
    unsafe {
        let block = (threads as u32, 1, 1);
        result::launch_kernel(function, grid, block, shared as u32, gpu.stream, arguments)
    }
    .map_err(|error| driver("cuLaunchKernel", error))
}

/// The addresses of a kernel's arguments.
macro_rules! arguments {
    ($($name:ident),+ $(,)?) => {
        &mut [$((&raw const $name).cast_mut().cast::<std::ffi::c_void>()),+]
    };
}
pub(super) use arguments;
