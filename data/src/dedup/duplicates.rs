//! The decisions of a task: which units of its documents are duplicates.
//!
//! ```text
//! magic
//! per document   owner u64, units u32, then two bits a unit, four units a byte, lowest first
//! footer         documents u64, xxh3-64 of all before the footer, magic
//! ```

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use super::signatures::damaged;
use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};

const MAGIC: [u8; 8] = *b"unitdec1";

/// What a unit of a document is to the other documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occurrence {
    /// The one that stays.
    Kept,
    /// Another document has it too.
    Duplicate,
    /// It was not compared: the document itself repeats it.
    Repeated,
}

/// Writes the decisions of a task, unit by unit.
pub(super) struct DuplicatesWriter {
    path: PathBuf,
    file: AtomicFile,
    hasher: Xxh3Default,
    buffer: Vec<u8>,
    documents: u64,
    open: u8,
    open_units: u32,
}

impl DuplicatesWriter {
    /// Starts the file `path`, which appears when it is finished.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: AtomicFile::create(path)?,
            hasher: Xxh3Default::new(),
            buffer: MAGIC.to_vec(),
            documents: 0,
            open: 0,
            open_units: 0,
        })
    }

    /// Begins a document of `units` units.
    pub fn begin_document(&mut self, owner: u64, units: u32) -> Result<()> {
        self.close_byte()?;
        self.documents += 1;
        self.buffer.extend(owner.to_le_bytes());
        self.buffer.extend(units.to_le_bytes());
        Ok(())
    }

    /// Adds the next unit of the document.
    pub fn unit(&mut self, decision: Occurrence) -> Result<()> {
        self.open |= (decision as u8) << (2 * self.open_units);
        self.open_units += 1;
        if self.open_units == 4 { self.close_byte() } else { Ok(()) }
    }

    /// Ends the file and makes it appear.
    pub fn finish(mut self) -> Result<FileDigest> {
        self.close_byte()?;
        self.flush()?;
        self.buffer.extend(self.documents.to_le_bytes());
        let checksum = self.hasher.digest();
        self.buffer.extend(checksum.to_le_bytes());
        self.buffer.extend(MAGIC);
        self.flush()?;
        self.file.commit()
    }

    fn close_byte(&mut self) -> Result<()> {
        if self.open_units > 0 {
            self.buffer.push(self.open);
            (self.open, self.open_units) = (0, 0);
        }
        if self.buffer.len() >= 1 << 12 { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(DataError::io(&self.path))?;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads the decisions of a task, document by document.
pub(super) struct Duplicates {
    path: PathBuf,
    reader: BufReader<File>,
    hasher: Xxh3Default,
    documents: u64,
    packed: Vec<u8>,
}

impl Duplicates {
    /// Opens the decisions of a task.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let mut decisions = Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, file),
            hasher: Xxh3Default::new(),
            documents: 0,
            packed: Vec::new(),
        };
        let magic: [u8; 8] = decisions.read()?;
        if magic == MAGIC { Ok(decisions) } else { Err(damaged(path)) }
    }

    /// The decisions on the next document, which must be the one with this owner and number of
    /// units.
    pub fn next_document(&mut self, owner: u64, units: usize) -> Result<Vec<Occurrence>> {
        let found = u64::from_le_bytes(self.read()?);
        let found_units = u32::from_le_bytes(self.read()?) as usize;
        if (found, found_units) != (owner, units) {
            return Err(DataError::bad_file(
                &self.path,
                format!(
                    "the decisions are of other documents: number {} has {found_units} units in \
                     the decisions and {units} now; delete the file and run the step again",
                    self.documents
                ),
            ));
        }
        self.documents += 1;
        self.packed.resize(units.div_ceil(4), 0);
        let mut packed = std::mem::take(&mut self.packed);
        self.read_into(&mut packed)?;
        let decisions = (0..units)
            .map(|unit| match packed[unit / 4] >> (2 * (unit % 4)) & 3 {
                0 => Ok(Occurrence::Kept),
                1 => Ok(Occurrence::Duplicate),
                2 => Ok(Occurrence::Repeated),
                _ => Err(damaged(&self.path)),
            })
            .collect();
        self.packed = packed;
        decisions
    }

    /// Checks that these were all documents, and the checksum.
    pub fn finish(mut self) -> Result<()> {
        let expected = self.hasher.digest();
        let documents = u64::from_le_bytes(self.read()?);
        let checksum = u64::from_le_bytes(self.read()?);
        let magic: [u8; 8] = self.read()?;
        // With documents left over, one of them was read as the footer.
        let fits = (documents, checksum, magic) == (self.documents, expected, MAGIC);
        let mut rest = [0];
        if !fits || self.reader.read(&mut rest).map_err(DataError::io(&self.path))? > 0 {
            return Err(DataError::bad_file(
                &self.path,
                format!(
                    "damaged, or there are decisions for more than the {} documents that came; \
                     delete the file and run the step again",
                    self.documents
                ),
            ));
        }
        Ok(())
    }

    fn read<const COUNT: usize>(&mut self) -> Result<[u8; COUNT]> {
        let mut bytes = [0; COUNT];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    fn read_into(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => DataError::bad_file(
                &self.path,
                "cut short, or of fewer documents; delete the file and run the step again",
            ),
            _ => DataError::io(&self.path)(error),
        })?;
        self.hasher.update(bytes);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn decisions(units: usize) -> Vec<Occurrence> {
        let kinds = [Occurrence::Kept, Occurrence::Duplicate, Occurrence::Repeated];
        (0..units).map(|unit| kinds[unit * unit % 7 % 3]).collect()
    }

    const UNITS: [usize; 7] = [0, 1, 3, 4, 5, 40_000, 2];

    fn write(path: &Path) {
        let mut writer = DuplicatesWriter::create(path).unwrap();
        for (owner, &units) in UNITS.iter().enumerate() {
            writer.begin_document(owner as u64, units as u32).unwrap();
            for decision in decisions(units) {
                writer.unit(decision).unwrap();
            }
        }
        writer.finish().unwrap();
    }

    fn read(path: &Path, documents: usize) -> Result<()> {
        let mut reader = Duplicates::open(path)?;
        for (owner, &units) in UNITS.iter().enumerate().take(documents) {
            assert_eq!(reader.next_document(owner as u64, units)?, decisions(units));
        }
        reader.finish()
    }

    #[test]
    fn decisions_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions");
        write(&path);
        read(&path, UNITS.len()).unwrap();
    }

    #[test]
    fn other_documents_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions");
        write(&path);
        for fewer in 0..UNITS.len() {
            assert!(matches!(read(&path, fewer), Err(DataError::BadFile { .. })), "{fewer}");
        }
        let mut reader = Duplicates::open(&path).unwrap();
        assert!(reader.next_document(0, 1).unwrap_err().to_string().contains("other documents"));
        let mut reader = Duplicates::open(&path).unwrap();
        assert!(reader.next_document(9, 0).is_err());
        let mut reader = Duplicates::open(&path).unwrap();
        for (owner, &units) in UNITS.iter().enumerate() {
            reader.next_document(owner as u64, units).unwrap();
        }
        assert!(reader.next_document(7, 0).is_err());

        let whole = std::fs::read(&path).unwrap();
        for length in [0, 5, 8, 21, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path, UNITS.len()).is_err(), "cut at {length}");
        }
    }
}
