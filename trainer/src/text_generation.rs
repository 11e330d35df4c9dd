//! Text from a model: prompt to ids, ids to text as they come, stop strings.

use altiplano_data::{StreamDecoder, Tokenizer};
use altiplano_model::device::in_pool;
use altiplano_model::infer::{Choosable, FinishReason, InferenceModel, Sampler, generate};
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
/// A token of `end_tokens` ends the text.
///
/// # Errors
/// When the prompt does not fit into the context or cannot be encoded.
#[expect(clippy::too_many_arguments, reason = "a model, its text, and a request")]
pub fn generate_text(
    model: &InferenceModel,
    tokenizer: &Tokenizer,
    end_tokens: &[u32],
    prompt: &str,
    max_tokens: usize,
    stop: &[String],
    sampler: &mut Sampler,
    on_text: impl FnMut(&str) -> bool + Send,
) -> Result<GeneratedText> {
    let mut ids = tokenizer.encode_document(prompt, true, false)?;
    if ids.is_empty() {
        // A tokenizer without a begin mark and an empty prompt: the end mark starts a new text.
        ids.extend(tokenizer.eos_id());
    }
    generate_from_ids(model, tokenizer, end_tokens, &ids, max_tokens, stop, sampler, on_text)
}

/// [`generate_text`] behind a prompt of ids.
///
/// # Errors
/// When the prompt does not fit into the context.
#[expect(clippy::too_many_arguments, reason = "a model, its text, and a request")]
pub fn generate_from_ids(
    model: &InferenceModel,
    tokenizer: &Tokenizer,
    end_tokens: &[u32],
    ids: &[u32],
    max_tokens: usize,
    stop: &[String],
    sampler: &mut Sampler,
    mut on_text: impl FnMut(&str) -> bool + Send,
) -> Result<GeneratedText> {
    let choosable = Choosable { vocab_size: tokenizer.vocab_size(), end_tokens };

    let mut decoder = StreamDecoder::after_prompt(tokenizer);
    let mut stops = StopStrings::new(stop);
    let mut token_ids = Vec::new();
    let mut text = String::new();
    let mut emit = |piece: String, text: &mut String| {
        text.push_str(&piece);
        on_text(&piece)
    };
    let end = in_pool(model.device(), || {
        generate(model, ids, max_tokens, choosable, sampler, |id| {
            token_ids.push(id);
            let piece = stops.push(&decoder.push(id));
            emit(piece, &mut text) && !stops.stopped
        })
    })?;
    if !stops.stopped {
        let last = stops.push(&decoder.finish());
        emit(last, &mut text);
        if !stops.stopped {
            emit(std::mem::take(&mut stops.held), &mut text);
        }
    }
    let finish_reason = match end {
        _ if stops.stopped => "stop",
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    };
    Ok(GeneratedText { text, token_ids, finish_reason })
}

/// Looks for stop strings in text that comes in pieces, and holds back what may begin one.
#[derive(Debug)]
struct StopStrings<'a> {
    stop: Vec<&'a str>,
    held: String,
    stopped: bool,
}

impl<'a> StopStrings<'a> {
    fn new(stop: &'a [String]) -> Self {
        let stop = stop.iter().map(String::as_str).filter(|stop| !stop.is_empty()).collect();
        Self { stop, held: String::new(), stopped: false }
    }

    /// The text that is certain after `piece`.
    fn push(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        if let Some(end) = self.stop.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.stopped = true;
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.longest_beginning();
        self.held.drain(..certain).collect()
    }

    /// Bytes at the end of the held text that are the beginning of a stop string.
    fn longest_beginning(&self) -> usize {
        let begins = |stop: &str| {
            (1..stop.len())
                .rev()
                .find(|length| {
                    stop.is_char_boundary(*length) && self.held.ends_with(&stop[..*length])
                })
                .unwrap_or(0)
        };
        self.stop.iter().map(|stop| begins(stop)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(stop: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut stops = StopStrings::new(&stop);
        let mut out = Vec::new();
        for piece in pieces {
            if !stops.stopped {
                out.push(stops.push(piece));
            }
        }
        (out, stops.stopped, stops.held)
    }

    #[test]
    fn a_stop_string_across_pieces_ends_the_text_before_it() {
        let (out, stopped, _) = pieces(&["\n\nQ:"], &["yes", "\n", "\nQ", ": why"]);
        assert_eq!((out.concat().as_str(), stopped), ("yes", true));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_comes_out() {
        let (out, stopped, held) = pieces(&["abc"], &["xab", "abd", "ab"]);
        assert_eq!((out.concat().as_str(), stopped, held.as_str()), ("xababd", false, "ab"));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_wins() {
        let (out, stopped, _) = pieces(&["late", "é!", ""], &["caf", "é", "! too late"]);
        assert_eq!((out.concat().as_str(), stopped), ("caf", true));
    }
}
