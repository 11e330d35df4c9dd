//! From sentences to a model: counts n-grams and hands the counts to Kneser-Ney smoothing.
//!
//! Only the n-grams of the highest order are counted; a sentence is padded in front with marks of
//! its beginning, so each shorter n-gram is the end of a longer one.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::adjusted_counts::AdjustedCounts;
use super::kneser_ney;
use super::records::{Equal, Record, Sorter, set_count};
use super::vocabulary::{BEGIN, END, Vocabulary, WordId, is_delimiter, is_plain};
use super::{MOST_WORDS, NGrams};
use crate::atomic_file::scratch_folder;
use crate::error::{DataError, Result};

/// How an n-gram model is estimated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EstimateOptions {
    /// Words of the longest n-grams (integer, 2 to 6, default 5).
    pub order: usize,
    /// Discounts of 0.5, 1 and 1.5 for an order whose counts give none (bool, default true). If
    /// not, that is an error. Small or artificial text needs it.
    pub discount_fallback: bool,
}

impl Default for EstimateOptions {
    fn default() -> Self {
        Self { order: 5, discount_fallback: true }
    }
}

impl EstimateOptions {
    /// Checks what the types cannot. `key` is the dotted path of the options.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    pub fn validate(&self, key: &str) -> Result<()> {
        if !(2..=MOST_WORDS).contains(&self.order) {
            let expected = format!("2 to {MOST_WORDS}");
            return Err(DataError::config(format!("{key}.order"), self.order, expected));
        }
        Ok(())
    }
}

/// Counts the n-grams of sentences and estimates a model from them, with modified Kneser-Ney
/// smoothing as KenLM's `lmplz` does it. The same sentences in the same order give the same
/// model, whatever the memory and the threads.
pub struct Estimator {
    options: EstimateOptions,
    scratch: tempfile::TempDir,
    memory_bytes: u64,
    vocabulary: Vocabulary,
    windows: Sorter,
    sentences: u64,
    tokens: u64,
    /// Words of the sentence at hand.
    ids: Vec<WordId>,
}

/// What was counted and estimated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EstimateReport {
    /// Sentences.
    pub sentences: u64,
    /// Words, ends of sentences not counted.
    pub tokens: u64,
    /// N-grams of each order, from 1.
    pub ngrams: Vec<u64>,
    /// The discounts of each order, from 1: for n-grams seen once, twice and more often.
    pub discounts: Vec<[f64; 3]>,
}

impl Estimator {
    /// Counts in at most about `memory_bytes`, the vocabulary aside; the rest goes to files in
    /// `scratch`.
    ///
    /// # Errors
    /// [`DataError::Config`] for an order that does not fit, [`DataError::Io`].
    pub fn new(options: EstimateOptions, scratch: &Path, memory_bytes: u64) -> Result<Self> {
        options.validate("language_model")?;
        let scratch = scratch_folder(scratch)?;
        let windows = Sorter::new(scratch.path(), options.order, Equal::Add, memory_bytes);
        Ok(Self {
            options,
            scratch,
            memory_bytes,
            vocabulary: Vocabulary::default(),
            windows,
            sentences: 0,
            tokens: 0,
            ids: Vec::new(),
        })
    }

    /// Counts a line of words with white space between them.
    ///
    /// # Errors
    /// [`DataError::Io`] when there is no room for the counts.
    pub fn add_line(&mut self, line: &str) -> Result<()> {
        self.add_sentence(line.split(is_delimiter).filter(|word| !word.is_empty()))
    }

    /// Counts a sentence. The marks `<s>`, `</s>` and `<unk>` among its words, and words with
    /// white space, are left out.
    ///
    /// # Errors
    /// [`DataError::Io`] when there is no room for the counts.
    pub fn add_sentence<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        for word in words.into_iter().filter(|word| is_plain(word)) {
            ids.push(self.word(word)?);
        }
        self.add_ids(&ids)?;
        self.ids = ids;
        Ok(())
    }

    /// The number of a word, which is added if it is new.
    pub(super) fn word(&mut self, word: &str) -> Result<WordId> {
        self.vocabulary.add(word)
    }

    /// Counts a sentence of words by their numbers.
    pub(super) fn add_ids(&mut self, words: &[WordId]) -> Result<()> {
        let order = self.options.order;
        let mut window = Record::default();
        window[..order].fill(BEGIN);
        set_count(&mut window, 1);
        for &word in words.iter().chain(&[END]) {
            window.copy_within(0..order - 1, 1);
            window[0] = word;
            self.windows.push(window)?;
        }
        self.tokens += words.len() as u64;
        self.sentences += 1;
        Ok(())
    }

    /// Estimates the model.
    ///
    /// # Errors
    /// [`DataError::LanguageModel`] when there are no words, or too few different counts and
    /// `discount_fallback` is off; [`DataError::Io`] when there is no room for the work.
    pub fn finish(self) -> Result<(NGrams, EstimateReport)> {
        let Self { options, scratch, memory_bytes, vocabulary, windows, sentences, tokens, .. } =
            self;
        if tokens == 0 {
            return Err(DataError::LanguageModel {
                reason: "the text has no words to estimate a model from".into(),
            });
        }
        let counts =
            AdjustedCounts::new(windows.finish()?, options.order, &vocabulary, scratch.path())?;
        let (ngrams, discounts) = kneser_ney::estimate(
            counts,
            vocabulary,
            options.discount_fallback,
            scratch,
            memory_bytes,
        )?;
        let report = EstimateReport { sentences, tokens, ngrams: ngrams.counts(), discounts };
        Ok((ngrams, report))
    }
}
