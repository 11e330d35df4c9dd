//! Choosing the next token of one sequence from its logits, without sorting the vocabulary.
//!
//! The order is vLLM's: what may be chosen at all (a grammar, `allowed_token_ids`, `logit_bias`,
//! `min_tokens`), penalties, temperature, min-p, top-k, top-p, a draw. Log-probabilities that are
//! reported are those of the model, before all of this.
//!
//! Probabilities become whole numbers of 40 bits, whose sums are exact in any order: which tokens
//! are kept and which is drawn does not depend on how the sums are computed. A draw takes its
//! random number from the seed, the index of the sequence and the place of the token in its answer,
//! and from nothing else.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use altiplano_kernels::{largest_finite, log_sum_exp, softmax_weights};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::request::{SamplingParams, ScoredToken, TokenConstraint, TokenLogprob};

/// Temperatures below it take the likeliest token, as vLLM's do.
const GREEDY: f32 = 1e-5;

/// What one sequence has chosen so far, as far as it bears on what it chooses next.
pub struct Sampler {
    params: Arc<SamplingParams>,
    /// Index of the sequence in its request.
    index: usize,
    /// Tokens chosen.
    chosen: usize,
    /// How often each token of prompt and answer stands in the answer; empty without penalties.
    seen: HashMap<u32, u32>,
    constraint: Option<Box<dyn TokenConstraint>>,
}

/// Why no token was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoChoice {
    /// The logits are no numbers.
    NotFinite,
    /// A grammar cannot go on, or nothing is allowed.
    Refused(String),
}

impl From<String> for NoChoice {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Its log-probability and the likeliest tokens, when asked for.
    pub logprobs: Option<ScoredToken>,
}

/// Ids that are special for all sequences of an engine.
#[derive(Debug, Clone, Copy)]
pub struct Vocabulary<'a> {
    /// End tokens.
    pub eos: &'a [u32],
    /// Ids from here on are never chosen.
    pub limit: usize,
}

impl Sampler {
    /// A sampler for sequence 0 of a request.
    pub fn new(
        params: Arc<SamplingParams>,
        prompt: &[u32],
        constraint: Option<Box<dyn TokenConstraint>>,
    ) -> Self {
        let mut seen = HashMap::new();
        if params.repetition_penalty != 1.0 {
            seen.extend(prompt.iter().map(|id| (*id, 0)));
        }
        Self { params, index: 0, chosen: 0, seen, constraint }
    }

    /// A sampler in the same state for another sequence of the request.
    pub fn fork(&self, index: usize) -> Self {
        Self {
            params: self.params.clone(),
            index,
            chosen: self.chosen,
            seen: self.seen.clone(),
            constraint: self.constraint.as_ref().map(|constraint| constraint.fork()),
        }
    }

    /// Tokens chosen so far.
    pub fn chosen(&self) -> usize {
        self.chosen
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The next token for `logits`, of which nothing but meaningless numbers is left.
    ///
    /// # Errors
    /// Why there is none.
    pub fn choose(
        &mut self,
        logits: &mut [f32],
        vocabulary: Vocabulary<'_>,
    ) -> Result<Choice, NoChoice> {
        let Some(largest) = largest_finite(logits) else { return Err(NoChoice::NotFinite) };
        let limit = vocabulary.limit.min(logits.len());
        let raw = self.params.logprobs.map(|_| logits.to_vec());
        let kept = &mut logits[..limit];
        let changed = self.restrict(kept, vocabulary.eos)? | self.penalize(kept);
        let largest = if changed || limit < logits.len() {
            logits[..limit].iter().copied().fold(f32::NEG_INFINITY, f32::max)
        } else {
            largest
        };
        if !largest.is_finite() {
            return Err(NoChoice::Refused("no token is allowed to follow".into()));
        }
        let id = self.draw(&mut logits[..limit], largest);
        let logprobs = match (raw, self.params.logprobs) {
            (Some(raw), Some(count)) => score(&raw, limit, id, count),
            _ => None,
        };
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }
        self.chosen += 1;
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            *self.params;
        if (repetition_penalty, presence_penalty, frequency_penalty) != (1.0, 0.0, 0.0) {
            *self.seen.entry(id).or_default() += 1;
        }
        Ok(Choice { id, logprobs })
    }

    /// Rules out what may not be chosen and adds biases; whether it changed anything.
    fn restrict(&mut self, logits: &mut [f32], eos: &[u32]) -> Result<bool, String> {
        let mut changed = false;
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
            changed = true;
        }
        if let Some(allowed) = &self.params.allowed_token_ids {
            let values: Vec<(u32, f32)> =
                allowed.iter().filter_map(|id| Some((*id, *logits.get(*id as usize)?))).collect();
            logits.fill(f32::NEG_INFINITY);
            for (id, value) in values {
                logits[id as usize] = value;
            }
            changed = true;
        }
        for (id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
                changed = true;
            }
        }
        if self.chosen < self.params.min_tokens {
            for id in eos.iter().chain(&self.params.stop_token_ids) {
                if let Some(logit) = logits.get_mut(*id as usize) {
                    *logit = f32::NEG_INFINITY;
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    /// Lowers the logits of tokens that stand in the text; whether there are any.
    fn penalize(&self, logits: &mut [f32]) -> bool {
        let params = &self.params;
        for (id, count) in &self.seen {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            let repetition = params.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            if *count > 0 {
                *logit -= params.frequency_penalty * *count as f32 + params.presence_penalty;
            }
        }
        !self.seen.is_empty()
    }

    /// Cuts and draws.
    fn draw(&self, logits: &mut [f32], largest: f32) -> u32 {
        let SamplingParams { temperature, top_k, top_p, min_p, seed, .. } = *self.params;
        if temperature < GREEDY {
            let first = logits.iter().position(|x| *x == largest);
            return first.unwrap_or_default() as u32;
        }
        let random = random(seed, self.index, self.chosen);
        if top_k == 0 || top_k >= logits.len() {
            let weights = logits;
            softmax_weights(weights, largest, 1.0 / temperature);
            return draw_weighted(weights, min_p, top_p, random) as u32;
        }
        let mut likeliest = select_likeliest(logits, top_k);
        // Among equals the smallest id comes first, here as everywhere.
        likeliest.sort_unstable_by_key(|(_, id)| *id);
        let mut weights: Vec<f32> = likeliest.iter().map(|(logit, _)| *logit).collect();
        softmax_weights(&mut weights, largest, 1.0 / temperature);
        likeliest[draw_weighted(&mut weights, min_p, top_p, random)].1
    }
}

/// The log-probability of `id`, and of the `count` likeliest ids below `limit`; none when a logit is
/// not finite.
pub fn score(logits: &[f32], limit: usize, id: u32, count: usize) -> Option<ScoredToken> {
    let largest = largest_finite(logits)?;
    let total = log_sum_exp(logits, largest);
    let logprob = |logit: f32| (f64::from(logit) - total) as f32;
    let own = *logits.get(id as usize)?;
    let before =
        |(other, logit): (usize, &f32)| *logit > own || (*logit == own && other < id as usize);
    let rank = 1 + logits[..limit].iter().enumerate().filter(|x| before(*x)).count();
    let mut top = select_likeliest(&logits[..limit], count);
    top.sort_unstable_by(likeliest_first);
    let top = top
        .into_iter()
        .enumerate()
        .map(|(n, (logit, id))| TokenLogprob { id, logprob: logprob(logit), rank: n + 1 })
        .collect();
    Some(ScoredToken { token: TokenLogprob { id, logprob: logprob(own), rank }, top })
}

/// 64 random bits of this draw alone.
fn random(seed: u64, index: usize, place: usize) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index as u64);
    rng.set_word_pos(2 * place as u128);
    rng.next_u64()
}

/// The larger logit first, the smaller id among equals.
fn likeliest_first(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The `count` likeliest ids with their logits, in no order; all when there are fewer.
fn select_likeliest(logits: &[f32], count: usize) -> Vec<(f32, u32)> {
    /// Logits that are passed over together when none of them is large enough.
    const RUN: usize = 64;
    if count == 0 {
        return Vec::new();
    }
    let mut kept: Vec<(f32, u32)> = Vec::new();
    // The least of `count` that were found. An equal one found later has a larger id.
    let mut least = None;
    let shrink = |kept: &mut Vec<(f32, u32)>| {
        if kept.len() > count {
            kept.select_nth_unstable_by(count - 1, likeliest_first);
            kept.truncate(count);
        }
        (kept.len() == count).then(|| kept.iter().map(|(x, _)| *x).fold(f32::INFINITY, f32::min))
    };
    for (n, run) in logits.chunks(RUN).enumerate() {
        if let Some(least) = least
            && !run.iter().any(|x| *x > least)
        {
            continue;
        }
        for (i, x) in run.iter().enumerate() {
            if least.is_none_or(|least| *x > least) {
                kept.push((*x, (n * RUN + i) as u32));
            }
        }
        if kept.len() >= count.saturating_mul(2).saturating_add(RUN) {
            least = shrink(&mut kept);
        }
    }
    shrink(&mut kept);
    kept
}

/// A weight, at most 1, as a whole number.
#[inline(always)]
fn whole(weight: f32) -> u64 {
    const ONE: f32 = (1u64 << 40) as f32;
    (weight * ONE) as u64
}

fn sum(weights: &[f32]) -> u64 {
    weights.iter().map(|weight| whole(*weight)).sum()
}

/// The place of one of `weights`, of which the largest is 1, drawn in proportion to them among those
/// that min-p and top-p keep.
fn draw_weighted(weights: &mut [f32], min_p: f32, top_p: f32, random: u64) -> usize {
    if min_p > 0.0 {
        for weight in &mut *weights {
            *weight = if *weight < min_p.min(1.0) { 0.0 } else { *weight };
        }
    }
    let mut total = sum(weights);
    if top_p < 1.0 {
        let target = (f64::from(top_p) * total as f64).ceil() as u64;
        cut_tail(weights, target.clamp(1, total.max(1)));
        total = sum(weights);
    }
    // The upper half of the product is random in 0..total.
    let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for (place, weight) in weights.iter().enumerate() {
        let weight = whole(*weight);
        if left < weight {
            return place;
        }
        left -= weight;
    }
    // Only when all weights are zero, and the largest is 1.
    0
}

/// Sets to zero all but the largest weights, as many as it takes for their sum to reach `target`; the
/// first among equals stay. Numbers are not compared but counted by their bits, the upper ones first:
/// larger ones have larger bits.
fn cut_tail(weights: &mut [f32], target: u64) {
    /// Lowest bit and number of bits of each round.
    const ROUNDS: [(u32, u32); 3] = [(20, 12), (10, 10), (0, 10)];
    let (mut before, mut bits) = (0u64, 0u32);
    for (shift, width) in ROUNDS {
        let mut sums = vec![0u64; 1 << width];
        for weight in &*weights {
            let own = weight.to_bits();
            if shift + width == 32 || own >> (shift + width) == bits {
                sums[(own >> shift) as usize & ((1 << width) - 1)] += whole(*weight);
            }
        }
        let mut digit = sums.len() - 1;
        while digit > 0 && before + sums[digit] < target {
            before += sums[digit];
            digit -= 1;
        }
        bits = bits << width | digit as u32;
    }
    // The smallest weight that stays, and how many of its equals are needed.
    let least = f32::from_bits(bits);
    let mut equals = (target - before.min(target)).div_ceil(whole(least).max(1));
    for weight in weights {
        let stays = *weight > least || (*weight == least && equals > 0);
        equals -= u64::from(stays && *weight == least);
        *weight = if stays { *weight } else { 0.0 };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
