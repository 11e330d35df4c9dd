//! The rate of matrix products: the ceiling of everything else on the same machine.

use altiplano_model::ops::linear_forward;
use altiplano_model::{Precision, device};
use burn::tensor::{DType, Device, Distribution, Tensor};

use crate::timing::timed_on;

/// Rows, inputs and outputs of the large product on a CPU: each operand is far larger than a
/// second-level cache, and the contraction is long.
const LARGE: [usize; 3] = [4096, 2048, 4096];

/// The same on a GPU, which takes milliseconds for it.
const LARGE_ON_GPU: [usize; 3] = [8192, 8192, 8192];

/// Times a product is timed, after one that is not.
const REPEATS: usize = 5;

/// Rows and outputs of the short products, with [`SHORT_INPUTS`] inputs, tried in turn.
const SHORT_ROWS: [usize; 4] = [256, 512, 1024, 2048];

/// Inputs of the short products.
const SHORT_INPUTS: usize = 1024;

/// Seconds after which a product is long enough to show the rate of the machine.
const LONG_ENOUGH: f64 = 0.008;

/// Floating-point operations per second of y = x Wᵀ, (4096, 2048) by (4096, 2048) on a CPU, 8192
/// squared on a GPU, in `precision` on all threads: two per multiplication and addition, the best
/// of five.
pub fn large_product_flops_per_second(precision: Precision, device: &Device) -> f64 {
    let shape = if device::is_cpu(device) { LARGE } else { LARGE_ON_GPU };
    best_rate(shape, precision, device).0
}

/// As [`large_product_flops_per_second`], of products that take tenths of a second together and
/// little memory: they grow until one takes long enough. The best of all.
pub fn short_product_flops_per_second(precision: Precision, device: &Device) -> f64 {
    let mut best = 0.0_f64;
    for rows in SHORT_ROWS {
        let (rate, seconds) = best_rate([rows, SHORT_INPUTS, rows], precision, device);
        best = best.max(rate);
        if seconds > LONG_ENOUGH {
            break;
        }
    }
    best
}

/// The best rate of several products of one shape, and the seconds of that product.
fn best_rate(shape: [usize; 3], precision: Precision, device: &Device) -> (f64, f64) {
    let [rows, inputs, outputs] = shape;
    let dtype = match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let normal = Distribution::Normal(0.0, 1.0);
    let x = Tensor::<3>::random([1, rows, inputs], normal, (device, DType::F32)).cast(dtype);
    let weight = Tensor::<2>::random([outputs, inputs], normal, (device, DType::F32)).cast(dtype);
    timed_on(device, || linear_forward(&x, &weight));
    let seconds = (0..REPEATS)
        .map(|_| timed_on(device, || linear_forward(&x, &weight)).0)
        .fold(f64::INFINITY, f64::min);
    (2.0 * (rows * inputs * outputs) as f64 / seconds, seconds)
}
