//! Embedding: rows picked by id, and their gradients in the order of the positions.

mod cubecl;
mod cuda;
#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::elementwise::zero;
use super::engine::{Call, Engine};
use super::tensor::{accumulator, contiguous, dims, elements, new, rows_and_width};

/// Chains the positions of equal `ids`: `next` names the next position of each, and `follows`, which
/// starts as zeros, marks every position that some `next` names.
struct Chain {
    ids: CubeTensor,
    next: CubeTensor,
    follows: CubeTensor,
}

impl Call for Chain {
    fn tensor(&self) -> &CubeTensor {
        &self.ids
    }

    fn suits_cuda(&self) -> bool {
        true
    }
}

pub(super) fn forward(weight: CubeTensor, ids: CubeTensor) -> CubeTensor {
    let (weight, ids) = (contiguous(weight), contiguous(ids));
    let (_, channels) = rows_and_width(&weight);
    let mut shape = dims(&ids);
    shape.push(channels);
    let y = new(&weight, &shape, weight.dtype);
    cubecl::forward(weight, ids, y.clone());
    y
}

pub(super) fn backward(dweight: CubeTensor, dy: CubeTensor, ids: CubeTensor) -> CubeTensor {
    let dweight = accumulator(dweight, "embedding_backward");
    let (dy, ids) = (contiguous(dy), contiguous(ids));
    let count = elements(&ids);
    let next = new(&ids, &[count], DType::U32);
    // Zeros of f32 are zeros of u32.
    let follows = new(&ids, &[count], DType::F32);
    zero(&follows);
    let call = Chain { ids, next, follows };
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => cuda::chain(&gpu, &call),
        Engine::CubeCl => cubecl::chain(&call),
    }
    cubecl::backward(dy, call, dweight.clone());
    dweight
}
