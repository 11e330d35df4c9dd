//! Sums and largest values over a cube in CubeCL, in a fixed order.
//!
//! Every kernel of the ops reads `N` elements a thread at once, 16 bytes, of the type `F` (f32 or bf16),
//! and sums in f32. The order of its sums depends on the shapes alone: there are no atomics.

use cubecl::prelude::*;

/// Threads of the cubes that reduce, a power of two.
pub const THREADS: usize = 256;

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
