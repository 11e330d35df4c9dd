//! Causal attention alone, forward and backward.

use altiplano_model::config::Precision;
use altiplano_model::device;
use altiplano_model::ops::{causal_attention_backward, causal_attention_forward};
use burn::tensor::{DType, Distribution, Tensor};
use serde::Serialize;

use super::median;
use crate::error::{Result, TrainerError};
use crate::metrics::peak_memory_bytes;
use crate::timing::timed_on;

/// Shape and length of the measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionBenchOptions {
    /// Where, as in a configuration: `cpu`, `cuda`.
    pub device: String,
    /// Sequences, B.
    pub batch: usize,
    /// Heads, H; as many for keys and values.
    pub heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
    /// Tokens of a sequence, T.
    pub seq_len: usize,
    /// Number format of q, k and v.
    pub precision: Precision,
    /// Passes timed, after one that is not.
    pub repeats: usize,
}

/// Speed and memory of attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttentionBench {
    /// Median time of the forward pass.
    pub forward_seconds: f64,
    /// Median time of the backward pass.
    pub backward_seconds: f64,
    /// Their sum.
    pub seconds: f64,
    /// 3.5 · 2BHT²D over `seconds`; see [`attention_flops()`].
    pub flops_per_second: f64,
    /// Most memory the process held.
    pub peak_memory_bytes: u64,
    /// Sequences.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Number format of q, k and v.
    pub precision: Precision,
    /// Threads that compute.
    pub threads: usize,
}

/// Floating-point operations of causal attention, forward and backward: 3.5 · 2BHT²D.
///
/// The forward pass has two products of 2BHT²D each (the scores, and their average of v), of which
/// causality leaves half: 2BHT²D. The backward pass has five, one of them the scores again:
/// 2.5 times as many. Counted so by Dao (2023, arXiv 2307.08691, section 4.1).
pub fn attention_flops(batch: usize, heads: usize, seq_len: usize, head_dim: usize) -> f64 {
    7.0 * (batch * heads) as f64 * (seq_len as f64).powi(2) * head_dim as f64
}

/// Measures attention on random q, k, v and output gradient.
///
/// # Errors
/// When a size is 0 or the tensors are larger than any memory.
pub fn bench_attention(options: &AttentionBenchOptions) -> Result<AttentionBench> {
    let AttentionBenchOptions { batch, heads, head_dim, seq_len, precision, repeats, .. } =
        *options;
    let sizes = [batch, heads, head_dim, seq_len, repeats];
    let elements = sizes[..4].iter().try_fold(1usize, |n, size| n.checked_mul(*size));
    if sizes.contains(&0) || elements.is_none_or(|n| n > 1 << 36) {
        return Err(TrainerError::Usage {
            message: format!(
                "--batch {batch} --seq-len {seq_len} --heads {heads} --head-dim {head_dim} \
                 --repeats {repeats}: each must be at least 1, and a tensor at most 2^36 elements"
            ),
        });
    }
    let device = device::select(&options.device)?;
    let dtype = match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let random = || {
        let shape = [batch, seq_len, heads, head_dim];
        Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), (&device, DType::F32))
            .cast(dtype)
    };
    let (q, k, v, dout) = (random(), random(), random(), random());
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for repeat in 0..=repeats {
        let (forward_seconds, (o, lse)) =
            timed_on(&device, || causal_attention_forward(&q, &k, &v, None));
        let (backward_seconds, _) =
            timed_on(&device, || causal_attention_backward(&dout, &q, &k, &v, &o, &lse, None));
        if repeat > 0 {
            forward.push(forward_seconds);
            backward.push(backward_seconds);
        }
    }
    let (forward_seconds, backward_seconds) = (median(&forward), median(&backward));
    let seconds = forward_seconds + backward_seconds;
    Ok(AttentionBench {
        forward_seconds,
        backward_seconds,
        seconds,
        flops_per_second: attention_flops(batch, heads, seq_len, head_dim) / seconds,
        peak_memory_bytes: peak_memory_bytes(),
        batch,
        heads,
        head_dim,
        seq_len,
        precision,
        threads: rayon::current_num_threads(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_as_published() {
        // 0.45 s at T 4096, 8 heads of 64 are 133 GFLOP/s.
        let rate = attention_flops(1, 8, 4096, 64) / 0.45;
        assert!((rate / 133e9 - 1.0).abs() < 0.01, "{rate}");
    }

    #[test]
    fn a_small_shape_is_measured_and_nothing_is_refused() {
        let options = AttentionBenchOptions {
            device: "cpu".to_string(),
            batch: 1,
            heads: 2,
            head_dim: 16,
            seq_len: 65,
            precision: Precision::Bf16,
            repeats: 5,
        };
        let bench = bench_attention(&options).unwrap();
        assert!(bench.forward_seconds > 0.0 && bench.backward_seconds > 0.0);
        let flops = bench.flops_per_second * bench.seconds;
        assert!((flops / attention_flops(1, 2, 65, 16) - 1.0).abs() < 1e-9);
        assert!(bench_attention(&AttentionBenchOptions { heads: 0, ..options.clone() }).is_err());
        let huge = AttentionBenchOptions { seq_len: usize::MAX, ..options };
        assert!(bench_attention(&huge).unwrap_err().is_usage());
    }
}
