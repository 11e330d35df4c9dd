//! `changes.jsonl`: which settings of a run changed after which step.

use std::path::Path;

use altiplano_data::atomic_file::write_atomically;
use serde::{Deserialize, Serialize};

use crate::config::Change;
use crate::error::{Result, TrainerError};

/// Name of the file in the directory of a run.
pub const CHANGES_FILE: &str = "changes.jsonl";

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedChange {
    /// The last step with the value before.
    pub step: u64,
    /// What changed.
    #[serde(flatten)]
    pub change: Change,
}

/// Records what changed when a run was resumed from the checkpoint of `step`. Lines of that step and
/// of later ones are replaced: what they tell of is not in the checkpoint.
///
/// # Errors
/// When the file cannot be read or written, or a line of it is not a change.
pub fn record(run_dir: &Path, step: u64, changes: &[Change]) -> Result<()> {
    let path = run_dir.join(CHANGES_FILE);
    let before = read(&path)?;
    let mut after = before.clone();
    after.retain(|line| line.step < step);
    after.extend(changes.iter().cloned().map(|change| RecordedChange { step, change }));
    if after == before {
        return Ok(());
    }
    let mut text = String::new();
    for line in &after {
        let json = serde_json::to_string(line).map_err(|error| TrainerError::RunFile {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        text.push_str(&json);
        text.push('\n');
    }
    write_atomically(&path, text.as_bytes())?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<RecordedChange>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainerError::io(path)(error)),
    };
    let line = |(index, line)| {
        serde_json::from_str(line).map_err(|error| TrainerError::RunFile {
            path: path.to_path_buf(),
            reason: format!(
                "line {} is not a change of a setting: {error}; mend or remove the line",
                index + 1
            ),
        })
    };
    text.lines().enumerate().map(line).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn change(to: f64) -> Change {
        Change { key: "optimizer.lr".into(), from: 1.0.into(), to: to.into() }
    }

    #[test]
    fn only_changes_that_took_effect_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CHANGES_FILE);
        record(dir.path(), 0, &[]).unwrap();
        assert!(!path.exists());
        record(dir.path(), 10, &[change(2.0)]).unwrap();
        record(dir.path(), 20, &[change(3.0)]).unwrap();
        // Resumed from the same step again: nothing was done with a rate of 3.
        record(dir.path(), 20, &[change(4.0)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = "{\"step\":10,\"key\":\"optimizer.lr\",\"from\":1.0,\"to\":2.0}\n\
                        {\"step\":20,\"key\":\"optimizer.lr\",\"from\":1.0,\"to\":4.0}\n";
        assert_eq!(text, expected);
        record(dir.path(), 30, &[]).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        record(dir.path(), 0, &[]).unwrap();
        assert_eq!(read(&path).unwrap(), []);

        std::fs::write(&path, "{}\n").unwrap();
        let error = record(dir.path(), 1, &[]).unwrap_err().to_string();
        assert!(error.contains("changes.jsonl: line 1"), "{error}");
    }
}
