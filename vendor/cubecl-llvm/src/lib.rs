//! The names `cubecl-cuda` uses from `cubecl-llvm`, without LLVM.
//!
//! The real crate compiles kernels to PTX and downloads an LLVM to do so. altiplano builds
//! `cubecl-cuda` with its feature `cpp`, which never takes that way; compiling through here is an
//! error that says so.

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;
use nvptx::ptx_version::PtxVersion;

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// PTX.
    Nvptx,
}

/// Options of the compiler that is not here.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Unused.
    pub arch: Option<()>,
    /// Unused.
    pub sm_arch: Option<SmArch>,
    /// Unused.
    pub ptx_version: Option<PtxVersion>,
    /// Unused.
    pub grid_constants: bool,
}

/// A compiled kernel, as the caller reads it.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX with a final NUL.
    pub ptx: Vec<core::ffi::c_char>,
    /// Text for logs.
    pub ir: String,
    /// Dynamic shared memory in bytes.
    pub shared_memory_size: usize,
    /// What the kernel does with each buffer.
    pub io: Vec<BufferIOAttr>,
}

/// Never made.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// PTX.
    NvptxCode(NvptxModule),
    /// Anything else.
    Other,
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Refuses every kernel.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// Unused.
    pub target: LlvmTarget,
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM: cubecl-cuda must be built with its feature `cpp`"
                .to_string(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// The PTX version, which only the missing compiler reads.
pub mod nvptx {
    /// See [`nvptx`](super::nvptx).
    pub mod ptx_version {
        /// Never made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// None: no PTX is emitted here.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the missing compiler could lower.
pub mod shared {
    /// See [`shared`](super::shared).
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// What to compile for.
        #[derive(Clone, Copy, Debug)]
        pub enum GpuTarget {
            /// PTX.
            Nvptx,
        }

        /// Nothing to restrict: the C++ way keeps every feature.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
