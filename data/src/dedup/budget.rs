//! How the search for duplicates is cut so that it fits in memory, and what it needs on disk.

use std::path::Path;

use serde::Serialize;

use super::signatures::READ_BUFFER;
use crate::error::{DataError, Result};

/// Least memory that is accepted, in bytes.
pub const MIN_MEMORY: u64 = 4 << 20;
/// Most partitions, and most ranges: files that are open at once.
const MAX_FILES: u64 = 256;
/// Memory that a further thread is worth, in bytes.
const WORKER_MEMORY: u64 = 4 << 20;
/// Records that make one more partition worth while.
const PARTITION_RECORDS: u64 = 1 << 16;
/// Largest buffer in front of a file, in bytes.
const MAX_BUFFER: u64 = 256 << 10;
/// Bytes of the number of a unit that is a duplicate.
const DUPLICATE_BYTES: u64 = 8;

/// What finding the duplicates among units takes, known before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Units: paragraphs, lines or documents.
    pub units: u64,
    /// Most bytes of temporary files at once.
    pub spill_bytes: u64,
    /// Most bytes of memory held.
    pub memory_bytes: u64,
    /// Parts the units are sorted in, by key.
    pub partitions: usize,
    /// Parts of a partition that are sorted one after the other and merged; 1 when a partition
    /// fits in memory.
    pub runs: usize,
    /// Threads that the memory is enough for.
    pub workers: usize,
}

/// What finding the duplicates among `units` units takes on `threads` threads, with `record_bytes`
/// bytes a unit: 8 for its number, 8 or 16 for its key and 8 for its owner where owners matter.
///
/// # Errors
/// [`DataError::Config`] naming `memory_bytes` when that is too little.
pub fn estimate(
    units: u64,
    record_bytes: u64,
    memory_bytes: u64,
    threads: usize,
) -> Result<Estimate> {
    Ok(Budget::new(units, units, record_bytes, memory_bytes, threads)?.estimate)
}

/// Sizes of everything that is held or written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub estimate: Estimate,
    /// Buffer in front of a partition, of one thread.
    pub partition_buffer: usize,
    /// Memory of one thread to sort in.
    pub sort_bytes: usize,
    /// Units whose decisions are held at once.
    pub range_units: u64,
    /// Parts of `range_units` units.
    pub ranges: usize,
    /// Buffer in front of a range, of one thread; also the one to read ranges with.
    pub range_buffer: usize,
}

impl Budget {
    /// Sizes for `units` units, of which `compared` are compared with those of other documents.
    pub fn new(
        units: u64,
        compared: u64,
        record_bytes: u64,
        memory_bytes: u64,
        threads: usize,
    ) -> Result<Self> {
        let too_little = |needed: u64| {
            DataError::config(
                "memory_bytes",
                memory_bytes,
                format!("{needed} or more, to find duplicates among {units} units"),
            )
        };
        if memory_bytes < MIN_MEMORY {
            return Err(too_little(MIN_MEMORY));
        }
        let workers = (memory_bytes / WORKER_MEMORY).clamp(1, threads.max(1) as u64);
        // What readers of signatures hold, the buffer and a chunk of about its size, the buffer of the
        // file that is written, and a reserve for all that is small.
        let readers = workers * 2 * READ_BUFFER as u64;
        let budget = memory_bytes - memory_bytes / 16 - readers - MAX_BUFFER;

        // The parts are used one after the other, but what one frees may stay with the allocator:
        // a quarter to write partitions, five eighths to sort them and write ranges.
        let sort_bytes = budget / workers / 16 * 9 / record_bytes * record_bytes;
        // Partitions differ in size by chance: aim below what fits.
        let needed = (compared * record_bytes).div_ceil(sort_bytes / 10 * 9);
        let spread = compared.div_ceil(PARTITION_RECORDS).min(4 * workers);
        let partitions = needed.max(spread).clamp(1, MAX_FILES);
        let runs = (compared * record_bytes).div_ceil(partitions).div_ceil(sort_bytes).max(1);
        let buffer = (budget / 4 / workers / partitions).min(MAX_BUFFER);

        // A bit a unit in half of the budget.
        let range_units = budget / 2 * 8 / 64 * 64;
        let ranges = units.div_ceil(range_units).max(1);
        if ranges > MAX_FILES {
            return Err(too_little(memory_bytes.saturating_mul(ranges.div_ceil(MAX_FILES))));
        }
        let range_buffer = (budget / 16 / workers / ranges).min(MAX_BUFFER);
        let estimate = Estimate {
            units,
            // All units are on disk while the first duplicates are written.
            spill_bytes: compared * (record_bytes + DUPLICATE_BYTES),
            memory_bytes,
            partitions: partitions as usize,
            runs: runs as usize,
            workers: workers as usize,
        };
        Ok(Self {
            estimate,
            partition_buffer: buffer as usize,
            sort_bytes: sort_bytes as usize,
            range_units,
            ranges: ranges as usize,
            range_buffer: range_buffer as usize,
        })
    }
}

/// Checks that `folder` has room for `bytes` more.
///
/// # Errors
/// [`DataError::BadFile`] with what is missing.
pub(super) fn check_free_space(folder: &Path, bytes: u64) -> Result<()> {
    let space = rustix::fs::statvfs(folder).map_err(|error| DataError::io(folder)(error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < bytes {
        return Err(DataError::bad_file(
            folder,
            format!(
                "{bytes} bytes of temporary files are needed here and {free} are free; make room, \
                 or set another folder for temporary files"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plans_fit_in_memory() {
        for units in [0, 1, 1000, 10_000_000, 10_000_000_000] {
            for memory in [MIN_MEMORY, 7 << 20, 64 << 20, 4 << 30] {
                for threads in [1, 2, 7, 64] {
                    for record in [16, 24, 32] {
                        let Ok(budget) = Budget::new(units, units, record, memory, threads) else {
                            assert!(memory < 8 << 20 && units > 1_000_000_000);
                            continue;
                        };
                        let Estimate { partitions, workers, runs, .. } = budget.estimate;
                        let reading = 2 * READ_BUFFER * workers;
                        let written = workers * partitions * budget.partition_buffer;
                        let sorting =
                            workers * (budget.sort_bytes + budget.ranges * budget.range_buffer);
                        let held = budget.range_units as usize / 8 + budget.range_buffer;
                        for part in [written + sorting, held] {
                            assert!((part + reading) as u64 <= memory, "{budget:?}");
                        }
                        assert!(budget.ranges as u64 * budget.range_units >= units);
                        let sorted = partitions * runs * budget.sort_bytes;
                        assert!(sorted as u64 >= units * record, "{budget:?}");
                        assert!(partitions + budget.ranges <= 512);
                    }
                }
            }
        }
    }

    #[test]
    fn too_little_is_refused_by_name() {
        let memory = estimate(1000, 16, 1000, 2).unwrap_err().to_string();
        assert!(memory.contains("memory_bytes") && memory.contains("4194304"), "{memory}");
        let folder = tempfile::tempdir().unwrap();
        check_free_space(folder.path(), 1).unwrap();
        let error = check_free_space(folder.path(), u64::MAX).unwrap_err();
        assert!(error.to_string().contains("are free"), "{error}");
    }

    #[test]
    fn a_cap_of_two_gigabytes_covers_a_large_crawl() {
        // A shard group of CCNet's size: 50 shards of about 14 million paragraphs.
        let small = estimate(700_000_000, 16, 2 << 30, 8).unwrap();
        assert_eq!(small.runs, 1);
        let large = estimate(100_000_000_000, 16, 2 << 30, 8).unwrap();
        assert!(large.partitions == 256 && large.runs > 1, "{large:?}");
        assert_eq!(large.spill_bytes, 2_400_000_000_000);
    }
}
