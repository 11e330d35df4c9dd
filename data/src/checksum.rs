//! What a file is meant to hold: length and blake3 hash, taken from the bytes on their way to the
//! file and never from the file itself. Whoever reads the file later holds it against them.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::storage;

/// Length and hash of the bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Length in bytes.
    pub bytes: u64,
    /// blake3 hash, in hexadecimal.
    pub blake3: String,
}

impl FileDigest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }

    /// Holds the length of the file `path` against the digest, without reading the file.
    /// `remedy` tells the user how the file is made anew.
    ///
    /// # Errors
    /// [`DataError::Altered`] when the file is missing or has another length, [`DataError::Io`].
    pub fn verify_length(&self, path: &Path, remedy: &'static str) -> Result<()> {
        let found = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Of what lies in a bucket a command fetches only what it reads.
                if let Some(length) = storage::stored_length(path) {
                    return self.compare_length(path, length, remedy);
                }
                let difference = format!("missing, expected a file of {} bytes", self.bytes);
                return Err(DataError::altered(path, difference, remedy));
            }
            Err(error) => return Err(DataError::io(path)(error)),
        };
        self.compare_length(path, found, remedy)
    }

    /// Holds the file `path` against the digest: its length first, then every byte.
    ///
    /// # Errors
    /// As [`FileDigest::verify_length`]; [`DataError::Altered`] when the hash differs.
    pub fn verify(&self, path: &Path, remedy: &'static str) -> Result<()> {
        self.verify_length(path, remedy)?;
        let file = File::open(path).map_err(DataError::io(path))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(DataError::io(path))?;
        self.compare_hash(path, hasher.finalize(), remedy)
    }

    /// Reads the file `path`, once: the bytes given are the bytes that were checked.
    ///
    /// # Errors
    /// As [`FileDigest::verify`].
    pub fn read(&self, path: &Path, remedy: &'static str) -> Result<Vec<u8>> {
        self.verify_length(path, remedy)?;
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        self.check(&bytes, path, remedy)?;
        Ok(bytes)
    }

    /// Holds `bytes`, which were read from `path`, against the digest.
    ///
    /// # Errors
    /// [`DataError::Altered`].
    pub fn check(&self, bytes: &[u8], path: &Path, remedy: &'static str) -> Result<()> {
        self.compare_length(path, bytes.len() as u64, remedy)?;
        self.compare_hash(path, blake3::hash(bytes), remedy)
    }

    fn compare_length(&self, path: &Path, found: u64, remedy: &'static str) -> Result<()> {
        if found == self.bytes {
            return Ok(());
        }
        let difference = format!("truncated or altered: {found} bytes, expected {}", self.bytes);
        Err(DataError::altered(path, difference, remedy))
    }

    fn compare_hash(&self, path: &Path, found: blake3::Hash, remedy: &'static str) -> Result<()> {
        let found = found.to_hex();
        if found.as_str() == self.blake3 {
            return Ok(());
        }
        let difference = format!("altered: blake3 is {found}, expected {}", self.blake3);
        Err(DataError::altered(path, difference, remedy))
    }
}

/// Hashes what is written through it.
pub struct HashingWriter<W> {
    inner: W,
    /// Two kilobytes, on the heap so that writers can be moved about.
    hasher: Box<blake3::Hasher>,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Passes everything on to `inner`. Put the buffer in front of it: long runs hash fastest.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Box::default(), bytes: 0 }
    }

    /// The writer inside, and the digest of all that was written.
    pub fn finish(self) -> (W, FileDigest) {
        let blake3 = self.hasher.finalize().to_hex().to_string();
        (self.inner, FileDigest { bytes: self.bytes, blake3 })
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: fmt::Debug> fmt::Debug for HashingWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashingWriter").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_the_bytes_written() {
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"first ").unwrap();
        writer.write_all(b"second").unwrap();
        let (bytes, digest) = writer.finish();
        assert_eq!(bytes, b"first second");
        assert_eq!(digest, FileDigest::of(b"first second"));
    }

    #[test]
    fn every_difference_names_the_file_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let digest = FileDigest::of(b"as meant");
        let message = |digest: &FileDigest| {
            let verified = digest.verify(&path, "make it again").unwrap_err().to_string();
            let read = digest.read(&path, "make it again").unwrap_err().to_string();
            assert_eq!(verified, read);
            assert!(read.contains("a.bin") && read.ends_with("; make it again"), "{read}");
            read
        };
        assert!(message(&digest).contains("missing"));
        std::fs::write(&path, b"as mean").unwrap();
        assert!(message(&digest).contains("truncated or altered: 7 bytes, expected 8"));
        std::fs::write(&path, b"As meant").unwrap();
        assert!(message(&digest).contains("altered: blake3"));
        digest.verify_length(&path, "").unwrap();
        std::fs::write(&path, b"as meant").unwrap();
        digest.verify(&path, "").unwrap();
        assert_eq!(digest.read(&path, "").unwrap(), b"as meant");
    }
}
