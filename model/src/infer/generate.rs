//! Continuing a prompt token by token. Ids only: text and stop strings are the caller's.

use crate::error::{ModelError, Result};
use crate::infer::{KvCache, Sampler};
use crate::llama::Llama;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose the end-of-sequence token, or the caller asked to stop.
    Stop,
    /// `max_tokens` were generated or the context is full.
    Length,
}

/// Continues `prompt`, handing every new id but the end of sequence to `on_token`, which answers
/// whether to go on.
///
/// # Errors
/// [`ModelError::PromptTooLong`] when the prompt leaves no room for one token,
/// [`ModelError::TokenId`] for an id outside the vocabulary.
pub fn generate(
    model: &Llama,
    prompt: &[i32],
    max_tokens: usize,
    eos: Option<i32>,
    sampler: &mut Sampler,
    mut on_token: impl FnMut(i32) -> bool,
) -> Result<FinishReason> {
    let limit = model.config.max_seq_len;
    if prompt.len() >= limit {
        return Err(ModelError::PromptTooLong { found: prompt.len(), limit });
    }
    let new_tokens = max_tokens.min(limit - prompt.len());
    let mut cache = KvCache::new(model, prompt.len() + new_tokens);
    if new_tokens == 0 {
        return Ok(FinishReason::Length);
    }
    let mut logits = model.forward_cached(prompt, &mut cache)?;
    for remaining in (0..new_tokens).rev() {
        let id = sampler.sample(&logits) as i32;
        if Some(id) == eos || !on_token(id) {
            return Ok(FinishReason::Stop);
        }
        if remaining > 0 {
            logits = model.forward_cached(&[id], &mut cache)?;
        }
    }
    Ok(FinishReason::Length)
}
