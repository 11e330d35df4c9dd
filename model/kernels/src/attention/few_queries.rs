//! The forward pass for a few queries after a cache of keys, as in generation.
//!
//! Keys and values are read once, as they lie: packing them for tiles would cost more than
//! the products. One task per sequence, head and query; the scores of one query exist at a
//! time.

use super::{AttentionShape, Visibility, dot};
use crate::element::Element;
use crate::exp::exp2;
use crate::scratch::Scratch;
use crate::simd::{LANES, max_lanes, sum_lanes, vectorized};
use rayon::prelude::*;

/// Queries up to which this pass is taken.
pub(super) const FEW_QUERIES: usize = 4;

/// As [`super::causal_attention_forward`].
pub(super) fn forward<E: Element>(
    o: &mut [E],
    lse: &mut [f32],
    q: &[E],
    k: &[E],
    v: &[E],
    visibility: Visibility<'_>,
) {
    let AttentionShape { queries, keys, heads, kv_heads, head_dim, .. } = visibility.shape;
    // Rows of o are (b, i, h); the log-sum-exp goes to (b, h, i).
    let rows: Vec<f32> = o
        .par_chunks_mut(head_dim)
        .zip(q.par_chunks(head_dim))
        .enumerate()
        .map(|(row, (o, q))| {
            let (b, i, h) = (row / heads / queries, row / heads % queries, row % heads);
            let kv_head = h / (heads / kv_heads);
            let head_start = (b * keys * kv_heads + kv_head) * head_dim;
            let stride = kv_heads * head_dim;
            let (first, end) = visibility.keys(b, i);
            let mut scratch = Scratch::new::<f32>(end - first + head_dim);
            let (scores, sums) = scratch.as_mut::<f32>().split_at_mut(end - first);
            let start = head_start + first * stride;
            let scale = visibility.shape.scale();
            attend(o, scores, sums, q, (&k[start..], &v[start..]), stride, scale)
        })
        .collect();
    for (row, &x) in rows.iter().enumerate() {
        let (b, i, h) = (row / heads / queries, row / heads % queries, row % heads);
        lse[(b * heads + h) * queries + i] = x;
    }
}

vectorized! {
    /// Attends to `scores.len()` keys and values, `stride` apart; returns the log-sum-exp.
    fn attend<E: Element>(
        o: &mut [E],
        scores: &mut [f32],
        sums: &mut [f32],
        q: &[E],
        cache: (&[E], &[E]),
        stride: usize,
        scale: f32,
    ) -> f32 {
        let (k, v) = cache;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for (j, score) in scores.iter_mut().enumerate() {
            *score = dot(q, &k[j * stride..][..q.len()]);
            let lane = &mut lanes[j % LANES];
            *lane = if *score > *lane { *score } else { *lane };
        }
        let max = max_lanes(lanes);
        let factor = scale * std::f32::consts::LOG2_E;
        let mut lanes = [0.0f32; LANES];
        for run in scores.chunks_mut(LANES) {
            for (lane, score) in lanes.iter_mut().zip(run) {
                *score = exp2((*score - max) * factor);
                *lane += *score;
            }
        }
        let sum = sum_lanes(lanes);
        sums.fill(0.0);
        for (j, &p) in scores.iter().enumerate() {
            for (sum, &v) in sums.iter_mut().zip(&v[j * stride..]) {
                *sum = p.mul_add(v.to_f32(), *sum);
            }
        }
        for (o, &x) in o.iter_mut().zip(&*sums) {
            *o = E::from_f32(x / sum);
        }
        max * scale + sum.ln()
    }
}
