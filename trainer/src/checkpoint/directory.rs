//! The checkpoints of a run as directories: which there are, which is the newest, which may go.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::{remove_unfinished, sync_folder};
use altiplano_data::lock::FolderLock;

use super::{DONE_FILE, hugging_face, is_checkpoint, peft};
use crate::error::{Result, TrainerError};

/// Begins the name of a directory that is being written or deleted.
const TEMPORARY: &str = ".tmp-";
/// Begins the name of a checkpoint that another one of the same step is about to replace.
const REPLACED: &str = ".old-";

/// Directory name of the checkpoint of `step`: sorts by step.
pub fn step_name(step: u64) -> String {
    format!("step_{step:08}")
}

fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step_")?;
    let step = digits.parse().ok()?;
    (step_name(step) == name).then_some(step)
}

pub(super) fn checkpoints_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("checkpoints")
}

pub(super) fn temporary_path(run_dir: &Path, step: u64) -> PathBuf {
    checkpoints_dir(run_dir).join(format!("{TEMPORARY}{}", step_name(step)))
}

pub(super) fn replaced_path(run_dir: &Path, step: u64) -> PathBuf {
    checkpoints_dir(run_dir).join(format!("{REPLACED}{}", step_name(step)))
}

/// Waits until the entries of a directory are on the disk.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    Ok(sync_folder(dir)?)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(TrainerError::io(dir)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(TrainerError::io(dir))?.file_name();
        // No name of ours is anything but UTF-8.
        names.extend(name.into_string());
    }
    names.sort();
    Ok(names)
}

/// The finished checkpoints of a run with their steps, oldest first.
///
/// # Errors
/// When the directory cannot be read. A run without checkpoints has an empty list.
pub fn list(run_dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    list_in(&checkpoints_dir(run_dir))
}

fn list_in(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let steps = names(dir)?.into_iter().filter_map(|name| Some((step_of(&name)?, dir.join(name))));
    let mut found: Vec<_> = steps.filter(|(_, path)| path.join(DONE_FILE).is_file()).collect();
    found.sort();
    Ok(found)
}

/// The newest finished checkpoint of a run.
///
/// # Errors
/// [`TrainerError::NoCheckpoint`] when there is none.
pub fn latest(run_dir: &Path) -> Result<PathBuf> {
    match list(run_dir)?.pop() {
        Some((_, path)) => Ok(path),
        None => Err(TrainerError::NoCheckpoint { path: checkpoints_dir(run_dir) }),
    }
}

/// The directory of the model that `path` stands for: `path` itself when it is a checkpoint or a
/// Hugging Face directory, the newest checkpoint when it is a run or the `checkpoints` of one.
///
/// # Errors
/// [`TrainerError::NotACheckpoint`] when it is none of these, or a run that has none yet.
pub fn find(path: &Path) -> Result<PathBuf> {
    let none = |found: &str| {
        Err(TrainerError::NotACheckpoint { path: path.to_path_buf(), found: found.into() })
    };
    if !path.is_dir() {
        return none(if path.exists() { "is a file" } else { "does not exist" });
    }
    if hugging_face::is_model(path) || peft::is_adapter(path) || is_checkpoint(path) {
        return Ok(path.to_path_buf());
    }
    let below = checkpoints_dir(path);
    let is_run = below.is_dir() || path.join("config.yaml").exists();
    let dir = if is_run { below } else { path.to_path_buf() };
    match list_in(&dir)?.pop() {
        Some((_, newest)) => Ok(newest),
        None if is_run => none("is a run without a finished checkpoint"),
        None => none("has no config.json and no checkpoints in it"),
    }
}

/// Brings the directory of a run back in order after a crash: removes what was half written or half
/// deleted, and puts back a checkpoint that was about to be replaced. Call it before looking for the
/// [`latest`] checkpoint. It takes the lock of the run, because what another process is writing is
/// no leftover.
///
/// # Errors
/// When the directory cannot be read or changed.
pub fn recover(run_dir: &Path, _lock: &RunLock) -> Result<()> {
    let dir = checkpoints_dir(run_dir);
    if !dir.exists() {
        return Ok(());
    }
    for name in names(&dir)? {
        let path = dir.join(&name);
        if let Some(kept) = name.strip_prefix(REPLACED) {
            let newer = dir.join(kept);
            let put_back = !newer.exists() && path.join(DONE_FILE).is_file();
            if put_back {
                fs::rename(&path, &newer).map_err(TrainerError::io(&path))?;
            } else {
                fs::remove_dir_all(&path).map_err(TrainerError::io(&path))?;
            }
        } else if name.starts_with(TEMPORARY) {
            fs::remove_dir_all(&path).map_err(TrainerError::io(&path))?;
        }
    }
    Ok(())
}

/// Deletes old checkpoints: the `keep_last` newest stay, at least one, those at multiples of
/// `keep_every` (0: none), and that of the step `best`. Gives the paths that are gone.
///
/// # Errors
/// When a directory cannot be deleted.
pub fn prune(
    run_dir: &Path,
    keep_last: usize,
    keep_every: u64,
    best: Option<u64>,
) -> Result<Vec<PathBuf>> {
    let mut old = list(run_dir)?;
    old.truncate(old.len().saturating_sub(keep_last.max(1)));
    old.retain(|(step, _)| keep_every == 0 || !step.is_multiple_of(keep_every));
    old.retain(|(step, _)| Some(*step) != best);
    let dir = checkpoints_dir(run_dir);
    let mut gone = Vec::new();
    for (step, path) in old {
        // Under its own name a checkpoint is whole or not there at all.
        let doomed = dir.join(format!("{TEMPORARY}delete-{}", step_name(step)));
        fs::rename(&path, &doomed).map_err(TrainerError::io(&path))?;
        fs::remove_dir_all(&doomed).map_err(TrainerError::io(&doomed))?;
        gone.push(path);
    }
    Ok(gone)
}

/// Keeps other processes from writing the same run. Ends with the process, however it ends.
#[derive(Debug)]
pub struct RunLock {
    _lock: FolderLock,
}

/// Makes the directory of a run, if need be, locks it, and deletes files that a crash left
/// unfinished in it.
///
/// # Errors
/// [`DataError::InUse`](altiplano_data::DataError::InUse) when another process holds the lock.
pub fn lock(run_dir: &Path) -> Result<RunLock> {
    let lock = altiplano_data::lock::lock(run_dir)?;
    remove_unfinished(run_dir)?;
    Ok(RunLock { _lock: lock })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use altiplano_data::DataError;

    use super::*;

    fn run_with(steps: &[u64]) -> tempfile::TempDir {
        let run = tempfile::tempdir().unwrap();
        for &step in steps {
            let path = checkpoints_dir(run.path()).join(step_name(step));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(DONE_FILE), "x").unwrap();
        }
        run
    }

    fn steps(run: &tempfile::TempDir) -> Vec<u64> {
        list(run.path()).unwrap().into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn names_sort_by_step_and_others_are_left_alone() {
        let run = run_with(&[100, 20, 123_456_789]);
        let dir = checkpoints_dir(run.path());
        for other in ["step_5", "step_x", "best", ".tmp-step_00000300"] {
            fs::create_dir_all(dir.join(other)).unwrap();
            fs::write(dir.join(other).join(DONE_FILE), "x").unwrap();
        }
        fs::create_dir_all(dir.join("step_00000400")).unwrap();
        assert_eq!(steps(&run), [20, 100, 123_456_789]);
        assert!(latest(run.path()).unwrap().ends_with("step_123456789"));
    }

    #[test]
    fn a_run_without_checkpoints_says_so() {
        let run = tempfile::tempdir().unwrap();
        let error = latest(run.path()).unwrap_err();
        assert!(matches!(error, TrainerError::NoCheckpoint { .. }), "{error}");
    }

    #[test]
    fn a_run_stands_for_its_newest_checkpoint() {
        let run = run_with(&[10, 20]);
        let dir = checkpoints_dir(run.path());
        let newest = dir.join(step_name(20));
        assert_eq!(find(run.path()).unwrap(), newest);
        assert_eq!(find(&dir).unwrap(), newest);
        assert_eq!(find(&dir.join(step_name(10))).unwrap(), dir.join(step_name(10)));
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("config.json"), "{}").unwrap();
        assert_eq!(find(elsewhere.path()).unwrap(), elsewhere.path());
    }

    #[test]
    fn what_is_no_checkpoint_says_what_was_expected() {
        let run = run_with(&[]);
        let says = |path: &Path, words: &str| {
            let error = find(path).unwrap_err().to_string();
            let expected = ["altiplano train", "Hugging Face", words];
            assert!(expected.iter().all(|words| error.contains(words)), "{error}");
        };
        says(run.path(), "has no config.json and no checkpoints");
        says(&run.path().join("nothing"), "does not exist");
        fs::write(run.path().join("config.yaml"), "").unwrap();
        says(run.path(), "a run without a finished checkpoint");
        says(&run.path().join("config.yaml"), "is a file");
    }

    #[test]
    fn pruning_keeps_the_newest_the_milestones_and_the_best() {
        for (keep_last, keep_every, best, left) in [
            (2, 0, None, vec![50, 60]),
            (0, 0, None, vec![60]),
            (1, 30, None, vec![30, 60]),
            (1, 20, None, vec![20, 40, 60]),
            (1, 0, Some(20), vec![20, 60]),
            (2, 0, Some(60), vec![50, 60]),
            (9, 0, None, vec![10, 20, 30, 40, 50, 60]),
        ] {
            let run = run_with(&[10, 20, 30, 40, 50, 60]);
            let gone = prune(run.path(), keep_last, keep_every, best).unwrap();
            assert_eq!(steps(&run), left, "keep_last {keep_last}, keep_every {keep_every}");
            assert_eq!(gone.len() + left.len(), 6);
            assert_eq!(names(&checkpoints_dir(run.path())).unwrap().len(), left.len());
        }
    }

    #[test]
    fn a_second_writer_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let held = lock(run.path()).unwrap();
        let refused = lock(run.path());
        assert!(matches!(refused, Err(TrainerError::Data(DataError::InUse { .. }))), "{refused:?}");
        fs::write(run.path().join(".config.yaml.tmp.1.00000000.1"), "left by a crash").unwrap();
        fs::create_dir(checkpoints_dir(run.path())).unwrap();
        drop(held);
        recover(run.path(), &lock(run.path()).unwrap()).unwrap();
        drop(lock(run.path()).unwrap());
        assert_eq!(names(run.path()).unwrap(), ["checkpoints"]);
    }
}
