//! Cube: the ops on GPUs. CubeCL kernels for CUDA, and through WebGPU for tests; on NVIDIA GPUs the
//! vendor's library and CUDA C++ where they are faster.
//!
//! An op is a folder: `mod.rs` lays out its inputs, makes its outputs and chooses the [`engine`],
//! `cubecl.rs` has its kernels in CubeCL with their launches, `cuda.rs` the launches of those in
//! `cuda.cu`, `emulated.cpp` runs `cuda.cu` on the CPU for `tests.rs`. A module uses only those listed
//! before it:
//!
//! | module | subject |
//! |---|---|
//! | [`nvidia`] | the CUDA runtime, which knows no op |
//! | `reduction` | sums over a cube in CubeCL |
//! | `tensor` | tensors as the kernels take them, and grids |
//! | `engine` | which kernels compute an op |
//! | `elementwise` | residual sum, SwiGLU, RoPE, zeroing, the write to a cache |
//! | `linear` | matrix products |
//! | `embedding`, `rms_norm`, `attention`, `head`, `adamw` | the ops of these names |
//!
//! A panic here is a broken invariant of [`crate::ops`] or a device that failed, never something a
//! configuration can cause.

#[cfg(feature = "cuda")]
pub mod nvidia;
#[cfg(not(feature = "cuda"))]
#[path = "nvidia/stub.rs"]
mod nvidia;

mod reduction;

mod tensor;

mod engine;

mod elementwise;

mod linear;

mod embedding;

mod rms_norm;

mod attention;

mod head;

pub(crate) mod adamw;

#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod transpiled;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use altiplano_kernels::AdamWStep;
use burn::tensor::DType;
use burn_cubecl::{Cube, CubeDevice};

use super::TransformerOps;
// Short, so that an op is a line.
use burn_cubecl::tensor::CubeTensor as X;

pub(super) use nvidia::uninterrupted;

/// Whether the kernels run on `device` for activations of `dtype`: f32 everywhere, bf16 on NVIDIA
/// GPUs.
pub(super) fn has_kernels(device: &CubeDevice, dtype: DType) -> bool {
    match dtype {
        DType::F32 => true,
        DType::BF16 => matches!(device, CubeDevice::Cuda(_)),
        _ => false,
    }
}

impl TransformerOps for Cube {
    fn embedding_forward(weight: X, ids: X) -> X {
        embedding::forward(weight, ids)
    }

    fn embedding_backward(dweight: X, dy: X, ids: X) -> X {
        embedding::backward(dweight, dy, ids)
    }

    fn linear_forward(x: X, weight: X) -> X {
        linear::forward(x, weight)
    }

    fn linear_backward_input(dy: X, weight: X) -> X {
        linear::backward_input(dy, weight)
    }

    fn linear_residual_forward(residual: X, x: X, weight: X) -> X {
        linear::residual_forward(residual, x, weight)
    }

    fn linear_backward_input_add(dx: X, dy: X, weight: X) -> X {
        linear::backward_input_add(dx, dy, weight)
    }

    fn linear_backward_weight(dweight: X, dy: X, x: X) -> X {
        linear::backward_weight(dweight, dy, x)
    }

    fn rms_norm_forward(x: X, weight: X, eps: f64) -> (X, X) {
        rms_norm::forward(x, weight, eps)
    }

    fn rms_norm_backward(dy: X, x: X, weight: X, rstd: X, dweight: X) -> (X, X) {
        rms_norm::backward(dy, x, weight, rstd, dweight)
    }

    fn residual_rms_norm_forward(x: X, branch: X, weight: X, eps: f64) -> (X, X, X) {
        rms_norm::residual_forward(x, branch, weight, eps)
    }

    fn residual_rms_norm_backward(
        dstream: X,
        dy: X,
        x: X,
        weight: X,
        rstd: X,
        dweight: X,
    ) -> (X, X) {
        rms_norm::residual_backward(dstream, dy, x, weight, rstd, dweight)
    }

    fn residual_forward(x: X, branch: X) -> X {
        elementwise::residual_forward(x, branch)
    }

    fn rope_forward(x: X, cos: X, sin: X) -> X {
        elementwise::rope_forward(x, cos, sin)
    }

    fn rope_backward(dy: X, cos: X, sin: X) -> X {
        elementwise::rope_backward(dy, cos, sin)
    }

    fn swiglu_forward(gate: X, up: X) -> X {
        elementwise::swiglu_forward(gate, up)
    }

    fn swiglu_backward(dy: X, gate: X, up: X) -> (X, X) {
        elementwise::swiglu_backward(dy, gate, up)
    }

    fn causal_attention_forward(q: X, k: X, v: X, first_visible: X) -> (X, X) {
        attention::forward(q, k, v, first_visible)
    }

    fn causal_attention_backward(
        dout: X,
        q: X,
        k: X,
        v: X,
        o: X,
        lse: X,
        first_visible: X,
    ) -> (X, X, X) {
        attention::backward(dout, q, k, v, o, lse, first_visible)
    }

    fn head_cross_entropy_forward(x: X, weight: X, targets: X) -> X {
        head::forward(x, weight, targets)
    }

    fn head_cross_entropy_backward(
        x: X,
        weight: X,
        targets: X,
        scale: f32,
        dweight: X,
    ) -> (X, X, X) {
        head::backward(x, weight, targets, scale, dweight)
    }

    fn adamw_step(param: X, m: X, v: X, grad: X, hyper: AdamWStep) -> (X, X, X) {
        adamw::step(param, m, v, grad, &hyper)
    }

    fn adamw_step_with_copy(
        param: X,
        m: X,
        v: X,
        grad: X,
        copy: X,
        hyper: AdamWStep,
    ) -> (X, X, X, X) {
        adamw::step_with_copy(param, m, v, grad, copy, &hyper)
    }

    fn sum_of_squares(x: X) -> X {
        adamw::sum_of_squares(x)
    }

    fn fill_zero(x: X) -> X {
        elementwise::fill_zero(x)
    }

    fn head_logits(x: X, weight: X) -> X {
        linear::head_logits(x, weight)
    }

    fn kv_cache_write(cache: X, rows: X, position: usize) -> X {
        elementwise::kv_cache_write(cache, rows, position)
    }
}
