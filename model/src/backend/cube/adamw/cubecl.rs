//! The ops in CubeCL: how they are launched, then the kernels.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

use altiplano_kernels::AdamWStep;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Step;
use crate::backend::cube::reduction::{THREADS, cube_sum, vector_sum};
use crate::backend::cube::tensor::{cubes, element, elements, new, threads, units, vector};

/// Most pieces a tensor is cut into before their sums are added.
const MOST_PIECES: usize = 1024;

fn factors(hyper: &AdamWStep) -> FactorsLaunch {
    let f = hyper.factors();
    FactorsLaunch::new(f.keep, f.rate, f.root_correction, f.beta1, f.beta2, f.eps, f.grad_scale)
}

pub(super) fn step(Step { param, m, v, grad, copy }: Step, hyper: &AdamWStep) {
    let size = vector(elements(&param), DType::F32);
    let client = param.client.clone();
    let grid = units(elements(&param) / size);
    // SAFETY: all have the same elements; the kernels stop at the end of `param`.
    unsafe {
        match copy {
            None => adamw_kernel::launch_unchecked(
                &client,
                grid,
                threads(),
                size,
                param.into_buffer_arg(),
                m.into_buffer_arg(),
                v.into_buffer_arg(),
                grad.into_buffer_arg(),
                factors(hyper),
            ),
            Some(copy) => adamw_with_copy_kernel::launch_unchecked(
                &client,
                grid,
                threads(),
                size,
                param.into_buffer_arg(),
                m.into_buffer_arg(),
                v.into_buffer_arg(),
                grad.into_buffer_arg(),
                copy.clone().into_buffer_arg(),
                factors(hyper),
                element(copy.dtype),
            ),
        }
    }
}

/// Σ x² as sum and rounding error, in `total` (2).
pub(super) fn sum_of_squares(x: CubeTensor, total: CubeTensor) {
    let size = vector(elements(&x), DType::F32);
    let vectors = elements(&x) / size;
    // As many pieces as give each thread something to do, by the size alone.
    let per_piece = vectors.div_ceil(MOST_PIECES).max(THREADS);
    let pieces = vectors.div_ceil(per_piece);
    let partial = new(&x, &[2, pieces], DType::F32);
    let client = x.client.clone();
    // SAFETY: there are exactly `pieces` cubes, at most 1024; both stop at their ends.
    unsafe {
        sum_of_squares_pieces_kernel::launch_unchecked(
            &client,
            cubes(pieces),
            threads(),
            size,
            x.into_buffer_arg(),
            partial.clone().into_buffer_arg(),
            per_piece,
            pieces,
        );
        sum_pieces_kernel::launch_unchecked(
            &client,
            cubes(1),
            CubeDim::new_1d(1),
            partial.into_buffer_arg(),
            total.into_buffer_arg(),
            pieces,
        );
    }
}

/// The numbers of a step that do not depend on the element.
#[derive(CubeType, CubeLaunch)]
struct Factors {
    /// 1 − lr · λ.
    keep: f32,
    /// lr / (1 − β₁ᵗ).
    rate: f32,
    /// 1 / √(1 − β₂ᵗ).
    root_correction: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    grad_scale: f32,
}

/// Updates element `i` of `m` and `v`; the new parameter.
#[cube]
fn updated<N: Size>(
    param: Vector<f32, N>,
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    grad: Vector<f32, N>,
    i: usize,
    factors: &Factors,
) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0_f32);
    let beta1 = Vector::<f32, N>::new(factors.beta1);
    let beta2 = Vector::<f32, N>::new(factors.beta2);
    let g = grad * Vector::<f32, N>::new(factors.grad_scale);
    let new_m = beta1 * m[i] + (one - beta1) * g;
    let new_v = beta2 * v[i] + (one - beta2) * g * g;
    m[i] = new_m;
    v[i] = new_v;
    let root = new_v.sqrt() * Vector::<f32, N>::new(factors.root_correction);
    let step =
        Vector::<f32, N>::new(factors.rate) * new_m / (root + Vector::<f32, N>::new(factors.eps));
    param * Vector::<f32, N>::new(factors.keep) - step
}

/// One step on `param`, `m` and `v`.
#[cube(launch_unchecked)]
fn adamw_kernel<N: Size>(
    param: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    grad: &[Vector<f32, N>],
    factors: &Factors,
) {
    let i = ABSOLUTE_POS;
    if i < param.len() {
        param[i] = updated::<N>(param[i], m, v, grad[i], i, factors);
    }
}

/// [`adamw_kernel`], and `copy` = the new `param` in the type `F`.
#[cube(launch_unchecked)]
fn adamw_with_copy_kernel<F: Float, N: Size>(
    param: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    grad: &[Vector<f32, N>],
    copy: &mut [Vector<F, N>],
    factors: &Factors,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < param.len() {
        let new = updated::<N>(param[i], m, v, grad[i], i, factors);
        param[i] = new;
        copy[i] = Vector::cast_from(new);
    }
}

/// What rounding took from `next` = `sum` + `term` (Neumaier's compensated sum).
#[cube]
fn rounding_error(sum: f32, term: f32, next: f32) -> f32 {
    let large = select(sum.abs() >= term.abs(), sum, term);
    let small = select(sum.abs() >= term.abs(), term, sum);
    (large - next) + small
}

/// Σ x² of piece `CUBE_POS` of `x`, as sum and correction: `partial` (2, pieces).
#[cube(launch_unchecked)]
fn sum_of_squares_pieces_kernel<N: Size>(
    x: &[Vector<f32, N>],
    partial: &mut [f32],
    vectors_per_piece: usize,
    pieces: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(THREADS);
    let first = CUBE_POS * vectors_per_piece;
    let end = min(first + vectors_per_piece, x.len());
    let mut sum = 0.0f32;
    let mut lost = 0.0f32;
    let mut i = first + UNIT_POS as usize;
    while i < end {
        let v = x[i];
        let term = vector_sum::<N>(v * v);
        let next = sum + term;
        lost += rounding_error(sum, term, next);
        sum = next;
        i += THREADS;
    }
    // Adding 256 numbers of like size by halving rounds 8 times; what the long sums lost is kept.
    let total = cube_sum(sum, &mut scratch);
    let correction = cube_sum(lost, &mut scratch);
    if UNIT_POS == 0 {
        partial[CUBE_POS] = total;
        partial[pieces + CUBE_POS] = correction;
    }
}

/// The compensated sum of `partial` (2, pieces): `total` (2), sum and correction. One thread adds
/// them in order.
#[cube(launch_unchecked)]
fn sum_pieces_kernel(partial: &[f32], total: &mut [f32], pieces: usize) {
    if ABSOLUTE_POS == 0 {
        let mut sum = 0.0f32;
        let mut lost = 0.0f32;
        for i in 0..pieces {
            let term = partial[i];
            let next = sum + term;
            lost += rounding_error(sum, term, next);
            sum = next;
        }
        for i in 0..pieces {
            lost += partial[pieces + i];
        }
        total[0] = sum;
        total[1] = lost;
    }
}
