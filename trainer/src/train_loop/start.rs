//! How a run begins: from its first step, or from one of its checkpoints.

use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::write_atomically;
use altiplano_data::{Loader, LoaderOptions, ProgressMode, Tokenizer, ValidationSet};
use altiplano_model::device;
use burn::tensor::Device;

use super::{Run, TrainReport};
use crate::change_log::{self, CHANGES_FILE};
use crate::checkpoint::{self, RunLock, TrainState};
use crate::config::{Change, LrSchedule, TrainConfig, load};
use crate::error::{Result, TrainerError};
use crate::metrics::{MetricsLog, last_logged_step, read_metrics};
use crate::starting_weights::starting_weights;
use crate::tensorboard::EventFile;
use crate::train_step::Trainer;

const CONFIG_FILE: &str = "config.yaml";
const METRICS_FILE: &str = "metrics.jsonl";

/// The checkpoint that a run goes on from.
struct Resumed {
    state: TrainState,
    /// What changed since it was written.
    changes: Vec<Change>,
    /// The step in the name of its directory, which someone may have renamed.
    directory_step: u64,
}

/// Trains from the first step. A run of that name must not have a checkpoint yet.
///
/// # Errors
/// Whatever a step fails with; what was saved before is intact.
pub fn train(config: TrainConfig) -> Result<TrainReport> {
    let device = device::select(&config.device)?;
    let dir = config.run_dir();
    let lock = checkpoint::lock(&dir)?;
    checkpoint::recover(&dir, &lock)?;
    if !checkpoint::list(&dir)?.is_empty() {
        return Err(TrainerError::RunExists { path: dir });
    }
    start(config, dir, lock, &device)
}

/// Goes on from a checkpoint of `config`'s run, bit for bit as if it had not stopped; from the first
/// step when the run has not finished a checkpoint yet.
///
/// `overrides` are those in `config`, for the messages about them.
///
/// # Errors
/// When the checkpoint chosen is not there or a file of it is damaged, when a setting differs that
/// may not, or when the corpus is not the one the run was started with.
pub fn resume(
    mut config: TrainConfig,
    choice: checkpoint::Choice,
    overrides: &[String],
) -> Result<TrainReport> {
    let device = device::select(&config.device)?;
    let dir = config.run_dir();
    let lock = checkpoint::lock(&dir)?;
    checkpoint::recover(&dir, &lock)?;
    let Some((step, path)) = checkpoint::choose(&dir, choice)? else {
        return start(config, dir, lock, &device);
    };
    let state =
        checkpoint::verify(&path).map_err(|error| name_the_one_before(error, &dir, step))?;
    let saved = saved_config(&path, &state)?;
    let changes = config.resumed_from(&saved, &dir, overrides)?;
    if config.total_steps() < state.step {
        return Err(TrainerError::Usage {
            message: format!(
                "steps: the run is at step {} already, found a length of {}; --checkpoint goes \
                 back to an earlier step, or start a new run",
                state.step,
                config.total_steps()
            ),
        });
    }
    let trainer = Trainer::resume(&config, &path, &state, &device)?;
    let mut lines = vec![format!("resumes from step {step}: {}", path.display())];
    lines.extend(changes.iter().map(|change| format!("from step {} on, {change}", step + 1)));
    lines.extend(decay_advice(&config, &changes));
    if config.total_steps() == state.step {
        lines.push(format!(
            "all {step} steps are done; a larger `steps` or `tokens` extends the run"
        ));
    }
    let resumed = Resumed { state, changes, directory_step: step };
    Run::open(config, dir, trainer, Some(resumed), lock, lines)?.train()
}

/// Trains from the first step in a directory without a finished checkpoint.
fn start(config: TrainConfig, dir: PathBuf, lock: RunLock, device: &Device) -> Result<TrainReport> {
    let mut lines = Vec::new();
    if dir.join(CONFIG_FILE).exists() {
        let dir = dir.display();
        lines.push(format!("{dir} has no finished checkpoint: the run starts from step 0"));
    }
    let (weights, about) = starting_weights(&config, device)?;
    lines.extend(about);
    let trainer = Trainer::start_from(&config, weights)?;
    Run::open(config, dir, trainer, None, lock, lines)?.train()
}

/// The configuration a checkpoint was written with.
fn saved_config(path: &Path, state: &TrainState) -> Result<TrainConfig> {
    let fail = |reason: String| TrainerError::Checkpoint { path: path.to_path_buf(), reason };
    if state.config.is_null() {
        return Err(fail(
            "its format version, 1, does not hold the settings of its run: resume it with the \
             altiplano that wrote it, or start a new run from its weights by init_from"
                .into(),
        ));
    }
    serde_json::from_value(state.config.clone()).map_err(|error| {
        fail(format!(
            "was written by another version of altiplano, whose settings differ: {error}; resume \
             it with that version, or start a new run from its weights by init_from"
        ))
    })
}

/// Says how to go on when the checkpoint of `step` is damaged.
fn name_the_one_before(error: TrainerError, run_dir: &Path, step: u64) -> TrainerError {
    let TrainerError::Checkpoint { path, reason } = error else { return error };
    let advice = match checkpoint::before(run_dir, step) {
        Ok(Some(before)) => {
            format!("--checkpoint {} goes back to the one before", checkpoint::step_name(before))
        }
        _ => "there is none before: remove it, and the run starts from step 0".into(),
    };
    TrainerError::Checkpoint { path, reason: format!("{reason}; {advice}") }
}

/// What a longer run should know of a decay that ends before it.
fn decay_advice(config: &TrainConfig, changes: &[Change]) -> Option<String> {
    let (length, end) = (config.total_steps(), config.decay_steps());
    let longer = changes.iter().any(|change| change.key == "steps" || change.key == "tokens");
    let decays = config.optimizer.schedule != LrSchedule::Constant;
    (longer && decays && end < length).then(|| {
        format!(
            "note: the learning rate has its lowest value from step {end} on; \
             optimizer.decay_steps={length} makes it fall until the new end"
        )
    })
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

impl Run {
    /// Opens what a run reads and writes; `lines` are for the user.
    fn open(
        config: TrainConfig,
        dir: PathBuf,
        trainer: Trainer,
        resumed: Option<Resumed>,
        lock: RunLock,
        mut lines: Vec<String>,
    ) -> Result<Self> {
        let (mut loader, tokenizer) = open_loader(&config)?;
        let options = loader_options(&config, tokenizer.as_ref());
        let validation = (config.validate.every > 0 && !config.data.random)
            .then(|| ValidationSet::open(&config.data, &options))
            .transpose()?;
        let (mut step, mut tokens, mut last_step, mut saved) = (0, 0, None, None);
        let (mut changes, mut directory_step) = (Vec::new(), 0);
        if let Some(resumed) = resumed {
            let state = resumed.state;
            let position = serde_json::from_value(state.loader).map_err(|error| {
                TrainerError::Checkpoint { path: dir.clone(), reason: error.to_string() }
            })?;
            loader.restore(&position)?;
            (step, tokens, last_step) = (state.step, state.tokens, Some(state.last_step));
            (saved, changes) = (Some(step), resumed.changes);
            directory_step = resumed.directory_step;
        }
        let yaml = config.resolved_yaml(&dir)?;
        let log = dir.join(METRICS_FILE);
        // Nothing is changed before everything that can be wrong has been looked at.
        lines.extend(set_later_checkpoints_aside(&dir, directory_step, &lock)?);
        if let Some(last) = last_logged_step(&log)?.filter(|&last| last > step) {
            lines.push(match step + 1 == last {
                true => format!("step {last} of metrics.jsonl is done again"),
                false => format!("steps {} to {last} of metrics.jsonl are done again", step + 1),
            });
        }
        let metrics = MetricsLog::open(&log, step)?;
        let history = read_metrics(&log)?;
        let events = config.metrics.tensorboard.then(|| EventFile::create(&dir, &history));
        let events = events.transpose()?;
        change_log::record(&dir, step, &changes)?;
        // The last of them, because it flushes the directory with all its files.
        write_atomically(&dir.join(CONFIG_FILE), yaml.as_bytes())?;
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
            saved,
            opening_lines: lines,
            _lock: lock,
        })
    }
}

/// Makes a run of its own of the checkpoints after `step`, where the run now goes on. Gives the line
/// that says so.
fn set_later_checkpoints_aside(dir: &Path, step: u64, lock: &RunLock) -> Result<Option<String>> {
    let config_of = |branch: &Path| {
        let mut config: TrainConfig = load(&dir.join(CONFIG_FILE), &[])?;
        if let (Some(parent), Some(name)) = (branch.parent(), branch.file_name()) {
            config.output = parent.to_path_buf();
            config.name = name.to_string_lossy().into_owned();
        }
        config.resolved_yaml(branch)
    };
    let files = [METRICS_FILE, CHANGES_FILE];
    let aside = checkpoint::set_aside(dir, step, &files, config_of, lock)?;
    Ok(aside.map(|(branch, steps)| {
        let names: Vec<String> = steps.into_iter().map(checkpoint::step_name).collect();
        format!(
            "the later checkpoints ({}) and their metrics are now the run {}",
            names.join(", "),
            branch.display()
        )
    }))
}
