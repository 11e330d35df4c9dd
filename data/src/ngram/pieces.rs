//! Cutting text into the words of a language model: SentencePiece's pieces.

use std::path::Path;

use sentencepiece::SentencePieceProcessor;

use super::vocabulary::WordId;
use crate::error::{DataError, Result};
use crate::text::ccnet;
use crate::tokenizer::model_proto::{self, Model, PieceType};
use crate::tokenizer::word_cache::WordCache;
use crate::tokenizer::{SPACE, UNREADABLE, codec, train};

/// Words longer than this are cut, to bound memory.
const LONGEST_WORD: usize = 64 << 10;

/// A SentencePiece model as the source of a language model's words. What `SentencePiece` prints
/// for a piece is the word: `▁the`, and the text itself where no piece covers it.
///
/// Texts are cut at spaces and encoded word by word where the model's pieces allow it, which is
/// where none has a space in it but at its beginning. For unigram models the pieces may then
/// differ from those of the whole text where two ways to cut a word score the same to within the
/// rounding of `f32`.
pub struct Pieces {
    processor: SentencePieceProcessor,
    by_words: bool,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces")
            .field("pieces", &self.processor.len())
            .field("by_words", &self.by_words)
            .finish()
    }
}

/// The pieces of words seen before, with memory that is used again.
#[derive(Default)]
pub(super) struct PieceCache {
    words: WordCache,
}

impl Pieces {
    /// Reads a SentencePiece `.model` file of any kind.
    ///
    /// # Errors
    /// [`DataError::Io`] when it cannot be read, [`DataError::Tokenizer`] when it is not a model.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        Self::from_bytes(path, &bytes)
    }

    /// As [`Pieces::open`], from the file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when it is not a model.
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        train::quiet();
        let model = model_proto::read(path, bytes)?;
        let processor = SentencePieceProcessor::from_serialized_proto(bytes).map_err(|_| {
            DataError::Tokenizer { path: path.to_owned(), reason: UNREADABLE.to_owned() }
        })?;
        Ok(Self { processor, by_words: ends_words_at_spaces(&model) })
    }

    /// The words of `text`, which [`ccnet::normalize`] is applied to first.
    ///
    /// # Errors
    /// [`DataError::Codec`] when SentencePiece fails.
    pub fn words(&self, text: &str) -> Result<Vec<String>> {
        let mut words = Vec::new();
        self.parts(&ccnet::normalize(text), |part| {
            self.encode_part(part, |piece| words.push(piece.to_owned()))
        })?;
        Ok(words)
    }

    /// Appends the numbers that `id` gives to the words of `normalized`, a text that was
    /// normalized. Words it gives none for are left out.
    pub(super) fn ids(
        &self,
        normalized: &str,
        cache: &mut PieceCache,
        ids: &mut Vec<WordId>,
        mut id: impl FnMut(&str) -> Result<Option<WordId>>,
    ) -> Result<()> {
        self.parts(normalized, |part| {
            let key = WordCache::key(part.as_bytes(), 0, part.len());
            if let Some(found) = key.as_ref().and_then(|key| cache.words.get(key)) {
                ids.extend_from_slice(found);
                return Ok(());
            }
            let first = ids.len();
            let mut failed = None;
            self.encode_part(part, |piece| match id(piece) {
                Ok(id) => ids.extend(id),
                Err(error) => failed = Some(error),
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            if let Some(key) = key {
                cache.words.put(&key, &ids[first..]);
            }
            Ok(())
        })
    }

    /// Hands over the parts of a text that are encoded alone.
    fn parts(&self, text: &str, mut sink: impl FnMut(&str) -> Result<()>) -> Result<()> {
        if !self.by_words {
            return sink(text);
        }
        let mut rest = text;
        while !rest.is_empty() {
            let end = memchr::memchr(b' ', rest.as_bytes()).unwrap_or(rest.len());
            let (mut word, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            while word.len() > LONGEST_WORD {
                let (part, after) = word.split_at(word.floor_char_boundary(LONGEST_WORD));
                sink(part)?;
                word = after;
            }
            if !word.is_empty() {
                sink(word)?;
            }
        }
        Ok(())
    }

    fn encode_part(&self, part: &str, mut sink: impl FnMut(&str)) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        let pieces = self
            .processor
            .encode(part)
            .map_err(|_| codec("encode", "SentencePiece cannot cut this text"))?;
        for piece in pieces {
            sink(&piece.piece);
        }
        Ok(())
    }
}

/// Whether no piece crosses the space between two words and every word is encoded alike, at the
/// beginning of a text too.
fn ends_words_at_spaces(model: &Model) -> bool {
    let across = model.pieces.iter().any(|piece| {
        matches!(piece.kind, PieceType::Normal | PieceType::UserDefined | PieceType::Unused)
            && piece.text.char_indices().skip(1).any(|(at, _)| piece.text[at..].starts_with(SPACE))
    });
    !across
        && model.add_dummy_prefix
        && model.remove_extra_whitespaces
        && model.escape_whitespaces
        && !model.whitespace_as_suffix
}
