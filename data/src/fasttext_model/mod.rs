//! fastText models (Joulin et al. 2016, arXiv 1607.01759): linear text classifiers over words
//! and hashed n-grams, in `.bin` and `.ftz` files.
//!
//! [`FastTextModel`] reads the user's model and scores with it. It is our own and not the
//! `fasttext` crate's, which (0.8.0) refuses dictionaries that are not UTF-8, scores quantised
//! models with hierarchical softmax as if they were plain softmax, leaves the end of the line
//! out of the word n-grams, and panics or allocates without bound on a damaged file. Training
//! ([`train()`]) is the crate's.
//!
//! File format, version 12 (`fasttext.cc`, `args.cc`, `dictionary.cc` of fastText, MIT), all
//! little-endian: magic number and version (i32); 12 arguments (i32) and `t` (f64); the
//! dictionary; the input matrix with a flag for quantisation; the output matrix with another.
//! Version 11 differs in that supervised models have no character n-grams whatever they say.

mod dictionary;
mod examples;
mod matrix;
mod output;
mod reader;
mod report;
mod train;

pub(crate) use examples::Examples;
pub(crate) use report::{report_path, write_report};
pub use train::{Loss, TrainingOptions, train};

use std::path::Path;

use dictionary::{Dictionary, NgramSizes};
use matrix::Matrix;
use output::{HuffmanTree, Output};
use reader::ModelReader;

use crate::error::Result;

/// Rows fetched at a time.
const BATCH: usize = 64;
const MAGIC: i32 = 793_712_314;
/// Longest n-gram, of characters or words, that a model may ask for: it bounds the time per byte.
const MAX_NGRAM: i32 = 30;

/// A supervised fastText model, read-only: score from as many threads as you like.
#[derive(Debug)]
pub struct FastTextModel {
    dictionary: Dictionary,
    input: Matrix,
    output_matrix: Matrix,
    output: Output,
    labels: Vec<String>,
}

/// A label and how likely it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction<'a> {
    /// The label, without `__label__`.
    pub label: &'a str,
    /// Its probability, as fastText reports it: a constant of 1e-5 is added before the logarithm
    /// is taken, so it can be a little above 1.
    pub probability: f32,
}

impl FastTextModel {
    /// Reads a `.bin` or `.ftz` file. One that was trained here must be as it was written.
    ///
    /// # Errors
    /// [`crate::DataError::Io`]; [`crate::DataError::Altered`] when it is not as it was written;
    /// [`crate::DataError::BadFile`] when the file is damaged, of
    /// another version, or no supervised model.
    pub fn load(path: &Path) -> Result<Self> {
        report::check_report(path)?;
        let mut reader = ModelReader::open(path)?;
        let reader = &mut reader;
        let magic = reader.i32("the magic number")?;
        if magic != MAGIC {
            return Err(reader.bad(format!("it begins with {magic}, not with {MAGIC}")));
        }
        let version = reader.i32("the version")?;
        if !(11..=12).contains(&version) {
            return Err(reader.bad(format!("version {version}, expected 11 or 12")));
        }
        let (dimensions, ngrams, loss) = read_arguments(reader, version)?;
        let dictionary = Dictionary::read(reader, ngrams)?;
        let labels = dictionary.labels();

        let quantised = reader.bool("the input matrix's flag")?;
        if !quantised && dictionary.pruned_buckets().is_some() {
            return Err(reader.bad("pruned but not quantised"));
        }
        let input = read_matrix(reader, quantised, "the input matrix")?;
        // The flag counts only where the input is quantised too.
        let quantised_output = reader.bool("the output matrix's flag")? && quantised;
        let output_matrix = read_matrix(reader, quantised_output, "the output matrix")?;
        reader.end()?;

        let buckets = dictionary.pruned_buckets().unwrap_or(ngrams.buckets as usize);
        let rows = dictionary.words() + buckets;
        if input.rows < rows || input.columns != dimensions {
            return Err(reader.bad(format!(
                "the input matrix is {} × {}, expected {rows} × {dimensions}",
                input.rows, input.columns
            )));
        }
        if output_matrix.rows < labels.len() || output_matrix.columns != dimensions {
            return Err(reader.bad(format!(
                "the output matrix is {} × {}, expected {} × {dimensions}",
                output_matrix.rows,
                output_matrix.columns,
                labels.len()
            )));
        }
        let output = match loss {
            Loss::Softmax => Output::Softmax,
            Loss::HierarchicalSoftmax => {
                Output::HierarchicalSoftmax(HuffmanTree::new(dictionary.label_counts()))
            }
            Loss::NegativeSampling | Loss::OneVsAll => Output::Logistic,
        };
        Ok(Self { dictionary, input, output_matrix, output, labels })
    }

    /// The labels without `__label__`, most frequent in training first.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The `k` likeliest labels of `text`, likeliest first. The text counts as one line, whatever
    /// line ends it holds. None when no word or n-gram of it is known.
    pub fn predict(&self, text: &str, k: usize) -> Vec<Prediction<'_>> {
        let mut hidden = vec![0.0; self.input.columns];
        // Rows are fetched in batches: so their addresses are known ahead of the cache misses.
        let mut batch = [0; BATCH];
        let (mut held, mut rows) = (0, 0usize);
        self.dictionary.rows(text.as_bytes(), |row| {
            batch[held] = row;
            held += 1;
            if held == BATCH {
                self.input.add_rows(&batch, &mut hidden);
                rows += BATCH;
                held = 0;
            }
        });
        self.input.add_rows(&batch[..held], &mut hidden);
        rows += held;
        if rows == 0 {
            return Vec::new();
        }
        let scale = 1.0 / rows as f32;
        hidden.iter_mut().for_each(|value| *value *= scale);
        let scored = self.output.predict(&self.output_matrix, &hidden, self.labels.len(), k);
        scored
            .into_iter()
            .map(|(label, probability)| Prediction { label: &self.labels[label], probability })
            .collect()
    }
}

fn read_matrix(reader: &mut ModelReader, quantised: bool, what: &str) -> Result<Matrix> {
    if quantised { Matrix::read_quantised(reader, what) } else { Matrix::read_dense(reader, what) }
}

fn read_arguments(reader: &mut ModelReader, version: i32) -> Result<(usize, NgramSizes, Loss)> {
    let mut argument = || reader.i32("the arguments");
    let dimensions = argument()?;
    let [_window, _epochs, _min_count, _negatives] =
        [argument()?, argument()?, argument()?, argument()?];
    let max_words = argument()?;
    let loss = argument()?;
    let kind = argument()?;
    let buckets = argument()?;
    let (min_chars, mut max_chars) = (argument()?, argument()?);
    let _learning_rate_update = argument()?;
    let _threshold = reader.i64("the arguments")?;
    if kind != 3 {
        let kinds = ["cbow", "skip-gram"];
        let kind = kinds.get((kind as usize).wrapping_sub(1)).unwrap_or(&"unknown");
        return Err(reader.bad(format!("it is a {kind} model")));
    }
    if version == 11 {
        max_chars = 0;
    }
    let loss = match loss {
        1 => Loss::HierarchicalSoftmax,
        2 => Loss::NegativeSampling,
        3 => Loss::Softmax,
        4 => Loss::OneVsAll,
        _ => return Err(reader.bad(format!("loss {loss}, expected 1 to 4"))),
    };
    let sizes = dimensions >= 1
        && buckets >= 0
        && max_words <= MAX_NGRAM
        && max_chars <= MAX_NGRAM
        && min_chars <= MAX_NGRAM;
    if !sizes {
        return Err(reader.bad(format!(
            "{dimensions} dimensions, {buckets} buckets, n-grams of {max_words} words and of \
             {min_chars} to {max_chars} characters, expected at most {MAX_NGRAM}"
        )));
    }
    let at_least = |value: i32, least: i32| value.max(least) as usize;
    let ngrams = NgramSizes {
        buckets: buckets as u32,
        min_chars: at_least(min_chars, 0),
        max_chars: at_least(max_chars, 0),
        max_words: at_least(max_words, 1),
    };
    Ok((dimensions as usize, ngrams, loss))
}

#[cfg(test)]
mod tests;
