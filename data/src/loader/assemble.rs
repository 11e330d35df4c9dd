//! Reads the rows of a batch out of the shards.

use std::sync::Arc;

use super::plan::Row;
use super::report::SourceReport;
use super::{Batch, IGNORED_TARGET, LoaderOptions, SequenceOrigin};
use crate::error::Result;
use crate::mixture::{MixtureConfig, SourceOrder, SourceTokens};
use crate::shard::Shard;

/// Name of the source of random tokens.
const RANDOM: &str = "random";
/// Sequences of random tokens before they repeat.
const RANDOM_SEQUENCES: u64 = 1 << 40;

/// The sources of a mixture and how rows are cut out of them. Shared by the reader threads.
pub(super) struct Assembler {
    sources: Vec<Source>,
    /// Size of the vocabulary and seed of random tokens, instead of sources.
    random: Option<(usize, u64)>,
    mask_document_boundary: bool,
    seq_len: usize,
}

struct Source {
    name: Arc<str>,
    /// Paths of the shards.
    shards: Vec<Arc<str>>,
    tokens: SourceTokens,
}

impl Assembler {
    pub fn new(
        sources: Vec<SourceTokens>,
        config: &MixtureConfig,
        options: &LoaderOptions,
    ) -> Self {
        let path = |shard: &Shard| shard.path().display().to_string().into();
        let sources = sources
            .into_iter()
            .map(|tokens| Source {
                name: tokens.name().into(),
                shards: tokens.shards().iter().map(path).collect(),
                tokens,
            })
            .collect();
        Self {
            sources,
            random: config.random.then_some((options.vocab_size, options.seed)),
            mask_document_boundary: config.mask_document_boundary,
            seq_len: options.seq_len,
        }
    }

    /// Name and number of whole sequences of each source.
    pub fn lengths(&self) -> Vec<(String, u64)> {
        if self.random.is_some() {
            return vec![(RANDOM.to_owned(), RANDOM_SEQUENCES)];
        }
        self.sources
            .iter()
            .map(|source| {
                let sequences = source.tokens.sequences(self.seq_len);
                (source.name.to_string(), sequences)
            })
            .collect()
    }

    pub fn source_tokens(&self) -> impl Iterator<Item = &SourceTokens> {
        self.sources.iter().map(|source| &source.tokens)
    }

    pub fn report(&self, order: &SourceOrder) -> Vec<SourceReport> {
        self.source_tokens()
            .enumerate()
            .map(|(index, source)| SourceReport {
                name: source.name().to_owned(),
                documents: source.documents(),
                tokens: source.tokens(),
                bytes: source.text_bytes(),
                share: order.share(index),
            })
            .collect()
    }

    /// Reads the rows of a batch.
    pub fn batch(&self, rows: &[Row]) -> Result<Batch> {
        let mut batch = self.empty_batch(rows.len());
        let mut window = vec![0; self.seq_len + 1];
        for (index, row) in rows.iter().enumerate() {
            match self.random {
                Some((vocab_size, seed)) => {
                    fill_random(&mut window, vocab_size, seed, row.sequence);
                    batch.set_row(index, &window, self.seq_len);
                    batch.origins[index] = SequenceOrigin {
                        source: RANDOM.into(),
                        epoch: row.epoch,
                        sequence: row.sequence,
                        token: row.sequence.saturating_mul(self.seq_len as u64),
                        tokens: self.seq_len,
                        ..SequenceOrigin::default()
                    };
                }
                None => {
                    let begin = row.sequence * self.seq_len as u64;
                    self.read_row(&mut batch, index, row.source, begin, &mut window)?;
                    batch.origins[index].epoch = row.epoch;
                }
            }
        }
        Ok(batch)
    }

    /// A batch of padding.
    pub fn empty_batch(&self, batch_size: usize) -> Batch {
        let size = batch_size * self.seq_len;
        Batch {
            batch_size,
            seq_len: self.seq_len,
            inputs: vec![0; size],
            targets: vec![IGNORED_TARGET; size],
            first_visible: vec![0; size],
            origins: vec![SequenceOrigin::default(); batch_size],
        }
    }

    /// Fills row `index` with the tokens from `begin` on; where the source ends, padding follows.
    pub fn read_row(
        &self,
        batch: &mut Batch,
        index: usize,
        source_index: usize,
        begin: u64,
        window: &mut [i32],
    ) -> Result<()> {
        let source = &self.sources[source_index];
        let all = &source.tokens;
        let available = all.tokens().saturating_sub(begin);
        let count = available.min(window.len() as u64) as usize;
        all.read(begin, &mut window[..count])?;
        let tokens = count.saturating_sub(1);
        batch.set_row(index, &window[..count], tokens);

        let first = index * self.seq_len;
        let row = first..first + tokens;
        let end = begin + tokens as u64;
        // One further than the inputs: the last target may begin a document too.
        for start in all.document_starts(begin, end + 1) {
            let at = (start - begin) as usize;
            if at < tokens {
                batch.first_visible[row.clone()][at..].fill(at as i32);
            }
            if self.mask_document_boundary && at > 0 {
                batch.targets[first + at - 1] = IGNORED_TARGET;
            }
        }
        let shard = all.shard_at(begin);
        batch.origins[index] = SequenceOrigin {
            source_index,
            source: Arc::clone(&source.name),
            epoch: 0,
            sequence: begin / self.seq_len as u64,
            shard: source.shards.get(shard).cloned().unwrap_or_default(),
            token: begin.saturating_sub(all.shard_start(shard)),
            tokens,
        };
        Ok(())
    }
}

impl Batch {
    /// Sets the first `tokens` inputs and targets of row `index` from `window`, which has one
    /// token more.
    fn set_row(&mut self, index: usize, window: &[i32], tokens: usize) {
        let first = index * self.seq_len;
        self.inputs[first..first + tokens].copy_from_slice(&window[..tokens]);
        self.targets[first..first + tokens].copy_from_slice(&window[1..=tokens]);
    }
}

/// Tokens drawn uniformly: a hash of seed, sequence and place.
fn fill_random(window: &mut [i32], vocab_size: usize, seed: u64, sequence: u64) {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&sequence.to_le_bytes());
    for (place, id) in window.iter_mut().enumerate() {
        key[16..].copy_from_slice(&(place as u64).to_le_bytes());
        let hash = xxhash_rust::xxh3::xxh3_64(&key);
        // The high half of a product is uniform without a division.
        *id = ((u128::from(hash) * vocab_size as u128) >> 64) as i32;
    }
}
