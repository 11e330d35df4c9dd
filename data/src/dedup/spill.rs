//! Fixed-size records on disk: written to many files by many threads, read back sorted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{DataError, Result};

/// A record: numbers that compare in order.
pub(super) type Record<const N: usize> = [u64; N];

/// Files of records. Threads append to them through a [`SpillWriter`] each.
pub(super) struct SpillFiles {
    files: Vec<(PathBuf, Mutex<Option<File>>)>,
}

impl SpillFiles {
    /// `count` files in `folder`, each made when something is written to it.
    pub fn new(folder: &Path, name: &str, count: usize) -> Self {
        let file = |number| (folder.join(format!("{name}-{number:05}")), Mutex::new(None));
        Self { files: (0..count).map(file).collect() }
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Takes file `number` out, to be read, and its path; nothing when it was never written.
    pub fn take(&self, number: usize) -> Option<(&Path, File)> {
        let (path, file) = &self.files[number];
        let file = file.lock().unwrap_or_else(PoisonError::into_inner).take();
        Some((path, file?))
    }

    fn append<const N: usize>(&self, number: usize, records: &[Record<N>]) -> Result<()> {
        let (path, file) = &self.files[number];
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            *file = Some(options.open(path).map_err(DataError::io(path))?);
        }
        match &mut *file {
            Some(file) => file
                .write_all(bytemuck::cast_slice(records.as_flattened()))
                .map_err(DataError::io(path)),
            None => Ok(()),
        }
    }
}

impl Drop for SpillFiles {
    fn drop(&mut self) {
        for (path, _) in &self.files {
            // Most are gone already; the folder is a temporary one.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One thread's way into [`SpillFiles`]: a buffer for each file.
pub(super) struct SpillWriter<'a, const N: usize> {
    files: &'a SpillFiles,
    buffers: Vec<Vec<Record<N>>>,
    capacity: usize,
}

impl<'a, const N: usize> SpillWriter<'a, N> {
    /// Buffers of `buffer_bytes` each, made when they are needed.
    pub fn new(files: &'a SpillFiles, buffer_bytes: usize) -> Self {
        let capacity = (buffer_bytes / size_of::<Record<N>>()).max(1);
        Self { files, buffers: vec![Vec::new(); files.len()], capacity }
    }

    /// Appends `record` to file `number`.
    pub fn push(&mut self, number: usize, record: Record<N>) -> Result<()> {
        let buffer = &mut self.buffers[number];
        if buffer.capacity() == 0 {
            buffer.reserve_exact(self.capacity);
        }
        buffer.push(record);
        if buffer.len() == self.capacity {
            self.files.append(number, buffer)?;
            buffer.clear();
        }
        Ok(())
    }

    /// Writes what is still buffered.
    pub fn finish(self) -> Result<()> {
        for (number, buffer) in self.buffers.iter().enumerate() {
            if !buffer.is_empty() {
                self.files.append(number, buffer)?;
            }
        }
        Ok(())
    }
}

/// Hands the records of `file` to `visit`, as they lie in the file, holding `memory` bytes.
pub(super) fn for_each<const N: usize>(
    path: &Path,
    file: &mut File,
    memory: usize,
    mut visit: impl FnMut(Record<N>) -> Result<()>,
) -> Result<()> {
    let mut left = record_count::<N>(path, file)?;
    file.rewind().map_err(DataError::io(path))?;
    let mut records = vec![[0; N]; left.min(capacity::<N>(memory))];
    while left > 0 {
        let count = left.min(records.len());
        read_records(path, file, &mut records[..count])?;
        records[..count].iter().try_for_each(|&record| visit(record))?;
        left -= count;
    }
    Ok(())
}

/// Hands the records of `file` to `visit` in ascending order, holding at most `memory` bytes (or
/// one record of every run, if that is more). The order in the file changes.
pub(super) fn for_each_sorted<const N: usize>(
    path: &Path,
    file: &mut File,
    memory: usize,
    mut visit: impl FnMut(Record<N>) -> Result<()>,
) -> Result<()> {
    let total = record_count::<N>(path, file)?;
    let capacity = capacity::<N>(memory);
    let mut records = vec![[0; N]; total.min(capacity)];
    if total <= capacity {
        file.rewind().map_err(DataError::io(path))?;
        read_records(path, file, &mut records)?;
        records.sort_unstable();
        return records.into_iter().try_for_each(visit);
    }

    // More than fits, of one key perhaps: sorted runs take the place of the unsorted, and are
    // merged.
    let mut runs = Vec::new();
    for start in (0..total).step_by(capacity) {
        let run = &mut records[..capacity.min(total - start)];
        seek::<N>(path, file, start)?;
        read_records(path, file, run)?;
        run.sort_unstable();
        seek::<N>(path, file, start)?;
        file.write_all(bytemuck::cast_slice(run.as_flattened())).map_err(DataError::io(path))?;
        runs.push(start..start + run.len());
    }
    drop(records);
    // The heap and the ranges hold about two records for each run.
    let buffered = (capacity / runs.len()).saturating_sub(2).max(1);
    let mut runs: Vec<Run<N>> = runs
        .into_iter()
        .map(|left| Run { left, buffered: Vec::new(), taken: 0, capacity: buffered })
        .collect();
    let mut smallest = BinaryHeap::with_capacity(runs.len());
    for (number, run) in runs.iter_mut().enumerate() {
        smallest.extend(run.next(path, file)?.map(|record| Reverse((record, number))));
    }
    while let Some(Reverse((record, number))) = smallest.pop() {
        visit(record)?;
        smallest.extend(runs[number].next(path, file)?.map(|record| Reverse((record, number))));
    }
    Ok(())
}

/// A sorted run inside a file, read through a buffer.
struct Run<const N: usize> {
    left: std::ops::Range<usize>,
    buffered: Vec<Record<N>>,
    taken: usize,
    capacity: usize,
}

impl<const N: usize> Run<N> {
    fn next(&mut self, path: &Path, file: &mut File) -> Result<Option<Record<N>>> {
        if self.taken == self.buffered.len() {
            let count = self.left.len().min(self.capacity);
            if count == 0 {
                self.buffered = Vec::new();
                self.taken = 0;
                return Ok(None);
            }
            self.buffered.resize(count, [0; N]);
            self.taken = 0;
            seek::<N>(path, file, self.left.start)?;
            read_records(path, file, &mut self.buffered)?;
            self.left.start += count;
        }
        self.taken += 1;
        Ok(self.buffered.get(self.taken - 1).copied())
    }
}

fn capacity<const N: usize>(memory: usize) -> usize {
    (memory / size_of::<Record<N>>()).max(1)
}

fn record_count<const N: usize>(path: &Path, file: &File) -> Result<usize> {
    let bytes = file.metadata().map_err(DataError::io(path))?.len();
    Ok(bytes as usize / size_of::<Record<N>>())
}

fn seek<const N: usize>(path: &Path, file: &mut File, record: usize) -> Result<()> {
    let offset = record as u64 * size_of::<Record<N>>() as u64;
    file.seek(SeekFrom::Start(offset)).map(drop).map_err(DataError::io(path))
}

fn read_records<const N: usize>(
    path: &Path,
    file: &mut File,
    records: &mut [Record<N>],
) -> Result<()> {
    file.read_exact(bytemuck::cast_slice_mut(records.as_flattened_mut()))
        .map_err(DataError::io(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]
        #[test]
        fn every_memory_sorts_alike(
            records in prop::collection::vec([0u64..50, 0..u64::MAX], 0..300),
            memory in 1usize..6000,
            buffer in 1usize..200,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let files = SpillFiles::new(folder.path(), "part", 2);
            let mut writer = SpillWriter::new(&files, buffer);
            for &record in &records {
                writer.push(1, record).unwrap();
            }
            writer.finish().unwrap();
            prop_assert!(files.take(0).is_none());
            let mut sorted = records.clone();
            sorted.sort();
            if let Some((path, mut file)) = files.take(1) {
                let mut found = Vec::new();
                for_each::<2>(path, &mut file, memory, |record| {
                    found.push(record);
                    Ok(())
                }).unwrap();
                prop_assert_eq!(&found, &records);
                found.clear();
                for_each_sorted::<2>(path, &mut file, memory, |record| {
                    found.push(record);
                    Ok(())
                }).unwrap();
                prop_assert_eq!(found, sorted);
            } else {
                prop_assert!(records.is_empty());
            }
            drop(files);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
