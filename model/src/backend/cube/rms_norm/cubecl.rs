//! The op in CubeCL: how it is launched, then the kernels. One cube a row forward, a run of rows
//! backward.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

use burn::tensor::DType;
use cubecl::prelude::*;

use super::{Backward, Forward};
use crate::backend::cube::reduction::{THREADS, cube_sum, vector_sum};
use crate::backend::cube::tensor::{cubes, element, new, rows_and_width, threads, units, vector};

/// Most cubes that share the rows of one backward pass.
const MOST_CUBES: usize = 512;

pub(super) fn forward(call: Forward) {
    let Forward { x, weight, y, rstd, eps } = call;
    let (rows, channels) = rows_and_width(&x);
    let size = vector(channels, x.dtype);
    // SAFETY: `y` has the elements of `x`, `rstd` its rows, `weight` its channels.
    unsafe {
        forward_kernel::launch_unchecked(
            &x.client.clone(),
            cubes(rows),
            threads(),
            size,
            x.clone().into_buffer_arg(),
            weight.into_buffer_arg(),
            y.into_buffer_arg(),
            rstd.into_buffer_arg(),
            eps as f32,
            channels / size,
            element(x.dtype),
        );
    }
}

pub(super) fn backward(call: Backward) {
    let Backward { dy, x, weight, rstd, dx, dweight } = call;
    let (rows, channels) = rows_and_width(&x);
    let size = vector(channels, x.dtype);
    let rows_per_cube = rows.div_ceil(MOST_CUBES);
    let pieces = rows.div_ceil(rows_per_cube);
    let partial = new(&x, &[pieces, channels], DType::F32);
    let client = x.client.clone();
    // SAFETY: `dy`, `x` and `dx` have the same shape, `rstd` their rows, `weight`, `dweight`
    // and the rows of `partial` their channels; the grid has exactly `pieces` cubes.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            cubes(pieces),
            threads(),
            size,
            dy.into_buffer_arg(),
            x.clone().into_buffer_arg(),
            weight.into_buffer_arg(),
            rstd.into_buffer_arg(),
            dx.into_buffer_arg(),
            partial.clone().into_buffer_arg(),
            rows_per_cube,
            channels / size,
            element(x.dtype),
        );
        let size = vector(channels, DType::F32);
        add_rows_kernel::launch_unchecked(
            &client,
            units(channels / size),
            threads(),
            size,
            partial.into_buffer_arg(),
            dweight.into_buffer_arg(),
            pieces,
            channels / size,
        );
    }
}

/// `x` (rows, C), `weight` (C): `y` (rows, C), `rstd` (rows). `width` = C / N.
#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    rstd: &mut [f32],
    eps: f32,
    #[comptime] width: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(THREADS);
    let row = CUBE_POS;
    if row >= rstd.len() {
        terminate!();
    }
    let start = row * width;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        squares += vector_sum::<N>(v * v);
        i += THREADS;
    }
    let channels = width * N::value();
    let mean = cube_sum(squares, &mut scratch) / f32::cast_from(channels);
    let r = 1.0f32 / (mean + eps).sqrt();
    if UNIT_POS == 0 {
        rstd[row] = r;
    }
    let scale = Vector::<f32, N>::new(r);
    let mut i = UNIT_POS as usize;
    while i < width {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        y[start + i] = Vector::cast_from(v * scale * weight[i]);
        i += THREADS;
    }
}

/// dx of `rows_per_cube` rows, and their part of dweight in row `CUBE_POS` of `partial`
/// (cubes, C). A thread keeps the channels it owns, `width` / 256 vectors, in registers.
#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<f32, N>],
    rstd: &[f32],
    dx: &mut [Vector<F, N>],
    partial: &mut [Vector<f32, N>],
    rows_per_cube: usize,
    #[comptime] width: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(THREADS);
    let owned = comptime![width.div_ceil(THREADS)];
    let mut dweight = Array::<Vector<f32, N>>::new(owned);
    #[unroll]
    for k in 0..owned {
        dweight[k] = Vector::new(0.0_f32);
    }
    let channels = width * N::value();
    let first = CUBE_POS * rows_per_cube;
    let end = min(first + rows_per_cube, rstd.len());
    let mut row = first;
    while row < end {
        let start = row * width;
        let r = rstd[row];
        let scale = Vector::<f32, N>::new(r);
        let mut products = 0.0f32;
        #[unroll]
        for k in 0..owned {
            let i = UNIT_POS as usize + k * THREADS;
            if i < width {
                let d = Vector::<f32, N>::cast_from(dy[start + i]);
                let x_hat = Vector::<f32, N>::cast_from(x[start + i]) * scale;
                dweight[k] += d * x_hat;
                products += vector_sum::<N>(d * weight[i] * x_hat);
            }
        }
        let mean = cube_sum(products, &mut scratch) / f32::cast_from(channels);
        let mean = Vector::<f32, N>::new(mean);
        #[unroll]
        for k in 0..owned {
            let i = UNIT_POS as usize + k * THREADS;
            if i < width {
                let g = Vector::<f32, N>::cast_from(dy[start + i]) * weight[i];
                let x_hat = Vector::<f32, N>::cast_from(x[start + i]) * scale;
                dx[start + i] = Vector::cast_from((g - x_hat * mean) * scale);
            }
        }
        row += 1;
    }
    #[unroll]
    for k in 0..owned {
        let i = UNIT_POS as usize + k * THREADS;
        if i < width {
            partial[CUBE_POS * width + i] = dweight[k];
        }
    }
}

/// `sum` (C) += the rows of `partial` (rows, C), first to last.
#[cube(launch_unchecked)]
fn add_rows_kernel<N: Size>(
    partial: &[Vector<f32, N>],
    sum: &mut [Vector<f32, N>],
    rows: usize,
    #[comptime] width: usize,
) {
    let i = ABSOLUTE_POS;
    if i < width {
        let mut total = Vector::<f32, N>::new(0.0_f32);
        for row in 0..rows {
            total += partial[row * width + i];
        }
        sum[i] += total;
    }
}
