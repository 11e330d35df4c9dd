//! How a language model is trained.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::ngram::EstimateOptions;

/// How the language model of a language is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// The language (string, ISO 639 code): the name of the model's files.
    pub language: String,
    /// Folder of models (path, relative to the configuration).
    pub output: PathBuf,
    /// Most pieces; a small text gives fewer (integer, 300 to 1048576, default 65536 as CCNet).
    #[serde(default = "default_vocab_size")]
    pub vocab_size: usize,
    /// Share of the characters that get a piece (number, 0.98 to 1, default 0.9995 as CCNet).
    #[serde(default = "default_character_coverage")]
    pub character_coverage: f64,
    /// Most bytes of text SentencePiece is trained on, drawn evenly (integer, default 100000000).
    /// That needs about 25 times as much memory.
    #[serde(default = "default_input_bytes")]
    pub input_bytes: usize,
    /// Most documents that are read (integer, default 1000000 as CCNet).
    #[serde(default = "default_documents")]
    pub documents: u64,
    /// Most documents the cut-offs are computed from, drawn evenly (integer, default 1000000).
    #[serde(default = "default_documents")]
    pub sample_documents: u64,
    /// The n-grams (map).
    #[serde(default)]
    pub ngrams: EstimateOptions,
    /// Most memory for counting, in bytes, the vocabulary aside (integer, default 2147483648).
    #[serde(default = "default_memory_bytes")]
    pub memory_bytes: u64,
    /// Write `<language>.arpa` too, which other tools read (bool, default false).
    #[serde(default)]
    pub arpa: bool,
    /// Another seed draws other samples (integer, default 1).
    #[serde(default = "default_seed")]
    pub seed: u64,
}

fn default_vocab_size() -> usize {
    65536
}
fn default_character_coverage() -> f64 {
    0.9995
}
fn default_input_bytes() -> usize {
    100_000_000
}
fn default_documents() -> u64 {
    1_000_000
}
fn default_memory_bytes() -> u64 {
    2 << 30
}
fn default_seed() -> u64 {
    1
}

impl TrainOptions {
    /// Everything at its default.
    pub fn new(language: impl Into<String>, output: impl Into<PathBuf>) -> Self {
        Self {
            language: language.into(),
            output: output.into(),
            vocab_size: default_vocab_size(),
            character_coverage: default_character_coverage(),
            input_bytes: default_input_bytes(),
            documents: default_documents(),
            sample_documents: default_documents(),
            ngrams: EstimateOptions::default(),
            memory_bytes: default_memory_bytes(),
            arpa: false,
            seed: default_seed(),
        }
    }

    /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
    pub fn make_paths_absolute(&mut self, base: &Path) {
        self.output = base.join(&self.output);
    }

    /// Checks what the types cannot. `key` is the dotted path of the options.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    pub fn validate(&self, key: &str) -> Result<()> {
        let fail = |name: &str, found: String, expected: &str| {
            Err(DataError::config(format!("{key}.{name}"), found, expected))
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.language.is_empty() || !self.language.chars().all(plain) {
            return fail("language", format!("{:?}", self.language), "letters, digits, `-`, `_`");
        }
        if !(300..=1 << 20).contains(&self.vocab_size) {
            return fail("vocab_size", self.vocab_size.to_string(), "300 to 1048576");
        }
        if !(0.98..=1.0).contains(&self.character_coverage) {
            return fail("character_coverage", self.character_coverage.to_string(), "0.98 to 1");
        }
        if !(1..=i32::MAX as usize).contains(&self.input_bytes) {
            return fail("input_bytes", self.input_bytes.to_string(), "1 to 2147483647");
        }
        if self.documents == 0 || self.sample_documents == 0 {
            return fail("documents", "0".into(), "1 or more");
        }
        self.ngrams.validate(&format!("{key}.ngrams"))
    }
}
