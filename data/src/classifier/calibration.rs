//! How well a classifier's probabilities are founded: precision and recall at thresholds, and a
//! histogram of what was predicted against what was true.

use serde::{Deserialize, Serialize};

/// Bins of the histogram.
const BINS: usize = 20;
/// Thresholds of the report: RedPajama's and LLaMA's presets, and their surroundings.
const THRESHOLDS: [f64; 7] = [0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9];

/// Precision and recall of a classifier on documents it has not seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Precision and recall by threshold.
    pub thresholds: Vec<ThresholdReport>,
    /// What was predicted against what was true.
    pub histogram: Vec<CalibrationBin>,
    /// Mean squared difference of the probability and the truth, 0 or 1 (Brier's score).
    pub brier: f64,
}

/// What a threshold does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThresholdReport {
    /// Documents of this probability or more are kept.
    pub threshold: f64,
    /// Share of the kept documents that are references.
    pub precision: f64,
    /// Share of the references that are kept.
    pub recall: f64,
    /// Share of the random pages that are kept.
    pub random_kept: f64,
}

/// The documents whose probability is at least `from` and below `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Lower end.
    pub from: f64,
    /// Upper end.
    pub to: f64,
    /// Documents.
    pub documents: u64,
    /// Those that are references.
    pub references: u64,
    /// Their mean probability: near `references` / `documents` when well calibrated.
    pub mean_probability: f64,
}

impl Calibration {
    /// From (probability, is a reference) of each document.
    pub fn new(scored: &[(f64, bool)]) -> Self {
        let references = scored.iter().filter(|scored| scored.1).count() as u64;
        let random = scored.len() as u64 - references;
        let thresholds = THRESHOLDS.map(|threshold| {
            let kept = |wanted: bool| {
                let kept = |&&(probability, reference): &&(f64, bool)| {
                    probability >= threshold && reference == wanted
                };
                scored.iter().filter(kept).count() as u64
            };
            let (true_kept, false_kept) = (kept(true), kept(false));
            ThresholdReport {
                threshold,
                precision: share(true_kept, true_kept + false_kept),
                recall: share(true_kept, references),
                random_kept: share(false_kept, random),
            }
        });
        let mut sums = [(0u64, 0u64, 0.0); BINS];
        let mut squares = 0.0;
        for &(probability, reference) in scored {
            let bin = &mut sums[bin(probability)];
            *bin = (bin.0 + 1, bin.1 + u64::from(reference), bin.2 + probability);
            squares += (probability - f64::from(u8::from(reference))).powi(2);
        }
        let histogram =
            sums.iter().enumerate().map(|(index, &(documents, references, sum))| CalibrationBin {
                from: index as f64 / BINS as f64,
                to: (index + 1) as f64 / BINS as f64,
                documents,
                references,
                mean_probability: if documents == 0 { 0.0 } else { sum / documents as f64 },
            });
        Self {
            thresholds: thresholds.to_vec(),
            histogram: histogram.collect(),
            brier: if scored.is_empty() { 0.0 } else { squares / scored.len() as f64 },
        }
    }

    /// Names of the histogram's bins: `wiki_prob 0.05-0.10` and so on.
    pub fn bin_names() -> Vec<String> {
        (0..BINS)
            .map(|index| {
                let end = |index: usize| index as f64 / BINS as f64;
                format!("wiki_prob {:.2}-{:.2}", end(index), end(index + 1))
            })
            .collect()
    }

    /// The bin of a probability; 1 is in the last.
    pub fn bin(probability: f64) -> usize {
        bin(probability)
    }
}

fn bin(probability: f64) -> usize {
    ((probability * BINS as f64) as usize).min(BINS - 1)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn precision_recall_and_bins() {
        let scored = [(0.95, true), (0.55, true), (0.3, true), (0.5, false), (0.02, false)];
        let calibration = Calibration::new(&scored);
        let at = |wanted: f64| {
            calibration.thresholds.iter().find(|report| report.threshold == wanted).unwrap()
        };
        assert_eq!((at(0.5).precision, at(0.5).recall), (2.0 / 3.0, 2.0 / 3.0));
        assert_eq!((at(0.25).precision, at(0.25).recall), (0.75, 1.0));
        assert_eq!((at(0.5).random_kept, at(0.6).random_kept), (0.5, 0.0));
        let documents: u64 = calibration.histogram.iter().map(|bin| bin.documents).sum();
        assert_eq!(documents, 5);
        let last = calibration.histogram.last().unwrap();
        assert_eq!((last.from, last.documents, last.references), (0.95, 1, 1));
        let expected =
            (0.05f64.powi(2) + 0.45f64.powi(2) + 0.7f64.powi(2) + 0.25 + 0.02f64.powi(2)) / 5.0;
        assert!((calibration.brier - expected).abs() < 1e-12);
        assert_eq!(Calibration::bin(1.0), 19);
        assert_eq!(Calibration::bin_names()[10], "wiki_prob 0.50-0.55");
        assert_eq!(Calibration::new(&[]).brier, 0.0);
    }
}
