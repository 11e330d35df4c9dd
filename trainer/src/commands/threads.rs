//! How many threads compute.

use crate::config::MOST_THREADS;
use crate::error::{Result, TrainerError};

/// Sets the number of threads of every parallel computation of this process; all cores by default.
pub(super) fn use_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if !(1..=MOST_THREADS).contains(&threads) {
        let message = format!("threads: found {threads}, expected 1 to {MOST_THREADS}");
        return Err(TrainerError::Usage { message });
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|error| {
        TrainerError::Usage { message: format!("threads: {threads} cannot be started: {error}") }
    })
}
