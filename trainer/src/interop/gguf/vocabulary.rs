//! The tokenizer as keys and values of a GGUF file, and back.

use std::path::Path;

use altiplano_data::Tokenizer;
use altiplano_data::tokenizer::{BpeModel, Piece, PieceType};

use super::container::{Cursor, value_type};
use super::open::Header;
use super::write::Keys;
use super::{Value, key};
use crate::checkpoint::hugging_face::{SpecialTokens, TOKENIZER_FILE};
use crate::error::Result;
use crate::interop::stored_model::{TextSettings, file_error};

/// The kind of tokenizer that llama.cpp computes from pieces and scores.
const MODEL: &str = "llama";
/// Score of a token that fills up the vocabulary.
const FILLER_SCORE: f32 = -10_000.0;

/// Text of the token `id` that fills up a vocabulary larger than its tokenizer.
fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Numbers of the kinds of tokens.
fn number(kind: PieceType) -> i32 {
    match kind {
        PieceType::Normal => 1,
        PieceType::Unknown => 2,
        PieceType::Control => 3,
        PieceType::UserDefined => 4,
        PieceType::Byte(_) => 6,
        // What is not known has no use.
        _ => 5,
    }
}

/// Writes the tokenizer of a model with `vocab_size` tokens.
pub(super) fn write(
    keys: &mut Keys,
    tokenizer: &Tokenizer,
    tokens: SpecialTokens,
    text: &TextSettings,
    vocab_size: usize,
) {
    let pieces: Vec<&Piece> = (0..vocab_size as u32).map_while(|id| tokenizer.piece(id)).collect();
    let fillers = pieces.len()..vocab_size;
    let texts = pieces.iter().map(|piece| piece.text.clone());
    keys.text(key::TOKENIZER_MODEL, MODEL);
    keys.text(key::TOKENIZER_PRE, "default");
    keys.texts(key::TOKENS, texts.chain(fillers.clone().map(filler)));
    let scores = pieces.iter().map(|piece| piece.score);
    keys.floats(key::SCORES, scores.chain(fillers.clone().map(|_| FILLER_SCORE)));
    let kinds = pieces.iter().map(|piece| number(piece.kind));
    keys.integers(key::TOKEN_TYPES, kinds.chain(fillers.map(|_| number(PieceType::Unused))));
    keys.u32(key::BOS, tokens.bos);
    keys.u32(key::EOS, tokens.eos);
    // What llama.cpp takes for granted is left to it.
    if let Some(unknown) = tokenizer.unk_id().filter(|id| *id != 0) {
        keys.u32(key::UNKNOWN, unknown);
    }
    if let Some(padding) = text.padding {
        keys.u32(key::PADDING, padding);
    }
    keys.bool(key::ADD_BOS, text.add_bos);
    keys.bool(key::ADD_EOS, text.add_eos);
    if !tokenizer.adds_dummy_prefix() {
        keys.bool(key::ADD_SPACE_PREFIX, false);
    }
    if let Some(template) = &text.chat_template {
        keys.text(key::CHAT_TEMPLATE, template);
    }
}

/// What a file says of text.
pub(super) struct Vocabulary {
    pub tokenizer: Tokenizer,
    pub tokens: SpecialTokens,
    pub text: TextSettings,
    /// Tokens, those that fill up included.
    pub size: usize,
}

/// Rebuilds the tokenizer of a file.
pub(super) fn read(header: &Header) -> Result<Vocabulary> {
    let model = header.text(key::TOKENIZER_MODEL)?;
    if model != MODEL {
        return Err(header.unfit(key::TOKENIZER_MODEL, format!("{model:?}"), "\"llama\""));
    }
    let mut pieces = read_pieces(header)?;
    let size = pieces.len();
    let filled_up =
        |(id, piece): (usize, &Piece)| piece.kind == PieceType::Unused && piece.text == filler(id);
    while pieces.last().is_some_and(|piece| filled_up((pieces.len() - 1, piece))) {
        pieces.pop();
    }
    let id = |key: &'static str| match header.optional_u32(key)? {
        Some(id) if id as usize >= size => {
            Err(header.unfit(key, id.to_string(), format!("an id below {size}")))
        }
        id => Ok(id),
    };
    let default = SpecialTokens::default();
    let tokens = SpecialTokens {
        bos: id(key::BOS)?.unwrap_or(default.bos),
        eos: id(key::EOS)?.unwrap_or(default.eos),
    };
    let text = TextSettings {
        add_bos: header.flag(key::ADD_BOS, true)?,
        add_eos: header.flag(key::ADD_EOS, false)?,
        padding: id(key::PADDING)?,
        chat_template: header.optional_text(key::CHAT_TEMPLATE)?,
    };
    // A mark is a control piece, or SentencePiece does not take it for one.
    let mark = |id: u32| {
        pieces.get(id as usize).filter(|piece| piece.kind == PieceType::Control).map(|_| id)
    };
    let bytes = BpeModel {
        bos: mark(tokens.bos),
        eos: mark(tokens.eos),
        padding: text.padding.and_then(mark),
        add_dummy_prefix: header.flag(key::ADD_SPACE_PREFIX, true)?,
        pieces: &pieces,
    }
    .to_bytes();
    let tokenizer = Tokenizer::from_bytes(Path::new(TOKENIZER_FILE), &bytes).map_err(|error| {
        file_error(header.path(), format!("its tokens make no tokenizer: {error}"))
    })?;
    Ok(Vocabulary { tokenizer, tokens, text, size })
}

fn read_pieces(header: &Header) -> Result<Vec<Piece>> {
    let (mut texts, count) = array(header, key::TOKENS, value_type::STRING, "strings")?;
    let (mut scores, score_count) = array(header, key::SCORES, value_type::F32, "f32")?;
    let (mut kinds, kind_count) = array(header, key::TOKEN_TYPES, value_type::I32, "i32")?;
    for (key, found) in [(key::SCORES, score_count), (key::TOKEN_TYPES, kind_count)] {
        if found != count {
            return Err(header.unfit(key, format!("{found} values"), format!("{count}")));
        }
    }
    let broken = |reason: String| file_error(header.path(), reason);
    let mut pieces = Vec::new();
    for id in 0..count {
        let text = texts.text(key::TOKENS).map_err(broken)?;
        let score = scores.f32(key::SCORES).map_err(broken)?;
        let kind = match kinds.i32(key::TOKEN_TYPES).map_err(broken)? {
            1 => PieceType::Normal,
            2 => PieceType::Unknown,
            3 => PieceType::Control,
            4 => PieceType::UserDefined,
            5 => PieceType::Unused,
            6 => PieceType::byte(text).ok_or_else(|| {
                header.unfit(key::TOKENS, format!("{text:?} for {id}"), "a byte such as <0x0A>")
            })?,
            other => {
                let found = format!("{other} for token {id}");
                return Err(header.unfit(key::TOKEN_TYPES, found, "1 to 6"));
            }
        };
        if !score.is_finite() {
            let found = format!("{score} for token {id}");
            return Err(header.unfit(key::SCORES, found, "numbers"));
        }
        pieces.push(Piece { text: text.to_string(), score, kind });
    }
    Ok(pieces)
}

/// The elements of an array, and how many there are.
fn array<'a>(
    header: &'a Header,
    key: &'static str,
    element: u32,
    name: &str,
) -> Result<(Cursor<'a>, usize)> {
    match header.value(key)? {
        Value::Array { element: found, count, bytes } if *found == element => {
            Ok((Cursor::new(header.bytes(), bytes.start), *count))
        }
        other => Err(header.unfit(key, format!("{other:?}"), format!("an array of {name}"))),
    }
}
