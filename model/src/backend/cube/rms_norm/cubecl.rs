//! RMSNorm by rows: one cube a row forward, a run of rows backward.

use cubecl::prelude::*;

use super::reduction::{THREADS, cube_sum, vector_sum};

/// `x` (rows, C), `weight` (C): `y` (rows, C), `rstd` (rows). `width` = C / N.
#[cube(launch_unchecked)]
pub fn forward<F: Float, N: Size>(
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
pub fn backward<F: Float, N: Size>(
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
pub fn add_rows<N: Size>(
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
