//! Batches of a mixture, prefetched by reader threads.
//!
//! Sequence `i` of a source is the tokens `i·T .. i·T + T` of its shards laid end to end, and its
//! targets are one token further. Which sequence comes next depends only on how many were drawn
//! from each source, so the state is a handful of integers, the stream is the same for any number
//! of readers and resuming is exact, also across epochs.

mod assemble;
mod plan;
mod prefetch;
mod report;
mod validation;

pub use report::{MixtureTable, SourceReport, mixture_report, single_epoch_tokens};
pub use validation::{ValidationSet, ValidationSource};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::document::Split;
use crate::error::{DataError, Result};
use crate::fingerprint::Fingerprint;
use crate::mixture::{MixtureConfig, SourceOrder, SourceTokens};
use crate::progress::{Progress, ProgressMode, Work};
use crate::shard::ShardManifest;
use assemble::Assembler;
use plan::Planner;
use prefetch::Prefetch;

/// A target that does not count: no loss, no gradient.
pub const IGNORED_TARGET: i32 = -100;

/// More sequences than any run draws; a state beyond is damaged.
const MOST_SEQUENCES: u64 = 1 << 56;

/// A micro-batch of `B` sequences of `T` tokens, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `B`.
    pub batch_size: usize,
    /// `T`.
    pub seq_len: usize,
    /// Token ids, (B, T).
    pub inputs: Vec<i32>,
    /// The token after each input, (B, T), or [`IGNORED_TARGET`].
    pub targets: Vec<i32>,
    /// For each input the index in its row of the first token of its document, (B, T).
    pub first_visible: Vec<i32>,
    /// Where each row comes from, (B).
    pub origins: Vec<SequenceOrigin>,
}

impl Batch {
    /// Targets that count.
    pub fn valid_targets(&self) -> usize {
        self.targets.iter().filter(|target| **target >= 0).count()
    }
}

/// Where a row of a batch comes from. Displays as `source, shard, tokens a..b`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceOrigin {
    /// Number of the source in the mixture.
    pub source_index: usize,
    /// Name of the source.
    pub source: Arc<str>,
    /// How often the source was gone through before.
    pub epoch: u64,
    /// Number of the row's sequence inside the source.
    pub sequence: u64,
    /// The shard the row begins in; empty for random tokens and padding.
    pub shard: Arc<str>,
    /// First token of the row in that shard.
    pub token: u64,
    /// Tokens of the row that are not padding.
    pub tokens: usize,
}

impl std::fmt::Display for SequenceOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = self.token.saturating_add(self.tokens as u64);
        write!(f, "{}, {}, tokens {}..{end}", self.source, self.shard, self.token)
    }
}

/// Which of the batches are read, where several copies of a model share the stream: batch `i` is
/// read by copy `i mod of`. All of them are planned, so every copy stands at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Number of this copy, below `of`.
    pub index: usize,
    /// Copies.
    pub of: usize,
}

impl Default for Share {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

/// How batches are made.
#[derive(Clone, Debug)]
pub struct LoaderOptions {
    /// Tokens in a sequence.
    pub seq_len: usize,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Another seed visits the sequences in another order.
    pub seed: u64,
    /// Reader threads; with 0 batches are read when asked for.
    pub readers: usize,
    /// Fingerprint of the run's tokenizer; shards of another one are refused. Not looked at for
    /// random tokens.
    pub tokenizer_fingerprint: String,
    /// The model's vocabulary size; shards of a larger one are refused.
    pub vocab_size: usize,
    /// Whether the progress of reading checksums is shown.
    pub progress: ProgressMode,
}

impl LoaderOptions {
    fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("batch.seq_len", self.seq_len),
            ("batch.micro_batch", self.batch_size),
            ("model.vocab_size", self.vocab_size),
        ] {
            if value == 0 || value > i32::MAX as usize {
                return Err(DataError::config(key, value, format!("1 to {}", i32::MAX)));
            }
        }
        if self.readers > 1024 {
            return Err(DataError::config("readers", self.readers, "0 to 1024"));
        }
        Ok(())
    }
}

/// Where a stream of batches stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Sequences drawn in all.
    pub sequences: u64,
    /// Sequences drawn from each source, in the order of the mixture.
    pub per_source: Vec<u64>,
    /// Hash of what the stream depends on: seed, sequence length, shares and every shard.
    #[serde(rename = "corpus")]
    pub fingerprint: String,
}

/// An endless stream of batches.
pub struct Loader {
    assembler: Arc<Assembler>,
    planner: Planner,
    readers: usize,
    prefetch: Option<Prefetch>,
    fingerprint: String,
    share: Share,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Loader {
    /// Opens every shard of the mixture and checks all of them.
    ///
    /// # Errors
    /// [`DataError::Config`], [`DataError::NotMade`], [`DataError::Shard`],
    /// [`DataError::TokenizerMismatch`] or [`DataError::CorpusTooSmall`].
    pub fn open(config: &MixtureConfig, options: LoaderOptions) -> Result<Self> {
        config.validate()?;
        options.validate()?;
        let sources = open_sources(config, &options, Split::Train)?;
        check_size(&sources, config.random, &options)?;
        let mut weights: Vec<f64> = config.sources.iter().map(|source| source.weight).collect();
        if config.random {
            weights.push(1.0);
        }
        let order = SourceOrder::new(&weights);
        let fingerprint = fingerprint(&sources, &order, config, &options);
        let assembler = Arc::new(Assembler::new(sources, config, &options));
        let planner = Planner::new(order, assembler.lengths(), &options);
        Ok(Self {
            assembler,
            planner,
            readers: options.readers,
            prefetch: None,
            fingerprint,
            share: Share::default(),
        })
    }

    /// Reads only this share of the batches from here on.
    pub fn set_share(&mut self, share: Share) {
        self.prefetch = None;
        self.share = share;
    }

    /// The share of the batches that is read.
    pub fn share(&self) -> Share {
        self.share
    }

    /// The next batch of this loader's share: of the next `of` batches, one is read. The first call
    /// starts the readers.
    ///
    /// # Errors
    /// [`DataError::Shard`] when a token is outside the vocabulary. The state stays before the
    /// batch that failed.
    pub fn next_batch(&mut self) -> Result<Batch> {
        if self.readers == 0 {
            let mut planner = self.planner.clone();
            let batch = self.assembler.batch(&planner.next_rows_of(self.share))?;
            self.planner = planner;
            return Ok(batch);
        }
        let prefetch = match &mut self.prefetch {
            Some(prefetch) => prefetch,
            None => self.prefetch.insert(Prefetch::start(
                Arc::clone(&self.assembler),
                self.planner.clone(),
                self.share,
                self.readers,
            )?),
        };
        match prefetch.next() {
            Ok((batch, drawn)) => {
                self.planner.restore(&drawn);
                Ok(batch)
            }
            Err(error) => {
                self.prefetch = None;
                Err(error)
            }
        }
    }

    /// Moves the stream on by `batches` batches, which are not read.
    pub fn skip_batches(&mut self, batches: u64) {
        self.prefetch = None;
        self.planner.skip_batches(batches);
    }

    /// Where the stream stands: behind the last batch returned.
    pub fn state(&self) -> LoaderState {
        LoaderState {
            sequences: self.planner.drawn().iter().sum(),
            per_source: self.planner.drawn().to_vec(),
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// Moves the stream to `state`.
    ///
    /// # Errors
    /// [`DataError::StateMismatch`] when the state belongs to other shards, another seed, sequence
    /// length or set of weights; the stream then stays where it was.
    pub fn restore(&mut self, state: &LoaderState) -> Result<()> {
        let mismatch = |what, found: String, expected: String| {
            Err(DataError::StateMismatch { what, found, expected })
        };
        if state.fingerprint != self.fingerprint {
            return mismatch(
                "fingerprint of seed, seq_len, weights and shards",
                state.fingerprint.clone(),
                self.fingerprint.clone(),
            );
        }
        let sources = self.planner.drawn().len();
        if state.per_source.len() != sources {
            let found = state.per_source.len().to_string();
            return mismatch("number of sources", found, sources.to_string());
        }
        let sum = state.per_source.iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
        if sum != Some(state.sequences) || state.sequences > MOST_SEQUENCES {
            let found = state.sequences.to_string();
            let expected = format!("{sum:?}, the sum over the sources, at most {MOST_SEQUENCES}");
            return mismatch("sequences", found, expected);
        }
        self.prefetch = None;
        self.planner.restore(&state.per_source);
        Ok(())
    }

    /// Tokens available, shares and the like, per source.
    pub fn report(&self) -> Vec<SourceReport> {
        self.assembler.report(self.planner.order())
    }
}

fn open_sources(
    config: &MixtureConfig,
    options: &LoaderOptions,
    split: Split,
) -> Result<Vec<SourceTokens>> {
    let config = &config.fetched()?;
    let checksums = config
        .verify_checksums
        .then(|| progress_of_checksums(config, options.progress, split))
        .transpose()?;
    let mut sources: Vec<SourceTokens> = Vec::new();
    for source in &config.sources {
        let source = SourceTokens::open(&source.path, split, checksums.as_ref())?;
        source.check_tokenizer(&options.tokenizer_fingerprint, options.vocab_size)?;
        if sources.iter().any(|other| other.name() == source.name()) {
            return Err(DataError::config(
                "data.sources",
                format!("source {:?} twice", source.name()),
                "each source once",
            ));
        }
        sources.push(source);
    }
    Ok(sources)
}

/// The progress of reading every shard of one side of the holdout once.
fn progress_of_checksums(
    config: &MixtureConfig,
    mode: ProgressMode,
    split: Split,
) -> Result<Progress> {
    let (mut bytes, mut files) = (0u64, 0);
    for source in &config.sources {
        let manifest = ShardManifest::read(&source.path)?;
        bytes = bytes.saturating_add(manifest.file_bytes(split));
        files += manifest.shards.iter().filter(|shard| shard.split == split).count() as u64;
    }
    Ok(Progress::new(mode, "checksums", Work::bytes(bytes).of(files, "files")))
}

fn check_size(sources: &[SourceTokens], random: bool, options: &LoaderOptions) -> Result<()> {
    if random {
        return Ok(());
    }
    let seq_len = options.seq_len;
    let too_small = |name: String, tokens: u64, sequences: u64, needed: u64| {
        Err(DataError::CorpusTooSmall {
            name,
            tokens,
            sequences,
            seq_len,
            needed_sequences: needed,
            needed_tokens: needed.saturating_mul(seq_len as u64).saturating_add(1),
        })
    };
    for source in sources {
        if source.sequences(seq_len) == 0 {
            return too_small(format!("source {:?}", source.name()), source.tokens(), 0, 1);
        }
    }
    let sequences =
        sources.iter().map(|source| source.sequences(seq_len)).fold(0, u64::saturating_add);
    let tokens = sources.iter().map(SourceTokens::tokens).fold(0, u64::saturating_add);
    if sequences < options.batch_size as u64 {
        return too_small("the corpus".into(), tokens, sequences, options.batch_size as u64);
    }
    Ok(())
}

/// Hash of everything the stream depends on.
fn fingerprint(
    sources: &[SourceTokens],
    order: &SourceOrder,
    config: &MixtureConfig,
    options: &LoaderOptions,
) -> String {
    let mut fingerprint = Fingerprint::of("altiplano loader 1");
    fingerprint.part(options.seed.to_le_bytes()).part((options.seq_len as u64).to_le_bytes());
    fingerprint.part([config.random.into(), config.mask_document_boundary.into()]);
    if config.random {
        fingerprint.part((options.vocab_size as u64).to_le_bytes());
    }
    for (source, part) in sources.iter().zip(order.parts()) {
        fingerprint.part(source.name()).part(part.to_le_bytes());
        for shard in source.shards() {
            fingerprint.part(&shard.header().blake3);
        }
    }
    fingerprint.hex()
}

#[cfg(test)]
pub(crate) mod tests;
