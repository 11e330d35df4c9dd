//! Reader threads that stay some batches ahead, in order.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::assemble::Assembler;
use super::plan::Planner;
use super::{Batch, Share};
use crate::error::{DataError, Result};

/// Batches each reader may be ahead.
const AHEAD_PER_READER: u64 = 2;

/// A batch and the numbers of sequences drawn when it is used.
type Ready = (Batch, Vec<u64>);

/// Reader threads and what they have read.
pub(super) struct Prefetch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    assembler: Arc<Assembler>,
}

struct State {
    planner: Planner,
    share: Share,
    /// Number of the next batch to be read.
    next_read: u64,
    /// Number of the next batch to be returned.
    next_returned: u64,
    ahead: u64,
    ready: BTreeMap<u64, Result<Ready>>,
    stop: bool,
    /// A reader ended in a panic.
    broken: bool,
}

impl Prefetch {
    /// Starts `readers` threads that continue from `planner`.
    pub fn start(
        assembler: Arc<Assembler>,
        planner: Planner,
        share: Share,
        readers: usize,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                planner,
                share,
                next_read: 0,
                next_returned: 0,
                ahead: AHEAD_PER_READER * readers as u64,
                ready: BTreeMap::new(),
                stop: false,
                broken: false,
            }),
            changed: Condvar::new(),
            assembler,
        });
        let mut prefetch = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        for number in 0..readers {
            let shared = Arc::clone(&shared);
            // On failure the threads started so far are stopped by the drop.
            let thread = std::thread::Builder::new()
                .name(format!("reader-{number}"))
                .spawn(move || shared.read_batches())
                .map_err(refused)?;
            prefetch.threads.push(thread);
        }
        Ok(prefetch)
    }

    /// The next batch, waiting for it if need be.
    pub fn next(&mut self) -> Result<Ready> {
        let mut state = self.shared.lock();
        loop {
            let number = state.next_returned;
            if let Some(ready) = state.ready.remove(&number) {
                state.next_returned += 1;
                self.shared.changed.notify_all();
                return ready;
            }
            if state.broken {
                return Err(DataError::io("reader thread")(std::io::Error::other(
                    "it ended unexpectedly; its message is above",
                )));
            }
            state = self.shared.wait(state);
        }
    }
}

/// The system has no thread left.
fn refused(error: std::io::Error) -> DataError {
    let advice = "ask for fewer `readers` or `threads`, or raise the limit on processes and \
                  threads (`ulimit -u`, or `pids.max` of the control group)";
    DataError::bad_file("reader thread", format!("it cannot be started ({error}); {advice}"))
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was already reported through `broken`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn read_batches(&self) {
        let mut alarm = Alarm { shared: self, armed: true };
        while let Some((number, rows, drawn)) = self.take_work() {
            let batch = self.assembler.batch(&rows).map(|batch| (batch, drawn));
            let mut state = self.lock();
            state.ready.insert(number, batch);
            drop(state);
            self.changed.notify_all();
        }
        alarm.armed = false;
    }

    /// The rows of the next batch to be read; none when it is time to stop.
    fn take_work(&self) -> Option<(u64, Vec<super::plan::Row>, Vec<u64>)> {
        let mut state = self.lock();
        while !state.stop && state.next_read >= state.next_returned + state.ahead {
            state = self.wait(state);
        }
        if state.stop {
            return None;
        }
        let number = state.next_read;
        state.next_read += 1;
        let share = state.share;
        let rows = state.planner.next_rows_of(share);
        let drawn = state.planner.drawn().to_vec();
        Some((number, rows, drawn))
    }
}

/// Tells the waiting side when a reader panics, so that it does not wait for ever.
struct Alarm<'a> {
    shared: &'a Shared,
    armed: bool,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shared.lock().broken = true;
            self.shared.changed.notify_all();
        }
    }
}
