//! The rate of a large matrix product: the ceiling of everything else on the same machine.

use altiplano_model::Precision;
use altiplano_model::ops::linear_forward;
use burn::tensor::{DType, Device, Distribution, Tensor};

use super::timed_on;

/// Rows, inputs and outputs of the product on a CPU: each operand is far larger than a
/// second-level cache, and the contraction is long.
const SHAPE: [usize; 3] = [4096, 2048, 4096];

/// The same on a GPU, which takes milliseconds for it.
const GPU_SHAPE: [usize; 3] = [8192, 8192, 8192];

/// Products timed, after one that is not.
const REPEATS: usize = 5;

/// Floating-point operations per second of y = x Wᵀ, (4096, 2048) by (4096, 2048) on a CPU, 8192
/// squared on a GPU, in `precision` on all threads: two per multiplication and addition, the best
/// of five.
pub fn matmul_flops_per_second(precision: Precision, device: &Device) -> f64 {
    let dtype = match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let [rows, inputs, outputs] = if *device == Device::flex() { SHAPE } else { GPU_SHAPE };
    let normal = Distribution::Normal(0.0, 1.0);
    let x = Tensor::<3>::random([1, rows, inputs], normal, (device, DType::F32)).cast(dtype);
    let weight = Tensor::<2>::random([outputs, inputs], normal, (device, DType::F32)).cast(dtype);
    timed_on(device, || linear_forward(&x, &weight));
    let best = (0..REPEATS)
        .map(|_| timed_on(device, || linear_forward(&x, &weight)).0)
        .fold(f64::INFINITY, f64::min);
    2.0 * (rows * inputs * outputs) as f64 / best
}
