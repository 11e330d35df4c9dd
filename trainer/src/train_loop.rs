//! A whole run: from a configuration, or from its newest checkpoint, to the last step.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use altiplano_data::loader::MixtureTable;
use altiplano_data::{Batch, Loader, LoaderOptions, ProgressMode, Tokenizer, ValidationSet};
use altiplano_model::device;
use altiplano_model::infer::{Sampler, SamplerConfig};

use crate::checkpoint::{self, TrainState, hugging_face};
use crate::config::TrainConfig;
use crate::error::{Result, TrainerError};
use crate::metrics::{
    History, InitialMetrics, MetricsLog, StepMetrics, peak_memory_bytes, read_metrics, wall_time,
};
use crate::peak::Peak;
use crate::plot::draw_loss;
use crate::progress::TrainProgress;
use crate::schedule::Schedule;
use crate::tensorboard::EventFile;
use crate::text_generation::generate_text;
use crate::train_step::Trainer;
use crate::validation::{summary, validate};

/// Set by a signal: the run saves a checkpoint after the step it is in and ends.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How a run ended.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TrainReport {
    /// Directory of the run.
    pub run: PathBuf,
    /// Its newest checkpoint.
    pub checkpoint: PathBuf,
    /// The loss curve.
    pub loss_curve: PathBuf,
    /// Steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Loss of the last step, in nats.
    pub loss: f64,
    /// Mean over the steps of this process.
    pub tokens_per_second: f64,
    /// Most memory held, in bytes.
    pub peak_memory_bytes: u64,
    /// Whether the run was interrupted before its last step.
    pub interrupted: bool,
}

/// A run in progress.
struct Run {
    config: TrainConfig,
    dir: PathBuf,
    trainer: Trainer,
    loader: Loader,
    validation: Option<ValidationSet>,
    tokenizer: Option<Tokenizer>,
    metrics: MetricsLog,
    events: Option<EventFile>,
    history: History,
    /// A step that was saved but not logged: a crash in between lost its line.
    unlogged: Option<StepMetrics>,
    step: u64,
    tokens: u64,
    /// Ends with the process; keeps others out of the directory.
    _lock: checkpoint::RunLock,
}

/// Trains from the first step. A run of that name must not exist yet.
///
/// # Errors
/// Whatever a step fails with; what was saved before is intact.
pub fn train(config: TrainConfig) -> Result<TrainReport> {
    let dir = config.run_dir();
    let lock = checkpoint::lock(&dir)?;
    if dir.join("config.yaml").exists() {
        return Err(TrainerError::RunExists { path: dir });
    }
    let device = device::select(&config.device)?;
    let trainer = Trainer::start(&config, &device)?;
    Run::open(config, dir, trainer, None, lock)?.finish()
}

/// Goes on from the newest checkpoint of `config`'s run, bit for bit as if it had not stopped.
///
/// # Errors
/// When there is no checkpoint, a file of it is damaged, or the configuration or the corpus is not
/// the one it was started with.
pub fn resume(config: TrainConfig) -> Result<TrainReport> {
    let dir = config.run_dir();
    let lock = checkpoint::lock(&dir)?;
    checkpoint::recover(&dir, &lock)?;
    let path = checkpoint::latest(&dir)?;
    let state = checkpoint::verify(&path)?;
    if state.config_hash != config.numeric_hash() {
        return Err(TrainerError::Checkpoint {
            path,
            reason: "was written by a run with other settings that decide its numbers; \
                     resume without overrides, or start a new run"
                .into(),
        });
    }
    let device = device::select(&config.device)?;
    let trainer = Trainer::resume(&config, &path, &state, &device)?;
    Run::open(config, dir, trainer, Some(state), lock)?.finish()
}

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
    let tokenizer = config.tokenizer.as_deref().map(Tokenizer::open).transpose()?;
    let options = loader_options(config, tokenizer.as_ref());
    Ok((Loader::open(&config.data, options)?, tokenizer))
}

/// The micro-batches of the next step of a run of `config`.
///
/// # Errors
/// When a shard holds an id outside the vocabulary.
pub fn next_batches(config: &TrainConfig, loader: &mut Loader) -> Result<Vec<Batch>> {
    (0..config.batch.grad_accum_steps).map(|_| Ok(loader.next_batch()?)).collect()
}

/// Whether something that is done `every` so many steps is done after `step`; never if 0.
fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl Run {
    fn open(
        config: TrainConfig,
        dir: PathBuf,
        trainer: Trainer,
        state: Option<TrainState>,
        lock: checkpoint::RunLock,
    ) -> Result<Self> {
        let (mut loader, tokenizer) = open_loader(&config)?;
        let options = loader_options(&config, tokenizer.as_ref());
        let validation = (config.validate.every > 0 && !config.data.random)
            .then(|| ValidationSet::open(&config.data, &options))
            .transpose()?;
        let (mut step, mut tokens, mut last_step) = (0, 0, None);
        if let Some(state) = state {
            let position = serde_json::from_value(state.loader).map_err(|error| {
                TrainerError::Checkpoint { path: dir.clone(), reason: error.to_string() }
            })?;
            loader.restore(&position)?;
            (step, tokens, last_step) = (state.step, state.tokens, Some(state.last_step));
        }
        // Nothing is written before everything that can be wrong has been looked at.
        let resolved = dir.join("config.yaml");
        altiplano_data::atomic_file::write_atomically(
            &resolved,
            config.resolved_yaml(&dir)?.as_bytes(),
        )?;
        let log = dir.join("metrics.jsonl");
        let metrics = MetricsLog::open(&log, step)?;
        let history = read_metrics(&log)?;
        let events = config.metrics.tensorboard.then(|| EventFile::create(&dir, &history));
        let events = events.transpose()?;
        let last_line = history.steps.last();
        let unlogged = last_step.filter(|_| last_line.is_none_or(|line| line.step < step));
        Ok(Self {
            config,
            dir,
            trainer,
            loader,
            validation,
            tokenizer,
            metrics,
            events,
            history,
            unlogged,
            step,
            tokens,
            _lock: lock,
        })
    }

    fn finish(self) -> Result<TrainReport> {
        let device = self.trainer.model.device().clone();
        device::in_pool(&device, || self.steps())
    }

    /// The training loop.
    fn steps(mut self) -> Result<TrainReport> {
        let config = self.config.clone();
        let (first_step, last_step) = (self.step, config.total_steps());
        let schedule = Schedule::new(&config.optimizer, last_step);
        let started = Instant::now();
        let mut progress = TrainProgress::new(first_step, last_step, config.log_every);

        progress.println(&self.summary());
        if let Some(advice) = device::advice(self.trainer.model.device(), config.precision) {
            progress.println(&format!("note: {advice}"));
        }
        let peak = Peak::of(&config.device, self.trainer.model.device(), config.precision);
        let flops_per_token = config.model.train_flops_per_token(config.batch.seq_len);
        // A broken validation shows now, not after the first thousand steps.
        if first_step == 0 {
            self.validate_start(&progress)?;
        } else if let Some(set) = &self.validation {
            validate(&self.trainer, set, 1)?;
        }
        if let Some(metrics) = self.unlogged.take() {
            self.log(metrics, &progress)?;
            draw_loss(&self.dir, &config.name, &self.history)?;
        }
        while self.step < last_step && !INTERRUPTED.load(Ordering::Relaxed) {
            let step_started = Instant::now();
            let step = self.step + 1;
            let batches = next_batches(&config, &mut self.loader)?;
            let data_seconds = step_started.elapsed().as_secs_f64();
            let lr = schedule.lr(step);
            let outcome = self.trainer.step(step, &batches, lr)?;
            let step_seconds = step_started.elapsed().as_secs_f64();

            self.step = step;
            self.tokens += config.tokens_per_step();
            let tokens_per_second = config.tokens_per_step() as f64 / step_seconds;
            let metrics = StepMetrics {
                step,
                tokens: self.tokens,
                wall_time: wall_time(),
                loss: outcome.loss,
                lr,
                grad_norm: outcome.grad_norm,
                tokens_per_second,
                mfu: peak.map(|peak| peak.mfu(flops_per_token * tokens_per_second)),
                step_seconds,
                data_seconds,
                peak_memory_bytes: peak_memory_bytes(),
                skipped: outcome.skipped,
                validation: None,
            };
            let last = step == last_step;
            if due(config.checkpoint.every, step) || last {
                // Before the validation: whatever fails there, the state is saved.
                self.save(&metrics)?;
            }
            progress.step(self.log(metrics, &progress)?);
            if due(config.sample.every, step) {
                self.sample(&progress)?;
            }
            if due(config.checkpoint.every, step) || last {
                self.metrics.sync()?;
                draw_loss(&self.dir, &config.name, &self.history)?;
            }
        }
        let interrupted = self.step < last_step;
        if interrupted && let Some(last) = self.history.steps.last() {
            self.save(last)?;
            draw_loss(&self.dir, &config.name, &self.history)?;
        }
        progress.finish();
        self.report(first_step, started.elapsed().as_secs_f64(), interrupted)
    }

    /// Validates before the first step, if the run validates at all, and logs it.
    fn validate_start(&mut self, progress: &TrainProgress) -> Result<()> {
        let Some(set) = &self.validation else { return Ok(()) };
        let validation = validate(&self.trainer, set, self.validation_batches())?;
        progress.println(&format!("before the first step, {}", summary(&validation)));
        let metrics = InitialMetrics { wall_time: wall_time(), validation, ..Default::default() };
        self.metrics.append_initial(&metrics)?;
        if let Some(events) = &mut self.events {
            events.append_initial(&metrics)?;
        }
        self.history.initial = Some(metrics);
        Ok(())
    }

    /// Most batches that a validation reads of each source.
    fn validation_batches(&self) -> usize {
        self.config.validate.max_sequences.div_ceil(self.config.batch.micro_batch)
    }

    /// Validates after the step of `metrics`, if that is due and was not done, and logs the step.
    fn log(&mut self, mut metrics: StepMetrics, progress: &TrainProgress) -> Result<&StepMetrics> {
        let config = &self.config;
        let last = metrics.step == config.total_steps();
        if let Some(set) = &self.validation
            && metrics.validation.is_none()
            && (due(config.validate.every, metrics.step) || last)
        {
            let validation = validate(&self.trainer, set, self.validation_batches())?;
            progress.println(&summary(&validation));
            metrics.validation = Some(validation);
        }
        self.metrics.append(&metrics)?;
        if let Some(events) = &mut self.events {
            events.append(&metrics)?;
        }
        Ok(self.history.steps.push_mut(metrics))
    }

    /// What is about to be computed, for the user to check before it starts.
    fn summary(&self) -> String {
        let config = &self.config;
        let batch = &config.batch;
        let budget = config.total_steps() * config.tokens_per_step();
        let mut text = format!(
            "{}: {:.1}M parameters, {}, checkpointing {}, {} threads\n\
             {} steps of {} x {} x {} = {} tokens, {} in all, {:.3e} FLOPs",
            config.name,
            config.model.parameter_count() as f64 / 1e6,
            config.precision,
            config.activation_checkpointing,
            rayon::current_num_threads(),
            config.total_steps(),
            batch.grad_accum_steps,
            batch.micro_batch,
            batch.seq_len,
            config.tokens_per_step(),
            budget,
            config.model.train_flops_per_token(batch.seq_len) * budget as f64,
        );
        if !config.data.random {
            let table = MixtureTable {
                sources: &self.loader.report(),
                token_budget: budget,
                max_epochs: config.data.max_epochs,
            };
            text.push_str(&format!("\n{table}"));
        }
        text
    }

    /// Saves the state after the step just done, and prunes what is no longer kept.
    fn save(&self, last_step: &StepMetrics) -> Result<()> {
        let state = TrainState {
            step: self.step,
            tokens: self.tokens,
            loader: serde_json::to_value(self.loader.state()).map_err(|error| {
                TrainerError::RunFile { path: self.dir.clone(), reason: error.to_string() }
            })?,
            config_hash: self.config.numeric_hash(),
            loss_window: self.trainer.loss_window.clone(),
            grad_norm_window: self.trainer.grad_norm_window.clone(),
            last_step: last_step.clone(),
        };
        // A checkpoint counts on the lines before its step.
        self.metrics.sync()?;
        let (trainer, config) = (&self.trainer, &self.config);
        checkpoint::save(&self.dir, &state, |files| {
            trainer.save_tensors(files)?;
            let special = self.special_tokens();
            // As it was read at the start, whatever lies at its path by now.
            let tokenizer = self.tokenizer.as_ref().map(Tokenizer::model);
            hugging_face::write(files, &config.model, special, tokenizer)
        })?;
        checkpoint::prune(&self.dir, config.checkpoint.keep_last, config.checkpoint.keep_every)?;
        Ok(())
    }

    fn special_tokens(&self) -> hugging_face::SpecialTokens {
        let mut special = hugging_face::SpecialTokens::default();
        if let Some(tokenizer) = &self.tokenizer {
            special.bos = tokenizer.bos_id().unwrap_or(special.bos);
            special.eos = tokenizer.eos_id().unwrap_or(special.eos);
        }
        special
    }

    /// Prints what the model writes after each prompt.
    fn sample(&self, progress: &TrainProgress) -> Result<()> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(()) };
        let config = &self.config.sample;
        for prompt in &config.prompts {
            let mut sampler = Sampler::new(SamplerConfig {
                temperature: config.temperature as f32,
                seed: self.config.seed,
                ..SamplerConfig::default()
            });
            let model = &self.trainer.model;
            let max_tokens = config.max_tokens;
            let generated =
                generate_text(model, tokenizer, prompt, max_tokens, &[], &mut sampler, |_| {})?;
            progress.println(&format!("step {}: {prompt}{}", self.step, generated.text));
        }
        Ok(())
    }

    fn report(self, first_step: u64, seconds: f64, interrupted: bool) -> Result<TrainReport> {
        let done = (self.step - first_step) * self.config.tokens_per_step();
        Ok(TrainReport {
            checkpoint: checkpoint::latest(&self.dir)?,
            loss_curve: self.dir.join("loss.svg"),
            step: self.step,
            tokens: self.tokens,
            loss: self.history.steps.last().map_or(f64::NAN, |metrics| metrics.loss),
            tokens_per_second: done as f64 / seconds.max(1e-9),
            peak_memory_bytes: peak_memory_bytes(),
            interrupted,
            run: self.dir,
        })
    }
}
