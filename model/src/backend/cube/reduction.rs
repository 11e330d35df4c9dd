//! Sums over a cube and over a tensor, in a fixed order.

use cubecl::prelude::*;

/// Threads of the cubes that reduce, a power of two.
pub const THREADS: usize = 256;

/// Pieces a tensor is cut into before their sums are added.
pub const PIECES: usize = 1024;

/// The sum of `value` over the [`THREADS`] threads, in every thread, by halving.
/// Every thread of the cube must come here.
#[cube]
pub fn cube_sum(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    // Whoever still reads the previous sum is let through first.
    sync_cube();
    scratch[UNIT_POS as usize] = value;
    sync_cube();
    let mut active = CUBE_DIM / 2;
    while active > 0 {
        if UNIT_POS < active {
            let other = scratch[(UNIT_POS + active) as usize];
            scratch[UNIT_POS as usize] += other;
        }
        sync_cube();
        active /= 2;
    }
    scratch[0]
}

/// The largest `value` over the [`THREADS`] threads, in every thread.
#[cube]
pub fn cube_max(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    sync_cube();
    scratch[UNIT_POS as usize] = value;
    sync_cube();
    let mut active = CUBE_DIM / 2;
    while active > 0 {
        if UNIT_POS < active {
            let other = scratch[(UNIT_POS + active) as usize];
            let own = scratch[UNIT_POS as usize];
            scratch[UNIT_POS as usize] = max(own, other);
        }
        sync_cube();
        active /= 2;
    }
    scratch[0]
}

/// The sum of the elements of a vector, first to last.
#[cube]
pub fn vector_sum<N: Size>(x: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..N::value() {
        sum += x.extract(i);
    }
    sum
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
pub fn sum_of_squares_pieces<N: Size>(
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
pub fn sum_pieces(partial: &[f32], total: &mut [f32], pieces: usize) {
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
