//! Keys and values of the tokens seen so far, and the forward pass that reads and extends them.

use burn::tensor::Tensor;

use crate::error::{ModelError, Result};
use crate::layer::{merge_heads, split_heads};
use crate::llama::{Llama, check_ids, int_matrix};
use crate::ops::{
    causal_attention_forward, embedding_forward, head_logits, kv_cache_write, linear_forward,
    residual_forward, rms_norm_forward, rope_forward, swiglu_forward,
};
use crate::params::LayerParams;

/// Rotated keys and values of one sequence, for every layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

/// Keys and values of one layer, each (capacity, K, D).
#[derive(Debug)]
struct LayerCache {
    k: Tensor<3>,
    v: Tensor<3>,
}

impl KvCache {
    /// An empty cache for one sequence of at most `capacity` tokens.
    pub fn new(model: &Llama, capacity: usize) -> Self {
        let config = &model.config;
        let shape = [capacity, config.kv_heads(), config.head_dim()];
        let options = (model.device(), model.weights.embed_tokens.dtype());
        let layers = (0..config.n_layers)
            .map(|_| LayerCache {
                k: Tensor::zeros(shape, options),
                v: Tensor::zeros(shape, options),
            })
            .collect();
        Self { layers, len: 0, capacity }
    }

    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens the cache has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Llama {
    /// Appends `ids` to the sequence in `cache`; the f32 logits (V) of the token after the last.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id outside the vocabulary, [`ModelError::PromptTooLong`] when
    /// the cache is full.
    pub fn forward_cached(&self, ids: &[i32], cache: &mut KvCache) -> Result<Vec<f32>> {
        check_ids(ids, self.config.vocab_size)?;
        let (start, time) = (cache.len, ids.len());
        if start + time > cache.capacity || time == 0 {
            return Err(ModelError::PromptTooLong { found: start + time, limit: cache.capacity });
        }
        let rope = self.rope(start, time);
        let mut x =
            embedding_forward(&self.weights.embed_tokens, &int_matrix(ids, time, self.device()));
        for (params, layer) in self.weights.layers.iter().zip(&mut cache.layers) {
            x = self.layer_cached(params, x, layer, start, &rope);
        }
        cache.len += time;
        let last = x.narrow(1, time - 1, 1);
        let (last, _) = rms_norm_forward(&last, &self.weights.norm, self.config.norm_eps);
        let logits = head_logits(&last, &self.weights.lm_head);
        Ok(logits.into_data().iter::<f32>().collect())
    }

    /// As [`crate::layer::layer_forward`], with the keys and values of earlier tokens from the
    /// cache, keeping nothing for a backward pass.
    fn layer_cached(
        &self,
        params: &LayerParams,
        x: Tensor<3>,
        cache: &mut LayerCache,
        start: usize,
        rope: &crate::ops::RopeTable,
    ) -> Tensor<3> {
        let config = &self.config;
        let [_, time, _] = x.dims();
        let (normed, _) = rms_norm_forward(&x, &params.input_layernorm, config.norm_eps);
        let q = split_heads(linear_forward(&normed, &params.q_proj), config.n_heads);
        let k = split_heads(linear_forward(&normed, &params.k_proj), config.kv_heads());
        let v = split_heads(linear_forward(&normed, &params.v_proj), config.kv_heads());
        kv_cache_write(&mut cache.k, rope_forward(k, rope).squeeze_dim(0), start);
        kv_cache_write(&mut cache.v, v.squeeze_dim(0), start);
        let seen = |cache: &Tensor<3>| cache.clone().narrow(0, 0, start + time).unsqueeze_dim(0);
        let (o, _) = causal_attention_forward(
            &rope_forward(q, rope),
            &seen(&cache.k),
            &seen(&cache.v),
            None,
        );
        let h = residual_forward(x, &linear_forward(&merge_heads(o), &params.o_proj));
        let (normed, _) = rms_norm_forward(&h, &params.post_attention_layernorm, config.norm_eps);
        let swiglu = swiglu_forward(
            &linear_forward(&normed, &params.gate_proj),
            &linear_forward(&normed, &params.up_proj),
        );
        residual_forward(h, &linear_forward(&swiglu, &params.down_proj))
    }
}
