//! Keys and values of the tokens seen so far.

use burn::tensor::{Int, Tensor};

use crate::infer::InferenceModel;
use crate::layer::KeysValues;
use crate::ops::{causal_attention_forward, kv_cache_write};

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
    pub fn new(model: &InferenceModel, capacity: usize) -> Self {
        let config = model.config();
        let shape = [capacity, config.kv_heads(), config.head_dim()];
        let options = (model.device(), model.dtype());
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

    /// The keys and values of each layer, for a pass over the tokens after those seen so far.
    pub(super) fn layers(&mut self) -> impl Iterator<Item = impl KeysValues> {
        let start = self.len;
        self.layers.iter_mut().map(move |layer| CachedKeysValues { layer, start })
    }

    /// Counts the `time` tokens of a pass that went through all layers as seen.
    pub(super) fn advance(&mut self, time: usize) {
        self.len += time;
    }
}

/// The cache of one layer during a pass whose first token has position `start`.
struct CachedKeysValues<'a> {
    layer: &'a mut LayerCache,
    start: usize,
}

impl KeysValues for CachedKeysValues<'_> {
    fn attend(
        &mut self,
        q: &Tensor<4>,
        k: &Tensor<4>,
        v: &Tensor<4>,
        first_visible: Option<&Tensor<2, Int>>,
    ) -> (Tensor<4>, Tensor<3>) {
        let [_, time, ..] = k.dims();
        let LayerCache { k: all_k, v: all_v } = &mut *self.layer;
        kv_cache_write(all_k, k.clone().squeeze_dim(0), self.start);
        kv_cache_write(all_v, v.clone().squeeze_dim(0), self.start);
        let end = self.start + time;
        let seen = |all: &Tensor<3>| all.clone().narrow(0, 0, end).unsqueeze_dim(0);
        causal_attention_forward(q, &seen(all_k), &seen(all_v), first_visible)
    }
}
