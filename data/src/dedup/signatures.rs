//! Signatures of the documents of a task: the keys by which their units (paragraphs, lines or the
//! whole document) are compared.
//!
//! ```text
//! magic
//! per document   input u32, units u32, owner u64, then `units` keys of K × u64
//! footer         documents, units, compared (u64 each), xxh3-64 of all before the footer, magic
//! ```
//!
//! Numbers are little-endian. A key of zeros is a unit that is not compared with other
//! documents, such as a line that its document repeats. `owner` says who keeps a unit that several
//! documents have: the smallest.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};

const MAGIC: [u8; 8] = *b"unitnot1";
const DOCUMENT_BYTES: u64 = 16;
const FOOTER_BYTES: u64 = 40;
/// Keys read at once.
const CHUNK_KEYS: usize = 1024;
/// Bytes of the buffer between file and reader. With the chunk, all a reader holds.
pub(super) const READ_BUFFER: usize = 1 << 15;

/// Counts of what the signatures of a task hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SignatureTotals {
    /// Documents.
    pub documents: u64,
    /// Units, compared or not.
    pub units: u64,
    /// Units that are compared with those of other documents.
    pub compared: u64,
}

/// Writes the signatures of a task. A key is `K` words.
pub(super) struct SignatureWriter<const K: usize> {
    path: PathBuf,
    file: AtomicFile,
    hasher: Xxh3Default,
    buffer: Vec<u8>,
    totals: SignatureTotals,
}

impl<const K: usize> SignatureWriter<K> {
    /// Starts the file `path`, which appears when it is finished.
    pub fn create(path: &Path) -> Result<Self> {
        let mut writer = Self {
            path: path.to_owned(),
            file: AtomicFile::create(path)?,
            hasher: Xxh3Default::new(),
            buffer: Vec::new(),
            totals: SignatureTotals::default(),
        };
        writer.buffer.extend(MAGIC);
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a document with the keys of its units, in order.
    pub fn add_document(&mut self, input: u32, owner: u64, keys: &[[u64; K]]) -> Result<()> {
        let units = u32::try_from(keys.len()).map_err(|_| {
            DataError::bad_file(&self.path, format!("a document of {} lines", keys.len()))
        })?;
        self.buffer.extend(input.to_le_bytes());
        self.buffer.extend(units.to_le_bytes());
        self.buffer.extend(owner.to_le_bytes());
        for part in keys.chunks(CHUNK_KEYS) {
            for key in part {
                self.totals.compared += u64::from(*key != [0; K]);
                self.buffer.extend(key.iter().flat_map(|word| word.to_le_bytes()));
            }
            self.flush()?;
        }
        self.totals.documents += 1;
        self.totals.units += u64::from(units);
        self.flush()
    }

    /// Ends the file and makes it appear.
    pub fn finish(mut self) -> Result<FileDigest> {
        let checksum = self.hasher.digest();
        let totals = self.totals;
        for number in [totals.documents, totals.units, totals.compared, checksum] {
            self.buffer.extend(number.to_le_bytes());
        }
        self.buffer.extend(MAGIC);
        self.flush()?;
        self.file.commit()
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(DataError::io(&self.path))?;
        self.buffer.clear();
        Ok(())
    }
}

/// The header of a document's signature; the keys of its units follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SignedDocument {
    /// Number of its input file.
    pub input: u32,
    /// Number of its units.
    pub units: u32,
    /// The smallest owner of a unit keeps it.
    pub owner: u64,
}

/// Reads the signatures of a task.
pub(super) struct SignatureReader<const K: usize> {
    path: PathBuf,
    reader: BufReader<File>,
    hasher: Xxh3Default,
    chunk: Vec<u8>,
    totals: SignatureTotals,
    checksum: u64,
    left: u64,
}

impl<const K: usize> SignatureReader<K> {
    /// Opens signatures and checks that file length and footer fit.
    pub fn open(path: &Path) -> Result<Self> {
        let io = || DataError::io(path);
        let mut file = File::open(path).map_err(io())?;
        let length = file.metadata().map_err(io())?.len();
        let damaged = || damaged(path);
        let body = length.checked_sub(FOOTER_BYTES).ok_or_else(damaged)?;
        let mut footer = [0; FOOTER_BYTES as usize];
        file.seek(SeekFrom::Start(body)).map_err(io())?;
        file.read_exact(&mut footer).map_err(io())?;
        let [documents, units, compared, checksum, magic] = words(&footer);
        let totals = SignatureTotals { documents, units, compared };
        let expected = documents
            .checked_mul(DOCUMENT_BYTES)
            .and_then(|bytes| bytes.checked_add(units.checked_mul(8 * K as u64)?))
            .and_then(|bytes| bytes.checked_add(MAGIC.len() as u64));
        if magic != u64::from_le_bytes(MAGIC) || expected != Some(body) || compared > units {
            return Err(damaged());
        }
        file.rewind().map_err(io())?;
        let mut signatures = Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(READ_BUFFER, file),
            hasher: Xxh3Default::new(),
            chunk: Vec::new(),
            totals,
            checksum,
            left: documents,
        };
        let mut magic = [0; MAGIC.len()];
        signatures.read(&mut magic)?;
        if magic == MAGIC { Ok(signatures) } else { Err(damaged()) }
    }

    /// What the footer says.
    pub fn totals(&self) -> SignatureTotals {
        self.totals
    }

    /// The next document. After the last one the checksum is compared.
    pub fn next_document(&mut self) -> Result<Option<SignedDocument>> {
        if self.left == 0 {
            if self.hasher.digest() != self.checksum {
                return Err(damaged(&self.path));
            }
            return Ok(None);
        }
        self.left -= 1;
        let mut header = [0; DOCUMENT_BYTES as usize];
        self.read(&mut header)?;
        let [counts, owner] = words(&header);
        // Little-endian: the first number is in the lower half.
        Ok(Some(SignedDocument { input: counts as u32, units: (counts >> 32) as u32, owner }))
    }

    /// Reads the keys of the document's units and hands each to `visit`, in order.
    pub fn units(
        &mut self,
        document: &SignedDocument,
        mut visit: impl FnMut([u64; K]) -> Result<()>,
    ) -> Result<()> {
        let mut left = document.units as usize;
        let mut chunk = std::mem::take(&mut self.chunk);
        while left > 0 {
            let keys = left.min(CHUNK_KEYS);
            chunk.resize(keys * K * 8, 0);
            self.read(&mut chunk)?;
            for key in chunk.chunks_exact(K * 8) {
                visit(words(key))?;
            }
            left -= keys;
        }
        self.chunk = chunk;
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged(&self.path),
            _ => DataError::io(&self.path)(error),
        })?;
        self.hasher.update(bytes);
        Ok(())
    }
}

/// The little-endian numbers in `bytes`.
fn words<const COUNT: usize>(bytes: &[u8]) -> [u64; COUNT] {
    let mut words = [0; COUNT];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// The error for a work file that is not as it was written.
pub(super) fn damaged(path: &Path) -> DataError {
    DataError::bad_file(path, "damaged or of another version; delete it and run again")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    type Signed = (SignedDocument, Vec<[u64; 2]>);

    fn read(path: &Path) -> Result<Vec<Signed>> {
        let mut signatures = SignatureReader::<2>::open(path)?;
        let mut documents = Vec::new();
        while let Some(document) = signatures.next_document()? {
            let mut keys = Vec::new();
            signatures.units(&document, |key| {
                keys.push(key);
                Ok(())
            })?;
            documents.push((document, keys));
        }
        Ok(documents)
    }

    #[test]
    fn signatures_come_back_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signatures");
        let mut writer = SignatureWriter::<2>::create(&path).unwrap();
        let mut written = Vec::new();
        for (at, units) in [0, 3, 5000].into_iter().enumerate() {
            let keys: Vec<_> = (0..units).map(|unit| [unit, unit * 7]).collect();
            let header =
                SignedDocument { input: at as u32, units: units as u32, owner: u64::MAX - 3 };
            writer.add_document(header.input, header.owner, &keys).unwrap();
            written.push((header, keys));
        }
        writer.finish().unwrap();
        assert_eq!(read(&path).unwrap(), written);
        let totals = SignatureReader::<2>::open(&path).unwrap().totals();
        // The first unit of each document has a key of zeros.
        assert_eq!(totals, SignatureTotals { documents: 3, units: 5003, compared: 5001 });

        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 39, 100, whole.len() - 8, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read(&path), Err(DataError::BadFile { .. })), "cut at {length}");
        }
        for at in [0, 9, 20, 900, whole.len() - 40, whole.len() - 25, whole.len() - 10] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(matches!(read(&path), Err(DataError::BadFile { .. })), "changed at {at}");
        }
    }
}
