//! Encoding a text as it is read, in memory that does not grow with it.

use super::sentencepiece::PART_BYTES;
use super::{Codec, Tokenizer};
use crate::error::Result;

/// Encodes a text that comes in pieces. The ids of all calls, one after the other, are those of
/// [`Tokenizer::encode`] for the whole text.
///
/// With a tokenizer as it is made here memory stays flat: a text is encoded in parts that begin with a
/// line feed. A tokenizer that may join something across line feeds gets the whole text at the end.
pub struct StreamEncoder<'a> {
    tokenizer: &'a Tokenizer,
    /// What is not encoded yet.
    pending: String,
    /// Bytes of `pending` in which there is no place for a cut.
    searched: usize,
    /// Whether a part was encoded.
    begun: bool,
}

impl<'a> StreamEncoder<'a> {
    /// An encoder at the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, pending: String::new(), searched: 1, begun: false }
    }

    /// Takes more of the text, and appends the ids that do not depend on what follows.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn push(&mut self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        self.pending.push_str(text);
        if self.pending.len() < PART_BYTES || !self.encodes_in_parts() {
            return Ok(());
        }
        // Bytes, since the first one to look at may be inside a character.
        let unsearched = self.pending.as_bytes().get(self.searched..).unwrap_or_default();
        let Some(last) = unsearched.iter().rposition(|byte| *byte == b'\n') else {
            self.searched = self.pending.len();
            return Ok(());
        };
        let rest = self.pending.split_off(self.searched + last);
        let part = std::mem::replace(&mut self.pending, rest);
        self.searched = 1;
        self.encode(&part, ids)
    }

    /// Appends the ids of the rest of the text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn finish(mut self, ids: &mut Vec<u32>) -> Result<()> {
        let rest = std::mem::take(&mut self.pending);
        self.encode(&rest, ids)
    }

    fn encodes_in_parts(&self) -> bool {
        matches!(&self.tokenizer.codec, Codec::SentencePiece(codec) if codec.part_prefix.is_some())
    }

    fn encode(&mut self, part: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.tokenizer.codec {
            Codec::SentencePiece(codec) if self.begun => codec.encode_further(part, ids)?,
            Codec::SentencePiece(codec) => codec.encode(part, ids)?,
            Codec::HuggingFace(codec) => codec.encode(part, ids)?,
        }
        self.begun = true;
        Ok(())
    }
}
