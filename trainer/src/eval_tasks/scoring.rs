//! Likelihoods of continuations: many at a time through the engine, what they have in common once.

use std::cmp::Reverse;
use std::sync::Arc;

use altiplano_data::Tokenizer;
use altiplano_model::infer::{
    Engine, EngineModel, EngineOptions, InferenceModel, Request, RequestId, SamplingParams,
    SchedulingPolicy, bytes_per_block,
};

use crate::error::Result;
use crate::serving::{blocks_that_fit, cache_bytes};
use crate::text_model::TextModel;

/// Sequences that are computed at a time.
const SEQUENCES: usize = 64;

/// Tokens of a pass.
const PASS_TOKENS: usize = 2048;

/// Contexts that begin with so many equal tokens wait for the first of them, whose keys and values they
/// then find.
const SHARED_TOKENS: usize = 48;

/// A model as tasks use it.
#[derive(Debug, Clone, Copy)]
pub struct EvalModel<'a> {
    /// The model.
    pub model: &'a InferenceModel,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end a text.
    pub end_tokens: &'a [u32],
    /// Most bytes of keys and values; by default a share of what is free.
    pub cache_bytes: Option<u64>,
}

impl<'a> From<&'a TextModel> for EvalModel<'a> {
    fn from(model: &'a TextModel) -> Self {
        let TextModel { model, tokenizer, end_tokens, .. } = model;
        Self { model, tokenizer, end_tokens, cache_bytes: None }
    }
}

impl EvalModel<'_> {
    /// Blocks of the cache for `sequences` of at most `longest` tokens, as many as there is room for; at
    /// least those of one.
    pub fn cache_blocks(
        &self,
        sequences: usize,
        longest: usize,
        block_size: usize,
    ) -> Result<usize> {
        let blocks = longest.min(self.model.context()).div_ceil(block_size).max(1);
        let each = bytes_per_block(self.model.config(), self.model.dtype(), block_size);
        let wanted = sequences.saturating_mul(blocks);
        match self.cache_bytes {
            Some(bytes) => {
                let fit = usize::try_from(u128::from(bytes) / each.max(1)).unwrap_or(usize::MAX);
                Ok(fit.min(wanted).max(blocks))
            }
            None => {
                Ok(blocks_that_fit(cache_bytes(self.model.device()), each, wanted)?.max(blocks))
            }
        }
    }
}

/// The ids of a context and of what follows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Continuation {
    context: Vec<u32>,
    ids: Vec<u32>,
    /// Tokens of the context that did not fit.
    cut: usize,
}

impl Continuation {
    /// Cuts the context from the left to what a model of so many tokens can see: all but the last token
    /// are its input. None where the continuation alone does not fit, or is empty.
    pub fn new(mut context: Vec<u32>, ids: Vec<u32>, model_tokens: usize) -> Option<Self> {
        if ids.is_empty() || ids.len() > model_tokens || context.is_empty() {
            return None;
        }
        let cut = (context.len() + ids.len()).saturating_sub(model_tokens + 1);
        context.drain(..cut);
        Some(Self { context, ids, cut })
    }

    /// Whether a part of the context was cut off.
    pub fn is_cut(&self) -> bool {
        self.cut > 0
    }
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Σ ln P of its tokens.
    pub loglikelihood: f64,
    /// Whether each of its tokens was the likeliest.
    pub is_greedy: bool,
    /// Its tokens.
    pub tokens: usize,
}

/// A likelihood, or why there is none: logits that are not finite, and where.
pub type Scored = std::result::Result<Likelihood, String>;

/// A continuation that is computed, and whoever waits for its keys and values.
struct Node {
    prompt: Arc<[u32]>,
    /// The first token that is scored.
    start: usize,
    followers: Vec<usize>,
}

/// Scores continuations; the results have their order. What is asked for twice is computed once.
///
/// # Errors
/// When the engine fails.
pub fn score(model: EvalModel<'_>, continuations: &[Continuation]) -> Result<Vec<Scored>> {
    let mut distinct: Vec<&Continuation> = continuations.iter().collect();
    distinct.sort();
    distinct.dedup();
    let (nodes, mut ready) = families(&distinct);
    // The longest first: what is left at the end is short.
    ready.sort_by_key(|n| Reverse(nodes[*n].prompt.len()));
    let mut engine = Engine::new(model.model, options(model, &distinct)?)?;
    let mut results: Vec<Option<Scored>> = vec![None; nodes.len()];
    let add = |engine: &mut Engine<&InferenceModel>, n: usize, priority: i64| -> Result<()> {
        let node = &nodes[n];
        let sampling = SamplingParams {
            max_tokens: 0,
            prompt_logprobs: Some(0),
            prompt_logprobs_start: node.start,
            ..SamplingParams::default()
        };
        let mut request = Request::new(RequestId(n as u64), Arc::clone(&node.prompt), sampling);
        request.priority = priority;
        Ok(engine.add(request)?)
    };
    for n in ready {
        add(&mut engine, n, 1)?;
    }
    while engine.has_requests() {
        for output in engine.step()? {
            let n = output.request.0 as usize;
            results[n] = Some(match (output.error, output.prompt_logprobs) {
                (None, Some(tokens)) => Ok(Likelihood {
                    loglikelihood: tokens.iter().map(|t| f64::from(t.token.logprob)).sum(),
                    is_greedy: tokens.iter().all(|scored| scored.token.rank == 1),
                    tokens: tokens.len(),
                }),
                (error, _) => Err(error.unwrap_or_else(|| "the engine gave no scores".into())),
            });
            // Before others, while their beginning is in the cache.
            for follower in &nodes[n].followers {
                add(&mut engine, *follower, 0)?;
            }
        }
    }
    let result = |continuation: &Continuation| {
        let place = distinct.binary_search(&continuation).ok().and_then(|n| results[n].clone());
        place.unwrap_or_else(|| Err("the engine gave no scores".into()))
    };
    Ok(continuations.iter().map(result).collect())
}

/// The sorted continuations as nodes, and which of them wait for none: the first of each family of
/// contexts with a common beginning. The others of the family wait for it, and choices of one context
/// wait for the first of them.
fn families(sorted: &[&Continuation]) -> (Vec<Node>, Vec<usize>) {
    let mut nodes: Vec<Node> = Vec::with_capacity(sorted.len());
    let mut first = Vec::new();
    let (mut family, mut context) = (0, 0);
    for (n, continuation) in sorted.iter().enumerate() {
        let prompt = [&continuation.context[..], &continuation.ids[..]].concat();
        nodes.push(Node {
            prompt: prompt.into(),
            start: continuation.context.len(),
            followers: Vec::new(),
        });
        let shares = |other: usize| {
            let pairs = continuation.context.iter().zip(&sorted[other].context);
            pairs.take_while(|(a, b)| a == b).count() >= SHARED_TOKENS
        };
        if n > 0 && sorted[context].context == continuation.context {
            nodes[context].followers.push(n);
        } else if n > 0 && shares(family) {
            nodes[family].followers.push(n);
            context = n;
        } else {
            first.push(n);
            (family, context) = (n, n);
        }
    }
    (nodes, first)
}

/// An engine with room for many sequences of these lengths, within the memory there is.
fn options(model: EvalModel<'_>, continuations: &[&Continuation]) -> Result<EngineOptions> {
    let lengths = continuations.iter().map(|x| x.context.len() + x.ids.len());
    let mut options = EngineOptions::new(model.model.context(), 1);
    options.num_blocks =
        model.cache_blocks(2 * SEQUENCES, lengths.max().unwrap_or(1), options.block_size)?;
    options.max_num_seqs = SEQUENCES;
    options.max_num_batched_tokens = PASS_TOKENS;
    options.policy = SchedulingPolicy::Priority;
    Ok(options)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn continuation(context: &[u32], ids: &[u32]) -> Continuation {
        Continuation::new(context.to_vec(), ids.to_vec(), 1000).unwrap()
    }

    #[test]
    fn a_context_is_cut_from_the_left() {
        let cut = Continuation::new((0..10).collect(), vec![10, 11], 8).unwrap();
        assert_eq!((cut.context, cut.cut), ((3..10).collect(), 3));
        let whole = Continuation::new((0..7).collect(), vec![7, 8], 8).unwrap();
        assert!(!whole.is_cut());
        assert_eq!(Continuation::new(vec![0], (0..9).collect(), 8), None);
        assert_eq!(Continuation::new(vec![0], Vec::new(), 8), None);
        assert!(Continuation::new(vec![0], (0..8).collect(), 8).is_some());
    }

    /// Everybody waits for one at most, and for whoever computes the beginning.
    #[test]
    fn what_has_a_common_beginning_waits_for_its_first() {
        let long: Vec<u32> = (0..60).collect();
        let with = |end: u32| [&long[..], &[end]].concat();
        let all = [
            continuation(&with(1), &[1]),
            continuation(&with(1), &[2]),
            continuation(&with(2), &[1]),
            continuation(&with(2), &[2, 3]),
            continuation(&[7, 8], &[1]),
            continuation(&[7, 9], &[1]),
        ];
        let sorted: Vec<&Continuation> = all.iter().collect();
        let (nodes, first) = families(&sorted);
        assert_eq!(first, [0, 4, 5]);
        let followers: Vec<&[usize]> = nodes.iter().map(|node| &node.followers[..]).collect();
        assert_eq!(followers, [&[1, 2][..], &[], &[3], &[], &[], &[]]);
        assert_eq!(nodes[3].start, 61);
    }
}
