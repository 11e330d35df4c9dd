//! The weights of one pass, part by part.
//!
//! A model holds its matrices, or it has a [`WeightSource`] that brings those of a part when the pass
//! comes to it. What is brought is dropped after use, so the matrices of all layers never exist at
//! once.

use std::borrow::Cow;
use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::error::Result;
use crate::params::{LayerWeights, ModelPart, Weights};

/// Brings matrices that the ranks of a run hold in parts.
pub trait WeightSource: Debug + Send + Sync {
    /// Begins a pass that reads the matrices of `parts` in this order. All ranks that hold parts of
    /// them begin the same passes.
    fn begin_pass(&self, parts: &[ModelPart]) -> Box<dyn GatheredPass + '_>;
}

/// The matrices of the parts of a pass.
pub trait GatheredPass {
    /// The matrices of layer `n`, which is the next part, in the order of the checkpoint.
    ///
    /// # Errors
    /// Of the ranks' exchanges.
    fn layer(&mut self, n: usize) -> Result<[Tensor<2>; 7]>;

    /// The matrix of [`ModelPart::Embedding`] or [`ModelPart::Head`], which is the next part.
    ///
    /// # Errors
    /// Of the ranks' exchanges.
    fn table(&mut self, part: ModelPart) -> Result<Tensor<2>>;
}

/// The weights of a pass over a model.
pub(crate) struct PassWeights<'a> {
    held: &'a Weights,
    gathered: Option<Box<dyn GatheredPass + 'a>>,
}

impl<'a> PassWeights<'a> {
    /// Of a forward pass and, if it goes `backward`, the pass after it. Of the weights that are not
    /// `held`, `source` brings the matrices.
    pub fn begin(
        held: &'a Weights,
        source: Option<&'a dyn WeightSource>,
        backward: bool,
    ) -> PassWeights<'a> {
        let gathered = source.map(|source| {
            let layers = (0..held.layers.len()).map(ModelPart::Layer);
            let mut parts = vec![ModelPart::Embedding];
            parts.extend(layers.clone());
            parts.push(ModelPart::Head);
            if backward {
                // The backward pass of the embedding reads no weight.
                parts.extend(layers.rev());
            }
            source.begin_pass(&parts)
        });
        Self { held, gathered }
    }

    /// The token embedding.
    ///
    /// # Errors
    /// As [`GatheredPass::table`].
    pub fn embedding(&mut self) -> Result<Cow<'a, Tensor<2>>> {
        match &mut self.gathered {
            None => Ok(Cow::Borrowed(&self.held.embed_tokens)),
            Some(pass) => Ok(Cow::Owned(pass.table(ModelPart::Embedding)?)),
        }
    }

    /// The matrix of the output head.
    ///
    /// # Errors
    /// As [`GatheredPass::table`].
    pub fn head(&mut self) -> Result<Cow<'a, Tensor<2>>> {
        match &mut self.gathered {
            None => Ok(Cow::Borrowed(self.held.head())),
            Some(pass) => Ok(Cow::Owned(pass.table(ModelPart::Head)?)),
        }
    }

    /// The weights of layer `n`. Those of the layer before are to be dropped by then.
    ///
    /// # Errors
    /// As [`GatheredPass::layer`].
    pub fn layer(&mut self, n: usize) -> Result<Cow<'a, LayerWeights>> {
        let held = &self.held.layers[n];
        let Some(pass) = &mut self.gathered else { return Ok(Cow::Borrowed(held)) };
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] = pass.layer(n)?;
        Ok(Cow::Owned(LayerWeights {
            input_layernorm: held.input_layernorm.clone(),
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            post_attention_layernorm: held.post_attention_layernorm.clone(),
            gate_proj,
            up_proj,
            down_proj,
        }))
    }
}
