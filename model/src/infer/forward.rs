//! The forward pass of inference: rows of several sequences share the matrix products, and each
//! attends to the cached keys and values of its own sequence.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::block_pool::BlockId;
use super::model::{EngineModel, Pass};
use super::paged_cache::PagedCache;
use crate::error::Result;
use crate::layer::{
    AttentionSaved, FeedForwardSaved, KeysValues, LayerContext, attention_half, feed_forward_half,
};
use crate::llama::{Llama, check_ids, int_matrix};
use crate::ops::{
    embedding_forward, head_logits, linear_forward, residual_forward, rms_norm_forward,
};
use crate::params::LayerWeights;

impl EngineModel for Llama {
    type Cache = PagedCache;
    /// Output of the last layer, (1, rows, C).
    type Hidden = Tensor<3>;

    fn device(&self) -> &Device {
        self.device()
    }

    fn context(&self) -> usize {
        self.config.max_seq_len
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn new_cache(&self, blocks: usize, block_size: usize) -> Result<PagedCache> {
        let dtype = self.weights.embed_tokens.dtype();
        PagedCache::new(&self.config, dtype, self.device(), blocks, block_size)
    }

    fn copy_blocks(&self, cache: &mut PagedCache, copies: &[(BlockId, BlockId)]) {
        cache.copy_blocks(copies);
    }

    fn forward(&self, pass: &Pass, cache: &mut PagedCache) -> Result<Tensor<3>> {
        let ids: Vec<i32> = pass.ids.iter().map(|id| *id as i32).collect();
        check_ids(&ids, self.config.vocab_size)?;
        let rope = self.rope_at(&pass.positions);
        let context = self.context(&rope, None);
        let ids = int_matrix(&ids, ids.len(), self.device());
        let mut x = embedding_forward(&self.weights.embed_tokens, &ids);
        for (weights, mut keys_values) in self.weights.layers.iter().zip(cache.layers(pass)) {
            x = layer_forward_cached(weights, x, &context, &mut keys_values);
        }
        Ok(x)
    }

    fn logits(&self, hidden: &Tensor<3>, rows: &[usize]) -> Vec<f32> {
        let count = rows.len();
        let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let rows: Tensor<1, Int> =
            Tensor::from_data(TensorData::new(rows, [count]), (self.device(), DType::I32));
        let x = hidden.clone().select(1, rows);
        let (x, _) = rms_norm_forward(&x, &self.weights.norm, self.config.norm_eps);
        let logits = head_logits(&x, &self.weights.lm_head).into_data().convert::<f32>();
        logits.try_into_vec().expect("converted to f32")
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
