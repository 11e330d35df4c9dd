//! The op in CubeCL: how it is launched, then the kernels.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Chain;
use crate::backend::cube::reduction::THREADS;
use crate::backend::cube::tensor::{
    cubes, element, elements, rows_and_width, threads, units, vector,
};

pub(super) fn forward(weight: CubeTensor, ids: CubeTensor, y: CubeTensor) {
    let (_, channels) = rows_and_width(&weight);
    let size = vector(channels, weight.dtype);
    // SAFETY: ids are below V, as `TokenBatch` checked; the kernel stops at the end of `y`.
    unsafe {
        forward_kernel::launch_unchecked(
            &y.client.clone(),
            units(elements(&y) / size),
            threads(),
            size,
            weight.into_buffer_arg(),
            ids.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            channels / size,
            element(y.dtype),
        );
    }
}

pub(super) fn chain(Chain { ids, next, follows }: &Chain) {
    // SAFETY: all have one entry per position.
    unsafe {
        chain_kernel::launch_unchecked(
            &ids.client.clone(),
            units(elements(ids)),
            threads(),
            ids.clone().into_buffer_arg(),
            next.clone().into_buffer_arg(),
            follows.clone().into_buffer_arg(),
        );
    }
}

/// `dweight` += `dy` along the chains.
pub(super) fn backward(dy: CubeTensor, chain: Chain, dweight: CubeTensor) {
    let Chain { ids, next, follows } = chain;
    let (_, channels) = rows_and_width(&dy);
    let size = vector(channels, dy.dtype);
    // SAFETY: all have one entry per position, ids are below V, and chains only name positions.
    unsafe {
        backward_kernel::launch_unchecked(
            &dy.client.clone(),
            cubes(elements(&ids)),
            threads(),
            size,
            dy.clone().into_buffer_arg(),
            ids.into_buffer_arg(),
            next.into_buffer_arg(),
            follows.into_buffer_arg(),
            dweight.into_buffer_arg(),
            channels / size,
            element(dy.dtype),
        );
    }
}

/// y[n] = weight[ids[n]], rows of `width` vectors.
#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
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
fn chain_kernel(ids: &[i32], next: &mut [u32], follows: &mut [u32]) {
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
fn backward_kernel<F: Float, N: Size>(
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
