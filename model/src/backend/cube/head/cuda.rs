//! The launch of `cuda.cu`: losses and gradients of rows of logits.

use std::sync::Arc;

use super::CrossEntropy;
use crate::backend::cube::nvidia::{Gpu, Source, arguments, cuda_source};
use crate::backend::cube::tensor::rows_and_width;

/// Threads of a block: so many that the rows at work on all multiprocessors stay in the cache
/// between the two passes over them.
const THREADS: usize = 1024;

/// Bytes of shared memory: the largest logit and a sum of each warp.
const SHARED_BYTES: usize = 8 * THREADS / 32;

pub(super) fn source() -> Source<1> {
    Source::new("head", cuda_source!("cuda.cu"), [("THREADS", THREADS)])
}

pub(super) fn cross_entropy(gpu: &Arc<Gpu>, call: &CrossEntropy) {
    let CrossEntropy { logits, targets, losses, first, dlogits, scale } = call;
    let (rows, vocabulary) = rows_and_width(logits);
    let (first, vocabulary, scale) = (*first as i32, vocabulary as i32, *scale);
    let kernel = gpu.kernel(&source(), "cross_entropy", SHARED_BYTES);
    let mut tensors = vec![logits, targets, losses];
    tensors.extend(dlogits);
    gpu.enqueue_all(&tensors, move |stream, addresses| {
        let [logits, targets, losses] = [0, 1, 2].map(|i| addresses[i]);
        let dlogits = addresses.get(3).copied().unwrap_or_default();
        kernel.launch(
            stream,
            (rows, 1, 1),
            THREADS,
            arguments![logits, targets, losses, dlogits, first, vocabulary, scale],
        )
    });
}
