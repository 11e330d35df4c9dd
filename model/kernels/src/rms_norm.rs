//! RMSNorm. Derivation: `docs/backward/rms_norm.md`.
//!
//! ```text
//! r   = 1 / √(mean(x²) + ε)      "rstd", one number per row of C
//! x̂   = r x
//! y   = w ∘ x̂
//!
//! dx̂  = w ∘ dy
//! s   = mean(dx̂ ∘ x̂)             one number per row
//! dx  = r (dx̂ − s x̂)
//! dw += Σ_rows dy ∘ x̂
//! ```

use crate::element::Element;
use crate::residual::add;
use crate::scratch::Scratch;
use crate::simd::{LANES, sum_lanes, vectorized};
use rayon::prelude::*;

/// Rows one task handles. The weight gradient is summed per task, then over tasks in order.
const ROWS: usize = 32;

/// `y = x / rms(x) * weight` for rows of `weight.len()` channels; saves `rstd` per row.
pub fn rms_norm_forward<E: Element>(
    y: &mut [E],
    rstd: &mut [f32],
    x: &[E],
    weight: &[f32],
    eps: f32,
) {
    let channels = weight.len();
    assert_eq!(x.len(), rstd.len() * channels, "rms_norm_forward: x is not (rows, channels)");
    assert_eq!(y.len(), x.len(), "rms_norm_forward: y and x differ in length");
    if channels == 0 {
        return;
    }
    y.par_chunks_mut(ROWS * channels)
        .zip(rstd.par_chunks_mut(ROWS))
        .zip(x.par_chunks(ROWS * channels))
        .for_each(|((y, rstd), x)| forward(y, rstd, x, weight, eps));
}

/// The residual sum `h = x + branch` and [`rms_norm_forward`] of it, row by row: the norm reads a row
/// of `h` while it is still in the first-level cache.
pub fn residual_rms_norm_forward<E: Element>(
    [h, y]: [&mut [E]; 2],
    rstd: &mut [f32],
    [x, branch]: [&[E]; 2],
    weight: &[f32],
    eps: f32,
) {
    let channels = weight.len();
    let op = "residual_rms_norm_forward";
    assert_eq!(x.len(), rstd.len() * channels, "{op}: x is not (rows, channels)");
    assert_eq!(branch.len(), x.len(), "{op}: branch and x differ in length");
    assert_eq!(h.len(), x.len(), "{op}: h and x differ in length");
    assert_eq!(y.len(), x.len(), "{op}: y and x differ in length");
    if channels == 0 {
        return;
    }
    h.par_chunks_mut(ROWS * channels)
        .zip(y.par_chunks_mut(ROWS * channels))
        .zip(rstd.par_chunks_mut(ROWS))
        .zip(x.par_chunks(ROWS * channels))
        .zip(branch.par_chunks(ROWS * channels))
        .for_each(|((((h, y), rstd), x), branch)| {
            add(h, x, branch);
            forward(y, rstd, h, weight, eps);
        });
}

/// `dx = …`, `dweight += …` from `dy` and what the forward pass saw and saved.
pub fn rms_norm_backward<E: Element>(
    dx: &mut [E],
    dweight: &mut [f32],
    dy: &[E],
    x: &[E],
    weight: &[f32],
    rstd: &[f32],
) {
    backward_rows("rms_norm_backward", dx, dweight, dy, x, weight, rstd, false);
}

/// [`rms_norm_backward`] of a norm whose input is also the residual stream: adds its gradient to `dx`,
/// which holds that of the stream.
pub fn residual_rms_norm_backward<E: Element>(
    dx: &mut [E],
    dweight: &mut [f32],
    dy: &[E],
    x: &[E],
    weight: &[f32],
    rstd: &[f32],
) {
    backward_rows("residual_rms_norm_backward", dx, dweight, dy, x, weight, rstd, true);
}

#[expect(clippy::too_many_arguments, reason = "what the pair needs, and its name")]
fn backward_rows<E: Element>(
    op: &str,
    dx: &mut [E],
    dweight: &mut [f32],
    dy: &[E],
    x: &[E],
    weight: &[f32],
    rstd: &[f32],
    add: bool,
) {
    let channels = weight.len();
    assert_eq!(x.len(), rstd.len() * channels, "{op}: x is not (rows, channels)");
    assert_eq!(dx.len(), x.len(), "{op}: dx and x differ in length");
    assert_eq!(dy.len(), x.len(), "{op}: dy and x differ in length");
    assert_eq!(dweight.len(), channels, "{op}: dweight and weight differ in length");
    if x.is_empty() {
        return;
    }
    let mut partial = Scratch::new::<f32>(rstd.len().div_ceil(ROWS) * channels);
    let partial = partial.as_mut::<f32>();
    dx.par_chunks_mut(ROWS * channels)
        .zip(partial.par_chunks_mut(channels))
        .zip(dy.par_chunks(ROWS * channels))
        .zip(x.par_chunks(ROWS * channels))
        .zip(rstd.par_chunks(ROWS))
        .for_each(|((((dx, partial), dy), x), rstd)| {
            backward(dx, partial, dy, x, weight, rstd, add);
        });
    add_rows(dweight, partial);
}

vectorized! {
    fn forward<E: Element>(y: &mut [E], rstd: &mut [f32], x: &[E], weight: &[f32], eps: f32) {
        let channels = weight.len();
        for ((y, rstd), x) in
            y.chunks_exact_mut(channels).zip(rstd).zip(x.chunks_exact(channels))
        {
            let mut lanes = [0.0f32; LANES];
            let blocks = x.chunks_exact(LANES);
            for (lane, &x) in lanes.iter_mut().zip(blocks.remainder()) {
                *lane = x.to_f32() * x.to_f32();
            }
            for block in blocks {
                for (lane, &x) in lanes.iter_mut().zip(block) {
                    *lane = x.to_f32().mul_add(x.to_f32(), *lane);
                }
            }
            let r = 1.0 / (sum_lanes(lanes) / channels as f32 + eps).sqrt();
            *rstd = r;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = E::from_f32(x.to_f32() * r * w);
            }
        }
    }

    fn backward<E: Element>(
        dx: &mut [E],
        dweight: &mut [f32],
        dy: &[E],
        x: &[E],
        weight: &[f32],
        rstd: &[f32],
        add: bool,
    ) {
        let channels = weight.len();
        dweight.fill(0.0);
        for (((dx, dy), x), &r) in dx
            .chunks_exact_mut(channels)
            .zip(dy.chunks_exact(channels))
            .zip(x.chunks_exact(channels))
            .zip(rstd)
        {
            // Σ dx̂ ∘ x = s C / r in lanes, and dw in the same pass.
            let mut lanes = [0.0f32; LANES];
            let mut start = 0;
            while start + LANES <= channels {
                let (dy, x) = (&dy[start..start + LANES], &x[start..start + LANES]);
                let (w, dw) = (&weight[start..start + LANES], &mut dweight[start..start + LANES]);
                for i in 0..LANES {
                    let product = dy[i].to_f32() * x[i].to_f32();
                    lanes[i] = product.mul_add(w[i], lanes[i]);
                    dw[i] = product.mul_add(r, dw[i]);
                }
                start += LANES;
            }
            for (i, c) in (start..channels).enumerate() {
                let product = dy[c].to_f32() * x[c].to_f32();
                lanes[i] = product.mul_add(weight[c], lanes[i]);
                dweight[c] = product.mul_add(r, dweight[c]);
            }
            let s = sum_lanes(lanes) * r / channels as f32;
            if add {
                for (((dx, &dy), &x), &w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
                    let branch = r * (dy.to_f32() * w - x.to_f32() * r * s);
                    *dx = E::from_f32(dx.to_f32() + branch);
                }
            } else {
                for (((dx, &dy), &x), &w) in dx.iter_mut().zip(dy).zip(x).zip(weight) {
                    *dx = E::from_f32(r * (dy.to_f32() * w - x.to_f32() * r * s));
                }
            }
        }
    }

    /// Adds the rows of `rows`, first to last, to `sum`.
    fn add_rows(sum: &mut [f32], rows: &[f32]) {
        let mut total = vec![0.0f32; sum.len()];
        for row in rows.chunks_exact(sum.len()) {
            for (t, &x) in total.iter_mut().zip(row) {
                *t += x;
            }
        }
        for (s, &t) in sum.iter_mut().zip(&total) {
            *s += t;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, assert_same_for_any_threads, bits, random, to_f64, tolerance,
    };
    use half::bf16;

    const EPS: f64 = 1e-6;

    /// `(y, rstd, dx, dweight)` in f64, by the formulas.
    fn reference(x: &[f64], weight: &[f64], dy: &[f64]) -> [Vec<f64>; 4] {
        let channels = weight.len();
        let [mut y, mut dx] = [x, x].map(|x| vec![0.0; x.len()]);
        let (mut rstd, mut dweight) = (vec![], vec![0.0; channels]);
        for m in 0..x.len() / channels {
            let at = m * channels;
            let mean =
                |f: &dyn Fn(usize) -> f64| (0..channels).map(f).sum::<f64>() / channels as f64;
            let r = 1.0 / (mean(&|c| x[at + c] * x[at + c]) + EPS).sqrt();
            let s = mean(&|c| weight[c] * dy[at + c] * r * x[at + c]);
            for c in 0..channels {
                let x_hat = r * x[at + c];
                y[at + c] = weight[c] * x_hat;
                dx[at + c] = r * (weight[c] * dy[at + c] - s * x_hat);
                dweight[c] += dy[at + c] * x_hat;
            }
            rstd.push(r);
        }
        [y, rstd, dx, dweight]
    }

    fn agrees_with_reference<E: Element>() {
        for (rows, channels) in [(1, 1), (3, 16), (17, 48), (65, 130), (130, 288)] {
            let x = random::<E>(rows * channels, 3.0, 1);
            let dy = random::<E>(rows * channels, 1.0, 2);
            let weight = random::<f32>(channels, 1.0, 3);
            let want = reference(&to_f64(&x), &to_f64(&weight), &to_f64(&dy));
            let nan = E::from_f32(f32::NAN);
            let (mut y, mut rstd) = (vec![nan; x.len()], vec![f32::NAN; rows]);
            rms_norm_forward(&mut y, &mut rstd, &x, &weight, EPS as f32);
            assert_close("y", &y, &want[0], tolerance::<E>());
            assert_close("rstd", &rstd, &want[1], 1e-6);
            let start = random::<f32>(channels, 1.0, 4);
            let (mut dx, mut dweight) = (vec![nan; x.len()], start.clone());
            rms_norm_backward(&mut dx, &mut dweight, &dy, &x, &weight, &rstd);
            if channels > 1 {
                // With one channel dx is zero but for eps.
                assert_close("dx", &dx, &want[2], tolerance::<E>());
            }
            let branch = random::<E>(x.len(), 1.0, 5);
            let mut sum = x.clone();
            crate::residual_add(&mut sum, &branch);
            let ([mut h, mut normed], mut rstd_of_sum) =
                ([&x, &x].map(|x| vec![nan; x.len()]), vec![f32::NAN; rows]);
            let outputs = [&mut h[..], &mut normed[..]];
            residual_rms_norm_forward(
                outputs,
                &mut rstd_of_sum,
                [&x, &branch],
                &weight,
                EPS as f32,
            );
            let (mut want_y, mut want_rstd) = (y.clone(), rstd.clone());
            rms_norm_forward(&mut want_y, &mut want_rstd, &sum, &weight, EPS as f32);
            assert_eq!(bits(&h), bits(&sum));
            assert_eq!(bits(&normed), bits(&want_y));
            assert_eq!(bits(&rstd_of_sum), bits(&want_rstd));
            let (mut stream, mut again) = (branch.clone(), start.clone());
            residual_rms_norm_backward(&mut stream, &mut again, &dy, &x, &weight, &rstd);
            let both: Vec<f64> =
                want[2].iter().zip(to_f64(&branch)).map(|(dx, stream)| dx + stream).collect();
            assert_close("dx and stream", &stream, &both, tolerance::<E>());
            assert_eq!(again, dweight);
            let sum: Vec<f64> =
                want[3].iter().zip(&start).map(|(dw, &start)| dw + f64::from(start)).collect();
            assert_close("dweight", &dweight, &sum, 1e-5);
        }
    }

    #[test]
    fn f32_agrees_with_reference() {
        agrees_with_reference::<f32>();
    }

    #[test]
    fn bf16_agrees_with_reference() {
        agrees_with_reference::<bf16>();
    }

    #[test]
    fn reference_gradient_is_the_derivative() {
        let [x, dy] = [1, 2].map(|seed| to_f64(&random::<f32>(15, 1.0, seed)));
        let weight = to_f64(&random::<f32>(5, 1.0, 3));
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            reference(x, w, &dy)[0].iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        let [.., dx, dweight] = reference(&x, &weight, &dy);
        let h = 1e-5;
        for i in 0..15 {
            let step = |h: f64| {
                let mut x = x.clone();
                x[i] += h;
                loss(&x, &weight)
            };
            assert!(((step(h) - step(-h)) / (2.0 * h) - dx[i]).abs() < 1e-8);
        }
        for i in 0..5 {
            let step = |h: f64| {
                let mut w = weight.clone();
                w[i] += h;
                loss(&x, &w)
            };
            assert!(((step(h) - step(-h)) / (2.0 * h) - dweight[i]).abs() < 1e-8);
        }
    }

    #[test]
    fn same_for_any_threads() {
        let (x, dy) = (random::<bf16>(333 * 100, 1.0, 1), random::<bf16>(333 * 100, 1.0, 2));
        let weight = random::<f32>(100, 1.0, 3);
        assert_same_for_any_threads(|| {
            let (mut y, mut dx) = (x.clone(), x.clone());
            let (mut rstd, mut dweight) = (vec![0.0; 333], vec![0.0; 100]);
            rms_norm_forward(&mut y, &mut rstd, &x, &weight, 1e-6);
            rms_norm_backward(&mut dx, &mut dweight, &dy, &x, &weight, &rstd);
            (bits(&y), bits(&rstd), bits(&dx), bits(&dweight))
        });
    }
}
