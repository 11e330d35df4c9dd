//! The whole model: token ids to losses, and the gradients of all parameters.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::activation_checkpoint::{restore, save};
use crate::adapters::Adapters;
use crate::backend::uninterrupted;
use crate::config::{ActivationCheckpointing, LlamaConfig};
use crate::error::{ModelError, Result};
use crate::layer::{LayerContext, layer_backward, layer_forward};
use crate::ops::{RopeTable, rms_norm_backward, rms_norm_forward};
use crate::parallel::{
    TensorGroup, Tokens, vocab_parallel_cross_entropy_backward,
    vocab_parallel_cross_entropy_forward, vocab_parallel_embedding_backward,
    vocab_parallel_embedding_forward, vocab_parallel_logits,
};
use crate::params::{GradSink, ModelPart, Weights};
use crate::pass_weights::{PassWeights, WeightSource};

/// A LLaMA with the weights its forward pass reads.
#[derive(Debug)]
pub struct Llama {
    /// Shape and constants of the whole model.
    pub config: LlamaConfig,
    /// Matrices in the precision of the run, norm gains in f32 (or all in f64). On several tensor
    /// ranks the part of this rank. With `source`, of the norm gains alone.
    pub weights: Weights,
    /// What brings the matrices of a part of the model when a pass comes to it. None where
    /// `weights` has them.
    pub source: Option<Arc<dyn WeightSource>>,
    /// The ranks that hold a part of every matrix each and compute every pass together: all of them
    /// call it with the same tokens. One rank unless it is set.
    pub tensor: TensorGroup,
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
        let (tensor, source, adapters) = (TensorGroup::default(), None, None);
        Ok(Self {
            config,
            weights,
            source,
            tensor,
            adapters,
            activation_checkpointing,
            rope,
            device,
        })
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
    /// `grads`, each part of which is told when it is complete. With `scale` = 1 / (targets of the
    /// whole optimizer step), accumulation over micro-batches gives the gradient of the mean
    /// whatever the split.
    ///
    /// On several tensor ranks they are the gradients of this rank's part; what several ranks hold is
    /// summed by [`shared_gradients`](crate::parallel::shared_gradients) at the end of a step.
    ///
    /// Of a model without adapters; with them it is
    /// [`loss_and_adapter_gradients`](Self::loss_and_adapter_gradients).
    ///
    /// # Errors
    /// Of the ranks' exchanges; none on one rank.
    pub fn loss_and_gradients(
        &self,
        batch: &TokenBatch,
        scale: f64,
        grads: &mut impl GradSink,
    ) -> Result<Tensor<2>> {
        let [_, time] = batch.inputs.dims();
        let rope = self.rope(0, time);
        let context = self.context(batch, &rope);
        let (words, tokens) = (self.words(), context.tokens);
        let (norm, ids) = (&self.weights.norm, &batch.inputs);

        uninterrupted(|| {
            let mut weights = self.begin_pass(true);
            let mut x =
                vocab_parallel_embedding_forward(&*weights.embedding()?, ids, &words, &tokens)?;
            let mut saved_by_layer = Vec::with_capacity(self.config.n_layers);
            for n in 0..self.config.n_layers {
                let (y, saved) = layer_forward(&*weights.layer(n)?, x, &context)?;
                saved_by_layer.push(save(self.activation_checkpointing, saved));
                x = y;
            }
            let (normed, rstd) = rms_norm_forward(&x, norm, self.config.norm_eps);
            let (losses, dnormed) = vocab_parallel_cross_entropy_backward(
                &normed,
                &*weights.head()?,
                &batch.targets,
                scale,
                grads.begin(ModelPart::Head).head_mut(),
                &words,
                &tokens,
            )?;
            grads.end(ModelPart::Head);
            drop(normed);
            let dnorm = &mut grads.begin(ModelPart::Norm).norm;
            let mut dx = rms_norm_backward(&dnormed, &x, norm, &rstd, dnorm);
            grads.end(ModelPart::Norm);
            drop((x, dnormed));
            while let Some(saved) = saved_by_layer.pop() {
                let n = saved_by_layer.len();
                let layer = weights.layer(n)?;
                let saved = restore(saved, &layer, &context)?;
                let dlayer = &mut grads.begin(ModelPart::Layer(n)).layers[n];
                dx = layer_backward(dx, &layer, saved, dlayer, &context)?;
                grads.end(ModelPart::Layer(n));
            }
            let dembed_tokens = &mut grads.begin(ModelPart::Embedding).embed_tokens;
            vocab_parallel_embedding_backward(&dx, ids, dembed_tokens, &words, &tokens)?;
            grads.end(ModelPart::Embedding);
            Ok(losses)
        })
    }

    /// Losses (B, T) in nats of every target, 0 where it is ignored.
    ///
    /// # Errors
    /// Of the ranks' exchanges; none on one rank.
    pub fn losses(&self, batch: &TokenBatch) -> Result<Tensor<2>> {
        let mut weights = self.begin_pass(false);
        let (hidden, tokens) = (self.hidden(batch, &mut weights)?, self.tokens(batch));
        let (head, words) = (weights.head()?, self.words());
        vocab_parallel_cross_entropy_forward(&hidden, &head, &batch.targets, &words, &tokens)
    }

    /// Logits (B, T, V) of every position. For tests and short texts: they all exist at once.
    ///
    /// # Errors
    /// Of the ranks' exchanges; none on one rank.
    pub fn logits(&self, batch: &TokenBatch) -> Result<Tensor<3>> {
        let mut weights = self.begin_pass(false);
        let (hidden, tokens) = (self.hidden(batch, &mut weights)?, self.tokens(batch));
        vocab_parallel_logits(&hidden, &*weights.head()?, self.config.vocab_size, &tokens)
    }

    /// All weights, matrices too where they are brought part by part; of this rank's part of the model.
    ///
    /// # Errors
    /// Of the ranks' exchanges; none where the model holds them.
    pub fn all_weights(&self) -> Result<Weights> {
        let mut pass = self.begin_pass(false);
        let embed_tokens = pass.embedding()?.into_owned();
        let layers = 0..self.config.n_layers;
        let layers: Result<_> = layers.map(|n| Ok(pass.layer(n)?.into_owned())).collect();
        let (layers, head) = (layers?, pass.head()?.into_owned());
        let lm_head = (!self.config.tie_word_embeddings).then_some(head);
        Ok(Weights { embed_tokens, layers, norm: self.weights.norm.clone(), lm_head })
    }

    /// The weights of a forward pass, or of that and the `backward` pass after it.
    fn begin_pass(&self, backward: bool) -> PassWeights<'_> {
        PassWeights::begin(&self.weights, self.source.as_deref(), backward)
    }

    /// Output of the last norm, (B, T, C).
    fn hidden(&self, batch: &TokenBatch, weights: &mut PassWeights<'_>) -> Result<Tensor<3>> {
        let [_, time] = batch.inputs.dims();
        let rope = self.rope(0, time);
        let context = self.context(batch, &rope);
        let (ids, words) = (&batch.inputs, self.words());
        let mut x =
            vocab_parallel_embedding_forward(&*weights.embedding()?, ids, &words, &context.tokens)?;
        for n in 0..self.config.n_layers {
            x = layer_forward(&*weights.layer(n)?, x, &self.of_layer(&context, n))?.0;
        }
        Ok(rms_norm_forward(&x, &self.weights.norm, self.config.norm_eps).0)
    }

    /// What the layers share in a pass over `batch`.
    pub(crate) fn context<'a>(
        &'a self,
        batch: &'a TokenBatch,
        rope: &'a RopeTable,
    ) -> LayerContext<'a> {
        LayerContext {
            config: &self.config,
            rope,
            first_visible: batch.first_visible.as_ref(),
            adapters: None,
            tokens: self.tokens(batch),
        }
    }

    fn tokens(&self, batch: &TokenBatch) -> Tokens<'_> {
        Tokens::new(&self.tensor, batch.inputs.dims())
    }

    /// The words whose rows of embedding and head are here.
    fn words(&self) -> Range<usize> {
        self.tensor.words(self.config.vocab_size)
    }

    /// The context of layer `n`, with its adapters.
    pub(crate) fn of_layer<'a>(&'a self, context: &LayerContext<'a>, n: usize) -> LayerContext<'a> {
        let adapters = self.adapters.as_ref().and_then(|adapters| adapters.layers.get(n));
        LayerContext { adapters, ..*context }
    }
}
