//! AdamW and the sums of the gradient norm.

use altiplano_kernels::AdamWStep;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeDim;

use super::kernels::adamw::FactorsLaunch;
use super::kernels::reduction::{PIECES, THREADS};
use super::kernels::{adamw, reduction};
use super::tensor::{accumulator, contiguous, cubes, element, elements, new, units, vector};
use super::threads;

fn factors(hyper: &AdamWStep) -> FactorsLaunch {
    let f = hyper.factors();
    FactorsLaunch::new(f.keep, f.rate, f.root_correction, f.beta1, f.beta2, f.eps, f.grad_scale)
}

/// One step in place: (param, m, v).
pub(super) fn adamw_step(
    param: CubeTensor,
    m: CubeTensor,
    v: CubeTensor,
    grad: CubeTensor,
    hyper: AdamWStep,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [param, m, v] = [param, m, v].map(|x| accumulator(x, "adamw_step"));
    let grad = contiguous(grad);
    let size = vector(elements(&param), DType::F32);
    // SAFETY: all four have the same elements; the kernel stops at the end of `param`.
    unsafe {
        adamw::adamw::launch_unchecked(
            &param.client.clone(),
            units(elements(&param) / size),
            threads(),
            size,
            param.clone().into_buffer_arg(),
            m.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            grad.into_buffer_arg(),
            factors(&hyper),
        );
    }
    (param, m, v)
}

/// [`adamw_step`] that also writes the bf16 copy: (param, m, v, copy).
pub(super) fn adamw_step_with_copy(
    param: CubeTensor,
    m: CubeTensor,
    v: CubeTensor,
    grad: CubeTensor,
    copy: CubeTensor,
    hyper: AdamWStep,
) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
    let [param, m, v, copy] = [param, m, v, copy].map(|x| accumulator(x, "adamw_step_with_copy"));
    let grad = contiguous(grad);
    let size = vector(elements(&param), DType::F32);
    // SAFETY: all five have the same elements; the kernel stops at the end of `param`.
    unsafe {
        adamw::adamw_with_copy::launch_unchecked(
            &param.client.clone(),
            units(elements(&param) / size),
            threads(),
            size,
            param.clone().into_buffer_arg(),
            m.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            grad.into_buffer_arg(),
            copy.clone().into_buffer_arg(),
            factors(&hyper),
            element(copy.dtype),
        );
    }
    (param, m, v, copy)
}

/// Σ x² as sum and rounding error, (2).
pub(super) fn sum_of_squares(x: CubeTensor) -> CubeTensor {
    let x = contiguous(x);
    let size = vector(elements(&x), DType::F32);
    let vectors = elements(&x) / size;
    // As many pieces as give each thread something to do, by the size alone.
    let per_piece = vectors.div_ceil(PIECES).max(THREADS);
    let pieces = vectors.div_ceil(per_piece);
    let partial = new(&x, &[2, pieces], DType::F32);
    let total = new(&x, &[2], DType::F32);
    let client = x.client.clone();
    // SAFETY: there are exactly `pieces` cubes, at most 1024; both stop at their ends.
    unsafe {
        reduction::sum_of_squares_pieces::launch_unchecked(
            &client,
            cubes(pieces),
            threads(),
            size,
            x.into_buffer_arg(),
            partial.clone().into_buffer_arg(),
            per_piece,
            pieces,
        );
        reduction::sum_pieces::launch_unchecked(
            &client,
            cubes(1),
            CubeDim::new_1d(1),
            partial.into_buffer_arg(),
            total.clone().into_buffer_arg(),
            pieces,
        );
    }
    total
}
