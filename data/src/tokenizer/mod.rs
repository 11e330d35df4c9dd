//! SentencePiece BPE: training with a trainer that gives SentencePiece's pieces, decoding with the
//! `sentencepiece` crate, and encoding word by word with an encoder that gives SentencePiece's
//! ids. Models that cannot be encoded word by word are encoded by the `sentencepiece` crate.
//!
//! Tokenizers of other kinds are read from a `tokenizer.json` and used in the same way
//! (`hugging_face`).
//!
//! A tokenizer made here is LLaMA's kind: digits one by one, bytes for characters outside the
//! vocabulary, no normalization, a space put before the text. A line feed is the byte piece
//! `<0x0A>`. Decoding gives back the encoded text exactly, with one exception that SentencePiece
//! has by design: the character `▁` (U+2581) comes back as a space.

mod bpe;
mod bpe_trainer;
mod description;
mod growth;
mod hugging_face;
pub(crate) mod model_proto;
pub(crate) mod sample;
mod sentencepiece;
mod spans;
mod stream;
mod stream_encoder;
mod tokenizer_json;
pub(crate) mod train;
pub(crate) mod trainer_log;
pub(crate) mod word_cache;

pub use model_proto::{BpeModel, Piece, PieceType};
pub use spans::TokenSpan;
pub use stream::StreamDecoder;
pub use stream_encoder::StreamEncoder;
pub use train::{TokenizerConfig, TrainReport, train};

use std::path::{Path, PathBuf};

use self::description::Description;
use self::hugging_face::{HuggingFace, Spelling};
use self::sentencepiece::SentencePiece;
use crate::error::{DataError, Result};

pub(crate) use self::sentencepiece::UNREADABLE;

/// Whether a file of this name is read by the `tokenizers` crate: it ends in `.json`.
pub fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// The error of an operation that a tokenizer refuses.
pub(crate) fn codec(operation: &'static str, reason: &str) -> DataError {
    DataError::Codec { operation, reason: reason.to_owned() }
}

/// The character that stands for a space inside pieces.
pub(crate) const SPACE: &str = "\u{2581}";

/// A tokenizer. Cheap to share between threads by reference.
pub struct Tokenizer {
    codec: Codec,
    pieces: Vec<Piece>,
    add_dummy_prefix: bool,
    unknown_surface: String,
    fingerprint: String,
    path: PathBuf,
    model: Vec<u8>,
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
}

/// What turns texts into ids and back.
enum Codec {
    SentencePiece(Box<SentencePiece>),
    HuggingFace(Box<HuggingFace>),
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
    /// Reads a SentencePiece `.model` file, or a `tokenizer.json` (any name that ends in `.json`),
    /// whose marks are named by `tokenizer_config.json` and `config.json` beside it. A model that was
    /// trained here must be as it was written.
    ///
    /// # Errors
    /// [`DataError::NotMade`] when there is none, [`DataError::Io`] when it cannot be read,
    /// [`DataError::Altered`] when it is not as it was written, [`DataError::Tokenizer`] when it is no
    /// model, is larger than any or is not a plain file.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(DataError::NotMade {
                path: path.to_owned(),
                expected: "a SentencePiece model or a tokenizer.json",
                command: "tokenizer train CONFIG",
            });
        }
        let bytes = hugging_face::read_file(path)?;
        Description::check(path, &bytes)?;
        Self::from_bytes(path, &bytes)
    }

    /// As [`Tokenizer::open`], from the file's bytes, which are not held against anything; `path`
    /// is for messages.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when it is not a model.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let fingerprint = blake3::hash(bytes).to_hex().to_string();
        if is_json(path) {
            let loaded = hugging_face::load(path, bytes)?;
            let add_dummy_prefix = loaded.codec.spelling == Spelling::Spaces { drops_first: true };
            return Ok(Self {
                codec: Codec::HuggingFace(Box::new(loaded.codec)),
                pieces: loaded.pieces,
                add_dummy_prefix,
                unknown_surface: String::new(),
                fingerprint,
                path: path.to_owned(),
                model: bytes.to_owned(),
                bos: loaded.bos,
                eos: loaded.eos,
                unk: loaded.unk,
            });
        }
        train::quiet();
        let model = model_proto::read(path, bytes)?;
        let codec = SentencePiece::new(path, bytes, &model)?;
        Ok(Self {
            bos: codec.processor.bos_id(),
            eos: codec.processor.eos_id(),
            unk: Some(codec.processor.unk_id()),
            codec: Codec::SentencePiece(Box::new(codec)),
            pieces: model.pieces,
            add_dummy_prefix: model.add_dummy_prefix,
            unknown_surface: model.unknown_surface,
            fingerprint,
            path: path.to_owned(),
            model: bytes.to_owned(),
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

    /// Whether it is a SentencePiece model, and not a `tokenizer.json`.
    pub fn is_sentencepiece(&self) -> bool {
        matches!(self.codec, Codec::SentencePiece(_))
    }

    /// Whether it merges pairs by their score and takes texts as they are, but for spaces: what
    /// other programs compute from pieces and scores alone.
    pub fn is_plain_bpe(&self) -> bool {
        self.is_sentencepiece()
            && model_proto::read(&self.path, &self.model).is_ok_and(|model| {
                let bpe = model.model_type == model_proto::ModelType::Bpe;
                bpe && model.identity && model.escape_whitespaces && !model.whitespace_as_suffix
            })
    }

    /// Whether a space is put before a text.
    pub fn adds_dummy_prefix(&self) -> bool {
        self.add_dummy_prefix
    }

    /// The `tokenizer.json` it was read from, or the one with which Hugging Face's `tokenizers` gives the ids of this tokenizer for
    /// every text. None for a model that cannot be written that way; all that this program trains can.
    pub fn tokenizer_json(&self) -> Option<String> {
        if !self.is_sentencepiece() {
            return String::from_utf8(self.model.clone()).ok();
        }
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

    /// Id of what no piece covers, if there is one. With byte fallback no text gives it.
    pub fn unk_id(&self) -> Option<u32> {
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

    /// The bytes that an id adds to a text: a space for `▁`, the byte of a byte piece; empty for
    /// marks. A space that stands before a whole text is not dropped. None for an id outside the
    /// vocabulary.
    pub fn piece_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let piece = self.piece(id)?;
        Some(match piece.kind {
            PieceType::Control | PieceType::Unused => Vec::new(),
            PieceType::Byte(byte) => vec![byte],
            PieceType::Unknown => self.unknown_surface.as_bytes().to_vec(),
            _ => match self.spelling() {
                Spelling::ByteLevel => hugging_face::bytes_of(&piece.text),
                Spelling::Spaces { .. } => piece.text.replace(SPACE, " ").into_bytes(),
                Spelling::Other => piece.text.as_bytes().to_vec(),
            },
        })
    }

    fn spelling(&self) -> Spelling {
        match &self.codec {
            Codec::SentencePiece(_) => Spelling::Spaces { drops_first: self.add_dummy_prefix },
            Codec::HuggingFace(codec) => codec.spelling,
        }
    }

    /// The ids of `text`, without marks. Text that looks like a mark, `<s>` for example, is text.
    ///
    /// # Errors
    /// [`DataError::Codec`] when SentencePiece or the `tokenizers` crate fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        match &self.codec {
            Codec::SentencePiece(codec) => codec.encode(text, &mut ids)?,
            Codec::HuggingFace(codec) => codec.encode(text, &mut ids)?,
        }
        Ok(ids)
    }

    /// As [`Tokenizer::encode`], but always by the crate of its kind: the reference of the tests.
    ///
    /// # Errors
    /// [`DataError::Codec`] when SentencePiece fails.
    pub fn encode_by_sentencepiece(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        match &self.codec {
            Codec::SentencePiece(codec) => codec.encode_by_crate(text, &mut ids)?,
            Codec::HuggingFace(codec) => codec.encode(text, &mut ids)?,
        }
        Ok(ids)
    }

    /// Whether texts are encoded word by word, not by the `sentencepiece` crate.
    pub fn encodes_by_words(&self) -> bool {
        matches!(&self.codec, Codec::SentencePiece(codec) if codec.encoder.is_some())
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
        match &self.codec {
            Codec::SentencePiece(codec) => codec.decode(ids),
            Codec::HuggingFace(codec) if codec.spelling == Spelling::Other => codec.decode(ids),
            // Joined as the stream joins them.
            Codec::HuggingFace(_) => {
                let mut decoder = StreamDecoder::new(self);
                let text: String = ids.iter().map(|id| decoder.push(*id)).collect();
                Ok(text + &decoder.finish())
            }
        }
    }
}

#[cfg(test)]
mod tests;
