//! Supervised fine-tuning: a run that starts from a model and trains on examples.
//!
//! The loop, the step, checkpoints, metrics and curves are those of pretraining
//! ([`train_loop`](crate::train_loop)). What differs is here: the model comes from `base`, and the
//! batches are rows of examples of which only the answers are trained.

use std::path::Path;
use std::sync::Arc;

use altiplano_data::chat::ChatTemplate;
use altiplano_data::sft::{
    ExampleLoader, ExampleLoaderOptions, Examples, ExamplesOptions, SftReport,
};
use altiplano_data::{Batch, ProgressMode, Tokenizer};
use altiplano_model::adapters::Adapters;
use altiplano_model::parallel::TensorRank;
use altiplano_model::params::Weights;
use burn::tensor::{DType, Device};
use serde_json::Value;

use crate::checkpoint::hugging_face::{self, PadToken};
use crate::checkpoint::{self, CheckpointFiles, Choice, TrainState, peft};
use crate::config::{
    Change, LoraConfig, ON_RESUME_SFT, SftConfig, TrainConfig, load, recorded_changes,
};
use crate::error::{Result, TrainerError};
use crate::metrics::ValidationMetrics;
use crate::starting_weights::starting_weights;
use crate::train_loop::{CONFIG_FILE, Task, TrainReport, resume_task, saved_settings, train_task};
use crate::train_step::Trainer;
use crate::trained_model::tokenizer_of;
use crate::world::Ranks;

/// Name of the held-out examples in the metrics.
const HELD_OUT: &str = "held_out";

/// Fine-tunes from the first step. A run of that name must not have a checkpoint yet.
///
/// # Errors
/// As [`FineTuning::open_base`], and whatever a step fails with; what was saved before is intact.
pub fn fine_tune(config: SftConfig) -> Result<TrainReport> {
    // Said before the examples are read, which may take long.
    let dir = config.run_dir();
    if !checkpoint::list(&dir)?.is_empty() {
        return Err(TrainerError::RunExists { path: dir });
    }
    train_task(Box::new(FineTuning::open_base(config)?), &Ranks::single())
}

/// Goes on from a checkpoint of `config`'s run, bit for bit as if it had not stopped. `overrides` are those
/// in `config`, for messages.
///
/// # Errors
/// As [`train_loop::resume`](crate::train_loop::resume).
pub fn resume(config: SftConfig, choice: Choice, overrides: &[String]) -> Result<TrainReport> {
    let dir = config.run_dir();
    let Some((_, chosen)) = checkpoint::choose(&dir, choice, &config.checkpoint.best_by)? else {
        let task = Box::new(FineTuning::open_base(config)?);
        return resume_task(task, choice, overrides, &Ranks::single());
    };
    // Said before the examples are read, which may take long and fail for other reasons.
    let saved: SftConfig = saved_settings(checkpoint::read_state(&chosen)?.config, &chosen)?;
    recorded_changes(ON_RESUME_SFT, &saved, &config.resolved(&dir)?, &dir, overrides)?;
    // A checkpoint has the model's shape and its tokenizer: the base may be gone. Adapters need their base.
    let task = match config.lora {
        None => FineTuning::open(config, &chosen)?,
        // That which the checkpoint names: the newest of the base's run may be another by now.
        Some(_) => {
            let (_, named) = peft::read_config(&chosen)?;
            FineTuning::open(config, &peft::base_of(&chosen, &named)?)?
        }
    };
    resume_task(Box::new(task), choice, overrides, &Ranks::single())
}

/// Tokens of a model of `known` with `[PAD]` behind the `pieces` of its tokenizer.
fn with_pad_token(known: usize, pieces: usize) -> Result<usize> {
    if known > pieces + 1 {
        return Err(TrainerError::Config {
            place: "add_pad_token".into(),
            message: format!(
                "the base knows {known} tokens and its tokenizer {pieces}: [PAD] would not be the next \
                 behind them"
            ),
        });
    }
    Ok(pieces + 1)
}

/// A run on examples.
#[derive(Debug)]
pub struct FineTuning {
    config: SftConfig,
    plan: TrainConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    loader: ExampleLoader,
}

impl FineTuning {
    /// Reads all examples for a run that starts from `config.base`.
    ///
    /// # Errors
    /// When the base is not a model with a tokenizer, the template is not one, a file of examples is
    /// broken, or they do not fit together.
    pub fn open_base(config: SftConfig) -> Result<Self> {
        let base = checkpoint::find(&config.base)?;
        Self::open(config, &base)
    }

    /// The same with the model's shape and the tokenizer of `model_dir`.
    fn open(config: SftConfig, model_dir: &Path) -> Result<Self> {
        let model_dir = &model_dir.canonicalize().map_err(TrainerError::io(model_dir))?;
        let (mut model, _) = hugging_face::read(model_dir)?;
        let tokenizer = tokenizer_of(model_dir, model.vocab_size)?;
        if config.add_pad_token {
            model.vocab_size = with_pad_token(model.vocab_size, tokenizer.vocab_size())?;
        }
        let template = ChatTemplate::open(&config.template)?;
        let Some(end) = tokenizer.eos_id() else {
            return Err(TrainerError::RunFile {
                path: model_dir.join(hugging_face::TOKENIZER_FILE),
                reason: "has no end token, by which an answer ends".into(),
            });
        };
        let examples = Examples::load(
            &ExamplesOptions {
                files: config.data.clone(),
                max_length: config.max_length,
                train_on: config.train_on,
                drop_duplicates: config.drop_duplicates,
                held_out: config.validate.examples,
                seed: config.seed,
                progress: ProgressMode::Auto,
            },
            &tokenizer,
            &template,
        )?;
        let plan = config.plan(model, model_dir, examples.train().len() as u64)?;
        let options = ExampleLoaderOptions {
            examples: config.batch.examples,
            micro_batch: config.batch.micro_batch,
            max_length: config.max_length,
            packing: config.packing,
            seed: config.seed,
            padding: end,
        };
        let loader = ExampleLoader::new(examples, options);
        Ok(Self { config, plan, tokenizer, template, loader })
    }

    /// The weights of step 0, with the row of `[PAD]` where the base lacks it.
    fn starting_weights(
        &self,
        place: &TensorRank,
        device: &Device,
    ) -> Result<(Weights, Vec<String>)> {
        let mut plan = self.plan.clone();
        let base = match &plan.init_from {
            Some(base) if self.config.add_pad_token => hugging_face::read(base)?.0.vocab_size,
            _ => plan.model.vocab_size,
        };
        if base == plan.model.vocab_size {
            return starting_weights(&plan, place, device);
        }
        plan.model.vocab_size = base;
        let (weights, mut about) = starting_weights(&plan, place, device)?;
        about.push(format!("adds the token [PAD], {base}, with the mean of all rows"));
        Ok((weights.with_mean_row(), about))
    }

    /// What was read, and what becomes of it.
    pub fn report(&self) -> SftReport {
        self.loader.report(self.plan.total_steps())
    }

    /// The first `count` examples that are trained on, each token by token: stretches of tokens with equal
    /// treatment, one a line.
    pub fn show(&self, count: usize) -> String {
        let examples = self.loader.examples();
        let mut text = String::new();
        for &example in examples.train().iter().take(count) {
            let ids = examples.ids(example);
            let trained: Vec<_> = examples.trained(example).collect();
            let sum: usize = trained.iter().map(std::ops::Range::len).sum();
            text.push_str(&format!(
                "{}: {} tokens, {sum} trained\n",
                examples.origin(example),
                ids.len()
            ));
            let mut at = 0;
            for range in trained {
                self.show_stretch(&mut text, "       ", &ids[at..range.start]);
                self.show_stretch(&mut text, "trained", &ids[range.clone()]);
                at = range.end;
            }
            self.show_stretch(&mut text, "       ", &ids[at..]);
        }
        text
    }

    fn show_stretch(&self, text: &mut String, label: &str, ids: &[u32]) {
        if ids.is_empty() {
            return;
        }
        let piece = |id: &u32| self.tokenizer.piece(*id).map_or("?", |piece| piece.text.as_str());
        let pieces: Vec<&str> = ids.iter().map(piece).collect();
        // A piece may be any text, and a terminal obeys some of it.
        let pieces = pieces.join("|").replace(char::is_control, "\u{fffd}");
        text.push_str(&format!("  {label}  {pieces}\n"));
    }
}

impl Task for FineTuning {
    fn config(&self) -> &TrainConfig {
        &self.plan
    }

    fn flops_per_token(&self) -> f64 {
        let (model, time) = (&self.plan.model, self.plan.batch.seq_len);
        match &self.config.lora {
            None => model.train_flops_per_token(time),
            Some(lora) => lora.shape().train_flops_per_token(model, time),
        }
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
        let config: SftConfig = load(&run_dir.join(CONFIG_FILE), &[])?;
        config.placed_at(branch).resolved_yaml(branch)
    }

    fn resumed_from(
        &mut self,
        saved: Value,
        checkpoint: &Path,
        run_dir: &Path,
        overrides: &[String],
    ) -> Result<Vec<Change>> {
        let saved: SftConfig = saved_settings(saved, checkpoint)?;
        let examples = self.loader.examples().train().len() as u64;
        let changes = self.config.resumed_from(&saved, examples, run_dir, overrides)?;
        self.plan.optimizer = self.config.optimizer_of(examples);
        Ok(changes)
    }

    fn length_keys(&self) -> &'static [&'static str] {
        &["epochs", "steps"]
    }

    fn start(&self, device: &Device, ranks: &Arc<Ranks>) -> Result<(Trainer, Vec<String>)> {
        let (weights, mut about) = self.starting_weights(&ranks.place(), device)?;
        let Some(shape) = self.config.lora.as_ref().map(LoraConfig::shape) else {
            return Ok((Trainer::start_on(&self.plan, weights, ranks)?, about));
        };
        about.push(format!(
            "trains {} numbers of low-rank adapters; the {} of the model stay",
            shape.parameter_count(&self.plan.model),
            self.plan.model.parameter_count()
        ));
        let (model, seed) = (&self.plan.model, self.config.seed);
        let adapters = Adapters::init(model, &shape, seed, DType::F32, device);
        Ok((Trainer::start_adapters(&self.plan, &weights, adapters)?, about))
    }

    fn resume(
        &self,
        checkpoint: &Path,
        state: &TrainState,
        device: &Device,
        ranks: &Arc<Ranks>,
    ) -> Result<Trainer> {
        let Some(shape) = self.config.lora.as_ref().map(LoraConfig::shape) else {
            return Trainer::resume(&self.plan, checkpoint, state, device, ranks);
        };
        let (weights, _) = starting_weights(&self.plan, &ranks.place(), device)?;
        Trainer::resume_adapters(&self.plan, &weights, &shape, checkpoint, state)
    }

    fn write_model_files(&self, files: &mut CheckpointFiles) -> Result<()> {
        let template = Some(self.template.source());
        let Some(lora) = &self.config.lora else {
            let tokens = self.special_tokens();
            let tokenizer = Some(&self.tokenizer);
            let pad = if self.config.add_pad_token { PadToken::Added } else { PadToken::None };
            return hugging_face::write(files, &self.plan.model, tokens, tokenizer, template, pad);
        };
        // As it was found when the run started: its run may have deleted it since.
        if let Some(base) = &self.plan.init_from {
            peft::write_config(files, &lora.shape(), base)?;
        }
        let (model, tokenizer) = (&self.plan.model, &self.tokenizer);
        hugging_face::write_tokenizer(files, model, tokenizer, template, PadToken::None)
    }

    fn open(&mut self, _ranks: &Ranks) -> Result<()> {
        Ok(())
    }

    fn next_step(&mut self) -> Result<Vec<Batch>> {
        Ok(self.loader.next_step())
    }

    fn position(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self.loader.position())
    }

    fn restore(&mut self, position: Value, run_dir: &Path) -> Result<()> {
        let position = serde_json::from_value(position).map_err(|error| {
            TrainerError::Checkpoint { path: run_dir.to_path_buf(), reason: error.to_string() }
        })?;
        Ok(self.loader.restore(&position)?)
    }

    fn validates(&self) -> bool {
        self.config.validate.every > 0 && !self.loader.examples().held_out().is_empty()
    }

    fn validate(
        &self,
        trainer: &Trainer,
        max_sequences: usize,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Option<ValidationMetrics>> {
        let passes = max_sequences.div_ceil(self.config.batch.micro_batch);
        let (mut nats, mut targets) = (0.0, 0);
        for batch in self.loader.held_out().take(passes) {
            if interrupted() {
                return Ok(None);
            }
            targets += batch.valid_targets();
            nats += trainer.losses(&batch)?.into_iter().map(f64::from).sum::<f64>();
        }
        let loss = nats / targets.max(1) as f64;
        let bytes = self.loader.held_out_bytes().max(1);
        let bits = nats / bytes as f64 / std::f64::consts::LN_2;
        let one = |value: f64| [(HELD_OUT.to_string(), value)].into();
        Ok(Some(ValidationMetrics {
            val_loss: loss,
            val_loss_per_source: one(loss),
            bits_per_byte: bits,
            bits_per_byte_per_source: one(bits),
        }))
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(&self.tokenizer)
    }

    fn chat_template(&self) -> Option<&str> {
        Some(self.template.source())
    }

    fn summary(&self) -> String {
        self.report().to_string()
    }
}
