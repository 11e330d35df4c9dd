//! Pretraining: batches of a mixture of token shards.

use std::path::Path;
use std::sync::Arc;

use altiplano_data::loader::MixtureTable;
use altiplano_data::{Batch, Loader, LoaderOptions, ProgressMode, Tokenizer, ValidationSet};
use burn::tensor::Device;
use serde_json::Value;

use super::task::Task;
use crate::config::{Change, TrainConfig, load};
use crate::error::{Result, TrainerError};
use crate::metrics::ValidationMetrics;
use crate::starting_weights::starting_weights;
use crate::train_step::Trainer;
use crate::validation::validate;
use crate::world::Ranks;

/// What the loader of a run needs to know of its configuration.
pub fn loader_options(config: &TrainConfig, tokenizer: Option<&Tokenizer>) -> LoaderOptions {
    LoaderOptions {
        seq_len: config.batch.seq_len,
        batch_size: config.batch.micro_batch,
        seed: config.seed,
        readers: config.readers,
        tokenizer_fingerprint: tokenizer
            .map(|tokenizer| tokenizer.fingerprint().to_string())
            .unwrap_or_default(),
        vocab_size: config.model.vocab_size,
        progress: ProgressMode::Auto,
    }
}

/// The stream of batches that a run of `config` sees from its first step on, and its tokenizer.
///
/// # Errors
/// When the tokenizer or a shard cannot be opened, or they do not fit together.
pub fn open_loader(config: &TrainConfig) -> Result<(Loader, Option<Tokenizer>)> {
    let tokenizer = open_tokenizer(config)?;
    let options = loader_options(config, tokenizer.as_ref());
    Ok((Loader::open(&config.data, options)?, tokenizer))
}

fn open_tokenizer(config: &TrainConfig) -> Result<Option<Tokenizer>> {
    Ok(config.tokenizer.as_deref().map(Tokenizer::open).transpose()?)
}

/// The micro-batches of the next step of a run of `config`, as far as they are in the loader's share.
///
/// # Errors
/// When a shard holds an id outside the vocabulary.
pub fn next_batches(config: &TrainConfig, loader: &mut Loader) -> Result<Vec<Batch>> {
    let own = config.batch.grad_accum_steps / loader.share().of;
    (0..own).map(|_| Ok(loader.next_batch()?)).collect()
}

/// A run on a mixture.
pub(super) struct Pretraining {
    config: TrainConfig,
    opened: Option<Opened>,
}

/// What a run reads.
struct Opened {
    loader: Loader,
    validation: Option<ValidationSet>,
    tokenizer: Option<Tokenizer>,
}

impl Pretraining {
    pub fn new(config: TrainConfig) -> Self {
        Self { config, opened: None }
    }
}

/// The error of a run whose files are asked for before they are open.
fn not_open() -> TrainerError {
    TrainerError::RunFile { path: "data".into(), reason: "the shards are not open yet".into() }
}

impl Task for Pretraining {
    fn config(&self) -> &TrainConfig {
        &self.config
    }

    fn settings(&self, run_dir: &Path) -> Result<Value> {
        serde_json::to_value(self.config.resolved(run_dir)?).map_err(|error| {
            TrainerError::RunFile { path: run_dir.to_path_buf(), reason: error.to_string() }
        })
    }

    fn yaml(&self, run_dir: &Path) -> Result<String> {
        self.config.resolved_yaml(run_dir)
    }

    fn branch_yaml(&self, run_dir: &Path, branch: &Path) -> Result<String> {
        let mut config: TrainConfig = load(&run_dir.join(super::CONFIG_FILE), &[])?;
        if let (Some(parent), Some(name)) = (branch.parent(), branch.file_name()) {
            config.output = parent.to_path_buf();
            config.name = name.to_string_lossy().into_owned();
        }
        config.resolved_yaml(branch)
    }

    fn resumed_from(
        &mut self,
        saved: Value,
        checkpoint: &Path,
        run_dir: &Path,
        overrides: &[String],
    ) -> Result<Vec<Change>> {
        let saved: TrainConfig = super::start::saved_settings(saved, checkpoint)?;
        self.config.resumed_from(&saved, run_dir, overrides)
    }

    fn start(&self, device: &Device, ranks: &Arc<Ranks>) -> Result<(Trainer, Vec<String>)> {
        let (weights, about) = starting_weights(&self.config, device)?;
        Ok((Trainer::start_on(&self.config, weights, ranks)?, about))
    }

    fn open(&mut self, ranks: &Ranks) -> Result<()> {
        let config = &self.config;
        let tokenizer = open_tokenizer(config)?;
        let mut options = loader_options(config, tokenizer.as_ref());
        if !ranks.is_first() {
            options.progress = ProgressMode::Hidden;
        }
        let mut loader = Loader::open(&config.data, options.clone())?;
        loader.set_share(ranks.share());
        let validation = (config.validate.every > 0 && !config.data.random)
            .then(|| ValidationSet::open(&config.data, &options))
            .transpose()?;
        self.opened = Some(Opened { loader, validation, tokenizer });
        Ok(())
    }

    fn next_step(&mut self) -> Result<Vec<Batch>> {
        let opened = self.opened.as_mut().ok_or_else(not_open)?;
        next_batches(&self.config, &mut opened.loader)
    }

    fn position(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self.opened.as_ref().map(|opened| opened.loader.state()))
    }

    fn restore(&mut self, position: Value, run_dir: &Path) -> Result<()> {
        let position = serde_json::from_value(position).map_err(|error| {
            TrainerError::Checkpoint { path: run_dir.to_path_buf(), reason: error.to_string() }
        })?;
        Ok(self.opened.as_mut().ok_or_else(not_open)?.loader.restore(&position)?)
    }

    fn validates(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.validation.is_some())
    }

    fn validate(
        &self,
        trainer: &Trainer,
        max_sequences: usize,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Option<ValidationMetrics>> {
        match self.opened.as_ref().and_then(|opened| opened.validation.as_ref()) {
            Some(set) => validate(trainer, set, max_sequences, interrupted),
            None => Ok(None),
        }
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.opened.as_ref()?.tokenizer.as_ref()
    }

    fn summary(&self) -> String {
        let config = &self.config;
        let batch = &config.batch;
        let budget = config.total_steps() * config.tokens_per_step();
        let mut text = format!(
            "{} steps of {} x {} x {} = {} tokens, {} in all, {:.3e} FLOPs",
            config.total_steps(),
            batch.grad_accum_steps,
            batch.micro_batch,
            batch.seq_len,
            config.tokens_per_step(),
            budget,
            config.model.train_flops_per_token(batch.seq_len) * budget as f64,
        );
        if let Some(opened) = self.opened.as_ref().filter(|_| !config.data.random) {
            let table = MixtureTable {
                sources: &opened.loader.report(),
                token_budget: budget,
                max_epochs: config.data.max_epochs,
            };
            text.push_str(&format!("\n{table}"));
        }
        text
    }
}
