//! Reductions over a whole tensor, in one fixed order.

use crate::simd::{LANES, PIECE, vectorized};
use rayon::prelude::*;

/// `Σ x²`, the square of the gradient norm. Each piece of fixed size is summed in 16 f64
/// accumulators, and the pieces are added in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let pieces: Vec<f64> = x.par_chunks(PIECE).map(piece_sum_of_squares).collect();
    pieces.iter().sum()
}

/// Whether every element is finite.
pub fn all_finite(x: &[f32]) -> bool {
    x.par_chunks(PIECE).all(piece_is_finite)
}

vectorized! {
    fn piece_sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let blocks = x.chunks_exact(LANES);
        for (lane, &x) in lanes.iter_mut().zip(blocks.remainder()) {
            *lane = f64::from(x) * f64::from(x);
        }
        for block in blocks {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                *lane = f64::from(x).mul_add(f64::from(x), *lane);
            }
        }
        lanes.iter().sum()
    }

    fn piece_is_finite(x: &[f32]) -> bool {
        // The exponent of an infinity or NaN is all ones; no early exit, so it vectorises.
        let largest = x.iter().fold(0u32, |largest, &x| largest.max(x.to_bits() & 0x7f80_0000));
        largest < 0x7f80_0000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_exact_enough() {
        for len in [0, 1, 15, 17, 16_384, 16_385, 100_003] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 37 % 1001) as f32 - 500.0) * 1e-3).collect();
            let want: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let got = sum_of_squares(&x);
            assert!((got - want).abs() <= 1e-12 * want, "{len}: {got} {want}");
        }
    }

    #[test]
    fn finds_what_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 16_383, 16_384, 39_999] {
                let mut x = vec![f32::MAX; 40_000];
                assert!(all_finite(&x));
                x[at] = bad;
                assert!(!all_finite(&x), "{bad} at {at}");
            }
        }
        assert!(all_finite(&[]));
    }
}
