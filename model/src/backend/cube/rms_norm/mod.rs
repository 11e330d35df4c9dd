//! RMSNorm and the residual connections around it.

use burn::tensor::DType;
use burn_cubecl::Cube;
use burn_cubecl::tensor::CubeTensor;

use super::kernels::rms_norm;
use super::tensor::{
    accumulator, contiguous, cubes, dims, element, new, new_like, rows_and_width, units, vector,
};
use super::threads;
use crate::backend::TransformerOps;

/// Most cubes that share the rows of one RMSNorm backward pass.
const NORM_CUBES: usize = 512;

/// (y, rstd) of `x`.
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, eps: f64) -> (CubeTensor, CubeTensor) {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let (rows, channels) = rows_and_width(&x);
    let size = vector(channels, x.dtype);
    let y = new_like(&x);
    let shape = dims(&x);
    let rstd = new(&x, &shape[..shape.len() - 1], DType::F32);
    #[cfg(feature = "cuda")]
    if super::cuda::rms_norm::forward(&x, None, &weight, &y, &rstd, eps) {
        return (y, rstd);
    }
    // SAFETY: `y` has the elements of `x`, `rstd` its rows, `weight` its channels.
    unsafe {
        rms_norm::forward::launch_unchecked(
            &x.client.clone(),
            cubes(rows),
            threads(),
            size,
            x.clone().into_buffer_arg(),
            weight.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            rstd.clone().into_buffer_arg(),
            eps as f32,
            channels / size,
            element(x.dtype),
        );
    }
    (y, rstd)
}

/// (dx, dweight accumulated).
pub(super) fn backward(
    dy: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
    rstd: CubeTensor,
    dweight: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let dweight = accumulator(dweight, "rms_norm_backward");
    let (dy, x, weight) = (contiguous(dy), contiguous(x), contiguous(weight));
    let rstd = contiguous(rstd);
    let (rows, channels) = rows_and_width(&x);
    let size = vector(channels, x.dtype);
    let rows_per_cube = rows.div_ceil(NORM_CUBES);
    let pieces = rows.div_ceil(rows_per_cube);
    let dx = new_like(&x);
    #[cfg(feature = "cuda")]
    if super::cuda::rms_norm::backward([&dy, &x, &weight, &rstd], None, &dx, &dweight) {
        return (dx, dweight);
    }
    let partial = new(&x, &[pieces, channels], DType::F32);
    let client = x.client.clone();
    // SAFETY: `dy`, `x` and `dx` have the same shape, `rstd` their rows, `weight`, `dweight`
    // and the rows of `partial` their channels; the grid has exactly `pieces` cubes.
    unsafe {
        rms_norm::backward::launch_unchecked(
            &client,
            cubes(pieces),
            threads(),
            size,
            dy.into_buffer_arg(),
            x.clone().into_buffer_arg(),
            weight.into_buffer_arg(),
            rstd.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            partial.clone().into_buffer_arg(),
            rows_per_cube,
            channels / size,
            element(x.dtype),
        );
        let size = vector(channels, DType::F32);
        rms_norm::add_rows::launch_unchecked(
            &client,
            units(channels / size),
            threads(),
            size,
            partial.into_buffer_arg(),
            dweight.clone().into_buffer_arg(),
            pieces,
            channels / size,
        );
    }
    (dx, dweight)
}

/// (x + branch, y, rstd).
pub(super) fn residual_forward(
    x: CubeTensor,
    branch: CubeTensor,
    weight: CubeTensor,
    eps: f64,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (x, branch, weight) = (contiguous(x), contiguous(branch), contiguous(weight));
    #[cfg(feature = "cuda")]
    {
        let (h, y) = (new_like(&x), new_like(&x));
        let shape = dims(&x);
        let rstd = new(&x, &shape[..shape.len() - 1], DType::F32);
        if super::cuda::rms_norm::forward(&x, Some((&branch, &h)), &weight, &y, &rstd, eps) {
            return (h, y, rstd);
        }
    }
    let h = Cube::residual_forward(x, branch);
    let (y, rstd) = forward(h.clone(), weight, eps);
    (h, y, rstd)
}

/// (dstream + dx, dweight accumulated).
pub(super) fn residual_backward(
    dstream: CubeTensor,
    dy: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
    rstd: CubeTensor,
    dweight: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let dweight = accumulator(dweight, "residual_rms_norm_backward");
    let (dstream, dy, x) = (contiguous(dstream), contiguous(dy), contiguous(x));
    let (weight, rstd) = (contiguous(weight), contiguous(rstd));
    #[cfg(feature = "cuda")]
    {
        let dx = if dstream.can_mut() { dstream.clone() } else { new_like(&x) };
        let inputs = [&dy, &x, &weight, &rstd];
        if super::cuda::rms_norm::backward(inputs, Some(&dstream), &dx, &dweight) {
            return (dx, dweight);
        }
    }
    let (dx, dweight) = backward(dy, x, weight, rstd, dweight);
    (Cube::residual_forward(dstream, dx), dweight)
}
