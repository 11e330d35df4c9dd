//! Records of n-grams: sorting them within a memory cap, and files of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::slice::ParallelSliceMut;

use super::MOST_WORDS;
use crate::error::{DataError, Result};

/// Up to [`MOST_WORDS`] words, the others 0, then two numbers that belong to them. Records sort by
/// their words in the order they stand in.
pub(super) type Record = [u32; MOST_WORDS + 2];

/// Runs on the disk that are merged at once.
const MOST_RUNS: usize = 64;
/// Fewest records in memory.
const FEWEST_RECORDS: usize = 4096;
/// Bytes of a reader's or writer's buffer.
const BUFFER_BYTES: usize = 32 << 10;

/// The count in a record.
pub(super) fn count(record: &Record) -> u64 {
    u64::from(record[MOST_WORDS]) | u64::from(record[MOST_WORDS + 1]) << 32
}

/// Puts a count into a record.
pub(super) fn set_count(record: &mut Record, count: u64) {
    record[MOST_WORDS] = count as u32;
    record[MOST_WORDS + 1] = (count >> 32) as u32;
}

/// The two `f32` in a record.
pub(super) fn floats(record: &Record) -> (f32, f32) {
    (f32::from_bits(record[MOST_WORDS]), f32::from_bits(record[MOST_WORDS + 1]))
}

/// Puts two `f32` into a record.
pub(super) fn set_floats(record: &mut Record, first: f32, second: f32) {
    record[MOST_WORDS] = first.to_bits();
    record[MOST_WORDS + 1] = second.to_bits();
}

/// What becomes of records with the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Equal {
    /// Their counts are added.
    Add,
    /// All stay.
    Keep,
}

/// A file of records with no name, deleted when dropped.
#[derive(Debug)]
pub(super) struct RecordFile {
    file: File,
    folder: PathBuf,
    /// Words stored of a record.
    words: usize,
    records: u64,
}

/// Writes a [`RecordFile`].
pub(super) struct RecordWriter {
    file: BufWriter<File>,
    folder: PathBuf,
    words: usize,
    records: u64,
}

impl RecordWriter {
    /// A file in `folder` that keeps the first `words` words of every record.
    pub fn create(folder: &Path, words: usize) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(DataError::io(folder))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self { file, folder: folder.to_owned(), words, records: 0 })
    }

    pub fn write(&mut self, record: &Record) -> Result<()> {
        let words: &[u8] = bytemuck::cast_slice(&record[..self.words]);
        let numbers: &[u8] = bytemuck::cast_slice(&record[MOST_WORDS..]);
        self.records += 1;
        self.file
            .write_all(words)
            .and_then(|()| self.file.write_all(numbers))
            .map_err(DataError::io(&self.folder))
    }

    pub fn finish(self) -> Result<RecordFile> {
        let Self { file, folder, words, records } = self;
        let file = file.into_inner().map_err(|error| DataError::io(&folder)(error.into_error()))?;
        Ok(RecordFile { file, folder, words, records })
    }
}

impl RecordFile {
    /// How many records there are.
    pub fn len(&self) -> u64 {
        self.records
    }

    /// The records from the first on.
    pub fn read(&mut self) -> Result<RecordReader<'_>> {
        self.file.seek(SeekFrom::Start(0)).map_err(DataError::io(&self.folder))?;
        Ok(RecordReader {
            file: BufReader::with_capacity(BUFFER_BYTES, &self.file),
            folder: &self.folder,
            words: self.words,
            left: self.records,
        })
    }
}

/// The records of a file, in order.
pub(super) struct RecordReader<'a> {
    file: BufReader<&'a File>,
    folder: &'a Path,
    words: usize,
    left: u64,
}

impl RecordReader<'_> {
    fn read_record(&mut self) -> io::Result<Record> {
        let mut record = Record::default();
        let mut words = [0; MOST_WORDS + 2];
        let stored = &mut words[..self.words + 2];
        self.file.read_exact(bytemuck::cast_slice_mut(stored))?;
        record[..self.words].copy_from_slice(&stored[..self.words]);
        record[MOST_WORDS..].copy_from_slice(&stored[self.words..]);
        Ok(record)
    }
}

impl Iterator for RecordReader<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(self.read_record().map_err(DataError::io(self.folder)))
    }
}

/// Sorts records. What does not fit into memory goes to files.
pub(super) struct Sorter {
    folder: PathBuf,
    words: usize,
    equal: Equal,
    capacity: usize,
    buffer: Vec<Record>,
    runs: Vec<RecordFile>,
}

impl Sorter {
    /// A sorter of records of `words` words that holds at most `memory_bytes`, and at least
    /// [`FEWEST_RECORDS`] records.
    pub fn new(folder: &Path, words: usize, equal: Equal, memory_bytes: u64) -> Self {
        let capacity = usize::try_from(memory_bytes).unwrap_or(usize::MAX) / size_of::<Record>();
        Self {
            folder: folder.to_owned(),
            words,
            equal,
            capacity: capacity.max(FEWEST_RECORDS),
            buffer: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Adds a record.
    pub fn push(&mut self, record: Record) -> Result<()> {
        if self.buffer.len() >= self.capacity {
            self.sort_buffer();
            // Where many were equal there is room again.
            if self.buffer.len() > self.capacity / 2 {
                self.spill()?;
            }
        }
        if self.buffer.len() == self.buffer.capacity() {
            // Doubling, but never beyond the cap.
            let more = self.buffer.len().max(FEWEST_RECORDS).min(self.capacity - self.buffer.len());
            self.buffer.reserve_exact(more);
        }
        self.buffer.push(record);
        Ok(())
    }

    /// All records, sorted.
    pub fn finish(mut self) -> Result<RecordFile> {
        self.sort_buffer();
        self.spill()?;
        self.buffer = Vec::new();
        self.merge()?;
        match self.runs.pop() {
            Some(run) => Ok(run),
            None => RecordWriter::create(&self.folder, self.words)?.finish(),
        }
    }

    fn sort_buffer(&mut self) {
        self.buffer.par_sort_unstable();
        if self.equal == Equal::Add {
            self.buffer.dedup_by(|next, kept| add_if_equal(kept, next));
        }
    }

    fn spill(&mut self) -> Result<()> {
        let mut run = RecordWriter::create(&self.folder, self.words)?;
        for record in self.buffer.drain(..) {
            run.write(&record)?;
        }
        self.runs.push(run.finish()?);
        if self.runs.len() >= MOST_RUNS { self.merge() } else { Ok(()) }
    }

    /// Makes all runs one.
    fn merge(&mut self) -> Result<()> {
        if self.runs.len() < 2 {
            return Ok(());
        }
        let mut merged = RecordWriter::create(&self.folder, self.words)?;
        let mut readers = self.runs.iter_mut().map(RecordFile::read).collect::<Result<Vec<_>>>()?;
        let mut heads = BinaryHeap::new();
        for (index, reader) in readers.iter_mut().enumerate() {
            if let Some(record) = reader.next() {
                heads.push(Reverse((record?, index)));
            }
        }
        let mut last: Option<Record> = None;
        while let Some(Reverse((record, index))) = heads.pop() {
            if let Some(next) = readers[index].next() {
                heads.push(Reverse((next?, index)));
            }
            let added = match &mut last {
                Some(last) => self.equal == Equal::Add && add_if_equal(last, &record),
                None => false,
            };
            if added {
                continue;
            }
            if let Some(done) = last.replace(record) {
                merged.write(&done)?;
            }
        }
        if let Some(done) = last {
            merged.write(&done)?;
        }
        drop(readers);
        self.runs = vec![merged.finish()?];
        Ok(())
    }
}

/// Adds the count of `next` to that of `kept` if they have the same words.
fn add_if_equal(kept: &mut Record, next: &Record) -> bool {
    let equal = kept[..MOST_WORDS] == next[..MOST_WORDS];
    if equal {
        set_count(kept, count(kept).saturating_add(count(next)));
    }
    equal
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn sorting_on_the_disk_is_sorting_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = 7u64;
        let records: Vec<Record> = (0..300_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let mut record = Record::default();
                record[0] = (state >> 60) as u32;
                record[1] = (state >> 40) as u32 % 3000;
                set_count(&mut record, state >> 62 | 1 << 31);
                record
            })
            .collect();
        let mut expected = BTreeMap::new();
        for record in &records {
            *expected.entry([record[0], record[1]]).or_insert(0) += count(record);
        }
        for memory in [0, 1 << 20, 1 << 30] {
            let mut sorter = Sorter::new(folder.path(), 2, Equal::Add, memory);
            for record in &records {
                sorter.push(*record).unwrap();
            }
            let mut sorted = sorter.finish().unwrap();
            assert_eq!(sorted.len(), expected.len() as u64);
            let found: Vec<_> = sorted
                .read()
                .unwrap()
                .map(|record| record.map(|record| ([record[0], record[1]], count(&record))))
                .collect::<Result<_>>()
                .unwrap();
            assert!(found.into_iter().eq(expected.iter().map(|(key, count)| (*key, *count))));
        }
        let mut all = Sorter::new(folder.path(), 2, Equal::Keep, 0);
        for record in &records {
            all.push(*record).unwrap();
        }
        let mut sorted = records.clone();
        sorted.sort_unstable();
        let mut all = all.finish().unwrap();
        assert!(all.read().unwrap().map(|record| record.unwrap()).eq(sorted));
    }
}
