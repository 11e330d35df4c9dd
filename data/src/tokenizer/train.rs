//! Training a tokenizer, and SentencePiece's own trainer for models of other kinds.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use serde::{Deserialize, Serialize};

use super::description::Description;
use super::trainer_log::{self, TrainerLog};
use super::{Tokenizer, bpe_trainer, sample};
use crate::document::DocumentFile;
use crate::error::{DataError, Result};
use crate::progress::{Progress, ProgressMode, Work};

/// Smallest vocabulary: 3 marks, 256 bytes and some letters.
const SMALLEST_VOCABULARY: usize = 300;
/// Largest vocabulary.
const LARGEST_VOCABULARY: usize = 1 << 20;

/// How a tokenizer is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Where the model file goes (path, relative to the configuration; default
    /// `<output>/tokenizer.model`). A `tokenizer.json` of another program is not trained but used by
    /// `tokenize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Entries of the vocabulary, marks and bytes included (integer, 300 to 1048576, default
    /// 32000).
    #[serde(default = "default_vocab_size")]
    pub vocab_size: usize,
    /// Share of the characters of the sample that get an entry of their own; the others are
    /// written as bytes (number, 0.98 to 1, default 0.9999).
    #[serde(default = "default_character_coverage")]
    pub character_coverage: f64,
    /// Most bytes of text the trainer sees, drawn evenly from all documents (integer, default
    /// 100000000). Of the text only its different words are held in memory.
    #[serde(default = "default_input_bytes")]
    pub input_bytes: usize,
    /// Another seed draws another sample (integer, default 1).
    #[serde(default = "default_seed")]
    pub seed: u64,
}

fn default_vocab_size() -> usize {
    32000
}
fn default_character_coverage() -> f64 {
    0.9999
}
fn default_input_bytes() -> usize {
    100_000_000
}
fn default_seed() -> u64 {
    1
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            model: None,
            vocab_size: default_vocab_size(),
            character_coverage: default_character_coverage(),
            input_bytes: default_input_bytes(),
            seed: default_seed(),
        }
    }
}

impl TokenizerConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`DataError::Config`].
    pub fn validate(&self) -> Result<()> {
        if !(SMALLEST_VOCABULARY..=LARGEST_VOCABULARY).contains(&self.vocab_size) {
            return Err(DataError::config(
                "tokenizer.vocab_size",
                self.vocab_size,
                format!("{SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}"),
            ));
        }
        if !(0.98..=1.0).contains(&self.character_coverage) {
            return Err(DataError::config(
                "tokenizer.character_coverage",
                self.character_coverage,
                "0.98 to 1",
            ));
        }
        if !(1..=i32::MAX as usize).contains(&self.input_bytes) {
            return Err(DataError::config(
                "tokenizer.input_bytes",
                self.input_bytes,
                format!("1 to {}", i32::MAX),
            ));
        }
        Ok(())
    }
}

/// What a training did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// The model file.
    pub model: PathBuf,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Bytes of text the trainer saw.
    pub sample_bytes: u64,
    /// Sentences it saw.
    pub sample_sentences: u64,
    /// Documents they come from.
    pub documents: u64,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Trains a tokenizer on the documents of `files` and writes it to `model`, with a description
/// beside it that the model is held against whenever it is opened. The same documents
/// and configuration give the same bytes.
///
/// # Errors
/// [`DataError::Config`], an error of reading the documents, or
/// [`DataError::TokenizerTraining`] when the text does not give such a vocabulary.
pub fn train(
    config: &TokenizerConfig,
    files: &[DocumentFile],
    model: &Path,
    progress: ProgressMode,
) -> Result<TrainReport> {
    config.validate()?;
    let total = files.iter().map(|file| file.text_bytes).fold(0, u64::saturating_add);
    let reading =
        Progress::new(progress, "sample", Work::bytes(total).of(files.len() as u64, "files"));
    let sample = sample::draw(files, config.input_bytes, config.seed, &reading)?;
    let (sample_bytes, sample_sentences) = (sample.bytes as u64, sample.sentences);
    reading.finish(&format!("{sample_sentences} sentences, {:.1} MB", sample_bytes as f64 / 1e6));
    let training = Progress::new(progress, "tokenizer", Work::count(0, "pieces"));
    let (vocab_size, coverage) = (config.vocab_size, config.character_coverage);
    let bytes = bpe_trainer::train(&sample.words, vocab_size, coverage, &training)?;
    let tokenizer = Tokenizer::from_bytes(model, &bytes)?;
    let (vocab_size, documents) = (tokenizer.vocab_size(), sample.documents);
    Description { vocab_size, sample_bytes, sample_sentences, documents }
        .write_with(model, &bytes)?;
    training.finish(&format!("{vocab_size} pieces"));
    Ok(TrainReport {
        model: model.to_owned(),
        fingerprint: tokenizer.fingerprint().to_owned(),
        vocab_size,
        sample_bytes,
        sample_sentences,
        documents,
        seconds: reading.elapsed_seconds(),
    })
}

/// SentencePiece's trainer keeps some state in globals.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Trains a model of any kind. Sentence `i` ends before byte `ends[i]` of `text` and begins where
/// the one before it ends; `ends` ascend and are at most `text.len()`. The model's bytes; `log`
/// hears how far it is.
///
/// # Errors
/// [`DataError::TokenizerTraining`] when SentencePiece refuses.
pub(crate) fn train_with(
    arguments: &[String],
    text: &[u8],
    ends: &[usize],
    log: &mut TrainerLog<'_>,
) -> Result<Vec<u8>> {
    quiet();
    if !ends.is_sorted() || ends.last().is_some_and(|end| *end > text.len()) {
        return Err(DataError::TokenizerTraining {
            message: "the sentences do not lie in the text".into(),
        });
    }
    let arguments =
        CString::new(format!("{} --minloglevel=0", arguments.join(" "))).map_err(|_| {
            DataError::TokenizerTraining { message: "a zero byte in the arguments".into() }
        })?;
    let guard = ONE_AT_A_TIME.lock();
    let mut result: *mut c_char = std::ptr::null_mut();
    let mut length = 0;
    // SAFETY: `ends` are ascending offsets into `text`, as checked above, and both outlive the
    // call; the shim copies both and writes the two results. It calls `hear` during the call only,
    // with the pointer to `log`, which nothing else uses meanwhile.
    let failed = unsafe {
        altiplano_spm_train(
            arguments.as_ptr(),
            text.as_ptr().cast(),
            ends.as_ptr(),
            ends.len(),
            hear,
            (&raw mut *log).cast(),
            &mut result,
            &mut length,
        )
    };
    drop(guard);
    if result.is_null() {
        return Err(DataError::TokenizerTraining { message: "out of memory".into() });
    }
    // SAFETY: the shim returned `length` bytes at `result`, which it allocated with `malloc`;
    // they are freed once, after the copy.
    let answer = unsafe {
        let answer = std::slice::from_raw_parts(result.cast::<u8>(), length).to_vec();
        altiplano_spm_free(result);
        answer
    };
    if failed != 0 {
        return Err(DataError::TokenizerTraining {
            message: trainer_log::explain(&String::from_utf8_lossy(&answer)),
        });
    }
    Ok(answer)
}

/// Hands a line of the trainer's log to the [`TrainerLog`] behind `context`.
extern "C" fn hear(context: *mut c_void, line: *const c_char, length: usize) {
    // SAFETY: the shim passes the pointer it was given, to a `TrainerLog` that it alone uses, one
    // call at a time, and a line of `length` bytes.
    let (log, line) = unsafe {
        let log = &mut *context.cast::<TrainerLog<'_>>();
        (log, std::slice::from_raw_parts(line.cast::<u8>(), length))
    };
    log.hear(&String::from_utf8_lossy(line));
}

/// Stops SentencePiece from writing to stderr: its failures come back as errors.
pub(crate) fn quiet() {
    static QUIET: Once = Once::new();
    // SAFETY: sets a global integer.
    QUIET.call_once(|| unsafe { altiplano_spm_quiet() });
}

unsafe extern "C" {
    fn altiplano_spm_quiet();
    fn altiplano_spm_train(
        args: *const c_char,
        text: *const c_char,
        ends: *const usize,
        count: usize,
        heard: extern "C" fn(*mut c_void, *const c_char, usize),
        context: *mut c_void,
        result: *mut *mut c_char,
        result_length: *mut usize,
    ) -> c_int;
    fn altiplano_spm_free(result: *mut c_char);
}
