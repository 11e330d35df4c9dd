//! Reading a checkpoint's state back and holding every file to it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use altiplano_data::checksum::FileDigest;
use altiplano_data::error::DataError;
use altiplano_model::weight_files::is_part_of;
use serde::{Deserialize, Serialize};

use super::{DONE_FILE, FORMAT_VERSION, STATE_FILE, TrainState};
use crate::error::{Result, TrainerError};

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateFile {
    pub format_version: u32,
    #[serde(flatten)]
    pub state: TrainState,
    pub files: BTreeMap<String, FileDigest>,
}

impl StateFile {
    /// What the file `name` of the checkpoint `dir` is meant to hold.
    fn digest(&self, dir: &Path, name: &str) -> Result<&FileDigest> {
        self.files.get(name).ok_or_else(|| {
            differs(dir.join(name), format!("is no file of this checkpoint; {USE_ANOTHER}"))
        })
    }

    pub fn to_json(&self, path: &Path) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|error| differs(path, format!("cannot be written as JSON: {error}")))?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Most bytes of a file that is read whole: configurations, tokenizers and their settings.
const MOST_FILE_BYTES: u64 = 200 << 20;
const USE_ANOTHER: &str = "use another checkpoint of the run";

fn differs(path: impl Into<PathBuf>, reason: impl Into<String>) -> TrainerError {
    TrainerError::Checkpoint { path: path.into(), reason: reason.into() }
}

/// A difference found in a file of a checkpoint.
fn of_checkpoint(error: DataError) -> TrainerError {
    match error {
        DataError::Altered { path, difference, remedy } => {
            differs(path, format!("{difference}; {remedy}"))
        }
        error => error.into(),
    }
}

/// Whether the directory has the state of a run in it, finished or not. A Hugging Face directory
/// from elsewhere has none.
pub fn is_checkpoint(dir: &Path) -> bool {
    dir.join(STATE_FILE).exists() || dir.join(DONE_FILE).exists()
}

/// Checks every file of a checkpoint against its recorded length and hash, and gives the state.
///
/// # Errors
/// [`TrainerError::Checkpoint`] names the first file that is missing, truncated, altered or of
/// another version, with what was expected and found.
pub fn verify(dir: &Path) -> Result<TrainState> {
    let state_file = read_state_file(dir)?;
    for (name, digest) in &state_file.files {
        digest.verify(&dir.join(name), USE_ANOTHER).map_err(of_checkpoint)?;
    }
    Ok(state_file.state)
}

/// Like [`verify()`], for some of the files only: a reader of the weights need not hash the
/// moments. Of a file that was written in several it is all of these and their index.
///
/// # Errors
/// As [`verify()`], also when a name is no file of the checkpoint.
pub fn verify_files(dir: &Path, names: &[&str]) -> Result<TrainState> {
    let state_file = read_state_file(dir)?;
    for &name in names {
        let parts = state_file.files.iter().filter(|(file, _)| is_part_of(file, name));
        let mut parts: Vec<(&str, &FileDigest)> =
            parts.map(|(file, digest)| (file.as_str(), digest)).collect();
        if parts.is_empty() {
            parts.push((name, state_file.digest(dir, name)?));
        }
        for (file, digest) in parts {
            digest.verify(&dir.join(file), USE_ANOTHER).map_err(of_checkpoint)?;
        }
    }
    Ok(state_file.state)
}

/// Reads a file of a checkpoint whole: the bytes given are the bytes that were checked. A Hugging
/// Face directory from elsewhere says nothing of its files, which are taken as they are.
///
/// # Errors
/// As [`verify_files`]; when the file cannot be read.
pub fn read_file(dir: &Path, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    if !is_checkpoint(dir) {
        return read_bounded(&path);
    }
    read_state_file(dir)?.digest(dir, name)?.read(&path, USE_ANOTHER).map_err(of_checkpoint)
}

/// Whether `name` is a file of the checkpoint `dir`, there or not; of no other directory.
///
/// # Errors
/// As [`verify()`], for `DONE` and `state.json`.
pub fn lists(dir: &Path, name: &str) -> Result<bool> {
    Ok(is_checkpoint(dir) && read_state_file(dir)?.files.contains_key(name))
}

/// The bytes of a plain file that is not larger than any that is read whole: a file from elsewhere may
/// be a device, a pipe nobody writes to, or have any size.
///
/// # Errors
/// [`TrainerError::Io`] when it cannot be read, [`TrainerError::RunFile`] when it is none of these.
pub fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(TrainerError::io(path))?;
    let fail = |reason: String| Err(TrainerError::RunFile { path: path.to_path_buf(), reason });
    if !metadata.is_file() {
        return fail("is not a plain file but a directory, a pipe or a device".into());
    }
    if metadata.len() > MOST_FILE_BYTES {
        let found = metadata.len();
        return fail(format!("has {found} bytes, expected at most {MOST_FILE_BYTES}"));
    }
    fs::read(path).map_err(TrainerError::io(path))
}

/// What tells a finished checkpoint from every other, for ranks to compare; empty where there is none.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn mark(checkpoint: Option<&Path>) -> Result<String> {
    let Some(dir) = checkpoint else { return Ok(String::new()) };
    let path = dir.join(DONE_FILE);
    let mark = fs::read_to_string(&path).map_err(TrainerError::io(&path))?;
    Ok(mark.trim().chars().take(16).collect())
}

/// The state of a finished checkpoint, without reading the tensors.
///
/// # Errors
/// As [`verify()`], for `DONE` and `state.json`.
pub fn read_state(dir: &Path) -> Result<TrainState> {
    Ok(read_state_file(dir)?.state)
}

fn read_state_file(dir: &Path) -> Result<StateFile> {
    let done_path = dir.join(DONE_FILE);
    let done = fs::read_to_string(&done_path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            differs(&done_path, format!("missing: the checkpoint is not finished; {USE_ANOTHER}"))
        }
        _ => TrainerError::io(&done_path)(error),
    })?;
    let path = dir.join(STATE_FILE);
    let json = fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => differs(&path, format!("missing; {USE_ANOTHER}")),
        _ => TrainerError::io(&path)(error),
    })?;
    let (found, expected) = (FileDigest::of(&json).blake3, done.trim());
    if found != expected {
        let reason = format!(
            "altered or truncated: blake3 is {found}, {} says {expected}; {USE_ANOTHER}",
            done_path.display()
        );
        return Err(differs(path, reason));
    }
    let value: serde_json::Value = serde_json::from_slice(&json)
        .map_err(|error| differs(&path, format!("is not JSON: {error}; {USE_ANOTHER}")))?;
    // The version decides what the rest means, so it comes first.
    let version = value.get("format_version").and_then(serde_json::Value::as_u64);
    if !version.is_some_and(|version| (1..=u64::from(FORMAT_VERSION)).contains(&version)) {
        let found = version.map_or("none".into(), |v| v.to_string());
        let reason = format!(
            "checkpoint format version is {found}, this program reads 1 to {FORMAT_VERSION}; \
             use the altiplano that wrote it"
        );
        return Err(differs(path, reason));
    }
    serde_json::from_value(value).map_err(|error| differs(path, error.to_string()))
}
