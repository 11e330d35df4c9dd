//! Kernels in CUDA C++: compiled and loaded at their first use, launched on a stream.

use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::compile::machine_code;
use super::context::{Context, Outcome, Stream, driver};
use super::source::Source;

impl<const N: usize> Source<N> {
    /// What it is compiled for on a GPU of `capability`, as `sm_90`.
    pub fn architecture(&self, (major, minor): (i32, i32)) -> String {
        format!("sm_{major}{minor}{}", if self.one_generation { "a" } else { "" })
    }
}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(in super::super) struct Kernel {
    function: sys::CUfunction,
    /// Bytes of shared memory of a block.
    shared: usize,
}

// SAFETY: a function of a loaded module may be launched from any thread.
unsafe impl Send for Kernel {}

/// Kernels that were compiled together.
struct Module {
    module: sys::CUmodule,
    subject: &'static str,
    defines: Vec<(&'static str, usize)>,
    /// Those in use so far, by name.
    kernels: Vec<(&'static str, Kernel)>,
}

// SAFETY: as for `Kernel`.
unsafe impl Send for Module {}

/// The kernels of one GPU so far. There are a few modules of a few kernels: an op finds its own by
/// looking at each.
pub(super) struct Kernels {
    context: Context,
    modules: Mutex<Vec<Module>>,
}

impl Kernels {
    /// None yet, to be loaded into `context`.
    pub fn new(context: Context) -> Self {
        Self { context, modules: Mutex::default() }
    }

    /// The kernel called `name` of `source`, whose blocks use `shared` bytes of shared memory.
    ///
    /// # Errors
    /// When it does not compile: NVRTC does not fit the driver or the GPU.
    pub fn get<const N: usize>(
        &self,
        source: &Source<N>,
        name: &'static str,
        shared: usize,
    ) -> Outcome<Kernel> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |m: &Module| m.subject == source.subject && m.defines == source.defines;
        let found = modules.iter().position(same);
        let kernels = found.map_or(&[][..], |index| &modules[index].kernels);
        if let Some((_, kernel)) = kernels.iter().find(|(known, _)| *known == name) {
            return Ok(*kernel);
        }
        self.context.enter()?;
        let index = match found {
            Some(index) => index,
            None => {
                modules.push(Module::load(source, self.context.capability)?);
                modules.len() - 1
            }
        };
        let kernel = modules[index].kernel(name, shared)?;
        modules[index].kernels.push((name, kernel));
        Ok(kernel)
    }
}

impl Module {
    /// Compiles `source` and loads it into the current context.
    fn load<const N: usize>(source: &Source<N>, capability: (i32, i32)) -> Outcome<Self> {
        let architecture = source.architecture(capability);
        let code = machine_code(source.text, &architecture, &source.defines, &[])?;
        // SAFETY: `code` is a whole cubin for this device; the module stays loaded for the process.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) }
            .map_err(|error| driver("cuModuleLoadData", error))?;
        let (subject, defines) = (source.subject, source.defines.to_vec());
        Ok(Self { module, subject, defines, kernels: Vec::new() })
    }

    fn kernel(&self, name: &str, shared: usize) -> Outcome<Kernel> {
        let name = CString::new(name).map_err(|error| error.to_string())?;
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded, and stays so.
        unsafe {
            let function = result::module::get_function(self.module, name)
                .map_err(|error| driver("cuModuleGetFunction", error))?;
            result::function::set_function_attribute(function, limit, shared as i32)
                .map_err(|error| driver("cuFuncSetAttribute", error))?;
            Ok(Kernel { function, shared })
        }
    }
}

impl Kernel {
    /// Launches it on `stream` with `arguments`, which live until this returns, on `grid` blocks of
    /// `threads`.
    pub fn launch(
        self,
        stream: Stream,
        grid: (usize, usize, usize),
        threads: usize,
        arguments: &mut [*mut c_void],
    ) -> Outcome<()> {
        let grid = (grid.0 as u32, grid.1 as u32, grid.2 as u32);
        let (block, shared) = ((threads as u32, 1, 1), self.shared as u32);
        // SAFETY: the arguments are those of the kernel, in order; its buffers have the sizes it is
        // told.
        unsafe { result::launch_kernel(self.function, grid, block, shared, stream.0, arguments) }
            .map_err(|error| driver("cuLaunchKernel", error))
    }
}

/// For tests: `sources` compile for GPUs of `capabilities`, where NVRTC is installed.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(in super::super) fn assert_compiles<const N: usize>(
    sources: &[Source<N>],
    capabilities: &[(i32, i32)],
) {
    let subject = sources[0].subject;
    if !super::compile::nvrtc_for_tests(&format!("the {subject} kernels")) {
        return;
    }
    for source in sources {
        for &capability in capabilities {
            let architecture = source.architecture(capability);
            let code = machine_code(source.text, &architecture, &source.defines, &[]).unwrap();
            assert!(code.starts_with(b"\x7fELF"), "{subject} for {architecture}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_follow_the_gpu() {
        let mut source = Source::new("any", "", []);
        assert_eq!(source.architecture((8, 0)), "sm_80");
        assert_eq!(source.architecture((12, 0)), "sm_120");
        source.one_generation = true;
        assert_eq!(source.architecture((9, 0)), "sm_90a");
    }
}
