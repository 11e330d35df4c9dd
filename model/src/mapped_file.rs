//! Files mapped into memory, whose pages can be given back once they are read.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{ModelError, Result};

/// A file mapped into memory, read only. Clones share the map.
#[derive(Debug, Clone)]
pub struct MappedFile(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    path: PathBuf,
    map: Mmap,
}

/// A part of a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct MappedBytes<'a> {
    file: &'a MappedFile,
    offset: usize,
    bytes: &'a [u8],
}

/// A part of a mapped file that keeps the map.
#[derive(Debug, Clone)]
pub struct SharedBytes {
    file: MappedFile,
    range: Range<usize>,
}

impl MappedFile {
    /// Maps the file of this path.
    ///
    /// # Errors
    /// [`ModelError::Io`] when it cannot be opened or is not a plain file.
    pub fn open(path: &Path) -> Result<Self> {
        let io_error = |source| ModelError::Io { path: path.to_path_buf(), source };
        if !fs::metadata(path).map_err(io_error)?.is_file() {
            let found = "not a plain file but a directory or a device";
            return Err(io_error(std::io::Error::new(ErrorKind::InvalidInput, found)));
        }
        let file = File::open(path).map_err(io_error)?;
        // SAFETY: the map is read only and private; a file cut short by someone else while it is
        // read can end the process with a bus error, as with every memory-mapped reader, but not
        // corrupt it.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        Ok(Self(Arc::new(Mapping { path: path.to_path_buf(), map })))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A part of the file; none when it is not all inside.
    pub fn part(&self, range: Range<usize>) -> Option<MappedBytes<'_>> {
        let offset = range.start;
        Some(MappedBytes { file: self, offset, bytes: self.0.map.get(range)? })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.map
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // Inside the map: `MappedBytes` was.
        self.file.get(self.range.clone()).unwrap_or_default()
    }
}

impl Deref for MappedBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl SharedBytes {
    /// As [`MappedBytes::release`].
    pub fn release(&self) {
        if let Some(bytes) = self.file.part(self.range.clone()) {
            bytes.release();
        }
    }
}

impl<'a> MappedBytes<'a> {
    /// The file they lie in.
    pub fn path(&self) -> &'a Path {
        self.file.path()
    }

    /// A part of this part; none when it is not all inside.
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        let bytes = self.bytes.get(range.clone())?;
        Some(Self { file: self.file, offset: self.offset.checked_add(range.start)?, bytes })
    }

    /// The same bytes with a share in the map.
    pub fn shared(&self) -> SharedBytes {
        let range = self.offset..self.offset + self.bytes.len();
        SharedBytes { file: self.file.clone(), range }
    }

    /// Gives the pages of these bytes back to the operating system: a file larger than memory is
    /// read with few of its pages in memory. They are read from the disk again where they are still
    /// needed.
    pub fn release(&self) {
        if self.bytes.is_empty() {
            return;
        }
        // SAFETY: the map is read only, private and of a file, and nobody writes to it: a page that
        // is dropped comes back from the file with the same bytes. The range lies inside the map.
        let released = unsafe {
            self.file.0.map.unchecked_advise_range(
                UncheckedAdvice::DontNeed,
                self.offset,
                self.bytes.len(),
            )
        };
        // Advice only: where it is refused, the pages stay until memory is short.
        drop(released);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_inside_and_are_there_again_after_a_release() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let part = file.part(10_000..90_000).unwrap().part(5..70_000).unwrap();
        part.release();
        assert_eq!(&part[..], &bytes[10_005..80_000]);
        assert_eq!(&part.shared()[..], &bytes[10_005..80_000]);
        assert_eq!(&file[..], &bytes[..]);
        assert!(file.part(0..100_001).is_none() && part.part(0..69_996).is_none());
        assert_eq!(part.path(), path);
        file.part(7..7).unwrap().release();
    }

    #[test]
    fn what_is_not_a_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(MappedFile::open(folder.path()).is_err());
        assert!(MappedFile::open(&folder.path().join("none")).is_err());
        fs::write(folder.path().join("empty"), b"").unwrap();
        assert!(MappedFile::open(&folder.path().join("empty")).unwrap().is_empty());
    }
}
