//! Finds and opens the MPI library.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::environment::{Family, Launcher};
use crate::error::{CommError, Result};

/// An open library.
pub(super) struct Found {
    pub path: PathBuf,
    pub library: Library,
}

const OPEN_MPI: &[&str] = &["libmpi.so.40"];
const MPICH: &[&str] = &["libmpi.so.12", "libmpich.so.12"];
const STANDARD: &[&str] = &["libmpi_abi.so.0", "libmpi_abi.so.1"];
const UNVERSIONED: &[&str] = &["libmpi.so"];

/// File names in the order in which they are tried.
fn names(family: Option<Family>) -> Vec<&'static str> {
    let order = match family {
        Some(Family::OpenMpi) => [OPEN_MPI, STANDARD, MPICH, UNVERSIONED],
        Some(Family::Mpich) => [MPICH, STANDARD, OPEN_MPI, UNVERSIONED],
        None => [STANDARD, OPEN_MPI, MPICH, UNVERSIONED],
    };
    order.concat()
}

/// Folders of libraries that belong to the launcher: of its prefix, beside the program that started
/// this process, beside the launcher in `PATH`. They come before the system's, since a launcher
/// starts only ranks of its own installation.
fn folders() -> Vec<PathBuf> {
    let prefix = std::env::var_os("OPAL_PREFIX").map(PathBuf::from);
    // SAFETY: it has no conditions.
    let parent = unsafe { libc::getppid() };
    let parent = std::fs::read_link(format!("/proc/{parent}/exe")).ok();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let launcher = std::env::split_paths(&path)
        .flat_map(|dir| ["mpirun", "mpiexec"].map(|name| dir.join(name)))
        .find(|file| file.is_file());
    let beside = |program: PathBuf| Some(program.parent()?.parent()?.to_path_buf());
    let prefixes = [prefix, parent.and_then(beside), launcher.and_then(beside)];
    let prefixes = prefixes.into_iter().flatten().filter(|prefix| prefix.is_absolute());
    prefixes.flat_map(|prefix| ["lib", "lib64"].map(|lib| prefix.join(lib))).collect()
}

/// Opens the library at `path`, or the first that can be opened of those that fit `launcher`.
pub(super) fn open(launcher: &Launcher, path: Option<&Path>) -> Result<Found> {
    if let Some(path) = path {
        return open_at(path).map_err(|reason| CommError::Library {
            path: path.to_path_buf(),
            reason: format!("{reason}; expected the libmpi of the MPI that started this process"),
        });
    }
    let mut names = names(launcher.family);
    let mut folders = folders();
    // The launcher's own folders for one name, then the system's, then the next name.
    folders.push(PathBuf::new());
    let mut broken = Vec::new();
    for name in &names {
        for folder in &folders {
            let file = folder.join(name);
            let is_bare = folder.as_os_str().is_empty();
            if !is_bare && !file.exists() {
                continue;
            }
            match open_at(&file) {
                Ok(found) => return Ok(found),
                // The loader says of a file that it does not find no more than its name.
                Err(_) if is_bare => (),
                Err(reason) => broken.push(reason),
            }
        }
    }
    names.dedup();
    let mut tried = names.join(", ");
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        tried.push_str(&format!(", also in {}", folder.display()));
    }
    for reason in broken {
        tried.push_str(&format!("; {reason}"));
    }
    Err(CommError::NoLibrary { launcher: launcher.to_string(), ranks: launcher.ranks, tried })
}

fn open_at(path: &Path) -> std::result::Result<Found, String> {
    // SAFETY: the initialisation of an MPI library has no conditions; which file it is, is said by
    // the user, by the launcher or by the system's loader. Its components look for its symbols in
    // the process, hence global.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => Ok(Found { path: path.to_path_buf(), library }),
        Err(error) => Err(words(&error)),
    }
}

/// What the system's loader says.
pub(super) fn words(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(words) => words.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LAUNCHER: Launcher =
        Launcher { name: "mpirun", family: Some(Family::OpenMpi), ranks: 2, rank: 0 };

    #[test]
    fn the_family_of_the_launcher_comes_first() {
        assert_eq!(names(Some(Family::OpenMpi))[0], "libmpi.so.40");
        assert_eq!(names(Some(Family::Mpich))[0], "libmpi.so.12");
        assert_eq!(names(None).len(), 6);
    }

    #[test]
    fn a_library_that_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("libmpi.so");
        std::fs::write(
            &text,
            "not a library, long enough to be read as a header of one ".repeat(9),
        )
        .unwrap();
        let message = open(&LAUNCHER, Some(&text)).err().unwrap().to_string();
        assert!(message.contains("parallel.library") && message.contains("libmpi.so"), "{message}");
        assert!(message.contains("invalid ELF header"), "{message}");
        // An ELF file of another architecture: the machine field of a header made up here.
        let mut elf = vec![0u8; 4096];
        elf[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        elf[16..20].copy_from_slice(&[3, 0, 0xf3, 0]);
        elf[20] = 1;
        elf[52] = 64;
        std::fs::write(&text, elf).unwrap();
        let error = open(&LAUNCHER, Some(&text)).err().unwrap();
        assert!(error.is_usage() && error.to_string().contains("libmpi.so"), "{error}");
        let missing = open(&LAUNCHER, Some(&dir.path().join("none.so"))).err().unwrap().to_string();
        assert!(missing.contains("none.so") && missing.contains("No such file"), "{missing}");
    }
}
