//! Limits of the system and files that change under a command end with a message.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::every_command::EveryCommand;
use crate::harness::{Finished, SmallRun, copy_dir, corpus};

/// Longest wait for what has to happen.
const PATIENCE: Duration = Duration::from_secs(300);

/// `command` with files of at most so many blocks of 512 bytes.
fn with_file_limit(command: &Command, blocks: u64) -> Finished {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -f {blocks}; exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    shell.env("RUST_BACKTRACE", "0").output().unwrap().into()
}

#[test]
fn a_file_size_limit_is_an_error_that_names_the_file() {
    let run = SmallRun::new();
    let finished = with_file_limit(&run.train_command(&["steps=2"]), 8);
    finished.fails(1, &["model.safetensors", "File too large"]);

    let data = run.dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::copy(corpus().join("data.yaml"), data.join("data.yaml")).unwrap();
    let mut command = crate::harness::altiplano();
    command.args(["data", "run"]).arg(data.join("data.yaml"));
    with_file_limit(&command, 8).fails(1, &[data.to_str().unwrap(), "File too large"]);
}

/// A token shard is mapped into memory: the part that is cut off cannot be read, nor can that be
/// seen before.
#[test]
#[cfg(target_os = "linux")]
fn a_shard_cut_short_under_a_run_is_named() {
    let run = SmallRun::new();
    let own = run.dir.path().join("corpus");
    copy_dir(corpus(), &own);
    let config = fs::read_to_string(run.config()).unwrap();
    let config = config.replace(corpus().to_str().unwrap(), own.to_str().unwrap());
    fs::write(run.config(), config).unwrap();
    let long = ["steps=10000000", "checkpoint.every=0", "validate.every=0"];
    let mut command = run.train_command(&long);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    let log = run.run_dir("small").join("metrics.jsonl");
    while fs::metadata(&log).map_or(0, |log| log.len()) == 0 && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    for source in ["speeches", "books"] {
        let shard = own.join("tokens").join(source).join("train-00000.arrow");
        fs::File::options().write(true).open(shard).unwrap().set_len(0).unwrap();
    }
    while child.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let finished: Finished = child.wait_with_output().unwrap().into();
    let line = finished.stderr.lines().last().unwrap_or_default().to_owned();
    finished.fails(1, &["error: ", "/train-00000.arrow: a part of this file is gone"]);
    assert!(line.starts_with("error: /"), "{line}");
}

/// Makes the system refuse every new thread to `command`, as a limit on processes does.
#[cfg(target_os = "linux")]
fn without_threads(command: &mut Command) {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let answer = |error: i32| libc::SECCOMP_RET_ERRNO | error as u32;
    let mut filter = [
        statement(BPF_LD | BPF_W | BPF_ABS, NUMBER),
        // The C library falls back to `clone`, whose flags are in a register.
        jump(BPF_JMP | BPF_JEQ | BPF_K, libc::SYS_clone3 as u32, 0, 1),
        statement(BPF_RET | BPF_K, answer(libc::ENOSYS)),
        jump(BPF_JMP | BPF_JEQ | BPF_K, libc::SYS_clone as u32, 0, 3),
        statement(BPF_LD | BPF_W | BPF_ABS, FIRST_ARGUMENT),
        jump(BPF_JMP | BPF_JSET | BPF_K, libc::CLONE_THREAD as u32, 0, 1),
        statement(BPF_RET | BPF_K, answer(libc::EAGAIN)),
        statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let set = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: two system calls, with a program that lives until they return.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between `fork` and `exec` the closure makes system calls only.
    unsafe { command.pre_exec(set) };
}

/// A command without the threads it needs says so; one that needs none does its work.
#[test]
#[cfg(target_os = "linux")]
fn refused_threads_are_an_error() {
    let every = EveryCommand::new();
    let mut refused = 0;
    for used in every.uses("refused") {
        let mut command = used.command(every.dir());
        without_threads(&mut command);
        let finished: Finished = command.output().unwrap().into();
        let said = format!("{:?}: {:?} {}", used.arguments, finished.code, finished.stderr);
        match finished.code {
            Some(0) => {}
            Some(1) => {
                refused += 1;
                assert!(said.contains("thread") && said.contains("ulimit -u"), "{said}");
            }
            _ => panic!("{said}"),
        }
        assert!(!said.contains("internal error") && !said.contains("panicked"), "{said}");
    }
    assert!(refused > 5, "{refused} commands have no threads: the test shows nothing");
}
