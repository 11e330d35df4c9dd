//! Contexts and continuations as ids.

use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The ids of a context and of its continuation. White space at the end of the context goes to the
/// continuation, and the two are encoded as one text, of which those ids are the continuation that
/// follow as many as the context has alone: so does lm-evaluation-harness. The context has at least one
/// id: the begin mark.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn encode_pair(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let kept = context.trim_end();
    let whole = format!("{context}{continuation}");
    let mut context = tokenizer.encode_document(kept, true, false)?;
    let mut whole = tokenizer.encode_document(&whole, true, false)?;
    let continuation = whole.split_off(context.len().min(whole.len()));
    if context.is_empty() {
        // A tokenizer without a begin mark: the end mark begins a text.
        context.extend(tokenizer.eos_id());
    }
    Ok((context, continuation))
}

/// Cuts the ids of a text into windows, each with the id before it as context and at most `limit` ids
/// of input. The last window is filled up from what precedes it. Gives context and continuation of each.
pub fn rolling_windows(prefix: u32, ids: &[u32], limit: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut windows = Vec::new();
    let first = ids.len().min(limit);
    if first == 0 {
        return windows;
    }
    windows.push((vec![prefix], ids[..first].to_vec()));
    let mut predicted = first;
    while predicted < ids.len() {
        let count = (ids.len() - predicted).min(limit);
        let end = predicted + count;
        let start = end.saturating_sub(limit + 1);
        windows.push((ids[start..predicted].to_vec(), ids[predicted..end].to_vec()));
        predicted = end;
    }
    windows
}
