//! The order in which sources take turns.

/// Shares are whole numbers of this.
const WHOLE: u64 = 1 << 32;

/// A low-discrepancy order: each turn goes to the source that is furthest behind its share. All
/// in integers, so the order is the same everywhere and after any number of turns the count of a
/// source differs from its share by little more than one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOrder {
    /// Shares; they add up to [`WHOLE`].
    parts: Vec<u64>,
}

impl SourceOrder {
    /// An order with shares proportional to `weights`, which are positive and finite.
    pub fn new(weights: &[f64]) -> Self {
        let sum: f64 = weights.iter().sum();
        let exact: Vec<f64> = weights.iter().map(|w| w / sum * WHOLE as f64).collect();
        let mut parts: Vec<u64> = exact.iter().map(|share| *share as u64).collect();
        // What rounding down left over goes to the largest remainders, the first one on a tie.
        let left = WHOLE.saturating_sub(parts.iter().sum());
        let mut by_remainder: Vec<usize> = (0..parts.len()).collect();
        by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
        for &index in by_remainder.iter().cycle().take(left as usize) {
            parts[index] += 1;
        }
        Self { parts }
    }

    /// The share of a source, 0 to 1.
    pub fn share(&self, source: usize) -> f64 {
        self.parts[source] as f64 / WHOLE as f64
    }

    /// The shares as whole numbers that add up to 2³².
    pub fn parts(&self) -> &[u64] {
        &self.parts
    }

    /// Whose turn it is after each source had `drawn` turns; the first one on a tie.
    pub fn next(&self, drawn: &[u64]) -> usize {
        let turn: u64 = drawn.iter().sum::<u64>() + 1;
        let mut best = 0;
        let mut largest = i128::MIN;
        for (source, (&part, &count)) in self.parts.iter().zip(drawn).enumerate() {
            let due = i128::from(part) * i128::from(turn);
            let behind = due - i128::from(count) * i128::from(WHOLE);
            if behind > largest {
                (best, largest) = (source, behind);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest distance from the share over all prefixes, in turns, and the counts at the end.
    fn play(weights: &[f64], turns: u64) -> (f64, Vec<u64>) {
        let order = SourceOrder::new(weights);
        let mut drawn = vec![0; weights.len()];
        let mut worst = 0.0f64;
        for turn in 1..=turns {
            let source = order.next(&drawn);
            drawn[source] += 1;
            for (source, &count) in drawn.iter().enumerate() {
                worst = worst.max((count as f64 - order.share(source) * turn as f64).abs());
            }
        }
        (worst, drawn)
    }

    #[test]
    fn shares_are_met_within_a_hundredth_of_a_percentage_point() {
        // The paper's seven sources.
        let weights = [67.0, 15.0, 4.5, 4.5, 4.5, 2.5, 2.0];
        let (worst, drawn) = play(&weights, 100_000);
        assert!(worst < 3.0, "{worst}");
        for (weight, count) in weights.iter().zip(drawn) {
            let percent = count as f64 / 1000.0;
            assert!((percent - weight).abs() < 0.01, "{weight} {percent}");
        }
    }

    #[test]
    fn odd_weights_keep_their_shares() {
        for weights in [vec![1.0], vec![1.0, 1e-6], vec![0.1; 30], vec![3.0, 1.0, 1.0 / 3.0]] {
            let order = SourceOrder::new(&weights);
            assert_eq!(order.parts().iter().sum::<u64>(), WHOLE);
            let (worst, _) = play(&weights, 20_000);
            assert!(worst < 3.0, "{weights:?} {worst}");
        }
    }

    #[test]
    fn equal_weights_take_turns() {
        let order = SourceOrder::new(&[1.0, 1.0]);
        let mut drawn = vec![0, 0];
        let turns: Vec<usize> = (0..6)
            .map(|_| {
                let source = order.next(&drawn);
                drawn[source] += 1;
                source
            })
            .collect();
        assert_eq!(turns, [0, 1, 0, 1, 0, 1]);
    }
}
