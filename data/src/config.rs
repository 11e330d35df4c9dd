//! The data configuration: one file that drives documents, tokenizer and shards.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::pipeline::{HoldoutConfig, SourceConfig, validate_sources};
use crate::shard::ShardConfig;
use crate::storage::{absolute, is_remote};
use crate::tokenizer::TokenizerConfig;

/// A data configuration. Paths in it are relative to its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Folder for all that is made (path), or a part of a bucket: `s3://`, `gs://` or `az://`.
    pub output: PathBuf,
    /// Folder of this machine where it is made, when `output` is a bucket (path, default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<PathBuf>,
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
    pub fn make_paths_absolute(&mut self, base: &Path) {
        self.output = absolute(base, &self.output);
        if let Some(work) = &mut self.work {
            *work = base.join(&*work);
        }
        for source in &mut self.sources {
            source.make_paths_absolute(base);
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
        let output = self.output.display();
        match (is_remote(&self.output), &self.work) {
            (true, None) => {
                let expected = format!(
                    "a folder of this machine where the files are made that go to {output}"
                );
                return Err(DataError::config("work", "nothing", expected));
            }
            (false, Some(work)) => {
                let expected = format!("none, since `output` is a folder already: {output}");
                return Err(DataError::config("work", work.display(), expected));
            }
            _ => {}
        }
        if self.sources.is_empty() {
            return Err(DataError::config("sources", "an empty list", "at least one source"));
        }
        validate_sources(&self.sources)?;
        self.holdout.validate()?;
        self.tokenizer.validate()?;
        self.shards.validate()
    }

    /// The folder of this machine where all that is made lies.
    pub fn folder(&self) -> &Path {
        self.work.as_deref().unwrap_or(&self.output)
    }

    /// Where the tokenizer model lies.
    pub fn tokenizer_model(&self) -> PathBuf {
        let default = || self.folder().join("tokenizer.model");
        self.tokenizer.model.clone().unwrap_or_else(default)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pipeline::{self, RunOptions};

    const YAML: &str = "
output: made
sources:
  - name: tales
    text: {paths: ['raw/tales/*.txt']}
  - name: notes
    text: {paths: [raw/notes.jsonl], format: jsonl}
holdout: {bytes_per_source: 500}
tokenizer: {vocab_size: 330, input_bytes: 100000}
shards: {tokens_per_shard: 500}
";

    #[test]
    fn two_sources_of_one_name_are_refused() {
        let config: DataConfig = serde_yaml::from_str(&YAML.replace("notes\n", "tales\n")).unwrap();
        let refused = |result: Result<()>| result.unwrap_err().to_string();
        let error = refused(config.validate());
        assert!(error.contains("sources.1.name") && error.contains("\"tales\" twice"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let options = RunOptions::default();
        let run = pipeline::run(folder.path(), &config.sources, &config.holdout, &options);
        assert_eq!(refused(run.map(drop)), error);
    }

    #[test]
    fn unknown_keys_are_refused() {
        for (from, to) in [
            ("vocab_size", "vocabsize"),
            ("bytes_per_source", "bytes"),
            ("format:", "fromat:"),
            ("tokens_per_shard", "tokens_per_shards"),
            ("output:", "outptu:"),
        ] {
            let yaml = YAML.replace(from, to);
            let error = serde_yaml::from_str::<DataConfig>(&yaml).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{error}");
        }
    }
}
