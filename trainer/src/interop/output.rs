//! The directory an export or import appears in: whole, or not at all.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::sync_folder;

use crate::checkpoint;
use crate::error::{Result, TrainerError};

/// Ends the name of a directory that is being written; the number of the process follows.
const UNFINISHED: &str = ".tmp.";
/// Ends the name of a directory that is being replaced; the number of the process follows.
const REPLACED: &str = ".old.";

/// A directory under construction. Dropped without [`OutputDirectory::commit`], it leaves nothing.
#[derive(Debug)]
pub struct OutputDirectory {
    path: PathBuf,
    temporary: PathBuf,
}

impl OutputDirectory {
    /// Begins a directory that will be `path`. One that is there must be empty; with `overwrite` it
    /// may be a model that is replaced.
    ///
    /// # Errors
    /// [`TrainerError::OutputExists`], or when the directory cannot be made.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        check_free(path, overwrite)?;
        let temporary = beside(path, UNFINISHED)?;
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(TrainerError::io(&temporary))?;
        }
        fs::create_dir_all(&temporary).map_err(TrainerError::io(&temporary))?;
        Ok(Self { path: path.to_path_buf(), temporary })
    }

    /// Where the files are written before they appear.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Makes the directory appear. Its files are on the disk already.
    ///
    /// # Errors
    /// When it cannot be renamed; what was there before is then there again.
    pub fn commit(self) -> Result<()> {
        sync_folder(&self.temporary)?;
        let replaced = beside(&self.path, REPLACED)?;
        // An empty directory is replaced by the rename itself.
        let replaces = !is_empty_or_absent(&self.path)?;
        if replaces {
            fs::rename(&self.path, &replaced).map_err(TrainerError::io(&self.path))?;
        }
        if let Err(error) = fs::rename(&self.temporary, &self.path) {
            if replaces {
                fs::rename(&replaced, &self.path).map_err(TrainerError::io(&replaced))?;
            }
            return Err(TrainerError::io(&self.path)(error));
        }
        sync_folder(parent_of(&self.path))?;
        if replaces {
            fs::remove_dir_all(&replaced).map_err(TrainerError::io(&replaced))?;
        }
        Ok(())
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        // After a commit the temporary name is gone and this does nothing.
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

/// A hidden name beside `path`.
fn beside(path: &Path, mark: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(TrainerError::Usage {
            message: format!("--output {}: expected a path that ends in a name", path.display()),
        });
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!("{mark}{}", std::process::id()));
    Ok(parent_of(path).join(hidden))
}

fn parent_of(path: &Path) -> &Path {
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
