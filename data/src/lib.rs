//! Text in, token batches out: documents, tokenizer, token shards, mixture, loader.
//!
//! No tensors live here. What crosses to the model side is token ids, targets and document
//! starts ([`Batch`]). A module uses only modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | what can go wrong |
//! | [`storage`] | files in object storage and on web servers, and folders that stand for a bucket |
//! | [`checksum`] | what a file is meant to hold |
//! | `fingerprint` | hashes of what a result depends on, and when a file was changed |
//! | [`process`] | which process wrote something, and whether it still runs |
//! | [`atomic_file`] | files that appear whole or not at all |
//! | [`lock`] | one writer of a folder at a time |
//! | [`decoder_panic`] | panics of decoders on hostile data |
//! | [`terminal`] | what is written to standard error, and that it never fails |
//! | [`json_file`] | JSON files with their checksum |
//! | [`progress`] | progress of a job on the terminal |
//! | [`document`] | the record every source ends in, as Parquet |
//! | [`text`] | character sets, lines, white space, HTML, TeX |
//! | [`tokenizer`] | SentencePiece: training, encoding, decoding; `tokenizer.json` of other kinds |
//! | [`fasttext_model`] | fastText models: reading, scoring, training |
//! | [`language`] | which language a text is in |
//! | [`ngram`] | the n-gram language model |
//! | [`classifier`] | the classifier of reference-like pages |
//! | [`sharegpt`] | conversations as the text of a document |
//! | [`source`] | readers of raw text |
//! | [`chat`] | conversations as text: templates, stop strings |
//! | [`step`] | one document in, one document or a reason out |
//! | [`dedup`] | what needs all documents in view |
//! | [`pipeline`] | raw text to documents, with counters, holdout and manifests |
//! | [`shard`] | token files, memory-mapped |
//! | [`mixture`] | shares of tokens, source order, epoch permutations |
//! | [`loader`] | batches, resumable from a handful of integers |
//! | [`sft`] | examples to fine-tune on: formats, masks, packing, batches |
//! | [`eval_tasks`] | tasks that models are measured by: files, prompts, answers |
//! | [`config`] | the one file that drives all of the above |
//! | [`jobs`] | what that file drives: documents, tokenizer, shards |
//!
//! What the modules for documents call things:
//!
//! | word | meaning |
//! |---|---|
//! | source | raw files of one kind, and the steps that their documents go through |
//! | task | a group of consecutive input files of a source; each stage of it is done as one piece of work |
//! | stage | steps that look at one document at a time; the next stage begins where a decision needs all documents of the source |
//! | signatures | what a stage writes about its documents for that decision: a hash of each line, for example |
//! | decision | what all signatures together say: which documents and lines are duplicates, or where validation is cut from training |
//! | duplicates | documents or lines that others have too, those that do not stay |
//! | filter | takes the duplicates out when the next stage reads the documents |
//! | record | a document as a reader finds it in a raw file, or a piece of the file that is none, with the reason |
//!
//! In the files on disk a task's number is the key `group`, and signatures are called `notes`.
//!
//! # Batches
//!
//! [`Loader`] makes the batches of a run and says where it stands. Here of random tokens, which
//! need no files:
//!
//! ```
//! use altiplano_data::{Loader, LoaderOptions, MixtureConfig, ProgressMode};
//!
//! let options = LoaderOptions {
//!     seq_len: 8,
//!     batch_size: 2,
//!     seed: 1,
//!     readers: 0,
//!     tokenizer_fingerprint: String::new(),
//!     vocab_size: 32_000,
//!     progress: ProgressMode::Hidden,
//! };
//! let mixture = MixtureConfig::random();
//! let mut loader = Loader::open(&mixture, options.clone())?;
//! let batch = loader.next_batch()?;
//! assert_eq!(batch.inputs.len(), 2 * 8);
//! // The target of a token is the next token.
//! assert_eq!(batch.targets[..7], batch.inputs[1..8]);
//!
//! // Another loader goes on where this one stands.
//! let mut resumed = Loader::open(&mixture, options)?;
//! resumed.restore(&loader.state())?;
//! assert_eq!(resumed.next_batch()?, loader.next_batch()?);
//! # Ok::<(), altiplano_data::DataError>(())
//! ```

pub mod error;

pub mod storage;

pub mod checksum;

mod fingerprint;

pub mod process;

pub mod atomic_file;

pub mod lock;

pub mod decoder_panic;

pub mod terminal;

pub mod json_file;

pub mod progress;

pub mod document;

pub mod text;

pub mod tokenizer;

pub mod fasttext_model;

pub mod language;

pub mod ngram;

pub mod classifier;

pub mod sharegpt;

pub mod source;

pub mod chat;

pub mod step;

pub mod dedup;

pub mod pipeline;

pub mod shard;

pub mod mixture;

pub mod loader;

pub mod sft;

pub mod eval_tasks;

pub mod config;

pub mod jobs;

pub use config::DataConfig;
pub use error::{DataError, Result};
pub use loader::{
    Batch, IGNORED_TARGET, Loader, LoaderOptions, LoaderState, SequenceOrigin, Share, SourceReport,
    ValidationSet,
};
pub use mixture::MixtureConfig;
pub use progress::ProgressMode;
pub use tokenizer::{StreamDecoder, StreamEncoder, Tokenizer};
