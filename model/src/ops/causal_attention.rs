//! Causal attention in memory linear in T (Dao et al. 2022). Derivation:
//! `docs/backward/causal_attention.md`.
//!
//! ```text
//! s_ij  = α ⟨q_i, k_j⟩                α = 1/√D, for the keys j that query i sees
//! lse_i = ln Σ_j exp(s_ij)
//! p_ij  = exp(s_ij − lse_i)
//! o_i   = Σ_j p_ij v_j
//!
//! Δ_i   = ⟨do_i, o_i⟩
//! dp_ij = ⟨do_i, v_j⟩
//! ds_ij = p_ij (dp_ij − Δ_i)
//! dq_i  = α Σ_j ds_ij k_j
//! dk_j  = α Σ_i ds_ij q_i
//! dv_j  = Σ_i p_ij do_i
//! ```
//!
//! The kernels walk tiles of keys with an online softmax and save only lse (B, H, T); the T × T
//! matrix never exists, and tiles above the diagonal are never computed. The backward pass recomputes
//! p from q, k and lse. With grouped heads (K < H) each key and value head serves H/K query heads and
//! sums their gradients.

use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::fast;
use crate::backend::TransformerOps;

/// `q` (B, Tq, H, D), `k` and `v` (B, Tk, K, D): (o (B, Tq, H, D), lse (B, H, Tq)).
///
/// Causality is aligned to the end: query i sees the keys up to i + Tk − Tq. `first_visible`
/// (B, Tq) bounds it below, to the start of the query's document; `None` lets it see all before.
pub fn causal_attention_forward(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    first_visible: Option<&Tensor<2, Int>>,
) -> (Tensor<4>, Tensor<3>) {
    if !fast(q) {
        return reference::forward(q, k, v, first_visible);
    }
    let (o, lse) = Dispatch::causal_attention_forward(
        q.clone().into_dispatch(),
        k.clone().into_dispatch(),
        v.clone().into_dispatch(),
        bound(first_visible, q).into_dispatch(),
    );
    (Tensor::from_dispatch(o), Tensor::from_dispatch(lse))
}

/// The bound as the backends take it: empty when there is none.
fn bound(first_visible: Option<&Tensor<2, Int>>, q: &Tensor<4>) -> Tensor<2, Int> {
    match first_visible {
        Some(first) => first.clone(),
        // Made from data, because not every backend makes tensors of this type otherwise.
        None => {
            Tensor::from_data(TensorData::new(Vec::<i32>::new(), [0, 0]), (&q.device(), DType::I32))
        }
    }
}

/// (dq, dk, dv), shaped as q, k, v, for as many queries as keys.
pub fn causal_attention_backward(
    dout: &Tensor<4>,
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    o: &Tensor<4>,
    lse: &Tensor<3>,
    first_visible: Option<&Tensor<2, Int>>,
) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
    if !fast(q) {
        return reference::backward(dout, q, k, v, o, lse, first_visible);
    }
    let (dq, dk, dv) = Dispatch::causal_attention_backward(
        dout.clone().into_dispatch(),
        q.clone().into_dispatch(),
        k.clone().into_dispatch(),
        v.clone().into_dispatch(),
        o.clone().into_dispatch(),
        lse.clone().into_dispatch(),
        bound(first_visible, q).into_dispatch(),
    );
    (Tensor::from_dispatch(dq), Tensor::from_dispatch(dk), Tensor::from_dispatch(dv))
}

/// The op in plain tensor operations, with the whole T × T matrix.
pub mod reference {
    use burn::tensor::{Bool, Int, Tensor, TensorData};

    use super::super::wide;

    /// Scaled scores (B, H, Tq, Tk), −∞ where a query may not look.
    fn scores(q: &Tensor<4>, k: &Tensor<4>, first_visible: Option<&Tensor<2, Int>>) -> Tensor<4> {
        let [batch, queries, heads, head_dim] = q.dims();
        let [_, keys, ..] = k.dims();
        let first: Vec<i64> = match first_visible {
            Some(first) => first.to_data().iter::<i64>().collect(),
            None => vec![0; batch * queries],
        };
        let hidden: Vec<bool> = (0..batch * queries * keys)
            .map(|n| {
                let (row, key) = (n / keys, n % keys);
                key > row % queries + keys - queries || (key as i64) < first[row]
            })
            .collect();
        let hidden: Tensor<4, Bool> =
            Tensor::from_data(TensorData::new(hidden, [batch, 1, queries, keys]), &q.device());
        let scores = heads_first(q).matmul(repeat(k, heads).swap_dims(2, 3));
        (scores / (head_dim as f64).sqrt())
            .mask_fill(hidden.expand([batch, heads, queries, keys]), f64::NEG_INFINITY)
    }

    /// (B, T, H, D) to (B, H, T, D).
    fn heads_first(x: &Tensor<4>) -> Tensor<4> {
        wide(x).swap_dims(1, 2)
    }

    /// (B, T, K, D) to (B, H, T, D), each head standing H/K times.
    fn repeat(x: &Tensor<4>, heads: usize) -> Tensor<4> {
        let [batch, time, kv_heads, head_dim] = x.dims();
        heads_first(x)
            .reshape([batch, kv_heads, 1, time, head_dim])
            .expand([batch, kv_heads, heads / kv_heads, time, head_dim])
            .reshape([batch, heads, time, head_dim])
    }

    /// The transpose of [`repeat`]: (B, H, T, D) to (B, T, K, D), summed over each group.
    fn sum_groups(x: Tensor<4>, kv_heads: usize) -> Tensor<4> {
        let [batch, heads, time, head_dim] = x.dims();
        x.reshape([batch, kv_heads, heads / kv_heads, time, head_dim])
            .sum_dim(2)
            .reshape([batch, kv_heads, time, head_dim])
            .swap_dims(1, 2)
    }

    /// See [`super::causal_attention_forward`].
    pub fn forward(
        q: &Tensor<4>,
        k: &Tensor<4>,
        v: &Tensor<4>,
        first_visible: Option<&Tensor<2, Int>>,
    ) -> (Tensor<4>, Tensor<3>) {
        let [_, _, heads, _] = q.dims();
        let scores = scores(q, k, first_visible);
        let max = scores.clone().max_dim(3);
        let lse = (scores.clone() - max.clone()).exp().sum_dim(3).log() + max; // (B, H, Tq, 1)
        let p = (scores - lse.clone()).exp();
        let o = p.matmul(repeat(v, heads)).swap_dims(1, 2);
        (o.cast(q.dtype()), lse.squeeze_dim(3))
    }

    /// See [`super::causal_attention_backward`].
    pub fn backward(
        dout: &Tensor<4>,
        q: &Tensor<4>,
        k: &Tensor<4>,
        v: &Tensor<4>,
        o: &Tensor<4>,
        lse: &Tensor<3>,
        first_visible: Option<&Tensor<2, Int>>,
    ) -> (Tensor<4>, Tensor<4>, Tensor<4>) {
        let [_, _, heads, head_dim] = q.dims();
        let [_, _, kv_heads, _] = k.dims();
        let scale = (head_dim as f64).sqrt();
        let dout = heads_first(dout); // (B, H, T, D)
        let p = (scores(q, k, first_visible) - lse.clone().unsqueeze_dim(3)).exp();
        let dv = p.clone().swap_dims(2, 3).matmul(dout.clone());
        let delta = (dout.clone() * heads_first(o)).sum_dim(3); // (B, H, T, 1)
        let dp = dout.matmul(repeat(v, heads).swap_dims(2, 3));
        let ds = p * (dp - delta);
        let dq = (ds.clone().matmul(repeat(k, heads)) / scale).swap_dims(1, 2);
        let dk = ds.swap_dims(2, 3).matmul(heads_first(q)) / scale;
        (
            dq.cast(q.dtype()),
            sum_groups(dk, kv_heads).cast(k.dtype()),
            sum_groups(dv, kv_heads).cast(v.dtype()),
        )
    }
}
