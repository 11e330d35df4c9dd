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

/// A value of a `generation_config.json` that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: found {found}, expected {expected}")]
pub struct UnfitDefault {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub expected: &'static str,
}

impl SamplingDefaults {
    /// The values of a `generation_config.json`; keys that it lacks keep OpenAI's.
    ///
    /// # Errors
    /// The first value that a request could not have either.
    pub fn of_generation_config(config: &Value) -> Result<Self, UnfitDefault> {
        let given = |key: &'static str| config.get(key).filter(|value| !value.is_null());
        let unfit =
            |key, found: &Value, expected| UnfitDefault { key, found: found.to_string(), expected };
        let number = |key, default: f32, expected, fits: fn(f64) -> bool| match given(key) {
            None => Ok(default),
            Some(found) => match found.as_f64().filter(|value| fits(*value)) {
                Some(value) => Ok(value as f32),
                None => Err(unfit(key, found, expected)),
            },
        };
        let whole = |key, default: Option<usize>, least: i64, expected| match given(key) {
            None => Ok(default),
            Some(found) => match found.as_i64().filter(|value| *value >= least) {
                // -1 is vLLM's way to keep all.
                Some(value) => Ok(Some(usize::try_from(value).unwrap_or(0))),
                None => Err(unfit(key, found, expected)),
            },
        };
        let default = Self::default();
        // `do_sample: false` is transformers' way to say greedy, but every file has it by default.
        Ok(Self {
            temperature: number(
                "temperature",
                default.temperature,
                "a number, 0 or more",
                |value| value >= 0.0 && value <= f64::from(f32::MAX),
            )?,
            top_p: number("top_p", default.top_p, "above 0, at most 1", |value| {
                value > 0.0 && value <= 1.0
            })?,
            top_k: whole("top_k", Some(default.top_k), -1, "a whole number; 0 or -1 keep all")?
                .unwrap_or(default.top_k),
            min_p: number("min_p", default.min_p, "from 0 to 1", |value| {
                (0.0..=1.0).contains(&value)
            })?,
            repetition_penalty: number(
                "repetition_penalty",
                default.repetition_penalty,
                "a number above 0",
                |value| value as f32 > 0.0 && value <= f64::from(f32::MAX),
            )?,
            max_tokens: whole("max_new_tokens", None, 1, "a whole number, 1 or more")?,
        })
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

    /// The name of a special token as text, for answers that show them.
    pub fn special_name(&self, id: u32) -> Option<&str> {
        let piece = self.tokenizer.piece(id)?;
        (piece.kind == PieceType::Control).then_some(piece.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_that_a_request_could_have() {
        let read = |config| SamplingDefaults::of_generation_config(&config);
        let some = json!({"temperature": 0.6, "top_k": -1, "top_p": null, "max_new_tokens": 7});
        let expected = SamplingDefaults {
            temperature: 0.6,
            max_tokens: Some(7),
            ..SamplingDefaults::default()
        };
        assert_eq!(read(some), Ok(expected));
        assert_eq!(read(Value::Null), Ok(SamplingDefaults::default()));
        for (key, value) in [
            ("temperature", json!(-1)),
            ("temperature", json!("hot")),
            ("temperature", json!(1e300)),
            ("top_p", json!(0)),
            ("top_p", json!(1.5)),
            ("top_k", json!(-2)),
            ("top_k", json!(2.5)),
            ("min_p", json!(2)),
            ("repetition_penalty", json!(0)),
            ("max_new_tokens", json!(0)),
        ] {
            let error = read(json!({ key: value })).map_err(|error| error.key);
            assert_eq!(error, Err(key), "{value}");
        }
    }
}
