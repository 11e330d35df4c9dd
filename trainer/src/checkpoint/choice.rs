//! Which of its checkpoints a run goes on from, and what becomes of the later ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use altiplano_data::atomic_file::{create_folder, scratch_folder};
use altiplano_data::eval_tasks::higher_is_better;

use super::directory::{RunLock, checkpoints_dir, list, step_name, sync_dir};
use crate::config::VAL_LOSS;
use crate::error::{Result, TrainerError};
use crate::metrics::{History, StepMetrics, read_metrics};

/// Which checkpoint of a run is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The newest.
    #[default]
    Latest,
    /// The one with the best score.
    Best,
    /// The one of a step.
    Step(u64),
}

impl FromStr for Choice {
    type Err = String;

    /// `latest`, `best`, `step_00001000` or `step_1000`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.strip_prefix("step_").map(str::parse)) {
            ("latest", _) => Ok(Self::Latest),
            ("best", _) => Ok(Self::Best),
            (_, Some(Ok(step))) => Ok(Self::Step(step)),
            _ => Err("expected latest, best or step_N, such as step_1000".into()),
        }
    }
}

/// The checkpoint of `run_dir` that is meant, with its step; the best one is that by `best_by`, a score
/// of [`best_of`]. `None` when the latest is meant and the run has not finished one yet.
///
/// # Errors
/// [`TrainerError::Usage`] lists the checkpoints there are when the one meant is not among them.
pub fn choose(run_dir: &Path, choice: Choice, best_by: &str) -> Result<Option<(u64, PathBuf)>> {
    let mut all = list(run_dir)?;
    let (found, meant) = match choice {
        Choice::Latest => return Ok(all.pop()),
        Choice::Step(step) => (all.iter().find(|(s, _)| *s == step), step_name(step)),
        Choice::Best => {
            let log = run_dir.join("metrics.jsonl");
            let history = if log.exists() { read_metrics(&log)? } else { History::default() };
            (best_of(&all, &history.steps, best_by), format!("best (one with a {best_by})"))
        }
    };
    if let Some(found) = found {
        return Ok(Some(found.clone()));
    }
    let names: Vec<String> = all.iter().map(|(step, _)| step_name(*step)).collect();
    let there = if names.is_empty() { "none".into() } else { names.join(", ") };
    Err(TrainerError::Usage {
        message: format!(
            "--checkpoint {meant}: {} has no such finished checkpoint; there are: {there}",
            run_dir.display()
        ),
    })
}

/// Of `checkpoints` the one whose step has the best score; the earliest of equals. The score is `val_loss`
/// or one of tasks, such as `piqa/acc`.
pub fn best_of<'a>(
    checkpoints: &'a [(u64, PathBuf)],
    history: &[StepMetrics],
    best_by: &str,
) -> Option<&'a (u64, PathBuf)> {
    let scored = checkpoints.iter().filter_map(|found| {
        let line = history.iter().rev().find(|line| line.step == found.0)?;
        Some((badness(line, best_by)?, found))
    });
    scored.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, found)| found)
}

/// The score of a step by which the best checkpoint is chosen, as a number of which less is better. None
/// where the step has no such score.
pub fn badness(line: &StepMetrics, best_by: &str) -> Option<f64> {
    let score = match best_by {
        VAL_LOSS => line.validation.as_ref()?.val_loss,
        _ => *line.evaluation.as_ref()?.eval.get(best_by)?,
    };
    let measure = best_by.rsplit('/').next().unwrap_or_default();
    score.is_finite().then_some(if higher_is_better(measure) { -score } else { score })
}

/// The name of the link to the best checkpoint in the directory of a run.
const BEST: &str = "best";

/// Gives a checkpoint the name `RUN/best`, in place of the one that had it; without one the name goes.
///
/// # Errors
/// When the file system has no links, or something else has the name.
pub fn name_best(run_dir: &Path, best: Option<u64>) -> Result<()> {
    let link = run_dir.join(BEST);
    // A link to anything else is the user's.
    let is_ours = |target: &PathBuf| target.starts_with("checkpoints");
    let now = fs::read_link(&link).ok().filter(is_ours);
    let wanted = best.map(|step| Path::new("checkpoints").join(step_name(step)));
    if now == wanted {
        return Ok(());
    }
    let Some(wanted) = wanted else {
        return fs::remove_file(&link).map_err(TrainerError::io(&link));
    };
    if now.is_none() && link.symlink_metadata().is_ok() {
        let reason = "is not a link to a checkpoint of the run: the best one gets this name".into();
        return Err(TrainerError::RunFile { path: link, reason });
    }
    // The name is never without a checkpoint.
    let folder = scratch_folder(run_dir)?;
    let new = folder.path().join(BEST);
    std::os::unix::fs::symlink(&wanted, &new).map_err(TrainerError::io(&link))?;
    fs::rename(&new, &link).map_err(TrainerError::io(&link))
}

/// The finished checkpoint before that of `step`.
///
/// # Errors
/// When the directory cannot be read.
pub fn before(run_dir: &Path, step: u64) -> Result<Option<u64>> {
    Ok(list(run_dir)?.into_iter().map(|(s, _)| s).rfind(|&s| s < step))
}

/// Moves what a run did after `step` out of its way, into a run of its own that can be resumed:
/// `branches/after_step_…` gets the later checkpoints and copies of `files`. Gives its directory
/// and the steps of the checkpoints, or `None` when there are no later ones.
///
/// `config` makes the `config.yaml` of the new run from its directory. A crash in between loses
/// nothing: what was moved is whole where it is, the rest is moved by the next call.
///
/// # Errors
/// When a file cannot be copied or a checkpoint cannot be moved.
pub fn set_aside(
    run_dir: &Path,
    step: u64,
    files: &[&str],
    config: impl FnOnce(&Path) -> Result<String>,
    _lock: &RunLock,
) -> Result<Option<(PathBuf, Vec<u64>)>> {
    let mut later = list(run_dir)?;
    later.retain(|(s, _)| *s > step);
    if later.is_empty() {
        return Ok(None);
    }
    let branch = free_name(&run_dir.join("branches"), &format!("after_{}", step_name(step)));
    create_folder(&checkpoints_dir(&branch))?;
    for name in files {
        let (from, to) = (run_dir.join(name), branch.join(name));
        if from.exists() {
            fs::copy(&from, &to).map_err(TrainerError::io(&from))?;
            fs::File::open(&to).and_then(|file| file.sync_all()).map_err(TrainerError::io(&to))?;
        }
    }
    let yaml = config(&branch)?;
    // Flushes the folder too.
    altiplano_data::atomic_file::write_atomically(&branch.join("config.yaml"), yaml.as_bytes())?;
    // The newest first: after a crash the run still has no hole between its checkpoints.
    for (s, path) in later.iter().rev() {
        let to = checkpoints_dir(&branch).join(step_name(*s));
        fs::rename(path, &to).map_err(TrainerError::io(path))?;
    }
    sync_dir(&checkpoints_dir(&branch))?;
    sync_dir(&checkpoints_dir(run_dir))?;
    Ok(Some((branch, later.into_iter().map(|(s, _)| s).collect())))
}

/// `name` in `folder`, or with the first number behind it that is not taken.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let mut path = folder.join(name);
    for number in 2.. {
        if !path.exists() {
            break;
        }
        path = folder.join(format!("{name}-{number}"));
    }
    path
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::lock;
    use crate::metrics::{EvalMetrics, MetricsLog, ValidationMetrics};

    fn run_with(steps: &[u64]) -> tempfile::TempDir {
        let run = tempfile::tempdir().unwrap();
        for &step in steps {
            let path = checkpoints_dir(run.path()).join(step_name(step));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("DONE"), step.to_string()).unwrap();
        }
        run
    }

    fn line(step: u64, val_loss: Option<f64>) -> StepMetrics {
        let validation =
            val_loss.map(|val_loss| ValidationMetrics { val_loss, ..Default::default() });
        StepMetrics { step, validation, ..Default::default() }
    }

    fn chosen(run: &Path, text: &str) -> std::result::Result<Option<u64>, String> {
        let choice = text.parse::<Choice>()?;
        let found = choose(run, choice, VAL_LOSS).map_err(|error| error.to_string())?;
        Ok(found.map(|(step, _)| step))
    }

    #[test]
    fn a_checkpoint_is_chosen_by_name() {
        let run = run_with(&[10, 20, 30, 40]);
        let run = run.path();
        let mut log = MetricsLog::open(&run.join("metrics.jsonl"), 0).unwrap();
        for (step, loss) in [(10, 3.0), (15, 1.0), (20, 2.0), (30, f64::INFINITY), (40, 2.0)] {
            // JSON has no infinity.
            log.append(&line(step, Some(loss).filter(|loss| loss.is_finite()))).unwrap();
        }
        assert_eq!(chosen(run, "latest"), Ok(Some(40)));
        assert_eq!(chosen(run, "best"), Ok(Some(20)));
        assert_eq!(chosen(run, "step_10"), Ok(Some(10)));
        assert_eq!(chosen(run, "step_00000030"), Ok(Some(30)));
        let error = chosen(run, "step_15").unwrap_err();
        assert!(error.contains("step_00000015") && error.contains("step_00000020"), "{error}");
        assert!(chosen(run, "newest").unwrap_err().contains("latest, best or step_N"));
        assert_eq!(before(run, 30).unwrap(), Some(20));
        assert_eq!(before(run, 10).unwrap(), None);

        let empty = run_with(&[]);
        assert_eq!(chosen(empty.path(), "latest"), Ok(None));
        assert!(chosen(empty.path(), "best").unwrap_err().contains("there are: none"));
    }

    #[test]
    fn the_best_is_by_the_score_that_is_asked_for() {
        let run = run_with(&[10, 20, 30]);
        let all = list(run.path()).unwrap();
        let line = |(step, [acc, bits]): (u64, [f64; 2])| StepMetrics {
            evaluation: Some(EvalMetrics {
                eval: [("piqa/acc".into(), acc), ("wikitext/bits_per_byte".into(), bits)].into(),
                eval_seconds: 1.0,
            }),
            ..line(step, Some(step as f64))
        };
        let history: Vec<StepMetrics> =
            [(10, [0.5, 3.0]), (20, [0.7, 1.0]), (25, [0.9, 0.1]), (30, [0.7, 2.0])]
                .map(line)
                .into();
        for (best_by, expected) in [
            ("val_loss", Some(10)),
            ("piqa/acc", Some(20)),
            ("wikitext/bits_per_byte", Some(20)),
            ("piqa/acc_norm", None),
        ] {
            let found = best_of(&all, &history, best_by).map(|found| found.0);
            assert_eq!(found, expected, "{best_by}");
        }
        // Its name is a link, which moves on and goes.
        let run = run.path();
        let named = || fs::read_to_string(run.join("best/DONE")).ok();
        for best in [Some(10), Some(10), Some(30), None, None] {
            name_best(run, best).unwrap();
            assert_eq!(named(), best.map(|step: u64| step.to_string()));
        }
        assert_eq!(fs::read_dir(run).unwrap().count(), 1);
        // What someone else put there stays.
        fs::write(run.join("best"), "mine").unwrap();
        assert!(name_best(run, Some(10)).unwrap_err().to_string().contains("not a link"));
        name_best(run, None).unwrap();
        assert_eq!(fs::read(run.join("best")).unwrap(), b"mine");
    }

    #[test]
    fn later_checkpoints_become_a_run_of_their_own() {
        let run = run_with(&[10, 20, 30]);
        let run = run.path();
        fs::write(run.join("metrics.jsonl"), "x\n").unwrap();
        let held = lock(run).unwrap();
        let files = ["metrics.jsonl", "missing"];
        let aside = |step| set_aside(run, step, &files, |_| Ok("name: x\n".into()), &held).unwrap();
        assert_eq!(aside(30), None);
        let (branch, steps) = aside(10).unwrap();
        assert_eq!(branch, run.join("branches/after_step_00000010"));
        assert_eq!(steps, [20, 30]);
        let names = |run: &Path| list(run).unwrap().into_iter().map(|(s, _)| s).collect::<Vec<_>>();
        assert_eq!((names(run), names(&branch)), (vec![10], vec![20, 30]));
        assert_eq!(fs::read(branch.join("metrics.jsonl")).unwrap(), b"x\n");
        assert!(run.join("metrics.jsonl").exists() && branch.join("config.yaml").exists());
        // Again: under another name.
        let path = checkpoints_dir(run).join(step_name(20));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("DONE"), "x").unwrap();
        assert!(aside(10).unwrap().0.ends_with("branches/after_step_00000010-2"));
    }
}
