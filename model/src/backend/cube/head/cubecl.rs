//! Cross entropy in CubeCL: how it is launched, then the kernels. One cube a row of logits.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

use burn::tensor::DType;
use cubecl::prelude::*;

use super::CrossEntropy;
use crate::backend::cube::reduction::{THREADS, cube_max, cube_sum, vector_sum};
use crate::backend::cube::tensor::{cubes, element, rows_and_width, threads, vector};

pub(super) fn cross_entropy(call: CrossEntropy) {
    let CrossEntropy { logits, targets, losses, first, dlogits, scale } = call;
    let (rows, vocabulary) = rows_and_width(&logits);
    let size = vector(vocabulary, DType::F32);
    let client = logits.client.clone();
    // SAFETY: a cube reads its row of V logits and writes the loss and the gradient of its row;
    // targets are below V, as `TokenBatch` checked; `dlogits` has the shape of `logits`.
    unsafe {
        match dlogits {
            None => forward_kernel::launch_unchecked(
                &client,
                cubes(rows),
                threads(),
                size,
                logits.into_buffer_arg(),
                targets.into_buffer_arg(),
                losses.into_buffer_arg(),
                first,
                rows,
                vocabulary / size,
            ),
            Some(dlogits) => backward_kernel::launch_unchecked(
                &client,
                cubes(rows),
                threads(),
                size,
                logits.into_buffer_arg(),
                targets.into_buffer_arg(),
                losses.into_buffer_arg(),
                dlogits.clone().into_buffer_arg(),
                first,
                rows,
                vocabulary / size,
                scale,
                element(dlogits.dtype),
            ),
        }
    }
}

/// (log Σ exp z, log Σ exp z − z\[target\]) of a row of `width` vectors of logits from `start` on,
/// in every thread of the cube.
#[cube]
fn log_sum_exp_and_loss<N: Size>(
    logits: &[Vector<f32, N>],
    start: usize,
    width: usize,
    target: i32,
    scratch: &mut Shared<[f32]>,
) -> (f32, f32) {
    let mut largest = f32::min_value();
    let mut i = UNIT_POS as usize;
    while i < width {
        let z = logits[start + i];
        #[unroll]
        for j in 0..N::value() {
            largest = max(largest, z.extract(j));
        }
        i += THREADS;
    }
    let largest = cube_max(largest, scratch);
    let mut sum = 0.0f32;
    let mut hot = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let z = logits[start + i];
        sum += vector_sum::<N>((z - Vector::<f32, N>::new(largest)).exp());
        #[unroll]
        for j in 0..N::value() {
            if (i * N::value() + j) as i32 == target {
                hot = z.extract(j);
            }
        }
        i += THREADS;
    }
    let lse = largest + cube_sum(sum, scratch).ln();
    // One thread saw the target, the others hold 0.
    let loss = lse - cube_sum(hot, scratch);
    (lse, loss)
}

/// `losses[first + row]` of the rows of `logits` (rows, V) in nats; 0 where the target is negative.
/// `width` = V / N.
#[cube(launch_unchecked)]
fn forward_kernel<N: Size>(
    logits: &[Vector<f32, N>],
    targets: &[i32],
    losses: &mut [f32],
    first: usize,
    rows: usize,
    width: usize,
) {
    let mut scratch = Shared::<[f32]>::new_slice(THREADS);
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let target = targets[first + row];
    let (_lse, loss) = log_sum_exp_and_loss::<N>(logits, row * width, width, target, &mut scratch);
    if UNIT_POS == 0 {
        losses[first + row] = select(target >= 0, loss, 0.0f32);
    }
}

/// [`forward_kernel`], and `dlogits` = scale · (softmax − onehot), 0 where the target is negative.
#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    logits: &[Vector<f32, N>],
    targets: &[i32],
    losses: &mut [f32],
    dlogits: &mut [Vector<F, N>],
    first: usize,
    rows: usize,
    width: usize,
    scale: f32,
    #[define(F)] _dtype: ElemType,
) {
    let mut scratch = Shared::<[f32]>::new_slice(THREADS);
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * width;
    let target = targets[first + row];
    let (lse, loss) = log_sum_exp_and_loss::<N>(logits, start, width, target, &mut scratch);
    if UNIT_POS == 0 {
        losses[first + row] = select(target >= 0, loss, 0.0f32);
    }
    let factor = select(target >= 0, scale, 0.0f32);
    let mut i = UNIT_POS as usize;
    while i < width {
        let mut p = (logits[start + i] - Vector::<f32, N>::new(lse)).exp();
        #[unroll]
        for j in 0..N::value() {
            if (i * N::value() + j) as i32 == target {
                p.insert(j, p.extract(j) - 1.0f32);
            }
        }
        dlogits[start + i] = Vector::cast_from(p * Vector::<f32, N>::new(factor));
        i += THREADS;
    }
}
