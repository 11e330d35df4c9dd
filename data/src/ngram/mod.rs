//! The n-gram language model: estimation, ARPA files, a memory-mapped form, and scoring.
//!
//! [`Estimator`] counts and smooths sentences into [`NGrams`], which [`NGrams::read_arpa`] reads
//! from an ARPA file too. They are written as ARPA ([`NGrams::write_arpa`], which KenLM reads) or
//! in the form that [`NGramModel`] opens and scores with. [`train`] does all that for a language:
//! [`Pieces`] cut its text into words, and percentiles of the perplexity of a sample of documents
//! make the [`Cutoffs`] between head, middle and tail. [`PerplexityModel`] is the folder that
//! comes out of it.
//!
//! The names in use (CCNet, Wenzek et al. 2020): perplexity is `10^(−Σ log10 p / n)`, `n` counting
//! the words and one end of sentence.

mod adjusted_counts;
mod arpa;
mod binary;
mod cutoffs;
mod estimate;
mod kneser_ney;
mod model;
mod perplexity;
mod pieces;
mod records;
mod train;
mod vocabulary;

pub use cutoffs::{Bucket, Cutoffs};
pub use estimate::{EstimateOptions, EstimateReport, Estimator};
pub use model::{NGramModel, Score, Scorer, State};
pub use perplexity::PerplexityModel;
pub use pieces::Pieces;
pub use train::{
    Documents, ImportReport, TextSink, TrainOptions, TrainReport, compute_cutoffs, import,
    text_bytes_of, texts_of, train,
};
pub use vocabulary::{BEGIN, END, UNKNOWN, Vocabulary, WordId};

use std::path::Path;

use self::records::RecordFile;
use crate::error::{DataError, Result};

/// Longest n-gram in words.
pub(crate) const MOST_WORDS: usize = 6;

/// Seeds of the hash that are tried until no two n-grams collide.
const SEEDS: u64 = 16;

/// The n-grams of a model with their base-10 logarithms of probability and backoff, on the disk
/// but for those of one word.
pub struct NGrams {
    vocabulary: Vocabulary,
    /// Of each word: logarithms of probability and backoff.
    unigrams: Vec<(f32, f32)>,
    /// Of each order from 2: words, last first, and the two logarithms; sorted.
    longer: Vec<RecordFile>,
    /// Whether an n-gram without its first word is always there too.
    suffixes_complete: bool,
    scratch: tempfile::TempDir,
    memory_bytes: u64,
}

impl std::fmt::Debug for NGrams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NGrams").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl NGrams {
    /// Words of the longest n-grams.
    pub fn order(&self) -> usize {
        self.longer.len() + 1
    }

    /// How many n-grams there are of each order, from 1.
    pub fn counts(&self) -> Vec<u64> {
        let unigrams = self.unigrams.len() as u64;
        std::iter::once(unigrams).chain(self.longer.iter().map(RecordFile::len)).collect()
    }

    /// The words.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Reads an ARPA file, gzip-compressed if its name ends in `.gz`. At most about
    /// `memory_bytes` of n-grams are held in memory; the rest goes to files in `scratch`.
    ///
    /// # Errors
    /// [`DataError::BadFile`] naming the line, [`DataError::Io`].
    pub fn read_arpa(path: &Path, scratch: &Path, memory_bytes: u64) -> Result<Self> {
        arpa::read(path, scratch, memory_bytes)
    }

    /// Writes an ARPA file. Numbers have as many digits as it takes to read back the same.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write_arpa(&mut self, path: &Path) -> Result<()> {
        arpa::write(self, path)
    }

    /// Writes the form that [`NGramModel`] opens, and gives its checksum.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write_binary(&mut self, path: &Path) -> Result<String> {
        for seed in 0..SEEDS {
            if let Some(checksum) = binary::write(self, path, seed)? {
                return Ok(checksum);
            }
        }
        Err(DataError::LanguageModel {
            reason: format!("two n-grams have the same hash with each of {SEEDS} seeds"),
        })
    }
}

#[cfg(test)]
pub(crate) use train::tests::model_folder;

#[cfg(test)]
mod tests;
