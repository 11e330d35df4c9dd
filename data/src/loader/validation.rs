//! Held-out documents, in order.

use serde::Serialize;

use super::assemble::Assembler;
use super::{Batch, LoaderOptions, Share, open_sources};
use crate::document::Split;
use crate::error::{DataError, Result};
use crate::mixture::{MixtureConfig, SourceOrder};

/// The held-out documents of every source of a mixture. Windows of `seq_len` tokens that do not
/// overlap, in order; the last one is padded with [`super::IGNORED_TARGET`], so every token but
/// the first of a source is predicted once.
pub struct ValidationSet {
    assembler: Assembler,
    sources: Vec<ValidationSource>,
    batch_size: usize,
    seq_len: usize,
}

/// The held-out documents of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValidationSource {
    /// Name of the source.
    pub name: String,
    /// Documents.
    pub documents: u64,
    /// Tokens, marks included.
    pub tokens: u64,
    /// Bytes of the documents' text.
    pub bytes: u64,
    /// Windows.
    pub sequences: u64,
    /// Targets that count in all windows.
    pub targets: u64,
    /// Share of the source in the mixture, 0 to 1.
    pub share: f64,
}

impl ValidationSource {
    /// Bits per byte of text from a sum of losses in nats over `targets` targets. Exact when all
    /// targets were counted; otherwise the text not looked at is taken to be like the rest.
    pub fn bits_per_byte(&self, loss_sum: f64, targets: u64) -> f64 {
        let mean = loss_sum / (targets as f64).max(1.0);
        mean * self.targets as f64 / (self.bytes as f64).max(1.0) / std::f64::consts::LN_2
    }
}

impl std::fmt::Debug for ValidationSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValidationSet").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl ValidationSet {
    /// Opens the validation shards of every source of the mixture. `seed` and `readers` of the
    /// options are not used.
    ///
    /// # Errors
    /// As [`Loader::open`](super::Loader::open); [`DataError::CorpusTooSmall`] when a source has
    /// no held-out document.
    pub fn open(config: &MixtureConfig, options: &LoaderOptions) -> Result<Self> {
        config.validate()?;
        options.validate()?;
        let opened = open_sources(config, options, Split::Validation)?;
        let weights: Vec<f64> = config.sources.iter().map(|source| source.weight).collect();
        let order = SourceOrder::new(&weights);
        let mut sources = Vec::new();
        for (index, source) in opened.iter().enumerate() {
            let targets = source.tokens().saturating_sub(1);
            if targets == 0 {
                return Err(DataError::CorpusTooSmall {
                    name: format!("validation documents of source {:?}", source.name()),
                    tokens: source.tokens(),
                    sequences: 0,
                    seq_len: options.seq_len,
                    needed_sequences: 1,
                    needed_tokens: 2,
                });
            }
            let masked = match config.mask_document_boundary {
                true => source.documents().saturating_sub(1),
                false => 0,
            };
            sources.push(ValidationSource {
                name: source.name().to_owned(),
                documents: source.documents(),
                tokens: source.tokens(),
                bytes: source.text_bytes(),
                sequences: targets.div_ceil(options.seq_len as u64),
                targets: targets - masked,
                share: order.share(index),
            });
        }
        Ok(Self {
            assembler: Assembler::new(opened, config, options),
            sources,
            batch_size: options.batch_size,
            seq_len: options.seq_len,
        })
    }

    /// The sources, in the order of the mixture.
    pub fn sources(&self) -> &[ValidationSource] {
        &self.sources
    }

    /// The batches of source `source`: all of its windows, or `max_sequences` windows spread evenly
    /// over it. Every batch is full; rows that are left over are padding.
    pub fn batches(
        &self,
        source: usize,
        max_sequences: Option<usize>,
    ) -> impl Iterator<Item = Result<Batch>> + '_ {
        self.batches_of(source, max_sequences, Share::default())
    }

    /// Those of the [`batches`](Self::batches) that a share reads.
    pub fn batches_of(
        &self,
        source: usize,
        max_sequences: Option<usize>,
        share: Share,
    ) -> impl Iterator<Item = Result<Batch>> + '_ {
        let batch_size = self.batch_size as u64;
        let all = self.sources.get(source).map_or(0, |source| source.sequences);
        let wanted = max_sequences.map_or(all, |most| all.min(most as u64));
        let own = (share.index as u64..wanted.div_ceil(batch_size)).step_by(share.of.max(1));
        own.map(move |batch| {
            let first = batch * batch_size;
            let rows = first..wanted.min(first + batch_size);
            let windows: Vec<u64> = rows
                .map(|row| (u128::from(row) * u128::from(all) / u128::from(wanted)) as u64)
                .collect();
            self.batch(source, &windows)
        })
    }

    fn batch(&self, source: usize, windows: &[u64]) -> Result<Batch> {
        let mut batch = self.assembler.empty_batch(self.batch_size);
        let mut tokens = vec![0; self.seq_len + 1];
        for (row, window) in windows.iter().enumerate() {
            let begin = window * self.seq_len as u64;
            self.assembler.read_row(&mut batch, row, source, begin, &mut tokens)?;
        }
        Ok(batch)
    }
}
