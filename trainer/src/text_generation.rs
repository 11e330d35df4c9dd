//! Text from a model: prompt to ids, ids to text as they come, stop strings.

use altiplano_data::chat::StopStrings;
use altiplano_data::{StreamDecoder, Tokenizer};
use altiplano_model::device::in_pool;
use altiplano_model::infer::{FinishReason, Sampler, generate};
use altiplano_model::llama::Llama;
use serde::Serialize;

use crate::error::Result;

/// A finished generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GeneratedText {
    /// The text after the prompt, without the stop string that ended it.
    pub text: String,
    /// The ids generated, all that were needed to see the end.
    pub token_ids: Vec<u32>,
    /// `stop` (end of text or a stop string) or `length` (`max_tokens` or the context).
    pub finish_reason: &'static str,
}

/// Continues `prompt`, handing text to `on_text` as soon as it is certain: never half a character,
/// never the beginning of a stop string. `on_text` says whether to go on; it gets an empty piece
/// where a token made no text certain.
///
/// # Errors
/// When the prompt does not fit into the context or cannot be encoded.
pub fn generate_text(
    model: &Llama,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_tokens: usize,
    stop: &[String],
    sampler: &mut Sampler,
    mut on_text: impl FnMut(&str) -> bool + Send,
) -> Result<GeneratedText> {
    let mut ids = tokenizer.encode_document(prompt, true, false)?;
    if ids.is_empty() {
        // A tokenizer without a begin mark and an empty prompt: the end mark starts a new text.
        ids.extend(tokenizer.eos_id());
    }
    let prompt: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let eos = tokenizer.eos_id().map(|id| id as i32);

    let mut decoder = StreamDecoder::after_prompt(tokenizer);
    let mut stops = StopStrings::new(stop, false);
    let mut token_ids = Vec::new();
    let mut text = String::new();
    let mut emit = |piece: String, text: &mut String| {
        text.push_str(&piece);
        on_text(&piece)
    };
    let end = in_pool(model.device(), || {
        generate(model, &prompt, max_tokens, eos, sampler, |id| {
            token_ids.push(id as u32);
            let piece = stops.push(&decoder.push(id as u32));
            emit(piece, &mut text) && stops.matched().is_none()
        })
    })?;
    if stops.matched().is_none() {
        let last = stops.push(&decoder.finish());
        emit(last, &mut text);
        let held = stops.finish();
        emit(held, &mut text);
    }
    let finish_reason = match end {
        _ if stops.matched().is_some() => "stop",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    };
    Ok(GeneratedText { text, token_ids, finish_reason })
}
