//! Reads a token shard in place.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::ShardHeader;
use super::layout::{self, BatchLayout, Layout};
use crate::error::{DataError, Result};

/// A memory-mapped token shard. Opening it checks everything but the values of the token ids,
/// which [`Shard::verify`] checks against the checksum and [`Shard::read`] against the vocabulary.
///
/// The file must not be changed in place while it is mapped; altiplano replaces files by renaming.
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    header: ShardHeader,
    width: usize,
    batches: Vec<BatchLayout>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("path", &self.path)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl Shard {
    /// Maps `path` and checks its layout.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::Shard`] saying what was expected and found.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io(path))?;
        // SAFETY: the mapping is read-only. That no one truncates or writes the file while it is
        // mapped is the caller's part, said at `Shard`.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path))?;
        let Layout { header, width, batches } = layout::read(path, &map)?;
        Ok(Self { path: path.to_owned(), map, header, width, batches })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the shard says about itself.
    pub fn header(&self) -> &ShardHeader {
        &self.header
    }

    /// Reads every token and holds it against the checksum and the vocabulary.
    ///
    /// # Errors
    /// [`DataError::Shard`] when they differ.
    pub fn verify(&self) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        for batch in &self.batches {
            hasher.update(&self.map[batch.ids.clone()]);
        }
        let mut ids = vec![0; 1 << 16];
        let mut position = 0;
        while position < self.header.tokens {
            let count = (self.header.tokens - position).min(ids.len() as u64);
            self.read(position, &mut ids[..count as usize])?;
            position += count;
        }
        for batch in &self.batches {
            for document in 1..=batch.documents {
                let end = batch.first_token + u64::from(self.offset(batch, document));
                hasher.update(&end.to_le_bytes());
            }
        }
        let found = hasher.finalize().to_hex().to_string();
        if found != self.header.blake3 {
            return Err(DataError::Shard {
                path: self.path.clone(),
                what: "checksum of the tokens",
                found,
                expected: self.header.blake3.clone(),
            });
        }
        Ok(())
    }

    /// Copies the tokens from `position` on into `ids`.
    ///
    /// # Errors
    /// [`DataError::Shard`] when an id is outside the vocabulary or the shard ends before.
    pub fn read(&self, position: u64, ids: &mut [i32]) -> Result<()> {
        let end = position.saturating_add(ids.len() as u64);
        if end > self.header.tokens {
            return Err(DataError::Shard {
                path: self.path.clone(),
                what: "tokens",
                found: self.header.tokens.to_string(),
                expected: format!("at least {end}"),
            });
        }
        let mut done = 0;
        let mut batch = self.batch_at(position);
        while done < ids.len() {
            let layout = &self.batches[batch];
            let begin = (position + done as u64 - layout.first_token) as usize;
            let count = (layout.tokens - begin).min(ids.len() - done);
            let from = layout.ids.start + begin * self.width;
            let bytes = &self.map[from..from + count * self.width];
            let into = &mut ids[done..done + count];
            match self.width {
                2 => copy(bytes, into, |b: [u8; 2]| u16::from_le_bytes(b).into()),
                _ => copy(bytes, into, u32::from_le_bytes),
            }
            done += count;
            batch += 1;
        }
        // Ids above i32::MAX became negative and are caught as well.
        let bound = i32::try_from(self.header.vocab_size).unwrap_or(i32::MAX);
        if let Some(at) = ids.iter().position(|id| !(0..bound).contains(id)) {
            return Err(DataError::Shard {
                path: self.path.clone(),
                what: "token id",
                found: format!("{} at token {}", ids[at], position + at as u64),
                expected: format!("below the vocabulary size {bound}"),
            });
        }
        Ok(())
    }

    /// The document starts in `begin..end`, in order.
    pub fn document_starts(&self, begin: u64, end: u64) -> impl Iterator<Item = u64> + '_ {
        let first = self.batch_at(begin);
        self.batches[first.min(self.batches.len())..]
            .iter()
            .take_while(move |batch| batch.first_token < end)
            .flat_map(move |batch| {
                let from = begin.saturating_sub(batch.first_token);
                let from = self.partition(batch, |offset| u64::from(offset) < from);
                (from..batch.documents)
                    .map(move |document| {
                        batch.first_token + u64::from(self.offset(batch, document))
                    })
                    .take_while(move |&start| start < end)
            })
    }

    /// The start of the document that token `position` belongs to.
    pub fn document_start(&self, position: u64) -> u64 {
        let Some(batch) = self.batches.get(self.batch_at(position)) else {
            return 0;
        };
        let inside = position - batch.first_token;
        let after = self.partition(batch, |offset| u64::from(offset) <= inside);
        batch.first_token + u64::from(self.offset(batch, after.saturating_sub(1)))
    }

    /// The batch that token `position` lies in.
    fn batch_at(&self, position: u64) -> usize {
        let after = self.batches.partition_point(|batch| batch.first_token <= position);
        after.saturating_sub(1)
    }

    /// Offset `index` of a batch: where document `index` begins. Checked when opened to be at
    /// least 0.
    fn offset(&self, batch: &BatchLayout, index: usize) -> u32 {
        let at = batch.offsets.start + index * 4;
        let bytes = &self.map[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// The first document of a batch whose offset does not satisfy `below`.
    fn partition(&self, batch: &BatchLayout, below: impl Fn(u32) -> bool) -> usize {
        let (mut low, mut high) = (0, batch.documents);
        while low < high {
            let middle = low.midpoint(high);
            if below(self.offset(batch, middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

fn copy<const WIDTH: usize>(bytes: &[u8], ids: &mut [i32], read: impl Fn([u8; WIDTH]) -> u32) {
    let (chunks, _) = bytes.as_chunks::<WIDTH>();
    for (id, chunk) in ids.iter_mut().zip(chunks) {
        *id = read(*chunk) as i32;
    }
}
