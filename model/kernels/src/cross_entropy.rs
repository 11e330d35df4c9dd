//! Output head and cross entropy, fused and chunked over tokens: the logits of one chunk exist at a
//! time, in f32. Derivation: `docs/backward/head_cross_entropy.md`.
//!
//! ```text
//! z_m    = x_m wᵀ                                    V logits of token m
//! lse_m  = ln Σ_v exp(z_mv)
//! loss_m = lse_m − z_m[target_m]
//!
//! p_mv   = exp(z_mv − lse_m)
//! dz_mv  = scale (p_mv − [v = target_m])             of scale · Σ_m loss_m
//! dx     = dz w
//! dw    += dzᵀ x
//! ```
//!
//! Logits are stored transposed, a row for each word: `zᵀ = w xᵀ` and `dw` then read the rows of `w`
//! and of `dzᵀ` where they lie, and only the few rows of `x` are packed for them. The words are cut
//! into blocks; each block finds its largest logit `max_b` and `sum_b = Σ exp(z_v − max_b)` of every
//! token, and with `max` the largest of all
//!
//! ```text
//! Σ_v exp(z_v) = exp(max) Σ_b sum_b exp(max_b − max)
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
use crate::simd::{LANES, vectorized};
use rayon::prelude::*;

/// Words of a block: few enough that their logits stay in a second-level cache.
const BLOCK: usize = 64;

/// Exponentials below this, beside one that is 1, have no gradient: it is nothing beside the others, and
/// a denormal number of two such factors is multiplied many times slower.
const NEGLIGIBLE: f32 = 1e-12;

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
    let mut buffers = Buffers::new(chunk, outputs);
    for (i, losses) in losses.chunks_mut(chunk).enumerate() {
        let rows = losses.len();
        let x = &x[i * chunk * inputs..][..rows * inputs];
        let mut logits = buffers.of(&targets[i * chunk..][..rows]);
        logits.losses(losses, x, weight, inputs, false);
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
    let mut buffers = Buffers::new(chunk, outputs);
    for (i, losses) in losses.chunks_mut(chunk).enumerate() {
        let rows = losses.len();
        let x = &x[i * chunk * inputs..][..rows * inputs];
        let dx = &mut dx[i * chunk * inputs..][..rows * inputs];
        let mut logits = buffers.of(&targets[i * chunk..][..rows]);
        logits.losses(losses, x, weight, inputs, true);
        // Words of dz start where those of the logits did, so words in bf16 are two widths apart.
        let stride = rows * per_float::<E>();
        let dz = Operand {
            data: logits.gradient::<E>(scale),
            lanes: rows,
            depth: outputs,
            lane_stride: 1,
            depth_stride: stride,
        };
        gemm(Output::Assign(dx), dz, Operand::columns(weight, outputs, inputs));
        let dz_words =
            Operand { lanes: outputs, depth: rows, lane_stride: stride, depth_stride: 1, ..dz };
        gemm(Output::AddF32(dweight), dz_words, Operand::columns(x, rows, inputs));
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

/// Memory for the logits of a chunk of tokens.
struct Buffers {
    logits: Scratch,
    statistics: Scratch,
    totals: Scratch,
    outputs: usize,
}

impl Buffers {
    fn new(chunk: usize, outputs: usize) -> Self {
        Self {
            logits: Scratch::new::<f32>(chunk * outputs),
            statistics: Scratch::new::<f32>(2 * chunk * outputs.div_ceil(BLOCK)),
            totals: Scratch::new::<[f32; 2]>(chunk),
            outputs,
        }
    }

    fn of<'a>(&'a mut self, targets: &'a [i32]) -> Logits<'a> {
        let rows = targets.len();
        Logits {
            z: &mut self.logits.as_mut::<f32>()[..rows * self.outputs],
            statistics: &mut self.statistics.as_mut::<f32>()
                [..2 * rows * self.outputs.div_ceil(BLOCK)],
            totals: &mut self.totals.as_mut::<[f32; 2]>()[..rows],
            targets,
        }
    }
}

/// The logits of a chunk of tokens.
struct Logits<'a> {
    /// (V, rows): logits, then their exponentials, then `dz`.
    z: &'a mut [f32],
    /// (blocks, 2, rows): `max_b` and `sum_b`.
    statistics: &'a mut [f32],
    /// (rows): `m` and `Σ_v exp(z_v - m)`.
    totals: &'a mut [[f32; 2]],
    targets: &'a [i32],
}

impl Logits<'_> {
    /// The losses of `x` (rows, C); with `keep`, the logits become `exp(z - max_b)`.
    fn losses<E: Element>(
        &mut self,
        losses: &mut [f32],
        x: &[E],
        weight: &[E],
        inputs: usize,
        keep: bool,
    ) {
        let rows = losses.len();
        let (words, x) =
            (Operand::rows(weight, self.z.len() / rows, inputs), Operand::rows(x, rows, inputs));
        gemm(Output::AssignF32(self.z), words, x);
        for ((m, loss), &target) in losses.iter_mut().enumerate().zip(self.targets) {
            // The target's logit, until the sum is known.
            *loss = if target < 0 { 0.0 } else { self.z[target as usize * rows + m] };
        }
        self.z.par_chunks_mut(BLOCK * rows).zip(self.statistics.par_chunks_mut(2 * rows)).for_each(
            |(z, statistics)| {
                let (max, sum) = statistics.split_at_mut(rows);
                block_statistics(z, max, sum, keep);
            },
        );
        let statistics = &*self.statistics;
        self.totals.par_iter_mut().zip(losses).zip(self.targets).enumerate().for_each(
            |(m, ((total, loss), &target))| {
                let blocks = || statistics.chunks_exact(2 * rows).map(|s| (s[m], s[rows + m]));
                let max = blocks().map(|(max, _)| max).fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = blocks()
                    .map(|(block, sum)| f64::from(sum) * f64::from(block - max).exp())
                    .sum();
                *total = [max, sum as f32];
                if target >= 0 {
                    *loss = (sum.ln() + f64::from(max) - f64::from(*loss)) as f32;
                }
            },
        );
    }

    /// `dz` from the exponentials, a word after the other, each at the front of its logits.
    fn gradient<E: Element>(&mut self, scale: f32) -> &[E] {
        let (rows, targets, totals) = (self.targets.len(), self.targets, &*self.totals);
        let hits = || (0..rows).filter_map(|m| Some((m, usize::try_from(targets[m]).ok()?)));
        // The sums are not read again: that of its block makes room for a target's exponential.
        for (m, target) in hits() {
            self.statistics[(2 * (target / BLOCK) + 1) * rows + m] = self.z[target * rows + m];
        }
        self.z.par_chunks_mut(BLOCK * rows).zip(self.statistics.par_chunks_mut(2 * rows)).for_each(
            |(z, statistics)| {
                let factors = &mut statistics[..rows];
                block_factors(factors, totals, targets, scale);
                block_gradient::<E>(z, factors);
            },
        );
        let dz: &mut [E] = bytemuck::cast_slice_mut(self.z);
        for (m, target) in hits() {
            let block = &self.statistics[2 * (target / BLOCK) * rows..];
            let value = block[rows + m].mul_add(block[m], -scale);
            dz[target * rows * per_float::<E>() + m] = E::from_f32(value);
        }
        dz
    }
}

/// Elements in the room of a logit.
const fn per_float<E>() -> usize {
    size_of::<f32>() / size_of::<E>()
}

vectorized! {
    /// `max_b` and `sum_b` of each token for the words of a block; with `keep`, the logits become
    /// `exp(z - max_b)`.
    fn block_statistics(z: &mut [f32], max: &mut [f32], sum: &mut [f32], keep: bool) {
        let rows = max.len();
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for word in z.chunks_exact(rows) {
            for (max, &z) in max.iter_mut().zip(word) {
                *max = if z > *max { z } else { *max };
            }
        }
        for word in z.chunks_exact_mut(rows) {
            for ((z, &max), sum) in word.iter_mut().zip(&*max).zip(&mut *sum) {
                let e = exp(*z - max);
                *sum += e;
                if keep {
                    *z = if e < NEGLIGIBLE { 0.0 } else { e };
                }
            }
        }
    }

    /// What `exp(z - max_b)` is to be multiplied by: `max_b` becomes `scale exp(max_b - max) / Σ`, or zero
    /// where that is negligible or the target is ignored.
    fn block_factors(max: &mut [f32], totals: &[[f32; 2]], targets: &[i32], scale: f32) {
        for ((x, &[max, sum]), &target) in max.iter_mut().zip(totals).zip(targets) {
            let share = exp(*x - max);
            *x = if target < 0 || share < NEGLIGIBLE { 0.0 } else { share * scale / sum };
        }
    }

    /// Multiplies the words of a block by `factors`, rounds them to `E` and moves each to its front.
    fn block_gradient<E: Element>(z: &mut [f32], factors: &[f32]) {
        let per_float = const { per_float::<E>() };
        for word in z.chunks_exact_mut(factors.len()) {
            let word: &mut [E] = bytemuck::cast_slice_mut(word);
            let mut start = 0;
            for factors in factors.chunks(LANES) {
                // A run is read before it is written, and writes never pass the reads.
                let count = factors.len();
                let mut run = [0.0f32; LANES];
                let source = &word[start * per_float..(start + count) * per_float];
                if count == LANES {
                    run.copy_from_slice(bytemuck::cast_slice(source));
                } else {
                    run[..count].copy_from_slice(bytemuck::cast_slice(source));
                }
                for ((out, &e), &factor) in word[start..start + count].iter_mut().zip(&run).zip(factors) {
                    // Zero whatever the logits of an ignored token were.
                    *out = E::from_f32(if factor == 0.0 { 0.0 } else { e * factor });
                }
                start += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, assert_same_for_any_threads, at_every_level, bits, random, to_f64,
    };
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

    /// `(losses, dx, dweight)`; the last is added to `dw`.
    fn backward<E: Element>(
        mut dw: Vec<f32>,
        x: &[E],
        w: &[E],
        targets: &[i32],
        scale: f32,
        shape: LinearShape,
        chunk: usize,
    ) -> (Vec<f32>, Vec<E>, Vec<f32>) {
        let mut losses = vec![f32::NAN; shape.rows];
        let mut dx = vec![E::from_f32(f32::NAN); x.len()];
        head_cross_entropy_backward(
            &mut losses,
            &mut dx,
            &mut dw,
            x,
            w,
            targets,
            scale,
            shape,
            chunk,
        );
        (losses, dx, dw)
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

            let start = random::<f32>(w.len(), 0.1, 3);
            let (again, dx, dw) =
                backward(start.clone(), &x, &w, &targets, scale as f32, shape, chunk);
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
        at_every_level(|| agrees_with_reference::<f32>(2e-5));
    }

    #[test]
    fn bf16_agrees_with_reference() {
        // dz and dx are rounded to 8 bits.
        at_every_level(|| agrees_with_reference::<bf16>(4e-2));
    }

    /// One word far above all others: the exponentials of the others are zero, not denormal numbers.
    #[test]
    fn negligible_gradients_are_zero() {
        for gap in [20.0, 40.0, 60.0, 75.0, 85.0] {
            let (rows, words) = (3, 4 * BLOCK);
            let x = vec![1.0f32; rows];
            let w: Vec<f32> =
                (0..words).map(|v| if v == 7 { gap } else { (v % 9) as f32 }).collect();
            let shape = LinearShape { rows, inputs: 1, outputs: words };
            let (losses, _, dw) =
                backward(vec![0.0; words], &x, &w, &[7, 7, 100], 1e-5, shape, rows);
            assert!(dw.iter().all(|dw| *dw == 0.0 || dw.is_normal()), "{gap}: {dw:?}");
            assert_close("loss", &losses[2..], &[f64::from(gap) - 1.0], 1e-4);
        }
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
            let (losses, dx, dw) = backward(vec![0.0; w.len()], &x, &w, &targets, 0.1, shape, 64);
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
