//! The named parameters of the model. Gradients, AdamW moments and the bf16 copy have the same
//! tree.

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal};

use crate::backend::f32_storage;
use crate::config::{LlamaConfig, Precision};

/// Parameters of one layer, named as Hugging Face names them. Matrices are (out, in).
#[derive(Debug, Clone)]
pub struct LayerParams {
    /// Gain of the norm before attention, (C).
    pub input_layernorm: Tensor<1>,
    /// Queries, (H·D, C).
    pub q_proj: Tensor<2>,
    /// Keys, (K·D, C).
    pub k_proj: Tensor<2>,
    /// Values, (K·D, C).
    pub v_proj: Tensor<2>,
    /// Attention output, (C, H·D).
    pub o_proj: Tensor<2>,
    /// Gain of the norm before the feed-forward, (C).
    pub post_attention_layernorm: Tensor<1>,
    /// Gate of SwiGLU, (F, C).
    pub gate_proj: Tensor<2>,
    /// The other factor of SwiGLU, (F, C).
    pub up_proj: Tensor<2>,
    /// Feed-forward output, (C, F).
    pub down_proj: Tensor<2>,
}

/// All parameters.
#[derive(Debug, Clone)]
pub struct Params {
    /// Token embedding, (V, C).
    pub embed_tokens: Tensor<2>,
    /// The layers, first to last.
    pub layers: Vec<LayerParams>,
    /// Gain of the last norm, (C).
    pub norm: Tensor<1>,
    /// Output head, (V, C), not tied to the embedding.
    pub lm_head: Tensor<2>,
}

/// One parameter: a norm gain or a matrix.
#[derive(Debug)]
pub enum Param<'a> {
    /// A norm gain, (C).
    Vector(&'a Tensor<1>),
    /// A matrix, (out, in).
    Matrix(&'a Tensor<2>),
}

/// One parameter, to be changed.
#[derive(Debug)]
pub enum ParamMut<'a> {
    /// A norm gain, (C).
    Vector(&'a mut Tensor<1>),
    /// A matrix, (out, in).
    Matrix(&'a mut Tensor<2>),
}

/// Name and shape of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Hugging Face's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Shape, of rank 1 or 2.
    pub shape: Vec<usize>,
}

/// Lists the fields of a [`Params`] in checkpoint order with their names; `$($and)*` is `&` or
/// `&mut`, `$param` the matching enum, `$iter` the matching iterator of the layers.
macro_rules! named_params {
    ($params:expr, $param:ident, $iter:ident $(, $mutability:tt)?) => {{
        let params = $params;
        let mut named = Vec::with_capacity(3 + 9 * params.layers.len());
        named.push((
            "model.embed_tokens.weight".to_string(),
            $param::Matrix(& $($mutability)? params.embed_tokens),
        ));
        for (n, layer) in params.layers.$iter().enumerate() {
            let name = |field: &str| format!("model.layers.{n}.{field}.weight");
            named.extend([
                (name("input_layernorm"), $param::Vector(& $($mutability)? layer.input_layernorm)),
                (name("self_attn.q_proj"), $param::Matrix(& $($mutability)? layer.q_proj)),
                (name("self_attn.k_proj"), $param::Matrix(& $($mutability)? layer.k_proj)),
                (name("self_attn.v_proj"), $param::Matrix(& $($mutability)? layer.v_proj)),
                (name("self_attn.o_proj"), $param::Matrix(& $($mutability)? layer.o_proj)),
                (
                    name("post_attention_layernorm"),
                    $param::Vector(& $($mutability)? layer.post_attention_layernorm),
                ),
                (name("mlp.gate_proj"), $param::Matrix(& $($mutability)? layer.gate_proj)),
                (name("mlp.up_proj"), $param::Matrix(& $($mutability)? layer.up_proj)),
                (name("mlp.down_proj"), $param::Matrix(& $($mutability)? layer.down_proj)),
            ]);
        }
        named.push(("model.norm.weight".to_string(), $param::Vector(& $($mutability)? params.norm)));
        named.push(("lm_head.weight".to_string(), $param::Matrix(& $($mutability)? params.lm_head)));
        named
    }};
}

impl Params {
    /// All parameters of a model of this configuration, each made by `make(index, spec)` in the
    /// order of [`Params::named`].
    pub fn build<E>(
        config: &LlamaConfig,
        mut make: impl FnMut(usize, &ParamSpec) -> Result<MadeParam, E>,
    ) -> Result<Self, E> {
        let (c, f, v) = (config.dim, config.ffn_dim(), config.vocab_size);
        let kv = config.kv_heads() * config.head_dim();
        let mut index = 0;
        let mut next = |name: String, shape: Vec<usize>| {
            let made = make(index, &ParamSpec { name, shape });
            index += 1;
            made
        };
        let embed_tokens = next("model.embed_tokens.weight".into(), vec![v, c])?.reshape([v, c]);
        let mut layers = Vec::with_capacity(config.n_layers);
        for n in 0..config.n_layers {
            let name = |field: &str| format!("model.layers.{n}.{field}.weight");
            layers.push(LayerParams {
                input_layernorm: next(name("input_layernorm"), vec![c])?,
                q_proj: next(name("self_attn.q_proj"), vec![c, c])?.reshape([c, c]),
                k_proj: next(name("self_attn.k_proj"), vec![kv, c])?.reshape([kv, c]),
                v_proj: next(name("self_attn.v_proj"), vec![kv, c])?.reshape([kv, c]),
                o_proj: next(name("self_attn.o_proj"), vec![c, c])?.reshape([c, c]),
                post_attention_layernorm: next(name("post_attention_layernorm"), vec![c])?,
                gate_proj: next(name("mlp.gate_proj"), vec![f, c])?.reshape([f, c]),
                up_proj: next(name("mlp.up_proj"), vec![f, c])?.reshape([f, c]),
                down_proj: next(name("mlp.down_proj"), vec![c, f])?.reshape([c, f]),
            });
        }
        let norm = next("model.norm.weight".into(), vec![c])?;
        let lm_head = next("lm_head.weight".into(), vec![v, c])?.reshape([v, c]);
        Ok(Self { embed_tokens, layers, norm, lm_head })
    }

    /// Starting weights: norm gains 1, matrices normal with standard deviation `init_std`, divided
    /// by √(2L) where a branch joins the residual stream so that its variance does not grow with
    /// depth. Each tensor draws from a stream of its own, so it depends on the seed and its place
    /// alone.
    pub fn init(config: &LlamaConfig, seed: u64, dtype: DType, device: &Device) -> Self {
        let made = Self::build::<std::convert::Infallible>(config, |index, spec| {
            let count: usize = spec.shape.iter().product();
            let values: Vec<f32> = if spec.shape.len() == 1 {
                vec![1.0; count]
            } else {
                let joins = spec.name.contains("o_proj") || spec.name.contains("down_proj");
                let depth = if joins { (2.0 * config.n_layers as f64).sqrt() } else { 1.0 };
                normal(count, config.init_std / depth, seed, index as u64)
            };
            Ok(from_values(values, dtype, device))
        });
        match made {
            Ok(params) => params,
            Err(never) => match never {},
        }
    }

    /// Zeros of the shapes of `config`: gradients and moments.
    pub fn zeros(config: &LlamaConfig, dtype: DType, device: &Device) -> Self {
        let made = Self::build::<std::convert::Infallible>(config, |_, spec| {
            let count: usize = spec.shape.iter().product();
            Ok(Tensor::zeros([count], (device, dtype)))
        });
        match made {
            Ok(params) => params,
            Err(never) => match never {},
        }
    }

    /// What the forward pass reads: matrices in `precision`, norm gains in f32. Under
    /// [`Precision::F32`] the tensors are shared with `self`.
    pub fn compute_copy(&self, precision: Precision) -> Self {
        let mut copy = self.clone();
        if precision == Precision::Bf16 {
            for (_, param) in copy.named_mut() {
                if let ParamMut::Matrix(matrix) = param {
                    matrix.inplace(|matrix| matrix.cast(DType::BF16));
                }
            }
        }
        copy
    }

    /// Names and parameters, in the order of the checkpoint.
    pub fn named(&self) -> Vec<(String, Param<'_>)> {
        named_params!(self, Param, iter)
    }

    /// As [`Params::named`], to be changed.
    pub fn named_mut(&mut self) -> Vec<(String, ParamMut<'_>)> {
        named_params!(self, ParamMut, iter_mut, mut)
    }
}

/// A parameter just made, flat; [`Params::build`] gives it its shape.
pub type MadeParam = Tensor<1>;

fn normal(count: usize, std: f64, seed: u64, stream: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    // init_std is validated to be finite and not negative, which is all Normal asks for.
    match Normal::new(0.0f32, std as f32) {
        Ok(normal) => (0..count).map(|_| normal.sample(&mut rng)).collect(),
        Err(_) => vec![0.0; count],
    }
}

fn from_values(values: Vec<f32>, dtype: DType, device: &Device) -> Tensor<1> {
    let count = values.len();
    let data = TensorData::new(values, [count]).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

impl Param<'_> {
    /// Shape, of rank 1 or 2.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(x) => x.dims().to_vec(),
            Self::Matrix(x) => x.dims().to_vec(),
        }
    }

    /// The f32 elements where they are, on the CPU.
    pub(crate) fn f32_storage(&self) -> Option<FlexTensor> {
        match self {
            Self::Vector(x) => f32_storage(x),
            Self::Matrix(x) => f32_storage(x),
        }
    }

    /// The values on the host.
    pub fn to_data(&self) -> TensorData {
        match self {
            Self::Vector(x) => x.to_data(),
            Self::Matrix(x) => x.to_data(),
        }
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
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    #[test]
    fn count_and_names_match_the_specs() {
        let config = config();
        let params = Params::init(&config, 1, DType::F32, &Device::flex());
        let mut specs = Vec::new();
        Params::build::<()>(&config, |_, spec| {
            specs.push(spec.clone());
            let count: usize = spec.shape.iter().product();
            Ok(Tensor::zeros([count], &Device::flex()))
        })
        .unwrap();
        let named: Vec<_> = params
            .named()
            .into_iter()
            .map(|(name, param)| ParamSpec { name, shape: param.shape() })
            .collect();
        assert_eq!(named, specs);
        let count: usize = named.iter().map(|p| p.shape.iter().product::<usize>()).sum();
        assert_eq!(count, config.parameter_count());
    }

    #[test]
    fn init_has_the_stated_deviation_and_follows_the_seed() {
        let config = LlamaConfig { dim: 64, vocab_size: 500, ..config() };
        let device = Device::flex();
        let values = |seed| {
            let params = Params::init(&config, seed, DType::F32, &device);
            let values = |matrix: &Tensor<2>| matrix.to_data().iter::<f32>().collect::<Vec<_>>();
            let (embed, o) = (values(&params.embed_tokens), values(&params.layers[1].o_proj));
            (embed, o)
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
