//! Sums in two f64: as good as exact, so that the rounded result does not depend on how the
//! summands are spread over ranks.
//!
//! The squared norm of a gradient is a sum over pieces. With plain f64 its last bits would change
//! with the number of ranks; with twice the digits on the way, the one rounding at the end gives
//! the same f64 for every cut.

use bytemuck::{Pod, Zeroable};

/// The unevaluated sum `hi + lo`, where `lo` is at most half a unit in the last place of `hi`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct DoubleDouble {
    /// The sum, rounded.
    pub hi: f64,
    /// What that rounding lost.
    pub lo: f64,
}

impl From<f64> for DoubleDouble {
    fn from(value: f64) -> Self {
        Self { hi: value, lo: 0.0 }
    }
}

/// `a + b` and exactly what its rounding lost (Knuth).
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let of_b = sum - a;
    (sum, (a - (sum - of_b)) + (b - of_b))
}

impl DoubleDouble {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let (hi, lost) = two_sum(self.hi, other.hi);
        if !hi.is_finite() {
            return Self { hi, lo: 0.0 };
        }
        let (low, lost_low) = two_sum(self.lo, other.lo);
        let (hi, lost) = two_sum(hi, lost + low);
        let (hi, lo) = two_sum(hi, lost + lost_low);
        Self { hi, lo }
    }

    /// The nearest f64.
    pub fn round(self) -> f64 {
        self.hi + self.lo
    }
}

impl FromIterator<f64> for DoubleDouble {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        values.into_iter().fold(Self::default(), |sum, value| sum.plus(value.into()))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn any_cut_of_the_pieces_gives_the_same_bits() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut plain_differs = 0;
        for _ in 0..500 {
            let count = random.random_range(1..200);
            let pieces: Vec<f64> = (0..count)
                .map(|_| random.random::<f64>() * 10f64.powi(random.random_range(-12..6)))
                .collect();
            let one = pieces.iter().copied().collect::<DoubleDouble>().round();
            let ranks = random.random_range(1..9);
            let mut cut = vec![Vec::new(); ranks];
            pieces.iter().for_each(|piece| cut[random.random_range(0..ranks)].push(*piece));
            let parts = cut.iter().map(|part| part.iter().copied().collect::<DoubleDouble>());
            let spread = parts.fold(DoubleDouble::default(), DoubleDouble::plus).round();
            assert_eq!(one.to_bits(), spread.to_bits());
            let plain: f64 = cut.iter().map(|part| part.iter().sum::<f64>()).sum();
            plain_differs += usize::from(plain.to_bits() != one.to_bits());
        }
        assert!(plain_differs > 100, "{plain_differs}");
    }

    #[test]
    fn infinity_and_nan_are_kept() {
        let sum = [1.0, f64::INFINITY, 2.0].into_iter().collect::<DoubleDouble>();
        assert_eq!(sum.round(), f64::INFINITY);
        assert!([f64::NAN, 1.0].into_iter().collect::<DoubleDouble>().round().is_nan());
        assert!([f64::MAX, f64::MAX].into_iter().collect::<DoubleDouble>().round().is_infinite());
    }
}
