//! The fused output head and cross entropy, in chunks of tokens.

mod cubecl;
mod cuda;
#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::engine::{Call, Engine};
use super::linear::{Operand, add_product, product, product_into};
use super::tensor::{
    accumulator, contiguous, dims, elements, new, new_like, row_range, rows_and_width,
};

/// Tokens whose logits exist at once in the fused head: 2048 rows of a 32000-word vocabulary are
/// 262 MB of f32, enough rows to keep a product at its rate.
const HEAD_CHUNK: usize = 2048;

/// The pieces of `rows` the fused head works on: first row and count. A first row is a multiple of
/// [`HEAD_CHUNK`], so the rows from there on start where memory of their own might.
fn chunks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(HEAD_CHUNK).map(move |first| (first, HEAD_CHUNK.min(rows - first)))
}

/// The cross entropy of a chunk: `losses` from row `first` on of the rows of `logits`, f32.
struct CrossEntropy {
    logits: CubeTensor,
    targets: CubeTensor,
    losses: CubeTensor,
    first: usize,
    /// The gradient of `scale` · Σ losses, where it is asked for.
    dlogits: Option<CubeTensor>,
    scale: f32,
}

impl Call for CrossEntropy {
    fn tensor(&self) -> &CubeTensor {
        &self.logits
    }

    /// Gradients in bf16, logits in whole pieces of eight.
    fn suits_cuda(&self) -> bool {
        let (_, vocabulary) = rows_and_width(&self.logits);
        let bf16 = self.dlogits.as_ref().is_none_or(|dlogits| dlogits.dtype == DType::BF16);
        bf16 && vocabulary.is_multiple_of(8)
    }
}

fn cross_entropy(call: CrossEntropy) {
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => cuda::cross_entropy(&gpu, &call),
        Engine::CubeCl => cubecl::cross_entropy(call),
    }
}

/// Losses (B, T) of `x` (B, T, C), `weight` (V, C), `targets` (B, T).
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, targets: CubeTensor) -> CubeTensor {
    let (x, weight, targets) = (contiguous(x), contiguous(weight), contiguous(targets));
    let (vocabulary, _) = rows_and_width(&weight);
    let weight = Operand::columns(&weight);
    let losses = new(&x, &dims(&targets), DType::F32);
    for (first, rows) in chunks(elements(&targets)) {
        let chunk = contiguous(row_range(&x, first, rows));
        let logits = product(&Operand::rows(&chunk), &weight, &[rows, vocabulary], DType::F32);
        let (targets, losses) = (targets.clone(), losses.clone());
        cross_entropy(CrossEntropy { logits, targets, losses, first, dlogits: None, scale: 1.0 });
    }
    losses
}

/// (losses, dx, dweight) of `scale` · Σ losses.
pub(super) fn backward(
    x: CubeTensor,
    weight: CubeTensor,
    targets: CubeTensor,
    scale: f32,
    dweight: CubeTensor,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let mut dweight = accumulator(dweight, "head_cross_entropy_backward");
    let (x, weight, targets) = (contiguous(x), contiguous(weight), contiguous(targets));
    let (vocabulary, _) = rows_and_width(&weight);
    let losses = new(&x, &dims(&targets), DType::F32);
    let dx = new_like(&x);
    for (first, rows) in chunks(elements(&targets)) {
        let chunk = contiguous(row_range(&x, first, rows));
        let chunk = Operand::rows(&chunk);
        let logits = product(&chunk, &Operand::columns(&weight), &[rows, vocabulary], DType::F32);
        let dlogits = new(&x, &[rows, vocabulary], x.dtype);
        cross_entropy(CrossEntropy {
            logits,
            targets: targets.clone(),
            losses: losses.clone(),
            first,
            dlogits: Some(dlogits.clone()),
            scale,
        });
        dweight = add_product(dweight, &Operand::columns(&dlogits), &chunk);
        product_into(&Operand::rows(&dlogits), &Operand::rows(&weight), &dx, first);
    }
    (losses, dx, dweight)
}
