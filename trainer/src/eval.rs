//! How well a model predicts documents it was not trained on: loss, perplexity, bits per byte.

use std::collections::BTreeMap;

use altiplano_data::Tokenizer;
use altiplano_model::device::in_pool;
use altiplano_model::error::ModelError;
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::ops::IGNORED_TARGET;
use serde::Serialize;

use crate::error::Result;

/// Sums over documents, and the figures that follow from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Score {
    /// Documents scored.
    pub documents: u64,
    /// Tokens predicted: every token of the text, the first from the begin mark alone, and the end
    /// mark if it is asked for.
    pub tokens: u64,
    /// Bytes of UTF-8 text.
    pub bytes: u64,
    /// Mean cross entropy per token, in nats.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Σ nats / ln 2 / bytes: comparable across tokenizers, and with a compressor.
    pub bits_per_byte: f64,
    #[serde(skip)]
    nats: f64,
}

impl Score {
    fn add(&mut self, documents: u64, tokens: u64, bytes: u64, nats: f64) {
        self.documents += documents;
        self.tokens += tokens;
        self.bytes += bytes;
        self.nats += nats;
        self.loss = self.nats / (self.tokens.max(1)) as f64;
        self.perplexity = self.loss.exp();
        self.bits_per_byte = self.nats / std::f64::consts::LN_2 / (self.bytes.max(1)) as f64;
    }
}

/// Scores of all documents and of each source.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Over all documents.
    #[serde(flatten)]
    pub total: Score,
    /// By source.
    pub sources: BTreeMap<String, Score>,
}

/// How documents are cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens the model sees at once.
    pub context: usize,
    /// Tokens by which a window moves on in a long document; every window but the first scores its
    /// last `stride` tokens only, so each has at least `context - stride` tokens before it.
    pub stride: usize,
    /// Windows computed at once.
    pub batch: usize,
}

/// One window of a document: inputs, and targets that are scored in this window only.
#[derive(Debug)]
struct Window {
    document: usize,
    inputs: Vec<i32>,
    targets: Vec<i32>,
}

/// Scores documents given as (source, text). With `end_mark` the end of each document is predicted
/// too, as in training and validation on shards with end marks. After each batch `on_progress` hears
/// of the share of the work that is done, and of how many more documents are scored to their end.
///
/// # Errors
/// When a document cannot be encoded or its ids are outside the model's vocabulary;
/// [`ModelError::NotFinite`] with the tensor when losses are no numbers.
pub fn score_documents(
    model: &Llama,
    tokenizer: &Tokenizer,
    documents: &[(String, String)],
    windows: Windows,
    end_mark: bool,
    mut on_progress: impl FnMut(f64, u64) + Send,
) -> Result<Scores> {
    let mut pieces = Vec::new();
    let mut tokens = Vec::with_capacity(documents.len());
    for (document, (_, text)) in documents.iter().enumerate() {
        let ids = tokenizer.encode_document(text, true, end_mark)?;
        let first = pieces.len();
        cut(document, &ids, windows, &mut pieces);
        let scored = |window: &Window| window.targets.iter().filter(|t| **t >= 0).count();
        tokens.push(pieces[first..].iter().map(scored).sum::<usize>());
    }
    // Windows of like length share a batch, so little is padded.
    pieces.sort_by_key(|window| std::cmp::Reverse(window.inputs.len()));
    let mut nats = vec![0.0f64; documents.len()];
    let mut left = vec![0usize; documents.len()];
    for window in &pieces {
        left[window.document] += 1;
    }
    on_progress(0.0, left.iter().filter(|windows| **windows == 0).count() as u64);
    let length = |pieces: &[Window]| pieces.iter().map(|w| w.inputs.len()).sum::<usize>();
    let all = length(&pieces);
    let mut done = 0;
    in_pool(model.device(), || -> Result<()> {
        for batch in pieces.chunks(windows.batch.max(1)) {
            score_batch(model, batch, &mut nats)?;
            done += length(batch);
            let mut ended = 0;
            for window in batch {
                left[window.document] -= 1;
                ended += u64::from(left[window.document] == 0);
            }
            on_progress(done as f64 / all as f64, ended);
        }
        Ok(())
    })?;

    let mut scores = Scores::default();
    for (((source, text), tokens), nats) in documents.iter().zip(tokens).zip(nats) {
        let (tokens, bytes) = (tokens as u64, text.len() as u64);
        scores.total.add(1, tokens, bytes, nats);
        scores.sources.entry(source.clone()).or_default().add(1, tokens, bytes, nats);
    }
    Ok(scores)
}

/// Cuts the ids of a document into windows in which every id but the first is scored once.
fn cut(document: usize, ids: &[u32], windows: Windows, pieces: &mut Vec<Window>) {
    let context = windows.context;
    let stride = windows.stride.clamp(1, context);
    let mut start = 0;
    let mut scored = 1;
    while scored < ids.len() {
        let end = (start + context).min(ids.len() - 1);
        let inputs: Vec<i32> = ids[start..end].iter().map(|id| *id as i32).collect();
        let targets = (start + 1..=end)
            .map(|n| if n < scored { IGNORED_TARGET } else { ids[n] as i32 })
            .collect();
        pieces.push(Window { document, inputs, targets });
        scored = end + 1;
        start = (scored + stride).saturating_sub(context + 1).max(start + 1);
    }
}

/// Adds the nats of each window to its document.
fn score_batch(model: &Llama, batch: &[Window], nats: &mut [f64]) -> Result<()> {
    let time = batch.iter().map(|window| window.inputs.len()).max().unwrap_or(0);
    let padded = |values: &[i32], padding: i32| {
        let mut row = values.to_vec();
        row.resize(time, padding);
        row
    };
    let inputs: Vec<i32> = batch.iter().flat_map(|w| padded(&w.inputs, 0)).collect();
    let targets: Vec<i32> = batch.iter().flat_map(|w| padded(&w.targets, IGNORED_TARGET)).collect();
    let tokens =
        TokenBatch::new(&inputs, &targets, None, time, model.config.vocab_size, model.device())?;
    let losses: Vec<f64> = model.losses(&tokens)?.into_data().iter::<f64>().collect();
    if !losses.iter().all(|loss| loss.is_finite()) {
        model.weights.check_finite()?;
        return Err(ModelError::NotFinite {
            place: "loss".into(),
            found:
                "is not finite though all weights are: activations beyond the range of the number \
                    format; try precision f32"
                    .into(),
        }
        .into());
    }
    for (window, row) in batch.iter().zip(losses.chunks_exact(time)) {
        nats[window.document] += row.iter().sum::<f64>();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token but the first is scored exactly once, with enough context before it.
    #[test]
    fn windows_score_every_token_once() {
        for length in [0, 1, 2, 5, 8, 9, 10, 31, 64] {
            for (context, stride) in [(8, 4), (8, 8), (8, 1), (5, 3), (100, 50)] {
                let ids: Vec<u32> = (0..length).collect();
                let mut pieces = Vec::new();
                cut(0, &ids, Windows { context, stride, batch: 1 }, &mut pieces);
                let mut scored = Vec::new();
                for window in &pieces {
                    assert!(window.inputs.len() <= context && !window.inputs.is_empty());
                    for (n, target) in window.targets.iter().enumerate() {
                        if *target < 0 {
                            continue;
                        }
                        // The target follows its input.
                        assert_eq!(*target, window.inputs[n] + 1);
                        let seen = n + 1;
                        assert!(seen >= (context - stride + 1).min(*target as usize));
                        scored.push(*target);
                    }
                }
                let expected: Vec<i32> = (1..length.max(1) as i32).collect();
                assert_eq!(scored, expected, "length {length} context {context} stride {stride}");
            }
        }
    }
}
