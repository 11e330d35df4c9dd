//! The rate of a large matrix product: the ceiling of everything else on the same machine.

use altiplano_model::Precision;
use altiplano_model::ops::linear_forward;
use burn::tensor::{DType, Device, Distribution, Tensor};

use super::timed;

/// Rows, inputs and outputs of the product: each operand is far larger than a second-level cache,
/// and the contraction is long.
const SHAPE: [usize; 3] = [4096, 2048, 4096];

/// Products timed, after one that is not.
const REPEATS: usize = 5;

/// Floating-point operations per second of y = x Wᵀ, (4096, 2048) by (4096, 2048), in `precision`
/// on all threads: two per multiplication and addition, the best of five.
pub fn matmul_flops_per_second(precision: Precision, device: &Device) -> f64 {
    let dtype = match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let [rows, inputs, outputs] = SHAPE;
    let normal = Distribution::Normal(0.0, 1.0);
    let x = Tensor::<3>::random([1, rows, inputs], normal, (device, DType::F32)).cast(dtype);
    let weight = Tensor::<2>::random([outputs, inputs], normal, (device, DType::F32)).cast(dtype);
    linear_forward(&x, &weight);
    let best =
        (0..REPEATS).map(|_| timed(|| linear_forward(&x, &weight)).0).fold(f64::INFINITY, f64::min);
    2.0 * (rows * inputs * outputs) as f64 / best
}
