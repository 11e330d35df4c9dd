//! The form of an n-gram model that is memory-mapped.
//!
//! ```text
//! preamble       64 bytes, the name of the form
//! unigrams       by word: log10 of probability and backoff, f32
//! words          UTF-8, each with a line feed behind it
//! tables         one for each order from 2: slots of hash u64, log10 of probability and backoff f32
//! footer         order, sizes and seed of the hash
//! checksum       blake3 of all before it
//! ```
//!
//! Each part begins at a multiple of 64 bytes; numbers are in the byte order of the machine, which
//! the footer tells. A table has its n-grams in ascending order of their hashes. The slot of one
//! is the first free one from `hash · capacity / 2^64` on, where the capacity is one and a half
//! times the number of n-grams, so a search ends at an empty slot (hash 0) or a higher hash.

use std::io::Write;
use std::path::Path;

use bytemuck::{Pod, Zeroable};

use super::records::{Equal, Record, Sorter, floats, set_floats};
use super::{MOST_WORDS, NGrams, WordId};
use crate::atomic_file::AtomicFile;
use crate::error::{DataError, Result};

/// The name of the form, at the beginning of the file and of the footer.
pub(super) const MAGIC: [u8; 16] = *b"altiplano.ngrams";
/// Version of the form.
pub(super) const VERSION: u32 = 1;
/// Tells the byte order.
pub(super) const BYTE_ORDER: u32 = 0x0102_0304;
/// Parts begin at multiples of this.
pub(super) const ALIGNMENT: usize = 64;
/// Bytes of the checksum.
pub(super) const CHECKSUM_BYTES: usize = 32;
/// Slots looked at before an n-gram is taken not to be there. No model written here needs more.
pub(super) const MOST_PROBES: usize = 4096;

/// A word by itself.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Unigram {
    pub log10: f32,
    pub backoff: f32,
}

/// An n-gram of more words.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Slot {
    /// 0 if the slot is empty.
    pub hash: u64,
    pub log10: f32,
    pub backoff: f32,
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Footer {
    pub magic: [u8; 16],
    pub version: u32,
    pub byte_order: u32,
    pub order: u32,
    /// 1 if an n-gram without its first word is always there too.
    pub suffixes_complete: u32,
    pub seed: u64,
    pub words: u64,
    pub text_bytes: u64,
    /// N-grams of each order from 2.
    pub entries: [u64; MOST_WORDS - 1],
    /// Slots of each order from 2.
    pub slots: [u64; MOST_WORDS - 1],
}

/// The hash of an n-gram's last word.
pub(super) fn hash_word(seed: u64, word: WordId) -> u64 {
    hash_before(seed, word)
}

/// The hash of an n-gram with `word` before it. Each step is the finalizer of SplitMix64
/// (Steele, Lea and Flood 2014).
#[inline]
pub(super) fn hash_before(hash: u64, word: WordId) -> u64 {
    let mut z = hash.wrapping_add((u64::from(word) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The hash as it stands in a table, where 0 is an empty slot.
#[inline]
pub(super) fn stored(hash: u64) -> u64 {
    hash.max(1)
}

/// Slots a table of `entries` n-grams is laid out for.
pub(super) fn capacity(entries: u64) -> u64 {
    entries.saturating_add(entries / 2).saturating_add(1)
}

/// The slot where the search for a hash begins.
#[inline]
pub(super) fn first_slot(hash: u64, capacity: u64) -> u64 {
    ((u128::from(hash) * u128::from(capacity)) >> 64) as u64
}

/// Writes a model and gives its checksum; none, and no file, if two n-grams have the same hash with
/// this seed.
pub(super) fn write(ngrams: &mut NGrams, path: &Path, seed: u64) -> Result<Option<String>> {
    let mut out = Output { file: AtomicFile::create(path)?, hasher: blake3::Hasher::new(), at: 0 };
    let io = DataError::io;
    let order = ngrams.order();
    let NGrams { vocabulary, unigrams, longer, suffixes_complete, scratch, memory_bytes } = ngrams;
    let mut footer = Footer {
        magic: MAGIC,
        version: VERSION,
        byte_order: BYTE_ORDER,
        order: order as u32,
        suffixes_complete: u32::from(*suffixes_complete),
        seed,
        words: vocabulary.len() as u64,
        ..Footer::default()
    };
    out.put(&MAGIC).and_then(|()| out.align()).map_err(io(path))?;
    for &(log10, backoff) in unigrams.iter() {
        out.put(bytemuck::bytes_of(&Unigram { log10, backoff })).map_err(io(path))?;
    }
    out.align().map_err(io(path))?;
    for word in vocabulary.words() {
        footer.text_bytes += word.len() as u64 + 1;
        out.put(word.as_bytes()).and_then(|()| out.put(b"\n")).map_err(io(path))?;
    }
    for (index, file) in longer.iter_mut().enumerate() {
        let n = index + 2;
        out.align().map_err(io(path))?;
        let mut by_hash = Sorter::new(scratch.path(), 2, Equal::Keep, *memory_bytes);
        for record in file.read()? {
            let record = record?;
            let words = &record[..n];
            let hash = stored(
                words[1..]
                    .iter()
                    .fold(hash_word(seed, words[0]), |hash, word| hash_before(hash, *word)),
            );
            let mut hashed = Record::default();
            (hashed[0], hashed[1]) = ((hash >> 32) as u32, hash as u32);
            let (log10, backoff) = floats(&record);
            set_floats(&mut hashed, log10, backoff);
            by_hash.push(hashed)?;
        }
        let mut by_hash = by_hash.finish()?;
        let entries = by_hash.len();
        let capacity = capacity(entries);
        let (mut slots, mut last) = (0u64, 0);
        for record in by_hash.read()? {
            let record = record?;
            let hash = u64::from(record[0]) << 32 | u64::from(record[1]);
            let first = first_slot(hash, capacity);
            if hash == last || slots.saturating_sub(first) >= MOST_PROBES as u64 {
                return Ok(None);
            }
            for _ in slots..first {
                out.put(bytemuck::bytes_of(&Slot::zeroed())).map_err(io(path))?;
            }
            let (log10, backoff) = floats(&record);
            out.put(bytemuck::bytes_of(&Slot { hash, log10, backoff })).map_err(io(path))?;
            slots = slots.max(first) + 1;
            last = hash;
        }
        (footer.entries[index], footer.slots[index]) = (entries, slots);
    }
    out.align().map_err(io(path))?;
    out.put(bytemuck::bytes_of(&footer)).map_err(io(path))?;
    let checksum = out.hasher.finalize();
    out.file.write_all(checksum.as_bytes()).map_err(io(path))?;
    out.file.commit()?;
    Ok(Some(checksum.to_hex().to_string()))
}

/// A file under construction with its checksum.
struct Output {
    file: AtomicFile,
    hasher: blake3::Hasher,
    at: usize,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.at += bytes.len();
        self.file.write_all(bytes)
    }

    fn align(&mut self) -> std::io::Result<()> {
        let missing = self.at.next_multiple_of(ALIGNMENT) - self.at;
        self.put(&[0; ALIGNMENT][..missing])
    }
}
