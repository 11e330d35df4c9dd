//! Files that readers open, wherever they lie.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::fetch::Fetch;
use super::location::is_remote;
use super::object::{Object, Stop};
use super::store::wait;
use crate::error::{DataError, Result};

/// Bytes that are read first: what follows is fetched ahead once they are used.
const FIRST: u64 = 256 << 10;

/// A file of this machine, or an object.
#[derive(Debug)]
pub(crate) enum InputFile {
    /// A file of this machine.
    Local(File),
    /// An object.
    Remote(RemoteFile),
}

impl InputFile {
    /// Opens `path`, a path or an address.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::Storage`].
    pub fn open(path: &Path) -> Result<Self> {
        match is_remote(path) {
            true => Ok(Self::of(Object::open(path)?)),
            false => Ok(Self::Local(File::open(path).map_err(DataError::io(path))?)),
        }
    }

    /// The bytes of an object.
    pub fn of(object: Arc<Object>) -> Self {
        Self::Remote(RemoteFile::new(object))
    }

    /// Its length in bytes.
    pub fn length(&self) -> io::Result<u64> {
        match self {
            Self::Local(file) => Ok(file.metadata()?.len()),
            Self::Remote(file) => Ok(file.object.bytes),
        }
    }
}

impl Read for InputFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Local(file) => file.read(buffer),
            Self::Remote(file) => file.read(buffer),
        }
    }
}

impl Seek for InputFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        match self {
            Self::Local(file) => file.seek(position),
            Self::Remote(file) => file.seek(position),
        }
    }
}

/// Opens `path` for a format that reads here and there. An object is copied into a nameless temporary file
/// (below `TMPDIR`), which is gone with its reader.
///
/// # Errors
/// [`DataError::Io`] or [`DataError::Storage`].
pub(crate) fn local_file(path: &Path) -> Result<File> {
    match InputFile::open(path)? {
        InputFile::Local(file) => Ok(file),
        InputFile::Remote(mut file) => file.copied().map_err(DataError::io(path)),
    }
}

/// An object that is read as a file.
#[derive(Debug)]
pub(crate) struct RemoteFile {
    object: Arc<Object>,
    position: u64,
    /// Bytes at `position`.
    ready: VecDeque<Bytes>,
    /// Fetches what comes behind `ready`.
    fetch: Option<Fetch>,
    /// Reading went on from where it began, so what follows is worth fetching ahead.
    goes_on: bool,
    /// A copy, for servers that give no ranges.
    copy: Option<File>,
}

impl RemoteFile {
    fn new(object: Arc<Object>) -> Self {
        Self {
            object,
            position: 0,
            ready: VecDeque::new(),
            fetch: None,
            goes_on: false,
            copy: None,
        }
    }

    /// Gets bytes at `position`, which is not the end.
    fn fill(&mut self) -> Result<()> {
        if let Some(fetch) = &mut self.fetch {
            match fetch.next() {
                Some(part) => self.ready.extend(part?),
                None => return Err(self.object.fail("it ends too early; run again")),
            }
        } else if self.object.is_whole_only() {
            self.fetch = Some(Fetch::whole(&self.object)?);
        } else if self.goes_on {
            self.fetch = Some(Fetch::ranges(&self.object, self.position)?);
        } else {
            let (object, start) = (Arc::clone(&self.object), self.position);
            let range = start..start.saturating_add(FIRST).min(object.bytes);
            match wait(&self.object.address, async move { object.read(range).await })? {
                Ok(part) => {
                    self.ready.extend(part);
                    self.goes_on = true;
                }
                Err(Stop::NoRanges) => {}
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// All of it in a nameless file.
    fn copied(&mut self) -> io::Result<File> {
        (self.position, self.fetch) = (0, None);
        self.ready.clear();
        let mut copy = tempfile::tempfile()?;
        while self.position < self.object.bytes {
            while let Some(piece) = self.ready.pop_front() {
                copy.write_all(&piece)?;
                self.position += piece.len() as u64;
            }
            if self.position < self.object.bytes {
                self.fill().map_err(io::Error::other)?;
            }
        }
        copy.rewind()?;
        Ok(copy)
    }

    /// Whether reading at `position` needs a copy.
    fn needs_copy(&self) -> bool {
        self.object.is_whole_only() && self.fetch.is_none() && self.position > 0
    }
}

impl Read for RemoteFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.position >= self.object.bytes {
            return Ok(0);
        }
        while self.ready.is_empty() && self.copy.is_none() {
            if self.needs_copy() {
                let position = self.position;
                let mut copy = self.copied()?;
                copy.seek(SeekFrom::Start(position))?;
                (self.position, self.copy, self.fetch) = (position, Some(copy), None);
            } else {
                self.fill().map_err(io::Error::other)?;
            }
        }
        let count = match (&mut self.copy, self.ready.front_mut()) {
            (Some(copy), _) => copy.read(buffer)?,
            (None, Some(piece)) => {
                let count = piece.len().min(buffer.len());
                piece.copy_to_slice(&mut buffer[..count]);
                if piece.is_empty() {
                    self.ready.pop_front();
                }
                count
            }
            (None, None) => 0,
        };
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for RemoteFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let target = match position {
            SeekFrom::Start(target) => Some(target),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.object.bytes.checked_add_signed(by),
        };
        let target = target.ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(copy) = &mut self.copy {
            copy.seek(SeekFrom::Start(target))?;
        }
        // What is here already is passed over.
        while self.position < target
            && let Some(piece) = self.ready.front_mut()
        {
            let skipped = (target - self.position).min(piece.len() as u64);
            piece.advance(skipped as usize);
            if piece.is_empty() {
                self.ready.pop_front();
            }
            self.position += skipped;
        }
        if self.position != target {
            self.position = target;
            self.ready.clear();
            (self.fetch, self.goes_on) = (None, false);
        }
        Ok(target)
    }
}
