//! Encoding and decoding with a SentencePiece model: word by word where the model allows it, else by
//! the `sentencepiece` crate.

use std::path::Path;

use sentencepiece::SentencePieceProcessor;

use super::bpe::BpeEncoder;
use super::model_proto::Model;
use super::{SPACE, codec};
use crate::error::{DataError, Result};

/// Texts longer than this are encoded in parts, to bound memory. SentencePiece needs some hundred
/// bytes per character.
pub(super) const PART_BYTES: usize = 256 << 10;

/// Why a model whose file reads well is refused.
pub(crate) const UNREADABLE: &str = "SentencePiece cannot use it; train or fetch it again";

/// What encodes and decodes with a model.
pub(super) struct SentencePiece {
    pub(super) processor: SentencePieceProcessor,
    /// Encodes word by word, if the model allows it.
    pub(super) encoder: Option<BpeEncoder>,
    /// The id of the lone space, when texts may be encoded in parts.
    pub(super) part_prefix: Option<u32>,
}

impl SentencePiece {
    /// Of `model`, whose bytes are `bytes`; `path` is for messages.
    pub(super) fn new(path: &Path, bytes: &[u8], model: &Model) -> Result<Self> {
        let fail = |reason: String| DataError::Tokenizer { path: path.to_owned(), reason };
        let processor = SentencePieceProcessor::from_serialized_proto(bytes)
            .map_err(|_| fail(UNREADABLE.to_owned()))?;
        if processor.len() != model.pieces.len() {
            return Err(fail(format!(
                "SentencePiece sees {} pieces, the file has {}",
                processor.len(),
                model.pieces.len()
            )));
        }
        // A merge never crosses a line feed when no piece has one, and a part that begins with a
        // line feed begins with the dummy prefix as a piece of its own. So a text may be cut
        // before line feeds.
        let feedless = !model.pieces.iter().any(|piece| piece.text.contains('\n'));
        let lone_space = model.pieces.iter().position(|piece| piece.text == SPACE);
        let part_prefix = lone_space
            .filter(|_| feedless && model.identity && model.add_dummy_prefix)
            .map(|id| id as u32);
        let encoder = BpeEncoder::new(model)
            .inspect_err(|reason| {
                tracing::debug!(path = %path.display(), reason, "SentencePiece itself encodes");
            })
            .ok();
        Ok(Self { processor, encoder, part_prefix })
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.encoder {
            Some(encoder) => {
                encoder.encode(text, ids);
                Ok(())
            }
            None => self.encode_by_crate(text, ids),
        }
    }

    /// Appends the ids of `text`, which goes on a text that may be cut before it: it begins with a line
    /// feed, and the model has a `part_prefix`.
    pub(super) fn encode_further(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut further = Vec::with_capacity(text.len() / 3);
        self.encode(text, &mut further)?;
        self.drop_prefix(0, &mut further)?;
        ids.append(&mut further);
        Ok(())
    }

    /// As [`SentencePiece::encode`], but always by the `sentencepiece` crate.
    pub(super) fn encode_by_crate(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut rest = text;
        if self.part_prefix.is_some() {
            while rest.len() > PART_BYTES {
                let Some(cut) = cut_before_line_feed(rest, PART_BYTES) else {
                    break;
                };
                self.encode_part(&rest[..cut], ids)?;
                rest = &rest[cut..];
            }
            self.encode_part(rest, ids)
        } else {
            self.encode_whole(rest, ids)
        }
    }

    /// The text of `ids`, which are all in the vocabulary and not none.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.processor
            .decode_piece_ids(ids)
            .map_err(|_| codec("decode", "SentencePiece cannot join these ids"))
    }

    /// Appends the ids of a part of a text by the crate. Only the first part keeps the dummy prefix.
    fn encode_part(&self, part: &str, ids: &mut Vec<u32>) -> Result<()> {
        let first = ids.len();
        self.encode_whole(part, ids)?;
        if first > 0 { self.drop_prefix(first, ids) } else { Ok(()) }
    }

    /// Removes the dummy prefix, which is the id at `first`.
    fn drop_prefix(&self, first: usize, ids: &mut Vec<u32>) -> Result<()> {
        match ids.get(first) {
            None => Ok(()),
            Some(id) if Some(*id) == self.part_prefix => {
                ids.remove(first);
                Ok(())
            }
            Some(id) => Err(DataError::Codec {
                operation: "encode",
                reason: format!("a part of a long text begins with piece {id}, not a space"),
            }),
        }
    }

    fn encode_whole(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let pieces = self
            .processor
            .encode(text)
            .map_err(|_| codec("encode", "SentencePiece cannot cut this text"))?;
        ids.extend(pieces.into_iter().map(|piece| piece.id));
        Ok(())
    }
}

/// The last place up to `bound` where a line feed begins, but not at 0. Falls back to the first
/// one after the bound.
fn cut_before_line_feed(text: &str, bound: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let bound = bound.min(bytes.len());
    let before = (1..bound).rev().find(|&at| bytes[at] == b'\n');
    before.or_else(|| {
        let after = bytes[bound..].iter().position(|&byte| byte == b'\n')?;
        Some(bound + after)
    })
}
