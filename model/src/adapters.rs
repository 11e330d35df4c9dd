//! Low-rank adapters of a model: which matrices have one, their starting values, and trees of them for
//! weights, gradients and moments.

use std::fmt;

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Uniform};
use serde::{Deserialize, Serialize};

use crate::backend::AdamWStep;
use crate::config::{LlamaConfig, Precision};
use crate::ops;
use crate::ops::LoraPair;
use crate::params::Weights;

/// A matrix of a layer that can have an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Attention output.
    OProj,
    /// Gate of SwiGLU.
    GateProj,
    /// The other factor of SwiGLU.
    UpProj,
    /// Feed-forward output.
    DownProj,
}

impl Target {
    /// All of them, in the order of the layer.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The name in configurations: `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// The part of the layer it is in, by Hugging Face's name.
    pub fn module(self) -> &'static str {
        match self {
            Self::GateProj | Self::UpProj | Self::DownProj => "mlp",
            _ => "self_attn",
        }
    }

    /// Outputs and inputs of the matrix.
    pub fn shape(self, config: &LlamaConfig) -> [usize; 2] {
        let (c, f) = (config.dim, config.ffn_dim());
        let queries = config.attention_dim();
        let keys = config.kv_heads() * config.head_dim();
        match self {
            Self::QProj => [queries, c],
            Self::KProj | Self::VProj => [keys, c],
            Self::OProj => [c, queries],
            Self::GateProj | Self::UpProj => [f, c],
            Self::DownProj => [c, f],
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rank, scale and targets of adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterShape {
    /// r.
    pub rank: usize,
    /// alpha: the product is scaled by alpha / r.
    pub alpha: f64,
    /// Which matrices of every layer have one, each once, in the order of [`Target::ALL`].
    pub targets: Vec<Target>,
}

impl AdapterShape {
    /// s = alpha / r.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Numbers in all adapters of a model.
    pub fn parameter_count(&self, config: &LlamaConfig) -> usize {
        let one = |target: &Target| target.shape(config).iter().sum::<usize>() * self.rank;
        config.n_layers * self.targets.iter().map(one).sum::<usize>()
    }

    /// Floating-point operations of one forward and backward pass per token at context `seq_len`: a weight that
    /// stays has no product for its gradient, so 4 instead of 6; the adapters have 6.
    pub fn train_flops_per_token(&self, config: &LlamaConfig, seq_len: usize) -> f64 {
        let weights = config.train_flops_per_token(0);
        let attention = config.train_flops_per_token(seq_len) - weights;
        weights * 4.0 / 6.0 + attention + 6.0 * self.parameter_count(config) as f64
    }
}

/// The adapters of one layer.
#[derive(Debug, Clone, Default)]
pub struct LayerAdapters {
    pairs: Vec<(Target, LoraPair)>,
}

impl LayerAdapters {
    /// The adapter of a matrix, if it has one.
    pub fn get(&self, target: Target) -> Option<&LoraPair> {
        self.pairs.iter().find(|(of, _)| *of == target).map(|(_, pair)| pair)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, target: Target) -> Option<&mut LoraPair> {
        self.pairs.iter_mut().find(|(of, _)| *of == target).map(|(_, pair)| pair)
    }
}

/// A pair of tensors for every adapter of a model: weights, gradients or moments.
#[derive(Debug, Clone)]
pub struct Adapters {
    /// The layers, first to last.
    pub layers: Vec<LayerAdapters>,
}

/// Which factor of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factor {
    /// (r, in).
    A,
    /// (out, r).
    B,
}

/// Which tensor of a model's adapters. Displayed as PEFT names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterParam {
    /// Number of the layer.
    pub layer: usize,
    /// The matrix.
    pub target: Target,
    /// The factor.
    pub factor: Factor,
}

impl fmt::Display for AdapterParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, target, factor } = self;
        let module = target.module();
        write!(f, "base_model.model.model.layers.{layer}.{module}.{target}.lora_{factor:?}.weight")
    }
}

impl Adapters {
    /// The tensors of a model of this configuration, each made by `make` from what it is and its shape.
    ///
    /// # Errors
    /// The first of `make`.
    pub fn build<E>(
        config: &LlamaConfig,
        shape: &AdapterShape,
        mut make: impl FnMut(AdapterParam, [usize; 2]) -> Result<Tensor<2>, E>,
    ) -> Result<Self, E> {
        let mut layers = Vec::with_capacity(config.n_layers);
        for layer in 0..config.n_layers {
            let mut pairs = Vec::with_capacity(shape.targets.len());
            for &target in &shape.targets {
                let [outputs, inputs] = target.shape(config);
                let param = |factor| AdapterParam { layer, target, factor };
                let a = make(param(Factor::A), [shape.rank, inputs])?;
                let b = make(param(Factor::B), [outputs, shape.rank])?;
                pairs.push((target, LoraPair { a, b, scale: shape.scale() }));
            }
            layers.push(LayerAdapters { pairs });
        }
        Ok(Self { layers })
    }

    /// Starting values: A uniform in ±1/√in, each from a stream of random numbers of its own, and B zero.
    pub fn init(
        config: &LlamaConfig,
        shape: &AdapterShape,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let mut stream = 0;
        let made = Self::build::<std::convert::Infallible>(config, shape, |param, size| {
            stream += 1;
            if param.factor == Factor::B {
                return Ok(Tensor::zeros(size, (device, dtype)));
            }
            let values = uniform(size, seed, stream);
            let data = TensorData::new(values, size).convert_dtype(dtype);
            Ok(Tensor::from_data(data, (device, dtype)))
        });
        let Ok(adapters) = made;
        adapters
    }

    /// Zeros of the same shapes: gradients and moments.
    pub fn zeros_like(&self, dtype: DType) -> Self {
        self.map(|x| Tensor::zeros(x.dims(), (&x.device(), dtype)))
    }

    /// What the forward pass reads of these master weights: copies in `precision`.
    pub fn compute_copy(&self, precision: Precision) -> Self {
        match precision {
            Precision::F32 => self.clone(),
            Precision::Bf16 => self.map(|x| x.clone().cast(DType::BF16)),
        }
    }

    /// Adds every adapter to the matrix it belongs to, f32: W + s B A.
    pub fn merge_into(&self, weights: &mut Weights) {
        for (layer, adapters) in weights.layers.iter_mut().zip(&self.layers) {
            for (target, pair) in &adapters.pairs {
                let weight = match target {
                    Target::QProj => &mut layer.q_proj,
                    Target::KProj => &mut layer.k_proj,
                    Target::VProj => &mut layer.v_proj,
                    Target::OProj => &mut layer.o_proj,
                    Target::GateProj => &mut layer.gate_proj,
                    Target::UpProj => &mut layer.up_proj,
                    Target::DownProj => &mut layer.down_proj,
                };
                let update = pair.b.clone().matmul(pair.a.clone()) * pair.scale;
                weight.inplace(|weight| weight + update);
            }
        }
    }

    fn map(&self, f: impl Fn(&Tensor<2>) -> Tensor<2>) -> Self {
        let pair = |(target, pair): &(Target, LoraPair)| {
            (*target, LoraPair { a: f(&pair.a), b: f(&pair.b), scale: pair.scale })
        };
        let layer =
            |layer: &LayerAdapters| LayerAdapters { pairs: layer.pairs.iter().map(pair).collect() };
        Self { layers: self.layers.iter().map(layer).collect() }
    }

    /// All tensors, layer by layer.
    pub fn iter(&self) -> impl Iterator<Item = (AdapterParam, &Tensor<2>)> {
        self.layers.iter().enumerate().flat_map(|(layer, adapters)| {
            adapters.pairs.iter().flat_map(move |(target, pair)| {
                let param = move |factor| AdapterParam { layer, target: *target, factor };
                [(param(Factor::A), &pair.a), (param(Factor::B), &pair.b)]
            })
        })
    }

    /// All adapters: number of the layer, matrix, factors.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, Target, &LoraPair)> {
        self.layers.iter().enumerate().flat_map(|(layer, adapters)| {
            adapters.pairs.iter().map(move |(target, pair)| (layer, *target, pair))
        })
    }

    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor<2>> {
        let pairs = self.layers.iter_mut().flat_map(|layer| &mut layer.pairs);
        pairs.flat_map(|(_, pair)| [&mut pair.a, &mut pair.b])
    }

    /// Sets every element, f32, to zero, in place.
    pub fn fill_zero(&mut self) {
        self.tensors_mut().for_each(ops::fill_zero);
    }

    /// Σ x² of every tensor, layer by layer.
    pub fn sums_of_squares(&self) -> Vec<f64> {
        ops::totals(self.iter().map(|(_, x)| ops::sum_of_squares(x)).collect())
    }
}

fn uniform(size: [usize; 2], seed: u64, stream: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Apart from the streams of a model's own parameters.
    rng.set_stream(stream | 1 << 32);
    let [rank, inputs] = size;
    let bound = 1.0 / (inputs as f32).sqrt();
    match Uniform::new(-bound, bound) {
        Ok(uniform) => (0..rank * inputs).map(|_| uniform.sample(&mut rng)).collect(),
        Err(_) => vec![0.0; rank * inputs],
    }
}

/// What AdamW updates and remembers of adapters, all f32.
#[derive(Debug)]
pub struct AdapterState {
    /// The adapters in full precision. Where the model computes in f32, its own are handles of these.
    pub master: Adapters,
    /// Running mean of the gradient.
    pub m: Adapters,
    /// Running mean of its square.
    pub v: Adapters,
}

impl AdapterState {
    /// The state before the first step.
    pub fn start(master: Adapters) -> Self {
        let (m, v) = (master.zeros_like(DType::F32), master.zeros_like(DType::F32));
        Self { master, m, v }
    }

    /// One AdamW step; `weights`, which the forward pass reads, follow in their own precision.
    pub fn step(&mut self, weights: &mut Adapters, grads: &Adapters, hyper: &AdamWStep) {
        let moments = self.m.tensors_mut().zip(self.v.tensors_mut());
        let masters = self.master.tensors_mut().zip(weights.tensors_mut());
        let grads = grads.iter().map(|(_, grad)| grad);
        for (((master, weight), (m, v)), grad) in masters.zip(moments).zip(grads) {
            if weight.dtype() == DType::BF16 {
                ops::adamw_step(master, m, v, grad, Some(weight), hyper);
            } else {
                // The master weight is updated in place and may have no other handle.
                drop(weight.extract());
                ops::adamw_step(master, m, v, grad, None, hyper);
                *weight = master.clone();
            }
        }
    }
}
