//! What a layer saves between forward and backward, and how the rest is recomputed.
//!
//! Every policy gives the same gradients bit for bit, because the ops recomputed are the ops of the
//! forward pass on the same inputs.

use burn::tensor::Tensor;

use crate::config::{ActivationCheckpointing, LlamaConfig, Precision};
use crate::error::Result;
use crate::layer::{AttentionSaved, FeedForwardSaved, LayerContext, LayerSaved, forward_to_swiglu};
use crate::ops::{rms_norm_forward, swiglu_forward};
use crate::params::LayerWeights;

/// What one layer saves until its backward pass.
#[derive(Debug)]
pub enum SavedActivations {
    /// Everything backward reads.
    All(Box<LayerSaved>),
    /// The outputs of the linear layers and of the attention.
    LinearOutputs(Box<LinearOutputs>),
    /// The input of the layer.
    Input(Box<Tensor<3>>),
}

/// The expensive tensors of [`LayerSaved`]. Queries and keys are saved rotated, which takes no more
/// memory than saving them as they left the projection, and no backward pass reads them unrotated.
#[derive(Debug)]
pub struct LinearOutputs {
    x: Tensor<3>,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    o: Tensor<4>,
    lse: Tensor<3>,
    h: Tensor<3>,
    gate: Tensor<3>,
    up: Tensor<3>,
}

/// Drops from `saved` what `policy` does not save.
pub fn save(policy: ActivationCheckpointing, saved: LayerSaved) -> SavedActivations {
    match policy {
        ActivationCheckpointing::None => SavedActivations::All(Box::new(saved)),
        ActivationCheckpointing::Selective => {
            let AttentionSaved { x, q, k, v, o, lse, .. } = saved.attention;
            let FeedForwardSaved { h, gate, up, .. } = saved.feed_forward;
            let outputs = LinearOutputs { x, q, k, v, o, lse, h, gate, up };
            SavedActivations::LinearOutputs(Box::new(outputs))
        }
        ActivationCheckpointing::Full => SavedActivations::Input(Box::new(saved.attention.x)),
    }
}

/// Everything the backward pass of the layer reads, recomputed where it was not saved.
///
/// # Errors
/// Of the ranks' exchanges; none on one rank.
pub fn restore(
    saved: SavedActivations,
    weights: &LayerWeights,
    context: &LayerContext,
) -> Result<LayerSaved> {
    Ok(match saved {
        SavedActivations::All(saved) => *saved,
        SavedActivations::LinearOutputs(outputs) => {
            let LinearOutputs { x, q, k, v, o, lse, h, gate, up } = *outputs;
            let eps = context.config.norm_eps;
            let (normed, rstd) = rms_norm_forward(&x, &weights.input_layernorm, eps);
            let attention = AttentionSaved { x, rstd, normed, q, k, v, o, lse };
            let (normed, rstd) = rms_norm_forward(&h, &weights.post_attention_layernorm, eps);
            let swiglu = swiglu_forward(&gate, &up);
            let feed_forward = FeedForwardSaved { h, rstd, normed, gate, up, swiglu };
            LayerSaved { attention, feed_forward }
        }
        SavedActivations::Input(x) => forward_to_swiglu(weights, *x, context)?,
    })
}

/// Bytes one layer saves for a micro-batch of `batch` sequences of `time` tokens.
pub fn saved_bytes_per_layer(
    config: &LlamaConfig,
    policy: ActivationCheckpointing,
    precision: Precision,
    batch: usize,
    time: usize,
) -> usize {
    let tokens = batch * time;
    saved_bytes_of_rank(config, policy, precision, tokens, tokens)
}

/// Bytes one layer saves for `tokens` tokens on a rank with the shapes of `local`
/// ([`TensorRank::local_config`](crate::parallel::TensorRank::local_config)), of which it has `share` between the
/// matrices.
pub fn saved_bytes_of_rank(
    local: &LlamaConfig,
    policy: ActivationCheckpointing,
    precision: Precision,
    tokens: usize,
    share: usize,
) -> usize {
    let (c, f, hd) = (local.dim, local.ffn_dim(), local.attention_dim());
    let kv = 2 * local.kv_heads() * local.head_dim();
    let (bytes, lse, rstd) = (precision.bytes(), 4 * local.n_heads, 4);
    let (of_share, of_all) = match policy {
        // x, rms_norm(x), h, rms_norm(h); q, o; k, v; gate, up, swiglu
        ActivationCheckpointing::None => {
            (bytes * 4 * c + 2 * rstd, bytes * (2 * hd + kv + 3 * f) + lse)
        }
        // x, h; q, o; k, v; gate, up
        ActivationCheckpointing::Selective => (bytes * 2 * c, bytes * (2 * hd + kv + 2 * f) + lse),
        ActivationCheckpointing::Full => (bytes * c, 0),
    };
    share * of_share + tokens * of_all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use altiplano_comm::{Options, World};
    use burn::tensor::{DType, Device, Tensor};

    use super::*;
    use crate::counting_allocator::held_bytes;
    use crate::layer::layer_forward;
    use crate::ops::RopeTable;
    use crate::parallel::{TensorGroup, TensorRank, Tokens};
    use crate::params::Weights;

    /// 240 tokens of a layer with odd sizes.
    const BATCH: usize = 3;
    const TIME: usize = 80;

    fn config() -> LlamaConfig {
        LlamaConfig {
            dim: 96,
            n_layers: 1,
            n_heads: 12,
            n_kv_heads: Some(2),
            hidden_dim: Some(160),
            multiple_of: 256,
            vocab_size: 50,
            max_seq_len: TIME,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    /// What is given back when that which each policy saves of `forward` is dropped, against
    /// `expected`, but for the handles of its tensors.
    fn allocator_agrees(
        forward: &dyn Fn() -> (Tensor<3>, LayerSaved),
        expected: impl Fn(ActivationCheckpointing) -> usize,
        of: &str,
    ) {
        for policy in [
            ActivationCheckpointing::None,
            ActivationCheckpointing::Selective,
            ActivationCheckpointing::Full,
        ] {
            let (y, saved) = forward();
            let saved = save(policy, saved);
            drop(y);
            let before = held_bytes();
            drop(saved);
            let held = usize::try_from(before - held_bytes()).unwrap();
            let expected = expected(policy);
            // A handle is as large as that of the largest backend in the build.
            let handles = held - expected;
            assert!(handles < 16_384, "{policy:?} {of}: {held} held, {expected} said");
        }
    }

    #[test]
    fn the_allocator_agrees() {
        let (config, device) = (config(), Device::flex());
        let master_weights = Weights::init(&config, 1, DType::F32, &device);
        let rope = RopeTable::new(TIME, &config.rope_frequencies(), DType::F32, &device);
        let context = LayerContext::of_one_rank(&config, &rope);
        for precision in [Precision::F32, Precision::Bf16] {
            let weights = master_weights.compute_copy(precision);
            let dtype = weights.embed_tokens.dtype();
            let forward = || {
                let x = Tensor::<3>::ones([BATCH, TIME, config.dim], (&device, dtype));
                layer_forward(&weights.layers[0], x, &context).unwrap()
            };
            let expected = |policy| saved_bytes_per_layer(&config, policy, precision, BATCH, TIME);
            allocator_agrees(&forward, expected, &precision.to_string());
        }
    }

    /// On 2 and 4 ranks, the latter with two that hold the same head of keys and values; with sequence
    /// parallelism everything is shared.
    #[test]
    fn the_allocator_agrees_on_every_tensor_rank() {
        let (config, device) = (config(), Device::flex());
        let whole = Weights::init(&config, 1, DType::F32, &device);
        let rope = RopeTable::new(TIME, &config.rope_frequencies(), DType::F32, &device);
        for (ranks, sequence, precision) in [
            (2, true, Precision::F32),
            (2, false, Precision::Bf16),
            (4, true, Precision::Bf16),
            (4, false, Precision::F32),
        ] {
            let rank = |world: World| {
                let place = TensorRank::new(world.rank(), ranks, &config).unwrap();
                let local = place.local_config(&config);
                let weights = place.split(&whole, &config).compute_copy(precision);
                let group = TensorGroup::new(world.everybody().clone(), sequence, true);
                let tokens = Tokens::new(&group, [BATCH, TIME]);
                let context = LayerContext { tokens, ..LayerContext::of_one_rank(&config, &rope) };
                let share = if sequence { BATCH * TIME / ranks } else { BATCH * TIME };
                let shape = if sequence { [1, share] } else { [BATCH, TIME] };
                let dtype = weights.embed_tokens.dtype();
                let forward = || {
                    let x = Tensor::ones([shape[0], shape[1], config.dim], (&device, dtype));
                    layer_forward(&weights.layers[0], x, &context).unwrap()
                };
                let expected =
                    |policy| saved_bytes_of_rank(&local, policy, precision, BATCH * TIME, share);
                let of = format!("{precision} on {ranks} ranks, sequence {sequence}");
                allocator_agrees(&forward, expected, &of);
                world.finish().unwrap();
            };
            World::run_threads(ranks, &Options::default(), rank).unwrap();
        }
    }
}
