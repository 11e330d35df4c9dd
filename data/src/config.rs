//! The data configuration: one file that drives documents, tokenizer and shards.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::{Split, list_documents};
use crate::error::{DataError, Result};
use crate::pipeline::{self, HoldoutConfig, RunOptions, RunReport};
use crate::progress::ProgressMode;
use crate::shard::{ShardConfig, TokenizeReport, tokenize};
use crate::source::SourceConfig;
use crate::tokenizer::{self, Tokenizer, TokenizerConfig, TrainReport};

/// A data configuration. Paths in it are relative to its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder for all that is made (path).
    pub output: PathBuf,
    /// The sources (list).
    pub sources: Vec<SourceConfig>,
    /// Which documents are held out for validation (map, default none).
    #[serde(default)]
    pub holdout: HoldoutConfig,
    /// How the tokenizer is trained (map).
    #[serde(default)]
    pub tokenizer: TokenizerConfig,
    /// How token shards are written (map).
    #[serde(default)]
    pub shards: ShardConfig,
}

impl DataConfig {
    /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
    pub fn resolve(&mut self, base: &Path) {
        self.output = base.join(&self.output);
        for source in &mut self.sources {
            source.resolve(base);
        }
        if let Some(model) = &mut self.tokenizer.model {
            *model = base.join(&*model);
        }
    }

    /// Checks what the types cannot, for all three commands at once.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        if self.sources.is_empty() {
            return Err(DataError::config("sources", "an empty list", "at least one source"));
        }
        for source in &self.sources {
            source.validate()?;
        }
        self.holdout.validate()?;
        self.tokenizer.validate()?;
        self.shards.validate()
    }

    /// Where the tokenizer model lies.
    pub fn tokenizer_model(&self) -> PathBuf {
        let default = || self.output.join("tokenizer.model");
        self.tokenizer.model.clone().unwrap_or_else(default)
    }

    /// Raw text to documents.
    ///
    /// # Errors
    /// As [`pipeline::run`].
    pub fn run_pipeline(&self, options: &RunOptions) -> Result<RunReport> {
        self.validate()?;
        pipeline::run(&self.output, &self.sources, &self.holdout, options)
    }

    /// Trains the tokenizer on the training documents of all sources.
    ///
    /// # Errors
    /// As [`tokenizer::train`]; [`DataError::NoInput`] when a source has no documents yet.
    pub fn train_tokenizer(&self, progress: ProgressMode) -> Result<TrainReport> {
        self.validate()?;
        let mut files = Vec::new();
        for source in &self.sources {
            let folder = pipeline::documents_folder(&self.output, &source.name);
            files.extend(list_documents(&folder, Some(Split::Train))?);
        }
        tokenizer::train(&self.tokenizer, &files, &self.tokenizer_model(), progress)
    }

    /// Documents to token shards.
    ///
    /// # Errors
    /// As [`tokenize`], and those of opening the tokenizer.
    pub fn tokenize(&self, progress: ProgressMode) -> Result<TokenizeReport> {
        self.validate()?;
        let tokenizer = Tokenizer::open(&self.tokenizer_model())?;
        let names: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
        tokenize(&self.output, &names, &tokenizer, &self.shards, progress)
    }
}
