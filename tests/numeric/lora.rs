//! Low-rank adapters: the op against its reference, autodiff and finite differences, and what they do in a
//! model that stays.

use altiplano_model::adapters::{AdapterShape, Adapters, Target};
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::ops::{LoraPair, lora_backward, lora_forward, reference};
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{
    assert_close, device_test, random, random_ids, relative_error, supported, tiny_config, values,
};

const F64: DType = DType::F64;

device_test!(the_op_is_its_reference);

fn pair(rank: usize, inputs: usize, outputs: usize, dtype: DType, device: &Device) -> LoraPair {
    LoraPair {
        a: random([rank, inputs], 11, dtype, device),
        b: random([outputs, rank], 12, dtype, device),
        scale: 2.0,
    }
}

fn the_op_is_its_reference(device: &Device) {
    for (dtype, tolerance) in supported([(DType::F32, 1e-5), (DType::BF16, 3e-2)], device) {
        for (time, inputs, outputs, rank) in [(5, 24, 40, 1), (33, 48, 16, 8), (7, 16, 16, 3)] {
            let weights = pair(rank, inputs, outputs, dtype, device);
            let x = random([2, time, inputs], 1, dtype, device);
            let y = random([2, time, outputs], 2, dtype, device);
            let dy = random([2, time, outputs], 3, dtype, device);
            let dx = random([2, time, inputs], 4, dtype, device);
            let expected = reference::lora::forward(y.clone(), &x, &weights);
            assert_close("y", &lora_forward(y, &x, &weights), &expected, tolerance);
            let zeros = || LoraPair {
                a: Tensor::zeros([rank, inputs], (device, DType::F32)),
                b: Tensor::zeros([outputs, rank], (device, DType::F32)),
                scale: 0.0,
            };
            let (mut ours, mut theirs) = (zeros(), zeros());
            let dx_ours = lora_backward(dx.clone(), &dy, &x, &weights, &mut ours);
            let dx_theirs = reference::lora::backward(dx, &dy, &x, &weights, &mut theirs);
            assert_close("dx", &dx_ours, &dx_theirs, tolerance);
            assert_close("da", &ours.a, &theirs.a, tolerance);
            assert_close("db", &ours.b, &theirs.b, tolerance);
        }
    }
}

/// The loss is a polynomial in each of x, A and B, so central differences are exact up to rounding.
#[test]
fn gradients_are_finite_differences() {
    let device = Device::flex();
    let weights = pair(3, 7, 9, F64, &device);
    let x = random([2, 5, 7], 1, F64, &device);
    let dy = random([2, 5, 9], 2, F64, &device);
    let zero = || Tensor::zeros([2, 5, 9], (&device, F64));
    let loss = |x: &Tensor<3>, weights: &LoraPair| -> f64 {
        values(&(lora_forward(zero(), x, weights) * dy.clone())).iter().sum()
    };
    let mut grads = LoraPair { a: weights.a.zeros_like(), b: weights.b.zeros_like(), scale: 0.0 };
    let dx = lora_backward(x.zeros_like(), &dy, &x, &weights, &mut grads);
    let h = 1e-3;
    let check = |name: &str, gradient: Vec<f64>, along: &dyn Fn(usize, f64) -> f64| {
        let each = |i: usize| (along(i, h) - along(i, -h)) / (2.0 * h);
        let numeric: Vec<f64> = (0..gradient.len()).map(each).collect();
        let error = relative_error(&gradient, &numeric);
        assert!(error < 1e-9, "{name}: {error:e}");
    };
    check("dx", values(&dx), &|i, h| loss(&moved(&x, i, h), &weights));
    check("da", values(&grads.a), &|i, h| {
        loss(&x, &LoraPair { a: moved(&weights.a, i, h), ..weights.clone() })
    });
    check("db", values(&grads.b), &|i, h| {
        loss(&x, &LoraPair { b: moved(&weights.b, i, h), ..weights.clone() })
    });
}

/// `x` with element `i` moved by `h`.
fn moved<const D: usize>(x: &Tensor<D>, i: usize, h: f64) -> Tensor<D> {
    let mut numbers = values(x);
    numbers[i] += h;
    Tensor::from_data(TensorData::new(numbers, x.dims()), (&x.device(), x.dtype()))
}

/// A model with adapters at every matrix, none of them zero.
fn adapted(config: &LlamaConfig, dtype: DType) -> (Llama, AdapterShape) {
    let device = Device::flex();
    let weights = Weights::init(config, 5, dtype, &device);
    let shape = AdapterShape { rank: 2, alpha: 3.0, targets: Target::ALL.to_vec() };
    let mut seed = 100;
    let made = Adapters::build::<std::convert::Infallible>(config, &shape, |_, size| {
        seed += 1;
        Ok(random(size, seed, dtype, &device) * 0.1)
    });
    let mut model =
        Llama::new(config.clone(), weights, ActivationCheckpointing::Selective).unwrap();
    model.adapters = made.ok();
    (model, shape)
}

fn tokens(config: &LlamaConfig, device: &Device) -> TokenBatch {
    let (batch, time) = (2, 11);
    let mut targets: Vec<i32> = random_ids([batch, time], config.vocab_size as i32, 2, device)
        .to_data()
        .iter::<i32>()
        .collect();
    (targets[3], targets[17]) = (-100, -100);
    let targets: Tensor<2, Int> =
        Tensor::from_data(TensorData::new(targets, [batch, time]), (device, DType::I32));
    let inputs = random_ids([batch, time], config.vocab_size as i32, 1, device);
    TokenBatch { inputs, targets, first_visible: None }
}

#[test]
fn gradients_of_a_whole_model_are_finite_differences() {
    let (config, device) = (tiny_config(), Device::flex());
    let (mut model, _) = adapted(&config, F64);
    let tokens = tokens(&config, &device);
    let adapters = model.adapters.clone().unwrap();
    let mut grads = adapters.zeros_like(F64);
    let losses = model.loss_and_adapter_gradients(&tokens, 0.05, &mut grads).unwrap();
    assert_close("losses", &losses, &model.losses(&tokens).unwrap(), 1e-12);
    for (n, (param, gradient)) in grads.iter().enumerate() {
        let gradient = values(gradient);
        assert!(gradient.iter().any(|g| *g != 0.0), "{param} receives no gradient");
        let size = gradient.len();
        for i in [0, size / 2, size - 1] {
            let mut along = |h: f64| {
                let mut at = 0;
                let tensors: Vec<Tensor<2>> = adapters.iter().map(|(_, x)| x.clone()).collect();
                let shape = AdapterShape { rank: 2, alpha: 3.0, targets: Target::ALL.to_vec() };
                let made = Adapters::build::<std::convert::Infallible>(&config, &shape, |_, _| {
                    let x = &tensors[at];
                    at += 1;
                    Ok(if at - 1 == n { moved(x, i, h) } else { x.clone() })
                });
                model.adapters = made.ok();
                values(&model.losses(&tokens).unwrap()).iter().sum::<f64>() * 0.05
            };
            let numeric = (along(1e-5) - along(-1e-5)) / 2e-5;
            let error = (gradient[i] - numeric).abs();
            assert!(error < 1e-8 + 1e-6 * numeric.abs(), "{param} {i}: {} {numeric}", gradient[i]);
        }
    }
}

/// The frozen head, in chunks, gives what the head that trains gives.
#[test]
fn the_gradient_of_activations_is_that_of_a_model_that_trains() {
    let (config, device) = (tiny_config(), Device::flex());
    let (model, _) = adapted(&config, F64);
    let tokens = tokens(&config, &device);
    let plain =
        Llama::new(config.clone(), model.weights.clone(), ActivationCheckpointing::None).unwrap();
    let mut full = Grads::zeros(&config, F64, &device);
    plain.loss_and_gradients(&tokens, 0.05, &mut full).unwrap();
    // With zero B the gradient of B is that of the weight, times A: dB = s dW Aᵀ.
    let mut model =
        Llama::new(config.clone(), model.weights.clone(), ActivationCheckpointing::Full).unwrap();
    let shape = AdapterShape { rank: 2, alpha: 3.0, targets: Target::ALL.to_vec() };
    let adapters = Adapters::init(&config, &shape, 1, F64, &device);
    let mut grads = adapters.zeros_like(F64);
    model.adapters = Some(adapters);
    model.loss_and_adapter_gradients(&tokens, 0.05, &mut grads).unwrap();
    let adapters = model.adapters.as_ref().unwrap();
    for (layer, (dlayer, full)) in grads.layers.iter().zip(&full.layers).enumerate() {
        for (target, dweight) in [
            (Target::QProj, &full.q_proj),
            (Target::OProj, &full.o_proj),
            (Target::DownProj, &full.down_proj),
        ] {
            let a = &adapters.layers[layer].get(target).unwrap().a;
            let expected = dweight.clone().matmul(a.clone().transpose()) * shape.scale();
            assert_close("db", &dlayer.get(target).unwrap().b, &expected, 1e-10);
        }
    }
}

/// New adapters change nothing, bit for bit; merged adapters compute what they do beside their weights.
#[test]
fn adapters_start_at_nothing_and_can_be_merged() {
    let (config, device) = (tiny_config(), Device::flex());
    let tokens = tokens(&config, &device);
    for precision in [Precision::F32, Precision::Bf16] {
        let weights = Weights::init(&config, 5, DType::F32, &device).compute_copy(precision);
        let mut model = Llama::new(config.clone(), weights, ActivationCheckpointing::None).unwrap();
        let before = values(&model.losses(&tokens).unwrap());
        let shape = AdapterShape { rank: 4, alpha: 8.0, targets: Target::ALL.to_vec() };
        let adapters = Adapters::init(&config, &shape, 1, DType::F32, &device);
        model.adapters = Some(adapters.compute_copy(precision));
        assert_eq!(values(&model.losses(&tokens).unwrap()), before);
    }
    let (model, _) = adapted(&config, DType::F32);
    let mut merged = model.weights.clone();
    model.adapters.as_ref().unwrap().merge_into(&mut merged);
    let alone = Llama::new(config, merged, ActivationCheckpointing::None).unwrap();
    assert_close("losses", &model.losses(&tokens).unwrap(), &alone.losses(&tokens).unwrap(), 1e-5);
}
