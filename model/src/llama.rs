//! The whole model: token ids to losses, and the gradients of all parameters.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::activation_checkpoint::{restore, save};
use crate::adapters::Adapters;
use crate::backend::uninterrupted;
use crate::config::{ActivationCheckpointing, LlamaConfig};
use crate::error::{ModelError, Result};
use crate::layer::{LayerContext, layer_backward, layer_forward};
use crate::ops::{
    RopeTable, embedding_backward, embedding_forward, head_cross_entropy_backward,
    head_cross_entropy_forward, linear_forward, rms_norm_backward, rms_norm_forward,
};
use crate::params::{GradPart, GradSink, Weights};

/// A LLaMA with the weights its forward pass reads.
#[derive(Debug)]
pub struct Llama {
    /// Shape and constants.
    pub config: LlamaConfig,
    /// Matrices in the precision of the run, norm gains in f32 (or all in f64).
    pub weights: Weights,
    /// Low-rank adapters of the weights, which then stay as they are.
    pub adapters: Option<Adapters>,
    /// What a layer saves between forward and backward.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Grows with the positions asked for: a context of a million tokens costs nothing until it is
    /// used.
    rope: Mutex<RopeTable>,
    device: Device,
}

/// A micro-batch on the device.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// Input ids, (B, T).
    pub inputs: Tensor<2, Int>,
    /// The token after each input, (B, T); negative where it takes no part in the loss.
    pub targets: Tensor<2, Int>,
    /// The first position of its row each token may attend to, (B, T).
    pub first_visible: Option<Tensor<2, Int>>,
}

impl TokenBatch {
    /// Moves a batch of `time`-token rows to the device.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id outside the vocabulary.
    pub fn new(
        inputs: &[i32],
        targets: &[i32],
        first_visible: Option<&[i32]>,
        time: usize,
        vocab_size: usize,
        device: &Device,
    ) -> Result<Self> {
        check_ids(inputs, vocab_size)?;
        if let Some(id) = targets.iter().find(|id| **id >= 0 && **id as usize >= vocab_size) {
            return Err(ModelError::TokenId { id: i64::from(*id), vocab_size });
        }
        Ok(Self {
            inputs: int_matrix(inputs, time, device),
            targets: int_matrix(targets, time, device),
            first_visible: first_visible.map(|first| int_matrix(first, time, device)),
        })
    }
}

/// Every id is in `0..vocab_size`.
fn check_ids(ids: &[i32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|id| **id < 0 || **id as usize >= vocab_size) {
        Some(id) => Err(ModelError::TokenId { id: i64::from(*id), vocab_size }),
        None => Ok(()),
    }
}

/// Rows of `time` integers on the device.
fn int_matrix(values: &[i32], time: usize, device: &Device) -> Tensor<2, Int> {
    let rows = values.len() / time;
    Tensor::from_data(TensorData::new(values.to_vec(), [rows, time]), (device, DType::I32))
}

impl Llama {
    /// A model around `weights`, whose matrices set the precision.
    ///
    /// # Errors
    /// [`ModelError::Config`] when the configuration does not fit together.
    pub fn new(
        config: LlamaConfig,
        weights: Weights,
        activation_checkpointing: ActivationCheckpointing,
    ) -> Result<Self> {
        config.validate()?;
        let device = weights.norm.device();
        let rope = RopeTable::new(1, &config.rope_frequencies(), weights.norm.dtype(), &device);
        let rope = Mutex::new(rope);
        Ok(Self { config, weights, adapters: None, activation_checkpointing, rope, device })
    }

    /// The device the weights are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Rotation of `time` positions from `start` on.
    pub(crate) fn rope(&self, start: usize, time: usize) -> RopeTable {
        let mut table = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        let end = start + time;
        if end > table.len() {
            let frequencies = self.config.rope_frequencies();
            let dtype = self.weights.norm.dtype();
            *table = RopeTable::new(end.next_power_of_two(), &frequencies, dtype, &self.device);
        }
        table.positions(start, time)
    }

    /// Losses (B, T) in nats of every target, and the gradients of `scale` · Σ losses, added to
    /// `grads`, each part of which is told when it is complete. With `scale` = 1 / (targets of the whole optimizer step), accumulation over
    /// micro-batches gives the gradient of the mean whatever the split.
    ///
    /// Of a model without adapters; with them it is
    /// [`loss_and_adapter_gradients`](Self::loss_and_adapter_gradients).
    pub fn loss_and_gradients(
        &self,
        batch: &TokenBatch,
        scale: f64,
        grads: &mut impl GradSink,
    ) -> Tensor<2> {
        let [_, time] = batch.inputs.dims();
        let rope = self.rope(0, time);
        let context = self.context(&rope, batch.first_visible.as_ref());
        let weights = &self.weights;

        uninterrupted(|| {
            let mut x = embedding_forward(&weights.embed_tokens, &batch.inputs);
            let mut saved_by_layer = Vec::with_capacity(weights.layers.len());
            for layer in &weights.layers {
                let (y, saved) = layer_forward(layer, x, &context);
                saved_by_layer.push(save(self.activation_checkpointing, saved));
                x = y;
            }
            let (normed, rstd) = rms_norm_forward(&x, &weights.norm, self.config.norm_eps);
            let (losses, dnormed) = head_cross_entropy_backward(
                &normed,
                weights.head(),
                &batch.targets,
                scale,
                grads.begin(GradPart::Head).head_mut(),
            );
            grads.end(GradPart::Head);
            drop(normed);
            let dnorm = &mut grads.begin(GradPart::Norm).norm;
            let mut dx = rms_norm_backward(&dnormed, &x, &weights.norm, &rstd, dnorm);
            grads.end(GradPart::Norm);
            drop((x, dnormed));
            for (n, layer) in weights.layers.iter().enumerate().rev() {
                let Some(saved) = saved_by_layer.pop() else { break };
                let saved = restore(saved, layer, &context);
                let dlayer = &mut grads.begin(GradPart::Layer(n)).layers[n];
                dx = layer_backward(dx, layer, saved, dlayer, &context);
                grads.end(GradPart::Layer(n));
            }
            let dembed_tokens = &mut grads.begin(GradPart::Embedding).embed_tokens;
            embedding_backward(&dx, &batch.inputs, dembed_tokens);
            grads.end(GradPart::Embedding);
            losses
        })
    }

    /// Losses (B, T) in nats of every target, 0 where it is ignored.
    pub fn losses(&self, batch: &TokenBatch) -> Tensor<2> {
        let hidden = self.hidden(batch);
        head_cross_entropy_forward(&hidden, self.weights.head(), &batch.targets)
    }

    /// Logits (B, T, V) of every position. For tests and short texts: they all exist at once.
    pub fn logits(&self, batch: &TokenBatch) -> Tensor<3> {
        linear_forward(&self.hidden(batch), self.weights.head())
    }

    /// Output of the last norm, (B, T, C).
    fn hidden(&self, batch: &TokenBatch) -> Tensor<3> {
        let [_, time] = batch.inputs.dims();
        let rope = self.rope(0, time);
        let context = self.context(&rope, batch.first_visible.as_ref());
        let mut x = embedding_forward(&self.weights.embed_tokens, &batch.inputs);
        for (n, layer) in self.weights.layers.iter().enumerate() {
            x = layer_forward(layer, x, &self.of_layer(&context, n)).0;
        }
        rms_norm_forward(&x, &self.weights.norm, self.config.norm_eps).0
    }

    pub(crate) fn context<'a>(
        &'a self,
        rope: &'a RopeTable,
        first_visible: Option<&'a Tensor<2, Int>>,
    ) -> LayerContext<'a> {
        LayerContext { config: &self.config, rope, first_visible, adapters: None }
    }

    /// The context of layer `n`, with its adapters.
    pub(crate) fn of_layer<'a>(&'a self, context: &LayerContext<'a>, n: usize) -> LayerContext<'a> {
        let adapters = self.adapters.as_ref().and_then(|adapters| adapters.layers.get(n));
        LayerContext { adapters, ..*context }
    }
}
