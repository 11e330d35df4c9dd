//! Output head and cross entropy of a vocabulary that is split over the tensor ranks by words.
//! Derivation: `docs/backward/tokens.md`.
//!
//! ```text
//! z       = x wᵀ                                    logits of the rank's words
//! m_r     = max z,  s_r = Σ exp(z − m_r),  z*_r = z[target] where it is a word of the rank, else 0
//!
//! m       = max_r m_r
//! s       = Σ_r s_r exp(m_r − m)                    in the order of the ranks
//! loss    = m + ln s − Σ_r z*_r
//!
//! dz      = scale (exp(z − m)/s − [target is this word])
//! dx      = Σ_ranks dz w,   dw += dzᵀ x
//! ```
//!
//! A negative target is ignored: loss 0, gradient 0. Ranks exchange three numbers for each token of
//! a chunk; those of one chunk travel while the logits of the next are computed.

use std::collections::VecDeque;
use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::group::Pending;
use super::tokens::{Tokens, gather_tokens_backward, gather_tokens_forward};
use crate::backend::{
    HEAD_CHUNK, HeadChunk, TARGET_ELSEWHERE, has_kernels, head_gradient, head_statistics,
};
use crate::error::Result;
use crate::ops::{head_cross_entropy_backward, head_cross_entropy_forward, linear_forward};

/// The share `x` (1, rows, C) of this rank through the head, of which `weight` (V/t, C) holds the
/// rows of `words`: losses (B, T) in nats at `targets` (B, T), 0 where ignored, on every rank.
///
/// # Errors
/// As [`Pending::wait`].
pub fn vocab_parallel_cross_entropy_forward(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    targets: &Tensor<2, Int>,
    words: &Range<usize>,
    tokens: &Tokens,
) -> Result<Tensor<2>> {
    if tokens.tensor.is_single() {
        return Ok(head_cross_entropy_forward(x, weight, targets));
    }
    let pass = Pass::new(x, weight, targets, words, tokens)?;
    Ok(pass.run(None)?.0)
}

/// (losses (B, T), the share (1, rows, C) of dx) of `scale` · Σ losses; `dweight` (V/t, C)
/// accumulates. The rest is [`vocab_parallel_cross_entropy_forward`]'s.
///
/// # Errors
/// As [`Pending::wait`].
pub fn vocab_parallel_cross_entropy_backward(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    targets: &Tensor<2, Int>,
    scale: f64,
    dweight: &mut Tensor<2>,
    words: &Range<usize>,
    tokens: &Tokens,
) -> Result<(Tensor<2>, Tensor<3>)> {
    if tokens.tensor.is_single() {
        return Ok(head_cross_entropy_backward(x, weight, targets, scale, dweight));
    }
    let pass = Pass::new(x, weight, targets, words, tokens)?;
    let (losses, dx) = pass.run(Some((scale, dweight)))?;
    Ok((losses, gather_tokens_backward(dx, tokens).wait()?))
}

/// Logits (B, T, V) of the share `x` (1, rows, C) for the words of all ranks, `vocab_size` together.
///
/// # Errors
/// As [`Pending::wait`].
pub fn vocab_parallel_logits(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    vocab_size: usize,
    tokens: &Tokens,
) -> Result<Tensor<3>> {
    let x = gather_tokens_forward(x, tokens).wait()?;
    let logits = linear_forward(&x, weight);
    let [batch, time, _] = logits.dims();
    if tokens.tensor.is_single() {
        return Ok(logits);
    }
    // A row for each word: then the words of all ranks lie one after the other.
    let by_word = logits.flatten::<2>(0, 1).transpose().unsqueeze::<3>();
    let all = tokens.tensor.exchange(|group| group.start_all_gather(by_word, vocab_size)).wait()?;
    Ok(all.squeeze_dim::<2>(0).transpose().reshape([batch, time, vocab_size]))
}

/// The tokens of a micro-batch on their way through the head.
struct Pass<'a> {
    /// All tokens, (1, N, C).
    x: Tensor<3>,
    weight: &'a Tensor<2>,
    /// (N): places among the words of this rank, [`TARGET_ELSEWHERE`], or negative where ignored.
    targets: Vec<i32>,
    shape: [usize; 2],
    tokens: &'a Tokens<'a>,
}

/// The logits of a chunk of tokens, in the form that their gradient takes.
enum Logits {
    /// Of the kernels.
    Kernels(HeadChunk),
    /// In plain tensor operations, (M, V/t).
    Reference(Tensor<2>),
}

/// A chunk of tokens whose statistics are under way.
struct Chunk {
    tokens: Range<usize>,
    logits: Logits,
    /// (1, t·M, 3): of every rank for every token, largest logit, sum of exponentials, logit of the
    /// target.
    statistics: Pending<Tensor<3>>,
}

impl<'a> Pass<'a> {
    fn new(
        share: &Tensor<3>,
        weight: &'a Tensor<2>,
        targets: &Tensor<2, Int>,
        words: &Range<usize>,
        tokens: &'a Tokens<'a>,
    ) -> Result<Self> {
        let shape = targets.dims();
        let place = |target: i32| match usize::try_from(target) {
            Ok(word) if words.contains(&word) => (word - words.start) as i32,
            Ok(_) => TARGET_ELSEWHERE,
            Err(_) => target,
        };
        let targets = targets.to_data().iter::<i32>().map(place).collect();
        let x = gather_tokens_forward(share, tokens).wait()?;
        let channels = x.dims()[2];
        let x = x.reshape([1, shape[0] * shape[1], channels]);
        Ok(Self { x, weight, targets, shape, tokens })
    }

    /// Losses (B, T), and with a scale and the gradient of the weight, dx (B, T, C) as far as this
    /// rank's words give it.
    fn run(self, mut gradient: Option<(f64, &mut Tensor<2>)>) -> Result<(Tensor<2>, Tensor<3>)> {
        // The logits of two chunks exist at a time, and take the room of one rank's one.
        let ranks = self.tokens.tensor.group().ranks();
        let length = (HEAD_CHUNK * ranks / 2).max(1);
        let (mut losses, mut dx) = (Vec::with_capacity(self.targets.len()), Vec::new());
        let mut under_way = VecDeque::new();
        let mut begin = 0;
        loop {
            if begin < self.targets.len() {
                let end = self.targets.len().min(begin + length);
                under_way.push_back(self.start(begin..end, gradient.is_some()));
                begin = end;
                if under_way.len() < 2 {
                    continue;
                }
            }
            let Some(chunk) = under_way.pop_front() else { break };
            let totals = chunk.statistics.wait()?;
            let (of_chunk, totals) = combine(&totals, &self.targets[chunk.tokens.clone()]);
            losses.extend(of_chunk);
            if let Some((scale, dweight)) = &mut gradient {
                let x = self.of_chunk(&chunk.tokens);
                dx.push(self.gradient(chunk.logits, chunk.tokens, &x, &totals, *scale, dweight));
            }
        }
        let dtype = if self.x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let losses = TensorData::new(losses, self.shape).convert_dtype(dtype);
        let losses = Tensor::from_data(losses, (&self.x.device(), dtype));
        let [batch, time] = self.shape;
        let dx = match dx.is_empty() {
            true => self.x,
            false => Tensor::cat(dx, 1),
        };
        let channels = dx.dims()[2];
        Ok((losses, dx.reshape([batch, time, channels])))
    }

    fn of_chunk(&self, tokens: &Range<usize>) -> Tensor<3> {
        self.x.clone().narrow(1, tokens.start, tokens.len())
    }

    /// Computes the logits of some tokens and sends their statistics on their way.
    fn start(&self, tokens: Range<usize>, gradient: bool) -> Chunk {
        let x = self.of_chunk(&tokens);
        let targets = &self.targets[tokens.clone()];
        let (logits, statistics) = if has_kernels(&x.device(), x.dtype()) {
            let (chunk, statistics) = head_statistics(&x, self.weight, targets.to_vec(), gradient);
            let values: Vec<f32> =
                statistics.iter().flat_map(|of| [of.max, of.sum, of.target]).collect();
            let data = TensorData::new(values, [1, targets.len(), 3]);
            (Logits::Kernels(chunk), Tensor::from_data(data, (&x.device(), DType::F32)))
        } else {
            let (logits, statistics) = reference::statistics(&x, self.weight, targets);
            (Logits::Reference(logits), statistics)
        };
        let group = self.tokens.tensor;
        let rows = group.group().ranks() * targets.len();
        let statistics = group.exchange(|group| group.start_all_gather(statistics, rows));
        Chunk { tokens, logits, statistics }
    }

    /// dx (1, M, C) of a chunk `x` (1, M, C) with `totals` (M), as far as this rank's words give it.
    fn gradient(
        &self,
        logits: Logits,
        tokens: Range<usize>,
        x: &Tensor<3>,
        totals: &[[f64; 2]],
        scale: f64,
        dweight: &mut Tensor<2>,
    ) -> Tensor<3> {
        match logits {
            Logits::Kernels(chunk) => {
                let totals: Vec<[f32; 2]> =
                    totals.iter().map(|total| total.map(|x| x as f32)).collect();
                head_gradient(chunk, x, self.weight, &totals, scale as f32, dweight)
            }
            Logits::Reference(logits) => {
                let targets = &self.targets[tokens];
                reference::gradient(logits, x, self.weight, targets, totals, scale, dweight)
            }
        }
    }
}

/// Losses, and largest logit and sum of exponentials over the words of all ranks, of tokens with
/// the statistics `of_ranks` (1, t·M, 3).
fn combine(of_ranks: &Tensor<3>, targets: &[i32]) -> (Vec<f64>, Vec<[f64; 2]>) {
    let values: Vec<f64> = of_ranks.to_data().iter::<f64>().collect();
    let tokens = targets.len();
    let of_token = |(token, target): (usize, &i32)| {
        let ranks = || values.chunks_exact(3).skip(token).step_by(tokens);
        let max = ranks().map(|of| of[0]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = ranks().map(|of| of[1] * (of[0] - max).exp()).sum();
        let loss = max + sum.ln() - ranks().map(|of| of[2]).sum::<f64>();
        (if *target < 0 { 0.0 } else { loss }, [max, sum])
    };
    targets.iter().enumerate().map(of_token).unzip()
}

/// The parts of one rank in plain tensor operations.
mod reference {
    use burn::tensor::{Tensor, TensorData};

    use crate::backend::TARGET_ELSEWHERE;

    /// Logits (M, V/t) of `x` (1, M, C), and of each token the largest, the sum of exponentials and
    /// that of the target: (1, M, 3).
    pub fn statistics(
        x: &Tensor<3>,
        weight: &Tensor<2>,
        targets: &[i32],
    ) -> (Tensor<2>, Tensor<3>) {
        let logits = x.clone().squeeze_dim::<2>(0).matmul(weight.clone().transpose());
        let max = logits.clone().max_dim(1);
        let sum = (logits.clone() - max.clone()).exp().sum_dim(1);
        let target = (logits.clone() * one_hot(&logits, targets)).sum_dim(1);
        let statistics = Tensor::cat(vec![max, sum, target], 1);
        (logits, statistics.unsqueeze())
    }

    /// dx (1, M, C) of the rank's words; `dweight` (V/t, C) accumulates.
    pub fn gradient(
        logits: Tensor<2>,
        x: &Tensor<3>,
        weight: &Tensor<2>,
        targets: &[i32],
        totals: &[[f64; 2]],
        scale: f64,
        dweight: &mut Tensor<2>,
    ) -> Tensor<3> {
        let column = |values: Vec<f64>| -> Tensor<2> {
            let data = TensorData::new(values, [targets.len(), 1]).convert_dtype(logits.dtype());
            Tensor::from_data(data, (&logits.device(), logits.dtype()))
        };
        let max = column(totals.iter().map(|total| total[0]).collect());
        let factor = |(total, target): (&[f64; 2], &i32)| {
            if *target < 0 { 0.0 } else { 1.0 / total[1] }
        };
        let factors = column(totals.iter().zip(targets).map(factor).collect());
        let one_hot = one_hot(&logits, targets);
        let dlogits = ((logits - max).exp() * factors - one_hot) * scale;
        let update = dlogits.clone().transpose().matmul(x.clone().squeeze_dim::<2>(0));
        dweight.inplace(|sum| sum + update);
        dlogits.matmul(weight.clone()).unsqueeze()
    }

    /// (M, V/t): 1 at each target among the words.
    fn one_hot(logits: &Tensor<2>, targets: &[i32]) -> Tensor<2> {
        let [tokens, words] = logits.dims();
        let mut values = vec![0.0; tokens * words];
        for (token, target) in targets.iter().enumerate() {
            if *target >= 0 && *target != TARGET_ELSEWHERE {
                values[token * words + *target as usize] = 1.0;
            }
        }
        let data = TensorData::new(values, [tokens, words]).convert_dtype(logits.dtype());
        Tensor::from_data(data, (&logits.device(), logits.dtype()))
    }
}
