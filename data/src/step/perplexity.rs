//! Buckets by the perplexity of an n-gram language model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::Document;
use crate::error::{DataError, Result};
use crate::ngram::{Bucket, Cutoffs, PerplexityModel};

/// Scores each document with the language model of its language, writes `perplexity` and `bucket`
/// into its metadata and drops the buckets that are not kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerplexityOptions {
    /// Folder of models that `altiplano data train-lm` wrote (path, relative to the
    /// configuration). A document whose language has no model there is in bucket `all`, which is
    /// always kept.
    pub model: PathBuf,
    /// Buckets that are kept: `head`, `middle`, `tail` (list of strings, default head and middle).
    #[serde(default = "default_keep")]
    pub keep: Vec<Bucket>,
    /// Perplexities that part the buckets (map of `head` and `middle`, default those stored with
    /// each model).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutoffs: Option<Cutoffs>,
    /// Language of documents that have none (string, default that of the model if the folder has
    /// only one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

fn default_keep() -> Vec<Bucket> {
    vec![Bucket::Head, Bucket::Middle]
}

impl PerplexityOptions {
    /// The models of a folder, all else at its default.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self { model: model.into(), keep: default_keep(), cutoffs: None, language: None }
    }
}

impl StepOptions for PerplexityOptions {
    fn version(&self) -> u32 {
        1
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        self.model = base.join(&self.model);
    }

    fn files(&self) -> Vec<PathBuf> {
        // A folder that is missing is an error of `build`.
        PerplexityModel::files(&self.model).unwrap_or_default()
    }

    fn validate(&self, key: &str) -> Result<()> {
        if self.keep.is_empty() {
            return Err(DataError::config(
                format!("{key}.keep"),
                "an empty list",
                "buckets of `head`, `middle` and `tail`",
            ));
        }
        match &self.cutoffs {
            Some(cutoffs) => cutoffs.validate(&format!("{key}.cutoffs")),
            None => Ok(()),
        }
    }

    fn build(&self, key: &str) -> Result<Box<dyn Step>> {
        let mut models = BTreeMap::new();
        for language in PerplexityModel::languages(&self.model)? {
            let model = PerplexityModel::open(&self.model, &language)?;
            let Some(cutoffs) = self.cutoffs.or(model.cutoffs()) else {
                return Err(DataError::config(
                    format!("{key}.cutoffs"),
                    format!("none, and none stored with the model for {language:?}"),
                    "cut-offs here or beside the model",
                ));
            };
            models.insert(language, (model, cutoffs));
        }
        if models.is_empty() {
            return Err(DataError::NoInput {
                key: format!("{key}.model"),
                pattern: self.model.join("*.ngrams").display().to_string(),
            });
        }
        let only = models.keys().next().filter(|_| models.len() == 1).cloned();
        let language = self.language.clone().or(only);
        Ok(Box::new(Perplexity { models, keep: self.keep.clone(), language }))
    }
}

struct Perplexity {
    models: BTreeMap<String, (PerplexityModel, Cutoffs)>,
    keep: Vec<Bucket>,
    language: Option<String>,
}

impl Step for Perplexity {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let language = document.language.as_ref().or(self.language.as_ref());
        let Some((model, cutoffs)) = language.and_then(|language| self.models.get(language)) else {
            counts.note("bucket_all");
            document.set_metadata("bucket", Bucket::All.name());
            return Verdict::Keep;
        };
        let perplexity = match model.perplexity(&document.text) {
            Ok(perplexity) => perplexity,
            Err(error) => return Verdict::broken("perplexity_failed", error.to_string()),
        };
        let bucket = cutoffs.bucket(perplexity);
        let (note, reason) = match bucket {
            Bucket::Head => ("bucket_head", "perplexity_head"),
            Bucket::Middle => ("bucket_middle", "perplexity_middle"),
            Bucket::Tail | Bucket::All => ("bucket_tail", "perplexity_tail"),
        };
        counts.note(note);
        document.set_metadata("perplexity", perplexity);
        document.set_metadata("bucket", bucket.name());
        if self.keep.contains(&bucket) {
            return Verdict::Keep;
        }
        let Cutoffs { head, middle } = cutoffs;
        Verdict::unwanted(
            reason,
            format!("perplexity {perplexity}, head below {head}, middle below {middle}"),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ngram::model_folder;

    const SPEECH: &str = "The Congress of the United States has made provision for the Union.";
    const CODE: &str = "fn main() { let x = vec![0x7f; 12]; println!(\"{x:?}\"); }";

    fn document(text: &str, language: Option<&str>) -> Document {
        Document {
            id: "a".into(),
            text: text.into(),
            language: language.map(str::to_owned),
            ..Document::default()
        }
    }

    #[test]
    fn tails_are_dropped_and_the_perplexity_noted() {
        let mut options = PerplexityOptions::new("models");
        options.make_paths_absolute(Path::new("/base"));
        assert_eq!(options.model, Path::new("/base/models"));
        let mut options = PerplexityOptions::new(model_folder());
        options.make_paths_absolute(Path::new("/"));
        assert_eq!(options.files().len(), 3);
        let step = options.build("steps.0.perplexity").unwrap();
        let mut counts = StepCounts::default();

        let mut speech = document(SPEECH, Some("en"));
        assert_eq!(step.apply(&mut speech, &mut counts), Verdict::Keep);
        let perplexity = speech.metadata()["perplexity"].as_f64().unwrap();
        let model = PerplexityModel::open(model_folder(), "en").unwrap();
        assert_eq!(perplexity, model.perplexity(SPEECH).unwrap());
        // The folder has one model, so a document without a language is taken to be in it.
        let mut code = document(CODE, None);
        let Verdict::Drop { reason, detail } = step.apply(&mut code, &mut counts) else {
            panic!("kept");
        };
        assert_eq!((reason.name(), reason.is_error()), ("perplexity_tail", false));
        assert!(detail.contains("middle below"), "{detail}");
        assert_eq!(code.metadata()["bucket"], "tail");

        let mut german = document(SPEECH, Some("de"));
        assert_eq!(step.apply(&mut german, &mut counts), Verdict::Keep);
        assert_eq!(german.metadata()["bucket"], "all");
        assert!(!german.metadata().contains_key("perplexity"));
        let noted: Vec<_> = counts.noted.into_iter().collect();
        assert_eq!(
            noted,
            ["bucket_all", "bucket_head", "bucket_tail"].map(|name| (name.to_owned(), 1))
        );
    }

    #[test]
    fn cut_offs_and_buckets_can_be_given() {
        let yaml = format!(
            "{{model: {:?}, keep: [tail], cutoffs: {{head: 1, middle: 2.5}}}}",
            model_folder()
        );
        let options: PerplexityOptions = serde_yaml::from_str(&yaml).unwrap();
        options.validate("p").unwrap();
        let step = options.build("p").unwrap();
        let mut counts = StepCounts::default();
        assert_eq!(step.apply(&mut document(SPEECH, None), &mut counts), Verdict::Keep);
        let head = PerplexityOptions {
            cutoffs: Some(Cutoffs { head: 1e6, middle: 1e6 }),
            ..options.clone()
        };
        let verdict = head.build("p").unwrap().apply(&mut document(SPEECH, None), &mut counts);
        assert!(
            matches!(&verdict, Verdict::Drop { reason, .. } if reason.name() == "perplexity_head")
        );
    }

    #[test]
    fn options_that_do_not_fit_are_errors() {
        let empty = tempfile::tempdir().unwrap();
        let options = PerplexityOptions::new(empty.path());
        assert!(matches!(options.build("p"), Err(DataError::NoInput { .. })));
        let missing = PerplexityOptions::new(empty.path().join("missing"));
        assert!(matches!(missing.build("p"), Err(DataError::Io { .. })));
        let none = PerplexityOptions { keep: Vec::new(), ..options.clone() };
        assert!(none.validate("p").is_err());
        let cutoffs = Some(Cutoffs { head: 3.0, middle: 2.0 });
        assert!(PerplexityOptions { cutoffs, ..options }.validate("p").is_err());
        assert!(serde_yaml::from_str::<PerplexityOptions>("{model: a, keep: [best]}").is_err());
    }
}
