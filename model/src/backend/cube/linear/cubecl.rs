//! Products by cubek's kernels, which are CubeCL's, and the sum after a product.

use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{Operand, Product};
use crate::backend::cube::nvidia::before_other_work;
use crate::backend::cube::tensor::{elements, threads, units, vector};

/// The product in `out` (m, n). cubek reads transposed operands through their strides.
pub(super) fn product(call: &Product<'_>, out: CubeTensor) -> CubeTensor {
    let view = |operand: &Operand| match operand.transposed {
        true => permute(operand.tensor.clone(), &[1, 0]),
        false => operand.tensor.clone(),
    };
    let dtype = out.dtype;
    before_other_work();
    matmul(view(call.left), view(call.right), Some(out), MatmulStrategy::Cube, dtype)
        .unwrap_or_else(|error| panic!("matrix product: {error:?}"))
}

/// `sum` += `term`, both f32.
pub(super) fn accumulate(sum: &CubeTensor, term: CubeTensor) {
    let size = vector(elements(sum), sum.dtype);
    // SAFETY: both buffers hold as many elements, and the kernel stops at the end of `sum`.
    unsafe {
        accumulate_kernel::launch_unchecked(
            &term.client.clone(),
            units(elements(sum) / size),
            threads(),
            size,
            sum.clone().into_buffer_arg(),
            term.into_buffer_arg(),
        );
    }
}

/// sum += term.
#[cube(launch_unchecked)]
fn accumulate_kernel<N: Size>(sum: &mut [Vector<f32, N>], term: &[Vector<f32, N>]) {
    let i = ABSOLUTE_POS;
    if i < sum.len() {
        sum[i] += term[i];
    }
}
