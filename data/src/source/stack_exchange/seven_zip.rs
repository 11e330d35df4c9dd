//! `Posts.xml` inside a 7z archive, streamed.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sevenz_rust2::{Archive, BlockDecoder, Error, Password};

use super::rows::ByteSource;
use crate::decoder_panic;
use crate::error::{DataError, Result};
use crate::storage::InputFile;

/// The table of posts.
const NAME: &str = "Posts.xml";
/// Most memory of the archive's directory and of the decoder's dictionary, in KiB: the largest
/// preset of 7-Zip has a dictionary of 64 MiB, archives made by hand go to 1.5 GiB.
const MEMORY_KIB: usize = 1 << 20;
/// Decompressed bytes in memory.
const BUFFER_BYTES: usize = 1 << 17;
/// Entries that are named when the wanted one is missing.
const NAMED: usize = 8;

/// A file that counts what is read from it.
struct Counted {
    file: InputFile,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Seek for Counted {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Hands the decompressed `Posts.xml` of the archive `path` to `read`. Archives whose directory
/// claims more than `most_expanded` bytes up to the end of that file are refused.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Archive`] when the archive is damaged or cut short, also when
/// a checksum differs; [`DataError::BadFile`] when there is no `Posts.xml` in it or too much; and
/// whatever `read` returns.
pub(super) fn with_posts(
    path: &Path,
    most_expanded: u64,
    read: &mut dyn FnMut(&mut dyn ByteSource) -> Result<()>,
) -> Result<()> {
    let file = InputFile::open(path)?;
    let count = Arc::new(AtomicU64::new(0));
    let mut source = Counted { file, count: Arc::clone(&count) };
    let password = Password::empty();
    let blame = |error: Error| blame(path, count.load(Ordering::Relaxed), error);
    let archive =
        without_panic(|| Archive::read_with_memory_limit(&mut source, &password, MEMORY_KIB))
            .map_err(blame)?;
    let wanted = find(path, &archive)?;
    let Some(block) = archive.stream_map.file_block_index.get(wanted).copied().flatten() else {
        return Err(DataError::bad_file(path, format!("{NAME} in it is empty")));
    };
    let decoder =
        BlockDecoder::new_with_memory_limit(1, MEMORY_KIB, block, &archive, &password, &mut source);
    // A solid block is decompressed from its beginning.
    let mut expanded = 0u64;
    for entry in decoder.entries() {
        expanded = expanded.saturating_add(entry.size());
        if entry.name() == archive.files[wanted].name() {
            break;
        }
    }
    if expanded > most_expanded {
        return Err(DataError::bad_file(
            path,
            format!(
                "{expanded} bytes decompressed, the bound is {most_expanded}; raise \
                 `max_expanded_bytes` if the archive is really that large"
            ),
        ));
    }
    let wanted = archive.files[wanted].name();
    let mut outcome = None;
    let result = decoder.for_each_entries(&mut |entry, reader| {
        if outcome.is_some() {
            return Ok(false);
        }
        if entry.name() != wanted {
            return Ok(true);
        }
        let mut bytes = Entry {
            path,
            reader,
            buffer: vec![0; BUFFER_BYTES],
            ready: 0..0,
            count: &count,
            reported: 0,
        };
        let read = read(&mut bytes);
        let failed = read.is_err();
        outcome = Some(read);
        // The decoder checks the checksum of what was read before it goes on.
        if failed { Err(Error::Other("stopped".into())) } else { Ok(true) }
    });
    match (outcome, result) {
        (Some(Err(error)), _) => Err(error),
        (_, Err(error)) => Err(blame(error)),
        (Some(Ok(())), Ok(_)) => Ok(()),
        (None, Ok(_)) => Err(DataError::bad_file(path, format!("{NAME} in it cannot be read"))),
    }
}

/// Number of the entry of the posts.
fn find(path: &Path, archive: &Archive) -> Result<usize> {
    let is_posts = |name: &str| name.rsplit(['/', '\\']).next() == Some(NAME);
    let mut found = archive
        .files
        .iter()
        .enumerate()
        .filter(|(_, entry)| !entry.is_directory() && is_posts(entry.name()));
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some(_), Some(_)) => {
            Err(DataError::bad_file(path, format!("more than one {NAME} in it; unpack it")))
        }
        (None, _) => {
            let names: Vec<_> =
                archive.files.iter().take(NAMED).map(|entry| entry.name().to_owned()).collect();
            let reason =
                format!("no {NAME} in it, but {}; give the archive of the posts", names.join(", "));
            Err(DataError::bad_file(path, reason))
        }
    }
}

/// The entry that is being decompressed.
struct Entry<'a> {
    path: &'a Path,
    reader: &'a mut dyn Read,
    buffer: Vec<u8>,
    ready: std::ops::Range<usize>,
    count: &'a AtomicU64,
    reported: u64,
}

impl ByteSource for Entry<'_> {
    fn fill(&mut self) -> Result<&[u8]> {
        while self.ready.is_empty() {
            let (reader, buffer) = (&mut *self.reader, &mut self.buffer);
            match without_panic(|| reader.read(buffer).map_err(Error::from)) {
                Ok(0) => return Ok(&[]),
                Ok(read) => self.ready = 0..read,
                Err(Error::Io(error, _)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(blame(self.path, self.count.load(Ordering::Relaxed), error));
                }
            }
        }
        Ok(&self.buffer[self.ready.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.ready.start += count;
    }

    fn newly_consumed(&mut self) -> u64 {
        let count = self.count.load(Ordering::Relaxed);
        let new = count - self.reported;
        self.reported = count;
        new
    }
}

/// A decoder that panics on hostile data has found damage.
fn without_panic<T>(
    decode: impl FnOnce() -> std::result::Result<T, Error>,
) -> std::result::Result<T, Error> {
    decoder_panic::catch(decode).unwrap_or_else(|| Err(Error::Other("the decoder gave up".into())))
}

fn blame(path: &Path, offset: u64, error: Error) -> DataError {
    let reason = match error {
        Error::Io(error, _) => match error.downcast::<DataError>() {
            Ok(error) => return error,
            // Errors with a number come from the operating system.
            Err(error) if error.raw_os_error().is_some() => return DataError::io(path)(error),
            Err(error) => error.to_string(),
        },
        Error::PasswordRequired | Error::MaybeBadPassword(_) => {
            return DataError::bad_file(path, "it is encrypted; unpack it");
        }
        Error::UnsupportedCompressionMethod(method) => {
            return DataError::bad_file(path, format!("compressed with {method}; unpack it"));
        }
        Error::BadSignature(_) => return DataError::bad_file(path, "it is no 7z archive"),
        Error::MaxMemLimited { max_kb, actaul_kb } => {
            let reason = format!("it needs {actaul_kb} KiB of memory, the bound is {max_kb} KiB");
            return DataError::bad_file(path, reason);
        }
        other => other.to_string(),
    };
    DataError::Archive { path: path.to_owned(), offset, reason }
}
