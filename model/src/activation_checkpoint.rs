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
    let (c, f, hd) = (config.dim, config.ffn_dim(), config.attention_dim());
    let kv = 2 * config.kv_heads() * config.head_dim();
    let lse = 4 * config.n_heads;
    let rstd = 4;
    let per_token = match policy {
        // x, rms_norm(x), h, rms_norm(h); q, o; k, v; gate, up, swiglu
        ActivationCheckpointing::None => {
            precision.bytes() * (4 * c + 2 * hd + kv + 3 * f) + lse + 2 * rstd
        }
        // x, h, q, o; k, v; gate, up
        ActivationCheckpointing::Selective => {
            precision.bytes() * (2 * c + 2 * hd + kv + 2 * f) + lse
        }
        ActivationCheckpointing::Full => precision.bytes() * c,
    };
    batch * time * per_token
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{DType, Device, Tensor};

    use super::*;
    use crate::counting_allocator::held_bytes;
    use crate::layer::layer_forward;
    use crate::ops::RopeTable;
    use crate::params::Weights;

    /// The bytes the allocator holds for a saved layer are those of [`saved_bytes_per_layer`], but
    /// for the handles of its tensors.
    #[test]
    fn the_allocator_agrees() {
        let config = LlamaConfig {
            dim: 96,
            n_layers: 1,
            n_heads: 6,
            n_kv_heads: Some(2),
            hidden_dim: Some(160),
            multiple_of: 256,
            vocab_size: 50,
            max_seq_len: 80,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        };
        let (device, batch, time) = (Device::flex(), 3, 80);
        let master_weights = Weights::init(&config, 1, DType::F32, &device);
        let rope = RopeTable::new(time, &config.rope_frequencies(), DType::F32, &device);
        let context =
            LayerContext { config: &config, rope: &rope, first_visible: None, adapters: None };
        for precision in [Precision::F32, Precision::Bf16] {
            let weights = master_weights.compute_copy(precision);
            let dtype = weights.embed_tokens.dtype();
            // Scratch of the kernels is allocated once, before anything is counted.
            let forward = || {
                let x = Tensor::<3>::ones([batch, time, config.dim], (&device, dtype));
                layer_forward(&weights.layers[0], x, &context)
            };
            drop(forward());
            for policy in [
                ActivationCheckpointing::None,
                ActivationCheckpointing::Selective,
                ActivationCheckpointing::Full,
            ] {
                let before = held_bytes();
                let (y, saved) = forward();
                let saved = save(policy, saved);
                drop(y);
                let held = usize::try_from(held_bytes() - before).unwrap();
                let expected = saved_bytes_per_layer(&config, policy, precision, batch, time);
                let handles = held - expected;
                // A handle is as large as that of the largest backend in the build.
                assert!(handles < 16_384, "{policy:?} {precision:?}: {held} held, {expected} said");
                drop(saved);
            }
        }
    }
}
