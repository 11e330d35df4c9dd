//! The forward pass that continues a sequence: new tokens attend to the cached keys and values of
//! those before them.

use burn::tensor::Tensor;

use crate::error::{ModelError, Result};
use crate::infer::KvCache;
use crate::layer::{
    AttentionSaved, FeedForwardSaved, KeysValues, LayerContext, attention_half, feed_forward_half,
};
use crate::llama::{Llama, check_ids, int_matrix};
use crate::ops::{
    embedding_forward, head_logits, linear_forward, residual_forward, rms_norm_forward,
};
use crate::params::LayerWeights;

impl Llama {
    /// Appends `ids` to the sequence in `cache`; the f32 logits (V) of the token after the last.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id outside the vocabulary, [`ModelError::PromptTooLong`] when
    /// the cache is full.
    pub fn forward_cached(&self, ids: &[i32], cache: &mut KvCache) -> Result<Vec<f32>> {
        check_ids(ids, self.config.vocab_size)?;
        let (start, time) = (cache.len(), ids.len());
        if start + time > cache.capacity() || time == 0 {
            return Err(ModelError::PromptTooLong { found: start + time, limit: cache.capacity() });
        }
        let rope = self.rope(start, time);
        let context = self.context(&rope, None);
        let mut x =
            embedding_forward(&self.weights.embed_tokens, &int_matrix(ids, time, self.device()));
        for (weights, mut keys_values) in self.weights.layers.iter().zip(cache.layers()) {
            x = layer_forward_cached(weights, x, &context, &mut keys_values);
        }
        cache.advance(time);
        let last = x.narrow(1, time - 1, 1);
        let (last, _) = rms_norm_forward(&last, &self.weights.norm, self.config.norm_eps);
        let logits = head_logits(&last, self.weights.head());
        Ok(logits.into_data().iter::<f32>().collect())
    }
}

/// As [`crate::layer::layer_forward`], with nothing saved for a backward pass. The last projection
/// and the residual stream are added in two steps, which for a few rows is the faster way.
fn layer_forward_cached(
    weights: &LayerWeights,
    x: Tensor<3>,
    context: &LayerContext,
    keys_values: &mut impl KeysValues,
) -> Tensor<3> {
    let (branch, AttentionSaved { x, .. }) = attention_half(weights, x, context, keys_values);
    let FeedForwardSaved { h, swiglu, .. } = feed_forward_half(weights, &x, &branch, context);
    residual_forward(h, &linear_forward(&swiglu, &weights.down_proj))
}
