//! Programs that a model wrote, run apart: no network, nothing to write to but a folder of their own, no
//! other process to see, limits on time, memory, processes and files.
//!
//! A program is the first process of a PID namespace: when it ends, the kernel ends all that it started. A
//! process outside waits for it and ends as it did.

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
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
    /// With status 0 before its last line.
    Unfinished,
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
            Self::Unfinished => f.write_str("ended before its tests did"),
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
    // Its last line leaves a file whose name it cannot guess: `exit(0)` before that is no success.
    let finished = folder.path().join(format!("{:032x}", rand::random::<u128>()));
    let program = format!("{program}\nopen({:?}, 'w').close()\n", finished.display().to_string());
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
    let own = CString::new(folder.path().as_os_str().as_bytes())
        .map_err(|error| TrainerError::io(folder.path())(error.into()))?;
    // SAFETY: between `fork` and `exec` the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(move || enter_confinement(&own, seconds, is_superuser)) };
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
        (Some(0), _) if finished.exists() => ProgramEnd::Passed,
        (Some(0), _) => ProgramEnd::Unfinished,
        (Some(code), _) => ProgramEnd::Failed(code),
        (None, signal) => ProgramEnd::Killed(signal.unwrap_or_default()),
    })
}

/// `struct mount_attr` of Linux's `mount_setattr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const MOUNT_READ_ONLY: u64 = 1;

/// Sets and clears attributes of a mount, with `recursive` those below it too.
///
/// # Safety
/// Calls the kernel alone; `path` is read.
unsafe fn set_mount(path: &CStr, recursive: bool, set: u64, clear: u64) -> libc::c_long {
    let attributes = MountAttributes { set, clear, propagation: 0, user_namespace: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the kernel reads the path and as many bytes of the attributes as it is told.
    unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags as libc::c_uint,
            std::ptr::from_ref(&attributes),
            size_of::<MountAttributes>(),
        )
    }
}

/// Waits for `program`, the first process of its namespace, and ends as it did.
fn end_as(program: libc::pid_t) -> ! {
    // SAFETY: system calls on this process and its child. It has no thread and no open file that another
    // process waits for once they are closed.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        let mut status = 0;
        while libc::waitpid(program, &raw mut status, 0) != program {}
        if libc::WIFEXITED(status) {
            libc::_exit(libc::WEXITSTATUS(status));
        }
        libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
        libc::kill(libc::getpid(), libc::WTERMSIG(status));
        libc::_exit(128 + libc::WTERMSIG(status))
    }
}

/// What the child does to itself before it becomes the interpreter: everything is mounted for reading but
/// the folder `own`.
fn enter_confinement(own: &CStr, seconds: u64, is_superuser: bool) -> std::io::Result<()> {
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
        let apart =
            libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWNS | libc::CLONE_NEWPID;
        done(libc::unshare(if is_superuser { apart } else { apart | libc::CLONE_NEWUSER }))?;
        let (root, none) = (c"/", std::ptr::null());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        done(libc::mount(none, root.as_ptr(), none, private, none.cast()))?;
        done(libc::mount(own.as_ptr(), own.as_ptr(), none, libc::MS_BIND, none.cast()))?;
        done(set_mount(root, true, MOUNT_READ_ONLY, 0) as libc::c_int)?;
        done(set_mount(own, false, 0, MOUNT_READ_ONLY) as libc::c_int)?;
        // The working directory was opened before its mount.
        done(libc::chdir(own.as_ptr()))?;
        match libc::fork() {
            -1 => return Err(std::io::Error::last_os_error()),
            0 => {}
            program => end_as(program),
        }
        if is_superuser {
            done(libc::setgroups(0, std::ptr::null()))?;
            done(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
            done(libc::setresuid(NOBODY, NOBODY, NOBODY))?;
        }
        done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
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
    use std::os::unix::fs::PermissionsExt;

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
        // What ends before the tests do has not passed them.
        for early in ["exit(0)", "import sys; sys.exit()", "import os; os._exit(0)"] {
            assert_eq!(ends(&format!("{early}\nassert False")), ProgramEnd::Unfinished, "{early}");
        }
        // Nothing to write but its folder, no process but its own.
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let other = folder.path().join("other");
        assert_eq!(
            ends(&format!("open({:?}, 'w')", other.display().to_string())),
            ProgramEnd::Failed(1)
        );
        assert_eq!(ends("open('/tmp/altiplano-was-here', 'w')"), ProgramEnd::Failed(1));
        let alone = format!(
            "import os\nassert os.getpid() == 1\ntry: os.kill({}, 0)\nexcept ProcessLookupError: pass\n\
             else: assert False",
            std::process::id()
        );
        assert_eq!(ends(&alone), ProgramEnd::Passed);
        // What it started ends with it, whatever session it is in.
        let started = Instant::now();
        let leaves = "import os, time\nfor _ in range(9):\n  if os.fork() == 0:\n    os.setsid(); time.sleep(600)";
        for _ in 0..6 {
            assert_eq!(ends(leaves), ProgramEnd::Passed);
        }
        assert!(started.elapsed() < Duration::from_secs(300));
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
