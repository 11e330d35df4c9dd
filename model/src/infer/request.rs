//! What the engine is asked for and what it answers: token ids only, no text.

use std::sync::Arc;

use crate::error::{ModelError, Result};

/// How the next token is chosen. Applied in this order, as vLLM does: `allowed_token_ids`,
/// `logit_bias`, `min_tokens`, penalties, temperature, min-p, top-k, top-p, draw.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; below 1e-5 the likeliest token is taken.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens up to the one that brings their probability to `top_p`; 1 keeps
    /// all, and at least one is kept.
    pub top_p: f32,
    /// Keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens of the prompt or the output are divided by it where positive and multiplied
    /// by it where negative; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens of the output.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens of the output, once for every time they were chosen.
    pub frequency_penalty: f32,
    /// Added to the logit of an id.
    pub logit_bias: Vec<(u32, f32)>,
    /// The only ids that may be chosen; `None` allows all.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Seed of the draws. Draw `i` of a sequence depends on the seed, the index of the sequence in
    /// its request and `i` alone: not on other requests and not on preemption.
    pub seed: u64,
    /// Most tokens to generate; the context may end before. 0 generates nothing, which is useful
    /// with `prompt_logprobs`.
    pub max_tokens: usize,
    /// No end token is chosen before so many tokens.
    pub min_tokens: usize,
    /// End tokens of the model do not end the text.
    pub ignore_eos: bool,
    /// Further ids that end the text.
    pub stop_token_ids: Vec<u32>,
    /// Give the log-probability of every chosen token and of so many likeliest ones.
    pub logprobs: Option<usize>,
    /// Give the log-probability of every token of the prompt but the first and of so many likeliest
    /// ones. Without tokens to generate, the last token of the prompt is not computed, only scored: the
    /// prompt may be one token longer than the context.
    pub prompt_logprobs: Option<usize>,
    /// The first token of the prompt whose log-probability is given with `prompt_logprobs`, counted from
    /// 0. What precedes it may come from the prefix cache, and its logits are never made.
    pub prompt_logprobs_start: usize,
}

impl Default for SamplingParams {
    /// vLLM's and OpenAI's defaults: every token at its own probability.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            seed: 0,
            max_tokens: 16,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            prompt_logprobs_start: 0,
        }
    }
}

impl SamplingParams {
    /// Refuses values that mean nothing for a model of `vocab_size` ids.
    ///
    /// # Errors
    /// [`ModelError::Request`] with the field, what was found and what would do.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let in_range = |field, value: f32, fits: bool, expected: &str| match fits {
            true => Ok(()),
            false => {
                let (found, expected) = (value.to_string(), expected.to_string());
                Err(ModelError::Request { field, found, expected })
            }
        };
        let share = |x: f32| (0.0..=1.0).contains(&x);
        let Self { temperature, top_p, min_p, .. } = *self;
        let finite = temperature.is_finite() && temperature >= 0.0;
        in_range("temperature", temperature, finite, "a number from 0 on")?;
        in_range("top_p", top_p, share(top_p), "a number from 0 to 1")?;
        in_range("min_p", min_p, share(min_p), "a number from 0 to 1")?;
        let repetition = self.repetition_penalty;
        let fits = repetition.is_finite() && repetition > 0.0;
        in_range("repetition_penalty", repetition, fits, "a number above 0")?;
        for (field, value) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            in_range(field, value, value.is_finite(), "a number")?;
        }
        let known = |field, id: u32| match (id as usize) < vocab_size {
            true => Ok(()),
            false => {
                let expected = format!("an id below {vocab_size}, the size of the vocabulary");
                Err(ModelError::Request { field, found: format!("id {id}"), expected })
            }
        };
        for (id, bias) in &self.logit_bias {
            known("logit_bias", *id)?;
            in_range("logit_bias", *bias, bias.is_finite(), "a number")?;
        }
        for id in self.allowed_token_ids.iter().flatten() {
            known("allowed_token_ids", *id)?;
        }
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err(ModelError::Request {
                field: "allowed_token_ids",
                found: "no ids".into(),
                expected: "at least one".into(),
            });
        }
        Ok(())
    }
}

/// What a grammar lets follow the tokens chosen so far.
pub trait TokenConstraint: Send {
    /// Sets the logits (V) of the tokens that may not follow to −∞.
    ///
    /// # Errors
    /// Why the grammar cannot go on; the sequence ends with [`FinishReason::Error`].
    fn mask(&mut self, logits: &mut [f32]) -> std::result::Result<(), String>;
    /// Moves on by the token that was chosen.
    ///
    /// # Errors
    /// As of `mask`.
    fn accept(&mut self, id: u32) -> std::result::Result<(), String>;
    /// A constraint in the same state, for another sequence of the request.
    fn fork(&self) -> Box<dyn TokenConstraint>;
}

/// Which request: chosen by the caller, one at a time in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Which sequence of which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    /// Of which request.
    pub request: RequestId,
    /// Which of its `n` sequences.
    pub index: usize,
}

/// A prompt to be continued, once or several times.
pub struct Request {
    /// Its name in answers, and to end it early.
    pub id: RequestId,
    /// At least one token.
    pub prompt: Arc<[u32]>,
    /// How the sequences go on.
    pub sampling: SamplingParams,
    /// Sequences that share the prompt, at least 1.
    pub n: usize,
    /// Lower ones first under the policy `priority`.
    pub priority: i64,
    /// Requests share cached blocks of their prompts only with those of the same salt.
    pub cache_salt: Option<String>,
    /// A grammar that all sequences follow.
    pub constraint: Option<Box<dyn TokenConstraint>>,
}

impl Request {
    /// One sequence that follows no grammar, with no priority and no salt.
    pub fn new(id: RequestId, prompt: impl Into<Arc<[u32]>>, sampling: SamplingParams) -> Self {
        let prompt = prompt.into();
        Self { id, prompt, sampling, n: 1, priority: 0, cache_salt: None, constraint: None }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose an end token of its own: the end of sequence.
    Stop,
    /// The model chose an id of [`SamplingParams::stop_token_ids`].
    StopToken(u32),
    /// `max_tokens` were generated or the context is full.
    Length,
    /// The caller ended it.
    Abort,
    /// Logits were not finite, or the grammar failed.
    Error,
}

/// A token and its log-probability in nats, before temperature, penalties and cuts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// Its rank among all tokens: 1 is the likeliest.
    pub rank: usize,
}

/// A token of a prompt or of an answer, with the likeliest ones at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// The token itself.
    pub token: TokenLogprob,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// What one step brought one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct SequenceOutput {
    /// Of which request.
    pub request: RequestId,
    /// Which of its `n` sequences.
    pub index: usize,
    /// Tokens of the prompt from [`SamplingParams::prompt_logprobs_start`] on but the first, when they
    /// were asked for: with the first output of sequence 0.
    pub prompt_logprobs: Option<Vec<ScoredToken>>,
    /// Tokens of the prompt whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
    /// The new token, end tokens included; `None` when the sequence ended without one.
    pub token: Option<u32>,
    /// The new token's probability, when asked for.
    pub logprobs: Option<ScoredToken>,
    /// Set with the last output of the sequence.
    pub finish_reason: Option<FinishReason>,
    /// What failed, with [`FinishReason::Error`].
    pub error: Option<String>,
}

impl SequenceOutput {
    /// An output that brings nothing.
    pub(super) fn new(id: SequenceId) -> Self {
        Self {
            request: id.request,
            index: id.index,
            prompt_logprobs: None,
            cached_tokens: 0,
            token: None,
            logprobs: None,
            finish_reason: None,
            error: None,
        }
    }
}
