//! Which language a text is in.
//!
//! With a fastText model (`lid.176.bin`, `lid.176.ftz`, or one of [`train()`]) the label is the
//! language. Without a model the detector of the `whatlang` crate serves: 70 languages, by
//! trigrams and alphabets; it is weaker on short and on mixed text.

mod builtin;
mod labelled;
mod train;

pub use train::{LanguageReport, TrainLanguageOptions, TrainLanguageReport, train};

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::fasttext_model::FastTextModel;

/// What takes the place of a line feed before the language is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Newlines {
    /// A space: the words on both sides stay two.
    #[default]
    Space,
    /// Nothing: cc_net does so (`split_by_lang.py`), which glues the words at line ends.
    Remove,
}

/// A language and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Identified<'a> {
    /// The model's label, an ISO 639-1 code as a rule; ISO 639-3 where there is none.
    pub language: &'a str,
    /// 0 to 1.
    pub score: f64,
}

/// Tells languages apart.
#[derive(Debug)]
pub enum LanguageIdentifier {
    /// A fastText model.
    FastText(Box<FastTextModel>),
    /// The built-in detector.
    BuiltIn,
}

impl LanguageIdentifier {
    /// Reads the model; without one, the built-in detector, of which a warning tells.
    ///
    /// # Errors
    /// As [`FastTextModel::load`].
    pub fn load(model: Option<&Path>) -> Result<Self> {
        match model {
            Some(path) => Ok(Self::FastText(Box::new(FastTextModel::load(path)?))),
            None => {
                builtin::warn_once();
                Ok(Self::BuiltIn)
            }
        }
    }

    /// What it can name.
    pub fn labels(&self) -> Vec<&str> {
        match self {
            Self::FastText(model) => model.labels().iter().map(String::as_str).collect(),
            Self::BuiltIn => builtin::labels(),
        }
    }

    /// The likeliest language of `text`; none when there are no words in it.
    pub fn identify(&self, text: &str, newlines: Newlines) -> Option<Identified<'_>> {
        let text = match newlines {
            Newlines::Remove if text.contains('\n') => Cow::Owned(text.replace('\n', "")),
            // A line feed is white space to both detectors.
            _ => Cow::Borrowed(text),
        };
        match self {
            Self::FastText(model) => {
                let best = model.predict(&text, 1).into_iter().next()?;
                let score = f64::from(best.probability).clamp(0.0, 1.0);
                Some(Identified { language: best.label, score })
            }
            Self::BuiltIn => builtin::identify(&text),
        }
    }
}

/// Rounds a score to two decimals, halves to the even neighbour, as numpy and so cc_net does.
pub fn round_score(score: f64) -> f64 {
    (score * 100.0).round_ties_even() / 100.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn scores_round_half_to_even() {
        assert_eq!(round_score(0.496), 0.5);
        assert_eq!(round_score(0.494_999), 0.49);
        // Exact halves in binary: 0.125 and 0.375.
        assert_eq!(round_score(0.125), 0.12);
        assert_eq!(round_score(0.375), 0.38);
        assert_eq!(round_score(1.0), 1.0);
    }

    #[test]
    fn the_built_in_detector_knows_the_languages_of_the_corpus() {
        let identifier = LanguageIdentifier::BuiltIn;
        let cases = [
            ("en", "The committee will meet again on Thursday, and the minutes will be published."),
            ("de", "Der Ausschuss tritt am Donnerstag wieder zusammen und veröffentlicht alles."),
            ("fr", "La commission se réunira de nouveau jeudi et le compte rendu sera publié."),
            ("ru", "Комитет соберётся снова в четверг, и протокол будет опубликован."),
            ("ja", "委員会は木曜日に再び開かれ、議事録が公表されます。"),
            ("zh", "委员会将于星期四再次开会，会议记录将予以公布。"),
        ];
        for (language, text) in cases {
            let found = identifier.identify(text, Newlines::Space).unwrap();
            assert_eq!(found.language, language, "{text}");
            assert!((0.0..=1.0).contains(&found.score));
        }
        assert_eq!(identifier.identify("1234 5678 !!!", Newlines::Space), None);
        assert_eq!(identifier.identify("", Newlines::Space), None);
    }
}
