//! The backward pass of a model whose weights stay and whose adapters train.
//!
//! The statements are those of [`layer`](crate::layer) and [`llama`](crate::llama) without the gradients of
//! weights: a frozen matrix passes the gradient of its output on, an adapter adds its part and gets its own.

use burn::tensor::Tensor;

use crate::activation_checkpoint::{restore, save};
use crate::adapters::{Adapters, LayerAdapters, Target};
use crate::backend::uninterrupted;
use crate::error::Result;
use crate::layer::{AttentionSaved, FeedForwardSaved, LayerContext, LayerSaved, layer_forward};
use crate::llama::{Llama, TokenBatch};
use crate::ops::{
    causal_attention_backward, embedding_forward, head_cross_entropy_backward_input,
    linear_backward_input, linear_backward_input_add, lora_backward, residual_rms_norm_backward,
    rms_norm_backward, rms_norm_forward, rope_backward, swiglu_backward,
};
use crate::params::LayerWeights;

impl Llama {
    /// Losses (B, T) in nats of every target, and the gradients of `scale` · Σ losses with respect to the
    /// adapters, added to `grads`. A model without adapters has no gradients. On one rank only.
    ///
    /// # Errors
    /// None on one rank.
    pub fn loss_and_adapter_gradients(
        &self,
        batch: &TokenBatch,
        scale: f64,
        grads: &mut Adapters,
    ) -> Result<Tensor<2>> {
        let [_, time] = batch.inputs.dims();
        let rope = self.rope(0, time);
        let context = self.context(batch, &rope);
        let weights = &self.weights;

        uninterrupted(|| {
            let mut x = embedding_forward(&weights.embed_tokens, &batch.inputs);
            let mut saved_by_layer = Vec::with_capacity(weights.layers.len());
            for (n, layer) in weights.layers.iter().enumerate() {
                let (y, saved) = layer_forward(layer, x, &self.of_layer(&context, n))?;
                saved_by_layer.push(save(self.activation_checkpointing, saved));
                x = y;
            }
            let (normed, rstd) = rms_norm_forward(&x, &weights.norm, self.config.norm_eps);
            let (losses, dnormed) =
                head_cross_entropy_backward_input(&normed, weights.head(), &batch.targets, scale);
            drop(normed);
            let mut unused = Tensor::zeros_like(&weights.norm);
            let mut dx = rms_norm_backward(&dnormed, &x, &weights.norm, &rstd, &mut unused);
            drop((x, dnormed));
            for (n, layer) in weights.layers.iter().enumerate().rev() {
                let (Some(saved), Some(dadapters)) =
                    (saved_by_layer.pop(), grads.layers.get_mut(n))
                else {
                    break;
                };
                let context = self.of_layer(&context, n);
                let saved = restore(saved, layer, &context)?;
                dx = layer_backward(dx, layer, saved, dadapters, &context, n > 0);
            }
            Ok(losses)
        })
    }
}

/// The backward pass of the projections of one layer.
struct Projections<'a> {
    adapters: Option<&'a LayerAdapters>,
    grads: &'a mut LayerAdapters,
    /// Whether anything below needs the gradient of the input.
    passes_on: bool,
}

impl Projections<'_> {
    /// `dx` + the gradient of the input `x` of the matrix `weight`, whose output has the gradient `dy`; where
    /// nothing below needs it, without the part of the frozen matrix.
    fn backward(
        &mut self,
        dx: Option<Tensor<3>>,
        dy: &Tensor<3>,
        x: &Tensor<3>,
        weight: &Tensor<2>,
        target: Target,
    ) -> Tensor<3> {
        let dx = match dx {
            _ if !self.passes_on => dx.unwrap_or_else(|| x.zeros_like()),
            None => linear_backward_input(dy, weight),
            Some(dx) => linear_backward_input_add(dx, dy, weight),
        };
        let adapter = self.adapters.and_then(|adapters| adapters.get(target));
        match (adapter, self.grads.get_mut(target)) {
            (Some(pair), Some(grads)) => lora_backward(dx, dy, x, pair, grads),
            _ => dx,
        }
    }
}

/// `dy` (B, T, C): dx (B, T, C), or anything unless it `passes_on`; `grads` accumulates.
fn layer_backward(
    dy: Tensor<3>,
    weights: &LayerWeights,
    saved: LayerSaved,
    grads: &mut LayerAdapters,
    context: &LayerContext,
    passes_on: bool,
) -> Tensor<3> {
    let mut projections = Projections { adapters: context.adapters, grads, passes_on: true };
    let dh = feed_forward_backward(dy, weights, saved.feed_forward, &mut projections);
    projections.passes_on = passes_on;
    attention_backward(dh, weights, saved.attention, &mut projections, context)
}

/// `dy` (B, T, C), the gradient of the layer's output: dh (B, T, C).
fn feed_forward_backward(
    dy: Tensor<3>,
    weights: &LayerWeights,
    saved: FeedForwardSaved,
    projections: &mut Projections<'_>,
) -> Tensor<3> {
    let FeedForwardSaved { h, rstd, normed, gate, up, swiglu } = saved;

    let dswiglu = projections.backward(None, &dy, &swiglu, &weights.down_proj, Target::DownProj);
    drop(swiglu);
    let (dgate, dup) = swiglu_backward(&dswiglu, &gate, &up);
    drop((dswiglu, gate, up));
    let dnormed = projections.backward(None, &dgate, &normed, &weights.gate_proj, Target::GateProj);
    let dnormed =
        projections.backward(Some(dnormed), &dup, &normed, &weights.up_proj, Target::UpProj);
    drop((dgate, dup, normed));
    let gain = &weights.post_attention_layernorm;
    let mut unused = Tensor::zeros_like(gain);
    residual_rms_norm_backward(dy, &dnormed, &h, gain, &rstd, &mut unused)
}

/// `dh` (B, T, C), the gradient of the stream after attention: dx (B, T, C).
fn attention_backward(
    dh: Tensor<3>,
    weights: &LayerWeights,
    saved: AttentionSaved,
    projections: &mut Projections<'_>,
    context: &LayerContext,
) -> Tensor<3> {
    let LayerContext { rope, first_visible, .. } = *context;
    let AttentionSaved { x, rstd, normed, q, k, v, o, lse } = saved;

    let merged: Tensor<3> = o.clone().flatten(2, 3);
    let passes_on = std::mem::replace(&mut projections.passes_on, true);
    let dout =
        projections.backward(None, &dh, &merged, &weights.o_proj, Target::OProj).reshape(o.dims());
    projections.passes_on = passes_on;
    drop(merged);
    let (dq, dk, dv) = causal_attention_backward(&dout, &q, &k, &v, &o, &lse, first_visible);
    drop((dout, q, k, v, o));
    let (dq, dk) = (rope_backward(dq, rope), rope_backward(dk, rope));
    let [dq, dk, dv]: [Tensor<3>; 3] = [dq, dk, dv].map(|x| x.flatten(2, 3));
    let dnormed = projections.backward(None, &dq, &normed, &weights.q_proj, Target::QProj);
    let dnormed = projections.backward(Some(dnormed), &dk, &normed, &weights.k_proj, Target::KProj);
    let dnormed = projections.backward(Some(dnormed), &dv, &normed, &weights.v_proj, Target::VProj);
    if !passes_on {
        return dnormed;
    }
    let gain = &weights.input_layernorm;
    let mut unused = Tensor::zeros_like(gain);
    residual_rms_norm_backward(dh, &dnormed, &x, gain, &rstd, &mut unused)
}
