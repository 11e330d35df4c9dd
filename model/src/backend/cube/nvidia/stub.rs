//! What the ops use of the CUDA runtime, in a build without the feature `cuda`: there is never a GPU,
//! so nothing behind [`Gpu::of`] runs.

#[allow(dead_code, reason = "no library is asked")]
mod problem;
#[allow(dead_code, reason = "no compiler reads it")]
mod source;

use std::convert::Infallible;
use std::ffi::c_void;
use std::sync::Arc;

use burn_cubecl::tensor::CubeTensor;

pub(super) use problem::Problem;
pub(super) use source::{Source, arguments, cuda_source};

/// No GPU.
pub(super) struct Gpu(Infallible);

/// No kernel.
#[derive(Clone, Copy)]
pub(super) struct Kernel(Infallible);

/// No stream.
#[derive(Clone, Copy)]
pub(super) struct Stream(Infallible);

impl Gpu {
    /// None for every tensor.
    pub fn of(_: &CubeTensor) -> Option<Arc<Self>> {
        None
    }

    pub fn capability(&self) -> (i32, i32) {
        match self.0 {}
    }

    pub fn kernel<const N: usize>(&self, _: &Source<N>, _: &'static str, _: usize) -> Kernel {
        match self.0 {}
    }

    pub fn enqueue<const N: usize>(
        self: &Arc<Self>,
        _: [&CubeTensor; N],
        _: impl FnOnce(Stream, [u64; N]) -> Result<(), String> + Send + 'static,
    ) {
        match self.0 {}
    }

    pub fn enqueue_all(
        self: &Arc<Self>,
        _: &[&CubeTensor],
        _: impl FnOnce(Stream, &[u64]) -> Result<(), String> + Send + 'static,
    ) {
        match self.0 {}
    }

    pub fn multiplies(&self, _: Problem) -> bool {
        match self.0 {}
    }

    pub fn multiply(self: &Arc<Self>, _: Problem, _: [&CubeTensor; 4], _: f32) {
        match self.0 {}
    }
}

impl Kernel {
    pub fn launch(
        self,
        _: Stream,
        _: (usize, usize, usize),
        _: usize,
        _: &mut [*mut c_void],
    ) -> Result<(), String> {
        match self.0 {}
    }
}

/// Calls `work`: one stream needs no order.
pub(crate) fn uninterrupted<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Nothing: one stream needs no order.
pub(super) fn before_other_work() {}
