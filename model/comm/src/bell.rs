//! Wakes a thread that has nothing to do.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A lock whose holder cannot have left it half changed: nothing panics while holding it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts how often it was rung, so that no ring between a look and a wait is lost.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    /// Wakes the thread that waits.
    pub fn ring(&self) {
        *lock(&self.rings) += 1;
        self.rung.notify_all();
    }

    /// How often it was rung. Look at this first, then at what rings announce, then wait.
    pub fn rings(&self) -> u64 {
        *lock(&self.rings)
    }

    /// Waits for a ring after the `seen` ones, at most `limit`.
    pub fn wait(&self, seen: u64, limit: Duration) {
        let rings = lock(&self.rings);
        // A spurious or early end costs one more look.
        drop(self.rung.wait_timeout_while(rings, limit, |rings| *rings == seen));
    }
}
