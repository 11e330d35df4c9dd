//! A whole run: from a configuration, or from one of its checkpoints, to the last step.

mod pretraining;
mod start;
mod task;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use altiplano_model::device;
use altiplano_model::infer::{InferenceModel, SamplingParams};
use altiplano_model::params::Weights;

pub use pretraining::{loader_options, next_batches, open_loader};
pub use start::{resume, train};
pub(crate) use start::{resume_task, saved_settings, train_task};
pub(crate) use task::Task;

use crate::checkpoint::{self, CheckpointFiles, PartOfCheckpoint, TrainState};
use crate::config::TrainConfig;
use crate::error::{Result, TrainerError};
use crate::metrics::{
    History, InitialMetrics, MetricsLog, RankMetrics, StepMetrics, peak_memory_bytes, wall_time,
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

/// What ranks agree on before they write their parts of a checkpoint, for messages.
const DIRECTORY: &str = "the directory of the checkpoint";

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
    /// On the first rank, which writes them.
    records: Option<Records>,
    /// On the other ranks, of the steps of this process.
    history: History,
    /// The step just done, while its validation is missing: a crash in between loses its line, an
    /// interrupt leaves it to the process that goes on.
    unlogged: Option<StepMetrics>,
    step: u64,
    tokens: u64,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    /// The signal on which several ranks have agreed to end.
    signal: Option<Signal>,
    /// What the user is told first.
    opening_lines: Vec<String>,
}

/// What the first rank writes beside checkpoints.
struct Records {
    metrics: MetricsLog,
    events: Option<EventFile>,
    /// Ends with the process; keeps others out of the directory.
    _lock: checkpoint::RunLock,
}

fn interrupted() -> bool {
    signals::pending().is_some()
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
        let ranks = Arc::clone(self.trainer.ranks());
        let silent = !ranks.is_first();
        let mut progress = TrainProgress::new(first_step, last_step, config.log_every, silent);

        for line in &self.opening_lines {
            progress.println(line);
        }
        progress.println(&self.summary());
        if let Some(summary) = ranks.summary() {
            progress.println(&summary);
        }
        if let Some(advice) = device::advice(self.trainer.model.device(), config.precision) {
            progress.println(&format!("note: {advice}"));
        }
        let peak = match silent {
            true => None,
            false => Peak::of(&config.device, self.trainer.model.device(), config.precision),
        };
        ranks.set_during("the validation before the first step", true);
        let flops_per_token = self.task.flops_per_token();
        // A broken validation shows now, not after the first thousand steps.
        if first_step == 0 {
            self.validate_start(&progress)?;
        } else if self.task.validates() {
            self.task.validate(&self.trainer, 1, &interrupted)?;
        }
        self.look_for_signals()?;
        if let Some(metrics) = self.unlogged.take() {
            self.record(metrics, &progress)?;
            self.draw(&progress);
        }
        while self.step < last_step && self.unlogged.is_none() && !self.interrupted() {
            let step_started = Instant::now();
            let step = self.step + 1;
            let save = due(config.checkpoint.every, step) || step == last_step;
            let takes_long = save
                || step == first_step + 1
                || due(config.validate.every, step)
                || due(config.sample.every, step);
            ranks.set_during(format_args!("step {step}"), takes_long);
            let batches = self.task.next_step()?;
            let data_seconds = step_started.elapsed().as_secs_f64();
            let lr = schedule.lr(step);
            let outcome = self.trainer.step(step, &batches, lr)?;
            let tokens = outcome.tokens;
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
                mfu: peak.map(|peak| {
                    peak.mfu(flops_per_token * tokens_per_second / ranks.count() as f64)
                }),
                step_seconds,
                data_seconds,
                peak_memory_bytes: outcome
                    .ranks
                    .map_or_else(peak_memory_bytes, |told| told.peak_memory_bytes),
                skipped: outcome.skipped,
                ranks: outcome.ranks.map(|told| RankMetrics {
                    ranks: ranks.count(),
                    tensor: ranks.grid().tensor(),
                    data: ranks.grid().data(),
                    communication_seconds: told.communication_seconds,
                    slowest_rank: told.slowest,
                    slowest_over_mean: told.slowest_over_mean,
                }),
                validation: None,
            };
            self.signal = outcome.ranks.and_then(|told| told.signal);
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
                self.sync()?;
                self.draw(&progress);
            }
        }
        ranks.set_during("the end of the run", true);
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

    /// Whether the run is to end after the step it is in.
    fn interrupted(&self) -> bool {
        if self.trainer.ranks().is_alone() { interrupted() } else { self.signal.is_some() }
    }

    /// Asks all ranks for a signal that came while none of them was looking.
    fn look_for_signals(&mut self) -> Result<()> {
        let ranks = self.trainer.ranks();
        if !ranks.is_alone() && self.signal.is_none() {
            self.signal = ranks.signal()?;
        }
        Ok(())
    }

    /// Waits until all lines of the log are on the disk.
    fn sync(&self) -> Result<()> {
        self.records.as_ref().map_or(Ok(()), |records| records.metrics.sync())
    }

    /// Draws the loss curve. A picture that cannot be drawn is told and does not end the run.
    fn draw(&self, progress: &TrainProgress) {
        if self.records.is_none() {
            return;
        }
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
        if let Some(records) = &mut self.records {
            records.metrics.append_initial(&metrics)?;
            if let Some(events) = &mut records.events {
                events.append_initial(&metrics)?;
            }
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
            self.look_for_signals()?;
        }
        if let Some(records) = &mut self.records {
            records.metrics.append(&metrics)?;
            if let Some(events) = &mut records.events {
                events.append(&metrics)?;
            }
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
        let found = self.trainer.ranks().first_finds("the best checkpoint", || {
            let mut candidates = checkpoint::list(&self.dir)?;
            if self.saved != Some(self.step) {
                candidates.push((self.step, PathBuf::new()));
            }
            let best = checkpoint::best_of(&candidates, &self.history.steps);
            Ok(best.map(|(step, _)| step.to_string()).unwrap_or_default())
        })?;
        if found.parse() == Ok(self.step) && self.saved != Some(self.step) {
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

    /// Saves the state after the step just done, and prunes what is no longer kept. All ranks do it
    /// together, and go on only when the checkpoint is whole.
    fn save(&mut self, last_step: &StepMetrics) -> Result<()> {
        let ranks = self.trainer.ranks();
        let saved = match ranks.is_first() {
            true => self.write_checkpoint(last_step),
            false => self.write_part(),
        };
        match saved {
            Err(error) if error.is_agreed() => return Err(error),
            saved => ranks.agree("the checkpoint", saved)?,
        }
        self.saved = Some(self.step);
        self.prune()
    }

    /// Writes the checkpoint on the first rank, with what the others write of it.
    fn write_checkpoint(&self, last_step: &StepMetrics) -> Result<()> {
        let ranks = self.trainer.ranks();
        let mut is_open = false;
        let saved = self.state(last_step).and_then(|state| {
            checkpoint::save(&self.dir, &state, |files| {
                is_open = true;
                ranks.agree(DIRECTORY, Ok(()))?;
                let written = self.trainer.save_tensors(files, self.file_bytes());
                self.take_parts(files, written)?;
                self.task.write_model_files(files)
            })
        });
        match saved {
            Err(error) if !is_open => ranks.agree(DIRECTORY, Err(error)),
            saved => saved.map(drop),
        }
    }

    /// Writes what falls to another rank than the first.
    fn write_part(&self) -> Result<()> {
        let ranks = self.trainer.ranks();
        ranks.agree(DIRECTORY, Ok(()))?;
        let mut files = CheckpointFiles::of_other_rank(&self.dir, self.step);
        let written = self.trainer.save_tensors(&mut files, self.file_bytes());
        let told = match written {
            Err(error) if error.is_from_exchange() => return Err(error),
            written => PartOfCheckpoint {
                files: files.digests().clone(),
                error: written.err().map(|error| error.with_causes()),
            },
        };
        ranks.gather_texts("the files of the checkpoint", &told.to_json()).map(drop)
    }

    /// Adds what the other ranks have written to the checkpoint of the first.
    fn take_parts(&self, files: &mut CheckpointFiles, written: Result<()>) -> Result<()> {
        let ranks = self.trainer.ranks();
        if ranks.is_alone() {
            return written;
        }
        if let Err(error) = &written
            && error.is_from_exchange()
        {
            return written;
        }
        let all = ranks.gather_texts("the files of the checkpoint", "")?;
        written?;
        for (rank, told) in all.iter().enumerate().skip(1) {
            let name = ranks.name_of(rank);
            let part = PartOfCheckpoint::from_json(told, &self.dir)?;
            if let Some(message) = part.error {
                return Err(TrainerError::OnRank { rank: name, message, usage: false });
            }
            files.add(&name, part.files)?;
        }
        Ok(())
    }

    fn file_bytes(&self) -> u64 {
        self.config.parallel.file_bytes
    }

    /// What a checkpoint keeps beside the tensors.
    fn state(&self, last_step: &StepMetrics) -> Result<TrainState> {
        // A checkpoint counts on the lines before its step.
        self.sync()?;
        Ok(TrainState {
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
        })
    }

    /// Deletes the checkpoints that are no longer kept.
    fn prune(&self) -> Result<()> {
        if self.records.is_none() {
            return Ok(());
        }
        let config = &self.config.checkpoint;
        let all = checkpoint::list(&self.dir)?;
        let best = checkpoint::best_of(&all, &self.history.steps).filter(|_| config.keep_best);
        let best = best.map(|(step, _)| *step);
        checkpoint::prune(&self.dir, config.keep_last, config.keep_every, best)?;
        Ok(())
    }

    /// Prints what the model writes after each prompt, on the first rank.
    fn sample(&mut self, progress: &TrainProgress) -> Result<()> {
        // Every rank gives its part.
        if let Some(weights) = self.trainer.whole_weights()?
            && self.records.is_some()
        {
            self.write_samples(&weights, progress)?;
        }
        self.look_for_signals()
    }

    fn write_samples(&self, weights: &Weights, progress: &TrainProgress) -> Result<()> {
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
            let config = self.trainer.model.config.clone();
            let model = InferenceModel::from_weights(config, weights)?;
            let generated = generate_text(&model, tokenizer, prompt, &options, |_| !interrupted())?;
            progress.println(&format!("step {}: {prompt}{}", self.step, generated.text));
        }
        Ok(())
    }

    fn report(self, first_tokens: u64, seconds: f64, interrupted: bool) -> Result<TrainReport> {
        let done = self.tokens - first_tokens;
        let alone = self.trainer.ranks().is_alone();
        let signal = if alone { signals::pending() } else { self.signal };
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
            signal: signal.filter(|_| interrupted),
            run: self.dir,
        })
    }
}
