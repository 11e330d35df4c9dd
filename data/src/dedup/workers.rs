//! A fixed number of workers, so that what each of them holds can be counted.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::error::Result;

/// Calls `work` for every piece, with the number of the piece, on `workers` threads at most. Each
/// worker has a state made by `start`; `end` makes the worker's result of it.
///
/// Which worker does which piece is left to chance: results must not depend on it.
pub(super) fn in_parallel<S, R: Send>(
    workers: usize,
    pieces: usize,
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
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return end(state);
                }
                work(&mut state, piece)?;
            }
        })
        .collect()
}
