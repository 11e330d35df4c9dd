//! The directory an export or import appears in: whole, or not at all.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::{create_folder, remove_abandoned, sync_folder, temporary_path};
use altiplano_data::storage::is_remote;

use crate::checkpoint;
use crate::error::{Result, TrainerError};

/// A directory under construction. Dropped without [`OutputDirectory::commit`], it leaves nothing.
#[derive(Debug)]
pub struct OutputDirectory {
    path: PathBuf,
    temporary: PathBuf,
}

impl OutputDirectory {
    /// Begins a directory that will be `path`. One that is there must be empty; with `overwrite` it
    /// may be a model that is replaced. What a crash left beside it is deleted.
    ///
    /// # Errors
    /// [`TrainerError::OutputExists`], or when the directory cannot be made.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        if path.file_name().is_none() {
            let message =
                format!("--output {}: expected a path that ends in a name", path.display());
            return Err(TrainerError::Usage { message });
        }
        if is_remote(path) {
            let message = format!(
                "--output {}: is an address; expected a path of this machine",
                path.display()
            );
            return Err(TrainerError::Usage { message });
        }
        check_free(path, overwrite)?;
        remove_abandoned(parent_of(path))?;
        let temporary = temporary_path(path);
        create_folder(&temporary)?;
        Ok(Self { path: path.to_path_buf(), temporary })
    }

    /// Where the files are written before they appear.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Makes the directory appear. Its files are on the disk already.
    ///
    /// # Errors
    /// When it cannot be renamed; what was there before is then still there.
    pub fn commit(self) -> Result<()> {
        sync_folder(&self.temporary)?;
        // An empty directory is replaced by the rename itself.
        if is_empty_or_absent(&self.path)? {
            fs::rename(&self.temporary, &self.path).map_err(TrainerError::io(&self.path))?;
        } else {
            self.exchange()?;
        }
        // What was replaced lies under the temporary name by now, and is deleted with `self`.
        Ok(sync_folder(parent_of(&self.path))?)
    }

    /// Puts the new directory in the place of the old one and the old one in its place, at once where
    /// the file system can.
    fn exchange(&self) -> Result<()> {
        let failed = |error| TrainerError::io(&self.path)(error);
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let (new, old) = (&self.temporary, &self.path);
            match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        let mut name = self.path.file_name().unwrap_or_default().to_os_string();
        name.push(".replaced");
        let aside = temporary_path(&self.path.with_file_name(name));
        fs::rename(&self.path, &aside).map_err(failed)?;
        let renamed = fs::rename(&self.temporary, &self.path);
        let settled = match &renamed {
            Ok(()) => fs::rename(&aside, &self.temporary),
            Err(_) => fs::rename(&aside, &self.path),
        };
        renamed.and(settled).map_err(failed)
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        // After a commit the temporary name is gone, or has what was replaced.
        let _ = fs::remove_dir_all(&self.temporary);
    }
}

/// Whether `path` may be written: nothing or an empty directory is there, or, with `overwrite`, a
/// model and nothing else.
fn check_free(path: &Path, overwrite: bool) -> Result<()> {
    if is_empty_or_absent(path)? {
        return Ok(());
    }
    let refuse = |what: &str| {
        Err(TrainerError::OutputExists { path: path.to_path_buf(), what: what.to_string() })
    };
    if !overwrite {
        return refuse("is not empty; choose another place, or replace it by --overwrite");
    }
    if checkpoint::is_checkpoint(path) {
        return refuse("is a checkpoint of a run, which --overwrite does not replace");
    }
    let is_model = ["config.json", "params.json"].iter().any(|name| path.join(name).is_file());
    let mut plain = true;
    for entry in fs::read_dir(path).map_err(TrainerError::io(path))? {
        let entry = entry.map_err(TrainerError::io(path))?;
        plain &= entry.file_type().map_err(TrainerError::io(path))?.is_file();
    }
    if !(is_model && plain) {
        return refuse("holds other things than a model, which --overwrite does not delete");
    }
    Ok(())
}

fn is_empty_or_absent(path: &Path) -> Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(TrainerError::io(path)(error)),
    }
}

/// The directory that `path` lies in.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_directory_appears_only_when_committed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let output = OutputDirectory::create(&path, false).unwrap();
        fs::write(output.temporary().join("config.json"), "{}").unwrap();
        assert!(!path.exists());
        drop(output);
        assert_eq!(names(folder.path()), [""; 0]);

        // Also over an empty directory that is there.
        fs::create_dir(&path).unwrap();
        let output = OutputDirectory::create(&path, false).unwrap();
        fs::write(output.temporary().join("config.json"), "{}").unwrap();
        output.commit().unwrap();
        assert_eq!(names(&path), ["config.json"]);
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn only_a_model_is_replaced_and_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("config.json"), "old").unwrap();
        let says = |overwrite: bool, words: &str| {
            let error = OutputDirectory::create(&path, overwrite).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("out"), "{error}");
        };
        says(false, "--overwrite");
        let output = OutputDirectory::create(&path, true).unwrap();
        fs::write(output.temporary().join("config.json"), "new").unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read_to_string(path.join("config.json")).unwrap(), "new");
        assert_eq!(names(folder.path()), ["out"]);

        fs::create_dir(path.join("photos")).unwrap();
        says(true, "other things than a model");
        fs::remove_dir(path.join("photos")).unwrap();
        fs::write(path.join("DONE"), "").unwrap();
        says(true, "checkpoint of a run");
        fs::remove_file(path.join("DONE")).unwrap();
        fs::rename(path.join("config.json"), path.join("notes.txt")).unwrap();
        says(true, "other things than a model");
        assert!(OutputDirectory::create(&path.join("notes.txt"), true).is_err());
    }
}
