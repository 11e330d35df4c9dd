//! Cross entropy of rows of logits, and the gradient of the logits. One cube a row.

use cubecl::prelude::*;

use super::reduction::{THREADS, cube_max, cube_sum, vector_sum};

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
pub fn forward<N: Size>(
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

/// [`forward`], and `dlogits` = scale · (softmax − onehot), 0 where the target is negative.
#[cube(launch_unchecked)]
pub fn backward<F: Float, N: Size>(
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
