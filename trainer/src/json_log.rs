//! Files of JSON lines to which a command appends what it has paid for: a killed one goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, TrainerError};

/// Longest line in bytes.
const LONGEST_LINE: u64 = 64 << 20;

/// A file that grows by whole lines, for this process alone.
#[derive(Debug)]
pub struct JsonLog {
    file: File,
    path: PathBuf,
    /// Where each line ends.
    ends: Vec<u64>,
}

impl JsonLog {
    /// Opens or makes the file, and gives the lines in it. One that a kill cut short is removed.
    ///
    /// # Errors
    /// [`TrainerError::RunFile`] names the line that is not a `T`, or says that another process writes the file.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>)> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(TrainerError::io(folder))?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = file.map_err(TrainerError::io(path))?;
        let wrong = |reason: String| TrainerError::RunFile { path: path.to_owned(), reason };
        if let Err(error) = file.try_lock() {
            return Err(wrong(format!(
                "another process is writing it ({error}); wait until it ends, or choose another output"
            )));
        }
        let mut reader = BufReader::new(&file);
        let (mut lines, mut ends) = (Vec::new(), Vec::new());
        let mut end = 0;
        loop {
            let mut line = Vec::new();
            let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
            let read = read.map_err(TrainerError::io(path))? as u64;
            let number = lines.len() + 1;
            if line.last() != Some(&b'\n') {
                if read == LONGEST_LINE {
                    return Err(wrong(format!("line {number}: more than {LONGEST_LINE} bytes")));
                }
                break;
            }
            let value = serde_json::from_slice(&line).map_err(|error| {
                wrong(format!("line {number}: {error}; choose another output, or remove the line"))
            })?;
            lines.push(value);
            end += read;
            ends.push(end);
        }
        file.set_len(end).map_err(TrainerError::io(path))?;
        Ok((Self { file, path: path.to_owned(), ends }, lines))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`TrainerError::Io`].
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(line).map_err(|error| TrainerError::RunFile {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        // One write: after a kill a line is there or is the last one and cut short.
        let line = format!("{text}\n");
        self.file.write_all(line.as_bytes()).map_err(TrainerError::io(&self.path))?;
        self.ends.push(self.ends.last().unwrap_or(&0) + line.len() as u64);
        Ok(())
    }

    /// Keeps the first `count` lines.
    ///
    /// # Errors
    /// [`TrainerError::Io`].
    pub fn truncate(&mut self, count: usize) -> Result<()> {
        if count < self.ends.len() {
            self.ends.truncate(count);
            let end = self.ends.last().copied().unwrap_or(0);
            self.file.set_len(end).map_err(TrainerError::io(&self.path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_short_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/log.jsonl");
        let lines = || JsonLog::open::<u32>(&path).unwrap().1;
        assert!(lines().is_empty());
        {
            let (mut log, _) = JsonLog::open::<u32>(&path).unwrap();
            (1..=3).for_each(|number| log.append(&number).unwrap());
            // Two writers would mix their lines.
            let error = JsonLog::open::<u32>(&path).unwrap_err().to_string();
            assert!(error.contains("another process"), "{error}");
        }
        std::fs::write(&path, "1\n2\n3").unwrap();
        assert_eq!(lines(), [1, 2]);
        {
            let (mut log, _) = JsonLog::open::<u32>(&path).unwrap();
            log.append(&4).unwrap();
            log.truncate(2).unwrap();
            log.append(&5).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n5\n");
        std::fs::write(&path, "1\nx\n").unwrap();
        let error = JsonLog::open::<u32>(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
