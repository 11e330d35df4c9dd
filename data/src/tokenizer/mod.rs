//! SentencePiece BPE: training with SentencePiece's own trainer in this process, decoding with the
//! `sentencepiece` crate, and encoding word by word with an encoder that gives SentencePiece's
//! ids. Models that cannot be encoded word by word are encoded by the `sentencepiece` crate.
//!
//! A tokenizer made here is LLaMA's kind: digits one by one, bytes for characters outside the
//! vocabulary, no normalization, a space put before the text. A line feed is the byte piece
//! `<0x0A>`. Decoding gives back the encoded text exactly, with one exception that SentencePiece
//! has by design: the character `▁` (U+2581) comes back as a space.

mod bpe;
mod description;
pub(crate) mod model_proto;
pub(crate) mod sample;
mod spans;
mod stream;
mod tokenizer_json;
pub(crate) mod train;
pub(crate) mod trainer_log;
pub(crate) mod word_cache;

pub use model_proto::{BpeModel, Piece, PieceType};
pub use spans::TokenSpan;
pub use stream::StreamDecoder;
pub use train::{TokenizerConfig, TrainReport, train};

use std::path::{Path, PathBuf};

use sentencepiece::SentencePieceProcessor;

use self::bpe::BpeEncoder;
use self::description::Description;
use crate::error::{DataError, Result};

/// Texts longer than this are encoded in parts, to bound memory. SentencePiece needs some hundred
/// bytes per character.
const PART_BYTES: usize = 256 << 10;

/// Why a model whose file reads well is refused.
pub(crate) const UNREADABLE: &str = "SentencePiece cannot use it; train or fetch it again";

/// The error of an operation that SentencePiece refuses.
pub(crate) fn codec(operation: &'static str, reason: &str) -> DataError {
    DataError::Codec { operation, reason: reason.to_owned() }
}

/// The character that stands for a space inside pieces.
pub(crate) const SPACE: &str = "\u{2581}";

/// A tokenizer. Cheap to share between threads by reference.
pub struct Tokenizer {
    processor: SentencePieceProcessor,
    /// Encodes word by word, if the model allows it.
    encoder: Option<BpeEncoder>,
    pieces: Vec<Piece>,
    add_dummy_prefix: bool,
    unknown_surface: String,
    fingerprint: String,
    path: PathBuf,
    model: Vec<u8>,
    bos: Option<u32>,
    eos: Option<u32>,
    unk: u32,
    /// The id of the lone space, when texts may be encoded in parts.
    part_prefix: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab_size", &self.pieces.len())
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a SentencePiece `.model` file. One that was trained here must be as it was written.
    ///
    /// # Errors
    /// [`DataError::NotMade`] when there is none, [`DataError::Io`] when it cannot be read,
    /// [`DataError::Altered`] when it is not as it was written, [`DataError::Tokenizer`] when it is no
    /// model.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => DataError::NotMade {
                path: path.to_owned(),
                expected: "a SentencePiece model",
                command: "tokenizer train CONFIG",
            },
            _ => DataError::io(path)(error),
        })?;
        Description::check(path, &bytes)?;
        Self::from_bytes(path, &bytes)
    }

    /// As [`Tokenizer::open`], from the file's bytes, which are not held against anything; `path`
    /// is for messages.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when it is no model.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        train::quiet();
        let model = model_proto::read(path, bytes)?;
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
        let encoder = BpeEncoder::new(&model)
            .inspect_err(|reason| {
                tracing::debug!(path = %path.display(), reason, "SentencePiece itself encodes");
            })
            .ok();
        Ok(Self {
            encoder,
            bos: processor.bos_id(),
            eos: processor.eos_id(),
            unk: processor.unk_id(),
            processor,
            pieces: model.pieces,
            add_dummy_prefix: model.add_dummy_prefix,
            unknown_surface: model.unknown_surface,
            fingerprint: blake3::hash(bytes).to_hex().to_string(),
            path: path.to_owned(),
            model: bytes.to_owned(),
            part_prefix,
        })
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of that file, as they were read.
    pub fn model(&self) -> &[u8] {
        &self.model
    }

    /// Whether it merges pairs by their score and takes texts as they are, but for spaces: what
    /// other programs compute from pieces and scores alone.
    pub fn is_plain_bpe(&self) -> bool {
        model_proto::read(&self.path, &self.model).is_ok_and(|model| {
            let bpe = model.model_type == model_proto::ModelType::Bpe;
            bpe && model.identity && model.escape_whitespaces && !model.whitespace_as_suffix
        })
    }

    /// Whether a space is put before a text.
    pub fn adds_dummy_prefix(&self) -> bool {
        self.add_dummy_prefix
    }

    /// The `tokenizer.json` with which Hugging Face's `tokenizers` gives the ids of this tokenizer for
    /// every text. None for a model that cannot be written that way; all that this program trains can.
    pub fn tokenizer_json(&self) -> Option<String> {
        let model = model_proto::read(&self.path, &self.model).ok()?;
        tokenizer_json::tokenizer_json(&model, self.bos)
            .inspect_err(|reason| {
                tracing::debug!(path = %self.path.display(), reason, "no tokenizer.json");
            })
            .ok()
    }

    /// Entries of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Id of the mark before a document.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Id of the mark behind a document.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Id of what no piece covers. With byte fallback no text gives it.
    pub fn unk_id(&self) -> u32 {
        self.unk
    }

    /// The blake3 hash of the model file. Shards and checkpoints carry it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// An entry of the vocabulary.
    pub fn piece(&self, id: u32) -> Option<&Piece> {
        self.pieces.get(id as usize)
    }

    /// The ids of `text`, without marks. Text that looks like a mark, `<s>` for example, is text.
    ///
    /// # Errors
    /// [`DataError::Codec`] when SentencePiece fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        match &self.encoder {
            Some(encoder) => encoder.encode(text, &mut ids),
            None => self.encode_with_sentencepiece(text, &mut ids)?,
        }
        Ok(ids)
    }

    /// As [`Tokenizer::encode`], but always by the `sentencepiece` crate: what ours is compared
    /// with.
    ///
    /// # Errors
    /// [`DataError::Codec`] when SentencePiece fails.
    pub fn encode_by_sentencepiece(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_with_sentencepiece(text, &mut ids)?;
        Ok(ids)
    }

    /// Whether texts are encoded word by word, not by the `sentencepiece` crate.
    pub fn encodes_by_words(&self) -> bool {
        self.encoder.is_some()
    }

    fn encode_with_sentencepiece(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut rest = text;
        if let Some(prefix) = self.part_prefix {
            while rest.len() > PART_BYTES {
                let Some(cut) = cut_before_line_feed(rest, PART_BYTES) else {
                    break;
                };
                self.encode_part(&rest[..cut], ids, prefix)?;
                rest = &rest[cut..];
            }
            self.encode_part(rest, ids, prefix)
        } else {
            self.encode_whole(rest, ids)
        }
    }

    /// The ids of `text` with the marks asked for. A mark the tokenizer lacks is left out.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_document(&self, text: &str, bos: bool, eos: bool) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        ids.extend(self.bos.filter(|_| bos));
        ids.extend(self.encode(text)?);
        ids.extend(self.eos.filter(|_| eos));
        Ok(ids)
    }

    /// The text of `ids`. Marks have no text; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`DataError::Codec`] when an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|id| self.piece(**id).is_none()) {
            return Err(DataError::Codec {
                operation: "decode",
                reason: format!(
                    "id {id} is outside the vocabulary of {} pieces",
                    self.pieces.len()
                ),
            });
        }
        if ids.is_empty() {
            return Ok(String::new());
        }
        self.processor
            .decode_piece_ids(ids)
            .map_err(|_| codec("decode", "SentencePiece cannot join these ids"))
    }

    fn encode_part(&self, part: &str, ids: &mut Vec<u32>, prefix: u32) -> Result<()> {
        let first = ids.len();
        self.encode_whole(part, ids)?;
        // Only the first part keeps the dummy prefix.
        match ids.get(first) {
            Some(id) if first > 0 && *id == prefix => {
                ids.remove(first);
                Ok(())
            }
            Some(id) if first > 0 => Err(DataError::Codec {
                operation: "encode",
                reason: format!("a part of a long text begins with piece {id}, not a space"),
            }),
            _ => Ok(()),
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

#[cfg(test)]
mod tests;
