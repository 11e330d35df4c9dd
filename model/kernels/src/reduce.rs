//! Reductions over a whole tensor, in one fixed order.

use crate::simd::{LANES, PIECE, vectorized};
use rayon::prelude::*;

/// `Σ x²`, the square of the gradient norm. Each piece of fixed size is summed in 16 f64
/// accumulators, and the pieces are added in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    piece_sums_of_squares(x).iter().sum()
}

/// The sums of the pieces alone, to be added in another way.
pub fn piece_sums_of_squares(x: &[f32]) -> Vec<f64> {
    x.par_chunks(PIECE).map(piece_sum_of_squares).collect()
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
}
