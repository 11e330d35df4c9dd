//! Text from a model: prompts to ids, ids to text as they come, stop strings.

use std::collections::HashMap;

use altiplano_data::chat::StopStrings;
use altiplano_data::{StreamDecoder, Tokenizer};
use altiplano_model::error::ModelError;
use altiplano_model::infer::{
    Engine, EngineModel, EngineOptions, FinishReason, Request, RequestId, SamplingParams,
    ScoredToken, SequenceId, TokenLogprob,
};
use serde::Serialize;

use crate::error::Result;

/// Samples that are generated at a time.
pub(crate) const SAMPLES_AT_A_TIME: usize = 32;

/// Most tokens of prompts that one pass takes.
const PASS_TOKENS: usize = 2048;

/// How texts are continued.
#[derive(Debug, Clone, Default)]
pub struct GenerationOptions {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Continuations of each prompt, at least 1.
    pub samples: usize,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
    /// A text ends before any of these.
    pub stop: Vec<String>,
    /// Most blocks of the cache, at least those of one text. Default: those of all that is generated at a time.
    pub most_blocks: Option<usize>,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GeneratedText {
    /// Which prompt, counted from 0.
    pub prompt_index: usize,
    /// Which of its samples, counted from 0.
    pub index: usize,
    /// The text after the prompt, without the stop string that ended it.
    pub text: String,
    /// The ids generated, all that were needed to see the end.
    pub token_ids: Vec<u32>,
    /// `stop` (end of text or a stop string) or `length` (`max_tokens` or the context).
    pub finish_reason: &'static str,
    /// Of each id of `token_ids`, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<PieceLogprobs>>,
}

/// The probability of a token, and those of the likeliest ones at its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PieceLogprobs {
    /// The token that was chosen.
    #[serde(flatten)]
    pub token: PieceLogprob,
    /// The likeliest ones, likeliest first.
    pub top: Vec<PieceLogprob>,
}

/// A token and its probability, before temperature, penalties and cuts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PieceLogprob {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub token: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// Its rank among all tokens: 1 is the likeliest.
    pub rank: usize,
}

/// What generation tells while it goes on.
#[derive(Debug)]
pub enum Generated<'a> {
    /// More text of a sample: never half a character, never the beginning of a stop string. Empty
    /// where a token made no text certain.
    Piece {
        /// Which prompt.
        prompt_index: usize,
        /// Which of its samples.
        index: usize,
        /// The text.
        text: &'a str,
    },
    /// A sample is at its end.
    End(GeneratedText),
}

/// Continues `prompt` once, handing text to `on_text` as soon as it is certain. `on_text` says whether
/// to go on.
///
/// # Errors
/// When the prompt does not fit into the context or cannot be encoded.
pub fn generate_text(
    model: &impl EngineModel,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &GenerationOptions,
    on_text: impl FnMut(&str) -> bool,
) -> Result<GeneratedText> {
    generate_from_ids(model, tokenizer, encode(tokenizer, prompt)?, options, on_text)
}

/// [`generate_text`] behind a prompt of ids.
///
/// # Errors
/// When the prompt is empty or does not fit into the context.
pub fn generate_from_ids(
    model: &impl EngineModel,
    tokenizer: &Tokenizer,
    prompt: Vec<u32>,
    options: &GenerationOptions,
    mut on_text: impl FnMut(&str) -> bool,
) -> Result<GeneratedText> {
    let options = GenerationOptions { samples: 1, ..options.clone() };
    let mut end = None;
    continue_prompts(model, tokenizer, vec![prompt], &options, |generated| match generated {
        Generated::Piece { text, .. } => on_text(text),
        Generated::End(text) => {
            end = Some(text);
            true
        }
    })?;
    end.ok_or_else(|| ModelError::Generation { reason: "the text has no end".into() }.into())
}

/// Continues `prompts`, many at a time: they share the passes over the weights, and no text depends on
/// which others there are; a prompt that is given again draws anew. `on_generated` says whether to go on; once it says no, all texts end where
/// they are.
///
/// # Errors
/// When a prompt does not fit into the context or cannot be encoded.
pub fn generate_texts<P: AsRef<str>>(
    model: &impl EngineModel,
    tokenizer: &Tokenizer,
    prompts: &[P],
    options: &GenerationOptions,
    on_generated: impl FnMut(Generated<'_>) -> bool,
) -> Result<()> {
    let encoded: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| encode(tokenizer, prompt.as_ref())).collect::<Result<_>>()?;
    continue_prompts(model, tokenizer, encoded, options, on_generated)
}

/// [`generate_texts`] behind prompts of ids.
pub(crate) fn continue_prompts(
    model: &impl EngineModel,
    tokenizer: &Tokenizer,
    prompts: Vec<Vec<u32>>,
    options: &GenerationOptions,
    mut on_generated: impl FnMut(Generated<'_>) -> bool,
) -> Result<()> {
    let samples = options.samples.max(1);
    let mut engine = Engine::new(model, engine_options(model, tokenizer, &prompts, options))?;
    let mut texts: Vec<Sample<'_>> =
        (0..prompts.len() * samples).map(|_| Sample::new(tokenizer, options)).collect();
    let mut times_given = HashMap::new();
    for (n, prompt) in prompts.into_iter().enumerate() {
        let before = times_given.entry(prompt.clone()).or_insert(0);
        let mut sampling = options.sampling.clone();
        sampling.seed = seed_of_repetition(sampling.seed, *before);
        *before += 1;
        let mut request = Request::new(RequestId(n as u64), prompt, sampling);
        request.n = samples;
        engine.add(request)?;
    }
    'steps: while engine.has_requests() {
        for output in engine.step()? {
            let (prompt_index, index) = (output.request.0 as usize, output.index);
            let sample = &mut texts[prompt_index * samples + index];
            if sample.ended {
                continue;
            }
            if let Some(reason) = output.error {
                return Err(ModelError::Generation { reason }.into());
            }
            let is_end_token = output.finish_reason == Some(FinishReason::Stop);
            if let Some(id) = output.token.filter(|_| !is_end_token) {
                let text = sample.push(id, output.logprobs.as_ref());
                if !on_generated(Generated::Piece { prompt_index, index, text: &text }) {
                    break 'steps;
                }
            }
            let reason = match output.finish_reason {
                _ if sample.stops.matched().is_some() => {
                    let request = output.request;
                    engine.abort_sequence(SequenceId { request, index });
                    "stop"
                }
                None => continue,
                Some(FinishReason::Length) => "length",
                Some(_) => "stop",
            };
            let (text, whole) = sample.end(prompt_index, index, reason);
            let more = on_generated(Generated::Piece { prompt_index, index, text: &text });
            if !on_generated(Generated::End(whole)) || !more {
                break 'steps;
            }
        }
    }
    for (n, sample) in texts.iter_mut().enumerate().filter(|(_, sample)| !sample.ended) {
        let (_, whole) = sample.end(n / samples, n % samples, "stop");
        on_generated(Generated::End(whole));
    }
    Ok(())
}

/// The seed of a prompt that was given `before` times before among the same prompts, so that its texts
/// are others. The first has the seed itself, whichever other prompts there are.
fn seed_of_repetition(seed: u64, before: u64) -> u64 {
    if before == 0 {
        return seed;
    }
    // The finalizer of SplitMix64: seeds next to each other become far from each other.
    let mut mixed = seed.wrapping_add(before.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The ids of a prompt.
fn encode(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode_document(prompt, true, false)?;
    if ids.is_empty() {
        // A tokenizer without a begin mark and an empty prompt: the end mark starts a new text.
        ids.extend(tokenizer.eos_id());
    }
    Ok(ids)
}

/// An engine with room for what is asked for, as much as runs at a time.
fn engine_options(
    model: &impl EngineModel,
    tokenizer: &Tokenizer,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
) -> EngineOptions {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let whole = longest.saturating_add(options.sampling.max_tokens).min(model.context());
    let at_a_time = (prompts.len() * options.samples.max(1)).clamp(1, SAMPLES_AT_A_TIME);
    let mut engine = EngineOptions::new(model.context(), 1);
    let blocks = whole.div_ceil(engine.block_size).max(1);
    engine.num_blocks = (at_a_time * blocks).min(options.most_blocks.unwrap_or(usize::MAX));
    engine.max_num_seqs = at_a_time;
    engine.max_num_batched_tokens = longest.clamp(engine.max_num_batched_tokens, PASS_TOKENS);
    engine.eos_token_ids.clone_from(&options.end_tokens);
    engine.vocab_limit = Some(tokenizer.vocab_size());
    engine
}

/// A text while it is generated.
struct Sample<'a> {
    tokenizer: &'a Tokenizer,
    decoder: Option<StreamDecoder<'a>>,
    stops: StopStrings,
    text: String,
    token_ids: Vec<u32>,
    logprobs: Option<Vec<PieceLogprobs>>,
    ended: bool,
}

impl<'a> Sample<'a> {
    fn new(tokenizer: &'a Tokenizer, options: &'a GenerationOptions) -> Self {
        Self {
            tokenizer,
            decoder: Some(StreamDecoder::after_prompt(tokenizer)),
            stops: StopStrings::new(&options.stop, false),
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: options.sampling.logprobs.map(|_| Vec::new()),
            ended: false,
        }
    }

    /// The text that is certain with the next token.
    fn push(&mut self, id: u32, scored: Option<&ScoredToken>) -> String {
        self.token_ids.push(id);
        if let (Some(logprobs), Some(scored)) = (&mut self.logprobs, scored) {
            let piece = |token: &TokenLogprob| piece_logprob(self.tokenizer, token);
            let top = scored.top.iter().map(piece).collect();
            logprobs.push(PieceLogprobs { token: piece(&scored.token), top });
        }
        let piece = self.decoder.as_mut().map(|decoder| decoder.push(id)).unwrap_or_default();
        let certain = self.stops.push(&piece);
        self.text.push_str(&certain);
        certain
    }

    /// The last text, and all of it.
    fn end(
        &mut self,
        prompt_index: usize,
        index: usize,
        finish_reason: &'static str,
    ) -> (String, GeneratedText) {
        self.ended = true;
        let mut last = String::new();
        if self.stops.matched().is_none() {
            let piece = self.decoder.take().map(StreamDecoder::finish).unwrap_or_default();
            last = self.stops.push(&piece);
            last.push_str(&self.stops.finish());
        }
        self.text.push_str(&last);
        let finish_reason = if self.stops.matched().is_some() { "stop" } else { finish_reason };
        let (text, token_ids) =
            (std::mem::take(&mut self.text), std::mem::take(&mut self.token_ids));
        let logprobs = self.logprobs.take();
        (last, GeneratedText { prompt_index, index, text, token_ids, finish_reason, logprobs })
    }
}

/// A token's probability with its text.
fn piece_logprob(tokenizer: &Tokenizer, token: &TokenLogprob) -> PieceLogprob {
    let TokenLogprob { id, logprob, rank } = *token;
    let mut decoder = StreamDecoder::after_prompt(tokenizer);
    let mut text = decoder.push(id);
    text.push_str(&decoder.finish());
    PieceLogprob { id, token: text, logprob, rank }
}
