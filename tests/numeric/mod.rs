//! Numbers: every op against its reference, finite differences, autodiff and PyTorch.

mod attention;
mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
mod finite_differences;
mod golden;
mod kernels;
mod lora;
mod model;
mod op_checks;
mod packing;
mod parallel;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision, device};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Instantiates test bodies for every device altiplano knows. A body takes the device.
macro_rules! device_test {
    ($($name:ident),+ $(,)?) => {
        crate::numeric::device_test!(@module flex "cpu" $($name)+);
        crate::numeric::device_test!(@module tch "tch" $($name)+);
        crate::numeric::device_test!(@module tch_cuda "tch:cuda" $($name)+);
        crate::numeric::device_test!(@module wgpu "wgpu" $($name)+);
        crate::numeric::device_test!(@module cuda "cuda" $($name)+);
    };
    (@module $module:ident $device:literal $($name:ident)+) => {
        mod $module {
            $(#[test]
            fn $name() {
                crate::numeric::on_device($device, super::$name);
            })+
        }
    };
}
pub(crate) use device_test;

/// Runs a test body on the device called `name`. Where it is absent, says so once, past the
/// capture of the test harness, and passes; or fails, if `ALTIPLANO_REQUIRED_DEVICES` (names with
/// commas between them) has it.
pub fn on_device(name: &str, body: impl FnOnce(&Device)) {
    static SKIPPED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let error = match device::select(name) {
        Ok(device) => return body(&device),
        Err(error) => error,
    };
    let required = std::env::var("ALTIPLANO_REQUIRED_DEVICES").unwrap_or_default();
    assert!(!required.split(',').any(|required| required == name), "{error}");
    if SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string()) {
        let line = format!("skipped on {name}, here and in all other tests: {error}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
}

/// Those of `formats`, number formats with the error each allows, that `device` computes in.
pub fn supported<const N: usize>(
    formats: [(DType, f64); N],
    device: &Device,
) -> impl Iterator<Item = (DType, f64)> {
    formats.into_iter().filter(|(dtype, _)| device.supports_dtype(*dtype))
}

/// The precisions `device` can train in.
pub fn precisions(device: &Device) -> impl Iterator<Item = Precision> {
    let all = [(Precision::F32, DType::F32), (Precision::Bf16, DType::BF16)];
    let supported = all.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype));
    supported.map(|(precision, _)| precision)
}

/// The same numbers in f64 on the CPU, where the references run for every device.
pub fn exact<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(x.to_data().convert_dtype(DType::F64), (&Device::flex(), DType::F64))
}

/// The same integers on the CPU.
pub fn exact_ids(ids: &Tensor<2, Int>) -> Tensor<2, Int> {
    Tensor::from_data(ids.to_data().convert_dtype(DType::I32), (&Device::flex(), DType::I32))
}

/// Numbers drawn uniformly from −1 to 1.
pub fn uniform(count: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A tensor of [`uniform`] numbers.
pub fn random<const D: usize>(
    shape: [usize; D],
    seed: u64,
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    let values = uniform(shape.iter().product(), seed);
    Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (device, dtype))
}

/// Integers from `0..below`.
pub fn random_ids(shape: [usize; 2], below: i32, seed: u64, device: &Device) -> Tensor<2, Int> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let ids: Vec<i32> = (0..shape[0] * shape[1]).map(|_| rng.random_range(0..below)).collect();
    Tensor::from_data(TensorData::new(ids, shape), (device, DType::I32))
}

/// The values on the host, in f64.
pub fn values<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}

/// ‖x − y‖ / ‖y‖, or ‖x‖ when y is zero.
pub fn relative_error(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut x.iter().zip(y).map(|(x, y)| x - y));
    let reference = norm(&mut y.iter().copied());
    if reference == 0.0 { difference } else { difference / reference }
}

/// Asserts that two tensors agree to `tolerance` of the norm of the second.
#[track_caller]
pub fn assert_close<const D: usize>(what: &str, x: &Tensor<D>, y: &Tensor<D>, tolerance: f64) {
    assert_eq!(x.dims(), y.dims(), "{what}: shapes");
    let error = relative_error(&values(x), &values(y));
    assert!(error <= tolerance, "{what}: relative error {error:e}, tolerated {tolerance:e}");
}

/// A small model with grouped heads and odd sizes.
pub fn tiny_config() -> LlamaConfig {
    LlamaConfig {
        dim: 24,
        n_layers: 2,
        n_heads: 6,
        n_kv_heads: Some(2),
        hidden_dim: Some(40),
        multiple_of: 256,
        vocab_size: 53,
        max_seq_len: 32,
        rope_theta: 10_000.0,
        head_dim: None,
        tie_word_embeddings: false,
        rope_scaling: None,
        norm_eps: 1e-6,
        init_std: 0.15,
    }
}

/// All activation-checkpointing policies.
pub const POLICIES: [ActivationCheckpointing; 3] = [
    ActivationCheckpointing::None,
    ActivationCheckpointing::Selective,
    ActivationCheckpointing::Full,
];
