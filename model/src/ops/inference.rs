//! Ops that only inference needs: appending to a key/value cache, f32 logits of single positions.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::{fast, wide};
use crate::backend::TransformerOps;

/// Writes `rows` (t, K, D) into `cache` (T, K, D) from row `position` on, in place.
pub fn kv_cache_write(cache: &mut Tensor<3>, rows: Tensor<3>, position: usize) {
    if !fast(cache) {
        let [time, heads, head_dim] = rows.dims();
        let place = [position..position + time, 0..heads, 0..head_dim];
        return cache.inplace(|cache| cache.slice_assign(place, rows));
    }
    cache.inplace(|cache| {
        Tensor::from_dispatch(Dispatch::kv_cache_write(
            cache.into_dispatch(),
            rows.into_dispatch(),
            position,
        ))
    });
}

/// `x` (B, T, C) · `weight` (V, C)ᵀ: logits (B, T, V) in f32 (f64 for f64 inputs), because
/// neighbouring logits round to the same bf16 number.
pub fn head_logits(x: &Tensor<3>, weight: &Tensor<2>) -> Tensor<3> {
    if !fast(x) {
        let [batch, time, channels] = x.dims();
        let rows = wide(x).reshape([batch * time, channels]);
        return rows.matmul(wide(weight).transpose()).unsqueeze_dim(0);
    }
    Tensor::from_dispatch(Dispatch::head_logits(
        x.clone().into_dispatch(),
        weight.clone().into_dispatch(),
    ))
}
