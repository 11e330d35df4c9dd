//! Output head and cross entropy, fused and chunked over tokens: the logits of one chunk
//! exist at a time, in f32.
//!
//! Forward, per row with logits `z = x Wᵀ` and target `t`:
//!
//! ```text
//! loss = ln Σ_v exp(z_v) - z_t
//! ```
//!
//! Backward, for `scale Σ loss`: the softmax `p` is the derivative of the log-sum-exp, so
//!
//! ```text
//! dz_v = scale (p_v - [v = t])      dx = dz W      dW += dzᵀ x
//! ```
//!
//! `dz` takes the place of the logits and is used at once. A negative target is ignored: its
//! loss and its gradient are zero.

use crate::element::Element;
use crate::exp::exp;
use crate::gemm::{Output, gemm};
use crate::linear::LinearShape;
use crate::packing::Operand;
use crate::scratch::Scratch;
use crate::simd::{LANES, max_lanes, sum_lanes, vectorized};
use rayon::prelude::*;

/// `losses` (M) of `x` (M, C) through the head `weight` (V, C) at `targets` (M), `chunk` rows
/// at a time; `shape.inputs` is `C`, `shape.outputs` is `V`.
pub fn head_cross_entropy_forward<E: Element>(
    losses: &mut [f32],
    x: &[E],
    weight: &[E],
    targets: &[i32],
    shape: LinearShape,
    chunk: usize,
) {
    let LinearShape { inputs, outputs, .. } = shape;
    check("head_cross_entropy_forward", losses.len(), x.len(), weight.len(), targets, shape);
    let chunk = chunk.clamp(1, shape.rows.max(1));
    let mut logits = Scratch::new::<f32>(chunk * outputs);
    for (i, losses) in losses.chunks_mut(chunk).enumerate() {
        let rows = losses.len();
        let x = Operand::rows(&x[i * chunk * inputs..][..rows * inputs], rows, inputs);
        let targets = &targets[i * chunk..][..rows];
        let logits = &mut logits.as_mut::<f32>()[..rows * outputs];
        gemm(Output::AssignF32(logits), x, Operand::rows(weight, outputs, inputs));
        logits
            .par_chunks_mut(outputs)
            .zip(losses)
            .zip(targets)
            .for_each(|((logits, loss), &target)| *loss = row_loss(logits, target, false).0);
    }
}

/// As [`head_cross_entropy_forward`], and for `scale Σ losses` the gradients `dx` (M, C) `=`
/// and `dweight` (V, C) `+=`.
#[expect(clippy::too_many_arguments, reason = "two gradients, and what the pair needs")]
pub fn head_cross_entropy_backward<E: Element>(
    losses: &mut [f32],
    dx: &mut [E],
    dweight: &mut [f32],
    x: &[E],
    weight: &[E],
    targets: &[i32],
    scale: f32,
    shape: LinearShape,
    chunk: usize,
) {
    let op = "head_cross_entropy_backward";
    let LinearShape { inputs, outputs, .. } = shape;
    check(op, losses.len(), x.len(), weight.len(), targets, shape);
    assert_eq!(dx.len(), x.len(), "{op}: dx and x differ in length");
    assert_eq!(dweight.len(), weight.len(), "{op}: dweight and weight differ in length");
    let chunk = chunk.clamp(1, shape.rows.max(1));
    let mut logits = Scratch::new::<f32>(chunk * outputs);
    for (i, losses) in losses.chunks_mut(chunk).enumerate() {
        let rows = losses.len();
        let x = &x[i * chunk * inputs..][..rows * inputs];
        let dx = &mut dx[i * chunk * inputs..][..rows * inputs];
        let targets = &targets[i * chunk..][..rows];
        let logits = &mut logits.as_mut::<f32>()[..rows * outputs];
        let by_output = Operand::rows(weight, outputs, inputs);
        gemm(Output::AssignF32(logits), Operand::rows(x, rows, inputs), by_output);
        logits.par_chunks_mut(outputs).zip(losses).zip(targets).for_each(
            |((logits, loss), &target)| {
                let sum;
                (*loss, sum) = row_loss(logits, target, true);
                row_gradient::<E>(logits, target, scale, sum);
            },
        );
        // Rows of dz start where the rows of logits did, so bf16 rows are two widths apart.
        let stride = outputs * size_of::<f32>() / size_of::<E>();
        let dz = Operand {
            data: bytemuck::cast_slice::<f32, E>(logits),
            lanes: rows,
            depth: outputs,
            lane_stride: stride,
            depth_stride: 1,
        };
        gemm(Output::Assign(dx), dz, Operand::columns(weight, outputs, inputs));
        let dz_columns =
            Operand { lanes: outputs, depth: rows, lane_stride: 1, depth_stride: stride, ..dz };
        gemm(Output::AddF32(dweight), dz_columns, Operand::columns(x, rows, inputs));
    }
}

fn check(op: &str, losses: usize, x: usize, weight: usize, targets: &[i32], shape: LinearShape) {
    shape.check(op, x, weight, shape.rows * shape.outputs);
    assert_eq!(losses, shape.rows, "{op}: losses is not (M)");
    assert_eq!(targets.len(), shape.rows, "{op}: targets is not (M)");
    assert!(
        targets.iter().all(|&t| t < 0 || (t as usize) < shape.outputs),
        "{op}: a target is outside the vocabulary of {}",
        shape.outputs
    );
}

/// Logits whose exponentials are summed in f32 before they join the f64 sum of a row.
const BLOCK: usize = 4096;

vectorized! {
    /// The loss of a row and `Σ exp(z - max z)`; with `keep`, the logits become those
    /// exponentials.
    fn row_loss(logits: &mut [f32], target: i32, keep: bool) -> (f32, f64) {
        if target < 0 {
            return (0.0, 1.0);
        }
        let target_logit = logits[target as usize];
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for run in logits.chunks(LANES) {
            for (lane, &z) in lanes.iter_mut().zip(run) {
                *lane = if z > *lane { z } else { *lane };
            }
        }
        let max = max_lanes(lanes);
        let mut sum = 0.0f64;
        for block in logits.chunks_mut(BLOCK) {
            let mut lanes = [0.0f32; LANES];
            let mut runs = block.chunks_exact_mut(LANES);
            for run in runs.by_ref() {
                for (lane, z) in lanes.iter_mut().zip(run) {
                    let e = exp(*z - max);
                    *lane += e;
                    if keep {
                        *z = e;
                    }
                }
            }
            for (lane, z) in lanes.iter_mut().zip(runs.into_remainder()) {
                let e = exp(*z - max);
                *lane += e;
                if keep {
                    *z = e;
                }
            }
            sum += f64::from(sum_lanes(lanes));
        }
        ((sum.ln() + f64::from(max) - f64::from(target_logit)) as f32, sum)
    }

    /// Turns the exponentials of a row into `dz`, rounded to `E` and moved to the front.
    fn row_gradient<E: Element>(row: &mut [f32], target: i32, scale: f32, sum: f64) {
        let len = row.len();
        if target < 0 {
            row.fill(0.0);
            return;
        }
        let factor = (f64::from(scale) / sum) as f32;
        let target_value = row[target as usize] * factor - scale;
        let per_float = size_of::<f32>() / size_of::<E>();
        let row: &mut [E] = bytemuck::cast_slice_mut(row);
        let mut start = 0;
        while start < len {
            // A run is read before it is written, and writes never pass the reads.
            let count = (len - start).min(LANES);
            let mut run = [0.0f32; LANES];
            let source = &row[start * per_float..(start + count) * per_float];
            if count == LANES {
                run.copy_from_slice(bytemuck::cast_slice(source));
            } else {
                run[..count].copy_from_slice(bytemuck::cast_slice(source));
            }
            for (out, &e) in row[start..start + count].iter_mut().zip(&run) {
                *out = E::from_f32(e * factor);
            }
            start += count;
        }
        row[target as usize] = E::from_f32(target_value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{assert_close, assert_same_for_any_threads, bits, random, to_f64};
    use half::bf16;

    /// `(losses, dx, dweight)` in f64, by the formulas.
    fn reference(
        x: &[f64],
        w: &[f64],
        targets: &[i32],
        scale: f64,
        shape: LinearShape,
    ) -> [Vec<f64>; 3] {
        let LinearShape { rows, inputs, outputs } = shape;
        let (mut losses, mut dx, mut dw) =
            (vec![0.0; rows], vec![0.0; x.len()], vec![0.0; w.len()]);
        for m in 0..rows {
            let x = &x[m * inputs..][..inputs];
            let row = |v: usize| &w[v * inputs..][..inputs];
            let z: Vec<f64> =
                (0..outputs).map(|v| x.iter().zip(row(v)).map(|(x, w)| x * w).sum()).collect();
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
            if targets[m] < 0 {
                continue;
            }
            losses[m] = lse - z[targets[m] as usize];
            for v in 0..outputs {
                let hit = if v == targets[m] as usize { 1.0 } else { 0.0 };
                let dz = scale * ((z[v] - lse).exp() - hit);
                for c in 0..inputs {
                    dx[m * inputs + c] += dz * row(v)[c];
                    dw[v * inputs + c] += dz * x[c];
                }
            }
        }
        [losses, dx, dw]
    }

    fn targets(rows: usize, vocabulary: usize) -> Vec<i32> {
        (0..rows).map(|m| if m % 5 == 3 { -100 } else { ((m * 37) % vocabulary) as i32 }).collect()
    }

    fn agrees_with_reference<E: Element>(tolerance: f64) {
        for (rows, inputs, outputs, chunk) in
            [(1, 8, 5, 1), (17, 33, 301, 4), (65, 48, 97, 1000), (30, 16, 4200, 16)]
        {
            let shape = LinearShape { rows, inputs, outputs };
            let x = random::<E>(rows * inputs, 1.0, 1);
            let w = random::<E>(outputs * inputs, 1.0, 2);
            let targets = targets(rows, outputs);
            let scale = 0.25;
            let want = reference(&to_f64(&x), &to_f64(&w), &targets, scale, shape);

            let mut losses = vec![f32::NAN; rows];
            head_cross_entropy_forward(&mut losses, &x, &w, &targets, shape, chunk);
            assert_close(&format!("losses {shape:?}"), &losses, &want[0], 1e-5);
            assert!((0..rows).all(|m| targets[m] >= 0 || losses[m] == 0.0));

            let mut again = vec![f32::NAN; rows];
            let mut dx = vec![E::from_f32(f32::NAN); x.len()];
            let start = random::<f32>(w.len(), 0.1, 3);
            let mut dw = start.clone();
            head_cross_entropy_backward(
                &mut again,
                &mut dx,
                &mut dw,
                &x,
                &w,
                &targets,
                scale as f32,
                shape,
                chunk,
            );
            assert_eq!(losses, again, "the backward pass has other losses");
            assert_close(&format!("dx {shape:?}"), &dx, &want[1], tolerance);
            let mut want_dw = want[2].clone();
            want_dw.iter_mut().zip(&start).for_each(|(dw, &start)| *dw += f64::from(start));
            assert_close(&format!("dw {shape:?}"), &dw, &want_dw, tolerance);
            for m in (0..rows).filter(|&m| targets[m] < 0) {
                assert!(dx[m * inputs..][..inputs].iter().all(|&x| x == E::ZERO));
            }
        }
    }

    #[test]
    fn f32_agrees_with_reference() {
        agrees_with_reference::<f32>(2e-5);
    }

    #[test]
    fn bf16_agrees_with_reference() {
        // dz and dx are rounded to 8 bits.
        agrees_with_reference::<bf16>(4e-2);
    }

    #[test]
    fn reference_gradient_is_the_derivative() {
        let shape = LinearShape { rows: 4, inputs: 3, outputs: 5 };
        let (x, w) = (to_f64(&random::<f32>(12, 1.0, 1)), to_f64(&random::<f32>(15, 1.0, 2)));
        let targets = targets(4, 5);
        let loss = |x: &[f64], w: &[f64]| {
            0.5 * reference(x, w, &targets, 0.5, shape)[0].iter().sum::<f64>()
        };
        let [_, dx, dw] = reference(&x, &w, &targets, 0.5, shape);
        let h = 1e-5;
        for i in 0..12 {
            let step = |h: f64| {
                let mut x = x.clone();
                x[i] += h;
                loss(&x, &w)
            };
            assert!(((step(h) - step(-h)) / (2.0 * h) - dx[i]).abs() < 1e-8);
        }
        for i in 0..15 {
            let step = |h: f64| {
                let mut w = w.clone();
                w[i] += h;
                loss(&x, &w)
            };
            assert!(((step(h) - step(-h)) / (2.0 * h) - dw[i]).abs() < 1e-8);
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let shape = LinearShape { rows: 1, inputs: 1, outputs: 3 };
        let mut losses = [0.0];
        head_cross_entropy_forward(&mut losses, &[1.0], &[1e4, -1e4, 0.0], &[2], shape, 1);
        assert_eq!(losses, [1e4]);
    }

    fn same_for_any_threads<E: Element>() {
        let shape = LinearShape { rows: 150, inputs: 40, outputs: 700 };
        let x = random::<E>(150 * 40, 1.0, 1);
        let w = random::<E>(700 * 40, 1.0, 2);
        let targets = targets(150, 700);
        assert_same_for_any_threads(|| {
            let (mut losses, mut dx, mut dw) = (vec![0.0; 150], x.clone(), vec![0.0; w.len()]);
            head_cross_entropy_backward(
                &mut losses,
                &mut dx,
                &mut dw,
                &x,
                &w,
                &targets,
                0.1,
                shape,
                64,
            );
            (bits(&losses), bits(&dx), bits(&dw))
        });
    }

    #[test]
    fn f32_same_for_any_threads() {
        same_for_any_threads::<f32>();
    }

    #[test]
    fn bf16_same_for_any_threads() {
        same_for_any_threads::<bf16>();
    }
}
