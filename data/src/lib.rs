//! Text in, token batches out: documents, tokenizer, token shards, mixture, loader.
//!
//! No tensors live here. What crosses to the model side is token ids, targets and document
//! starts ([`Batch`]). A module uses only modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | what can go wrong |
//! | [`checksum`] | what a file is meant to hold |
//! | [`process`] | which process wrote something, and whether it still runs |
//! | [`atomic_file`] | files that appear whole or not at all |
//! | [`lock`] | one writer of a folder at a time |
//! | [`decoder_panic`] | panics of decoders on hostile data |
//! | [`terminal`] | what is written to standard error, and that it never fails |
//! | [`json_file`] | JSON files with their checksum |
//! | [`progress`] | progress of a job on the terminal |
//! | [`document`] | the record every source ends in, as Parquet |
//! | [`text`] | character sets, lines, white space, HTML, TeX |
//! | [`tokenizer`] | SentencePiece: training, encoding, decoding |
//! | [`fasttext_model`] | fastText models: reading, scoring, training |
//! | [`language`] | which language a text is in |
//! | [`ngram`] | the n-gram language model |
//! | [`classifier`] | the classifier of reference-like pages |
//! | [`source`] | readers of raw text |
//! | [`chat`] | conversations as text: templates, stop strings |
//! | [`step`] | one document in, one document or a reason out |
//! | [`dedup`] | what needs all documents in view |
//! | [`pipeline`] | raw text to documents, with counters, holdout and manifests |
//! | [`shard`] | token files, memory-mapped |
//! | [`mixture`] | shares of tokens, source order, epoch permutations |
//! | [`loader`] | batches, resumable from a handful of integers |
//! | [`sft`] | examples to fine-tune on: formats, masks, packing, batches |
//! | [`config`] | the one file that drives all of the above |

pub mod error;

pub mod checksum;
pub mod process;

pub mod atomic_file;
pub mod decoder_panic;
pub mod terminal;

pub mod json_file;
pub mod lock;

pub mod progress;

pub mod document;
pub mod text;

pub mod fasttext_model;
pub mod tokenizer;

pub mod classifier;
pub mod language;
pub mod ngram;

pub mod source;

pub mod chat;

pub mod dedup;
pub mod step;

pub mod pipeline;

pub mod shard;

pub mod mixture;

pub mod loader;

pub mod sft;

pub mod config;

pub use config::DataConfig;
pub use error::{DataError, Result};
pub use loader::{
    Batch, IGNORED_TARGET, Loader, LoaderOptions, LoaderState, SequenceOrigin, SourceReport,
    ValidationSet,
};
pub use mixture::MixtureConfig;
pub use progress::ProgressMode;
pub use tokenizer::{StreamDecoder, Tokenizer};
