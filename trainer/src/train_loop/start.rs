//! How a run begins: from its first step, or from one of its checkpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use altiplano_data::Tokenizer;
use altiplano_data::atomic_file::write_atomically;
use altiplano_model::device;
use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::pretraining::Pretraining;
use super::task::Task;
use super::{CONFIG_FILE, Records, Run, TrainReport};
use crate::change_log::{self, CHANGES_FILE};
use crate::checkpoint::{self, RunLock, TrainState};
use crate::config::{Change, LrSchedule, ParallelConfig, TrainConfig};
use crate::error::{Result, TrainerError};
use crate::eval_tasks::Evaluation;
use crate::metrics::{History, MetricsLog, last_logged_step, read_metrics};
use crate::tensorboard::EventFile;
use crate::train_step::Trainer;
use crate::world::Ranks;

const METRICS_FILE: &str = "metrics.jsonl";

/// The checkpoint that a run goes on from.
struct Resumed {
    state: TrainState,
    /// What changed since it was written.
    changes: Vec<Change>,
    /// The step in the name of its directory, which someone may have renamed.
    directory_step: u64,
    path: PathBuf,
}

/// Trains from the first step, on these ranks. A run of that name must not have a checkpoint yet.
///
/// # Errors
/// Whatever a step fails with; what was saved before is intact.
pub fn train(config: TrainConfig, ranks: &Arc<Ranks>) -> Result<TrainReport> {
    train_task(Box::new(Pretraining::new(config)), ranks)
}

/// [`train`] for a run of any kind.
///
/// # Errors
/// As [`train`].
pub(crate) fn train_task(task: Box<dyn Task>, ranks: &Arc<Ranks>) -> Result<TrainReport> {
    let device =
        ranks.agree("the device", device::select(&task.config().device).map_err(Into::into))?;
    let dir = task.config().run_dir();
    let lock = lock_directory(ranks, &dir, || match checkpoint::list(&dir)?.is_empty() {
        true => Ok(()),
        false => Err(TrainerError::RunExists { path: dir.clone() }),
    })?;
    start(task, dir.clone(), lock, &device, ranks)
}

/// Keeps other processes out of the directory of a run and brings it back in order, on the first of
/// the ranks; `check` looks whether it may be used.
fn lock_directory(
    ranks: &Ranks,
    dir: &Path,
    check: impl FnOnce() -> Result<()>,
) -> Result<Option<RunLock>> {
    let lock = || {
        let lock = checkpoint::lock(dir)?;
        checkpoint::recover(dir, &lock)?;
        check()?;
        Ok(Some(lock))
    };
    let locked = if ranks.is_first() { lock() } else { Ok(None) };
    ranks.agree("the directory of the run", locked)
}

/// Goes on from a checkpoint of `config`'s run, bit for bit as if it had not stopped; from the first
/// step when the run has not finished a checkpoint yet. The ranks may be others than those that wrote
/// it.
///
/// `overrides` are those in `config`, for the messages about them.
///
/// # Errors
/// When the checkpoint chosen is not there or a file of it is damaged, when a setting differs that
/// may not, or when the corpus is not the one the run was started with.
pub fn resume(
    config: TrainConfig,
    choice: checkpoint::Choice,
    overrides: &[String],
    ranks: &Arc<Ranks>,
) -> Result<TrainReport> {
    resume_task(Box::new(Pretraining::new(config)), choice, overrides, ranks)
}

/// [`resume`] for a run of any kind.
///
/// # Errors
/// As [`resume`].
pub(crate) fn resume_task(
    mut task: Box<dyn Task>,
    choice: checkpoint::Choice,
    overrides: &[String],
    ranks: &Arc<Ranks>,
) -> Result<TrainReport> {
    let device =
        ranks.agree("the device", device::select(&task.config().device).map_err(Into::into))?;
    let dir = task.config().run_dir();
    let lock = lock_directory(ranks, &dir, || Ok(()))?;
    let chosen = ranks.first_finds("the checkpoint", || {
        let chosen = checkpoint::choose(&dir, choice, &task.config().checkpoint.best_by)?;
        Ok(chosen.map(|(step, _)| step.to_string()).unwrap_or_default())
    })?;
    let Ok(step) = chosen.parse() else {
        return start(task, dir, lock, &device, ranks);
    };
    let opened = open_checkpoint(&mut *task, &dir, step, overrides, &device, ranks);
    let (trainer, resumed) = ranks.agree("the checkpoint", opened)?;
    let Resumed { state, changes, path, .. } = &resumed;
    let config = task.config();
    let mut lines = vec![format!("resumes from step {step}: {}", path.display())];
    lines.extend(changes.iter().map(|change| format!("from step {} on, {change}", step + 1)));
    let length_keys = task.length_keys();
    lines.extend(decay_advice(config, length_keys, changes));
    lines.extend(other_layout(&state.config, config, ranks));
    if config.total_steps() == state.step {
        let keys = length_keys.join("` or `");
        lines.push(format!("all {step} steps are done; a larger `{keys}` extends the run"));
    }
    Run::open(task, dir, trainer, Some(resumed), lock, lines)?.train()
}

/// Reads the checkpoint of `step`, of which the first rank checks every byte.
fn open_checkpoint(
    task: &mut dyn Task,
    dir: &Path,
    step: u64,
    overrides: &[String],
    device: &Device,
    ranks: &Arc<Ranks>,
) -> Result<(Trainer, Resumed)> {
    let found = checkpoint::list(dir)?.into_iter().find(|(found, _)| *found == step);
    let Some((_, path)) = found else {
        // The first rank has just found it.
        return Err(TrainerError::Checkpoint {
            path: dir.to_path_buf(),
            reason: format!(
                "no finished checkpoint {} here, which rank 0 finds: the directory of a run must be \
                 shared between all hosts",
                checkpoint::step_name(step)
            ),
        });
    };
    let state = match ranks.is_first() {
        true => checkpoint::verify(&path).map_err(|error| name_the_one_before(error, dir, step))?,
        false => checkpoint::read_state(&path)?,
    };
    let changes = task.resumed_from(state.config.clone(), &path, dir, overrides)?;
    let config = task.config();
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
    let trainer = task.resume(&path, &state, device, ranks)?;
    Ok((trainer, Resumed { state, changes, directory_step: step, path }))
}

/// Says what another layout than the one that the checkpoint was written with means for the numbers.
fn other_layout(saved: &Value, config: &TrainConfig, ranks: &Ranks) -> Option<String> {
    let before: ParallelConfig = serde_json::from_value(saved.get("parallel")?.clone()).ok()?;
    let now = &config.parallel;
    let copies = ranks.grid().data();
    let same = before.data == Some(copies) || (before.data.is_none() && ranks.is_alone());
    let same_parts = before.tensor == now.tensor;
    if before.shard == now.shard && same && same_parts {
        return None;
    }
    let ordered = before.shard.splits_gradients() && now.shard.splits_gradients() && same_parts;
    Some(format!(
        "tensor {} x data {copies}, shard {}: same numbers {} whatever layout wrote the checkpoint",
        ranks.grid().tensor(),
        now.shard,
        if ordered { "bit for bit" } else { "to rounding" },
    ))
}

/// Trains from the first step in a directory without a finished checkpoint.
fn start(
    task: Box<dyn Task>,
    dir: PathBuf,
    lock: Option<RunLock>,
    device: &Device,
    ranks: &Arc<Ranks>,
) -> Result<TrainReport> {
    let mut lines = Vec::new();
    if dir.join(CONFIG_FILE).exists() {
        let dir = dir.display();
        lines.push(format!("{dir} has no finished checkpoint: the run starts from step 0"));
    }
    let (trainer, about) = ranks.agree("the starting weights", task.start(device, ranks))?;
    lines.extend(about);
    Run::open(task, dir, trainer, None, lock, lines)?.train()
}

/// The settings that a checkpoint was written with.
///
/// # Errors
/// When it does not hold them, or they are those of another version or of another kind of run.
pub(crate) fn saved_settings<T: DeserializeOwned>(saved: Value, path: &Path) -> Result<T> {
    let fail = |reason: String| TrainerError::Checkpoint { path: path.to_path_buf(), reason };
    if saved.is_null() {
        return Err(fail(
            "its format version, 1, does not hold the settings of its run: resume it with the \
             altiplano that wrote it, or start a new run from its weights by init_from"
                .into(),
        ));
    }
    serde_json::from_value(saved).map_err(|error| {
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
fn decay_advice(config: &TrainConfig, length_keys: &[&str], changes: &[Change]) -> Option<String> {
    let (length, end) = (config.total_steps(), config.decay_steps());
    let longer = changes.iter().any(|change| length_keys.contains(&change.key.as_str()));
    let decays = config.optimizer.schedule != LrSchedule::Constant;
    (longer && decays && end < length).then(|| {
        format!(
            "note: the learning rate has its lowest value from step {end} on; \
             optimizer.decay_steps={length} makes it fall until the new end"
        )
    })
}

impl Run {
    /// Opens what a run reads and, on the first rank, writes; `lines` are for the user.
    fn open(
        mut task: Box<dyn Task>,
        dir: PathBuf,
        trainer: Trainer,
        resumed: Option<Resumed>,
        lock: Option<RunLock>,
        mut lines: Vec<String>,
    ) -> Result<Self> {
        let ranks = Arc::clone(trainer.ranks());
        let mut open = || {
            task.open(&ranks)?;
            match &resumed {
                Some(resumed) => task.restore(resumed.state.loader.clone(), &dir),
                None => Ok(()),
            }
        };
        let opened = open();
        ranks.agree("the data", opened)?;
        let config = task.config().clone();
        let evaluation = Evaluation::open(&config, &ranks)?;
        let checkpoint = resumed.as_ref().map(|resumed| resumed.path.as_path());
        agree_on_input(&*task, &dir, checkpoint, &ranks)?;
        let (mut step, mut tokens, mut last_step, mut saved) = (0, 0, None, None);
        let (mut changes, mut directory_step) = (Vec::new(), 0);
        if let Some(resumed) = resumed {
            let state = resumed.state;
            (step, tokens, last_step) = (state.step, state.tokens, Some(state.last_step));
            (saved, changes) = (Some(step), resumed.changes);
            directory_step = resumed.directory_step;
        }
        let (mut records, mut history) = (None, History::default());
        let logged = ranks.first_finds("the files of the run", || {
            let Some(lock) = lock else { return Ok(String::new()) };
            let yaml = task.yaml(&dir)?;
            let log = dir.join(METRICS_FILE);
            // Nothing is changed before everything that can be wrong has been looked at.
            lines.extend(set_later_checkpoints_aside(&*task, &dir, directory_step, &lock)?);
            if let Some(last) = last_logged_step(&log)?.filter(|&last| last > step) {
                lines.push(match step + 1 == last {
                    true => format!("step {last} of metrics.jsonl is done again"),
                    false => {
                        format!("steps {} to {last} of metrics.jsonl are done again", step + 1)
                    }
                });
            }
            let metrics = MetricsLog::open(&log, step)?;
            history = read_metrics(&log)?;
            let events = config.metrics.tensorboard.then(|| EventFile::create(&dir, &history));
            let events = events.transpose()?;
            change_log::record(&dir, step, &changes)?;
            // The last of them, because it flushes the directory with all its files.
            write_atomically(&dir.join(CONFIG_FILE), yaml.as_bytes())?;
            records = Some(Records { metrics, events, _lock: lock });
            let last_line = history.steps.last();
            Ok(last_line.map(|line| line.step.to_string()).unwrap_or_default())
        })?;
        let last_line: Option<u64> = logged.parse().ok();
        let unlogged = last_step.filter(|_| last_line.is_none_or(|line| line < step));
        Ok(Self {
            config,
            dir,
            trainer,
            task,
            evaluation,
            records,
            history,
            unlogged,
            step,
            tokens,
            saved,
            signal: None,
            opening_lines: lines,
        })
    }
}

/// Holds what ranks have opened against each other: the corpus and the place in it, the tokenizer, the
/// checkpoint.
fn agree_on_input(
    task: &dyn Task,
    dir: &Path,
    checkpoint: Option<&Path>,
    ranks: &Ranks,
) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let position = task.position().map_err(|error| TrainerError::RunFile {
        path: dir.to_path_buf(),
        reason: error.to_string(),
    });
    let position = ranks.agree("the data", position)?;
    ranks.agree_on("the corpus", &position.to_string())?;
    let tokenizer = task.tokenizer().map_or("none", Tokenizer::fingerprint);
    ranks.agree_on("the tokenizer", tokenizer)?;
    let mark = ranks.agree("the checkpoint", checkpoint::mark(checkpoint))?;
    ranks.agree_on("the checkpoint", &mark)
}

/// Makes a run of its own of the checkpoints after `step`, where the run now goes on. Gives the line
/// that says so.
fn set_later_checkpoints_aside(
    task: &dyn Task,
    dir: &Path,
    step: u64,
    lock: &RunLock,
) -> Result<Option<String>> {
    let config_of = |branch: &Path| task.branch_yaml(dir, branch);
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
