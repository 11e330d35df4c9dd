//! `altiplano data train-lid` and `data train-classifier`: the models that web text is sorted by.

use std::path::PathBuf;

use altiplano_data::classifier::{self, TrainClassifierOptions};
use altiplano_data::language::{self, TrainLanguageOptions};
use clap::Args;
use serde::Serialize;

use crate::commands::output::{print, print_json};
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
    args.job.run(|options: &TrainLanguageOptions| language::train(options))
}

pub(super) fn train_classifier(args: &TrainClassifierArgs) -> Result<()> {
    args.job.run(|options: &TrainClassifierOptions| classifier::train(options))
}

impl TrainArgs {
    fn run<O: ConfigFile, R: Serialize>(
        &self,
        train: impl FnOnce(&O) -> altiplano_data::Result<R>,
    ) -> Result<()> {
        let report = train(&load::<O>(&self.config, &self.overrides)?)?;
        if self.json {
            return print_json(&report);
        }
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| TrainerError::Output(std::io::Error::other(error)))?;
        print(format!("{text}\n").as_bytes())
    }
}
