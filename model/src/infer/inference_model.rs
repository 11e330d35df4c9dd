//! A model whose weights are only read: on the CPU each matrix in the format it is stored in, mapped
//! from its file unless its format is of blocks that products read in another order; elsewhere tensors of
//! one number format.
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
use crate::device::is_flex;
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
    /// The format of a matrix with rows of `columns` that is stored as `stored`.
    fn of_matrix(self, stored: StoredAs, columns: usize, is_head: bool) -> StoredAs {
        let wanted = match self {
            Self::F32 if stored.is_quantized() => StoredAs::F32,
            Self::F32 => stored,
            Self::Bf16 => StoredAs::Bf16,
            Self::Q8_0 => StoredAs::Q8_0,
            Self::Q4_0 if is_head => StoredAs::Q6K,
            Self::Q4_0 => StoredAs::Q4_0,
        };
        wanted.that_fits(columns)
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
        let on_cpu = is_flex(device) && backend::has_kernels(device, dtype);
        if let Some(precision @ (InferencePrecision::Q8_0 | InferencePrecision::Q4_0)) = precision
            && !on_cpu
        {
            return Err(ModelError::Device {
                device: format!("{device:?}"),
                reason: format!("precision {precision} is computed by the device cpu alone"),
            });
        }
        // The embedding where it is the output head too.
        let head = if weights.lm_head.is_none() { 0 } else { weights.iter().len() - 1 };
        let params = ParamTree::of_model(&config);
        let weights = params.zip(weights).try_map(
            &mut (),
            |(), (_, vector)| Ok::<_, ModelError>(vector),
            |(), (param, matrix)| {
                if !on_cpu {
                    let data = matrix.to_data().convert_dtype(dtype);
                    matrix.release();
                    return Ok(InferenceMatrix::Tensor(Tensor::from_data(data, (device, dtype))));
                }
                let is_head = param.index() == head;
                let mut held = matrix;
                if let Some(precision) = precision {
                    let stored = precision.of_matrix(held.stored_as(), held.shape()[1], is_head);
                    let converted = held
                        .converted(stored)
                        .map_err(|value| out_of_range(param.to_string(), stored, value))?;
                    if converted.stored_as() != held.stored_as() {
                        held.release();
                    }
                    held = converted;
                }
                // Of an embedding that is not the head too, single rows are read.
                if is_head || param.index() != 0 {
                    held = held.laid_out_for_products();
                }
                Ok(InferenceMatrix::Stored(held))
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
        let dtype = self.weights.norm.dtype();
        RopeTable::at(positions, &self.config.rope_frequencies(), dtype, &self.device)
    }

    /// Layer `n` of a pass whose rows are `x` (1, rows, C); their queries attend as `keys_values` says.
    pub(crate) fn layer_forward(
        &self,
        n: usize,
        x: Tensor<3>,
        rope: &RopeTable,
        keys_values: &mut impl KeysValues,
    ) -> Result<Tensor<3>> {
        let weights = &self.weights.layers[n];
        let context = LayerContext::of_one_rank(&self.config, rope);
        let (branch, AttentionSaved { x, .. }) = attention_half(weights, x, &context, keys_values)?;
        let FeedForwardSaved { h, swiglu, .. } = feed_forward_half(weights, &x, &branch, &context)?;
        // In two steps, which for a few rows is the faster way.
        Ok(residual_forward(h, &weights.down_proj.forward(&swiglu)))
    }

    /// Logits of the tokens after the rows `x` (1, rows, C) of a pass through all layers, row after
    /// row, f32. Where they are no numbers, [`InferenceModel::not_finite`] says why.
    pub fn logits(&self, x: &Tensor<3>) -> Vec<f32> {
        let (x, _) = rms_norm_forward(x, &self.weights.norm, self.config.norm_eps);
        let logits = match self.weights.head() {
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
            (Some((param, _)), _) => ModelError::tensor_not_finite(param),
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use altiplano_kernels::RowOrder;

    use super::*;
    use crate::infer::{EngineModel, Pass, PassSequence};
    use crate::mapped_file::MappedFile;

    fn config() -> LlamaConfig {
        LlamaConfig {
            dim: 64,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: Some(2),
            hidden_dim: Some(96),
            multiple_of: 256,
            vocab_size: 50,
            max_seq_len: 32,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.2,
        }
    }

    fn weights() -> Weights {
        Weights::init(&config(), 3, DType::F32, &Device::flex())
    }

    fn model(precision: Option<InferencePrecision>) -> InferenceModel {
        InferenceModel::in_memory(config(), &weights(), precision).unwrap()
    }

    /// The logits after five tokens, and what is wrong with them if they are no numbers.
    fn pass(model: &InferenceModel) -> (Vec<f32>, String) {
        let pass = Pass {
            ids: vec![3, 1, 4, 1, 5],
            positions: vec![0, 1, 2, 3, 4],
            sequences: vec![PassSequence { rows: 0..5, start: 0, blocks: vec![0] }],
        };
        let hidden = model.forward(&pass, &mut model.new_cache(1, 16).unwrap()).unwrap();
        (EngineModel::logits(model, &hidden, &[4]), model.why_not_finite(&hidden))
    }

    fn logits(model: &InferenceModel) -> Vec<f32> {
        pass(model).0
    }

    /// Root of the mean squared difference over the root of the mean square.
    fn difference(a: &[f32], b: &[f32]) -> f64 {
        let square = |x: f32| f64::from(x).powi(2);
        let sum: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (sum / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
    }

    #[test]
    fn every_precision_is_near_the_tensors_of_training() {
        let tensors = logits(&InferenceModel::from_weights(config(), &weights()).unwrap());
        for (precision, dtype, bound) in [
            (None, DType::F32, 1e-5),
            (Some(InferencePrecision::F32), DType::F32, 1e-5),
            (Some(InferencePrecision::Bf16), DType::BF16, 0.03),
            (Some(InferencePrecision::Q8_0), DType::F32, 0.05),
            // 16 times coarser; other logits than the model's would differ by 1.4.
            (Some(InferencePrecision::Q4_0), DType::F32, 0.8),
        ] {
            let model = model(precision);
            assert_eq!(model.dtype(), dtype);
            let error = difference(&logits(&model), &tensors);
            assert!(error < bound, "{precision:?}: {error}");
        }
    }

    /// A row that goes through a layer alone and among others has the same bits.
    #[test]
    fn rows_of_a_pass_do_not_depend_on_each_other() {
        use crate::ops::causal_attention_forward;
        use burn::tensor::Int;

        /// Every row attends to itself alone.
        struct Itself;
        impl KeysValues for Itself {
            fn attend(
                &mut self,
                q: &Tensor<4>,
                k: &Tensor<4>,
                v: &Tensor<4>,
                _: Option<&Tensor<2, Int>>,
            ) -> (Tensor<4>, Tensor<3>) {
                let row = |x: &Tensor<4>, n| x.clone().narrow(1, n, 1);
                let rows: Vec<_> = (0..q.dims()[1])
                    .map(|n| causal_attention_forward(&row(q, n), &row(k, n), &row(v, n), None))
                    .collect();
                let (o, lse): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
                (Tensor::cat(o, 1), Tensor::cat(lse, 2))
            }
        }
        let pass = |model: &InferenceModel, ids: &[u32], positions: &[usize]| {
            let rope = model.rope_rows(positions.iter().copied());
            let mut x = model.embed(ids).unwrap();
            for n in 0..model.layers().len() {
                x = model.layer_forward(n, x, &rope, &mut Itself).unwrap();
            }
            model.logits(&x)
        };
        let ids: Vec<u32> = (0..40).map(|n| n * 7 % 50).collect();
        let positions: Vec<usize> = (0..40).map(|n| n * 5 % 32).collect();
        use InferencePrecision::{Bf16, F32, Q4_0, Q8_0};
        for precision in [F32, Bf16, Q8_0, Q4_0] {
            let model = model(Some(precision));
            let together = pass(&model, &ids, &positions);
            for n in [0, 1, 17, 39] {
                let alone = pass(&model, &ids[n..=n], &positions[n..=n]);
                assert!(alone == together[n * 50..][..50], "{precision}: row {n}");
            }
        }
    }

    /// A mapped matrix in the order of pairs is the one in the order of halves.
    #[test]
    fn mapped_matrices_are_used_in_place_in_either_order() {
        let folder = tempfile::tempdir().unwrap();
        let matrix = StoredMatrix::of_tensor(&weights().layers[0].q_proj);
        let values: Vec<f32> = matrix.to_data().iter().collect();
        let head_dim = 16;
        let pairs = (0..64).flat_map(|row| {
            let (place, half) = (row % head_dim, head_dim / 2);
            let halves = row - place + place % 2 * half + place / 2;
            values[halves * 64..][..64].to_vec()
        });
        let path = folder.path().join("weights");
        let bytes: Vec<u8> = pairs.flat_map(f32::to_le_bytes).collect();
        std::fs::write(&path, [b"abc", &bytes[..]].concat()).unwrap();
        let file = MappedFile::open(&path).unwrap();
        let part = file.part(3..file.len()).unwrap().shared();
        let order = RowOrder::PairsToHalves { head_dim };
        let mapped = StoredMatrix::mapped(part.clone(), StoredAs::F32, [64, 64], order).unwrap();
        assert_eq!(mapped.to_data().iter::<f32>().collect::<Vec<_>>(), values);
        let x = Tensor::<3>::ones([1, 3, 64], &Device::flex());
        let product = |matrix: &StoredMatrix| {
            matrix.forward(&x).into_data().iter::<f32>().collect::<Vec<_>>()
        };
        assert_eq!(product(&mapped), product(&matrix));
        let converted = mapped.converted(StoredAs::Q8_0).unwrap();
        assert_eq!(product(&converted), product(&matrix.converted(StoredAs::Q8_0).unwrap()));
        assert!(StoredMatrix::mapped(part, StoredAs::F32, [64, 65], order).is_none());
    }

    #[test]
    fn what_is_no_number_is_traced_to_its_tensor() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut weights = weights();
            let up = &mut weights.layers[1].up_proj;
            let patch = Tensor::<2>::full([1, 1], bad, &Device::flex());
            *up = up.clone().slice_assign([5..6, 7..8], patch);
            let model = InferenceModel::in_memory(config(), &weights, None).unwrap();
            let (logits, error) = pass(&model);
            assert!(!logits.iter().all(|logit| logit.is_finite()));
            assert!(error.contains("model.layers.1.mlp.up_proj.weight"), "{error}");
            let error =
                InferenceModel::in_memory(config(), &weights, Some(InferencePrecision::Q8_0));
            let error = error.unwrap_err().to_string();
            assert!(error.contains("up_proj") && error.contains("q8_0"), "{error}");
        }
        // Weights of numbers, whose activations are beyond all numbers.
        let mut weights = weights();
        weights.layers[0].down_proj = weights.layers[0].down_proj.clone() * 3e38;
        let model = InferenceModel::in_memory(config(), &weights, None).unwrap();
        let (logits, error) = pass(&model);
        assert!(!logits.iter().all(|logit| logit.is_finite()));
        assert!(error.contains("model.layers.0"), "{error}");
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused() {
        let error = model(None).embed(&[3, 50]).unwrap_err().to_string();
        assert!(error.contains("50"), "{error}");
    }
}
