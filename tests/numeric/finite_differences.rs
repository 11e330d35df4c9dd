//! Analytic gradients against central finite differences in f64: a whole layer and a whole model,
//! every input and every parameter.

use altiplano_model::activation_checkpoint::{restore, save};
use altiplano_model::config::RopeScaling;
use altiplano_model::layer::{LayerContext, layer_backward, layer_forward};
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::ops::RopeTable;
use altiplano_model::param_tree::Leaf;
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{random, random_ids, relative_error, tiny_config, uniform, values};

const F64: DType = DType::F64;

/// (f(x + h) − f(x − h)) / 2h along `direction`.
fn directional<const D: usize>(
    x: &Tensor<D>,
    direction: &Tensor<D>,
    f: impl Fn(Tensor<D>) -> f64,
) -> f64 {
    let step = direction.clone() * 1e-5;
    (f(x.clone() + step.clone()) - f(x.clone() - step)) / 2e-5
}

fn dot<const D: usize>(x: &Tensor<D>, y: &Tensor<D>) -> f64 {
    values(x).iter().zip(values(y)).map(|(x, y)| x * y).sum()
}

/// Parameters that are nowhere zero or one, so that no gradient hides.
fn weights(config: &LlamaConfig) -> Weights {
    let mut weights = Weights::init(config, 5, F64, &Device::flex());
    for (param, weight) in weights.iter_mut() {
        if let Leaf::Vector(gain) = weight {
            let noise = random(gain.dims(), 100 + param.index() as u64, F64, &Device::flex());
            gain.inplace(|gain| gain + noise * 0.3);
        }
    }
    weights
}

/// Heads that are wider than dim / n_heads, one matrix as embedding and output head, and scaled
/// rotary frequencies.
fn tied_config() -> LlamaConfig {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    LlamaConfig {
        head_dim: Some(6),
        tie_word_embeddings: true,
        rope_scaling: Some(scaling),
        ..tiny_config()
    }
}

#[test]
fn layer() {
    check_layer(&tiny_config());
    check_layer(&tied_config());
}

fn check_layer(config: &LlamaConfig) {
    let device = Device::flex();
    let weights = weights(config).layers.remove(1);
    for time in [1, 7, 19] {
        let rope = RopeTable::new(time, &config.rope_frequencies(), F64, &device);
        let context = LayerContext::of_one_rank(config, &rope);
        let x = random([2, time, config.dim], 1, F64, &device);
        let dy = random([2, time, config.dim], 2, F64, &device);
        let loss = |x: Tensor<3>| dot(&layer_forward(&weights, x, &context).unwrap().0, &dy);

        for policy in super::POLICIES {
            let mut grads = Grads::zeros(config, F64, &device).layers.remove(0);
            let saved = layer_forward(&weights, x.clone(), &context).unwrap().1;
            let saved = restore(save(policy, saved), &weights, &context).unwrap();
            let dx = layer_backward(dy.clone(), &weights, saved, &mut grads, &context).unwrap();
            for seed in 10..13 {
                let direction = random(x.dims(), seed, F64, &device);
                let (ours, numeric) = (dot(&dx, &direction), directional(&x, &direction, loss));
                assert!((ours - numeric).abs() < 1e-6 * (1.0 + numeric.abs()), "{ours} {numeric}");
            }
        }
    }
}

#[test]
fn model() {
    check_model(&tiny_config());
}

#[test]
fn tied_model() {
    check_model(&tied_config());
}

/// Every parameter of a whole model, element by element for the small ones and along random
/// directions for the others, with ignored targets and packed documents.
fn check_model(config: &LlamaConfig) {
    let device = Device::flex();
    let (batch, time) = (2, 11);
    let mut targets: Vec<i32> =
        random_ids([batch, time], 53, 2, &device).to_data().iter::<i32>().collect();
    targets[3] = -100;
    targets[17] = -100;
    let first: Vec<i32> = (0..batch * time).map(|n| if n % time < 6 { 0 } else { 6 }).collect();
    let matrix = |values: Vec<i32>| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, [batch, time]), (&device, DType::I32))
    };
    let tokens = TokenBatch {
        inputs: random_ids([batch, time], 53, 1, &device),
        targets: matrix(targets),
        first_visible: Some(matrix(first)),
    };
    let scale = 1.0 / 20.0;
    let model = |weights: Weights| {
        Llama::new(config.clone(), weights, ActivationCheckpointing::Selective).unwrap()
    };
    let mut grads = Grads::zeros(config, F64, &device);
    let weights = weights(config);
    model(weights.clone()).loss_and_gradients(&tokens, scale, &mut grads).unwrap();

    for (param, grad) in grads.iter() {
        let gradient: Vec<f64> = grad.to_data().iter().collect();
        assert!(gradient.iter().any(|g| *g != 0.0), "{param} receives no gradient");
        let loss_along = |direction: &[f64], h: f64| {
            let mut moved = weights.clone();
            match moved.iter_mut().nth(param.index()) {
                Some((_, Leaf::Vector(x))) => shift(x, direction, h),
                Some((_, Leaf::Matrix(x))) => shift(x, direction, h),
                None => unreachable!("{param} is one of the parameters"),
            }
            values(&model(moved).losses(&tokens).unwrap()).iter().sum::<f64>() * scale
        };
        let numeric =
            |direction: &[f64]| (loss_along(direction, 1e-5) - loss_along(direction, -1e-5)) / 2e-5;
        if gradient.len() <= 24 {
            let each: Vec<f64> = (0..gradient.len())
                .map(|i| {
                    let mut direction = vec![0.0; gradient.len()];
                    direction[i] = 1.0;
                    numeric(&direction)
                })
                .collect();
            let error = relative_error(&gradient, &each);
            assert!(error < 1e-6, "{param}: relative error {error:e}");
        } else {
            for seed in 0..2 {
                let direction = uniform(gradient.len(), 50 + seed);
                let ours: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let numeric = numeric(&direction);
                let error = (ours - numeric).abs();
                assert!(error < 1e-7 + 1e-6 * numeric.abs(), "{param}: {ours} {numeric}");
            }
        }
    }
}

fn shift<const D: usize>(x: &mut Tensor<D>, direction: &[f64], h: f64) {
    let step = TensorData::new(direction.iter().map(|d| d * h).collect::<Vec<_>>(), x.dims());
    x.inplace(|x| {
        let step = Tensor::from_data(step, (&x.device(), F64));
        x + step
    });
}
