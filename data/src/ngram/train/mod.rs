//! Training the language model of a language.

mod lines;
mod options;
mod sample;

pub use options::TrainOptions;
pub use sample::compute_cutoffs;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::lines::Lines;
use self::sample::{perplexities, write_cutoffs};
use super::NGrams;
use super::cutoffs::{Cutoffs, percentiles};
use super::estimate::{EstimateReport, Estimator};
use super::perplexity::{Description, ModelFiles};
use super::pieces::{PieceCache, Pieces};
use super::vocabulary::is_plain;
use crate::atomic_file::{remove_abandoned, scratch_folder, write_atomically};
use crate::document::DocumentFile;
use crate::error::{DataError, Result};
use crate::progress::{Progress, ProgressMode, Work};
use crate::text::ccnet;
use crate::tokenizer::sample::{RESERVED, SENTENCE_BYTES, sentences};
use crate::tokenizer::train::train_with;
use crate::tokenizer::trainer_log::TrainerLog;

/// Of so many documents one is held out when there is no sample for the cut-offs.
const HELD_OUT: u64 = 100;

/// Hears the text of a document and whether the next one is wanted.
pub type TextSink<'a> = &'a mut dyn FnMut(&str) -> Result<bool>;

/// Hands the texts of documents over in order, until it hears `false`.
pub type Documents<'a> = &'a dyn Fn(TextSink<'_>) -> Result<()>;

/// What a training did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// The language.
    pub language: String,
    /// Folder of the model.
    pub folder: PathBuf,
    /// Documents trained on.
    pub documents: u64,
    /// Bytes of their text, normalized.
    pub text_bytes: u64,
    /// What was counted and estimated.
    pub estimate: EstimateReport,
    /// Documents the cut-offs come from.
    pub sample_documents: u64,
    /// The cut-offs, if the sample had documents.
    pub cutoffs: Option<Cutoffs>,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImportReport {
    /// The language.
    pub language: String,
    /// Folder of the model.
    pub folder: PathBuf,
    /// N-grams of each order, from 1.
    pub ngrams: Vec<u64>,
}

/// Texts of document files.
pub fn texts_of(files: &[DocumentFile]) -> impl Fn(TextSink<'_>) -> Result<()> {
    move |sink| {
        for file in files {
            for document in file.reader()? {
                if !sink(&document?.text)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Bytes of text in document files.
pub fn text_bytes_of(files: &[DocumentFile]) -> u64 {
    files.iter().map(|file| file.text_bytes).fold(0, u64::saturating_add)
}

/// Trains the language model of a language on `documents`: SentencePiece pieces, n-grams of them,
/// and cut-offs from the perplexity of `sample`, which should be the kind of documents that will
/// be sorted: web pages. `text_bytes` are those of both, for the progress; 0 where not known. Without a sample every hundredth document is held out and taken for it.
/// Each document is one sentence, normalized by [`ccnet::normalize`]. Writes the files
/// [`crate::ngram::PerplexityModel`] reads, and `cutoffs.csv` with the percentiles of all languages in the
/// folder. The same documents and options give the same bytes.
///
/// # Errors
/// [`DataError::Config`], an error of the documents, [`DataError::TokenizerTraining`],
/// [`DataError::LanguageModel`], or [`DataError::Io`].
pub fn train(
    options: &TrainOptions,
    documents: Documents<'_>,
    sample: Option<Documents<'_>>,
    text_bytes: [u64; 2],
    progress: ProgressMode,
) -> Result<TrainReport> {
    options.validate("language_model")?;
    let folder = &options.output;
    remove_abandoned(folder)?;
    let scratch = scratch_folder(folder)?;
    // The model is made beside the one that may be there, and moved when it is whole.
    let made = TrainOptions { output: scratch.path().join("model"), ..options.clone() };
    let files = ModelFiles::new(&made.output, &options.language);

    let reading = Progress::new(progress, "text", Work::bytes(text_bytes[0]));
    let mut text = Lines::create(scratch.path())?;
    let mut held_out = Lines::create(scratch.path())?;
    let mut number = 0;
    documents(&mut |document| {
        reading.add(document.len() as u64);
        let to = if sample.is_none() && number % HELD_OUT == HELD_OUT - 1 {
            &mut held_out
        } else {
            &mut text
        };
        to.write(&ccnet::normalize(document))?;
        number += 1;
        Ok(number < options.documents)
    })?;
    reading.finish(&format!("{} documents, {:.1} MB", text.lines, text.bytes as f64 / 1e6));

    let training = Progress::new(progress, "pieces", Work::count(0, "passes"));
    let model = train_pieces(options, &mut text, &training)?;
    let pieces = Pieces::from_bytes(&files.pieces, &model)?;
    let written_pieces = write_atomically(&files.pieces, &model)?;
    training.finish("done");

    let counting = Progress::new(progress, "n-grams", Work::bytes(text.bytes));
    let mut estimator =
        Estimator::new(options.ngrams.clone(), scratch.path(), options.memory_bytes)?;
    let (mut cache, mut ids) = (PieceCache::default(), Vec::new());
    text.read(&mut |line| {
        ids.clear();
        pieces.ids(line, &mut cache, &mut ids, |word| {
            is_plain(word).then(|| estimator.word(word)).transpose()
        })?;
        counting.add(line.len() as u64 + 1);
        estimator.add_ids(&ids)?;
        Ok(true)
    })?;
    counting.phase("estimating");
    let (mut ngrams, estimate) = estimator.finish()?;
    counting.phase("writing");
    if options.arpa {
        ngrams.write_arpa(&files.arpa)?;
    }
    let written_ngrams = ngrams.write_binary(&files.ngrams)?;
    drop(ngrams);
    counting.finish(&format!("{} n-grams", estimate.ngrams.iter().sum::<u64>()));

    // The model scores the sample, so it must open before it has cut-offs.
    let mut description = Description {
        language: options.language.clone(),
        pieces: written_pieces,
        ngrams: written_ngrams,
        estimate: Some(estimate.clone()),
        sample_documents: 0,
        percentiles: Vec::new(),
    };
    description.write(&files.description)?;
    let sample_bytes = if sample.is_some() { text_bytes[1] } else { held_out.bytes };
    let scoring = Progress::new(progress, "cut-offs", Work::bytes(sample_bytes));
    let mut perplexities = match sample {
        Some(sample) => perplexities(&made, sample, &scoring)?,
        None => {
            let held_out = RefCell::new(held_out);
            let lines = |sink: TextSink<'_>| held_out.borrow_mut().read(sink);
            perplexities(&made, &lines, &scoring)?
        }
    };
    description.sample_documents = perplexities.len() as u64;
    description.percentiles = percentiles(&mut perplexities);
    description.write(&files.description)?;
    files.move_to(&ModelFiles::new(folder, &options.language))?;
    write_cutoffs(folder)?;
    scoring.finish(&format!("{} documents", description.sample_documents));
    Ok(TrainReport {
        language: options.language.clone(),
        folder: folder.clone(),
        documents: text.lines,
        text_bytes: text.bytes,
        estimate,
        sample_documents: description.sample_documents,
        cutoffs: Cutoffs::from_percentiles(&description.percentiles),
        seconds: reading.elapsed_seconds(),
    })
}

/// Puts a model of other tools into a folder of models: an ARPA file over the pieces of a
/// SentencePiece model, as CCNet's `<language>.sp.model` and the ARPA its models were built from.
///
/// # Errors
/// [`DataError::BadFile`] or [`DataError::Tokenizer`] when a file is damaged, for the ARPA file
/// with the line; [`DataError::Config`] when the language cannot name a file; [`DataError::Io`].
pub fn import(
    arpa: &Path,
    sentencepiece: &Path,
    folder: &Path,
    language: &str,
    memory_bytes: u64,
) -> Result<ImportReport> {
    TrainOptions::new(language, folder).validate("language_model")?;
    remove_abandoned(folder)?;
    let bytes = std::fs::read(sentencepiece).map_err(DataError::io(sentencepiece))?;
    Pieces::from_bytes(sentencepiece, &bytes)?;
    let scratch = scratch_folder(folder)?;
    let files = ModelFiles::new(&scratch.path().join("model"), language);
    let mut read = NGrams::read_arpa(arpa, scratch.path(), memory_bytes)?;
    let ngrams = read.write_binary(&files.ngrams)?;
    let description = Description {
        language: language.to_owned(),
        pieces: write_atomically(&files.pieces, &bytes)?,
        ngrams,
        estimate: None,
        sample_documents: 0,
        percentiles: Vec::new(),
    };
    description.write(&files.description)?;
    files.move_to(&ModelFiles::new(folder, language))?;
    Ok(ImportReport {
        language: language.to_owned(),
        folder: folder.to_owned(),
        ngrams: read.counts(),
    })
}

/// Trains the pieces on lines drawn by the hash of their number.
fn train_pieces(options: &TrainOptions, lines: &mut Lines, progress: &Progress) -> Result<Vec<u8>> {
    let share = options.input_bytes as f64 / lines.bytes.max(1) as f64;
    let below = if share >= 1.0 { u64::MAX } else { (share * u64::MAX as f64) as u64 };
    let (mut text, mut ends, mut number) = (Vec::new(), Vec::new(), 0u64);
    lines.read(&mut |line| {
        let drawn = xxh3_64_with_seed(&number.to_le_bytes(), options.seed) <= below;
        number += 1;
        let usable = |sentence: &&str| !sentence.contains(RESERVED);
        for sentence in sentences(line).filter(usable).take_while(|_| drawn) {
            if text.len() + sentence.len() > options.input_bytes {
                return Ok(false);
            }
            text.extend_from_slice(sentence.as_bytes());
            ends.push(text.len());
        }
        Ok(true)
    })?;
    if ends.is_empty() {
        return Err(DataError::LanguageModel {
            reason: "the documents have no text to train on".into(),
        });
    }
    let arguments = [
        "--model_type=unigram".to_owned(),
        format!("--vocab_size={}", options.vocab_size),
        "--hard_vocab_limit=false".into(),
        format!("--character_coverage={}", options.character_coverage),
        format!("--max_sentence_length={SENTENCE_BYTES}"),
        // How the work is shared out decides the rounding of sums, so this is a constant.
        "--num_threads=16".into(),
    ];
    let mut log = TrainerLog::new(progress, options.vocab_size);
    train_with(&arguments, &text, &ends, &mut log)
}

#[cfg(test)]
pub(crate) mod tests;
