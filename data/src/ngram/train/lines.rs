//! Normalized texts on the disk, between the passes of a training.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};

/// Texts of one line each, in a file with no name.
pub(super) struct Lines {
    file: BufWriter<File>,
    folder: PathBuf,
    pub lines: u64,
    pub bytes: u64,
}

impl Lines {
    pub fn create(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(DataError::io(folder))?;
        Ok(Self { file: BufWriter::new(file), folder: folder.to_owned(), lines: 0, bytes: 0 })
    }

    /// Adds a normalized text: it has no line feeds. An empty one is left out.
    pub fn write(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.lines += 1;
        self.bytes += text.len() as u64 + 1;
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.write_all(b"\n"))
            .map_err(DataError::io(&self.folder))
    }

    pub fn read(&mut self, sink: &mut dyn FnMut(&str) -> Result<bool>) -> Result<()> {
        let io = DataError::io;
        self.file.seek(SeekFrom::Start(0)).map_err(io(&self.folder))?;
        let mut reader = BufReader::new(self.file.get_ref());
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line).map_err(io(&self.folder))? == 0 {
                return Ok(());
            }
            if !sink(line.trim_end_matches('\n'))? {
                return Ok(());
            }
        }
    }
}
