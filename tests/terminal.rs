//! What a user sees on a terminal, and what happens when standard error or output take nothing.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use crate::every_command::EveryCommand;
use crate::harness::{Finished, SmallRun, altiplano};

fn full_device() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").unwrap())
}

/// A pipe whose reader has left.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Stdio::from(writer)
}

/// `command` with standard error closed.
fn without_stderr(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(command.get_program());
    shell.args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        shell.current_dir(dir);
    }
    shell
}

/// Messages that cannot be written cost nothing else: every command ends as it does with a
/// terminal.
#[test]
fn no_command_fails_for_standard_error() {
    let every = EveryCommand::new();
    let stdin = || Stdio::from(File::open(every.dir().join("stdin")).unwrap());
    for used in every.uses("closed") {
        let status = without_stderr(&used.command(every.dir()))
            .stdin(stdin())
            .stdout(Stdio::null())
            .status();
        assert_eq!(status.unwrap().code(), Some(0), "closed: {:?}", used.arguments);
    }
    for (name, stderr) in [("full", full_device as fn() -> Stdio), ("left", broken_pipe)] {
        for used in every.uses(name) {
            let mut command = used.command(every.dir());
            let status = command.stdout(Stdio::null()).stderr(stderr()).status().unwrap();
            assert_eq!(status.code(), Some(0), "{name}: {:?}", used.arguments);
        }
        for (arguments, code) in [(&["train", "no/such.yaml"][..], 2), (&["data", "cat", "no"], 1)]
        {
            let status = altiplano().args(arguments).stderr(stderr()).status().unwrap();
            assert_eq!(status.code(), Some(code), "{name}: {arguments:?}");
        }
    }
}

/// A result that cannot be written is an error that says so; a reader that has seen enough is not.
#[test]
fn every_command_notices_a_full_standard_output() {
    let every = EveryCommand::new();
    for used in every.uses("full") {
        let mut command = used.command(every.dir());
        let finished: Finished = command.stdout(full_device()).output().unwrap().into();
        let arguments = format!("{:?}", used.arguments);
        assert_eq!(finished.code, Some(1), "{arguments}: {}", finished.stderr);
        assert!(finished.stderr.contains("standard output"), "{arguments}: {}", finished.stderr);
    }
    for used in every.uses("left") {
        let mut command = used.command(every.dir());
        let finished: Finished = command.stdout(broken_pipe()).output().unwrap().into();
        assert_eq!(finished.code, Some(0), "{:?}: {}", used.arguments, finished.stderr);
    }
    let help: Finished =
        altiplano().args(["train", "--help"]).stdout(full_device()).output().unwrap().into();
    help.fails(1, &["standard output"]);
}

/// The two ends of a new pseudo-terminal of so many columns.
fn terminal(columns: u16) -> (File, OwnedFd) {
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: the two descriptors are written to and belong to this function alone afterwards.
    unsafe {
        let null = std::ptr::null_mut();
        let made = libc::openpty(&mut ours, &mut theirs, null, null.cast(), &size);
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

/// What a command writes to a terminal of 40 columns that is its standard error.
fn on_a_terminal(command: &mut Command) -> (Option<i32>, String) {
    let (mut ours, theirs) = terminal(40);
    let child = command.env("TERM", "xterm").stdout(Stdio::null()).stderr(Stdio::from(theirs));
    let mut child = child.spawn().unwrap();
    // The command has the only other end now: reading ends, with an error, when it does.
    command.stderr(Stdio::null());
    let (mut text, mut bytes) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = ours.read(&mut bytes) {
        text.extend_from_slice(&bytes[..read]);
    }
    (child.wait().unwrap().code(), String::from_utf8_lossy(&text).into_owned())
}

/// Goes to the beginning of the live line and erases it.
const ERASE: &str = "\r\u{1b}[J";
const WITHOUT_WRAP: &str = "\u{1b}[?7l";
const WITH_WRAP: &str = "\u{1b}[?7h";

/// The live lines among what was written to a terminal.
fn live_lines(text: &str) -> Vec<&str> {
    let begins = text.split(WITHOUT_WRAP).skip(1);
    begins.map(|line| line.split_once(WITH_WRAP).unwrap().0).collect()
}

#[test]
fn progress_fits_into_40_columns() {
    let run = SmallRun::new();
    let (code, text) = on_a_terminal(&mut run.train_command(&["steps=30", "checkpoint.every=0"]));
    assert_eq!(code, Some(0), "{text}");
    let lines = live_lines(&text);
    assert!(lines.iter().any(|line| line.starts_with("1/30") && line.contains("ETA")), "{text:?}");
    let known = |line: &&str| line.contains("loss") || line.starts_with("checksums");
    assert!(lines.iter().all(known), "{lines:?}");

    let every = EveryCommand::new();
    for used in every.uses("terminal") {
        let (code, text) = on_a_terminal(&mut used.command(every.dir()));
        assert_eq!(code, Some(0), "{:?}: {text}", used.arguments);
        for line in live_lines(&text) {
            assert!(line.chars().count() < 40, "{:?}: {line:?}", used.arguments);
            assert!(!line.contains(|c: char| c.is_control()), "{:?}: {line:?}", used.arguments);
        }
        // The cursor is at the beginning of a live line, so erasing leaves nothing of it. The last
        // one is erased, and whatever is written comes after that.
        for (_, after) in
            text.match_indices(WITH_WRAP).map(|(at, mark)| text.split_at(at + mark.len()))
        {
            let next = after.strip_prefix('\r').unwrap();
            assert!(next.starts_with(ERASE), "{:?}: {after:?}", used.arguments);
        }
    }
}

/// A terminal that goes away costs the progress, not the run.
#[test]
fn a_terminal_that_is_gone_ends_no_run() {
    let run = SmallRun::new();
    for name in ["gone", "going"] {
        let (ours, theirs) = terminal(80);
        let mut command = run.train_command(&[&format!("name={name}"), "steps=20"]);
        command.env("TERM", "xterm").stdout(Stdio::null());
        let mut kept = Some(ours);
        if name == "gone" {
            kept = None;
        }
        let mut child = command.stderr(Stdio::from(theirs)).spawn().unwrap();
        command.stderr(Stdio::null());
        if let Some(mut ours) = kept {
            // It has begun to write.
            assert_ne!(ours.read(&mut [0]).unwrap(), 0);
            assert!(ours.as_raw_fd() > 2);
        }
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
        assert_eq!(run.metrics(name).len(), 20);
    }
}
