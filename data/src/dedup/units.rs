//! Finds the units that several documents have, within a memory cap.
//!
//! 1. The notes of all groups are read, in parallel, and every unit goes to the partition of its
//!    key: a file of (key, owner if it matters, number of the unit).
//! 2. Partitions are sorted, in parallel, each within its thread's share of the memory; one that
//!    does not fit (a key as frequent as the empty line) is sorted in runs and merged. The
//!    numbers of the units that are out go to one file for each range of numbers.
//! 3. Range after range, these numbers become a bitmap, and the decisions of the groups are
//!    written in order.
//!
//! Units are numbered through all groups, so records are unique and sorting has one result: it
//! does not depend on partitions, threads or memory.

use super::plan::{Plan, check_free_space};
use super::spill::{Record, SpillFiles, SpillWriter, for_each, for_each_sorted};
use super::unit_decisions::{Decision, UnitDecisionsWriter};
use super::unit_notes::{UnitNotes, damaged};
use super::workers::in_parallel;
use super::{GroupFiles, Resources};
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};
use crate::progress::Progress;

/// Records after which the progress hears of them.
const RECORDS_COUNTED: u64 = 1 << 16;

/// Which of the documents that have a unit lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Losers {
    /// All of them. Units are only compared inside a scope of so many consecutive input files,
    /// or everywhere.
    All {
        /// Input files in a scope.
        scope: Option<u32>,
    },
    /// All but the one with the smallest owner; the first of those in input order.
    AllButSmallestOwner,
}

/// Decides about all units with keys of `K` words. Records have `N` words: the key, the owner for
/// [`Losers::AllButSmallestOwner`], and the number.
pub(super) fn resolve<const K: usize, const N: usize>(
    groups: &[GroupFiles],
    losers: Losers,
    resources: &Resources<'_>,
) -> Result<Vec<FileDigest>> {
    let mut units = 0;
    let mut noted = 0;
    for group in groups {
        let totals = UnitNotes::<K>::open(&group.notes)?.totals();
        units += totals.units;
        noted += totals.noted;
    }
    let record_bytes = size_of::<Record<N>>() as u64;
    let threads = rayon::current_num_threads();
    let plan = Plan::new(units, noted, record_bytes, resources.memory_bytes, threads)?;
    tracing::info!(
        units,
        spill_bytes = plan.estimate.spill_bytes,
        memory_bytes = plan.estimate.memory_bytes,
        partitions = plan.estimate.partitions,
        runs = plan.estimate.runs,
        threads = plan.estimate.workers,
        "finding copies"
    );
    check_free_space(&resources.spill, plan.estimate.spill_bytes)?;
    // The units are read twice, and those with a key are sorted in between.
    resources.progress.begin(2 * units + noted);
    resolve_as_planned::<K, N>(groups, losers, &plan, resources)
}

pub(super) fn resolve_as_planned<const K: usize, const N: usize>(
    groups: &[GroupFiles],
    losers: Losers,
    plan: &Plan,
    resources: &Resources<'_>,
) -> Result<Vec<FileDigest>> {
    let Resources { spill, progress, .. } = resources;
    let out = SpillFiles::new(spill, "out", plan.ranges);
    {
        let partitions = SpillFiles::new(spill, "partition", plan.estimate.partitions);
        let scopes = partition::<K, N>(groups, losers, plan, &partitions, progress)?;
        find::<K, N>(losers, plan, &scopes, &partitions, &out, progress)?;
    }
    write_decisions::<K>(groups, plan, &out, progress)
}

/// Where a scope begins: the number of its first unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ScopeStart {
    unit: u64,
    scope: u32,
}

/// Sends every unit to the partition of its key. Returns where scopes begin.
fn partition<const K: usize, const N: usize>(
    groups: &[GroupFiles],
    losers: Losers,
    plan: &Plan,
    partitions: &SpillFiles,
    progress: &Progress,
) -> Result<Vec<ScopeStart>> {
    let mut firsts = Vec::with_capacity(groups.len());
    let mut units = 0;
    for group in groups {
        firsts.push(units);
        units += UnitNotes::<K>::open(&group.notes)?.totals().units;
    }
    let scope_files = match losers {
        Losers::All { scope } => scope,
        Losers::AllButSmallestOwner => None,
    };
    let count = partitions.len() as u128;
    let scopes = in_parallel(
        plan.estimate.workers,
        groups.len(),
        || (SpillWriter::<N>::new(partitions, plan.partition_buffer), Vec::new()),
        |(writer, scopes), number| {
            let mut notes = UnitNotes::<K>::open(&groups[number].notes)?;
            let mut unit = firsts[number];
            let mut open = None;
            while let Some(document) = notes.next_document()? {
                let scope = scope_files.map_or(0, |files| document.input / files.max(1));
                if open != Some(scope) {
                    scopes.push(ScopeStart { unit, scope });
                    open = Some(scope);
                }
                notes.units(&document, |key| {
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
        let group = firsts.partition_point(|&first| first <= scopes[number + 1].unit);
        let path = &groups[group.saturating_sub(1)].notes;
        return Err(DataError::bad_file(path, "its input files come before those of the last"));
    }
    scopes.dedup_by_key(|start| start.scope);
    Ok(scopes)
}

/// Sorts the partitions and writes the numbers of the units that are out.
fn find<const K: usize, const N: usize>(
    losers: Losers,
    plan: &Plan,
    scopes: &[ScopeStart],
    partitions: &SpillFiles,
    out: &SpillFiles,
    progress: &Progress,
) -> Result<()> {
    let scope_of = |unit: u64| {
        let after = scopes.partition_point(|start| start.unit <= unit);
        after.checked_sub(1).map(|at| scopes[at].scope)
    };
    in_parallel(
        plan.estimate.workers,
        partitions.len(),
        || SpillWriter::<1>::new(out, plan.range_buffer),
        |writer, number| {
            let Some((path, mut file)) = partitions.take(number) else {
                return Ok(());
            };
            let mut lose = |unit: u64| writer.push((unit / plan.range_units) as usize, [unit]);
            let mut last: Option<Record<N>> = None;
            let mut last_is_out = false;
            let mut records = 0;
            for_each_sorted::<N>(path, &mut file, plan.sort_bytes, |record| {
                let (key, unit) = (&record[..K], record[N - 1]);
                let copied = match (&last, losers) {
                    (Some(last), _) if last[..K] != *key => None,
                    // Numbers ascend, so the copies of a scope stand together.
                    (Some(last), Losers::All { scope: Some(_) })
                        if scope_of(last[N - 1]) != scope_of(unit) =>
                    {
                        None
                    }
                    (last, _) => last.map(|last| last[N - 1]),
                };
                if let Some(copied) = copied {
                    if matches!(losers, Losers::All { .. }) && !last_is_out {
                        lose(copied)?;
                    }
                    lose(unit)?;
                }
                last_is_out = copied.is_some();
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

/// Writes the decision files, reading the notes a second time.
fn write_decisions<const K: usize>(
    groups: &[GroupFiles],
    plan: &Plan,
    out: &SpillFiles,
    progress: &Progress,
) -> Result<Vec<FileDigest>> {
    let mut written = Vec::with_capacity(groups.len());
    let mut bits = OutBits::new(plan, out);
    let mut unit = 0;
    for group in groups {
        let mut notes = UnitNotes::<K>::open(&group.notes)?;
        let mut decisions = UnitDecisionsWriter::create(&group.decisions)?;
        while let Some(document) = notes.next_document()? {
            decisions.document(document.owner, document.units)?;
            notes.units(&document, |key| {
                let is_out = bits.is_out(unit).map_err(|error| match error {
                    Some(error) => error,
                    None => damaged(&group.notes),
                })?;
                unit += 1;
                decisions.unit(match (key == [0; K], is_out) {
                    (true, _) => Decision::Repeated,
                    (false, true) => Decision::Duplicate,
                    (false, false) => Decision::Keep,
                })
            })?;
            progress.add(document.units.into());
        }
        written.push(decisions.finish()?);
    }
    Ok(written)
}

/// Which units of the current range are out. Ranges are loaded in ascending order.
struct OutBits<'a> {
    plan: &'a Plan,
    out: &'a SpillFiles,
    words: Vec<u64>,
    range: Option<u64>,
}

impl<'a> OutBits<'a> {
    fn new(plan: &'a Plan, out: &'a SpillFiles) -> Self {
        Self { plan, out, words: Vec::new(), range: None }
    }

    /// Whether `unit` is out; an error without a cause when there are more units than planned.
    fn is_out(&mut self, unit: u64) -> std::result::Result<bool, Option<DataError>> {
        let range = unit / self.plan.range_units;
        if self.range != Some(range) {
            if range as usize >= self.out.len() {
                return Err(None);
            }
            self.load(range)?;
        }
        let at = unit % self.plan.range_units;
        Ok(self.words[at as usize / 64] >> (at % 64) & 1 == 1)
    }

    fn load(&mut self, range: u64) -> Result<()> {
        self.range = Some(range);
        let units = self.plan.estimate.units.min(self.plan.range_units);
        self.words.clear();
        self.words.resize(units.div_ceil(64) as usize, 0);
        let Some((path, mut file)) = self.out.take(range as usize) else {
            return Ok(());
        };
        let words = &mut self.words;
        for_each::<1>(path, &mut file, self.plan.range_buffer, |[unit]| {
            let at = unit % self.plan.range_units;
            words[at as usize / 64] |= 1 << (at % 64);
            Ok(())
        })?;
        std::fs::remove_file(path).map_err(DataError::io(path))
    }
}
