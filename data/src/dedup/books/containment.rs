//! Which books have most of themselves in a longer one.
//!
//! 1. Candidates. A book's sketch is its smallest hashes: [`SKETCH`] of them, or one in
//!    [`SCALE`] for a long book, so that a short one is sketched as surely as a long one
//!    (FracMinHash with a scale chosen by length; Irber et al. 2022, "Lightweight compositional
//!    analysis of metagenomes with FracMinHash"). The sketches go to a table, in batches that fit
//!    in memory, and the hashes of every longer book are looked up in it. The share found is an
//!    unbiased estimate of containment with a standard error of at most √(0.09 / 128) = 0.027
//!    at 0.9; pairs from 0.8 × threshold on are candidates, nearly seven standard errors below.
//! 2. Exact containment of the candidates, by merging the sorted hashes, from the longest book to
//!    the shortest.

use std::collections::HashMap;
use std::io::Write;

use super::BookDecision;
use super::signatures::{CHUNK_BYTES, Shingles, read_books, shared};
use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::dedup::budget::MIN_MEMORY;
use crate::dedup::spill::{SpillFiles, SpillWriter, for_each_sorted};
use crate::dedup::workers::in_parallel;
use crate::dedup::{Resources, TaskFiles};
use crate::error::{DataError, Result};
use crate::progress::Progress;

/// Least hashes in a sketch, if the book has as many.
const SKETCH: u64 = 128;
/// One hash of so many is in the sketch of a long book.
const SCALE: u64 = 1000;
/// Share of the threshold from which on a pair is looked at exactly.
const CANDIDATE_SHARE: f64 = 0.8;
/// Bytes of a hash in the table of sketches: the entry, and its share of the buckets.
const ENTRY_BYTES: u64 = 24;
/// Buffer of a worker for the pairs it finds.
const PAIR_BUFFER: usize = 1 << 14;
/// No book.
const NONE: u32 = u32::MAX;

/// A book. Books are ranked longest first, then by id.
struct Book {
    id: String,
    shingles: u64,
    task: u32,
    offset: u64,
    content: u64,
}

/// Why a book is dropped.
#[derive(Clone, Copy)]
struct Fate {
    /// The book that has most of it.
    duplicate_of: u32,
    shared: u64,
}

/// Finds the books of which more than `threshold` is in a longer one, and writes the decisions.
pub(super) fn find_duplicates(
    tasks: &[TaskFiles],
    threshold: f64,
    resources: &Resources<'_>,
) -> Result<Vec<FileDigest>> {
    let memory = resources.memory_bytes;
    if memory < MIN_MEMORY {
        let expected = format!("{MIN_MEMORY} or more");
        return Err(DataError::config("memory_bytes", memory, expected));
    }
    let budget = memory - memory / 16;
    let books = read_all(tasks, budget / 2)?;
    let batch_bytes = budget / 2 - table_bytes(&books).min(budget / 4);
    tracing::info!(books = books.len(), memory_bytes = memory, "comparing books");

    // Of books with the same shingles only the first is compared with the others.
    let mut first: HashMap<(u64, u64), u32> = HashMap::new();
    let same_as: Vec<u32> = (0u32..)
        .zip(&books)
        .map(|(rank, book)| *first.entry((book.content, book.shingles)).or_insert(rank))
        .collect();
    drop(first);

    let pairs = SpillFiles::new(&resources.spill, "pairs", 1);
    let progress = resources.progress;
    progress.begin(books.len() as u64);
    progress.phase("finding candidates");
    find_candidates(tasks, &books, &same_as, threshold, batch_bytes, &pairs, progress)?;
    progress.set_done(books.len() as u64);
    let mut fates = vec![Fate { duplicate_of: NONE, shared: 0 }; books.len()];
    if let Some((path, mut file)) = pairs.take(0) {
        let bytes = file.metadata().map_err(DataError::io(path))?.len();
        progress.begin(bytes / size_of::<u64>() as u64);
        progress.phase("comparing them");
        for_each_sorted::<1>(path, &mut file, (budget / 4) as usize, |[pair]| {
            let (short, long) = ((pair >> 32) as usize, pair as u32);
            if fates[short].duplicate_of == NONE && fates[long as usize].duplicate_of == NONE {
                let (a, b) = (&books[short], &books[long as usize]);
                let shared = overlap(tasks, a, b, threshold)?;
                if exceeds(shared, a.shingles, threshold) {
                    fates[short] = Fate { duplicate_of: long, shared };
                }
            }
            progress.add(1);
            Ok(())
        })?;
    }
    for (rank, &same) in same_as.iter().enumerate() {
        if same as usize != rank && books[rank].shingles > 0 {
            let other = fates[same as usize];
            fates[rank] = match other.duplicate_of {
                NONE => Fate { duplicate_of: same, shared: books[rank].shingles },
                _ => other,
            };
        }
    }
    write_decisions(tasks, &books, &fates)
}

fn exceeds(shared: u64, shingles: u64, threshold: f64) -> bool {
    shared as f64 > threshold * shingles as f64
}

/// Memory of the list of books, of what is known of each, and of the index of equal ones.
fn table_bytes(books: &[Book]) -> u64 {
    books.iter().map(book_bytes).sum()
}

fn book_bytes(book: &Book) -> u64 {
    (size_of::<Book>() + size_of::<Fate>() + 64 + book.id.len()) as u64
}

/// All books, longest first.
fn read_all(tasks: &[TaskFiles], memory: u64) -> Result<Vec<Book>> {
    let mut books = Vec::new();
    let mut held = 0;
    for (task, files) in (0u32..).zip(tasks) {
        read_books(&files.signatures, |found| {
            let book = Book {
                id: found.id,
                shingles: found.shingles,
                task,
                offset: found.offset,
                content: found.content,
            };
            // A vector that grows holds up to three times what is in it.
            held += book_bytes(&book) + 2 * size_of::<Book>() as u64;
            if held > memory || books.len() >= NONE as usize {
                return Err(DataError::config(
                    "memory_bytes",
                    format!("too little for the list of more than {} books", books.len()),
                    "more memory, or fewer and longer documents",
                ));
            }
            books.push(book);
            Ok(())
        })?;
    }
    books.sort_unstable_by(|a, b| {
        let by_length = b.shingles.cmp(&a.shingles);
        by_length
            .then_with(|| a.id.cmp(&b.id))
            .then_with(|| (a.task, a.offset).cmp(&(b.task, b.offset)))
    });
    Ok(books)
}

/// Shared shingles of a book and a longer one, exact where they exceed the threshold.
fn overlap(tasks: &[TaskFiles], short: &Book, long: &Book, threshold: f64) -> Result<u64> {
    let open = |book: &Book| {
        Shingles::open(&tasks[book.task as usize].signatures, book.offset, book.shingles)
    };
    let needed = (threshold * short.shingles as f64) as u64;
    shared(&mut open(short)?, &mut open(long)?, short.shingles, needed)
}

fn sketch_len(shingles: u64) -> u64 {
    shingles.div_ceil(SCALE).max(SKETCH).min(shingles)
}

/// Writes the pairs that may overlap: the rank of the shorter book in the upper half.
fn find_candidates(
    tasks: &[TaskFiles],
    books: &[Book],
    same_as: &[u32],
    threshold: f64,
    batch_bytes: u64,
    pairs: &SpillFiles,
    progress: &Progress,
) -> Result<()> {
    let compared = |rank: u32| same_as[rank as usize] == rank && books[rank as usize].shingles > 0;
    // The ranks of the books that are looked up, task by task in the order of the files.
    let mut of_task: Vec<Vec<u32>> = vec![Vec::new(); tasks.len()];
    for (rank, book) in (0u32..).zip(books).filter(|&(rank, _)| compared(rank)) {
        of_task[book.task as usize].push(rank);
    }
    for ranks in &mut of_task {
        ranks.sort_unstable_by_key(|&rank| books[rank as usize].offset);
    }

    let workers = rayon::current_num_threads();
    let worker_bytes = (workers * (2 * CHUNK_BYTES + PAIR_BUFFER)) as u64;
    let batch_bytes = batch_bytes.saturating_sub(worker_bytes).max(batch_bytes / 4);
    // Buckets are numbered in 32 bits.
    let batch_bytes = batch_bytes.min(u64::from(u32::MAX) * ENTRY_BYTES / 2);
    let mut next = 1;
    while (next as usize) < books.len() {
        // Ranks of a batch follow one another: a counter each.
        let start = next;
        let mut batch = Vec::new();
        let mut held = 0;
        while (next as usize) < books.len() {
            let entries =
                if compared(next) { sketch_len(books[next as usize].shingles) } else { 0 };
            held += entries * ENTRY_BYTES + 4 * workers as u64;
            if held > batch_bytes && !batch.is_empty() {
                break;
            }
            if entries > 0 {
                batch.push(next);
            }
            next += 1;
        }
        let table = Sketches::read(tasks, books, &batch)?;
        let counters = (next - start) as usize;
        in_parallel(
            workers,
            tasks.len(),
            || (vec![0u32; counters], Vec::new(), SpillWriter::<1>::new(pairs, PAIR_BUFFER)),
            |(hits, touched, writer), task| {
                let mut shingles: Option<Shingles> = None;
                for &long in &of_task[task] {
                    // Only books after it are shorter.
                    if long + 1 >= next {
                        continue;
                    }
                    let book = &books[long as usize];
                    let hashes = match &mut shingles {
                        Some(hashes) => {
                            hashes.seek(book.offset, book.shingles)?;
                            hashes
                        }
                        none => none.insert(Shingles::open(
                            &tasks[task].signatures,
                            book.offset,
                            book.shingles,
                        )?),
                    };
                    while let Some(hash) = hashes.next()?.filter(|&hash| hash <= table.largest) {
                        for short in table.with(hash).filter(|&short| short > long) {
                            let count = &mut hits[(short - start) as usize];
                            if *count == 0 {
                                touched.push(short);
                            }
                            *count += 1;
                        }
                    }
                    for short in touched.drain(..) {
                        let found = std::mem::take(&mut hits[(short - start) as usize]);
                        let sketch = sketch_len(books[short as usize].shingles);
                        if f64::from(found) >= CANDIDATE_SHARE * threshold * sketch as f64 {
                            writer.push(0, [u64::from(short) << 32 | u64::from(long)])?;
                        }
                    }
                }
                Ok(())
            },
            |(_, _, writer)| writer.finish(),
        )?;
        progress.set_done(u64::from(next));
    }
    Ok(())
}

/// The sketches of a batch of books: from a hash to the books that have it.
struct Sketches {
    /// Hash and book, in the order of buckets.
    entries: Vec<(u64, u32)>,
    /// Where each bucket begins, and the end of the last one.
    starts: Vec<u32>,
    /// Largest hash there is.
    largest: u64,
}

impl Sketches {
    fn read(tasks: &[TaskFiles], books: &[Book], batch: &[u32]) -> Result<Self> {
        let count: u64 = batch.iter().map(|&rank| sketch_len(books[rank as usize].shingles)).sum();
        let mut entries = Vec::with_capacity(count as usize);
        let mut largest = 0;
        for &rank in batch {
            let book = &books[rank as usize];
            let signatures = &tasks[book.task as usize].signatures;
            let mut hashes = Shingles::open(signatures, book.offset, sketch_len(book.shingles))?;
            while let Some(hash) = hashes.next()? {
                largest = largest.max(hash);
                entries.push((hash, rank));
            }
        }
        // The lower bits of a hash are random even in a sketch, whose hashes are all small.
        let buckets = (count.max(1) as usize).next_power_of_two();
        let mask = buckets as u64 - 1;
        entries.sort_unstable_by_key(|&(hash, rank)| (hash & mask, hash, rank));
        let mut starts = vec![0; buckets + 1];
        for &(hash, _) in &entries {
            starts[(hash & mask) as usize + 1] += 1;
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        Ok(Self { entries, starts, largest })
    }

    /// The books whose sketch has `hash`.
    fn with(&self, hash: u64) -> impl Iterator<Item = u32> {
        let bucket = (hash & (self.starts.len() as u64 - 2)) as usize;
        let range = self.starts[bucket] as usize..self.starts[bucket + 1] as usize;
        self.entries[range].iter().filter(move |entry| entry.0 == hash).map(|&(_, rank)| rank)
    }
}

fn write_decisions(tasks: &[TaskFiles], books: &[Book], fates: &[Fate]) -> Result<Vec<FileDigest>> {
    let mut written = Vec::with_capacity(tasks.len());
    let mut order: Vec<u32> = (0..books.len() as u32).collect();
    order.sort_unstable_by_key(|&rank| {
        let book = &books[rank as usize];
        (book.task, book.offset, rank)
    });
    let mut order = order.into_iter().peekable();
    for (task, files) in (0u32..).zip(tasks) {
        let mut out = AtomicFile::create(&files.decisions)?;
        while let Some(rank) = order.next_if(|&rank| books[rank as usize].task == task) {
            let (book, fate) = (&books[rank as usize], fates[rank as usize]);
            let other = books.get(fate.duplicate_of as usize);
            let decision = BookDecision {
                id: book.id.clone(),
                duplicate_of: other.map(|other| other.id.clone()),
                shingles: book.shingles,
                shared: fate.shared,
            };
            let mut line = serde_json::to_vec(&decision)
                .map_err(|error| DataError::bad_file(&files.decisions, error))?;
            line.push(b'\n');
            out.write_all(&line).map_err(DataError::io(&files.decisions))?;
        }
        written.push(out.commit()?);
    }
    Ok(written)
}
