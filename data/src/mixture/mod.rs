//! Which text a batch is made of: shares of tokens, the order of sources, and the order of
//! sequences inside a source.
//!
//! A sequence is `seq_len` tokens, so shares of tokens are shares of sequences. Sources are
//! interleaved by a low-discrepancy order ([`SourceOrder`]), the sequences of a source are
//! visited once per epoch in an order made by a keyed bijection ([`Permutation`]). Both are
//! functions of how many sequences were drawn, so nothing else has to be remembered.

mod order;
mod permutation;
mod source_tokens;

pub use order::SourceOrder;
pub use permutation::Permutation;
pub use source_tokens::SourceTokens;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::error::{DataError, Result};
use crate::storage::{absolute, cached_folder};

/// What a run trains on. In YAML either the word `random` or a map.
// `remote` makes the derived functions inherent ones, for the traits' implementations below to use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub struct MixtureConfig {
    /// Tokens drawn uniformly from the seed instead of text, to measure speed (bool, default
    /// false; `data: random` sets it).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub random: bool,
    /// The sources (list).
    pub sources: Vec<MixtureSource>,
    /// Read every byte of every shard once before the first step and compare checksums (bool,
    /// default true). Takes about a second per GB and core.
    pub verify_checksums: bool,
    /// Do not ask the model to predict the first token of a document from the document before it
    /// (bool, default false). It is about the loss; `document_mask` of a run is about attention
    /// (docs/formats.md, "How batches are cut from shards").
    pub mask_document_boundary: bool,
    /// Warn when a source is gone through more often than this (number, default 4: up to about
    /// four times repeated text is nearly as good as new, arXiv 2305.16264).
    pub max_epochs: f64,
    /// Tokens to draw, for `altiplano data report --mixture` (integer, default: each source once
    /// at most); a run has its own `tokens` or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_budget: Option<u64>,
}

/// One source of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSource {
    /// Folder of the source's token shards, with its `manifest.json` (path, relative to the
    /// configuration).
    pub path: PathBuf,
    /// Share of the tokens, relative to the other weights (number above 0).
    pub weight: f64,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        Self {
            random: false,
            sources: Vec::new(),
            verify_checksums: true,
            mask_document_boundary: false,
            max_epochs: 4.0,
            token_budget: None,
        }
    }
}

impl Serialize for MixtureConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for MixtureConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct WordOrMap;
        impl<'de> Visitor<'de> for WordOrMap {
            type Value = MixtureConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the word `random` or a map with `sources`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> std::result::Result<Self::Value, E> {
                match word {
                    "random" => Ok(MixtureConfig::random()),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                MixtureConfig::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(WordOrMap)
    }
}

impl MixtureConfig {
    /// Tokens drawn uniformly from the seed.
    pub fn random() -> Self {
        Self { random: true, ..Self::default() }
    }

    /// A mixture of shard folders by weight, all else at its default.
    pub fn of(sources: Vec<MixtureSource>) -> Self {
        Self { sources, ..Self::default() }
    }

    /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
    pub fn make_paths_absolute(&mut self, base: &Path) {
        for source in &mut self.sources {
            source.path = absolute(base, &source.path);
        }
    }

    /// The mixture with the shards that lie in buckets fetched to this machine.
    ///
    /// # Errors
    /// [`DataError::Storage`] naming the address.
    pub(crate) fn fetched(&self) -> Result<Self> {
        let mut fetched = self.clone();
        for source in &mut fetched.sources {
            source.path = cached_folder("data.sources", &source.path)?;
        }
        Ok(fetched)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`DataError::Config`].
    pub fn validate(&self) -> Result<()> {
        match (self.random, self.sources.is_empty()) {
            (true, false) => {
                return Err(DataError::config("data", "`random` and `sources`", "one of them"));
            }
            (false, true) => {
                return Err(DataError::config("data.sources", "an empty list", "at least one"));
            }
            _ => {}
        }
        if self.max_epochs.is_nan() || self.max_epochs <= 0.0 {
            return Err(DataError::config("data.max_epochs", self.max_epochs, "above 0"));
        }
        for source in &self.sources {
            if !(source.weight > 0.0 && source.weight.is_finite()) {
                return Err(DataError::config(
                    format!("data.sources.{}.weight", source.path.display()),
                    source.weight,
                    "a number above 0; leave the source out to give it no share",
                ));
            }
        }
        Ok(())
    }
}
