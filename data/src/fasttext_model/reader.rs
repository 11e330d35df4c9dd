//! Little-endian values from a model file, never allocating more than the file can hold.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};

/// Bytes converted at a time.
const CHUNK: usize = 1 << 16;

/// A model file being read from front to back.
pub(super) struct ModelReader {
    path: PathBuf,
    file: BufReader<File>,
    size: u64,
    offset: u64,
}

impl ModelReader {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let size = file.metadata().map_err(DataError::io(path))?.len();
        let file = BufReader::with_capacity(CHUNK, file);
        Ok(Self { path: path.to_owned(), file, size, offset: 0 })
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> u64 {
        self.size.saturating_sub(self.offset)
    }

    /// An error that says what is wrong, and where.
    pub fn bad(&self, what: impl std::fmt::Display) -> DataError {
        DataError::bad_file(
            &self.path,
            format!(
                "not a usable fastText model: {what} (before byte {} of {}); expected a supervised \
                 model written by fastText 0.2 or later, `.bin` or `.ftz`",
                self.offset, self.size
            ),
        )
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        match self.file.read_exact(buffer) {
            Ok(()) => {
                self.offset += buffer.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.bad(format!("the file ends inside {what}")))
            }
            Err(error) => Err(DataError::io(&self.path)(error)),
        }
    }

    pub fn i32(&mut self, what: &str) -> Result<i32> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes, what)?;
        Ok(i32::from_le_bytes(bytes))
    }

    pub fn i64(&mut self, what: &str) -> Result<i64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes, what)?;
        Ok(i64::from_le_bytes(bytes))
    }

    pub fn u8(&mut self, what: &str) -> Result<u8> {
        let mut byte = [0];
        self.fill(&mut byte, what)?;
        Ok(byte[0])
    }

    pub fn bool(&mut self, what: &str) -> Result<bool> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad(format!("{what} is {other}, expected 0 or 1"))),
        }
    }

    /// A count that is at least 0 and, at `bytes_each` bytes, fits in what is left of the file.
    pub fn count(&self, value: i64, bytes_each: u64, what: &str) -> Result<usize> {
        let fits = u64::try_from(value)
            .ok()
            .filter(|&count| count.saturating_mul(bytes_each) <= self.remaining())
            .and_then(|count| usize::try_from(count).ok());
        fits.ok_or_else(|| {
            self.bad(format!(
                "{what} is {value}, but {} bytes are left of the file",
                self.remaining()
            ))
        })
    }

    pub fn bytes(&mut self, length: usize, what: &str) -> Result<Vec<u8>> {
        let length = self.count(length as i64, 1, what)?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    /// `length` floating point numbers, all finite.
    pub fn floats(&mut self, length: usize, what: &str) -> Result<Vec<f32>> {
        let length = self.count(length as i64, 4, what)?;
        let mut values = Vec::with_capacity(length);
        let mut chunk = vec![0; CHUNK];
        while values.len() < length {
            let part = (4 * (length - values.len())).min(CHUNK);
            self.fill(&mut chunk[..part], what)?;
            let (quads, _) = chunk[..part].as_chunks::<4>();
            values.extend(quads.iter().map(|&quad| f32::from_le_bytes(quad)));
        }
        if values.iter().any(|value| !value.is_finite()) {
            return Err(self.bad(format!("{what} holds a value that is not finite")));
        }
        Ok(values)
    }

    /// Appends the bytes up to the next NUL, which is read but not appended.
    pub fn until_nul(&mut self, bytes: &mut Vec<u8>, bound: usize, what: &str) -> Result<()> {
        let before = bytes.len();
        let read = (&mut self.file)
            .take(bound as u64 + 1)
            .read_until(0, bytes)
            .map_err(DataError::io(&self.path))?;
        self.offset += read as u64;
        if bytes.len() == before || bytes.pop() != Some(0) {
            return Err(self.bad(format!("{what} has no end within {bound} bytes")));
        }
        Ok(())
    }

    /// Checks that nothing follows.
    pub fn end(&self) -> Result<()> {
        if self.remaining() > 0 {
            return Err(self.bad(format!("{} bytes follow the model", self.remaining())));
        }
        Ok(())
    }
}
