//! Causal attention, tiled, with online softmax. Derivation: `docs/backward/causal_attention.md`.
//!
//! Per sequence and query head, for the keys `j` that query `i` sees, from `first_i` to its own
//! position `i + (Tk − Tq)`:
//!
//! ```text
//! s_ij  = α ⟨q_i, k_j⟩                α = 1/√D
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
//! Keys are taken in blocks; a running maximum and sum rescale what was summed before. Only `lse` is
//! saved: the backward pass recomputes `p` from it. Blocks that no query sees are not computed, and
//! the (T, T) matrix never exists.
//!
//! With fewer key and value heads than query heads, `H / K` neighbouring heads share one, and its
//! gradients are summed over them in order.

mod backward;
mod few_queries;
mod forward;
mod paged;

use crate::element::Element;
use crate::micro_kernel::with_micro_kernel;
use crate::simd::{LANES, sum_lanes};

pub use paged::{PAGE, PagedRows, PagedShape, paged_attention_forward, paged_keys_values_write};

/// Shapes of causal attention: `q` (B, Tq, H, D), `k` and `v` (B, Tk, K, D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences, `B`.
    pub batch: usize,
    /// Positions of the queries, `Tq`: the last of the `Tk` positions.
    pub queries: usize,
    /// Positions of keys and values, `Tk`.
    pub keys: usize,
    /// Query heads, `H`, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads, `K`.
    pub kv_heads: usize,
    /// Channels per head, `D`.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Elements of `q` and of `k`, after checking that the shape is possible.
    fn lengths(self, op: &str) -> (usize, usize) {
        let Self { batch, queries, keys, heads, kv_heads, head_dim } = self;
        assert!(queries <= keys, "{op}: {queries} queries for {keys} keys");
        assert!(
            kv_heads > 0 && heads % kv_heads == 0,
            "{op}: {heads} heads are not a multiple of {kv_heads} kv heads"
        );
        (batch * queries * heads * head_dim, batch * keys * kv_heads * head_dim)
    }

    /// `1 / sqrt(D)`.
    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// The keys a query may see.
#[derive(Clone, Copy)]
struct Visibility<'a> {
    first_visible: Option<&'a [i32]>,
    shape: AttentionShape,
}

impl Visibility<'_> {
    /// First and one past the last key of query `i` of sequence `b`; at least its own.
    #[inline(always)]
    fn keys(&self, b: usize, i: usize) -> (usize, usize) {
        let own = i + self.shape.keys - self.shape.queries;
        let first = match self.first_visible {
            Some(first) => first[b * self.shape.queries + i].max(0) as usize,
            None => 0,
        };
        (first.min(own), own + 1)
    }

    /// The first key that any of some queries sees.
    #[inline(always)]
    fn first_key(&self, b: usize, queries: std::ops::Range<usize>) -> usize {
        if self.first_visible.is_none() {
            return 0;
        }
        queries.map(|i| self.keys(b, i).0).min().unwrap_or(0)
    }
}

/// `o` (B, Tq, H, D) and the log-sum-exp `lse` (B, H, Tq) of causal attention, aligned to the
/// end: query `i` sees keys up to `i + Tk - Tq`, from `first_visible` (B, Tq) if given.
pub fn causal_attention_forward<E: Element>(
    o: &mut [E],
    lse: &mut [f32],
    q: &[E],
    k: &[E],
    v: &[E],
    first_visible: Option<&[i32]>,
    shape: AttentionShape,
) {
    let op = "causal_attention_forward";
    let (q_len, k_len) = shape.lengths(op);
    let rows = shape.batch * shape.queries;
    assert!(o.len() == q_len && q.len() == q_len, "{op}: o or q is not (B, Tq, H, D)");
    assert!(k.len() == k_len && v.len() == k_len, "{op}: k or v is not (B, Tk, K, D)");
    assert_eq!(lse.len(), rows * shape.heads, "{op}: lse is not (B, H, Tq)");
    assert!(
        first_visible.is_none_or(|first| first.len() == rows),
        "{op}: first_visible is not (B, Tq)"
    );
    if q_len == 0 {
        return;
    }
    let visibility = Visibility { first_visible, shape };
    if shape.queries <= few_queries::FEW_QUERIES {
        return few_queries::forward(o, lse, q, k, v, visibility);
    }
    with_micro_kernel::<E>(forward::Forward { o, lse, q, k, v, visibility, shape });
}

/// `dq`, `dk`, `dv` from `dout` (B, T, H, D), the inputs and what the forward pass returned;
/// `queries` equals `keys`.
#[expect(clippy::too_many_arguments, reason = "three gradients, and what the pair needs")]
pub fn causal_attention_backward<E: Element>(
    dq: &mut [E],
    dk: &mut [E],
    dv: &mut [E],
    dout: &[E],
    q: &[E],
    k: &[E],
    v: &[E],
    o: &[E],
    lse: &[f32],
    first_visible: Option<&[i32]>,
    shape: AttentionShape,
) {
    let op = "causal_attention_backward";
    let (q_len, k_len) = shape.lengths(op);
    let rows = shape.batch * shape.queries;
    assert_eq!(shape.queries, shape.keys, "{op}: queries and keys differ in number");
    assert!(
        [dq.len(), dout.len(), q.len(), o.len()] == [q_len; 4],
        "{op}: dq, dout, q or o is not (B, T, H, D)"
    );
    assert!(
        [dk.len(), dv.len(), k.len(), v.len()] == [k_len; 4],
        "{op}: dk, dv, k or v is not (B, T, K, D)"
    );
    assert_eq!(lse.len(), rows * shape.heads, "{op}: lse is not (B, H, T)");
    assert!(
        first_visible.is_none_or(|first| first.len() == rows),
        "{op}: first_visible is not (B, T)"
    );
    if q_len == 0 {
        return;
    }
    let visibility = Visibility { first_visible, shape };
    let gradients = backward::Gradients::new(dq, dk, dv);
    let saved = backward::Saved { dout, q, k, v, o, lse };
    with_micro_kernel::<E>(backward::Backward { gradients, saved, visibility, shape });
}

/// Sets the scores of a row that its query does not see to -infinity. The row starts at key
/// `start`.
#[inline(always)]
fn mask_row(row: &mut [f32], start: usize, (first, end): (usize, usize)) {
    let first = first.saturating_sub(start) as u32;
    let end = end.saturating_sub(start) as u32;
    for (column, score) in (0u32..).zip(row) {
        let seen = column >= first && column < end;
        *score = if seen { *score } else { f32::NEG_INFINITY };
    }
}

/// `Σ a_i b_i` in 16 lanes.
#[inline(always)]
fn dot<E: Element>(a: &[E], b: &[E]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut start = 0;
    while start + LANES <= a.len() {
        let (a, b) = (&a[start..start + LANES], &b[start..start + LANES]);
        for i in 0..LANES {
            lanes[i] = a[i].to_f32().mul_add(b[i].to_f32(), lanes[i]);
        }
        start += LANES;
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a[start..].iter().zip(&b[start..])) {
        *lane = a.to_f32().mul_add(b.to_f32(), *lane);
    }
    sum_lanes(lanes)
}

#[cfg(test)]
mod tests;
