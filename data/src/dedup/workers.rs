//! A fixed number of workers, so that what each of them holds can be counted.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::error::Result;

/// Calls `work` for every task, with the number of the task, on `workers` threads at most. Each
/// worker has a state made by `start`; `end` makes the worker's result of it.
///
/// Which worker does which task is left to chance: results must not depend on it.
pub(super) fn in_parallel<S, R: Send>(
    workers: usize,
    tasks: usize,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> Result<()> + Sync,
    end: impl Fn(S) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    (0..workers)
        .into_par_iter()
        .map(|_| {
            let mut state = start();
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    return end(state);
                }
                work(&mut state, task)?;
            }
        })
        .collect()
}
