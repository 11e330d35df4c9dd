//! Files that appear whole or not at all: written under a temporary name in the same folder,
//! hashed on the way, flushed to the disk, renamed, and the folder flushed too.
//!
//! A temporary name says which process made it, `.NAME.tmp.PID.HOST.STARTED`, so that what a crash
//! left can be told from what is being written.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::checksum::{FileDigest, HashingWriter};
use crate::error::{DataError, Result};
use crate::process::ProcessId;
use crate::storage::{self, is_remote};

/// Part of the name of every file that is not finished. Leftovers of a crash are found by it.
const UNFINISHED: &str = ".tmp.";

/// The name for `name` while it is made.
fn temporary_name(name: &std::ffi::OsStr) -> OsString {
    let process = ProcessId::current();
    let mut temporary = OsString::from(".");
    temporary.push(name);
    let (pid, host, started) = (process.pid, process.host_tag(), process.started);
    temporary.push(format!("{UNFINISHED}{pid}.{host}.{started:x}"));
    temporary
}

/// Where a file lies until it is finished: beside `path`, under a name by which the next start
/// finds what a crash left.
pub fn temporary_path(path: &Path) -> PathBuf {
    folder_of(path).join(temporary_name(path.file_name().unwrap_or_default()))
}

/// An empty folder below `parent`, which is made if it is missing, for files that are not kept.
/// It is deleted when dropped; after a crash the next start deletes it.
///
/// # Errors
/// [`DataError::Io`] when a folder cannot be made.
pub fn scratch_folder(parent: &Path) -> Result<TempDir> {
    create_folder(parent)?;
    let mut prefix = temporary_name("scratch".as_ref());
    prefix.push(".");
    tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(DataError::io(parent))
}

/// Makes `folder` and the folders above it that are missing. Each one's entry in its parent is
/// flushed to the disk: after a power loss a file in it would be lost with the folder.
///
/// # Errors
/// [`DataError::Io`] when one cannot be made.
pub fn create_folder(folder: &Path) -> Result<()> {
    refuse_address(folder)?;
    create_and_flush(folder, &mut sync_folder)
}

/// A folder named `s3:` is nothing that anybody wants.
fn refuse_address(path: &Path) -> Result<()> {
    if !is_remote(path) {
        return Ok(());
    }
    let reason = "is an address; expected a path of this machine";
    Err(DataError::io(path)(io::Error::new(io::ErrorKind::InvalidInput, reason)))
}

fn create_and_flush(folder: &Path, flush: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder_of(folder);
    if folder.parent().is_some() {
        create_and_flush(parent, flush)?;
    }
    match fs::create_dir(folder) {
        // Another process or thread was faster; it may not have come to the flush yet.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made.map_err(DataError::io(folder))?,
    }
    flush(parent)
}

/// A file under construction. Dropped without [`AtomicFile::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    file: Option<BufWriter<HashingWriter<File>>>,
    temporary: PathBuf,
    path: PathBuf,
}

impl AtomicFile {
    /// Starts writing `path`. Its folder is made if it is missing.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder or the file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        refuse_address(path)?;
        create_folder(folder_of(path))?;
        let temporary = temporary_path(path);
        let file = File::create(&temporary).map_err(DataError::io(&temporary))?;
        Ok(Self {
            file: Some(BufWriter::with_capacity(1 << 18, HashingWriter::new(file))),
            temporary,
            path: path.to_owned(),
        })
    }

    /// Makes the file appear under its name, replacing what was there, and gives the digest of
    /// what was written to it.
    ///
    /// # Errors
    /// [`DataError::Io`]; the old file is then still there.
    pub fn commit(mut self) -> Result<FileDigest> {
        // Only this function takes the file, and it is called once.
        let Some(buffered) = self.file.take() else {
            return Err(DataError::io(&self.path)(finished()));
        };
        let hashing =
            buffered.into_inner().map_err(|error| DataError::io(&self.path)(error.into_error()))?;
        let (file, digest) = hashing.finish();
        file.sync_all().map_err(DataError::io(&self.path))?;
        drop(file);
        fs::rename(&self.temporary, &self.path).map_err(DataError::io(&self.path))?;
        sync_folder(folder_of(&self.path))?;
        storage::committed(&self.path)?;
        Ok(digest)
    }
}

fn finished() -> io::Error {
    io::Error::other("the file is already finished")
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(finished()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.flush(),
            None => Ok(()),
        }
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a commit the temporary name is gone and this does nothing.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes `bytes` to `path` in one go.
///
/// # Errors
/// [`DataError::Io`]; the old file is then still there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<FileDigest> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(DataError::io(path))?;
    file.commit()
}

/// Deletes what was left unfinished in `folder`, by whatever process: for the one that holds the
/// [lock](crate::lock) of the folder. A missing folder is fine.
///
/// # Errors
/// [`DataError::Io`] when a leftover cannot be deleted.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    remove_leftovers(folder, |_| true)
}

/// Deletes what processes of this machine that have ended left unfinished in `folder`, in which
/// others may be writing. A missing folder is fine.
///
/// # Errors
/// [`DataError::Io`] when a leftover cannot be deleted.
pub fn remove_abandoned(folder: &Path) -> Result<()> {
    let here = ProcessId::current();
    remove_leftovers(folder, |writer| {
        let Writer::Process { pid, ref host, started } = *writer else { return false };
        *host == here.host_tag() && ProcessId { pid, started, ..here.clone() }.is_gone()
    })
}

/// Who made a temporary name.
enum Writer {
    Process {
        pid: u32,
        /// [`ProcessId::host_tag`].
        host: String,
        started: u64,
    },
    /// An earlier version of altiplano, which did not say.
    Unknown,
}

impl Writer {
    /// The writer of a temporary name; None for any other name.
    fn of(name: &str) -> Option<Self> {
        let (front, rest) = name.strip_prefix('.').and(name.rsplit_once(UNFINISHED))?;
        let mut parts = rest.split('.');
        let pid = parts.next()?;
        let process = pid.parse().ok().zip(parts.next()).zip(parts.next());
        match process {
            Some(((pid, host), started)) => {
                let started = u64::from_str_radix(started, 16).ok()?;
                Some(Self::Process { pid, host: host.to_owned(), started })
            }
            None if parts.next().is_some() => None,
            // `.NAME.tmp.PID`, and scratch folders `.tmp.RANDOM`.
            None => (pid.parse::<u32>().is_ok() || front.is_empty()).then_some(Self::Unknown),
        }
    }
}

fn remove_leftovers(folder: &Path, wanted: impl Fn(&Writer) -> bool) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DataError::io(folder)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(DataError::io(folder))?;
        let name = entry.file_name();
        if !Writer::of(&name.to_string_lossy()).is_some_and(|writer| wanted(&writer)) {
            continue;
        }
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        match removed {
            // Its writer was not gone yet and has cleaned up itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(DataError::io(path))?,
        }
    }
    Ok(())
}

/// Deletes `path`, if it is there, and waits until that is on the disk. What says that other files
/// are whole goes this way before the first of them is replaced.
///
/// # Errors
/// [`DataError::Io`] when it cannot be deleted.
pub fn remove_durably(path: &Path) -> Result<()> {
    storage::removed(path)?;
    match fs::remove_file(path) {
        Ok(()) => sync_folder(folder_of(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DataError::io(path)(error)),
    }
}

/// Waits until the names in a folder are on the disk.
///
/// # Errors
/// [`DataError::Io`].
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(DataError::io(folder))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_committed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file.txt");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);

        let digest = write_atomically(&path, b"whole").unwrap();
        assert_eq!(digest, FileDigest::of(b"whole"));
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        remove_durably(&path).unwrap();
        assert!(!path.exists());
        remove_durably(&path).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for leftover in [".a.parquet.tmp.77", ".a.parquet.tmp.77.0123abcd.1f"] {
            fs::write(folder.path().join(leftover), b"x").unwrap();
        }
        for scratch in [".tmp.aB3xyz", ".scratch.tmp.77.0123abcd.1f.aB3xyz"] {
            fs::create_dir(folder.path().join(scratch)).unwrap();
            fs::write(folder.path().join(scratch).join("x"), b"x").unwrap();
        }
        for other in ["a.tmp.txt", "b.parquet", ".hidden", ".c.tmp.txt"] {
            fs::write(folder.path().join(other), b"x").unwrap();
        }
        remove_unfinished(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [".c.tmp.txt", ".hidden", "a.tmp.txt", "b.parquet"]);
        remove_unfinished(&folder.path().join("missing")).unwrap();
    }

    #[test]
    fn what_a_living_process_writes_is_no_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let file = AtomicFile::create(&path).unwrap();
        let scratch = scratch_folder(folder.path()).unwrap();
        let own = names(folder.path());
        assert_eq!(own.len(), 2);
        // The same names by a process that has ended: the number of this one, started earlier.
        let here = ProcessId::current();
        let ended = ProcessId { started: here.started + 1, ..here.clone() };
        for name in &own {
            let name =
                name.replace(&format!(".{:x}", here.started), &format!(".{:x}", ended.started));
            fs::write(folder.path().join(name), b"x").unwrap();
        }
        fs::write(folder.path().join(".b.tmp.1.00000000.1"), b"of another machine").unwrap();
        remove_abandoned(folder.path()).unwrap();
        let mut left = own.clone();
        left.push(".b.tmp.1.00000000.1".into());
        left.sort();
        assert_eq!(names(folder.path()), left);
        remove_unfinished(folder.path()).unwrap();
        assert!(names(folder.path()).is_empty());
        drop((file, scratch));
    }

    #[test]
    fn the_parent_of_every_new_folder_is_flushed() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        let mut flushed = Vec::new();
        let mut flush = |folder: &Path| {
            flushed.push(folder.to_owned());
            sync_folder(folder)
        };
        create_and_flush(&deep, &mut flush).unwrap();
        create_and_flush(&deep, &mut flush).unwrap();
        let parents = ["", "a", "a/b"].map(|name| folder.path().join(name));
        assert_eq!(flushed, parents);
        fs::write(folder.path().join("file"), "x").unwrap();
        create_folder(&folder.path().join("file/below")).unwrap_err();
    }
}
