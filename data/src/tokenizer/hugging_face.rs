//! Tokenizers of other kinds than SentencePiece's, from a `tokenizer.json`, by the `tokenizers` crate:
//! the byte-level BPE of LLaMA 3 and SmolLM, and whatever else the crate loads.
//!
//! The file comes from anywhere, so its size, its ids and what it would do to a text are checked, and
//! a panic of the crate while it reads the file is an error with the file's name.
//!
//! The files beside it say which token begins a text and which ends it: `tokenizer_config.json` by
//! name, or else `config.json` by number.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer as Encoder;

use super::codec;
use super::growth;
use super::model_proto::{Piece, PieceType};
use crate::error::{DataError, Result};

/// Most bytes of a file: five times those of the largest in use.
const MOST_BYTES: u64 = 200 << 20;
/// Ids are below this: eight times the largest vocabulary in use.
const MOST_IDS: u32 = 1 << 21;
/// Most bytes of a file beside it.
const MOST_SIDE_BYTES: u64 = 16 << 20;

/// How the pieces of a vocabulary spell text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// A character for every byte (GPT-2's table).
    ByteLevel,
    /// `▁` for a space and `<0x0A>` for a byte, as SentencePiece; whether the first space of a text
    /// is dropped.
    Spaces {
        /// Whether a space before the text is the tokenizer's own.
        drops_first: bool,
    },
    /// Another way, which the crate alone knows.
    Other,
}

/// What encodes and decodes with a `tokenizer.json`.
pub(super) struct HuggingFace {
    encoder: Encoder,
    pub(super) spelling: Spelling,
}

/// A file that was read.
pub(super) struct Loaded {
    pub codec: HuggingFace,
    /// The vocabulary, added tokens included; ids that no token has are unused.
    pub pieces: Vec<Piece>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
}

/// What of a file is read here beside the crate.
#[derive(Deserialize)]
struct Settings {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    model: ModelSettings,
}

#[derive(Deserialize)]
struct ModelSettings {
    dropout: Option<f64>,
    unk_token: Option<String>,
}

/// Reads the file at `path`, whose size and kind are checked first.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_bounded(path, MOST_BYTES)
}

/// The bytes of a plain file of at most `most` bytes.
fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let fail = |reason: String| DataError::Tokenizer { path: path.to_owned(), reason };
    let metadata = fs::metadata(path).map_err(DataError::io(path))?;
    if !metadata.is_file() {
        return Err(fail("is not a plain file but a directory or a device".into()));
    }
    if metadata.len() > most {
        return Err(fail(format!("has {} bytes, expected at most {most}", metadata.len())));
    }
    fs::read(path).map_err(DataError::io(path))
}

/// Reads `bytes`, the content of the `tokenizer.json` at `path`.
pub(super) fn load(path: &Path, bytes: &[u8]) -> Result<Loaded> {
    let fail = |reason: String| DataError::Tokenizer { path: path.to_owned(), reason };
    if bytes.len() as u64 > MOST_BYTES {
        return Err(fail(format!("has {} bytes, expected at most {MOST_BYTES}", bytes.len())));
    }
    let settings: Settings = serde_json::from_slice(bytes)
        .map_err(|error| fail(format!("is not a tokenizer.json: {error}")))?;
    if let Some(dropout) = settings.model.dropout.filter(|dropout| *dropout != 0.0) {
        let reason = "expected null: ids would be drawn at random";
        return Err(fail(format!("model.dropout: found {dropout}, {reason}")));
    }
    for (part, steps) in [
        ("normalizer", &settings.normalizer),
        ("pre_tokenizer", &settings.pre_tokenizer),
        ("decoder", &settings.decoder),
    ] {
        growth::check(part, steps).map_err(fail)?;
    }
    // The crate unwraps in places, and what it reads is a stranger's file: a panic is an error of the
    // file. Nothing of what it was making is used afterwards.
    let made = catch_unwind(AssertUnwindSafe(|| {
        let mut encoder = Encoder::from_bytes(bytes).map_err(|error| error.to_string())?;
        // Text that looks like a special token is text.
        encoder.set_encode_special_tokens(true);
        encoder.with_truncation(None).map_err(|error| error.to_string())?;
        encoder.with_padding(None);
        encoder.encode_fast("a \u{e9}\n1", false).map_err(|error| error.to_string())?;
        Ok::<_, String>(encoder)
    }));
    let encoder = match made {
        Ok(made) => made.map_err(|reason| fail(format!("cannot be used: {reason}")))?,
        Err(_) => return Err(fail("cannot be used: the tokenizers crate gave up on it".into())),
    };
    let spelling = spelling(&settings.decoder);
    let pieces = pieces(&encoder, spelling).map_err(fail)?;
    let marks = Marks::read(path, &encoder, pieces.len())?;
    let unk = settings.model.unk_token.and_then(|token| encoder.token_to_id(&token));
    let codec = HuggingFace { encoder, spelling };
    Ok(Loaded { codec, pieces, bos: marks.bos, eos: marks.eos, unk })
}

/// How a decoder joins pieces. Decoders may be nested.
fn spelling(decoder: &Value) -> Spelling {
    let mut kinds = Vec::new();
    collect_kinds(decoder, &mut kinds);
    let has = |kind: &str| kinds.iter().any(|(found, _)| *found == kind);
    if kinds.iter().all(|(kind, _)| *kind == "ByteLevel") && has("ByteLevel") {
        return Spelling::ByteLevel;
    }
    let simple = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
    let spaces = |decoder: &Value| match decoder["type"].as_str() {
        Some("Replace") => {
            decoder["pattern"]["String"] == super::SPACE && decoder["content"] == " "
        }
        Some("Metaspace") => decoder["replacement"] == super::SPACE,
        Some("Strip") => decoder["content"] == " " && decoder["start"] == 1 && decoder["stop"] == 0,
        _ => true,
    };
    let joins = has("Replace") || has("Metaspace");
    if joins && kinds.iter().all(|(kind, decoder)| simple.contains(kind) && spaces(decoder)) {
        let prepends = |decoder: &Value| match decoder["prepend_scheme"].as_str() {
            Some(scheme) => scheme != "never",
            None => decoder["add_prefix_space"].as_bool().unwrap_or(true),
        };
        let metaspace =
            |(kind, decoder): &(&str, &Value)| *kind == "Metaspace" && prepends(decoder);
        return Spelling::Spaces { drops_first: has("Strip") || kinds.iter().any(metaspace) };
    }
    Spelling::Other
}

/// Kinds and settings of a decoder and those inside it.
fn collect_kinds<'a>(decoder: &'a Value, kinds: &mut Vec<(&'a str, &'a Value)>) {
    match decoder["type"].as_str() {
        Some("Sequence") => {
            let inner = decoder["decoders"].as_array().into_iter().flatten();
            inner.for_each(|decoder| collect_kinds(decoder, kinds));
        }
        Some(kind) => kinds.push((kind, decoder)),
        None => kinds.push(("none", decoder)),
    }
}

/// Every token by its id.
fn pieces(encoder: &Encoder, spelling: Spelling) -> std::result::Result<Vec<Piece>, String> {
    let vocabulary = encoder.get_vocab(true);
    let Some(last) = vocabulary.values().max().copied() else {
        return Err("has no tokens".into());
    };
    if last >= MOST_IDS {
        return Err(format!("has the id {last}, expected ids below {MOST_IDS}"));
    }
    let unused = Piece { text: String::new(), score: 0.0, kind: PieceType::Unused };
    let mut pieces = vec![unused; last as usize + 1];
    let added = encoder.get_added_tokens_decoder();
    for (text, id) in vocabulary {
        let byte = match spelling {
            Spelling::Spaces { .. } => PieceType::byte(&text),
            _ => None,
        };
        let kind = match added.get(&id) {
            Some(token) if token.special => PieceType::Control,
            Some(_) => PieceType::UserDefined,
            None => byte.unwrap_or(PieceType::Normal),
        };
        pieces[id as usize] = Piece { text, score: 0.0, kind };
    }
    Ok(pieces)
}

/// The tokens before and behind a text.
struct Marks {
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Marks {
    /// By the names in `tokenizer_config.json`; the ids of `config.json` where it has none.
    fn read(path: &Path, encoder: &Encoder, vocab_size: usize) -> Result<Self> {
        let side = |name: &str| -> Result<Value> {
            let path = path.with_file_name(name);
            if !path.exists() {
                return Ok(Value::Null);
            }
            let bytes = read_bounded(&path, MOST_SIDE_BYTES)?;
            serde_json::from_slice(&bytes).map_err(|error| DataError::Tokenizer {
                reason: format!("is not JSON: {error}"),
                path,
            })
        };
        let names_file = path.with_file_name("tokenizer_config.json");
        let (names, numbers) = (side("tokenizer_config.json")?, side("config.json")?);
        let mark = |name_key: &str, id_key: &str| -> Result<Option<u32>> {
            // A string, or an added token with its settings.
            let name = match &names[name_key] {
                Value::Object(token) => token.get("content").and_then(Value::as_str),
                other => other.as_str(),
            };
            if let Some(name) = name {
                let missing = || DataError::Tokenizer {
                    path: names_file.clone(),
                    reason: format!("{name_key}: found {name:?}, which is not in tokenizer.json"),
                };
                return encoder.token_to_id(name).map(Some).ok_or_else(missing);
            }
            // A number, or a list whose first is the mark of a document.
            let id = match &numbers[id_key] {
                Value::Array(ids) => ids.first().and_then(Value::as_u64),
                other => other.as_u64(),
            };
            let known = |id: &u64| usize::try_from(*id).is_ok_and(|id| id < vocab_size);
            Ok(id.filter(known).map(|id| id as u32))
        };
        Ok(Self {
            bos: mark("bos_token", "bos_token_id")?,
            eos: mark("eos_token", "eos_token_id")?,
        })
    }
}

impl HuggingFace {
    /// Appends the ids of `text`, without marks.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let encoded = self
            .encoder
            .encode_fast(text, false)
            .map_err(|error| codec("encode", &error.to_string()))?;
        ids.extend(encoded.get_ids());
        Ok(())
    }

    /// The ids of `text`, without marks, each with the first byte of the text it stands for and the
    /// one behind the last.
    pub(super) fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, (usize, usize))>> {
        let encoded = self
            .encoder
            .encode(text, false)
            .map_err(|error| codec("encode", &error.to_string()))?;
        Ok(encoded.get_ids().iter().copied().zip(encoded.get_offsets().iter().copied()).collect())
    }

    /// The text of `ids`, without that of special tokens.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        self.encoder.decode(ids, true).map_err(|error| codec("decode", &error.to_string()))
    }
}

/// The bytes that GPT-2's table writes as `text`; the text itself if a character is not of it, as
/// the crate has it.
pub(super) fn bytes_of(text: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The byte that the table writes as `character`: visible ones of Latin 1 stand for themselves, the
/// others have the characters from U+0100 on, in order.
fn byte_of(character: char) -> Option<u8> {
    let visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => Some(code as u8).filter(visible),
        code @ 0x100..=0x143 => {
            (0..=255u8).filter(|byte| !visible(byte)).nth((code - 0x100) as usize)
        }
        _ => None,
    }
}

/// What one id after the other becomes where only the crate knows how pieces are joined: the text of
/// a window of ids, less what was said of it before.
#[derive(Debug, Default)]
pub(super) struct Window {
    ids: Vec<u32>,
    /// How many of `ids` have been said.
    said: usize,
}

impl Window {
    /// The text that `id` completes.
    pub(super) fn push(&mut self, codec: &HuggingFace, id: u32) -> String {
        self.ids.push(id);
        let (before, now) = self.texts(codec);
        // The end may be the beginning of a character.
        match now.strip_prefix(before.as_str()) {
            Some(new) if !new.is_empty() && !now.ends_with(char::REPLACEMENT_CHARACTER) => {
                let new = new.to_owned();
                self.ids.drain(..self.said);
                self.said = self.ids.len();
                new
            }
            _ => String::new(),
        }
    }

    /// What is left.
    pub(super) fn finish(&self, codec: &HuggingFace) -> String {
        let (before, now) = self.texts(codec);
        now.strip_prefix(before.as_str()).unwrap_or_default().to_owned()
    }

    /// The text of the ids that were said and of all.
    fn texts(&self, codec: &HuggingFace) -> (String, String) {
        let text = |ids: &[u32]| codec.decode(ids).unwrap_or_default();
        (text(&self.ids[..self.said]), text(&self.ids))
    }
}
