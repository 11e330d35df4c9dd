//! Processor time.

/// Processor time, of the calling thread or of the whole process.
pub(super) struct Clock {
    id: libc::clockid_t,
    start: f64,
}

impl Clock {
    /// Of the calling thread, which must be the one that stops it.
    pub fn start() -> Self {
        Self::of(libc::CLOCK_THREAD_CPUTIME_ID)
    }

    /// Of all threads together.
    pub fn start_of_process() -> Self {
        Self::of(libc::CLOCK_PROCESS_CPUTIME_ID)
    }

    fn of(id: libc::clockid_t) -> Self {
        Self { id, start: seconds(id) }
    }

    /// Adds the time since the start to `sum`.
    pub fn stop(&self, sum: &mut f64) {
        *sum += seconds(self.id) - self.start;
    }
}

fn seconds(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which `time` is; it keeps no pointer.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) } != 0;
    if failed { 0.0 } else { time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9 }
}
