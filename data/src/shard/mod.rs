//! Token shards: Arrow IPC files with one row per document.
//!
//! ```text
//! schema    tokens: List<UInt16> (vocabulary up to 65536) or List<UInt32>
//! metadata  altiplano.format, .version, .tokenizer, .vocab_size, .tokens, .documents,
//!           .text_bytes, .blake3 (of the token bytes, then of the document ends as u64)
//! ```
//!
//! Any Arrow reader sees the documents. Ours maps the file into memory and looks at the token
//! bytes in place; the list offsets are the document starts. Nothing a file claims is believed
//! before it is held against the file's size.

mod layout;
mod manifest;
mod reader;
mod tokenize;
mod writer;

pub use manifest::{ShardManifest, ShardSummary, tokens_folder};
pub use reader::Shard;
pub use tokenize::{ShardConfig, TokenizeReport, TokenizedSource, tokenize};
pub use writer::ShardWriter;

use serde::Serialize;

/// Value of `altiplano.format`.
const FORMAT: &str = "tokens";
/// Value of `altiplano.version`. A reader refuses any other.
const VERSION: &str = "1";

/// Vocabularies up to this size are stored as u16.
const U16_VOCABULARY: usize = 1 << 16;

#[cfg(target_endian = "big")]
compile_error!("token shards are little-endian and mapped in place");

/// What a shard says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardHeader {
    /// Fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Entries of its vocabulary. Every token id is below.
    pub vocab_size: usize,
    /// Tokens in the shard, marks included.
    pub tokens: u64,
    /// Documents in the shard.
    pub documents: u64,
    /// Bytes of the documents' text.
    pub text_bytes: u64,
    /// Hash of the tokens and the document ends.
    pub blake3: String,
}

#[cfg(test)]
mod tests;
