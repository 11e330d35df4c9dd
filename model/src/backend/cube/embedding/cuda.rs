//! The launch of `cuda.cu`: chains of equal ids.

use std::sync::Arc;

use super::Chain;
use crate::backend::cube::nvidia::{Gpu, Source, arguments, cuda_source};
use crate::backend::cube::tensor::elements;

/// Threads of a block.
const THREADS: usize = 256;

/// Ids a block looks through at once.
const TILE: usize = 4 * THREADS;

/// Bytes of shared memory: a tile of ids.
const SHARED_BYTES: usize = 4 * TILE;

pub(super) fn source() -> Source<2> {
    let defines = [("THREADS", THREADS), ("TILE", TILE)];
    Source::new("embedding", cuda_source!("cuda.cu"), defines)
}

pub(super) fn chain(gpu: &Arc<Gpu>, Chain { ids, next, follows }: &Chain) {
    let kernel = gpu.kernel(&source(), "chain", SHARED_BYTES);
    let count = elements(ids);
    gpu.enqueue([ids, next, follows], move |stream, [ids, next, follows]| {
        let blocks = (count.div_ceil(THREADS), 1, 1);
        let count = count as i32;
        kernel.launch(stream, blocks, THREADS, arguments![ids, next, follows, count])
    });
}
