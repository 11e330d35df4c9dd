//! Writing a checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::{create_folder, hash_file};

use super::directory::{checkpoints_dir, list, replaced_path, step_name, sync_dir, temporary_path};
use super::verify::{FileRecord, StateFile};
use super::{DONE_FILE, FORMAT_VERSION, STATE_FILE, TrainState};
use crate::error::{Result, TrainerError};

/// Saves the state of a run; `write_files` puts the tensors and the Hugging Face files into the
/// directory it is given. Gives the directory of the finished checkpoint.
///
/// A checkpoint of the same step is replaced.
///
/// # Errors
/// [`TrainerError::CheckpointSave`]: no file can be written, the disk is full, … The checkpoints
/// that were there are intact, and what was half written is gone.
pub fn save(
    run_dir: &Path,
    state: &TrainState,
    write_files: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    save_observed(run_dir, state, write_files, &mut |_| {}).map_err(|error| {
        let newest = list(run_dir).ok().and_then(|mut all| all.pop());
        TrainerError::CheckpointSave {
            step: state.step,
            kept: match newest {
                Some((_, path)) => format!("{} is intact", path.display()),
                None => "there was none before".into(),
            },
            source: Box::new(error),
        }
    })
}

/// The moments of a save after which a crash leaves something different behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    DirectoryMade,
    FilesWritten,
    StateWritten,
    DoneWritten,
    OldMovedAway,
    Renamed,
    OldRemoved,
}

/// Deletes the half-written directory when a save fails.
struct Unfinished<'a> {
    path: &'a Path,
    armed: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.armed {
            // The error that led here is the one to tell; a leftover is removed at the next start.
            let _ = fs::remove_dir_all(self.path);
        }
    }
}

fn save_observed(
    run_dir: &Path,
    state: &TrainState,
    write_files: impl FnOnce(&Path) -> Result<()>,
    reached: &mut dyn FnMut(Stage),
) -> Result<PathBuf> {
    let parent = checkpoints_dir(run_dir);
    create_folder(&parent)?;
    let temporary = temporary_path(run_dir, state.step);
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(TrainerError::io(&temporary))?;
    }
    let mut unfinished = Unfinished { path: &temporary, armed: true };
    fs::create_dir(&temporary).map_err(TrainerError::io(&temporary))?;
    reached(Stage::DirectoryMade);

    write_files(&temporary)?;
    reached(Stage::FilesWritten);

    let files = record_files(&temporary)?;
    let state_file = StateFile { format_version: FORMAT_VERSION, state: state.clone(), files };
    let json = state_file.to_json(&temporary.join(STATE_FILE))?;
    write_synced(&temporary.join(STATE_FILE), &json)?;
    reached(Stage::StateWritten);

    let done = format!("{}\n", blake3::hash(&json).to_hex());
    write_synced(&temporary.join(DONE_FILE), done.as_bytes())?;
    sync_dir(&temporary)?;
    reached(Stage::DoneWritten);

    let finished = parent.join(step_name(state.step));
    let replaced = replaced_path(run_dir, state.step);
    let replaces = finished.exists();
    if replaces {
        fs::rename(&finished, &replaced).map_err(TrainerError::io(&finished))?;
        reached(Stage::OldMovedAway);
    }
    if let Err(error) = fs::rename(&temporary, &finished) {
        if replaces {
            fs::rename(&replaced, &finished).map_err(TrainerError::io(&replaced))?;
        }
        return Err(TrainerError::io(&finished)(error));
    }
    unfinished.armed = false;
    sync_dir(&parent)?;
    reached(Stage::Renamed);
    if replaces {
        fs::remove_dir_all(&replaced).map_err(TrainerError::io(&replaced))?;
        reached(Stage::OldRemoved);
    }
    Ok(finished)
}

/// Flushes every file of the directory to the disk and records its length and hash.
fn record_files(dir: &Path) -> Result<BTreeMap<String, FileRecord>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(TrainerError::io(dir))? {
        let entry = entry.map_err(TrainerError::io(dir))?;
        let path = entry.path();
        let file = File::open(&path).map_err(TrainerError::io(&path))?;
        file.sync_all().map_err(TrainerError::io(&path))?;
        let metadata = file.metadata().map_err(TrainerError::io(&path))?;
        let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) else {
            return Err(TrainerError::Checkpoint {
                path,
                reason: "a checkpoint holds plain files with UTF-8 names only".into(),
            });
        };
        files.insert(name, FileRecord { bytes: metadata.len(), blake3: hash_file(&path)? });
    }
    Ok(files)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(TrainerError::io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(TrainerError::io(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "save_tests.rs"]
mod tests;
