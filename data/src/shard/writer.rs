//! Writes a token shard.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, ListArray, RecordBatch, UInt16Array, UInt32Array};
use arrow_buffer::OffsetBuffer;
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema};

use super::manifest::ShardSummary;
use super::{FORMAT, ShardHeader, U16_VOCABULARY, VERSION};
use crate::atomic_file::AtomicFile;
use crate::document::Split;
use crate::error::{DataError, Result};

/// Tokens after which a record batch is closed, at the end of a document.
const BATCH_TOKENS: usize = 1 << 20;

/// Collects the documents of one shard in memory and writes them at the end, because the counts
/// stand at the front of the file. Memory: the width of a token (2 or 4 bytes) times the tokens.
pub struct ShardWriter {
    path: PathBuf,
    tokenizer: String,
    vocab_size: usize,
    tokens: Tokens,
    /// Where each document ends, in tokens.
    ends: Vec<u64>,
    text_bytes: u64,
    batch_tokens: usize,
}

enum Tokens {
    U16(Vec<u16>),
    U32(Vec<u32>),
}

impl Tokens {
    fn len(&self) -> usize {
        match self {
            Self::U16(tokens) => tokens.len(),
            Self::U32(tokens) => tokens.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::U16(tokens) => bytemuck::cast_slice(tokens),
            Self::U32(tokens) => bytemuck::cast_slice(tokens),
        }
    }

    fn array(&self, range: std::ops::Range<usize>) -> ArrayRef {
        match self {
            Self::U16(tokens) => Arc::new(UInt16Array::from(tokens[range].to_vec())),
            Self::U32(tokens) => Arc::new(UInt32Array::from(tokens[range].to_vec())),
        }
    }

    fn data_type(&self) -> DataType {
        match self {
            Self::U16(_) => DataType::UInt16,
            Self::U32(_) => DataType::UInt32,
        }
    }
}

impl ShardWriter {
    /// Starts a shard of documents encoded with the tokenizer of this fingerprint. The file
    /// appears at [`ShardWriter::finish`].
    pub fn new(path: &Path, tokenizer: &str, vocab_size: usize) -> Self {
        Self {
            path: path.to_owned(),
            tokenizer: tokenizer.to_owned(),
            vocab_size,
            tokens: if vocab_size <= U16_VOCABULARY {
                Tokens::U16(Vec::new())
            } else {
                Tokens::U32(Vec::new())
            },
            ends: Vec::new(),
            text_bytes: 0,
            batch_tokens: BATCH_TOKENS,
        }
    }

    /// Closes record batches after fewer tokens.
    #[cfg(test)]
    pub(crate) fn with_batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = tokens;
        self
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens.len() as u64
    }

    /// Documents so far.
    pub fn documents(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Adds a document. One without tokens is left out.
    ///
    /// # Errors
    /// [`DataError::Shard`] when an id is outside the vocabulary.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(DataError::Shard {
                path: self.path.clone(),
                what: "token id",
                found: id.to_string(),
                expected: format!("below the vocabulary size {}", self.vocab_size),
            });
        }
        if ids.is_empty() {
            return Ok(());
        }
        match &mut self.tokens {
            // The check above keeps ids below 65536.
            Tokens::U16(tokens) => tokens.extend(ids.iter().map(|&id| id as u16)),
            Tokens::U32(tokens) => tokens.extend_from_slice(ids),
        }
        self.ends.push(self.tokens.len() as u64);
        self.text_bytes += text_bytes;
        Ok(())
    }

    /// Writes the shard.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::BadFile`]; no file appears then.
    pub fn finish(self, split: Split) -> Result<ShardSummary> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.tokens.bytes());
        hasher.update(bytemuck::cast_slice(&self.ends));
        let header = ShardHeader {
            tokenizer: self.tokenizer.clone(),
            vocab_size: self.vocab_size,
            tokens: self.tokens(),
            documents: self.documents(),
            text_bytes: self.text_bytes,
            blake3: hasher.finalize().to_hex().to_string(),
        };
        let fail = |error: arrow_schema::ArrowError| DataError::bad_file(&self.path, error);
        let item = Arc::new(Field::new("item", self.tokens.data_type(), false));
        let column = Field::new("tokens", DataType::List(Arc::clone(&item)), false);
        let schema = Arc::new(Schema::new_with_metadata(vec![column], metadata(&header)));
        let file = AtomicFile::create(&self.path)?;
        let mut writer = FileWriter::try_new(file, &schema).map_err(fail)?;
        let mut first = 0;
        while first < self.ends.len() {
            let begin = self.end_before(first);
            let mut last = first + 1;
            while last < self.ends.len() && self.end_before(last) - begin < self.batch_tokens {
                last += 1;
            }
            let lengths = (first..last).map(|at| self.end_before(at + 1) - self.end_before(at));
            let offsets = OffsetBuffer::from_lengths(lengths);
            let values = self.tokens.array(begin..self.end_before(last));
            let list =
                ListArray::try_new(Arc::clone(&item), offsets, values, None).map_err(fail)?;
            let batch =
                RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(list)]).map_err(fail)?;
            writer.write(&batch).map_err(fail)?;
            first = last;
        }
        writer.finish().map_err(fail)?;
        let digest = writer.into_inner().map_err(fail)?.commit()?;
        Ok(ShardSummary {
            file: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            split,
            file_bytes: digest.bytes,
            file_blake3: digest.blake3,
            tokens: header.tokens,
            documents: header.documents,
            text_bytes: header.text_bytes,
            blake3: header.blake3,
        })
    }

    /// Where document `index` begins, in tokens.
    fn end_before(&self, index: usize) -> usize {
        match index {
            0 => 0,
            _ => self.ends[index - 1] as usize,
        }
    }
}

fn metadata(header: &ShardHeader) -> HashMap<String, String> {
    [
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_owned()),
        ("tokenizer", header.tokenizer.clone()),
        ("vocab_size", header.vocab_size.to_string()),
        ("tokens", header.tokens.to_string()),
        ("documents", header.documents.to_string()),
        ("text_bytes", header.text_bytes.to_string()),
        ("blake3", header.blake3.clone()),
    ]
    .into_iter()
    .map(|(key, value)| (format!("altiplano.{key}"), value))
    .collect()
}
