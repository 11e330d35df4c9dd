//! The step that keeps reference-like pages.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::classifier::{Calibration, ReferenceClassifier};
use crate::document::Document;
use crate::error::{DataError, Result};

/// Published thresholds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferencePreset {
    /// 0.5: LLaMA discards "pages not classified as references" (section 2.1).
    #[default]
    Llama,
    /// 0.25: RedPajama v1 (`cc_classifier.sh`).
    Redpajama,
}

impl ReferencePreset {
    fn threshold(self) -> f64 {
        match self {
            Self::Llama => 0.5,
            Self::Redpajama => 0.25,
        }
    }
}

/// Drops the pages that do not read like those Wikipedia cites. Sets `wiki_prob` in the
/// metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceClassifierOptions {
    /// The model of `altiplano data train-classifier`, or another fastText model with the labels
    /// `wiki` and `cc` (path).
    pub model: PathBuf,
    /// `llama` (threshold 0.5) or `redpajama` (0.25) (string, default `llama`).
    #[serde(default)]
    pub preset: ReferencePreset,
    /// Least probability that Wikipedia cites the page (number from 0 to 1, default the
    /// preset's). At 0 every page is kept, and only scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

impl StepOptions for ReferenceClassifierOptions {
    fn version(&self) -> u32 {
        1
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        self.model = base.join(&self.model);
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.model.clone()]
    }

    fn validate(&self, key: &str) -> Result<()> {
        match self.threshold {
            Some(threshold) if !(0.0..=1.0).contains(&threshold) => {
                Err(DataError::config(format!("{key}.threshold"), threshold, "0 to 1"))
            }
            _ => Ok(()),
        }
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(ReferenceClassifierStep {
            classifier: ReferenceClassifier::load(&self.model)?,
            threshold: self.threshold.unwrap_or(self.preset.threshold()),
            bins: Calibration::bin_names(),
        }))
    }
}

struct ReferenceClassifierStep {
    classifier: ReferenceClassifier,
    threshold: f64,
    /// Names of the histogram's counts.
    bins: Vec<String>,
}

impl Step for ReferenceClassifierStep {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        // Without a known word there is nothing to keep the page for.
        let probability = self.classifier.probability(&document.text).unwrap_or(0.0);
        counts.note(&self.bins[Calibration::bin(probability)]);
        document.set_metadata("wiki_prob", probability);
        if probability < self.threshold {
            let figures = format!("wiki_prob {probability:.4}, threshold {}", self.threshold);
            return Verdict::unwanted("not_reference_like", figures);
        }
        Verdict::Keep
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fasttext_model::{TrainingOptions, train};
    use crate::progress::Progress;

    #[test]
    fn the_threshold_decides_and_the_probability_stays() {
        let folder = tempfile::tempdir().unwrap();
        let lines = folder.path().join("lines");
        let text = "__label__wiki study journal century\n__label__cc buy cheap cart\n".repeat(50);
        std::fs::write(&lines, text).unwrap();
        let model = folder.path().join("model.bin");
        let options = TrainingOptions { dimensions: 8, ..TrainingOptions::default() };
        train(&lines, &model, &options, &Progress::hidden()).unwrap();

        let mut options =
            ReferenceClassifierOptions { model, preset: ReferencePreset::Llama, threshold: None };
        let apply = |options: &ReferenceClassifierOptions, text: &str| {
            let step = options.build("reference_classifier").unwrap();
            let mut document = Document { text: text.into(), ..Document::default() };
            let mut counts = StepCounts::default();
            let verdict = step.apply(&mut document, &mut counts);
            let probability = document.metadata()["wiki_prob"].as_f64().unwrap();
            assert_eq!(counts.noted.values().sum::<u64>(), 1);
            (verdict, probability)
        };
        let (verdict, high) = apply(&options, "journal\nstudy century");
        assert_eq!(verdict, Verdict::Keep);
        let (verdict, low) = apply(&options, "cheap cart\nbuy");
        let Verdict::Drop { reason, detail } = verdict else { panic!("kept at {low}") };
        assert_eq!(reason.name(), "not_reference_like");
        assert!(detail.contains("threshold 0.5"), "{detail}");
        assert!(high > 0.5 && low < 0.5 && (0.0..=1.0).contains(&low));

        options.threshold = Some(high + (1.0 - high) / 2.0);
        assert_ne!(apply(&options, "journal\nstudy century").0, Verdict::Keep);
        options.threshold = Some(0.0);
        assert_eq!(apply(&options, "cheap cart\nbuy").0, Verdict::Keep);
        options.threshold = Some(-1.0);
        assert!(options.validate("x").is_err());
        assert_eq!(ReferencePreset::Redpajama.threshold(), 0.25);
    }

    #[test]
    fn a_model_with_other_labels_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let lines = folder.path().join("lines");
        std::fs::write(&lines, "__label__en a b c\n__label__de d e f\n").unwrap();
        let model = folder.path().join("model.bin");
        let options = TrainingOptions { dimensions: 2, ..TrainingOptions::default() };
        train(&lines, &model, &options, &Progress::hidden()).unwrap();
        let options =
            ReferenceClassifierOptions { model, preset: ReferencePreset::Llama, threshold: None };
        let Err(error) = options.build("x") else { panic!("accepted") };
        assert!(error.to_string().contains("`wiki`"), "{error}");
    }
}
