//! One writer of a folder at a time.
//!
//! A lock is the file `.lock` in the folder; it names the process that holds it. Where the file
//! system has locks, the operating system says whether it is held and lets go of it when the
//! process ends, however it ends. Where it has none, as on some network file systems, the file
//! itself is the lock: it holds while the process it names runs.
//!
//! Processes that share out the work of a folder each hold a lock of their own, `.lock.0-of-4`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::atomic_file::{create_folder, temporary_path};
use crate::error::{DataError, Result};
use crate::process::ProcessId;

/// Name of the file, and the beginning of the names of those of shares.
const LOCK: &str = ".lock";
/// Most bytes read of a lock file.
const LOCK_BYTES: u64 = 4096;
/// How often and how long a process waits for another one to write its name into its lock file.
const WAITS: usize = 50;
const WAIT: Duration = Duration::from_millis(10);

/// Keeps others from writing a folder until it is dropped or the process ends.
#[derive(Debug)]
pub struct FolderLock {
    folder: PathBuf,
    path: PathBuf,
    /// The folder did not exist before.
    made: bool,
    /// Locked by the operating system; None where the file itself is the lock.
    file: Option<File>,
}

impl FolderLock {
    /// The folder that is locked.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Who is locked out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holders {
    /// Everybody else.
    One,
    /// All but the other shares of so many.
    Share { rank: usize, of: usize },
}

impl Holders {
    fn file_name(self) -> String {
        match self {
            Self::One => LOCK.to_owned(),
            Self::Share { rank, of } => format!("{LOCK}.{rank}-of-{of}"),
        }
    }

    /// Whether the lock file `name` locks this one out.
    fn excluded_by(self, name: &str) -> bool {
        let share = name.strip_prefix(LOCK).and_then(|rest| rest.strip_prefix('.'));
        match (self, share) {
            (_, None) => name == LOCK,
            (Self::One, Some(share)) => share.contains("-of-"),
            (Self::Share { of, .. }, Some(share)) => {
                share.rsplit_once("-of-").is_some_and(|(_, other)| other.parse() != Ok(of))
            }
        }
    }
}

/// Asks the operating system for the lock of a file, shared or not.
type AskSystem = fn(&File, bool) -> std::result::Result<(), TryLockError>;

fn ask_system(file: &File, shared: bool) -> std::result::Result<(), TryLockError> {
    if shared { file.try_lock_shared() } else { file.try_lock() }
}

/// Makes `folder`, if need be, and locks it for this process alone.
///
/// # Errors
/// [`DataError::InUse`] naming the process that writes there, [`DataError::Io`].
pub fn lock(folder: &Path) -> Result<FolderLock> {
    acquire(folder, Holders::One, ask_system)
}

/// Makes `folder`, if need be, and locks it for the share `rank` of `of`: other shares of as many
/// may be written at the same time.
///
/// # Errors
/// As [`lock`].
pub fn lock_share(folder: &Path, rank: usize, of: usize) -> Result<FolderLock> {
    acquire(folder, Holders::Share { rank, of }, ask_system)
}

fn acquire(folder: &Path, holders: Holders, system: AskSystem) -> Result<FolderLock> {
    let made = !folder.exists();
    create_folder(folder)?;
    let path = folder.join(holders.file_name());
    let file = take(folder, &path, system)?;
    let lock = FolderLock { folder: folder.to_owned(), path, made, file };
    // Everybody looks at the other locks when its own is taken: of two that begin at the same
    // time at least one sees the other.
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        let name = entry.file_name();
        let other = entry.path();
        if other != lock.path && holders.excluded_by(&name.to_string_lossy()) {
            check_free(folder, &other, holders, system)?;
        }
    }
    Ok(lock)
}

/// What keeps `path` locked for this process.
fn take(folder: &Path, path: &Path, system: AskSystem) -> Result<Option<File>> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let (made, file) = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => match options.open(path) {
                // Let go of in between.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                file => (false, file.map_err(DataError::io(path))?),
            },
            file => (true, file.map_err(DataError::io(path))?),
        };
        match answer(system(&file, false), path)? {
            // The process that held it has deleted the file since it was opened.
            TryLock::Locked if !is_at(&file, path) => continue,
            TryLock::Locked => {
                write_holder(&file, path)?;
                return Ok(Some(file));
            }
            TryLock::Held => return Err(in_use(folder, path, holder(path)?)),
            TryLock::Unsupported if made => {
                write_holder(&file, path)?;
                return Ok(None);
            }
            TryLock::Unsupported => match holder(path)? {
                Some(process) if !process.is_gone() => {
                    return Err(in_use(folder, path, Some(process)));
                }
                gone => remove_stale(folder, path, gone)?,
            },
        }
    }
}

/// An error when somebody holds the lock file `path`. One that nobody holds any more is deleted for
/// a process that is alone.
fn check_free(folder: &Path, path: &Path, holders: Holders, system: AskSystem) -> Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file.map_err(DataError::io(path))?,
    };
    match answer(system(&file, true), path)? {
        TryLock::Locked if holders == Holders::One => {
            fs::remove_file(path).map_err(DataError::io(path))
        }
        TryLock::Locked => Ok(()),
        TryLock::Held => Err(in_use(folder, path, holder(path)?)),
        TryLock::Unsupported => match holder(path)? {
            Some(process) if !process.is_gone() => Err(in_use(folder, path, Some(process))),
            gone if holders == Holders::One => remove_stale(folder, path, gone),
            _ => Ok(()),
        },
    }
}

enum TryLock {
    Locked,
    Held,
    /// The file system has no locks.
    Unsupported,
}

fn answer(locked: std::result::Result<(), TryLockError>, path: &Path) -> Result<TryLock> {
    match locked {
        Ok(()) => Ok(TryLock::Locked),
        Err(TryLockError::WouldBlock) => Ok(TryLock::Held),
        Err(TryLockError::Error(error))
            if error.kind() == ErrorKind::Unsupported
                || error.raw_os_error() == Some(libc::ENOLCK) =>
        {
            Ok(TryLock::Unsupported)
        }
        Err(TryLockError::Error(error)) => Err(DataError::io(path)(error)),
    }
}

/// Whether `file` is the one that `path` names.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

fn write_holder(mut file: &File, path: &Path) -> Result<()> {
    let mut line = serde_json::to_vec(&ProcessId::current()).unwrap_or_default();
    line.push(b'\n');
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(&line))
        .and_then(|()| file.sync_all())
        .map_err(DataError::io(path))
}

/// The process that a lock file names; none when the file is gone, or when nothing has been
/// written to it for a while: its maker has ended in between.
fn holder(path: &Path) -> Result<Option<ProcessId>> {
    for _ in 0..WAITS {
        let mut text = Vec::new();
        match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file
                .and_then(|file| file.take(LOCK_BYTES).read_to_end(&mut text))
                .map_err(DataError::io(path))?,
        };
        if let Ok(process) = serde_json::from_slice(&text) {
            return Ok(Some(process));
        }
        std::thread::sleep(WAIT);
    }
    Ok(None)
}

/// Takes the lock file of a process that has ended out of the way.
fn remove_stale(folder: &Path, path: &Path, stale: Option<ProcessId>) -> Result<()> {
    let aside = temporary_path(path);
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(DataError::io(path))?,
    }
    let found: Option<ProcessId> =
        fs::read(&aside).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if found != stale {
        // Another process has taken the lock since it was looked at: it gets its file back.
        let _ = fs::hard_link(&aside, path);
        let _ = fs::remove_file(&aside);
        return Err(in_use(folder, path, found));
    }
    fs::remove_file(&aside).map_err(DataError::io(&aside))
}

fn in_use(folder: &Path, lock: &Path, holder: Option<ProcessId>) -> DataError {
    let holder = match holder {
        Some(process) if process.host == ProcessId::current().host => {
            format!(", {} of this machine,", process.pid)
        }
        Some(process) => format!(
            ", {} of {} (if it has ended, delete {}),",
            process.pid,
            process.host,
            lock.display()
        ),
        None => String::new(),
    };
    DataError::InUse { path: folder.to_owned(), holder }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // What cannot be deleted names a process that has ended, and holds nobody up.
        let own = || fs::read(&self.path).is_ok_and(|text| is_own(&text));
        if self.file.is_some() || own() {
            let _: io::Result<()> = fs::remove_file(&self.path);
        }
        if self.made {
            // A command that wrote nothing leaves nothing; a folder that is not empty stays.
            let _: io::Result<()> = fs::remove_dir(&self.folder);
        }
    }
}

fn is_own(text: &[u8]) -> bool {
    serde_json::from_slice::<ProcessId>(text).is_ok_and(|holder| holder == ProcessId::current())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// The answer of a file system without locks.
    fn unsupported(_: &File, _: bool) -> std::result::Result<(), TryLockError> {
        Err(TryLockError::Error(ErrorKind::Unsupported.into()))
    }

    const BOTH: [AskSystem; 2] = [ask_system, unsupported];

    fn one(folder: &Path, system: AskSystem) -> Result<FolderLock> {
        acquire(folder, Holders::One, system)
    }

    fn share(folder: &Path, rank: usize, of: usize, system: AskSystem) -> Result<FolderLock> {
        acquire(folder, Holders::Share { rank, of }, system)
    }

    #[track_caller]
    fn refused(lock: Result<FolderLock>) -> String {
        match lock {
            Err(error @ DataError::InUse { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn is_empty(folder: &Path) -> bool {
        fs::read_dir(folder).unwrap().count() == 0
    }

    #[test]
    fn the_second_is_told_who_the_first_is() {
        for system in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let first = one(folder.path(), system).unwrap();
            let own = std::process::id().to_string();
            assert!(refused(one(folder.path(), system)).contains(&own));
            assert!(refused(share(folder.path(), 0, 2, system)).contains(&own));
            drop(first);
            assert!(is_empty(folder.path()), "a lock that is let go of leaves no file");
            one(folder.path(), system).unwrap();
        }
    }

    #[test]
    fn shares_of_the_same_work_are_written_side_by_side() {
        for system in BOTH {
            let folder = tempfile::tempdir().unwrap();
            let first = share(folder.path(), 0, 2, system).unwrap();
            let second = share(folder.path(), 1, 2, system).unwrap();
            refused(share(folder.path(), 1, 2, system));
            refused(share(folder.path(), 2, 3, system));
            refused(one(folder.path(), system));
            drop(first);
            refused(one(folder.path(), system));
            drop(second);
            assert!(is_empty(folder.path()));
            one(folder.path(), system).unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_made_for_nothing_goes_again() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("new");
        drop(lock(&new).unwrap());
        assert!(!new.exists());
        let held = lock(&new).unwrap();
        fs::write(new.join("file"), "x").unwrap();
        drop(held);
        assert!(new.join("file").exists());
    }

    fn sleeper() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id());
        (child, process)
    }

    fn write(path: &Path, process: &ProcessId) {
        fs::write(path, serde_json::to_vec(process).unwrap()).unwrap();
    }

    #[test]
    fn without_locks_of_the_file_system_a_lock_holds_while_its_process_runs() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, process) = sleeper();
        for name in [".lock", ".lock.0-of-3"] {
            write(&folder.path().join(name), &process);
        }
        for _ in 0..2 {
            let error = refused(one(folder.path(), unsupported));
            assert!(error.contains(&process.pid.to_string()), "{error}");
        }
        fs::remove_file(folder.path().join(".lock")).unwrap();
        refused(one(folder.path(), unsupported));
        write(&folder.path().join(".lock"), &process);
        refused(share(folder.path(), 1, 3, unsupported));

        child.kill().unwrap();
        child.wait().unwrap();
        let held = one(folder.path(), unsupported).unwrap();
        refused(one(folder.path(), unsupported));
        drop(held);

        // Nobody can ask another machine; what to do is said.
        let elsewhere = ProcessId { host: "elsewhere".into(), ..process };
        let path = folder.path().join(".lock");
        write(&path, &elsewhere);
        let error = refused(one(folder.path(), unsupported));
        assert!(error.contains("of elsewhere"), "{error}");
        assert!(error.contains(&format!("delete {}", path.display())), "{error}");
        // A process that ended before it wrote its name holds nothing.
        fs::write(&path, "").unwrap();
        one(folder.path(), unsupported).unwrap();
    }

    #[test]
    fn where_the_file_system_has_locks_what_a_file_says_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, process) = sleeper();
        write(&folder.path().join(".lock"), &process);
        write(&folder.path().join(".lock.1-of-2"), &process);
        let held = lock(folder.path()).unwrap();
        assert!(refused(lock(folder.path())).contains(&std::process::id().to_string()));
        drop(held);
        assert!(is_empty(folder.path()), "what the other left is cleared away");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
