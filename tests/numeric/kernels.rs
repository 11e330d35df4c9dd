//! The fast implementation of every op against its reference in f64, in f32 and bf16.

use burn::tensor::{DType, Device};

use super::op_checks::{self, Check, Place, Tolerance};
use super::supported;

/// Formats the kernels run in, with the relative error their rounding allows: f32 sums, and bf16's
/// 8 bits of every output.
const FORMATS: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::BF16, 6e-3)];

/// What attention is allowed in bf16: its weights are rounded before they are used.
const BF16_ATTENTION: f64 = 1e-2;

/// Makes a test of every check of the table of ops.
macro_rules! every_op {
    ($($check:ident: $($op:ident)+;)+) => {
        $(fn $check(device: &Device) {
            let (name, ops) = (stringify!($check), &[$(stringify!($op)),+]);
            matches_the_reference(&Check { name, ops, body: op_checks::$check }, device);
        })+

        super::device_test!($($check),+);
    };
}
altiplano_model::op_table!(every_op);

fn matches_the_reference(check: &Check, device: &Device) {
    for (dtype, active) in supported(FORMATS, device) {
        let place = |device, exact| Place { device, dtype, exact, thorough: false };
        let tolerance = match (check.name, dtype) {
            ("attention", DType::BF16) => Tolerance { active: BF16_ATTENTION, f32: 1e-5 },
            // Element by element, with nothing summed but the norms.
            ("adamw", _) => Tolerance { active, f32: 1e-6 },
            _ => Tolerance { active, f32: 1e-5 },
        };
        check.agree(&place(&Device::flex(), true), &place(device, false), &tolerance);
    }
}
