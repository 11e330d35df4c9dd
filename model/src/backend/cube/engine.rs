//! Which kernels compute an op.

use std::sync::Arc;

use burn_cubecl::tensor::CubeTensor;

use super::nvidia::Gpu;

/// An op on given tensors.
pub(super) trait Call {
    /// One of its tensors, all of which are on one device.
    fn tensor(&self) -> &CubeTensor;

    /// Whether its CUDA kernels take these types and shapes.
    fn suits_cuda(&self) -> bool;

    /// Whether `gpu` has what they need besides.
    fn suits(&self, _gpu: &Gpu) -> bool {
        true
    }
}

/// What computes an op.
pub(super) enum Engine {
    /// The op's kernels in CUDA C++, or NVIDIA's library, on the second stream of this GPU.
    Cuda(Arc<Gpu>),
    /// Its CubeCL kernels, on the runtime's own stream, whatever the GPU.
    CubeCl,
}

impl Engine {
    /// The faster one of those that compute `call`.
    pub fn for_op(call: &impl Call) -> Self {
        if !call.suits_cuda() {
            return Self::CubeCl;
        }
        match Gpu::of(call.tensor()) {
            Some(gpu) if call.suits(&gpu) => Self::Cuda(gpu),
            _ => Self::CubeCl,
        }
    }
}
