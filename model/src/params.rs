//! Trees of tensors: weights, gradients and AdamW moments, their starting values and the copy that
//! the forward pass reads.

use std::convert::Infallible;

use burn::tensor::{DType, Device, Shape, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal};

use crate::config::{LlamaConfig, Precision};
use crate::error::ModelError;
use crate::parallel::TensorRank;
use crate::param_tree::{Init, LayerTree, Leaf, Param, ParamTree};

/// A tensor for every parameter. The names below say which; they are one type because every op
/// over all parameters takes any of them.
pub type TensorTree = ParamTree<Tensor<1>, Tensor<2>>;
/// What a forward pass reads, or the f32 master weights that AdamW updates.
pub type Weights = TensorTree;
/// Gradients of the weights, f32.
pub type Grads = TensorTree;
/// Running means of the gradients or of their squares, f32.
pub type Moments = TensorTree;

/// The parameters that a step of a pass works with: it reads them, or adds to their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPart {
    /// The matrix of the output head; of a tied model the token embedding, which
    /// [`Embedding`](Self::Embedding) works with as well.
    Head,
    /// The gain of the last norm.
    Norm,
    /// All parameters of a layer.
    Layer(usize),
    /// The token embedding.
    Embedding,
}

/// Takes the gradients of a backward pass, part by part, in the order in which they are complete:
/// head, norm, layers from last to first, embedding.
///
/// A tree of gradients takes them as they come. Where ranks exchange gradients, a part is on its way
/// as soon as it is complete, while the pass goes on.
pub trait GradSink {
    /// The tree whose accumulators of `part` the pass is about to add to. Others may be missing.
    fn begin(&mut self, part: ModelPart) -> &mut Grads;

    /// The pass has added its gradients of `part`.
    fn end(&mut self, part: ModelPart);
}

impl GradSink for Grads {
    fn begin(&mut self, _part: ModelPart) -> &mut Grads {
        self
    }

    fn end(&mut self, _part: ModelPart) {}
}

/// A tensor for every parameter of a layer.
pub type LayerTensors = LayerTree<Tensor<1>, Tensor<2>>;
/// The weights of a layer.
pub type LayerWeights = LayerTensors;
/// The gradients of the weights of a layer.
pub type LayerGrads = LayerTensors;

impl TensorTree {
    /// The tensors of a model of this configuration, each made flat by `make`, in the order of the
    /// checkpoint, and given its shape here.
    ///
    /// # Errors
    /// The first of `make`.
    pub fn build<E>(
        config: &LlamaConfig,
        mut make: impl FnMut(Param) -> Result<Tensor<1>, E>,
    ) -> Result<Self, E> {
        ParamTree::of_model(config).try_map(
            &mut make,
            |make, param| make(param),
            |make, param| Ok(make(param)?.reshape(Shape::from(param.shape(config)))),
        )
    }

    /// Starting weights, as [`Init`] says for each. A tensor draws from a stream of random numbers
    /// of its own: its values depend on the seed and its place among the parameters alone.
    pub fn init(config: &LlamaConfig, seed: u64, dtype: DType, device: &Device) -> Self {
        Self::init_part(config, &TensorRank::ONLY, seed, dtype, device)
    }

    /// The part that the rank `place` holds of the starting weights of a model: the same values whatever the
    /// number of ranks. One whole tensor exists at a time.
    pub fn init_part(
        config: &LlamaConfig,
        place: &TensorRank,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let Ok(weights) = Self::build::<Infallible>(&place.local_config(config), |param| {
            let count = param.count(config);
            let (std, stream) = (config.init_std, param.index() as u64);
            let values = match param.init() {
                Init::Ones => vec![1.0; count],
                Init::Normal => normal(count, std, seed, stream),
                Init::ResidualNormal => {
                    normal(count, std / (2.0 * config.n_layers as f64).sqrt(), seed, stream)
                }
            };
            let width = param.shape(config).last().copied().unwrap_or(count);
            let values = place.slice(param, config).take(values, width);
            let count = values.len();
            let data = TensorData::new(values, [count]).convert_dtype(dtype);
            Ok(Tensor::from_data(data, (device, dtype)))
        });
        weights
    }

    /// Zeros of the shapes of `config`: gradients and moments.
    pub fn zeros(config: &LlamaConfig, dtype: DType, device: &Device) -> Self {
        let Ok(zeros) = Self::build::<Infallible>(config, |param| {
            Ok(Tensor::zeros([param.count(config)], (device, dtype)))
        });
        zeros
    }

    /// Refuses weights of which some are not finite.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] with the name of the first such tensor.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        let is_finite = |data: TensorData| data.iter::<f64>().all(f64::is_finite);
        let bad = self.iter().find(|(_, leaf)| match leaf {
            Leaf::Vector(vector) => !is_finite(vector.to_data()),
            Leaf::Matrix(matrix) => !is_finite(matrix.to_data()),
        });
        bad.map_or(Ok(()), |(param, _)| Err(ModelError::tensor_not_finite(param)))
    }

    /// The weights of a vocabulary with one more token: its rows, of the embedding and of a head that is not
    /// tied to it, are the means of the rows there are.
    pub fn with_mean_row(mut self) -> Self {
        fn grown(table: Tensor<2>) -> Tensor<2> {
            let mean = table.clone().cast(DType::F32).mean_dim(0).cast(table.dtype());
            Tensor::cat(vec![table, mean], 0)
        }
        self.embed_tokens = grown(self.embed_tokens);
        self.lm_head = self.lm_head.map(grown);
        self
    }

    /// What the forward pass reads of these master weights: matrices in `precision`, norm gains in
    /// f32. Under [`Precision::F32`] the tensors are shared with `self`.
    pub fn compute_copy(&self, precision: Precision) -> Self {
        match precision {
            Precision::F32 => self.clone(),
            Precision::Bf16 => self.each_ref().map(Tensor::clone, |x| x.clone().cast(DType::BF16)),
        }
    }
}

fn normal(count: usize, std: f64, seed: u64, stream: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    // init_std is validated to be finite and not negative, which is all Normal asks for.
    match Normal::new(0.0f32, std as f32) {
        Ok(normal) => (0..count).map(|_| normal.sample(&mut rng)).collect(),
        Err(_) => vec![0.0; count],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config() -> LlamaConfig {
        LlamaConfig {
            dim: 16,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: Some(2),
            hidden_dim: Some(24),
            multiple_of: 256,
            vocab_size: 30,
            max_seq_len: 8,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    /// Hugging Face's names in the order of the checkpoint, which seeds the starting weights and in
    /// which the gradient norm is summed.
    #[test]
    fn names_shapes_and_decay_are_those_of_the_published_model() {
        let layer = |n: usize| {
            [
                ("input_layernorm", vec![16]),
                ("self_attn.q_proj", vec![16, 16]),
                ("self_attn.k_proj", vec![8, 16]),
                ("self_attn.v_proj", vec![8, 16]),
                ("self_attn.o_proj", vec![16, 16]),
                ("post_attention_layernorm", vec![16]),
                ("mlp.gate_proj", vec![24, 16]),
                ("mlp.up_proj", vec![24, 16]),
                ("mlp.down_proj", vec![16, 24]),
            ]
            .map(|(name, shape)| (format!("model.layers.{n}.{name}.weight"), shape))
        };
        let mut expected = vec![("model.embed_tokens.weight".to_string(), vec![30, 16])];
        expected.extend(layer(0));
        expected.extend(layer(1));
        expected.push(("model.norm.weight".to_string(), vec![16]));
        expected.push(("lm_head.weight".to_string(), vec![30, 16]));

        let config = config();
        let weights = Weights::init(&config, 1, DType::F32, &Device::flex());
        let mut count = 0;
        for (n, ((param, x), (name, shape))) in weights.iter().zip(&expected).enumerate() {
            assert_eq!((param.index(), &param.to_string()), (n, name));
            assert_eq!(&param.shape(&config), shape, "{name}");
            assert_eq!(&x.to_data().shape().to_vec(), shape, "{name}");
            assert_eq!(param.decays(), shape.len() == 2, "{name}");
            count += param.count(&config);
        }
        assert_eq!(weights.iter().len(), expected.len());
        assert_eq!(config.parameter_count(), count);
        assert_eq!(config.parameter_count() - config.matrix_parameter_count(), 5 * 16);
    }

    #[test]
    fn the_first_error_stops_the_building() {
        let mut made = 0;
        let error = Weights::build(&config(), |param| {
            made += 1;
            if param.index() == 4 {
                Err(param.to_string())
            } else {
                Ok(Tensor::zeros([param.count(&config())], &Device::flex()))
            }
        });
        assert_eq!(error.unwrap_err(), "model.layers.0.self_attn.v_proj.weight");
        assert_eq!(made, 5);
    }

    /// Ranks that draw their parts have the tensors of one rank, whatever their number.
    #[test]
    fn starting_weights_do_not_depend_on_the_ranks() {
        let config = config();
        let values = |weights: &Weights| -> Vec<TensorData> {
            weights.iter().map(|(_, x)| x.to_data()).collect()
        };
        let whole = Weights::init(&config, 7, DType::F32, &Device::flex());
        for ranks in [1, 2, 4] {
            let part = |place: &TensorRank| {
                let part = Weights::init_part(&config, place, 7, DType::F32, &Device::flex());
                assert_eq!(values(&part), values(&place.split(&whole, &config)));
                part
            };
            let parts: Vec<Weights> =
                TensorRank::all(ranks, &config).unwrap().iter().map(part).collect();
            assert_eq!(values(&TensorRank::join(&parts, &config)), values(&whole));
        }
    }

    #[test]
    fn init_has_the_stated_deviation_and_follows_the_seed() {
        let config = LlamaConfig { dim: 64, vocab_size: 500, ..config() };
        let device = Device::flex();
        let values = |seed| {
            let weights = Weights::init(&config, seed, DType::F32, &device);
            let values = |matrix: &Tensor<2>| matrix.to_data().iter::<f32>().collect::<Vec<_>>();
            (values(&weights.embed_tokens), values(&weights.layers[1].o_proj))
        };
        let std = |x: &[f32]| {
            (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
        };
        let (embed, o) = values(7);
        assert!((std(&embed) - 0.02).abs() < 5e-4, "{}", std(&embed));
        assert!((std(&o) - 0.01).abs() < 5e-4, "{}", std(&o));
        assert_eq!(values(7), (embed.clone(), o));
        assert_ne!(values(8).0, embed);
    }
}
