//! Programs that a model wrote, run apart: no network, a folder of their own, limits on time, memory,
//! processes and files.

use std::fmt;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use altiplano_data::atomic_file::scratch_folder;

use crate::error::{Result, TrainerError};

/// Bytes of memory a program may map.
const MEMORY_BYTES: u64 = 2 << 30;
/// Bytes a file of it may have.
const FILE_BYTES: u64 = 16 << 20;
/// Processes and threads it may have.
const PROCESSES: u64 = 32;
/// Files it may have open.
const OPEN_FILES: u64 = 64;
/// The user that programs run as where this process is the superuser's, for whom limits do not hold.
const NOBODY: libc::uid_t = 65534;

/// What a program may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Seconds on the clock, and of the processor.
    pub seconds: f64,
    /// The interpreter.
    pub python: String,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramEnd {
    /// Without an error.
    Passed,
    /// With an exit status that is not 0.
    Failed(i32),
    /// By a signal: a limit.
    Killed(i32),
    /// It took too long.
    TimedOut,
}

impl ProgramEnd {
    /// Whether it passed its tests.
    pub fn passed(&self) -> bool {
        *self == Self::Passed
    }
}

impl fmt::Display for ProgramEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(status) => write!(f, "failed with status {status}"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// Runs a program in Python. Its standard streams lead nowhere.
///
/// # Errors
/// When it cannot be kept from the network, or there is no interpreter. It is not run then.
pub fn run_program(program: &str, limits: &Limits) -> Result<ProgramEnd> {
    let folder = scratch_folder(&std::env::temp_dir())?;
    let path = folder.path().join("program.py");
    fs::write(&path, program).map_err(TrainerError::io(&path))?;
    // SAFETY: asks the kernel for a number, and nothing else.
    let is_superuser = unsafe { libc::geteuid() } == 0;
    if is_superuser {
        for path in [folder.path(), &path] {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY))
                .map_err(TrainerError::io(path))?;
        }
    }
    let mut command = Command::new(&limits.python);
    command.arg("-I").arg(&path).current_dir(folder.path()).env_clear();
    command
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", folder.path())
        .env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let seconds = limits.seconds.ceil().max(1.0) as u64;
    // SAFETY: between `fork` and `exec` the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(move || enter_confinement(seconds, is_superuser)) };
    let mut child = command.spawn().map_err(|source| TrainerError::Usage {
        message: format!(
            "--allow-code-execution: {} cannot be run without a network and within limits: {source}; \
             it needs Python and the right to make user namespaces \
             (`sysctl kernel.unprivileged_userns_clone`)",
            limits.python
        ),
    })?;
    let group = child.id() as libc::pid_t;
    let end = Instant::now() + Duration::from_secs_f64(limits.seconds);
    let status = loop {
        match child.try_wait().map_err(TrainerError::io(&path))? {
            Some(status) => break Some(status),
            None if Instant::now() >= end => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    // SAFETY: the group was made by the child for itself and what it started; its number is not given
    // to another while the child is not waited for, and where it was, no one of the group may be left.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    let Some(status) = status else {
        child.wait().map_err(TrainerError::io(&path))?;
        return Ok(ProgramEnd::TimedOut);
    };
    Ok(match (status.code(), status.signal()) {
        (Some(0), _) => ProgramEnd::Passed,
        (Some(code), _) => ProgramEnd::Failed(code),
        (None, signal) => ProgramEnd::Killed(signal.unwrap_or_default()),
    })
}

/// What the child does to itself before it becomes the interpreter.
fn enter_confinement(seconds: u64, is_superuser: bool) -> std::io::Result<()> {
    let limits = [
        (libc::RLIMIT_CPU, seconds),
        (libc::RLIMIT_AS, MEMORY_BYTES),
        (libc::RLIMIT_FSIZE, FILE_BYTES),
        (libc::RLIMIT_NOFILE, OPEN_FILES),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_NPROC, PROCESSES),
    ];
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: system calls on this process alone, with values that live until they return.
    unsafe {
        done(libc::setpgid(0, 0))?;
        if is_superuser {
            done(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC))?;
            done(libc::setgroups(0, std::ptr::null()))?;
            done(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
            done(libc::setresuid(NOBODY, NOBODY, NOBODY))?;
        } else {
            done(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC))?;
        }
        done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        for (which, value) in limits {
            let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
            done(libc::setrlimit(which, &limit))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ends(program: &str) -> ProgramEnd {
        run_program(program, &Limits { seconds: 20.0, python: "python3".into() }).unwrap()
    }

    /// Whether there is a Python and a kernel that keeps programs apart.
    fn can_run() -> bool {
        let limits = Limits { seconds: 20.0, python: "python3".into() };
        run_program("pass", &limits).is_ok()
    }

    #[test]
    fn programs_pass_fail_and_stay_within_their_limits() {
        if !can_run() {
            altiplano_data::terminal::write_line("skipped: programs cannot be kept apart here");
            return;
        }
        assert_eq!(ends("assert 1 + 1 == 2"), ProgramEnd::Passed);
        assert_eq!(ends("assert 1 + 1 == 3"), ProgramEnd::Failed(1));
        assert_eq!(ends("import sys; sys.exit(7)"), ProgramEnd::Failed(7));
        // No network, not even its own.
        let connects = "import socket\n\
                        s = socket.socket()\ns.settimeout(5)\n\
                        s.connect(('127.0.0.1', 9))";
        assert_eq!(ends(connects), ProgramEnd::Failed(1));
        let interfaces = "import socket\nnames = [n for _, n in socket.if_nameindex()]\n\
                          assert names == ['lo'], names";
        assert_eq!(ends(interfaces), ProgramEnd::Passed);
        // A folder of its own, and nothing of the environment.
        assert_eq!(
            ends("open('a', 'w').write('b'); assert open('a').read() == 'b'"),
            ProgramEnd::Passed
        );
        assert_eq!(ends("import os; assert 'USER' not in os.environ"), ProgramEnd::Passed);
        assert_eq!(ends("x = bytearray(4 << 30)"), ProgramEnd::Failed(1));
        assert!(!ends("open('a', 'wb').write(b'x' * (64 << 20))").passed());
        let short = Limits { seconds: 0.5, python: "python3".into() };
        assert!(!run_program("while True: pass", &short).unwrap().passed());
        let error = run_program("", &Limits { seconds: 1.0, python: "no-such-python".into() });
        assert!(error.unwrap_err().to_string().contains("no-such-python"));
    }
}
