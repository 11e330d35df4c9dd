//! CUDA C++ with the numbers it is compiled with, and the arguments of its kernels.

/// CUDA C++ with the numbers it is compiled for.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Source<const N: usize> {
    /// The op, by which caches and messages name it.
    pub subject: &'static str,
    /// The kernels and the instructions they are built from.
    pub text: &'static str,
    /// Macros, given to the compiler by `-D`: the sizes of tiles and blocks, which stand in Rust alone.
    pub defines: [(&'static str, usize); N],
    /// Whether it has instructions of the GPU's own generation, which no later one runs.
    pub one_generation: bool,
}

impl<const N: usize> Source<N> {
    /// A source without instructions of one generation alone.
    pub fn new(
        subject: &'static str,
        text: &'static str,
        defines: [(&'static str, usize); N],
    ) -> Self {
        Self { subject, text, defines, one_generation: false }
    }
}

/// The text of a source: the instructions it is built from, then its own files.
macro_rules! cuda_source {
    ($($file:literal),+ $(,)?) => {
        concat!(
            include_str!("../nvidia/intrinsics.cu"),
            include_str!("../nvidia/elements.cu"),
            $(include_str!($file)),+
        )
    };
}
pub(in super::super) use cuda_source;

/// The addresses of a kernel's arguments.
macro_rules! arguments {
    ($($name:ident),+ $(,)?) => {
        &mut [$((&raw const $name).cast_mut().cast::<std::ffi::c_void>()),+]
    };
}
pub(in super::super) use arguments;
