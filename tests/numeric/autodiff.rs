//! Hand-written backward passes against burn's autodiff of the reference forward, in f64.

use altiplano_model::config::rope_frequencies;
use altiplano_model::ops::{LoraPair, RopeTable, reference};
use burn::tensor::{DType, Device, Tensor};

use super::{assert_close, random, random_ids};

const F64: DType = DType::F64;

/// A leaf on the autodiff device and the same numbers off it.
fn leaf<const D: usize>(shape: [usize; D], seed: u64) -> (Tensor<D>, Tensor<D>) {
    let plain = random(shape, seed, F64, &Device::flex());
    let tracked = random(shape, seed, F64, &Device::flex().autodiff()).require_grad();
    (tracked, plain)
}

/// Gradients of ⟨y, dy⟩ with respect to `$leaf`.
macro_rules! gradients {
    ($y:expr, $dy:expr; $($leaf:expr),+) => {{
        let dy = Tensor::from_data($dy.to_data(), (&Device::flex().autodiff(), F64));
        let gradients = ($y * dy).sum().backward();
        ($($leaf.grad(&gradients).expect("the leaf takes part")),+,)
    }};
}

#[test]
fn linear() {
    let (x, x_plain) = leaf([2, 5, 7], 1);
    let (w, w_plain) = leaf([9, 7], 2);
    let dy = random([2, 5, 9], 3, F64, &Device::flex());
    let (dx, dw) = gradients!(reference::linear::forward(&x, &w), dy; x, w);
    let mut dw_ours = w_plain.zeros_like();
    let dx_ours = reference::linear::backward(&dy, &x_plain, &w_plain, &mut dw_ours);
    assert_close("dx", &dx_ours, &dx, 1e-12);
    assert_close("dw", &dw_ours, &dw, 1e-12);
}

#[test]
fn lora() {
    let (x, x_plain) = leaf([2, 5, 7], 1);
    let (a, a_plain) = leaf([3, 7], 2);
    let (b, b_plain) = leaf([9, 3], 3);
    let dy = random([2, 5, 9], 4, F64, &Device::flex());
    let pair = |a, b| LoraPair { a, b, scale: 1.5 };
    let zero = Tensor::zeros([2, 5, 9], (&Device::flex().autodiff(), F64));
    let y = reference::lora::forward(zero, &x, &pair(a.clone(), b.clone()));
    let (dx, da, db) = gradients!(y, dy; x, a, b);
    let mut ours = pair(a_plain.zeros_like(), b_plain.zeros_like());
    let weights = pair(a_plain, b_plain);
    let dx_ours =
        reference::lora::backward(x_plain.zeros_like(), &dy, &x_plain, &weights, &mut ours);
    assert_close("dx", &dx_ours, &dx, 1e-12);
    assert_close("da", &ours.a, &da, 1e-12);
    assert_close("db", &ours.b, &db, 1e-12);
}

#[test]
fn rms_norm() {
    let (x, x_plain) = leaf([2, 5, 7], 1);
    let (w, w_plain) = leaf([7], 2);
    let dy = random([2, 5, 7], 3, F64, &Device::flex());
    let (dx, dw) = gradients!(reference::rms_norm::forward(&x, &w, 1e-3).0, dy; x, w);
    let (_, rstd) = reference::rms_norm::forward(&x_plain, &w_plain, 1e-3);
    let mut dw_ours = w_plain.zeros_like();
    let dx_ours = reference::rms_norm::backward(&dy, &x_plain, &w_plain, &rstd, &mut dw_ours);
    assert_close("dx", &dx_ours, &dx, 1e-12);
    assert_close("dw", &dw_ours, &dw, 1e-12);
}

#[test]
fn rope() {
    let (x, _) = leaf([2, 5, 3, 8], 1);
    let dy = random([2, 5, 3, 8], 2, F64, &Device::flex());
    let frequencies = rope_frequencies(8, 10_000.0);
    let tracked = RopeTable::new(5, &frequencies, F64, &Device::flex().autodiff());
    let (dx,) = gradients!(reference::rope::forward(&x, &tracked), dy; x);
    let table = RopeTable::new(5, &frequencies, F64, &Device::flex());
    assert_close("dx", &reference::rope::backward(&dy, &table), &dx, 1e-12);
}

#[test]
fn swiglu() {
    let (gate, gate_plain) = leaf([2, 5, 7], 1);
    let (up, up_plain) = leaf([2, 5, 7], 2);
    let dy = random([2, 5, 7], 3, F64, &Device::flex());
    let (dgate, dup) = gradients!(reference::swiglu::forward(&gate, &up), dy; gate, up);
    let ours = reference::swiglu::backward(&dy, &gate_plain, &up_plain);
    assert_close("dgate", &ours.0, &dgate, 1e-12);
    assert_close("dup", &ours.1, &dup, 1e-12);
}

#[test]
fn embedding() {
    let (w, w_plain) = leaf([11, 6], 1);
    let ids = random_ids([2, 9], 11, 2, &Device::flex());
    let tracked_ids = random_ids([2, 9], 11, 2, &Device::flex().autodiff());
    let dy = random([2, 9, 6], 3, F64, &Device::flex());
    let (dw,) = gradients!(reference::embedding::forward(&w, &tracked_ids), dy; w);
    let mut dw_ours = w_plain.zeros_like();
    reference::embedding::backward(&dy, &ids, &mut dw_ours);
    assert_close("dw", &dw_ours, &dw, 1e-12);
}

#[test]
fn causal_attention() {
    let (q, q_plain) = leaf([2, 9, 6, 4], 1);
    let (k, k_plain) = leaf([2, 9, 2, 4], 2);
    let (v, v_plain) = leaf([2, 9, 2, 4], 3);
    let dout = random([2, 9, 6, 4], 4, F64, &Device::flex());
    let (dq, dk, dv) =
        gradients!(reference::causal_attention::forward(&q, &k, &v, None).0, dout; q, k, v);
    let (o, lse) = reference::causal_attention::forward(&q_plain, &k_plain, &v_plain, None);
    let ours =
        reference::causal_attention::backward(&dout, &q_plain, &k_plain, &v_plain, &o, &lse, None);
    assert_close("dq", &ours.0, &dq, 1e-12);
    assert_close("dk", &ours.1, &dk, 1e-12);
    assert_close("dv", &ours.2, &dv, 1e-12);
}

#[test]
fn head_cross_entropy() {
    let (x, x_plain) = leaf([2, 5, 7], 1);
    let (w, w_plain) = leaf([11, 7], 2);
    let targets = random_ids([2, 5], 11, 3, &Device::flex());
    let tracked = random_ids([2, 5], 11, 3, &Device::flex().autodiff());
    let scale = Tensor::<2>::ones([2, 5], (&Device::flex(), F64)) * 0.3;
    let (dx, dw) =
        gradients!(reference::head_cross_entropy::forward(&x, &w, &tracked), scale; x, w);
    let mut dw_ours = w_plain.zeros_like();
    let (_, dx_ours) =
        reference::head_cross_entropy::backward(&x_plain, &w_plain, &targets, 0.3, &mut dw_ours);
    assert_close("dx", &dx_ours, &dx, 1e-12);
    assert_close("dw", &dw_ours, &dw, 1e-12);
}

/// One matrix that is embedding and output head: autodiff adds the gradients of both uses, as ours
/// accumulate.
#[test]
fn tied_embedding_and_head() {
    let (w, w_plain) = leaf([11, 7], 1);
    let (norm, norm_plain) = leaf([7], 2);
    let (device, tracked_device) = (Device::flex(), Device::flex().autodiff());
    let ids = |seed, device: &Device| random_ids([2, 5], 11, seed, device);
    let scale = Tensor::<2>::ones([2, 5], (&device, F64)) * 0.3;
    let embedded = reference::embedding::forward(&w, &ids(3, &tracked_device));
    let normed = reference::rms_norm::forward(&embedded, &norm, 1e-3).0;
    let losses = reference::head_cross_entropy::forward(&normed, &w, &ids(4, &tracked_device));
    let (dw,) = gradients!(losses, scale; w);

    let mut dw_ours = w_plain.zeros_like();
    let x = reference::embedding::forward(&w_plain, &ids(3, &device));
    let (normed, rstd) = reference::rms_norm::forward(&x, &norm_plain, 1e-3);
    let (_, dnormed) = reference::head_cross_entropy::backward(
        &normed,
        &w_plain,
        &ids(4, &device),
        0.3,
        &mut dw_ours,
    );
    let mut dnorm = norm_plain.zeros_like();
    let dx = reference::rms_norm::backward(&dnormed, &x, &norm_plain, &rstd, &mut dnorm);
    reference::embedding::backward(&dx, &ids(3, &device), &mut dw_ours);
    assert_close("dw", &dw_ours, &dw, 1e-12);
}
