//! Passes over the logits of one token, a number for every id of the vocabulary.

use crate::exp::exp;
use crate::simd::{LANES, max_lanes, sum_lanes, vectorized};

vectorized! {
    /// The largest of `logits`; none when one is NaN or infinite, or there are none.
    pub fn largest_finite(logits: &[f32]) -> Option<f32> {
        let mut largest = [f32::NEG_INFINITY; LANES];
        // Zero times a number is zero, and NaN for what is none.
        let mut zeros = [0.0f32; LANES];
        let mut runs = logits.chunks_exact(LANES);
        for run in &mut runs {
            for lane in 0..LANES {
                largest[lane] = if run[lane] > largest[lane] { run[lane] } else { largest[lane] };
                zeros[lane] += run[lane] * 0.0;
            }
        }
        for (lane, &x) in runs.remainder().iter().enumerate() {
            largest[lane] = if x > largest[lane] { x } else { largest[lane] };
            zeros[lane] += x * 0.0;
        }
        (sum_lanes(zeros) == 0.0 && !logits.is_empty()).then(|| max_lanes(largest))
    }

    /// ln Σ exp(x) of `logits`, whose largest is `largest`.
    pub fn log_sum_exp(logits: &[f32], largest: f32) -> f64 {
        let mut total = 0.0f64;
        // Sums in f32 stay short, so that no small term is lost beside a large sum.
        for part in logits.chunks(64 * LANES) {
            let mut sums = [0.0f32; LANES];
            for run in part.chunks(LANES) {
                for (sum, &x) in sums.iter_mut().zip(run) {
                    *sum += exp(x - largest);
                }
            }
            total += f64::from(sum_lanes(sums));
        }
        f64::from(largest) + total.ln()
    }

    /// Replaces each logit by exp((x − `largest`) · `scale`): probabilities but for a factor, the
    /// largest 1. Minus infinity gives 0.
    pub fn softmax_weights(logits: &mut [f32], largest: f32, scale: f32) {
        for x in logits {
            *x = exp((*x - largest) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::random;

    #[test]
    fn agrees_with_plain_loops() {
        for len in [1, 15, 16, 17, 1000, 4099] {
            let logits: Vec<f32> = random(len, 9.0, len as u64);
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest_finite(&logits), Some(largest));
            let want = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&logits, largest) - want).abs() < 1e-6, "{len}");
            let mut weights = logits.clone();
            softmax_weights(&mut weights, largest, 0.5);
            for (weight, x) in weights.iter().zip(&logits) {
                let want = (f64::from(*x - largest) * 0.5).exp();
                assert!((f64::from(*weight) - want).abs() < 1e-6 * want + 1e-30, "{weight} {want}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_found_wherever_it_is() {
        assert_eq!(largest_finite(&[]), None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..35 {
                let mut logits = vec![1.0; 35];
                logits[place] = bad;
                assert_eq!(largest_finite(&logits), None, "{bad} at {place}");
            }
        }
    }

    #[test]
    fn what_is_ruled_out_weighs_nothing() {
        let mut logits = [2.0, f32::NEG_INFINITY, 1.0];
        softmax_weights(&mut logits, 2.0, 1.0);
        assert_eq!((logits[0], logits[1]), (1.0, 0.0));
    }
}
