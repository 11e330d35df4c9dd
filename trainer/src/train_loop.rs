//! A whole run: from a configuration, or from one of its checkpoints, to the last step.

mod pretraining;
mod start;
mod task;

use std::path::PathBuf;
use std::time::Instant;

use altiplano_data::Batch;
use altiplano_model::device;
use altiplano_model::infer::{InferenceModel, SamplingParams};

pub use pretraining::{loader_options, next_batches, open_loader};
pub use start::{resume, train};
pub(crate) use start::{resume_task, saved_settings, train_task};
pub(crate) use task::Task;

use crate::checkpoint::{self, TrainState};
use crate::config::TrainConfig;
use crate::error::{Result, TrainerError};
use crate::metrics::{
    History, InitialMetrics, MetricsLog, StepMetrics, peak_memory_bytes, wall_time,
};
use crate::peak::Peak;
use crate::plot::draw_loss;
use crate::progress::TrainProgress;
use crate::schedule::Schedule;
use crate::signals::{self, Signal};
use crate::tensorboard::EventFile;
use crate::text_generation::{GenerationOptions, generate_text};
use crate::train_step::Trainer;
use crate::validation::summary;

/// The settings of a run, in its directory.
pub(crate) const CONFIG_FILE: &str = "config.yaml";

/// How a run ended.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TrainReport {
    /// Directory of the run.
    pub run: PathBuf,
    /// Its newest checkpoint; none when it was interrupted before its first step was done.
    pub checkpoint: Option<PathBuf>,
    /// The checkpoint with the lowest validation loss, where `checkpoint.keep_best` asks for it.
    pub best_checkpoint: Option<PathBuf>,
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
    /// Whether the run was interrupted before its last step was done.
    pub interrupted: bool,
    /// The signal that interrupted it.
    pub signal: Option<Signal>,
}

/// A run in progress.
struct Run {
    config: TrainConfig,
    dir: PathBuf,
    trainer: Trainer,
    task: Box<dyn Task>,
    metrics: MetricsLog,
    events: Option<EventFile>,
    history: History,
    /// The step just done, while its validation is missing: a crash in between loses its line, an
    /// interrupt leaves it to the process that goes on.
    unlogged: Option<StepMetrics>,
    step: u64,
    tokens: u64,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    /// What the user is told first.
    opening_lines: Vec<String>,
    /// Ends with the process; keeps others out of the directory.
    _lock: checkpoint::RunLock,
}

fn interrupted() -> bool {
    signals::pending().is_some()
}

/// Tokens of the micro-batches of a step, without padding.
fn tokens_of(batches: &[Batch]) -> u64 {
    let origins = batches.iter().flat_map(|batch| &batch.origins);
    origins.map(|origin| origin.tokens as u64).sum()
}

/// Whether something that is done `every` so many steps is done after `step`; never if 0.
fn due(every: u64, step: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl Run {
    /// Trains on the threads of the device.
    fn train(self) -> Result<TrainReport> {
        let device = self.trainer.model.device().clone();
        device::in_pool(&device, || self.train_loop())
    }

    /// Trains to the last step, or until a signal comes.
    fn train_loop(mut self) -> Result<TrainReport> {
        let config = self.config.clone();
        let (first_step, last_step) = (self.step, config.total_steps());
        let first_tokens = self.tokens;
        let schedule = Schedule::new(&config.optimizer, last_step);
        let started = Instant::now();
        let mut progress = TrainProgress::new(first_step, last_step, config.log_every);

        for line in &self.opening_lines {
            progress.println(line);
        }
        progress.println(&self.summary());
        if let Some(advice) = device::advice(self.trainer.model.device(), config.precision) {
            progress.println(&format!("note: {advice}"));
        }
        let peak = Peak::of(&config.device, self.trainer.model.device(), config.precision);
        let flops_per_token = self.task.flops_per_token();
        // A broken validation shows now, not after the first thousand steps.
        if first_step == 0 {
            self.validate_start(&progress)?;
        } else if self.task.validates() {
            self.task.validate(&self.trainer, 1, &interrupted)?;
        }
        if let Some(metrics) = self.unlogged.take() {
            self.record(metrics, &progress)?;
            self.draw(&progress);
        }
        while self.step < last_step && self.unlogged.is_none() && !interrupted() {
            let step_started = Instant::now();
            let step = self.step + 1;
            let batches = self.task.next_step()?;
            let tokens = tokens_of(&batches);
            let data_seconds = step_started.elapsed().as_secs_f64();
            let lr = schedule.lr(step);
            let outcome = self.trainer.step(step, &batches, lr)?;
            let step_seconds = step_started.elapsed().as_secs_f64();

            self.step = step;
            self.tokens += tokens;
            let tokens_per_second = tokens as f64 / step_seconds;
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
            let save = due(config.checkpoint.every, step) || step == last_step;
            if save {
                // Before the validation: whatever fails there, the state is saved.
                self.save(&metrics)?;
            }
            if let Some(metrics) = self.record(metrics, &progress)? {
                progress.step(metrics);
            }
            if due(config.sample.every, step) {
                self.sample(&progress)?;
            }
            if save {
                self.metrics.sync()?;
                self.draw(&progress);
            }
        }
        let ended_early = self.step < last_step || self.unlogged.is_some();
        if ended_early
            && self.saved != Some(self.step)
            && let Some(last) = self.last_metrics().cloned()
        {
            self.save(&last)?;
            self.draw(&progress);
        }
        progress.finish();
        self.report(first_tokens, started.elapsed().as_secs_f64(), ended_early)
    }

    /// Draws the loss curve. A picture that cannot be drawn is told and does not end the run.
    fn draw(&self, progress: &TrainProgress) {
        if let Err(error) = draw_loss(&self.dir, &self.config.name, &self.history) {
            progress.println(&format!("warning: {error}; the run goes on"));
        }
    }

    /// Metrics of the newest step.
    fn last_metrics(&self) -> Option<&StepMetrics> {
        self.unlogged.as_ref().or(self.history.steps.last())
    }

    /// Validates before the first step, if the run validates at all, and logs it.
    fn validate_start(&mut self, progress: &TrainProgress) -> Result<()> {
        if !self.task.validates() {
            return Ok(());
        }
        let sequences = self.config.validate.max_sequences;
        let Some(validation) = self.task.validate(&self.trainer, sequences, &interrupted)? else {
            return Ok(());
        };
        progress.println(&format!("before the first step, {}", summary(&validation)));
        let metrics = InitialMetrics { wall_time: wall_time(), validation, ..Default::default() };
        self.metrics.append_initial(&metrics)?;
        if let Some(events) = &mut self.events {
            events.append_initial(&metrics)?;
        }
        self.history.initial = Some(metrics);
        Ok(())
    }

    /// Validates after the step of `metrics`, if that is due and was not done, and logs the step.
    /// Interrupted in the validation it leaves the step unlogged and gives `None`.
    fn record(
        &mut self,
        mut metrics: StepMetrics,
        progress: &TrainProgress,
    ) -> Result<Option<&StepMetrics>> {
        let config = &self.config;
        let last = metrics.step == config.total_steps();
        if self.task.validates()
            && metrics.validation.is_none()
            && (due(config.validate.every, metrics.step) || last)
        {
            let sequences = self.config.validate.max_sequences;
            let Some(validation) = self.task.validate(&self.trainer, sequences, &interrupted)?
            else {
                self.unlogged = Some(metrics);
                return Ok(None);
            };
            progress.println(&summary(&validation));
            metrics.validation = Some(validation);
        }
        self.metrics.append(&metrics)?;
        if let Some(events) = &mut self.events {
            events.append(&metrics)?;
        }
        self.history.steps.push(metrics);
        self.keep_best()?;
        Ok(self.history.steps.last())
    }

    /// Sees to it that there is a checkpoint of the step just logged if its validation loss is the
    /// lowest so far, and that the one it replaces as the best is not kept for ever.
    fn keep_best(&mut self) -> Result<()> {
        let Some(last) = self.history.steps.last().filter(|line| line.validation.is_some()) else {
            return Ok(());
        };
        if !self.config.checkpoint.keep_best {
            return Ok(());
        }
        let mut candidates = checkpoint::list(&self.dir)?;
        if self.saved != Some(self.step) {
            candidates.push((self.step, PathBuf::new()));
        }
        let best = checkpoint::best_of(&candidates, &self.history.steps);
        if best.is_some_and(|(step, _)| *step == self.step) && self.saved != Some(self.step) {
            let last = last.clone();
            return self.save(&last);
        }
        self.prune()
    }

    /// What is about to be computed, for the user to check before it starts.
    fn summary(&self) -> String {
        let config = &self.config;
        format!(
            "{}: {:.1}M parameters, {}, checkpointing {}, {} threads\n{}",
            config.name,
            config.model.parameter_count() as f64 / 1e6,
            config.precision,
            config.activation_checkpointing,
            rayon::current_num_threads(),
            self.task.summary(),
        )
    }

    /// Saves the state after the step just done, and prunes what is no longer kept.
    fn save(&mut self, last_step: &StepMetrics) -> Result<()> {
        let state = TrainState {
            step: self.step,
            tokens: self.tokens,
            loader: self.task.position().map_err(|error| TrainerError::RunFile {
                path: self.dir.clone(),
                reason: error.to_string(),
            })?,
            config: self.task.settings(&self.dir)?,
            loss_window: self.trainer.loss_window.clone(),
            grad_norm_window: self.trainer.grad_norm_window.clone(),
            last_step: last_step.clone(),
        };
        // A checkpoint counts on the lines before its step.
        self.metrics.sync()?;
        let (trainer, task) = (&self.trainer, &self.task);
        checkpoint::save(&self.dir, &state, |files| {
            trainer.save_tensors(files)?;
            task.write_model_files(files)
        })?;
        self.saved = Some(self.step);
        self.prune()
    }

    /// Deletes the checkpoints that are no longer kept.
    fn prune(&self) -> Result<()> {
        let config = &self.config.checkpoint;
        let all = checkpoint::list(&self.dir)?;
        let best = checkpoint::best_of(&all, &self.history.steps).filter(|_| config.keep_best);
        let best = best.map(|(step, _)| *step);
        checkpoint::prune(&self.dir, config.keep_last, config.keep_every, best)?;
        Ok(())
    }

    /// Prints what the model writes after each prompt.
    fn sample(&self, progress: &TrainProgress) -> Result<()> {
        let Some(tokenizer) = self.task.tokenizer() else { return Ok(()) };
        let config = &self.config.sample;
        for prompt in &config.prompts {
            if interrupted() {
                break;
            }
            let sampling = SamplingParams {
                temperature: config.temperature as f32,
                top_p: 0.95,
                seed: self.config.seed,
                max_tokens: config.max_tokens,
                ..SamplingParams::default()
            };
            let end_tokens = tokenizer.eos_id().into_iter().collect();
            let options =
                GenerationOptions { sampling, end_tokens, ..GenerationOptions::default() };
            let model = &self.trainer.model;
            let model = InferenceModel::from_weights(model.config.clone(), &model.weights)?;
            let generated = generate_text(&model, tokenizer, prompt, &options, |_| !interrupted())?;
            progress.println(&format!("step {}: {prompt}{}", self.step, generated.text));
        }
        Ok(())
    }

    fn report(self, first_tokens: u64, seconds: f64, interrupted: bool) -> Result<TrainReport> {
        let done = self.tokens - first_tokens;
        let checkpoints = checkpoint::list(&self.dir)?;
        let best = checkpoint::best_of(&checkpoints, &self.history.steps)
            .filter(|_| self.config.checkpoint.keep_best);
        Ok(TrainReport {
            best_checkpoint: best.map(|(_, path)| path.clone()),
            checkpoint: checkpoints.last().map(|(_, path)| path.clone()),
            loss_curve: self.dir.join("loss.svg"),
            step: self.step,
            tokens: self.tokens,
            loss: self.last_metrics().map_or(f64::NAN, |metrics| metrics.loss),
            tokens_per_second: done as f64 / seconds.max(1e-9),
            peak_memory_bytes: peak_memory_bytes(),
            interrupted,
            signal: signals::pending().filter(|_| interrupted),
            run: self.dir,
        })
    }
}
