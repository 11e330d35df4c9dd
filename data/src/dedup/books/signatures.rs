//! The shingles of the books of a task.
//!
//! ```text
//! magic
//! per book   id bytes u64, shingles u64, the id, then the hashes of the shingles, ascending
//! footer     books u64, xxh3-64 of all before the footer, magic
//! ```
//!
//! Numbers are little-endian u64. As hashes ascend, the first ones are a random sample of the
//! shingles, so a sketch is read from the same file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::dedup::signatures::damaged;
use crate::error::{DataError, Result};

const MAGIC: [u8; 8] = *b"booknot1";
const FOOTER_BYTES: u64 = 24;
/// Hashes read at once.
const CHUNK: usize = 4096;
/// Bytes of the chunk a reader holds.
pub(super) const CHUNK_BYTES: usize = CHUNK * 8;

/// Writes the shingles of a task.
pub(super) struct BookSignatureWriter {
    path: PathBuf,
    file: AtomicFile,
    hasher: Xxh3Default,
    books: u64,
}

impl BookSignatureWriter {
    /// Starts the file `path`, which appears when it is finished.
    pub fn create(path: &Path) -> Result<Self> {
        let mut writer = Self {
            path: path.to_owned(),
            file: AtomicFile::create(path)?,
            hasher: Xxh3Default::new(),
            books: 0,
        };
        writer.write(&MAGIC)?;
        Ok(writer)
    }

    /// Adds a book. `shingles` ascend and are all different.
    pub fn book(&mut self, id: &str, shingles: &[u64]) -> Result<()> {
        self.write(&(id.len() as u64).to_le_bytes())?;
        self.write(&(shingles.len() as u64).to_le_bytes())?;
        self.write(id.as_bytes())?;
        for part in shingles.chunks(CHUNK) {
            let bytes: Vec<u8> = part.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            self.write(&bytes)?;
        }
        self.books += 1;
        Ok(())
    }

    /// Ends the file and makes it appear.
    pub fn finish(mut self) -> Result<FileDigest> {
        let checksum = self.hasher.digest();
        self.write(&self.books.to_le_bytes())?;
        self.write(&checksum.to_le_bytes())?;
        self.write(&MAGIC)?;
        self.file.commit()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(DataError::io(&self.path))
    }
}

/// The signature of a book.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BookSignature {
    /// Id of the book.
    pub id: String,
    /// Its shingles.
    pub shingles: u64,
    /// Where they begin in the file.
    pub offset: u64,
    /// Hash of them all: of two books with the same and as many, one will do.
    pub content: u64,
}

/// Reads and checks the signatures of a task and hands each to `visit`.
pub(super) fn read_books(
    path: &Path,
    mut visit: impl FnMut(BookSignature) -> Result<()>,
) -> Result<()> {
    let mut file = File::open(path).map_err(DataError::io(path))?;
    let length = file.metadata().map_err(DataError::io(path))?.len();
    let body = length.checked_sub(FOOTER_BYTES).ok_or_else(|| damaged(path))?;
    let mut hasher = Xxh3Default::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut read = |bytes: &mut [u8], hasher: &mut Xxh3Default| -> Result<()> {
        file.read_exact(bytes).map_err(DataError::io(path))?;
        hasher.update(bytes);
        Ok(())
    };
    let mut magic = [0; 8];
    read(&mut magic, &mut hasher)?;
    let mut at = 8;
    let mut books: u64 = 0;
    while at < body {
        let mut header = [0; 16];
        read(&mut header, &mut hasher)?;
        at += 16;
        let number = |half: usize| {
            header[8 * half..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let (id_bytes, shingles) = (number(0), number(1));
        let end = shingles
            .checked_mul(8)
            .and_then(|bytes| bytes.checked_add(id_bytes)?.checked_add(at))
            .filter(|&end| end <= body)
            .ok_or_else(|| damaged(path))?;
        let mut id = vec![0; id_bytes as usize];
        read(&mut id, &mut hasher)?;
        let id = String::from_utf8(id).map_err(|_| damaged(path))?;
        at += id_bytes;
        let offset = at;
        let mut content = Xxh3Default::new();
        while at < end {
            let bytes = (end - at).min(CHUNK_BYTES as u64);
            let part = &mut buffer[..bytes as usize];
            read(part, &mut hasher)?;
            content.update(part);
            at += bytes;
        }
        books += 1;
        visit(BookSignature { id, shingles, offset, content: content.digest() })?;
    }
    let checksum = hasher.digest();
    let mut footer = [0; FOOTER_BYTES as usize];
    read(&mut footer, &mut hasher)?;
    let expected = [books.to_le_bytes(), checksum.to_le_bytes(), MAGIC].concat();
    if magic != MAGIC || footer[..] != expected { Err(damaged(path)) } else { Ok(()) }
}

/// The ascending hashes of one book.
pub(super) struct Shingles {
    path: PathBuf,
    file: File,
    left: u64,
    bytes: Vec<u8>,
    taken: usize,
}

impl Shingles {
    /// Reads the hashes of a book that [`read_books`] found in `path`.
    pub fn open(path: &Path, offset: u64, shingles: u64) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let mut hashes = Self { path: path.to_owned(), file, left: 0, bytes: Vec::new(), taken: 0 };
        hashes.seek(offset, shingles)?;
        Ok(hashes)
    }

    /// Goes to another book of the same file.
    pub fn seek(&mut self, offset: u64, shingles: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).map_err(DataError::io(&self.path))?;
        self.left = shingles;
        self.bytes.clear();
        self.taken = 0;
        Ok(())
    }

    /// The next hash.
    pub fn next(&mut self) -> Result<Option<u64>> {
        if self.taken == self.bytes.len() {
            if self.left == 0 {
                return Ok(None);
            }
            let count = self.left.min(CHUNK as u64);
            self.bytes.resize(count as usize * 8, 0);
            self.file.read_exact(&mut self.bytes).map_err(DataError::io(&self.path))?;
            self.left -= count;
            self.taken = 0;
        }
        let hash = self.bytes[self.taken..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        self.taken += 8;
        Ok(hash)
    }
}

/// How many shingles `short` and `long` share, counted until `needed` cannot be reached any more.
pub(super) fn shared(
    short: &mut Shingles,
    long: &mut Shingles,
    shingles: u64,
    needed: u64,
) -> Result<u64> {
    let (mut shared, mut missing) = (0, 0);
    let mut other = long.next()?;
    while let Some(hash) = short.next()? {
        while other.is_some_and(|other| other < hash) {
            other = long.next()?;
        }
        if other == Some(hash) {
            shared += 1;
        } else {
            missing += 1;
            if shingles - missing < needed {
                break;
            }
        }
    }
    Ok(shared)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    #[test]
    fn books_come_back_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signatures");
        let sets: [Vec<u64>; 3] =
            [(0..10_000).map(|at| at * 3).collect(), vec![], (0..500).map(|at| at * 6).collect()];
        let mut writer = BookSignatureWriter::create(&path).unwrap();
        for (at, set) in sets.iter().enumerate() {
            writer.book(&format!("pg:{at}é"), set).unwrap();
        }
        writer.finish().unwrap();
        let mut books = Vec::new();
        read_books(&path, |book| {
            books.push(book);
            Ok(())
        })
        .unwrap();
        assert_eq!(books.len(), 3);
        for (at, (book, set)) in books.iter().zip(&sets).enumerate() {
            assert_eq!(book.id, format!("pg:{at}é"));
            let mut hashes = Shingles::open(&path, book.offset, book.shingles).unwrap();
            let mut found = Vec::new();
            while let Some(hash) = hashes.next().unwrap() {
                found.push(hash);
            }
            assert_eq!(&found, set);
            let bytes: Vec<u8> = set.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            assert_eq!(book.content, xxh3_64(&bytes));
        }
        let open = |at: usize| Shingles::open(&path, books[at].offset, books[at].shingles).unwrap();
        assert_eq!(shared(&mut open(2), &mut open(0), 500, 400).unwrap(), 500);
        assert_eq!(shared(&mut open(1), &mut open(0), 0, 1).unwrap(), 0);
        assert!(shared(&mut open(0), &mut open(2), 10_000, 9000).unwrap() < 9000);

        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 23, 40, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read_books(&path, |_| Ok(())).is_err(), "cut at {length}");
        }
        for at in [0, 8, 16, 24, 5000, whole.len() - 20, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            std::fs::write(&path, &bytes).unwrap();
            assert!(read_books(&path, |_| Ok(())).is_err(), "changed at {at}");
        }
    }
}
