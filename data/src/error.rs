//! What can go wrong in the data crate.

use std::path::{Path, PathBuf};

/// Result of the data crate.
pub type Result<T> = std::result::Result<T, DataError>;

/// Errors of the data crate. Each names the file, what was found, what was expected and, where
/// it is not obvious, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    // Configuration
    /// A value of a configuration does not fit.
    #[error("{key}: found {found}, expected {expected}")]
    Config {
        /// Dotted path of the key.
        key: String,
        /// The value given.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// A pattern or folder of the configuration holds no file.
    #[error("{key}: nothing matches {pattern:?}; {}", advice(key))]
    NoInput {
        /// Dotted path of the key.
        key: String,
        /// The pattern or folder.
        pattern: String,
    },

    /// What an earlier command makes is not there.
    #[error(
        "{path}: expected {expected} here; `altiplano {command}` makes it, or the path is wrong"
    )]
    NotMade {
        /// The file or folder.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// The command, with its arguments.
        command: &'static str,
    },

    // Files
    /// The operating system refused a file operation.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Object storage or a web server refuses, is silent, or gives something else than before.
    #[error("{}{url}: {reason}", of_key(key))]
    Storage {
        /// Dotted path of the configuration's key; empty where it is not known.
        key: String,
        /// The address.
        url: String,
        /// What happened and what to do.
        reason: String,
    },
    /// A compressed file ends too early or is damaged.
    #[error(
        "{path}: damaged or cut short at compressed byte {offset} ({reason}); fetch the file again"
    )]
    Archive {
        /// The file.
        path: PathBuf,
        /// Bytes of the compressed file consumed when the damage showed.
        offset: u64,
        /// The decoder's answer.
        reason: String,
    },
    /// Another process is writing a folder.
    #[error(
        "{path}: another altiplano process{holder} is writing here; wait until it ends, or choose \
         another folder"
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// `, PID of HOST,` and what to do where it cannot be told whether the process still
        /// runs; empty where it is not known.
        holder: String,
    },
    /// A file is not what its name says.
    #[error("{path}: {reason}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What differs, and what to do.
        reason: String,
    },

    /// A file is not as it was written.
    #[error("{path}: {difference}; {remedy}")]
    Altered {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        difference: String,
        /// How the file is made anew.
        remedy: &'static str,
    },

    // Documents
    /// The holdout would leave nothing to train on, or nothing to validate on.
    #[error(
        "source {name:?}: cannot hold out {wanted}: it has {documents} documents of {bytes} bytes \
         in all, and both sides need at least one; {advice}"
    )]
    Holdout {
        /// Name of the source.
        name: String,
        /// What the configuration asks for.
        wanted: String,
        /// Documents of the source.
        documents: u64,
        /// Their text in bytes.
        bytes: u64,
        /// What to set.
        advice: String,
    },
    /// No document of a source is left.
    #[error(
        "source {name:?}: no document is left of it; `altiplano data report` on {path} and the \
         logs in `dropped` tell which step took them"
    )]
    NothingLeft {
        /// Name of the source.
        name: String,
        /// The data folder.
        path: PathBuf,
    },
    /// The counters of a step do not add up.
    #[error(
        "{path}: the counters do not add up: {counted_in} {unit} in, {counted_out} out, {rest} \
         dropped or removed; delete the output folder and run the step again"
    )]
    Counters {
        /// The statistics file, or the folder.
        path: PathBuf,
        /// What was counted: `documents` or `bytes`.
        unit: &'static str,
        /// What entered.
        counted_in: u64,
        /// What left.
        counted_out: u64,
        /// What was dropped or taken out.
        rest: u64,
    },
    /// A run has not reached its end.
    #[error(
        "{path}: source {source_name:?} is not finished: run `altiplano data run` for every rank \
         and `altiplano data merge` until nothing is waiting"
    )]
    Unfinished {
        /// The data folder.
        path: PathBuf,
        /// Name of the source.
        source_name: String,
    },
    /// No document of that id was read.
    #[error(
        "no document {id:?} in {path}: ids are those `altiplano data cat --format jsonl` and the \
         logs in `dropped` show"
    )]
    NoDocument {
        /// The id asked for.
        id: String,
        /// The data folder.
        path: PathBuf,
    },

    // Tokenizer
    /// A tokenizer model cannot be used.
    #[error("{path}: not a usable SentencePiece model: {reason}")]
    Tokenizer {
        /// The `.model` file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// SentencePiece's trainer refused.
    #[error("tokenizer training failed: {message}")]
    TokenizerTraining {
        /// SentencePiece's own message, or ours.
        message: String,
    },
    /// SentencePiece could not encode or decode.
    #[error("{operation} failed: {reason}")]
    Codec {
        /// `encode` or `decode`.
        operation: &'static str,
        /// Why.
        reason: String,
    },

    /// A chat template cannot be compiled or rendered.
    #[error("chat template {template}:{line} {reason}")]
    ChatTemplate {
        /// Its file or name.
        template: String,
        /// ` line 3:`, or empty where no line is known.
        line: String,
        /// What is wrong, or what the template itself says.
        reason: String,
    },

    // Language model
    /// An n-gram model cannot be estimated or written.
    #[error("n-gram model: {reason}")]
    LanguageModel {
        /// Why, and what to do.
        reason: String,
    },

    // Shards
    /// A token shard is truncated, altered or of another version.
    #[error(
        "{path}: {what}: found {found}, expected {expected}; write the shards again with `altiplano tokenize`"
    )]
    Shard {
        /// The shard.
        path: PathBuf,
        /// What was looked at.
        what: &'static str,
        /// What the file holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A shard was written with another tokenizer than the one in use.
    #[error(
        "{path}: written with tokenizer {found}, this run uses {expected}; run `altiplano \
         tokenize` again or set the tokenizer the shards were made with"
    )]
    TokenizerMismatch {
        /// The shard.
        path: PathBuf,
        /// Fingerprint in the shard.
        found: String,
        /// Fingerprint of the run's tokenizer.
        expected: String,
    },

    // Loader
    /// There is not enough text for one batch.
    #[error(
        "{name}: {tokens} tokens make {sequences} sequences of {seq_len}; one batch needs \
         {needed_sequences} sequences, that is {needed_tokens} tokens; add text, or lower \
         `seq_len` or `micro_batch`"
    )]
    CorpusTooSmall {
        /// Source or corpus.
        name: String,
        /// Tokens there are.
        tokens: u64,
        /// Whole sequences they make.
        sequences: u64,
        /// Tokens in a sequence.
        seq_len: usize,
        /// Sequences in a batch.
        needed_sequences: u64,
        /// Tokens a batch needs.
        needed_tokens: u64,
    },
    /// A saved loader state belongs to another corpus or configuration.
    #[error(
        "the saved data position does not fit this run: {what}: found {found}, expected \
         {expected}; resume with the data and settings the run was started with"
    )]
    StateMismatch {
        /// What differs.
        what: &'static str,
        /// What the state holds.
        found: String,
        /// What this run has.
        expected: String,
    },
}

/// A key as the beginning of a message.
fn of_key(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

/// What to do where there is no file for `key`: what a command makes can be made.
fn advice(key: &str) -> &'static str {
    match key.ends_with("perplexity.model") {
        true => "check the path, or make them with `altiplano data train-lm`",
        false => "check the path",
    }
}

impl DataError {
    /// Attaches `path` to an error of the operating system: `.map_err(DataError::io(path))`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| match source.downcast::<Self>() {
            // A reader of an object says itself what is wrong.
            Ok(error) => error,
            Err(source) => Self::Io { path: path.as_ref().to_owned(), source },
        }
    }

    /// A file that is not what its name says.
    pub fn bad_file(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Self::BadFile { path: path.as_ref().to_owned(), reason: reason.to_string() }
    }

    /// A file that is not as it was written.
    pub fn altered(
        path: impl AsRef<Path>,
        difference: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self::Altered { path: path.as_ref().to_owned(), difference: difference.into(), remedy }
    }

    /// What is wrong, for a message that says that it is mended.
    pub(crate) fn without_remedy(&self) -> String {
        match self {
            Self::Altered { path, difference, .. } => format!("{}: {difference}", path.display()),
            error => error.to_string(),
        }
    }

    /// An error of the object or file at an address.
    pub(crate) fn storage(address: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        let url = address.as_ref().display().to_string();
        Self::Storage { key: String::new(), url, reason: reason.into() }
    }

    /// Names the key that an address comes from, where the error is about one.
    pub(crate) fn at_key(self, key: &str) -> Self {
        match self {
            Self::Storage { url, reason, .. } => Self::Storage { key: key.to_owned(), url, reason },
            error => error,
        }
    }

    /// An error of a file that the configuration names at `key`: one that is not there names the key.
    pub(crate) fn of_key(self, key: &str) -> Self {
        match self.at_key(key) {
            Self::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::NoInput { key: key.to_owned(), pattern: path.display().to_string() }
            }
            error => error,
        }
    }

    /// Whether the file of an operation is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// A configuration value that does not fit.
    pub fn config(
        key: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Config { key: key.into(), found: found.to_string(), expected: expected.into() }
    }
}
