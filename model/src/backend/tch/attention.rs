//! Causal attention by torch's own kernels: see [`crate::ops::causal_attention_forward`] for the
//! formulas.
//!
//! | device | case | path |
//! |---|---|---|
//! | CPU | all | flash attention, with a mask where causality alone does not say who sees what |
//! | CUDA | bf16, D a multiple of 8 up to 256, as many queries as keys or one, no bound | flash attention |
//! | CUDA | all else | products and softmax, a sequence of the batch at a time |
//!
//! torch aligns causality to the first key, altiplano to the last, so queries behind a cache need a
//! mask. A mask is (T, T) per sequence: only packed documents and chunked prefill pay for it.
//! Grouped heads are expanded, because torch's kernel for the CPU takes as many key as query heads.

use tch::{Device, Kind, Tensor};

use super::fused::cuda_flash_attention;

/// Who sees what, and by which kernel that is computed.
enum Path {
    /// Flash attention, causal or with every key visible.
    Flash { is_causal: bool },
    /// Flash attention for the CPU under a mask.
    MaskedFlash { mask: Tensor },
    /// Plain products under a mask.
    Products { mask: Tensor },
}

impl Path {
    /// For `q` (B, Tq, H, D), `k` (B, Tk, K, D), `first_visible` (B, Tq) or empty.
    fn choose(q: &Tensor, k: &Tensor, first_visible: &Tensor) -> Self {
        let (queries, keys, head_dim) = (q.size()[1], k.size()[1], q.size()[3]);
        let bounded = first_visible.numel() > 0;
        let square_or_one = queries == keys || queries == 1;
        let on_cpu = q.device() == Device::Cpu;
        let fused = q.kind() == Kind::BFloat16 && head_dim % 8 == 0 && head_dim <= 256;
        if !bounded && square_or_one && (on_cpu || fused) {
            return Self::Flash { is_causal: queries > 1 };
        }
        let mask = mask(queries, keys, bounded.then_some(first_visible), q.device());
        if on_cpu { Self::MaskedFlash { mask } } else { Self::Products { mask } }
    }
}

/// 0 where a query sees a key and −∞ where not, (B or 1, 1, Tq, Tk) in f32.
fn mask(queries: i64, keys: i64, first_visible: Option<&Tensor>, device: Device) -> Tensor {
    let key = Tensor::arange(keys, (Kind::Int64, device)).view([1, 1, 1, keys]);
    let last =
        Tensor::arange(queries, (Kind::Int64, device)).view([1, 1, queries, 1]) + (keys - queries);
    let mut hidden = key.gt_tensor(&last);
    if let Some(first) = first_visible {
        let first = first.to_kind(Kind::Int64).view([-1, 1, queries, 1]);
        hidden = hidden.logical_or(&key.lt_tensor(&first));
    }
    Tensor::zeros(hidden.size().as_slice(), (Kind::Float, device))
        .masked_fill(&hidden, f64::NEG_INFINITY)
}

/// (B, T, H, D) as (B, H, T, D).
fn heads_first(x: &Tensor) -> Tensor {
    x.transpose(1, 2)
}

/// (B, T, K, D) as (B, H, T, D), each head standing H/K times.
fn expand_heads(x: &Tensor, heads: i64) -> Tensor {
    let [batch, time, kv_heads, head_dim] = dims(x);
    if heads == kv_heads {
        return heads_first(x);
    }
    let groups = [batch, kv_heads, heads / kv_heads, time, head_dim];
    heads_first(x).unsqueeze(2).expand(groups, false).reshape([batch, heads, time, head_dim])
}

/// The transpose of [`expand_heads`]: (B, H, T, D) to (B, T, K, D), summed over each group.
fn sum_groups(x: &Tensor, kv_heads: i64) -> Tensor {
    let [batch, heads, time, head_dim] = dims(x);
    let kind = x.kind();
    let grouped = if heads == kv_heads {
        x.shallow_clone()
    } else {
        x.reshape([batch, kv_heads, heads / kv_heads, time, head_dim])
            .sum_dim_intlist([2i64].as_slice(), false, Kind::Float)
            .to_kind(kind)
    };
    heads_first(&grouped).contiguous()
}

fn dims(x: &Tensor) -> [i64; 4] {
    let size = x.size();
    size.try_into().unwrap_or_else(|size| panic!("attention takes (B, T, H, D), found {size:?}"))
}

/// One sequence of a batch.
fn sequence(x: &Tensor, n: i64) -> Tensor {
    x.narrow(0, if x.size()[0] == 1 { 0 } else { n }, 1)
}

/// (o (B, Tq, H, D), lse (B, H, Tq)).
pub(super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    first_visible: &Tensor,
) -> (Tensor, Tensor) {
    let path = Path::choose(q, k, first_visible);
    let heads = q.size()[2];
    let (q, k, v) = (heads_first(q), expand_heads(k, heads), expand_heads(v, heads));
    let (o, lse) = match path {
        Path::Flash { is_causal } if q.device() == Device::Cpu => {
            cpu_flash(&q, &k, &v, is_causal, None)
        }
        Path::Flash { is_causal } => cuda_flash_attention(&q, &k, &v, is_causal),
        Path::MaskedFlash { mask } => cpu_flash(&q, &k, &v, false, Some(&mask)),
        Path::Products { mask } => products_forward(&q, &k, &v, &mask),
    };
    (heads_first(&o).contiguous(), lse.contiguous())
}

fn cpu_flash(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    is_causal: bool,
    mask: Option<&Tensor>,
) -> (Tensor, Tensor) {
    Tensor::internal_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, mask, None)
}

/// Scaled scores (1, H, Tq, Tk) of one sequence in f32, −∞ where hidden.
fn scores(q: &Tensor, k: &Tensor, mask: &Tensor) -> Tensor {
    let scale = (q.size()[3] as f64).sqrt().recip();
    let mut scores = q.to_kind(Kind::Float).matmul(&k.to_kind(Kind::Float).transpose(2, 3));
    let _ = scores.g_mul_scalar_(scale).g_add_(mask);
    scores
}

/// All (B, H, T, D): (o (B, H, Tq, D), lse (B, H, Tq)).
fn products_forward(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> (Tensor, Tensor) {
    let (mut o, mut lse) = (Vec::new(), Vec::new());
    for n in 0..q.size()[0] {
        let [q, k, v, mask] = [q, k, v, mask].map(|x| sequence(x, n));
        let mut p = scores(&q, &k, &mask);
        let rows = p.logsumexp([3i64].as_slice(), true);
        let _ = p.g_sub_(&rows).exp_();
        o.push(p.matmul(&v.to_kind(Kind::Float)).to_kind(q.kind()));
        lse.push(rows.squeeze_dim(3));
    }
    (Tensor::cat(&o, 0), Tensor::cat(&lse, 0))
}

/// (dq, dk, dv) shaped as q, k, v, for as many queries as keys.
pub(super) fn backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    first_visible: &Tensor,
) -> (Tensor, Tensor, Tensor) {
    let path = Path::choose(q, k, first_visible);
    let (heads, kv_heads) = (q.size()[2], k.size()[2]);
    let (q, k, v) = (heads_first(q), expand_heads(k, heads), expand_heads(v, heads));
    let (dout, o) = (heads_first(dout), heads_first(o));
    let (dq, dk, dv) = match path {
        Path::Flash { is_causal } if q.device() == Device::Cpu => {
            cpu_flash_backward(&dout, &q, &k, &v, &o, lse, is_causal, None)
        }
        Path::Flash { is_causal } => {
            // Read only where sequences are packed or dropout is on.
            let none = Tensor::new();
            let seed = Tensor::zeros([2], (Kind::Int64, q.device()));
            let (queries, keys) = (q.size()[2], k.size()[2]);
            Tensor::internal_scaled_dot_product_flash_attention_backward(
                &dout, &q, &k, &v, &o, lse, &none, &none, queries, keys, 0.0, is_causal, &seed,
                &seed, None,
            )
        }
        Path::MaskedFlash { mask } => {
            cpu_flash_backward(&dout, &q, &k, &v, &o, lse, false, Some(&mask))
        }
        Path::Products { mask } => products_backward(&dout, &q, &k, &v, &o, lse, &mask),
    };
    (heads_first(&dq).contiguous(), sum_groups(&dk, kv_heads), sum_groups(&dv, kv_heads))
}

#[allow(clippy::too_many_arguments)] // the arguments of the op
fn cpu_flash_backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    is_causal: bool,
    mask: Option<&Tensor>,
) -> (Tensor, Tensor, Tensor) {
    Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
        dout, q, k, v, o, lse, 0.0, is_causal, mask, None,
    )
}

/// All (B, H, T, D), lse (B, H, T): (dq, dk, dv), (B, H, T, D).
fn products_backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    mask: &Tensor,
) -> (Tensor, Tensor, Tensor) {
    let (kind, scale) = (q.kind(), (q.size()[3] as f64).sqrt().recip());
    let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..q.size()[0] {
        let [dout, q, k, v, o] = [dout, q, k, v, o].map(|x| sequence(x, n).to_kind(Kind::Float));
        let mut p = scores(&q, &k, &sequence(mask, n));
        let _ = p.g_sub_(&sequence(lse, n).unsqueeze(3)).exp_();
        dv.push(p.transpose(2, 3).matmul(&dout).to_kind(kind));
        let delta = (&dout * &o).sum_dim_intlist([3i64].as_slice(), true, Kind::Float);
        let mut ds = dout.matmul(&v.transpose(2, 3));
        let _ = ds.g_sub_(&delta).g_mul_(&p).g_mul_scalar_(scale);
        dq.push(ds.matmul(&k).to_kind(kind));
        dk.push(ds.transpose(2, 3).matmul(&q).to_kind(kind));
    }
    (Tensor::cat(&dq, 0), Tensor::cat(&dk, 0), Tensor::cat(&dv, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path of GPUs without a fused kernel, on the CPU, against torch's flash attention.
    #[test]
    fn products_agree_with_flash_attention() {
        tch::manual_seed(1);
        let (batch, time, heads, head_dim) = (2, 37, 3, 16);
        let random = || Tensor::randn([batch, heads, time, head_dim], (Kind::Float, Device::Cpu));
        let [q, k, v, dout] = [random(), random(), random(), random()];
        // The second sequence is two documents.
        let first: Vec<i64> =
            (0..2 * time).map(|n| if n < time || n % time < 20 { 0 } else { 20 }).collect();
        let first = Tensor::from_slice(&first).view([batch, time]);
        let mask = mask(time, time, Some(&first), Device::Cpu);
        let (o, lse) = products_forward(&q, &k, &v, &mask);
        let (flash_o, flash_lse) = cpu_flash(&q, &k, &v, false, Some(&mask));
        let close = |what: &str, x: &Tensor, y: &Tensor| {
            assert!(x.allclose(y, 1e-5, 1e-5, false), "{what}: {:?} {:?}", x.size(), y.size());
        };
        close("o", &o, &flash_o);
        close("lse", &lse, &flash_lse);
        let ours = products_backward(&dout, &q, &k, &v, &o, &lse, &mask);
        let flash = cpu_flash_backward(&dout, &q, &k, &v, &flash_o, &flash_lse, false, Some(&mask));
        close("dq", &ours.0, &flash.0);
        close("dk", &ours.1, &flash.1);
        close("dv", &ours.2, &flash.2);
        // Without the bound the first document leaks into the second.
        assert!(!o.allclose(&cpu_flash(&q, &k, &v, true, None).0, 1e-2, 1e-2, false));
    }
}
