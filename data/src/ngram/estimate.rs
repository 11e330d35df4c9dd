//! Counting n-grams.
//!
//! Only the n-grams of the highest order are counted; a sentence is padded in front with marks of
//! its beginning, so each shorter n-gram is the end of a longer one. Sorted by the last word,
//! then the one before it, and so on, all orders pass by in one stream.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::kneser_ney;
use super::records::{Equal, Record, RecordFile, RecordWriter, Sorter, count, set_count};
use super::vocabulary::{BEGIN, END, Vocabulary, WordId, is_delimiter, is_plain};
use super::{MOST_WORDS, NGrams};
use crate::atomic_file::scratch_folder;
use crate::error::{DataError, Result};

/// How an n-gram model is estimated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EstimateOptions {
    /// Words of the longest n-grams (integer, 2 to 6, default 5).
    #[serde(default = "default_order")]
    pub order: usize,
    /// Discounts of 0.5, 1 and 1.5 for an order whose counts give none (bool, default true). If
    /// not, that is an error. Small or artificial text needs it.
    #[serde(default = "default_discount_fallback")]
    pub discount_fallback: bool,
}

fn default_order() -> usize {
    5
}
fn default_discount_fallback() -> bool {
    true
}

impl Default for EstimateOptions {
    fn default() -> Self {
        Self { order: default_order(), discount_fallback: default_discount_fallback() }
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

/// The counts that modified Kneser-Ney smoothing takes (Chen and Goodman 1998; Heafield et al.
/// 2013, section 3.2): how often the n-gram stands in the text for the highest order and for
/// those that begin a sentence, and how many different words stand before it for the others.
pub(super) struct AdjustedCounts {
    /// By number of the word; 0 for `<unk>` and `<s>`.
    pub unigrams: Vec<u64>,
    /// N-grams of each order from 2, last word first, sorted.
    pub longer: Vec<RecordFile>,
    /// How many n-grams of each order from 1 have a count of 1, 2, 3 and 4.
    pub of_counts: Vec<[u64; 4]>,
}

impl AdjustedCounts {
    fn new(
        mut windows: RecordFile,
        order: usize,
        vocabulary: &Vocabulary,
        folder: &Path,
    ) -> Result<Self> {
        let mut pass = AdjustPass {
            unigrams: vec![0; vocabulary.len()],
            writers: (2..=order).map(|n| RecordWriter::create(folder, n)).collect::<Result<_>>()?,
            of_counts: vec![[0; 4]; order],
            open: vec![0; order],
            last: None,
        };
        for window in windows.read()? {
            pass.add(&window?, order)?;
        }
        pass.close(0)?;
        let AdjustPass { unigrams, writers, of_counts, .. } = pass;
        let longer = writers.into_iter().map(RecordWriter::finish).collect::<Result<_>>()?;
        Ok(Self { unigrams, longer, of_counts })
    }
}

struct AdjustPass {
    unigrams: Vec<u64>,
    writers: Vec<RecordWriter>,
    of_counts: Vec<[u64; 4]>,
    /// Counts so far of the n-grams of each order that end the current window.
    open: Vec<u64>,
    /// The current window and how many of its words are no padding.
    last: Option<(Record, usize)>,
}

impl AdjustPass {
    fn add(&mut self, window: &Record, order: usize) -> Result<()> {
        // One mark of the beginning is a word, the others are padding.
        let begin = window[..order].iter().position(|word| *word == BEGIN);
        let words = begin.map_or(order, |at| at + 1);
        let same = match &self.last {
            Some((last, _)) => (0..order).take_while(|&at| last[at] == window[at]).count(),
            None => 0,
        };
        self.close(same)?;
        // The n-grams of more than `same` words are new. Each is another one before the n-gram
        // that is a word shorter.
        for n in same + 1..=words {
            if n >= 2 {
                self.open[n - 2] += 1;
            }
            self.open[n - 1] = 0;
        }
        // The longest is counted as it stands: nothing is before it, or nothing that is counted.
        self.open[words - 1] = count(window);
        self.last = Some((*window, words));
        Ok(())
    }

    /// Writes the open n-grams of more than `same` words.
    fn close(&mut self, same: usize) -> Result<()> {
        let Some((window, words)) = self.last else {
            return Ok(());
        };
        for n in same + 1..=words {
            let count = self.open[n - 1];
            if let Some(of_count) = count
                .checked_sub(1)
                .and_then(|index| self.of_counts[n - 1].get_mut(usize::try_from(index).ok()?))
            {
                *of_count += 1;
            }
            if n == 1 {
                self.unigrams[window[0] as usize] = count;
                continue;
            }
            let mut record = Record::default();
            record[..n].copy_from_slice(&window[..n]);
            set_count(&mut record, count);
            self.writers[n - 2].write(&record)?;
        }
        Ok(())
    }
}
