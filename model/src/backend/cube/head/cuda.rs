//! The kernel of `cross_entropy.cu`: losses and gradients of rows of logits, on our stream.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Source, arguments};
use super::stream::Gpu;
use crate::backend::cube::tensor::rows_and_width;

/// Threads of a block: so many that the rows at work on all multiprocessors stay in the cache
/// between the two passes over them.
const THREADS: usize = 1024;

/// Bytes of shared memory: the largest logit and a sum of each warp.
const SHARED_BYTES: usize = 8 * THREADS / 32;

fn source() -> Source<1> {
    let text = concat!(
        include_str!("intrinsics.cu"),
        include_str!("elements.cu"),
        include_str!("cross_entropy.cu")
    );
    Source::new("cross entropy", text, [("THREADS", THREADS)])
}

/// Computes the losses of rows `first`.. from their `logits`, and their bf16 gradients times `scale`
/// where `dlogits` is given. False where another kernel must.
pub(in super::super) fn cross_entropy(
    [logits, targets, losses]: [&CubeTensor; 3],
    dlogits: Option<&CubeTensor>,
    first: usize,
    scale: f32,
) -> bool {
    let (rows, vocabulary) = rows_and_width(logits);
    let takes = dlogits.is_none_or(|dlogits| dlogits.dtype == DType::BF16);
    if !takes || !vocabulary.is_multiple_of(8) {
        return false;
    }
    let Some(gpu) = Gpu::of(logits) else { return false };
    let kernel = gpu.kernel(&source(), "cross_entropy", SHARED_BYTES);
    let mut tensors = vec![logits, targets, losses];
    tensors.extend(dlogits);
    gpu.enqueue_all(&tensors, move |gpu, addresses| {
        let [logits, targets, losses] = [0, 1, 2].map(|i| addresses[i]);
        let dlogits = addresses.get(3).copied().unwrap_or_default();
        let (first, vocabulary) = (first as i32, vocabulary as i32);
        kernel.launch(
            gpu,
            (rows, 1, 1),
            THREADS,
            arguments![logits, targets, losses, dlogits, first, vocabulary, scale],
        )
    });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
