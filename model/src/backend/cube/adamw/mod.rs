//! AdamW, and the sums of squares of the gradient norm.
//!
//! An op of one parameter takes the CubeCL kernels on every device. On NVIDIA GPUs the optimizer calls
//! the functions of `cuda`, which take all parameters at once.

mod cubecl;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod tests;

use altiplano_kernels::AdamWStep;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::tensor::{accumulator, contiguous, new};

/// A parameter with what its step reads and writes, all f32 but the bf16 copy.
struct Step {
    param: CubeTensor,
    m: CubeTensor,
    v: CubeTensor,
    grad: CubeTensor,
    copy: Option<CubeTensor>,
}

/// One step in place: (param, m, v).
pub(super) fn step(
    param: CubeTensor,
    m: CubeTensor,
    v: CubeTensor,
    grad: CubeTensor,
    hyper: &AdamWStep,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [param, m, v] = [param, m, v].map(|x| accumulator(x, "adamw_step"));
    let updated = (param.clone(), m.clone(), v.clone());
    cubecl::step(Step { param, m, v, grad: contiguous(grad), copy: None }, hyper);
    updated
}

/// [`step`] that also writes the bf16 copy: (param, m, v, copy).
pub(super) fn step_with_copy(
    param: CubeTensor,
    m: CubeTensor,
    v: CubeTensor,
    grad: CubeTensor,
    copy: CubeTensor,
    hyper: &AdamWStep,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let [param, m, v, copy] = [param, m, v, copy].map(|x| accumulator(x, "adamw_step_with_copy"));
    let updated = (param.clone(), m.clone(), v.clone(), copy.clone());
    cubecl::step(Step { param, m, v, grad: contiguous(grad), copy: Some(copy) }, hyper);
    updated
}

/// Σ x² as sum and rounding error, (2).
pub(super) fn sum_of_squares(x: CubeTensor) -> CubeTensor {
    let x = contiguous(x);
    let total = new(&x, &[2], DType::F32);
    cubecl::sum_of_squares(x, total.clone());
    total
}
