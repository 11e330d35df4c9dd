//! The classifier of reference-like pages: pages that Wikipedia cites against random pages.
//!
//! LLaMA section 2.1 discards "pages not classified as references" and says no more. What is
//! built here is the reconstruction of RedPajama v1 (`data_prep/cc/classifier`): a fastText
//! model with the labels `wiki` and `cc`, trained on equal numbers of both.

mod calibration;
mod reference_urls;
mod train;

pub use calibration::{Calibration, CalibrationBin, ThresholdReport};
pub use reference_urls::{ReferenceUrlReport, reference_urls, write_reference_urls};
pub use train::{ClassReport, TrainClassifierOptions, TrainClassifierReport, train};

use std::borrow::Cow;
use std::path::Path;

use crate::error::{DataError, Result};
use crate::fasttext_model::FastTextModel;
use crate::text::python;

/// Label of the pages that Wikipedia cites.
pub const REFERENCE_LABEL: &str = "wiki";
/// Label of the random pages.
pub const RANDOM_LABEL: &str = "cc";

/// Tells how likely Wikipedia cites a page.
#[derive(Debug)]
pub struct ReferenceClassifier {
    model: FastTextModel,
}

impl ReferenceClassifier {
    /// Reads a model of [`train()`], or another fastText model with the labels `wiki` and `cc`.
    ///
    /// # Errors
    /// As [`FastTextModel::load`]; [`DataError::BadFile`] when the labels differ.
    pub fn load(path: &Path) -> Result<Self> {
        let model = FastTextModel::load(path)?;
        let mut labels: Vec<&str> = model.labels().iter().map(String::as_str).collect();
        labels.sort_unstable();
        if labels != [RANDOM_LABEL, REFERENCE_LABEL] {
            return Err(DataError::bad_file(
                path,
                format!(
                    "its labels are {}, expected `{RANDOM_LABEL}` and `{REFERENCE_LABEL}`; \
                     train one with `altiplano data train-classifier`",
                    labels.join(", ")
                ),
            ));
        }
        Ok(Self { model })
    }

    /// The probability, 0 to 1, that `text` is of a page that Wikipedia cites; none when no word
    /// of it is known.
    pub fn probability(&self, text: &str) -> Option<f64> {
        let best = self.model.predict(&on_one_line(text), 1).into_iter().next()?;
        let probability = f64::from(best.probability).clamp(0.0, 1.0);
        Some(if best.label == REFERENCE_LABEL { probability } else { 1.0 - probability })
    }
}

/// The text with its lines joined by spaces: `" ".join(text.strip().splitlines())` in Python.
fn on_one_line(text: &str) -> Cow<'_, str> {
    let text = python::strip(text);
    // The other line ends are white space to fastText anyway.
    let rare = |byte: u8| matches!(byte, 0x1c..=0x1e | 0xc2 | 0xe2);
    if !text.bytes().any(rare) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len());
    for part in python::split_lines(text) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(part);
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_where_fasttext_sees_none() {
        assert_eq!(on_one_line("\n a\u{2028}b\u{1c}c\u{85}d "), "a b c d");
        assert_eq!(on_one_line("a\u{e9}b"), "aéb");
        assert!(matches!(on_one_line("a\nb"), Cow::Borrowed("a\nb")));
    }
}
