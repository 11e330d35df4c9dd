//! Probabilities of tokens, in the shapes of completions and of chat.

use std::sync::Arc;

use altiplano_data::StreamDecoder;
use altiplano_model::infer::{ScoredToken, TokenLogprob};
use serde_json::{Map, Value, json};

use crate::choice::PlacedToken;
use crate::served_model::ServedModel;

/// JSON has no −∞.
const LEAST: f32 = -9999.0;

fn clamped(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

/// How tokens are written.
#[derive(Debug, Clone, Copy)]
pub struct TokenNames<'a> {
    /// The vocabulary.
    pub model: &'a ServedModel,
    /// As `token_id:123`.
    pub as_ids: bool,
}

impl TokenNames<'_> {
    fn name(&self, id: u32) -> String {
        if self.as_ids { format!("token_id:{id}") } else { self.model.token_text(id) }
    }

    /// The likeliest tokens and the token itself. Where two have one name, the likelier one stays.
    fn top(&self, scored: &ScoredToken) -> Value {
        let mut top = Map::new();
        let all = scored.top.iter().chain([&scored.token]);
        for TokenLogprob { id, logprob, .. } in all {
            let (name, logprob) = (self.name(*id), clamped(*logprob));
            let known = top.get(&name).and_then(Value::as_f64);
            if known.is_none_or(|known| known < f64::from(logprob)) {
                top.insert(name, json!(logprob));
            }
        }
        Value::Object(top)
    }

    /// The shape of chat: a list of tokens with their bytes.
    pub fn chat(&self, tokens: &[PlacedToken], count: usize) -> Value {
        let one = |token: &TokenLogprob| {
            json!({
                "token": self.name(token.id),
                "logprob": clamped(token.logprob),
                "bytes": self.model.token_bytes(token.id),
            })
        };
        let entry = |placed: &PlacedToken| {
            let mut entry = one(&placed.scored.token);
            entry["top_logprobs"] = placed.scored.top.iter().take(count).map(one).collect();
            entry
        };
        json!({"content": tokens.iter().map(entry).collect::<Vec<_>>()})
    }

    /// vLLM's `prompt_logprobs`: null, then an object for every further token of the prompt.
    pub fn of_prompt(&self, scored: &[ScoredToken]) -> Value {
        let entry = |scored: &ScoredToken| {
            let mut entry = Map::new();
            for token in scored.top.iter().chain([&scored.token]) {
                let value = json!({
                    "logprob": clamped(token.logprob),
                    "rank": token.rank,
                    "decoded_token": self.model.token_text(token.id),
                });
                entry.insert(token.id.to_string(), value);
            }
            Value::Object(entry)
        };
        let first = (!scored.is_empty()).then_some(Value::Null);
        first.into_iter().chain(scored.iter().map(entry)).collect()
    }
}

/// The shape of completions: four lists of equal length.
#[derive(Debug, Default, Clone)]
pub struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Value>,
}

impl CompletionLogprobs {
    /// Appends the tokens of a prompt; the first one has no probability.
    pub fn push_prompt(
        &mut self,
        names: TokenNames<'_>,
        prompt: &Arc<[u32]>,
        scored: &[ScoredToken],
    ) {
        let mut decoder = StreamDecoder::new(&names.model.tokenizer);
        let mut offset = 0;
        for (index, id) in prompt.iter().enumerate() {
            self.text_offset.push(offset);
            self.tokens.push(names.name(*id));
            let scored = index.checked_sub(1).and_then(|index| scored.get(index));
            self.token_logprobs.push(scored.map(|scored| clamped(scored.token.logprob)));
            self.top_logprobs.push(scored.map_or(Value::Null, |scored| names.top(scored)));
            offset += decoder.push(*id).chars().count();
        }
    }

    /// Appends generated tokens, which begin `offset` characters into the text.
    pub fn push(&mut self, names: TokenNames<'_>, tokens: &[PlacedToken], offset: usize) {
        for placed in tokens {
            self.text_offset.push(offset + placed.offset);
            self.tokens.push(names.name(placed.scored.token.id));
            self.token_logprobs.push(Some(clamped(placed.scored.token.logprob)));
            self.top_logprobs.push(names.top(&placed.scored));
        }
    }

    /// OpenAI's object.
    pub fn to_json(&self) -> Value {
        json!({
            "text_offset": self.text_offset,
            "token_logprobs": self.token_logprobs,
            "tokens": self.tokens,
            "top_logprobs": self.top_logprobs,
        })
    }
}
