//! `altiplano data train-lid`, `train-lm` and `train-classifier`: the models that web text is
//! sorted by.

use std::path::PathBuf;

use altiplano_data::classifier::{self, TrainClassifierOptions};
use altiplano_data::document::{DocumentFile, list_documents};
use altiplano_data::language::{self, TrainLanguageOptions};
use altiplano_data::{ProgressMode, ngram};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::commands::output::{print, print_json};
use crate::commands::threads::use_threads;
use crate::config::{ConfigFile, load};
use crate::error::{Result, TrainerError};

/// Train a model that tells languages apart, for the step `language`.
#[derive(Debug, Args)]
#[command(after_help = LID_EXAMPLE)]
pub(in crate::commands) struct TrainLidArgs {
    #[command(flatten)]
    job: TrainArgs,
}

const LID_EXAMPLE: &str = "\
Example:
  altiplano data train-lid configs/data/models/language.yaml output=lid.bin";

/// Train the classifier of pages that Wikipedia cites, for the step `reference_classifier`.
#[derive(Debug, Args)]
#[command(after_help = CLASSIFIER_EXAMPLE)]
pub(in crate::commands) struct TrainClassifierArgs {
    #[command(flatten)]
    job: TrainArgs,
}

const CLASSIFIER_EXAMPLE: &str = "\
Example:
  altiplano data train-classifier configs/data/models/classifier.yaml output=references.bin";

/// Train an n-gram language model with its perplexity cut-offs, for the step `perplexity`.
#[derive(Debug, Args)]
#[command(after_help = LM_EXAMPLE)]
pub(in crate::commands) struct TrainLmArgs {
    #[command(flatten)]
    job: TrainArgs,
}

const LM_EXAMPLE: &str = "\
Example:
  altiplano data train-lm configs/data/models/language_model.yaml model.language=en";

/// What `data train-lm` trains on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainLmConfig {
    /// Documents to train on: files of `data run`, or folders of them (list of paths).
    pub documents: Vec<PathBuf>,
    /// Documents the cut-offs are computed on, of the kind that will be sorted (list of paths,
    /// default every hundredth of `documents`).
    #[serde(default)]
    pub sample: Vec<PathBuf>,
    /// The model (map).
    pub model: ngram::TrainOptions,
}

impl ConfigFile for TrainLmConfig {
    const PATHS: &'static [&'static str] = &["documents.*", "sample.*", "model.output"];
}

pub(super) fn train_lm(args: &TrainLmArgs) -> Result<()> {
    args.job.run(|config: &TrainLmConfig| {
        let documents = list(&config.documents)?;
        let sample = list(&config.sample)?;
        let text_bytes = [&documents, &sample].map(|files| ngram::text_bytes_of(files));
        let sample = (!sample.is_empty()).then_some(&sample);
        let sample = sample.map(|files| ngram::texts_of(files));
        ngram::train(
            &config.model,
            &ngram::texts_of(&documents),
            sample.as_ref().map(|texts| texts as ngram::Documents<'_>),
            text_bytes,
            ProgressMode::Auto,
        )
    })
}

fn list(paths: &[PathBuf]) -> altiplano_data::Result<Vec<DocumentFile>> {
    let mut files = Vec::new();
    for path in paths {
        files.extend(list_documents(path, None)?);
    }
    Ok(files)
}

#[derive(Debug, Args)]
struct TrainArgs {
    /// Configuration of the training.
    config: PathBuf,
    /// Values that replace those of the configuration.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the report as one JSON object on one line.
    #[arg(long)]
    json: bool,
}

pub(super) fn train_lid(args: &TrainLidArgs) -> Result<()> {
    args.job.run(|options: &TrainLanguageOptions| language::train(options, ProgressMode::Auto))
}

pub(super) fn train_classifier(args: &TrainClassifierArgs) -> Result<()> {
    args.job.run(|options: &TrainClassifierOptions| classifier::train(options, ProgressMode::Auto))
}

impl TrainArgs {
    fn run<O: ConfigFile, R: Serialize>(
        &self,
        train: impl FnOnce(&O) -> altiplano_data::Result<R>,
    ) -> Result<()> {
        use_threads(None)?;
        let report = train(&load::<O>(&self.config, &self.overrides)?)?;
        if self.json {
            return print_json(&report);
        }
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| TrainerError::Output(std::io::Error::other(error)))?;
        print(format!("{text}\n").as_bytes())
    }
}
