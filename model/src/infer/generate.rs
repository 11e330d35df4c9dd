//! Continuing one prompt token by token.

use super::engine::Engine;
use super::model::EngineModel;
use super::options::EngineOptions;
use super::request::{FinishReason, Request, RequestId, SamplingParams};
use crate::error::{ModelError, Result};

/// Continues `prompt` until one of `eos_token_ids`, `max_tokens` of `sampling`, the end of the context,
/// or until `on_token` returns false. End tokens are not handed to `on_token`, and texts that it ends
/// end as those of the model's own do.
///
/// # Errors
/// When the request does not fit the model, as [`Engine::add`] says, and
/// [`ModelError::Generation`] when no token can be chosen.
pub fn generate(
    model: &impl EngineModel,
    prompt: &[u32],
    sampling: SamplingParams,
    eos_token_ids: &[u32],
    mut on_token: impl FnMut(u32) -> bool,
) -> Result<FinishReason> {
    let mut options = EngineOptions::new(model.context(), 1);
    options.eos_token_ids = eos_token_ids.to_vec();
    options.max_num_batched_tokens = prompt.len().max(1);
    options.enable_prefix_caching = false;
    let mut engine = Engine::new(model, options)?;
    engine.add(Request::new(RequestId(0), prompt, sampling))?;
    while engine.has_requests() {
        for output in engine.step()? {
            if let Some(error) = output.error {
                return Err(ModelError::Generation { reason: error });
            }
            let reason = output.finish_reason;
            if matches!(reason, Some(FinishReason::Stop | FinishReason::StopToken(_))) {
                return Ok(FinishReason::Stop);
            }
            if output.token.is_some_and(|id| !on_token(id)) {
                return Ok(FinishReason::Stop);
            }
            if let Some(reason) = reason {
                return Ok(reason);
            }
        }
    }
    Ok(FinishReason::Length)
}
