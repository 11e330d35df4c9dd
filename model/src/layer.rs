//! One transformer layer, forward and backward: the heart of the model.
//!
//! h = x + O(attention(R Q n₁, R K n₁, V n₁)) with n₁ = rms_norm(x), R the rotation of RoPE;
//! y = h + W_down(silu(W_gate n₂) · W_up n₂) with n₂ = rms_norm(h)   (LLaMA, section 2.2).
//!
//! Each direction is two halves, one for each line. The sum h is computed in the second half, in
//! the same pass over memory as its norm. Training and generation share the forward halves; they
//! differ in the keys and values that queries attend to (`KeysValues`) and in the form of the matrices
//! ([`LinearWeight`]).
//!
//! On several tensor ranks (`parallel`) a rank has some of the heads and some of the columns of the
//! feed-forward. Each half gathers the tokens of all ranks before its matrices and sums the ranks'
//! partial results after them; norms and the stream see a rank's own tokens. On one rank these calls
//! return their argument.

use burn::tensor::{Int, Tensor};

use crate::adapters::{LayerAdapters, Target};
use crate::config::LlamaConfig;
use crate::error::Result;
use crate::ops::{
    LinearWeight, RopeTable, causal_attention_backward, causal_attention_forward, linear_backward,
    linear_backward_input, linear_backward_input_add, linear_backward_weight, lora_forward,
    residual_rms_norm_backward, residual_rms_norm_forward, rms_norm_forward, rope_backward,
    rope_forward, swiglu_backward, swiglu_forward,
};
use crate::parallel::{
    Tokens, gather_tokens_backward, gather_tokens_forward, linear_sum_residual_forward,
    sum_tokens_backward, sum_tokens_forward,
};
use crate::param_tree::LayerTree;
use crate::params::{LayerGrads, LayerWeights};

/// What all layers of a pass share.
#[derive(Debug, Clone, Copy)]
pub struct LayerContext<'a> {
    /// Shape and constants.
    pub config: &'a LlamaConfig,
    /// Rotation of the T positions of this pass.
    pub rope: &'a RopeTable,
    /// (B, T): the first key each query may see; `None` when documents see each other.
    pub first_visible: Option<&'a Tensor<2, Int>>,
    /// Low-rank adapters of the layer, which its matrices have beside their weights. On one rank only.
    pub adapters: Option<&'a LayerAdapters>,
    /// The tokens of the pass and the ranks that compute it together.
    pub tokens: Tokens<'a>,
}

impl<'a> LayerContext<'a> {
    /// Of a pass on one rank, without document bounds and adapters.
    pub fn of_one_rank(config: &'a LlamaConfig, rope: &'a RopeTable) -> Self {
        let tokens = Tokens::on_one_rank();
        Self { config, rope, first_visible: None, adapters: None, tokens }
    }

    /// `y`, the output of a matrix for `x`, with that of its adapter where it has one.
    fn adapted(&self, y: Tensor<3>, x: &Tensor<3>, target: Target) -> Tensor<3> {
        match self.adapters.and_then(|adapters| adapters.get(target)) {
            Some(pair) => lora_forward(y, x, pair),
            None => y,
        }
    }

    /// `x` · `weight`ᵀ, with the adapter of the matrix.
    fn project(&self, x: &Tensor<3>, weight: &impl LinearWeight, target: Target) -> Tensor<3> {
        self.adapted(weight.forward(x), x, target)
    }
}

/// The keys and values that the queries of a pass attend to: those of the pass itself, and in
/// generation those of earlier passes before them.
pub(crate) trait KeysValues {
    /// Attention of the rotated queries `q` (B, T, H, D) of a pass, whose own rotated keys `k` and
    /// values `v` (B, T, K, D) are the last they attend to: (o (B, T, H, D), lse (B, H, T)).
    fn attend(
        &mut self,
        q: &Tensor<4>,
        k: &Tensor<4>,
        v: &Tensor<4>,
        first_visible: Option<&Tensor<2, Int>>,
    ) -> (Tensor<4>, Tensor<3>);
}

/// The keys and values of the pass itself and no others: training.
pub(crate) struct OwnKeysValues;

impl KeysValues for OwnKeysValues {
    fn attend(
        &mut self,
        q: &Tensor<4>,
        k: &Tensor<4>,
        v: &Tensor<4>,
        first_visible: Option<&Tensor<2, Int>>,
    ) -> (Tensor<4>, Tensor<3>) {
        causal_attention_forward(q, k, v, first_visible)
    }
}

/// What the backward pass of a layer reads.
#[derive(Debug)]
pub struct LayerSaved {
    /// Of the first half.
    pub attention: AttentionSaved,
    /// Of the second half.
    pub feed_forward: FeedForwardSaved,
}

/// What the backward pass of the attention half reads.
#[derive(Debug)]
pub struct AttentionSaved {
    /// Input of the layer, (B, T, C).
    pub x: Tensor<3>,
    /// 1 / root mean square of `x`, (B, T).
    pub rstd: Tensor<2>,
    /// n₁ = rms_norm(x), (B, T, C).
    pub normed: Tensor<3>,
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
}

/// What the backward pass of the feed-forward half reads.
#[derive(Debug)]
pub struct FeedForwardSaved {
    /// Residual stream after attention, (B, T, C).
    pub h: Tensor<3>,
    /// 1 / root mean square of `h`, (B, T).
    pub rstd: Tensor<2>,
    /// n₂ = rms_norm(h), (B, T, C).
    pub normed: Tensor<3>,
    /// Output of `gate_proj`, (B, T, F).
    pub gate: Tensor<3>,
    /// Output of `up_proj`, (B, T, F).
    pub up: Tensor<3>,
    /// silu(gate) · up, (B, T, F).
    pub swiglu: Tensor<3>,
}

/// (B, T, heads·D) to (B, T, heads, D).
fn split_heads(x: Tensor<3>, head_dim: usize) -> Tensor<4> {
    let [batch, time, width] = x.dims();
    x.reshape([batch, time, width / head_dim, head_dim])
}

/// (B, T, heads, D) to (B, T, heads·D).
fn merge_heads(x: Tensor<4>) -> Tensor<3> {
    x.flatten(2, 3)
}

/// `x` (B, T, C): (y (B, T, C), what backward reads).
///
/// # Errors
/// Of the ranks' exchanges; none on one rank.
pub fn layer_forward(
    weights: &LayerWeights,
    x: Tensor<3>,
    context: &LayerContext,
) -> Result<(Tensor<3>, LayerSaved)> {
    let saved = forward_to_swiglu(weights, x, context)?;
    let FeedForwardSaved { h, swiglu, .. } = &saved.feed_forward;
    let y = linear_sum_residual_forward(h.clone(), swiglu, &weights.down_proj, &context.tokens)?;
    let y = context.adapted(y, swiglu, Target::DownProj);
    Ok((y, saved))
}

/// The forward pass up to the last projection: all that backward reads. `x` (B, T, C).
pub(crate) fn forward_to_swiglu(
    weights: &LayerWeights,
    x: Tensor<3>,
    context: &LayerContext,
) -> Result<LayerSaved> {
    let (branch, attention) = attention_half(weights, x, context, &mut OwnKeysValues)?;
    let feed_forward = feed_forward_half(weights, &attention.x, &branch, context)?;
    Ok(LayerSaved { attention, feed_forward })
}

/// `x` (B, T, C): (O(attention(…)) (B, T, C), what backward reads).
pub(crate) fn attention_half<M: LinearWeight>(
    weights: &LayerTree<Tensor<1>, M>,
    x: Tensor<3>,
    context: &LayerContext,
    keys_values: &mut impl KeysValues,
) -> Result<(Tensor<3>, AttentionSaved)> {
    let LayerContext { config, rope, first_visible, tokens, .. } = *context;
    let (normed, rstd) = rms_norm_forward(&x, &weights.input_layernorm, config.norm_eps);
    let gathered = gather_tokens_forward(&normed, &tokens).wait()?;
    let project = |weight: &M, target| {
        split_heads(context.project(&gathered, weight, target), config.head_dim())
    };
    let q = project(&weights.q_proj, Target::QProj);
    let k = project(&weights.k_proj, Target::KProj);
    let v = project(&weights.v_proj, Target::VProj);
    drop(gathered);
    let (q, k) = (rope_forward(q, rope), rope_forward(k, rope));
    let (o, lse) = keys_values.attend(&q, &k, &v, first_visible);
    let branch = context.project(&merge_heads(o.clone()), &weights.o_proj, Target::OProj);
    let branch = sum_tokens_forward(branch, &tokens).wait()?;
    Ok((branch, AttentionSaved { x, rstd, normed, q, k, v, o, lse }))
}

/// `x` and the attention's `branch` (B, T, C): h = x + branch and the feed-forward of its norm, up
/// to the last projection.
pub(crate) fn feed_forward_half<M: LinearWeight>(
    weights: &LayerTree<Tensor<1>, M>,
    x: &Tensor<3>,
    branch: &Tensor<3>,
    context: &LayerContext,
) -> Result<FeedForwardSaved> {
    let (gain, eps) = (&weights.post_attention_layernorm, context.config.norm_eps);
    let (h, normed, rstd) = residual_rms_norm_forward(x, branch, gain, eps);
    let gathered = gather_tokens_forward(&normed, &context.tokens).wait()?;
    let gate = context.project(&gathered, &weights.gate_proj, Target::GateProj);
    let up = context.project(&gathered, &weights.up_proj, Target::UpProj);
    drop(gathered);
    let swiglu = swiglu_forward(&gate, &up);
    Ok(FeedForwardSaved { h, rstd, normed, gate, up, swiglu })
}

/// `dy` (B, T, C): dx (B, T, C); `grads` accumulates.
///
/// The statements of [`layer_forward`] in reverse order. The stream's gradient passes each branch
/// unchanged and gains what the branch sends back. What is no longer read is dropped at once, so
/// its memory serves the next op. Ranks exchange while they compute: the norm's output is gathered
/// again under the products before its use, its gradient is summed under those of the weights.
///
/// # Errors
/// Of the ranks' exchanges; none on one rank.
pub fn layer_backward(
    dy: Tensor<3>,
    weights: &LayerWeights,
    saved: LayerSaved,
    grads: &mut LayerGrads,
    context: &LayerContext,
) -> Result<Tensor<3>> {
    let dh = feed_forward_backward(dy, weights, saved.feed_forward, grads, &context.tokens)?;
    attention_backward(dh, weights, saved.attention, grads, context)
}

/// `dy` (B, T, C), the gradient of the layer's output: dh (B, T, C).
fn feed_forward_backward(
    dy: Tensor<3>,
    weights: &LayerWeights,
    saved: FeedForwardSaved,
    grads: &mut LayerGrads,
    tokens: &Tokens,
) -> Result<Tensor<3>> {
    let FeedForwardSaved { h, rstd, normed, gate, up, swiglu } = saved;

    let dbranch = sum_tokens_backward(&dy, tokens).wait()?;
    let normed = gather_tokens_forward(&normed, tokens);
    let dswiglu = linear_backward(&dbranch, &swiglu, &weights.down_proj, &mut grads.down_proj);
    drop((dbranch, swiglu));
    let (dgate, dup) = swiglu_backward(&dswiglu, &gate, &up);
    drop((dswiglu, gate, up));
    let dnormed = linear_backward_input(&dgate, &weights.gate_proj);
    let dnormed = linear_backward_input_add(dnormed, &dup, &weights.up_proj);
    let dnormed = gather_tokens_backward(dnormed, tokens);
    let normed = normed.wait()?;
    linear_backward_weight(&dgate, &normed, &mut grads.gate_proj);
    linear_backward_weight(&dup, &normed, &mut grads.up_proj);
    drop((dgate, dup, normed));
    let gain = &weights.post_attention_layernorm;
    let dgain = &mut grads.post_attention_layernorm;
    Ok(residual_rms_norm_backward(dy, &dnormed.wait()?, &h, gain, &rstd, dgain))
}

/// `dh` (B, T, C), the gradient of the stream after attention: dx (B, T, C).
fn attention_backward(
    dh: Tensor<3>,
    weights: &LayerWeights,
    saved: AttentionSaved,
    grads: &mut LayerGrads,
    context: &LayerContext,
) -> Result<Tensor<3>> {
    let LayerContext { rope, first_visible, tokens, .. } = *context;
    let AttentionSaved { x, rstd, normed, q, k, v, o, lse } = saved;

    let dbranch = sum_tokens_backward(&dh, &tokens).wait()?;
    let normed = gather_tokens_forward(&normed, &tokens);
    let merged = merge_heads(o.clone());
    let dout = linear_backward(&dbranch, &merged, &weights.o_proj, &mut grads.o_proj);
    let dout = dout.reshape(o.dims());
    drop((dbranch, merged));
    let (dq, dk, dv) = causal_attention_backward(&dout, &q, &k, &v, &o, &lse, first_visible);
    drop((dout, q, k, v, o));
    let (dq, dk) = (rope_backward(dq, rope), rope_backward(dk, rope));
    let [dq, dk, dv] = [dq, dk, dv].map(merge_heads);
    let dnormed = linear_backward_input(&dq, &weights.q_proj);
    let dnormed = linear_backward_input_add(dnormed, &dk, &weights.k_proj);
    let dnormed = linear_backward_input_add(dnormed, &dv, &weights.v_proj);
    let dnormed = gather_tokens_backward(dnormed, &tokens);
    let normed = normed.wait()?;
    linear_backward_weight(&dq, &normed, &mut grads.q_proj);
    linear_backward_weight(&dk, &normed, &mut grads.k_proj);
    linear_backward_weight(&dv, &normed, &mut grads.v_proj);
    drop((dq, dk, dv, normed));
    let (gain, dgain) = (&weights.input_layernorm, &mut grads.input_layernorm);
    Ok(residual_rms_norm_backward(dh, &dnormed.wait()?, &x, gain, &rstd, dgain))
}
