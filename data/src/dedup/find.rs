//! Finds the units that several documents have, within a memory cap.
//!
//! 1. The signatures of all tasks are read, in parallel, and every unit is written to the partition of its
//!    key: a file of (key, owner if it matters, number of the unit).
//! 2. Partitions are sorted, in parallel, each within its thread's share of the memory; one that
//!    does not fit (a key as frequent as the empty line) is sorted in runs and merged. The
//!    numbers of the duplicates are written to one file for each range of numbers.
//! 3. Range after range, these numbers become a bitmap, and the decisions of the tasks are
//!    written in order.
//!
//! Units are numbered through all tasks, so records are unique and sorting has one result: it
//! does not depend on partitions, threads or memory.

use super::budget::{Budget, check_free_space};
use super::duplicates::{DuplicatesWriter, Occurrence};
use super::signatures::{SignatureReader, damaged};
use super::spill::{Record, SpillFiles, SpillWriter, for_each, for_each_sorted};
use super::workers::in_parallel;
use super::{Resources, TaskFiles};
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};
use crate::progress::Progress;

/// Records after which the progress hears of them.
const RECORDS_COUNTED: u64 = 1 << 16;

/// Which of the documents that have a unit keeps it. In the others it is a duplicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// None of them. Units are only compared inside a scope of so many consecutive input files,
    /// or everywhere.
    Nobody {
        /// Input files in a scope.
        scope: Option<u32>,
    },
    /// The one with the smallest owner; the first of those in input order.
    SmallestOwner,
}

/// Finds the duplicates among units with keys of `K` words and writes the decisions of every task.
/// Records have `N` words: the key, the owner for
/// [`Keeper::SmallestOwner`], and the number.
pub(super) fn find_duplicates<const K: usize, const N: usize>(
    tasks: &[TaskFiles],
    keeper: Keeper,
    resources: &Resources<'_>,
) -> Result<Vec<FileDigest>> {
    let mut units = 0;
    let mut compared = 0;
    for task in tasks {
        let totals = SignatureReader::<K>::open(&task.signatures)?.totals();
        units += totals.units;
        compared += totals.compared;
    }
    let record_bytes = size_of::<Record<N>>() as u64;
    let threads = rayon::current_num_threads();
    let budget = Budget::new(units, compared, record_bytes, resources.memory_bytes, threads)?;
    tracing::info!(
        units,
        spill_bytes = budget.estimate.spill_bytes,
        memory_bytes = budget.estimate.memory_bytes,
        partitions = budget.estimate.partitions,
        runs = budget.estimate.runs,
        threads = budget.estimate.workers,
        "finding duplicates"
    );
    check_free_space(&resources.spill, budget.estimate.spill_bytes)?;
    // The units are read twice, and those with a key are sorted in between.
    resources.progress.begin(2 * units + compared);
    find_within::<K, N>(tasks, keeper, &budget, resources)
}

pub(super) fn find_within<const K: usize, const N: usize>(
    tasks: &[TaskFiles],
    keeper: Keeper,
    budget: &Budget,
    resources: &Resources<'_>,
) -> Result<Vec<FileDigest>> {
    let Resources { spill, progress, .. } = resources;
    let duplicates = SpillFiles::new(spill, "duplicates", budget.ranges);
    {
        let partitions = SpillFiles::new(spill, "partition", budget.estimate.partitions);
        let scopes = partition::<K, N>(tasks, keeper, budget, &partitions, progress)?;
        compare::<K, N>(keeper, budget, &scopes, &partitions, &duplicates, progress)?;
    }
    write_decisions::<K>(tasks, budget, &duplicates, progress)
}

/// Where a scope begins: the number of its first unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ScopeStart {
    unit: u64,
    scope: u32,
}

/// Sends every unit to the partition of its key. Returns where scopes begin.
fn partition<const K: usize, const N: usize>(
    tasks: &[TaskFiles],
    keeper: Keeper,
    budget: &Budget,
    partitions: &SpillFiles,
    progress: &Progress,
) -> Result<Vec<ScopeStart>> {
    let mut firsts = Vec::with_capacity(tasks.len());
    let mut units = 0;
    for task in tasks {
        firsts.push(units);
        units += SignatureReader::<K>::open(&task.signatures)?.totals().units;
    }
    let scope_files = match keeper {
        Keeper::Nobody { scope } => scope,
        Keeper::SmallestOwner => None,
    };
    let count = partitions.len() as u128;
    let scopes = in_parallel(
        budget.estimate.workers,
        tasks.len(),
        || (SpillWriter::<N>::new(partitions, budget.partition_buffer), Vec::new()),
        |(writer, scopes), number| {
            let mut signatures = SignatureReader::<K>::open(&tasks[number].signatures)?;
            let mut unit = firsts[number];
            let mut open = None;
            while let Some(document) = signatures.next_document()? {
                let scope = scope_files.map_or(0, |files| document.input / files.max(1));
                if open != Some(scope) {
                    scopes.push(ScopeStart { unit, scope });
                    open = Some(scope);
                }
                signatures.units(&document, |key| {
                    if key != [0; K] {
                        let mut record = [0; N];
                        record[..K].copy_from_slice(&key);
                        if N == K + 2 {
                            record[K] = document.owner;
                        }
                        record[N - 1] = unit;
                        // Keys are hashes: their upper bits spread them evenly.
                        let part = (u128::from(key[0]) * count) >> 64;
                        writer.push(part as usize, record)?;
                    }
                    unit += 1;
                    Ok(())
                })?;
                progress.add(document.units.into());
            }
            Ok(())
        },
        |(writer, scopes)| writer.finish().map(|()| scopes),
    )?;
    let mut scopes = scopes.concat();
    scopes.sort_unstable();
    if let Some(number) = scopes.windows(2).position(|pair| pair[0].scope > pair[1].scope) {
        let task = firsts.partition_point(|&first| first <= scopes[number + 1].unit);
        let path = &tasks[task.saturating_sub(1)].signatures;
        return Err(DataError::bad_file(path, "its input files come before those of the last"));
    }
    scopes.dedup_by_key(|start| start.scope);
    Ok(scopes)
}

/// Sorts the partitions and writes the numbers of the duplicates.
fn compare<const K: usize, const N: usize>(
    keeper: Keeper,
    budget: &Budget,
    scopes: &[ScopeStart],
    partitions: &SpillFiles,
    duplicates: &SpillFiles,
    progress: &Progress,
) -> Result<()> {
    let scope_of = |unit: u64| {
        let after = scopes.partition_point(|start| start.unit <= unit);
        after.checked_sub(1).map(|at| scopes[at].scope)
    };
    in_parallel(
        budget.estimate.workers,
        partitions.len(),
        || SpillWriter::<1>::new(duplicates, budget.range_buffer),
        |writer, number| {
            let Some((path, mut file)) = partitions.take(number) else {
                return Ok(());
            };
            let mut mark = |unit: u64| writer.push((unit / budget.range_units) as usize, [unit]);
            let mut last: Option<Record<N>> = None;
            let mut last_is_duplicate = false;
            let mut records = 0;
            for_each_sorted::<N>(path, &mut file, budget.sort_bytes, |record| {
                let (key, unit) = (&record[..K], record[N - 1]);
                let copied = match (&last, keeper) {
                    (Some(last), _) if last[..K] != *key => None,
                    // Numbers ascend, so the copies of a scope stand together.
                    (Some(last), Keeper::Nobody { scope: Some(_) })
                        if scope_of(last[N - 1]) != scope_of(unit) =>
                    {
                        None
                    }
                    (last, _) => last.map(|last| last[N - 1]),
                };
                if let Some(copied) = copied {
                    if matches!(keeper, Keeper::Nobody { .. }) && !last_is_duplicate {
                        mark(copied)?;
                    }
                    mark(unit)?;
                }
                last_is_duplicate = copied.is_some();
                last = Some(record);
                records += 1;
                if records == RECORDS_COUNTED {
                    progress.add(std::mem::take(&mut records));
                }
                Ok(())
            })?;
            progress.add(records);
            drop(file);
            std::fs::remove_file(path).map_err(DataError::io(path))
        },
        |writer| writer.finish(),
    )
    .map(drop)
}

/// Writes the decision files, reading the signatures a second time.
fn write_decisions<const K: usize>(
    tasks: &[TaskFiles],
    budget: &Budget,
    duplicates: &SpillFiles,
    progress: &Progress,
) -> Result<Vec<FileDigest>> {
    let mut written = Vec::with_capacity(tasks.len());
    let mut bits = DuplicateBits::new(budget, duplicates);
    let mut unit = 0;
    for task in tasks {
        let mut signatures = SignatureReader::<K>::open(&task.signatures)?;
        let mut decisions = DuplicatesWriter::create(&task.decisions)?;
        while let Some(document) = signatures.next_document()? {
            decisions.begin_document(document.owner, document.units)?;
            signatures.units(&document, |key| {
                let is_duplicate = bits.is_duplicate(unit).map_err(|error| match error {
                    Some(error) => error,
                    None => damaged(&task.signatures),
                })?;
                unit += 1;
                decisions.unit(match (key == [0; K], is_duplicate) {
                    (true, _) => Occurrence::Repeated,
                    (false, true) => Occurrence::Duplicate,
                    (false, false) => Occurrence::Kept,
                })
            })?;
            progress.add(document.units.into());
        }
        written.push(decisions.finish()?);
    }
    Ok(written)
}

/// Which units of the current range are duplicates. Ranges are loaded in ascending order.
struct DuplicateBits<'a> {
    budget: &'a Budget,
    files: &'a SpillFiles,
    words: Vec<u64>,
    range: Option<u64>,
}

impl<'a> DuplicateBits<'a> {
    fn new(budget: &'a Budget, files: &'a SpillFiles) -> Self {
        Self { budget, files, words: Vec::new(), range: None }
    }

    /// Whether `unit` is a duplicate; an error without a cause when there are more units than the
    /// budget was made for.
    fn is_duplicate(&mut self, unit: u64) -> std::result::Result<bool, Option<DataError>> {
        let range = unit / self.budget.range_units;
        if self.range != Some(range) {
            if range as usize >= self.files.len() {
                return Err(None);
            }
            self.load(range)?;
        }
        let at = unit % self.budget.range_units;
        Ok(self.words[at as usize / 64] >> (at % 64) & 1 == 1)
    }

    fn load(&mut self, range: u64) -> Result<()> {
        self.range = Some(range);
        let units = self.budget.estimate.units.min(self.budget.range_units);
        self.words.clear();
        self.words.resize(units.div_ceil(64) as usize, 0);
        let Some((path, mut file)) = self.files.take(range as usize) else {
            return Ok(());
        };
        let words = &mut self.words;
        for_each::<1>(path, &mut file, self.budget.range_buffer, |[unit]| {
            let at = unit % self.budget.range_units;
            words[at as usize / 64] |= 1 << (at % 64);
            Ok(())
        })?;
        std::fs::remove_file(path).map_err(DataError::io(path))
    }
}
