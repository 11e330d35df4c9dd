//! Signals that ask a run to end: it saves a checkpoint after the step it is in.
//!
//! | signal | from | exit status |
//! |---|---|---|
//! | SIGINT | Ctrl-C | 130 |
//! | SIGTERM | `kill`, a scheduler at the end of the time | 143 |
//! | SIGHUP | the terminal that is closed; not under `nohup` | 129 |
//! | SIGUSR1 | a scheduler some time before the end, as Slurm's `--signal=USR1@300` | 138 |
//!
//! The status is 128 + the number of the signal that came first, as a shell gives for a process that
//! a signal ended. A second Ctrl-C within a long step is answered with a line, a third ends the
//! process at once.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use altiplano_data::terminal::write_line;
use serde::{Serialize, Serializer};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::error::{Result, TrainerError};

/// A signal that asks a run to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// Name of the signal: `SIGTERM`.
    pub fn name(self) -> &'static str {
        low_level::signal_name(self.0).unwrap_or("a signal")
    }

    /// Its number, as ranks tell it each other.
    pub(crate) fn number(self) -> u32 {
        self.0.unsigned_abs()
    }

    /// The signal of a number that [`Signal::number`] gave.
    pub(crate) fn from_number(number: i32) -> Self {
        Self(number)
    }

    /// Exit status of a process that ends because of it: 128 + its number.
    pub fn exit_status(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(u8::MAX)
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Number of the signal that came first; 0 before.
static FIRST: AtomicI32 = AtomicI32::new(0);

/// How often SIGINT has come.
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// The signal that asked this process to end, if one has.
pub fn pending() -> Option<Signal> {
    match FIRST.load(Ordering::Relaxed) {
        0 => None,
        number => Some(Signal(number)),
    }
}

/// From now on [`pending`] tells of signals, which end the process no more. SIGHUP is left alone
/// where it is ignored already, as under `nohup`.
///
/// # Errors
/// When the operating system refuses a handler or the thread that waits for signals.
pub fn catch() -> Result<()> {
    let failed = |error: std::io::Error| TrainerError::RunFile {
        path: "signal handlers".into(),
        reason: format!(
            "cannot be installed, with a thread of their own ({error}); raise the limit on \
             processes and threads (`ulimit -u`, or `pids.max` of the control group)"
        ),
    };
    let caught = [SIGINT, SIGTERM, SIGUSR1].into_iter().chain(hangup());
    let wait = |mut signals: Signals| {
        for signal in signals.forever() {
            match received(signal) {
                Answer::None => {}
                Answer::Line(line) => write_line(&line),
                Answer::EndNow => low_level::exit(Signal(signal).exit_status().into()),
            }
        }
    };
    let signals = Signals::new(caught).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || wait(signals))
        .map(drop)
        .map_err(|source| TrainerError::Threads {
            purpose: "wait for signals",
            source: source.into(),
        })
}

/// SIGHUP, unless it is ignored.
fn hangup() -> Option<i32> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing; the pointer is to a writable sigaction,
    // which the call fills.
    let status = unsafe { libc::sigaction(SIGHUP, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: sigaction holds integers and optional pointers, and zero is a value of each.
    let action = unsafe { action.assume_init() };
    (status != 0 || action.sa_sigaction != libc::SIG_IGN).then_some(SIGHUP)
}

/// What follows at once when a signal comes.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    None,
    Line(String),
    EndNow,
}

/// Notes a signal.
fn received(signal: i32) -> Answer {
    let first = FIRST.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    let interrupts = match signal {
        SIGINT => INTERRUPTS.fetch_add(1, Ordering::Relaxed) + 1,
        _ => 0,
    };
    answer(Signal(signal), first, interrupts)
}

/// The answer to a signal that is the `first` of all or not and, if it is SIGINT, the
/// `interrupts`-th of its kind.
fn answer(signal: Signal, first: bool, interrupts: u32) -> Answer {
    match interrupts {
        _ if first => Answer::Line(format!(
            "{}: the run ends after the step in progress and its checkpoint",
            signal.name()
        )),
        0 => Answer::None,
        1 | 2 => Answer::Line(
            "the step in progress is not done yet; Ctrl-C once more ends at once, and the steps \
             since the last checkpoint are lost"
                .into(),
        ),
        _ => Answer::EndNow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_what_a_shell_gives() {
        let found =
            [SIGINT, SIGTERM, SIGHUP, SIGUSR1].map(|n| (Signal(n).name(), Signal(n).exit_status()));
        let expected = [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138)];
        assert_eq!(found, expected);
    }

    #[test]
    fn only_ctrl_c_insists() {
        let line = |answer| matches!(answer, Answer::Line(_));
        assert!(line(answer(Signal(SIGINT), true, 1)));
        assert!(line(answer(Signal(SIGINT), false, 2)));
        assert_eq!(answer(Signal(SIGINT), false, 3), Answer::EndNow);
        // Schedulers repeat themselves.
        assert!(line(answer(Signal(SIGTERM), true, 0)));
        assert_eq!(answer(Signal(SIGTERM), false, 0), Answer::None);
        assert!(line(answer(Signal(SIGINT), false, 1)));
    }
}
