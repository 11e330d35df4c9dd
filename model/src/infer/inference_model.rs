//! A model whose weights are only read: on the CPU each matrix in the format it is stored in, mapped
//! from its file; elsewhere tensors of one number format.
//!
//! On the CPU the rows of a pass do not depend on each other: the ops here give a row the same bits
//! alone and among others. (A model [`InferenceModel::from_weights`] of tensors makes no such promise.)

use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::stored_matrix::{StoredMatrix, check_ids, finite_vector, out_of_range};
use crate::backend;
use crate::config::LlamaConfig;
use crate::device::is_cpu;
use crate::error::{ModelError, Result};
use crate::layer::{
    AttentionSaved, FeedForwardSaved, KeysValues, LayerContext, attention_half, feed_forward_half,
};
use crate::ops::{
    LinearWeight, RopeTable, embedding_forward, head_logits, residual_forward, rms_norm_forward,
};
use crate::param_tree::{LayerTree, Leaf, ParamTree};
use crate::params::Weights;
use crate::quantize::StoredAs;

/// Number format in which a model that only generates is held and computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InferencePrecision {
    /// Activations in f32. Matrices of floating-point numbers stay as they are stored, whose products
    /// are those of the same numbers in f32; quantized ones become f32.
    F32,
    /// Matrices and activations in bf16.
    Bf16,
    /// Matrices in 8-bit blocks, activations in f32.
    Q8_0,
    /// Matrices in 4-bit blocks and the output head in `q6_k`, as `export --type q4_0` writes them;
    /// activations in f32.
    Q4_0,
}

impl InferencePrecision {
    /// The format of a matrix that is stored as `stored`.
    fn of_matrix(self, stored: StoredAs, is_head: bool) -> StoredAs {
        match self {
            Self::F32 if stored.is_quantized() => StoredAs::F32,
            Self::F32 => stored,
            Self::Bf16 => StoredAs::Bf16,
            Self::Q8_0 => StoredAs::Q8_0,
            Self::Q4_0 if is_head => StoredAs::Q6K,
            Self::Q4_0 => StoredAs::Q4_0,
        }
    }
}

impl fmt::Display for InferencePrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}

impl FromStr for InferencePrecision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let all = [Self::F32, Self::Bf16, Self::Q8_0, Self::Q4_0];
        let found = all.into_iter().find(|precision| precision.to_string() == text);
        found.ok_or_else(|| {
            format!("{text:?} is not a number format; expected f32, bf16, q8_0 or q4_0")
        })
    }
}

/// A matrix of weights.
#[derive(Debug, Clone)]
pub enum InferenceMatrix {
    /// On any device.
    Tensor(Tensor<2>),
    /// On the CPU, as it is stored.
    Stored(StoredMatrix),
}

impl LinearWeight for InferenceMatrix {
    fn forward(&self, x: &Tensor<3>) -> Tensor<3> {
        match self {
            Self::Tensor(matrix) => matrix.forward(x),
            Self::Stored(matrix) => matrix.forward(x),
        }
    }
}

impl InferenceMatrix {
    fn is_finite(&self) -> bool {
        match self {
            Self::Tensor(matrix) => matrix.to_data().iter::<f64>().all(f64::is_finite),
            Self::Stored(matrix) => matrix.is_finite(),
        }
    }
}

/// The weights of a layer.
pub type InferenceLayer = LayerTree<Tensor<1>, InferenceMatrix>;

/// A LLaMA that generates.
#[derive(Debug)]
pub struct InferenceModel {
    config: LlamaConfig,
    weights: ParamTree<Tensor<1>, InferenceMatrix>,
    dtype: DType,
    device: Device,
}

impl InferenceModel {
    /// A model of these norm gains, f32, and matrices, converted to `precision` one after the other;
    /// without it, each matrix stays in the format it is stored in, and activations are bf16 where all
    /// matrices are and f32 otherwise.
    ///
    /// # Errors
    /// [`ModelError::Config`] when the configuration does not fit together, [`ModelError::NotFinite`]
    /// when a matrix has values that the format cannot hold, [`ModelError::Device`] when the device
    /// does not compute in the precision.
    pub fn new(
        config: LlamaConfig,
        weights: ParamTree<Tensor<1>, StoredMatrix>,
        precision: Option<InferencePrecision>,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        let all_bf16 = || {
            weights.iter().all(|(_, leaf)| match leaf {
                Leaf::Vector(_) => true,
                Leaf::Matrix(matrix) => matrix.stored_as() == StoredAs::Bf16,
            })
        };
        let dtype = match precision {
            Some(InferencePrecision::Bf16) => DType::BF16,
            None if all_bf16() => DType::BF16,
            _ => DType::F32,
        };
        let on_cpu = is_cpu(device) && backend::has_kernels(device, dtype);
        if let Some(precision @ (InferencePrecision::Q8_0 | InferencePrecision::Q4_0)) = precision
            && !on_cpu
        {
            return Err(ModelError::Device {
                device: format!("{device:?}"),
                reason: format!("precision {precision} is computed by the device cpu alone"),
            });
        }
        let head = weights.iter().len() - 1;
        let params = ParamTree::of_model(config.n_layers);
        let weights = params.zip(weights).try_map(
            &mut (),
            |(), (_, vector)| Ok::<_, ModelError>(vector),
            |(), (param, matrix)| {
                if !on_cpu {
                    let data = matrix.to_data().convert_dtype(dtype);
                    matrix.release();
                    return Ok(InferenceMatrix::Tensor(Tensor::from_data(data, (device, dtype))));
                }
                let Some(precision) = precision else { return Ok(InferenceMatrix::Stored(matrix)) };
                let stored = precision.of_matrix(matrix.stored_as(), param.index() == head);
                let converted = matrix
                    .converted(stored)
                    .map_err(|value| out_of_range(param.to_string(), stored, value))?;
                if converted.stored_as() != matrix.stored_as() {
                    matrix.release();
                }
                Ok(InferenceMatrix::Stored(converted))
            },
        )?;
        Ok(Self { config, weights, dtype, device: device.clone() })
    }

    /// A model of the tensors that a training run computes with, which are shared. Its products are
    /// those of training.
    ///
    /// # Errors
    /// [`ModelError::Config`] when the configuration does not fit together.
    pub fn from_weights(config: LlamaConfig, weights: &Weights) -> Result<Self> {
        config.validate()?;
        let (dtype, device) = (weights.embed_tokens.dtype(), weights.norm.device());
        let weights =
            weights.each_ref().map(Tensor::clone, |matrix| InferenceMatrix::Tensor(matrix.clone()));
        Ok(Self { config, weights, dtype, device })
    }

    /// A model with copies of tensors of the CPU, in the formats of the tensors or in `precision`.
    ///
    /// # Errors
    /// As [`InferenceModel::new`].
    pub fn in_memory(
        config: LlamaConfig,
        weights: &Weights,
        precision: Option<InferencePrecision>,
    ) -> Result<Self> {
        let device = weights.norm.device();
        let weights = weights.each_ref().map(Tensor::clone, StoredMatrix::of_tensor);
        Self::new(config, weights, precision, &device)
    }

    /// Shape and constants.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number format of activations, and so of keys and values.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[InferenceLayer] {
        &self.weights.layers
    }

    /// Bytes of all matrices in the formats they are held in.
    pub fn matrix_bytes(&self) -> usize {
        let bytes = |(_, leaf): (_, Leaf<&Tensor<1>, &InferenceMatrix>)| match leaf {
            Leaf::Vector(_) => 0,
            Leaf::Matrix(InferenceMatrix::Stored(matrix)) => matrix.len_bytes(),
            Leaf::Matrix(InferenceMatrix::Tensor(matrix)) => {
                matrix.dims().iter().product::<usize>() * matrix.dtype().size()
            }
        };
        self.weights.iter().map(bytes).sum()
    }

    /// The residual stream of `ids`, the rows of a pass: (1, rows, C).
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor<3>> {
        check_ids(ids, self.config.vocab_size)?;
        Ok(match &self.weights.embed_tokens {
            InferenceMatrix::Stored(matrix) => {
                Tensor::from_data(matrix.rows_as(ids, self.dtype), (&self.device, self.dtype))
            }
            InferenceMatrix::Tensor(matrix) => {
                let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
                let shape = [1, ids.len()];
                let ids = TensorData::new(ids, shape);
                let ids = Tensor::from_data(ids, (&self.device, DType::I32));
                embedding_forward(matrix, &ids)
            }
        })
    }

    /// Rotation of the rows of a pass, each by its position in its own sequence.
    pub fn rope_rows(&self, positions: impl IntoIterator<Item = usize>) -> RopeTable {
        RopeTable::at(
            positions,
            self.config.head_dim(),
            self.config.rope_theta,
            self.weights.norm.dtype(),
            &self.device,
        )
    }

    /// Layer `n` of a pass whose rows are `x` (1, rows, C); their queries attend as `keys_values` says.
    pub(crate) fn layer_forward(
        &self,
        n: usize,
        x: Tensor<3>,
        rope: &RopeTable,
        keys_values: &mut impl KeysValues,
    ) -> Tensor<3> {
        let weights = &self.weights.layers[n];
        let context = LayerContext { config: &self.config, rope, first_visible: None };
        let (branch, AttentionSaved { x, .. }) = attention_half(weights, x, &context, keys_values);
        let FeedForwardSaved { h, swiglu, .. } = feed_forward_half(weights, &x, &branch, &context);
        // In two steps, which for a few rows is the faster way.
        residual_forward(h, &weights.down_proj.forward(&swiglu))
    }

    /// Logits of the tokens after the rows `x` (1, rows, C) of a pass through all layers, row after
    /// row, f32. Where they are no numbers, [`InferenceModel::not_finite`] says why.
    pub fn logits(&self, x: &Tensor<3>) -> Vec<f32> {
        let (x, _) = rms_norm_forward(x, &self.weights.norm, self.config.norm_eps);
        let logits = match &self.weights.lm_head {
            InferenceMatrix::Tensor(matrix) => head_logits(&x, matrix),
            InferenceMatrix::Stored(matrix) => matrix.product(&x, DType::F32),
        };
        logits.into_data().convert::<f32>().try_into_vec().expect("converted to f32")
    }

    /// Where a pass went wrong that gave what is no number in layer `layer`, or in the head: the first
    /// parameter up to there that holds such values, or else the place itself.
    pub fn not_finite(&self, layer: Option<usize>) -> ModelError {
        let bad = self.weights.iter().find(|(_, leaf)| match leaf {
            Leaf::Vector(vector) => !finite_vector(vector),
            Leaf::Matrix(matrix) => !matrix.is_finite(),
        });
        match (bad, layer) {
            (Some((param, _)), _) => ModelError::NotFinite {
                place: format!("tensor {:?}", param.to_string()),
                found: "holds values that are not finite; the file is damaged, or its training \
                        diverged: use another checkpoint"
                    .into(),
            },
            (None, layer) => ModelError::NotFinite {
                place: layer.map_or("logits".into(), |n| format!("model.layers.{n}")),
                found: format!(
                    "values are not finite though all weights are: activations beyond the range of \
                     {:?}; try precision f32 or bf16",
                    self.dtype
                ),
            },
        }
    }
}
