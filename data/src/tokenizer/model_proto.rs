//! The part of SentencePiece's model file that is read here: the pieces and what decides how a
//! text is encoded. Field numbers are those of `sentencepiece_model.proto`.

use prost::Message;

use crate::error::{DataError, Result};
use std::path::Path;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PieceType {
    /// Text.
    Normal,
    /// What no other piece covers.
    Unknown,
    /// A mark such as the beginning of a document; has no text.
    Control,
    /// Text that is always a piece of its own.
    UserDefined,
    /// In the model but never used.
    Unused,
    /// One byte, for characters outside the vocabulary.
    Byte(u8),
}

impl PieceType {
    /// The type of a piece of one byte, such as `<0x0A>`.
    pub fn byte(text: &str) -> Option<Self> {
        byte_of(text).map(Self::Byte)
    }
}

/// One entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text; `▁` (U+2581) stands for a space.
    pub text: String,
    /// Its score: for BPE, minus the number of the merge.
    pub score: f32,
    /// What it is.
    pub kind: PieceType,
}

/// How a model encodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelType {
    /// Merging pairs.
    Bpe,
    /// Another way.
    Other,
}

/// What is read of a model.
pub(crate) struct Model {
    pub pieces: Vec<Piece>,
    pub model_type: ModelType,
    /// Characters outside the vocabulary are written as bytes.
    pub byte_fallback: bool,
    /// Spaces belong to the word before them.
    pub whitespace_as_suffix: bool,
    /// Spaces become `▁`.
    pub escape_whitespaces: bool,
    /// A space is put before the text.
    pub add_dummy_prefix: bool,
    /// No character is changed before encoding.
    pub identity: bool,
    /// Of several spaces one is left, and none at the ends.
    pub remove_extra_whitespaces: bool,
    /// What the unknown piece decodes to.
    pub unknown_surface: String,
}

/// SentencePiece's default for what the unknown piece decodes to.
const UNKNOWN_SURFACE: &str = " \u{2047} ";

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerProto>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerProto>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerProto {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "4")]
    vocab_size: Option<i32>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pad_id: Option<i32>,
    #[prost(string, optional, tag = "44")]
    unk_surface: Option<String>,
    #[prost(string, optional, tag = "45")]
    unk_piece: Option<String>,
    #[prost(string, optional, tag = "46")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47")]
    eos_piece: Option<String>,
    #[prost(string, optional, tag = "48")]
    pad_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerProto {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// Reads a model and checks what SentencePiece itself takes for granted.
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Model> {
    let fail = |reason: String| DataError::Tokenizer { path: path.to_owned(), reason };
    let proto = ModelProto::decode(bytes).map_err(|error| fail(error.to_string()))?;
    if proto.pieces.is_empty() {
        return Err(fail("it has no pieces".into()));
    }
    let normalizer = proto.normalizer.unwrap_or_default();
    let trainer = proto.trainer.unwrap_or_default();
    // Type 2 is BPE, type 1 (unigram) the default.
    let model_type = match trainer.model_type {
        Some(2) => ModelType::Bpe,
        _ => ModelType::Other,
    };
    let remove_extra_whitespaces = normalizer.remove_extra_whitespaces.unwrap_or(true);
    let mut unknown = 0;
    let mut pieces = Vec::with_capacity(proto.pieces.len());
    for (id, piece) in proto.pieces.into_iter().enumerate() {
        let text = piece.piece.unwrap_or_default();
        // Type 1 is the default of the field.
        let kind = match piece.kind.unwrap_or(1) {
            1 => PieceType::Normal,
            2 => PieceType::Unknown,
            3 => PieceType::Control,
            4 => PieceType::UserDefined,
            5 => PieceType::Unused,
            6 => PieceType::Byte(
                byte_of(&text).ok_or_else(|| fail(format!("piece {id}: {text:?} is no byte")))?,
            ),
            other => return Err(fail(format!("piece {id} is of unknown type {other}"))),
        };
        if text.is_empty() || text.contains('\0') {
            return Err(fail(format!("piece {id} is empty or has a zero byte")));
        }
        unknown += usize::from(kind == PieceType::Unknown);
        pieces.push(Piece { text, score: piece.score.unwrap_or(0.0), kind });
    }
    if unknown != 1 {
        return Err(fail(format!("{unknown} unknown pieces, expected 1")));
    }
    Ok(Model {
        pieces,
        model_type,
        byte_fallback: trainer.byte_fallback.unwrap_or(false),
        whitespace_as_suffix: trainer.treat_whitespace_as_suffix.unwrap_or(false),
        escape_whitespaces: normalizer.escape_whitespaces.unwrap_or(true),
        add_dummy_prefix: normalizer.add_dummy_prefix.unwrap_or(true),
        identity: normalizer.precompiled_charsmap.unwrap_or_default().is_empty()
            && !remove_extra_whitespaces,
        remove_extra_whitespaces,
        unknown_surface: trainer.unk_surface.unwrap_or_else(|| UNKNOWN_SURFACE.to_owned()),
    })
}

/// The byte of a piece such as `<0x0A>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// What a BPE model that changes no text is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct BpeModel<'a> {
    /// The vocabulary, in the order of the ids.
    pub pieces: &'a [Piece],
    /// Id of the mark before a document.
    pub bos: Option<u32>,
    /// Id of the mark behind a document.
    pub eos: Option<u32>,
    /// Id of the mark that fills up a batch.
    pub padding: Option<u32>,
    /// Whether a space is put before the text.
    pub add_dummy_prefix: bool,
}

impl BpeModel<'_> {
    /// The bytes of a SentencePiece `.model` file. Characters outside the vocabulary are written as
    /// bytes if it has pieces of bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let number = |kind: PieceType| match kind {
            PieceType::Normal => 1,
            PieceType::Unknown => 2,
            PieceType::Control => 3,
            PieceType::UserDefined => 4,
            PieceType::Unused => 5,
            PieceType::Byte(_) => 6,
        };
        let pieces = self.pieces.iter().map(|piece| PieceProto {
            piece: Some(piece.text.clone()),
            score: Some(piece.score),
            kind: Some(number(piece.kind)),
        });
        let place = |wanted: PieceType| self.pieces.iter().position(|piece| piece.kind == wanted);
        let unknown = place(PieceType::Unknown).map(|id| id as u32);
        // −1 says that there is no such mark.
        let id = |id: Option<u32>| Some(id.map_or(-1, |id| id as i32));
        let name = |id: Option<u32>| Some(self.pieces.get(id? as usize)?.text.clone());
        let proto = ModelProto {
            trainer: Some(TrainerProto {
                model_type: Some(2),
                vocab_size: Some(self.pieces.len() as i32),
                byte_fallback: Some(
                    self.pieces.iter().any(|piece| matches!(piece.kind, PieceType::Byte(_))),
                ),
                unk_id: id(unknown),
                bos_id: id(self.bos),
                eos_id: id(self.eos),
                pad_id: id(self.padding),
                unk_piece: name(unknown),
                bos_piece: name(self.bos),
                eos_piece: name(self.eos),
                pad_piece: name(self.padding),
                ..TrainerProto::default()
            }),
            normalizer: Some(NormalizerProto {
                name: Some("identity".into()),
                add_dummy_prefix: Some(self.add_dummy_prefix),
                remove_extra_whitespaces: Some(false),
                escape_whitespaces: Some(true),
                ..NormalizerProto::default()
            }),
            pieces: pieces.collect(),
        };
        proto.encode_to_vec()
    }
}

/// A BPE model of these pieces with byte fallback and without normalization.
#[cfg(test)]
pub(crate) fn write_bpe(pieces: &[Piece], add_dummy_prefix: bool) -> Vec<u8> {
    let mark = |text: &str| {
        let id = pieces.iter().position(|piece| piece.text == text)?;
        (pieces[id].kind == PieceType::Control).then_some(id as u32)
    };
    let (bos, eos) = (mark("<s>"), mark("</s>"));
    let model = BpeModel { pieces, bos, eos, padding: None, add_dummy_prefix };
    let mut proto = ModelProto::decode(&*model.to_bytes()).unwrap_or_default();
    if let Some(trainer) = &mut proto.trainer {
        trainer.byte_fallback = Some(true);
    }
    proto.encode_to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn byte_pieces_are_read() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xFF>"), Some(255));
        assert_eq!(byte_of("<0xF>"), None);
        assert_eq!(byte_of("<s>"), None);
    }

    #[test]
    fn rubbish_is_an_error() {
        for bytes in [&b""[..], b"\x0a\xff\xff\xff\xff\x0f", b"not a model", &[0x0a, 0x00]] {
            assert!(read(Path::new("m.model"), bytes).is_err());
        }
    }
}
