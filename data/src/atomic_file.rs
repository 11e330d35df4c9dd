//! Files that appear whole or not at all: written under a temporary name in the same folder,
//! hashed on the way, flushed to the disk, renamed, and the folder flushed too.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::checksum::{FileDigest, HashingWriter};
use crate::error::{DataError, Result};

/// Part of the name of every file that is not finished. Leftovers of a crash are found by it.
const UNFINISHED: &str = ".tmp.";

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
        let folder = folder_of(path);
        create_folder(folder)?;
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!("{UNFINISHED}{}", std::process::id()));
        let temporary = folder.join(name);
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

/// Makes `folder` and those above it that are missing. After a power loss they are still there.
///
/// # Errors
/// [`DataError::Io`] when a folder cannot be made or flushed to the disk.
pub fn create_folder(folder: &Path) -> Result<()> {
    let missing = folder.ancestors().take_while(|folder| !folder.exists());
    let made: Vec<&Path> = missing.filter(|folder| *folder != Path::new("")).collect();
    fs::create_dir_all(folder).map_err(DataError::io(folder))?;
    // A new folder is an entry of the one above it.
    made.into_iter().rev().try_for_each(|folder| sync_folder(folder_of(folder)))
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

/// Deletes what a crashed run left unfinished in `folder`. A missing folder is fine.
///
/// # Errors
/// [`DataError::Io`] when a leftover cannot be deleted.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DataError::io(folder)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(DataError::io(folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.contains(UNFINISHED) {
            let path = entry.path();
            // Scratch folders are left too.
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            removed.map_err(DataError::io(path))?;
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
    match fs::remove_file(path) {
        Ok(()) => sync_folder(folder_of(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DataError::io(path)(error)),
    }
}

/// Waits until the names in a folder are on the disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
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

    #[test]
    fn leftovers_of_a_crash_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".a.parquet.tmp.77"), b"x").unwrap();
        fs::write(folder.path().join("a.tmp.txt"), b"x").unwrap();
        fs::write(folder.path().join("b.parquet"), b"x").unwrap();
        remove_unfinished(folder.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["a.tmp.txt", "b.parquet"]);
        remove_unfinished(&folder.path().join("missing")).unwrap();
    }
}
