//! The shards of one source, end to end.

use std::path::Path;

use crate::document::Split;
use crate::error::{DataError, Result};
use crate::progress::Progress;
use crate::shard::{Shard, ShardManifest};

/// The shards of one side of one source, read as one long row of tokens.
#[derive(Debug)]
pub struct SourceTokens {
    name: String,
    shards: Vec<Shard>,
    /// Tokens before each shard, and the total at the end.
    starts: Vec<u64>,
    tokenizer: String,
    vocab_size: usize,
}

impl SourceTokens {
    /// Opens the shards in `folder` and checks them against its manifest; with `checksums`, which
    /// counts them, every byte is read.
    ///
    /// # Errors
    /// [`DataError::NotMade`], [`DataError::Shard`] or [`DataError::TokenizerMismatch`].
    pub fn open(folder: &Path, split: Split, checksums: Option<&Progress>) -> Result<Self> {
        let manifest = ShardManifest::read(folder)?;
        let shards = manifest.open_shards(folder, split, checksums)?;
        let mut starts = vec![0];
        let mut total = 0u64;
        for shard in &shards {
            total = total.saturating_add(shard.header().tokens);
            starts.push(total);
        }
        Ok(Self {
            name: manifest.source,
            shards,
            starts,
            tokenizer: manifest.tokenizer,
            vocab_size: manifest.vocab_size,
        })
    }

    /// Refuses shards of another tokenizer, or of more ids than the model has.
    ///
    /// # Errors
    /// [`DataError::TokenizerMismatch`] or [`DataError::Shard`].
    pub fn check_tokenizer(&self, fingerprint: &str, vocab_size: usize) -> Result<()> {
        let path = match self.shards.first() {
            Some(shard) => shard.path().to_owned(),
            None => self.name.clone().into(),
        };
        if self.tokenizer != fingerprint {
            return Err(DataError::TokenizerMismatch {
                path,
                found: self.tokenizer.clone(),
                expected: fingerprint.to_owned(),
            });
        }
        if self.vocab_size > vocab_size {
            return Err(DataError::Shard {
                path,
                what: "vocabulary size",
                found: self.vocab_size.to_string(),
                expected: format!("at most the model's vocab_size {vocab_size}"),
            });
        }
        Ok(())
    }

    /// Name of the source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shards.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Tokens of all shards.
    pub fn tokens(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Documents of all shards.
    pub fn documents(&self) -> u64 {
        self.shards.iter().map(|shard| shard.header().documents).fold(0, u64::saturating_add)
    }

    /// Bytes of the documents' text.
    pub fn text_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.header().text_bytes).fold(0, u64::saturating_add)
    }

    /// Whole sequences of `seq_len` inputs and as many targets, each one token further.
    pub fn sequences(&self, seq_len: usize) -> u64 {
        self.tokens().saturating_sub(1) / seq_len.max(1) as u64
    }

    /// Copies the tokens from `position` on, across shards if need be.
    ///
    /// # Errors
    /// [`DataError::Shard`] when an id is outside the vocabulary.
    pub fn read(&self, position: u64, ids: &mut [i32]) -> Result<()> {
        let mut done = 0;
        let mut shard = self.shard_at(position);
        while done < ids.len() {
            let Some(source) = self.shards.get(shard) else {
                return Err(DataError::StateMismatch {
                    what: "tokens of a source",
                    found: format!("token {}", position.saturating_add(ids.len() as u64)),
                    expected: format!("{} tokens in {:?}", self.tokens(), self.name),
                });
            };
            let inside = position + done as u64 - self.starts[shard];
            let left = (source.header().tokens - inside).min((ids.len() - done) as u64);
            source.read(inside, &mut ids[done..done + left as usize])?;
            done += left as usize;
            shard += 1;
        }
        Ok(())
    }

    /// The document starts in `begin..end`, in order.
    pub fn document_starts(&self, begin: u64, end: u64) -> impl Iterator<Item = u64> + '_ {
        let first = self.shard_at(begin);
        self.shards[first.min(self.shards.len())..]
            .iter()
            .zip(&self.starts[first.min(self.shards.len())..])
            .take_while(move |(_, start)| **start < end)
            .flat_map(move |(shard, &start)| {
                let begin = begin.saturating_sub(start);
                shard.document_starts(begin, end - start).map(move |at| start + at)
            })
    }

    /// Number of the shard that holds token `position`.
    pub fn shard_at(&self, position: u64) -> usize {
        self.starts.partition_point(|&start| start <= position).saturating_sub(1)
    }

    /// Tokens before shard `index`.
    pub fn shard_start(&self, index: usize) -> u64 {
        self.starts[index]
    }
}
