//! The step that names a document's language and keeps the wanted ones.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::Document;
use crate::error::{DataError, Result};
use crate::language::{LanguageIdentifier, Newlines, round_score};

/// Labels of a model that a message names.
const MOST_NAMED: usize = 200;

/// Names the language and drops what is not wanted. Sets the document's `language` and
/// `language_score`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LanguageOptions {
    /// A fastText model, `.bin` or `.ftz` (path, default none: the built-in detector).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Least score; documents below it are dropped (number from 0 to 1, default 0.5 as cc_net's;
    /// datatrove and FineWeb have 0.65). Scores of the built-in detector are not those of
    /// fastText.
    pub threshold: f64,
    /// Languages to keep, by the model's labels (list of strings, default empty: all).
    pub keep: Vec<String>,
    /// What takes the place of a line feed: `space`, or `remove` as in cc_net (string, default
    /// `space`).
    pub newlines: Newlines,
    /// Round the score to two decimals before it is compared, as cc_net does: 0.496 passes 0.5
    /// (bool, default true).
    pub round_score: bool,
}

impl Default for LanguageOptions {
    fn default() -> Self {
        Self {
            model: None,
            threshold: 0.5,
            keep: Vec::new(),
            newlines: Newlines::Space,
            round_score: true,
        }
    }
}

impl StepOptions for LanguageOptions {
    fn version(&self) -> u32 {
        1
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        if let Some(model) = &mut self.model {
            *model = base.join(&*model);
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.model.iter().cloned().collect()
    }

    fn validate(&self, key: &str) -> Result<()> {
        if !(0.0..=1.0).contains(&self.threshold) {
            return Err(DataError::config(format!("{key}.threshold"), self.threshold, "0 to 1"));
        }
        Ok(())
    }

    fn build(&self, key: &str) -> Result<Box<dyn Step>> {
        let identifier = LanguageIdentifier::load(self.model.as_deref())?;
        let labels = identifier.labels();
        if let Some(unknown) = self.keep.iter().find(|code| !labels.contains(&code.as_str())) {
            let mut near: Vec<&str> = labels.clone();
            near.sort_unstable();
            near.truncate(MOST_NAMED);
            let more = if labels.len() > MOST_NAMED { ", …" } else { "" };
            return Err(DataError::config(
                format!("{key}.keep"),
                format!("{unknown:?}"),
                format!("labels of the model: {}{more}", near.join(", ")),
            ));
        }
        Ok(Box::new(LanguageStep { identifier, options: self.clone() }))
    }
}

struct LanguageStep {
    identifier: LanguageIdentifier,
    options: LanguageOptions,
}

impl Step for LanguageStep {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let LanguageOptions { threshold, keep, newlines, round_score: round, .. } = &self.options;
        let Some(found) = self.identifier.identify(&document.text, *newlines) else {
            return Verdict::unwanted("language_below_threshold", "no words");
        };
        let score = if *round { round_score(found.score) } else { found.score };
        document.language = Some(found.language.to_owned());
        document.language_score = Some(score);
        let figures = || format!("{} {score}, threshold {threshold}", found.language);
        if score < *threshold {
            return Verdict::unwanted("language_below_threshold", figures());
        }
        counts.note(&format!("language {}", found.language));
        if !keep.is_empty() && !keep.iter().any(|kept| kept == found.language) {
            return Verdict::unwanted("language_not_kept", figures());
        }
        Verdict::Keep
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn apply(options: &LanguageOptions, text: &str) -> (Document, Verdict, StepCounts) {
        let step = options.build("language").unwrap();
        let mut document = Document { id: "a".into(), text: text.into(), ..Document::default() };
        let mut counts = StepCounts::default();
        let verdict = step.apply(&mut document, &mut counts);
        (document, verdict, counts)
    }

    fn reason(verdict: &Verdict) -> Option<&str> {
        match verdict {
            Verdict::Keep => None,
            Verdict::Drop { reason, .. } => Some(reason.name()),
        }
    }

    #[test]
    fn languages_are_named_counted_and_chosen() {
        let options = LanguageOptions { keep: vec!["en".into()], ..LanguageOptions::default() };
        let english = "The minutes of the meeting were published on the following Thursday.";
        let (document, verdict, counts) = apply(&options, english);
        assert_eq!(verdict, Verdict::Keep);
        assert_eq!(document.language.as_deref(), Some("en"));
        assert!(document.language_score.unwrap() >= 0.5);
        assert_eq!(counts.noted.get("language en"), Some(&1));

        let german =
            "Das Protokoll der Sitzung wurde am darauffolgenden Donnerstag veröffentlicht.";
        let (document, verdict, counts) = apply(&options, german);
        assert_eq!(reason(&verdict), Some("language_not_kept"));
        assert_eq!(document.language.as_deref(), Some("de"));
        assert_eq!(counts.noted.get("language de"), Some(&1));

        let (_, verdict, counts) = apply(&options, "12 34");
        assert_eq!(reason(&verdict), Some("language_below_threshold"));
        assert!(counts.noted.is_empty());
    }

    #[test]
    fn bad_options_are_named() {
        let options = LanguageOptions { threshold: 1.5, ..LanguageOptions::default() };
        let error = options.validate("steps.0.language").unwrap_err().to_string();
        assert!(error.starts_with("steps.0.language.threshold"), "{error}");
        let options =
            LanguageOptions { model: Some("/missing.bin".into()), ..LanguageOptions::default() };
        assert!(options.build("language").is_err());
    }
}
