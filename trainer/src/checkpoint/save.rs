//! Writing a checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::create_folder;
use altiplano_data::checksum::{FileDigest, HashingWriter};
use serde::{Deserialize, Serialize};

use super::directory::{checkpoints_dir, list, replaced_path, step_name, sync_dir, temporary_path};
use super::verify::StateFile;
use super::{DONE_FILE, FORMAT_VERSION, STATE_FILE, TrainState};
use crate::error::{Result, TrainerError};

/// Bytes collected before they are hashed and written.
const BUFFER_BYTES: usize = 1 << 20;

/// The files of a checkpoint under construction. Each is hashed on its way to the disk, so that
/// `state.json` says what was meant and not what the disk made of it.
#[derive(Debug)]
pub struct CheckpointFiles {
    dir: PathBuf,
    written: BTreeMap<String, FileDigest>,
}

impl CheckpointFiles {
    /// Files in the directory `dir`, which exists.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), written: BTreeMap::new() }
    }

    /// Files that another rank adds to the checkpoint of `step` which the first is saving.
    pub(crate) fn of_other_rank(run_dir: &Path, step: u64) -> Self {
        Self::new(&temporary_path(run_dir, step))
    }

    /// What was written so far.
    pub(crate) fn digests(&self) -> &BTreeMap<String, FileDigest> {
        &self.written
    }

    /// Adds the files that the rank `rank` has written.
    ///
    /// # Errors
    /// When one is not seen here, or is not as long.
    pub(crate) fn add(&mut self, rank: &str, files: BTreeMap<String, FileDigest>) -> Result<()> {
        for (name, digest) in files {
            let path = self.dir.join(&name);
            let found = fs::metadata(&path).map(|metadata| metadata.len()).ok();
            if found != Some(digest.bytes) {
                let found = found.map_or("nothing".into(), |bytes| format!("{bytes} bytes"));
                return Err(TrainerError::Checkpoint {
                    path,
                    reason: format!(
                        "{rank} has written {} bytes, found {found}: the directory of a run must be \
                         shared between all hosts",
                        digest.bytes
                    ),
                });
            }
            self.written.insert(name, digest);
        }
        Ok(())
    }

    /// Writes the file `name`: `content` gets the writer, and the path for messages. The file is
    /// on the disk when this returns.
    ///
    /// # Errors
    /// When the file cannot be written, and the errors of `content`.
    pub fn write(
        &mut self,
        name: &str,
        content: impl FnOnce(&mut BufWriter<HashingWriter<File>>, &Path) -> Result<()>,
    ) -> Result<()> {
        let path = self.dir.join(name);
        if !self.dir.is_dir() {
            return Err(TrainerError::Checkpoint {
                path: self.dir.clone(),
                reason: "no such directory: that of a run must be shared between all hosts".into(),
            });
        }
        let file = File::create(&path).map_err(TrainerError::io(&path))?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, HashingWriter::new(file));
        content(&mut out, &path)?;
        let hashing =
            out.into_inner().map_err(|error| TrainerError::io(&path)(error.into_error()))?;
        let (file, digest) = hashing.finish();
        file.sync_all().map_err(TrainerError::io(&path))?;
        self.written.insert(name.to_string(), digest);
        Ok(())
    }

    /// Writes the file `name` with these bytes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write(name, |out, path| out.write_all(bytes).map_err(TrainerError::io(path)))
    }
}

/// What a rank tells of the files that it has added to a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PartOfCheckpoint {
    pub files: BTreeMap<String, FileDigest>,
    /// Why it could not write one.
    pub error: Option<String>,
}

impl PartOfCheckpoint {
    pub fn to_json(&self) -> String {
        // Names and numbers always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What a rank has told; `run_dir` is for messages.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_json(told: &str, run_dir: &Path) -> Result<Self> {
        serde_json::from_str(told).map_err(|error| TrainerError::Checkpoint {
            path: run_dir.to_path_buf(),
            reason: format!("what a rank tells of its files is not understood: {error}"),
        })
    }
}

/// Saves the state of a run; `write_files` writes the tensors and the Hugging Face files. Gives the
/// directory of the finished checkpoint.
///
/// A checkpoint of the same step is replaced.
///
/// # Errors
/// [`TrainerError::CheckpointSave`]: no file can be written, the disk is full, … The checkpoints
/// that were there are intact, and what was half written is gone.
pub fn save(
    run_dir: &Path,
    state: &TrainState,
    write_files: impl FnOnce(&mut CheckpointFiles) -> Result<()>,
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
    write_files: impl FnOnce(&mut CheckpointFiles) -> Result<()>,
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

    let mut files = CheckpointFiles::new(&temporary);
    write_files(&mut files)?;
    reached(Stage::FilesWritten);

    let state_file = StateFile {
        format_version: FORMAT_VERSION,
        state: state.clone(),
        files: files.written.clone(),
    };
    let json = state_file.to_json(&temporary.join(STATE_FILE))?;
    files.write_bytes(STATE_FILE, &json)?;
    reached(Stage::StateWritten);

    let done = format!("{}\n", FileDigest::of(&json).blake3);
    files.write_bytes(DONE_FILE, done.as_bytes())?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "save_tests.rs"]
mod tests;
