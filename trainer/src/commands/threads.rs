//! How many threads compute.

use crate::config::MOST_THREADS;
use crate::error::{Result, TrainerError};
use crate::world::compute_threads;

/// Starts the threads of every parallel computation of this process; as many as there are cores by
/// default. A command that computes in parallel begins with it: threads that are started by the
/// first computation could not fail with an error.
pub(super) fn use_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads
        && !(1..=MOST_THREADS).contains(&threads)
    {
        let message = format!("threads: found {threads}, expected 1 to {MOST_THREADS}");
        return Err(TrainerError::Usage { message });
    }
    compute_threads(threads)
}
