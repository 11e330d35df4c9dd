//! The perplexities that part head, middle and tail.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// A third or so of a language's documents, by perplexity (CCNet's names).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    /// Perplexity below the first cut-off: most like the text the model learnt.
    Head,
    /// Below the second.
    Middle,
    /// The rest.
    Tail,
    /// Not told apart: there is no model for the language.
    All,
}

impl Bucket {
    /// The name in metadata and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Middle => "middle",
            Self::Tail => "tail",
            Self::All => "all",
        }
    }
}

/// Percentile of the documents that are head.
const HEAD_PERCENTILE: usize = 30;
/// Percentile of those that are head or middle.
const MIDDLE_PERCENTILE: usize = 60;

/// Two perplexities: head is below the first, middle below the second, tail the rest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cutoffs {
    /// Head is below this perplexity (number; CCNet's own model for English: 340).
    pub head: f64,
    /// Middle is below this perplexity (number; CCNet's own model for English: 520).
    pub middle: f64,
}

impl Cutoffs {
    /// The cut-offs of a list of percentiles.
    pub(super) fn from_percentiles(percentiles: &[f64]) -> Option<Self> {
        let head = *percentiles.get(HEAD_PERCENTILE)?;
        let middle = *percentiles.get(MIDDLE_PERCENTILE)?;
        Some(Self { head, middle })
    }

    /// Checks that they are in order. `key` is their dotted path.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    pub fn validate(&self, key: &str) -> Result<()> {
        if self.head >= 1.0 && self.middle >= self.head && self.middle.is_finite() {
            return Ok(());
        }
        let found = format!("head {} and middle {}", self.head, self.middle);
        Err(DataError::config(key, found, "1 ≤ head ≤ middle"))
    }

    /// The bucket of a perplexity.
    pub fn bucket(&self, perplexity: f64) -> Bucket {
        if perplexity < self.head {
            Bucket::Head
        } else if perplexity < self.middle {
            Bucket::Middle
        } else {
            Bucket::Tail
        }
    }
}

/// Percentiles 0 to 99 of `values`, linear between the two nearest as numpy has them; empty if
/// there are no values.
pub(super) fn percentiles(values: &mut [f64]) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return Vec::new();
    };
    let percentile = |percent: usize| {
        let place = percent as f64 / 100.0 * last as f64;
        let below = place.floor() as usize;
        let above = (below + 1).min(last);
        values[below] + (values[above] - values[below]) * place.fract()
    };
    (0..100).map(percentile).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile([15, 20, 35, 40, 50], [0, 30, 40, 60, 99])
        let found = percentiles(&mut [50.0, 15.0, 40.0, 20.0, 35.0]);
        assert_eq!(found.len(), 100);
        for (percent, expected) in [(0, 15.0), (30, 23.0), (40, 29.0), (60, 37.0), (99, 49.6)] {
            assert!((found[percent] - expected).abs() < 1e-9, "{percent}: {}", found[percent]);
        }
        assert!(percentiles(&mut []).is_empty());
        assert_eq!(percentiles(&mut [7.0]), [7.0; 100]);
    }

    #[test]
    fn a_perplexity_at_the_cut_off_is_above_it() {
        let cutoffs = Cutoffs { head: 340.0, middle: 520.0 };
        let buckets = [339.9, 340.0, 519.9, 520.0, f64::NAN].map(|p| cutoffs.bucket(p));
        assert_eq!(
            buckets,
            [Bucket::Head, Bucket::Middle, Bucket::Middle, Bucket::Tail, Bucket::Tail]
        );
        assert!(cutoffs.validate("k").is_ok());
        assert!(Cutoffs { head: 2.0, middle: 1.0 }.validate("k").is_err());
        assert!(Cutoffs { head: f64::NAN, middle: 1.0 }.validate("k").is_err());
    }
}
