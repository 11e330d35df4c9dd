//! Embedding: rows picked by id, and their gradients in the order of the positions.

use cubecl::prelude::*;

use super::reduction::THREADS;

/// y[n] = weight[ids[n]], rows of `width` vectors.
#[cube(launch_unchecked)]
pub fn forward<F: Float, N: Size>(
    weight: &[Vector<F, N>],
    ids: &[i32],
    y: &mut [Vector<F, N>],
    #[comptime] width: usize,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        let id = ids[i / width] as usize;
        y[i] = weight[id * width + i % width];
    }
}

/// Chains the positions of equal ids: `next[n]` is the first position after n with the id of n,
/// or the count of positions; `follows[m]` becomes 1 for every m that some next names. Each m is
/// named at most once, so nothing races. `follows` starts as zeros.
#[cube(launch_unchecked)]
pub fn chain(ids: &[i32], next: &mut [u32], follows: &mut [u32]) {
    let n = ABSOLUTE_POS;
    let count = next.len();
    if n < count {
        let id = ids[n];
        let mut m = n + 1;
        let mut searching = m < count;
        while searching {
            if ids[m] == id {
                searching = false;
            } else {
                m += 1;
                searching = m < count;
            }
        }
        next[n] = m as u32;
        if m < count {
            follows[m] = 1u32;
        }
    }
}

/// dweight[id] += Σ dy[n] over the positions n of id: a cube walks one chain from its start, so
/// the sum runs in the order of the positions.
#[cube(launch_unchecked)]
pub fn backward<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    ids: &[i32],
    next: &[u32],
    follows: &[u32],
    dweight: &mut [Vector<f32, N>],
    #[comptime] width: usize,
    #[define(F)] _dtype: ElemType,
) {
    let count = next.len();
    let start = CUBE_POS;
    if start < count {
        if follows[start] == 0u32 {
            let id = ids[start] as usize;
            let mut i = UNIT_POS as usize;
            while i < width {
                let mut sum = dweight[id * width + i];
                let mut n = start;
                while n < count {
                    sum += Vector::<f32, N>::cast_from(dy[n * width + i]);
                    n = next[n] as usize;
                }
                dweight[id * width + i] = sum;
                i += THREADS;
            }
        }
    }
}
