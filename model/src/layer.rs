//! One transformer layer, forward and backward: the heart of the model.
//!
//! h = x + O(attention(R Q n₁, R K n₁, V n₁)) with n₁ = rms_norm(x), R the rotation of RoPE;
//! y = h + W_down(silu(W_gate n₂) · W_up n₂) with n₂ = rms_norm(h)   (LLaMA, section 2.2).

use burn::tensor::{Int, Tensor};

use crate::config::LlamaConfig;
use crate::ops::{
    RopeTable, causal_attention_backward, causal_attention_forward, linear_backward,
    linear_backward_add, linear_forward, linear_residual_forward, residual_rms_norm_backward,
    residual_rms_norm_forward, rms_norm_forward, rope_backward, rope_forward, swiglu_backward,
    swiglu_forward,
};
use crate::params::LayerParams;

/// What all layers of a pass share.
#[derive(Debug, Clone, Copy)]
pub struct LayerContext<'a> {
    /// Shape and constants.
    pub config: &'a LlamaConfig,
    /// Rotation of the T positions of this pass.
    pub rope: &'a RopeTable,
    /// (B, T): the first key each query may see; `None` when documents see each other.
    pub first_visible: Option<&'a Tensor<2, Int>>,
}

/// What the backward pass of a layer reads.
#[derive(Debug)]
pub struct LayerSaved {
    /// Input of the layer, (B, T, C).
    pub x: Tensor<3>,
    /// 1 / root mean square of `x`, (B, T).
    pub attention_rstd: Tensor<2>,
    /// rms_norm(x), (B, T, C).
    pub attention_input: Tensor<3>,
    /// Rotated queries, (B, T, H, D).
    pub q: Tensor<4>,
    /// Rotated keys, (B, T, K, D).
    pub k: Tensor<4>,
    /// Values, (B, T, K, D).
    pub v: Tensor<4>,
    /// Attention output before `o_proj`, (B, T, H, D).
    pub o: Tensor<4>,
    /// Log-sum-exp of the scores, (B, H, T).
    pub lse: Tensor<3>,
    /// Residual stream after attention, (B, T, C).
    pub h: Tensor<3>,
    /// 1 / root mean square of `h`, (B, T).
    pub ffn_rstd: Tensor<2>,
    /// rms_norm(h), (B, T, C).
    pub ffn_input: Tensor<3>,
    /// Output of `gate_proj`, (B, T, F).
    pub gate: Tensor<3>,
    /// Output of `up_proj`, (B, T, F).
    pub up: Tensor<3>,
    /// silu(gate) · up, (B, T, F).
    pub swiglu: Tensor<3>,
}

/// (B, T, heads·D) to (B, T, heads, D).
pub(crate) fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, time, width] = x.dims();
    x.reshape([batch, time, heads, width / heads])
}

/// (B, T, heads, D) to (B, T, heads·D).
pub(crate) fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    x.flatten(2, 3)
}

/// `x` (B, T, C): (y (B, T, C), what backward reads).
pub fn layer_forward(
    params: &LayerParams,
    x: Tensor<3>,
    context: &LayerContext,
) -> (Tensor<3>, LayerSaved) {
    let saved = forward_to_swiglu(params, x, context);
    let y = linear_residual_forward(saved.h.clone(), &saved.swiglu, &params.down_proj);
    (y, saved)
}

/// The forward pass up to the last projection: all that backward reads. `x` (B, T, C).
pub(crate) fn forward_to_swiglu(
    params: &LayerParams,
    x: Tensor<3>,
    context: &LayerContext,
) -> LayerSaved {
    let LayerContext { config, rope, first_visible } = *context;

    let (attention_input, attention_rstd) =
        rms_norm_forward(&x, &params.input_layernorm, config.norm_eps);
    let q = split_heads(linear_forward(&attention_input, &params.q_proj), config.n_heads);
    let k = split_heads(linear_forward(&attention_input, &params.k_proj), config.kv_heads());
    let v = split_heads(linear_forward(&attention_input, &params.v_proj), config.kv_heads());
    let (q, k) = (rope_forward(q, rope), rope_forward(k, rope));
    let (o, lse) = causal_attention_forward(&q, &k, &v, first_visible);
    let branch = linear_forward(&merge_heads(o.clone()), &params.o_proj);
    let (h, ffn_input, ffn_rstd) =
        residual_rms_norm_forward(&x, &branch, &params.post_attention_layernorm, config.norm_eps);
    let gate = linear_forward(&ffn_input, &params.gate_proj);
    let up = linear_forward(&ffn_input, &params.up_proj);
    let swiglu = swiglu_forward(&gate, &up);

    LayerSaved {
        x,
        attention_rstd,
        attention_input,
        q,
        k,
        v,
        o,
        lse,
        h,
        ffn_rstd,
        ffn_input,
        gate,
        up,
        swiglu,
    }
}

/// `dy` (B, T, C): dx (B, T, C); `grads` accumulates.
///
/// The statements of [`layer_forward`] in reverse order. The stream's gradient passes each branch
/// unchanged and gains what the branch sends back. What is no longer read is dropped at once, so
/// its memory serves the next op.
pub fn layer_backward(
    dy: Tensor<3>,
    params: &LayerParams,
    saved: LayerSaved,
    grads: &mut LayerParams,
    context: &LayerContext,
) -> Tensor<3> {
    let LayerContext { rope, first_visible, .. } = *context;
    let s = saved;

    let dswiglu = linear_backward(&dy, &s.swiglu, &params.down_proj, &mut grads.down_proj);
    drop(s.swiglu);
    let (dgate, dup) = swiglu_backward(&dswiglu, &s.gate, &s.up);
    drop((dswiglu, s.gate, s.up));
    let n = &s.ffn_input;
    let dinput = linear_backward(&dgate, n, &params.gate_proj, &mut grads.gate_proj);
    let dinput = linear_backward_add(dinput, &dup, n, &params.up_proj, &mut grads.up_proj);
    drop((dgate, dup, s.ffn_input));
    let gain = &params.post_attention_layernorm;
    let dgain = &mut grads.post_attention_layernorm;
    let dh = residual_rms_norm_backward(dy, &dinput, &s.h, gain, &s.ffn_rstd, dgain);
    drop((dinput, s.h));

    let dout = linear_backward(&dh, &merge_heads(s.o.clone()), &params.o_proj, &mut grads.o_proj)
        .reshape(s.o.dims());
    let (dq, dk, dv) =
        causal_attention_backward(&dout, &s.q, &s.k, &s.v, &s.o, &s.lse, first_visible);
    drop((dout, s.q, s.k, s.v, s.o));
    let (dq, dk) = (rope_backward(dq, rope), rope_backward(dk, rope));
    let n = &s.attention_input;
    let [dq, dk, dv] = [dq, dk, dv].map(merge_heads);
    let dinput = linear_backward(&dq, n, &params.q_proj, &mut grads.q_proj);
    let dinput = linear_backward_add(dinput, &dk, n, &params.k_proj, &mut grads.k_proj);
    let dinput = linear_backward_add(dinput, &dv, n, &params.v_proj, &mut grads.v_proj);
    let (gain, dgain) = (&params.input_layernorm, &mut grads.input_layernorm);
    residual_rms_norm_backward(dh, &dinput, &s.x, gain, &s.attention_rstd, dgain)
}
