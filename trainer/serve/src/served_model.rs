//! The model as clients see it: its names, its text side and its limits.

use std::time::{SystemTime, UNIX_EPOCH};

use altiplano_data::Tokenizer;
use altiplano_data::chat::{ChatTemplate, SpecialTokens};
use altiplano_data::tokenizer::PieceType;
use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};

/// Most bytes of a text that is encoded: it takes about 70 times its length of memory, and more than this
/// fits into no context.
const LARGEST_TEXT: usize = 4 << 20;

/// Refuses a text that is too long to be encoded.
///
/// # Errors
/// 400 that names the field.
pub fn check_length(field: &str, text: &str) -> ApiResult<()> {
    if text.len() <= LARGEST_TEXT {
        return Ok(());
    }
    let message = format!("{} bytes of text, the limit is {LARGEST_TEXT}", text.len());
    Err(ApiError::field(field, message))
}

/// Sampling where a request says nothing: `generation_config.json`'s values, else OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    /// Logits are divided by it.
    pub temperature: f32,
    /// Share of the probability that is kept.
    pub top_p: f32,
    /// Tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Least share of the likeliest token's probability.
    pub min_p: f32,
    /// Penalty of tokens that were there.
    pub repetition_penalty: f32,
    /// Most new tokens, where the model's makers limit them.
    pub max_tokens: Option<usize>,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: None,
        }
    }
}

impl SamplingDefaults {
    /// The values of a `generation_config.json`; keys that it lacks keep OpenAI's.
    pub fn of_generation_config(config: &Value) -> Self {
        let number = |key: &str| config.get(key).and_then(Value::as_f64);
        let whole = |key: &str| config.get(key).and_then(Value::as_u64).map(|value| value as usize);
        let default = Self::default();
        // `do_sample: false` is transformers' way to say greedy, but every file has it by default.
        Self {
            temperature: number("temperature").map_or(default.temperature, |value| value as f32),
            top_p: number("top_p").map_or(default.top_p, |value| value as f32),
            top_k: whole("top_k").unwrap_or(default.top_k),
            min_p: number("min_p").map_or(default.min_p, |value| value as f32),
            repetition_penalty: number("repetition_penalty")
                .map_or(default.repetition_penalty, |value| value as f32),
            max_tokens: whole("max_new_tokens"),
        }
    }
}

/// The model that a server serves.
#[derive(Debug)]
pub struct ServedModel {
    /// Names that a request may give; the first one is the name in answers.
    pub names: Vec<String>,
    /// Where it was read from.
    pub root: String,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Its special tokens.
    pub specials: SpecialTokens,
    /// How conversations become text; without one there is no chat.
    pub template: Option<ChatTemplate>,
    /// `tokenizer_config.json`, or what stands for it.
    pub tokenizer_config: Value,
    /// Tokens of a prompt and its answer together.
    pub max_model_len: usize,
    /// Ids the model knows.
    pub vocab_size: usize,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Sampling where a request says nothing.
    pub defaults: SamplingDefaults,
    /// Seconds since 1970 when the server started.
    pub created: u64,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl ServedModel {
    /// The name in answers.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Whether a request means this model; one that names none does.
    ///
    /// # Errors
    /// 404 with the names there are.
    pub fn check_name(&self, name: Option<&str>) -> ApiResult<()> {
        match name {
            None | Some("") => Ok(()),
            Some(name) if self.names.iter().any(|known| known == name) => Ok(()),
            Some(name) => Err(ApiError {
                param: Some("model".to_owned()),
                ..ApiError::not_found(format!(
                    "the model {name:?} does not exist; this server has {}",
                    self.names.join(", ")
                ))
            }),
        }
    }

    /// The entries of `/v1/models`.
    pub fn cards(&self) -> Vec<Value> {
        let card = |name: &String| {
            json!({
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "altiplano",
                "root": self.root,
                "parent": null,
                "max_model_len": self.max_model_len,
            })
        };
        self.names.iter().map(card).collect()
    }

    /// The ids of a prompt; of none, the begin token alone.
    ///
    /// # Errors
    /// 400 when the tokenizer cannot encode it.
    pub fn encode_prompt(&self, text: &str, add_special_tokens: bool) -> ApiResult<Vec<u32>> {
        check_length("prompt", text)?;
        let mut ids = self.tokenizer.encode_document(text, add_special_tokens, false)?;
        if ids.is_empty() {
            // The begin mark alone is the beginning of any text; a tokenizer without one has the end
            // mark of the text before.
            let mark = self.tokenizer.bos_id().or(self.tokenizer.eos_id());
            ids.extend(mark.or(self.eos_token_ids.first().copied()));
        }
        Ok(ids)
    }

    /// How a token is written in answers about single tokens: its text, or its name where it has
    /// none. A byte that is no character alone is `bytes:\xe2`.
    pub fn token_text(&self, id: u32) -> String {
        let Some(piece) = self.tokenizer.piece(id) else {
            return format!("<id {id}>");
        };
        match piece.kind {
            PieceType::Byte(byte) if byte.is_ascii() => char::from(byte).to_string(),
            PieceType::Byte(byte) => format!("bytes:\\x{byte:02x}"),
            _ => piece.text.replace('\u{2581}', " "),
        }
    }

    /// The bytes of a token's text; none for a special token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.tokenizer.piece(id) {
            Some(piece) => match piece.kind {
                PieceType::Byte(byte) => vec![byte],
                PieceType::Control => Vec::new(),
                _ => piece.text.replace('\u{2581}', " ").into_bytes(),
            },
            None => Vec::new(),
        }
    }

    /// Whether a token is special: it has no text of its own.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.piece(id).is_some_and(|piece| piece.kind == PieceType::Control)
    }

    /// The name of a special token as text, for answers that show them.
    pub fn special_name(&self, id: u32) -> Option<&str> {
        let piece = self.tokenizer.piece(id)?;
        (piece.kind == PieceType::Control).then_some(piece.text.as_str())
    }
}
