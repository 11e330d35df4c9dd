//! Continuing a prompt token by token. Ids only: text and stop strings are the caller's.

use crate::error::{ModelError, Result};
use crate::infer::{InferenceModel, KvCache, Sampler};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose the end-of-sequence token, or the caller asked to stop.
    Stop,
    /// `max_tokens` were generated or the context is full.
    Length,
}

/// Which ids a generation may choose.
#[derive(Debug, Clone, Copy)]
pub struct Choosable<'a> {
    /// Ids of the tokenizer: those of a padded vocabulary beyond them are never chosen.
    pub vocab_size: usize,
    /// Ids that end the text.
    pub end_tokens: &'a [u32],
}

/// Continues `prompt`, handing every new id but the end tokens to `on_token`, which answers whether to
/// go on.
///
/// # Errors
/// [`ModelError::PromptTooLong`] when the prompt leaves no room for one token,
/// [`ModelError::TokenId`] for an id outside the vocabulary, [`ModelError::NotFinite`] when logits are
/// no numbers.
pub fn generate(
    model: &InferenceModel,
    prompt: &[u32],
    max_tokens: usize,
    choosable: Choosable<'_>,
    sampler: &mut Sampler,
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<FinishReason> {
    let limit = model.config().max_seq_len;
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
        let known = choosable.vocab_size.clamp(1, logits.len());
        let id = sampler.sample(&logits[..known]) as u32;
        if choosable.end_tokens.contains(&id) || !on_token(id) {
            return Ok(FinishReason::Stop);
        }
        if remaining > 0 {
            logits = model.forward_cached(&[id], &mut cache)?;
        }
    }
    Ok(FinishReason::Length)
}
