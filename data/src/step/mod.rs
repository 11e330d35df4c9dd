//! Steps over single documents: one document in, one document, several pieces or a reason out.
//!
//! A step depends on its configuration and the document alone, so the result is the same for any
//! number of threads and any order. What needs other documents is in [`crate::dedup`].

mod c4;
mod ccnet;
mod decontaminate;
mod github_filter;
mod github_header;
mod gutenberg;
mod html;
mod language;
mod latex;
mod min_length;
mod perplexity;
mod reference_classifier;
mod sharegpt;
mod wikitext;

pub use c4::{C4Options, C4Preset};
pub use ccnet::{CcnetHashOptions, CcnetNormalizeOptions, NormalForm};
pub use decontaminate::{DecontaminateMode, DecontaminateOptions};
pub use github_filter::GithubFilterOptions;
pub use github_header::{GithubHeaderOptions, HeaderCompat};
pub use gutenberg::GutenbergOptions;
pub use html::StackExchangeHtmlOptions;
pub use language::LanguageOptions;
pub use latex::LatexOptions;
pub use min_length::MinLengthOptions;
pub use perplexity::PerplexityOptions;
pub use reference_classifier::{ReferenceClassifierOptions, ReferencePreset};
pub use sharegpt::{SharegptCleanOptions, SharegptFilterOptions, SharegptSplitOptions};
pub use wikitext::WikitextOptions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::{Document, Reason};
use crate::error::Result;
use crate::source::TemplateIndex;

/// A step over single documents.
pub trait Step: Send + Sync {
    /// Changes `document`, or says why it is dropped. What it takes out of a document that stays
    /// is counted in `counts`.
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict;

    /// Whether the step uses the templates that the dumps of its source define.
    fn wants_templates(&self) -> bool {
        false
    }

    /// Gives the step these templates, before the first document.
    fn set_templates(&self, _index: &Arc<TemplateIndex>) {}
}

/// The configuration of a step: a map in YAML, every field with a default where there is one. A step
/// that holds nothing else is its options, which implement [`Step`] too.
pub trait StepOptions {
    /// Version of the step. A new one redoes finished work.
    fn version(&self) -> u32;

    /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
    fn make_paths_absolute(&mut self, _base: &Path) {}

    /// Files the step reads, models and word lists: a change of one redoes finished work.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Checks what the types cannot, without reading any file. `key` is the dotted path of the
    /// step in the configuration.
    ///
    /// # Errors
    /// [`crate::DataError::Config`] naming the key.
    fn validate(&self, key: &str) -> Result<()>;

    /// Makes the step, reading its files.
    ///
    /// # Errors
    /// Whatever is wrong with its files.
    fn build(&self, key: &str) -> Result<Box<dyn Step>>;
}

/// What becomes of a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The document is kept.
    Keep,
    /// The document becomes these, at least one, which go on in its place.
    Split(Vec<Document>),
    /// The document is dropped.
    Drop {
        /// Why: a line of the report.
        reason: Reason,
        /// Figures for `data explain`: the score and its threshold, for example. May be empty.
        detail: String,
    },
}

impl Verdict {
    /// The document is whole but not wanted.
    pub fn unwanted(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::Drop { reason: Reason::unwanted(reason), detail: detail.into() }
    }

    /// The document is broken.
    pub fn broken(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::Drop { reason: Reason::broken(reason), detail: detail.into() }
    }
}

/// What a step took out of documents that stay, and what else it counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Parts taken out, by reason: lines, templates, comments.
    removed: BTreeMap<&'static str, Removed>,
    /// Other counts: histogram bins, documents of a language.
    pub noted: BTreeMap<String, u64>,
    /// Sum of the bytes in `removed`.
    removed_bytes: u64,
    /// Templates of wikitext that were taken out of a sentence, by name.
    lost_templates: BTreeMap<String, LostTemplate>,
}

/// A template of wikitext that nothing knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LostTemplate {
    /// How often it was taken out of a sentence.
    pub count: u64,
    /// The first of them, with what stood around it.
    pub example: String,
}

/// Parts of documents that were taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Removed {
    /// How many.
    pub parts: u64,
    /// Their text in bytes.
    pub bytes: u64,
}

impl StepCounts {
    /// Counts one part of `bytes` bytes taken out of a document because of `reason`.
    pub fn remove(&mut self, reason: &'static str, bytes: usize) {
        self.remove_parts(reason, Removed { parts: 1, bytes: bytes as u64 });
    }

    /// Counts several parts taken out of a document because of `reason`.
    pub fn remove_parts(&mut self, reason: &'static str, parts: Removed) {
        let removed = self.removed.entry(reason).or_default();
        removed.parts += parts.parts;
        removed.bytes += parts.bytes;
        self.removed_bytes += parts.bytes;
    }

    /// Parts taken out, by reason.
    pub fn removed(&self) -> &BTreeMap<&'static str, Removed> {
        &self.removed
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for (reason, parts) in &other.removed {
            self.remove_parts(reason, *parts);
        }
        for (name, lost) in &other.lost_templates {
            let known = self.lost_templates.entry(name.clone()).or_default();
            if known.count == 0 {
                known.example.clone_from(&lost.example);
            }
            known.count += lost.count;
        }
        for (name, count) in &other.noted {
            *self.noted.entry(name.clone()).or_default() += count;
        }
    }

    /// Counts a template taken out of a sentence.
    pub fn lose_template(&mut self, name: String, example: String) {
        let lost = self.lost_templates.entry(name).or_default();
        if lost.count == 0 {
            lost.example = example;
        }
        lost.count += 1;
    }

    /// Templates taken out of sentences, by name.
    pub fn lost_templates(&self) -> &BTreeMap<String, LostTemplate> {
        &self.lost_templates
    }

    /// Bytes of all parts taken out.
    pub fn removed_bytes(&self) -> u64 {
        self.removed_bytes
    }

    /// Adds `count` to the count `name`, which is not there when all are 0.
    pub fn note_many(&mut self, name: &str, count: u64) {
        if count > 0 {
            *self.noted.entry(name.to_owned()).or_default() += count;
        }
    }

    /// Adds one to the count `name`. There must be few different names.
    pub fn note(&mut self, name: &str) {
        match self.noted.get_mut(name) {
            Some(count) => *count += 1,
            None => {
                self.noted.insert(name.to_owned(), 1);
            }
        }
    }
}
