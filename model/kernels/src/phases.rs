//! Work in phases on all threads: threads take the tasks of a phase one by one, and the next phase
//! starts when all tasks are done.
//!
//! All phases of an op run in one parallel region of rayon. Between two phases threads wait for each
//! other by spinning: a phase lasts less than a sleeping thread takes to wake.

use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How often a waiting thread looks at the counter of finished tasks before it yields its processor
/// to other threads.
const SPINS: u32 = 1 << 12;

/// How far a phase is.
#[derive(Default)]
struct Phase {
    /// The number of the next task that a thread takes.
    next: AtomicUsize,
    /// Tasks that are done.
    done: AtomicUsize,
}

/// Sets the flag when it is dropped, that is when a task panics, so that no thread waits for that task
/// forever. After a task that returns it is forgotten instead.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Calls `work(phase, task)` for each of the `tasks[phase]` tasks of every phase, the phases in
/// order. What the tasks of one phase wrote, those of the next see.
pub(crate) fn run_phases(tasks: &[usize], work: impl Fn(usize, usize) + Sync) {
    let phases: Vec<Phase> = tasks.iter().map(|_| Phase::default()).collect();
    let failed = AtomicBool::new(false);
    let largest = tasks.iter().copied().max().unwrap_or(0);
    let threads = rayon::current_num_threads().min(largest).max(1);
    let share = |_| {
        for (p, (phase, &count)) in phases.iter().zip(tasks).enumerate() {
            loop {
                let task = phase.next.fetch_add(1, Ordering::Relaxed);
                if task >= count {
                    break;
                }
                let alarm = Alarm(&failed);
                work(p, task);
                std::mem::forget(alarm);
                phase.done.fetch_add(1, Ordering::Release);
            }
            // All tasks are taken by threads that run, so this ends even if some threads of the pool
            // are busy elsewhere and never join.
            let mut spins = 0;
            while phase.done.load(Ordering::Acquire) < count {
                if failed.load(Ordering::Acquire) {
                    return;
                }
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
    };
    (0..threads).into_par_iter().with_max_len(1).for_each(share);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_runs_once_and_phases_do_not_overlap() {
        let tasks = [3, 0, 50, 1, 7];
        for threads in [1, 2, 5] {
            let log = Mutex::new(Vec::new());
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let run = || {
                run_phases(&tasks, |phase, task| {
                    if let Ok(mut log) = log.lock() {
                        log.push((phase, task));
                    }
                });
            };
            pool.map(|pool| pool.install(run)).unwrap_or_else(|error| panic!("{error}"));
            let mut log = log.into_inner().unwrap_or_default();
            assert!(log.is_sorted_by_key(|(phase, _)| *phase), "{threads} threads");
            log.sort_unstable();
            let all = tasks.iter().enumerate();
            let want: Vec<_> = all.flat_map(|(p, &n)| (0..n).map(move |i| (p, i))).collect();
            assert_eq!(log, want, "{threads} threads");
        }
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_caller() {
        let outcome = std::panic::catch_unwind(|| {
            run_phases(&[4, 4], |phase, task| assert!(phase == 0 && task != 2, "task 2"));
        });
        assert!(outcome.is_err());
    }
}
