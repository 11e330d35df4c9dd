//! The tensor-core attention kernels, those of `attention_hopper.cu` or of `attention.cu`: compiled
//! at their first use, launched on our stream.

use std::sync::{Arc, LazyLock};

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Source, arguments};
use super::stream::Gpu;
use crate::backend::cube::attention::Shape;

/// Head widths the kernels are compiled for.
const HEAD_DIMS: [usize; 2] = [64, 128];

/// Kernels for one kind of tensor cores; the numbers are constants of the source.
pub(super) struct Kernels {
    /// With the instructions they are built from.
    text: &'static str,
    /// Whether those are of one generation alone.
    one_generation: bool,
    /// Of a block.
    threads: usize,
    /// Rows of a block: queries of forward and dq, keys of dk and dv.
    query_rows: usize,
    key_rows: usize,
    /// Rows of a step of forward, of dq, of dk and dv.
    forward_keys: usize,
    gradient_keys: usize,
    step_queries: usize,
    /// Steps of a gradient whose rows are in shared memory.
    buffers: usize,
}

/// `mma.sync`, from compute capability 8.0 on.
static MMA: Kernels = Kernels {
    one_generation: false,
    text: concat!(
        include_str!("intrinsics.cu"),
        include_str!("elements.cu"),
        include_str!("attention_rows.cu"),
        include_str!("attention.cu")
    ),
    threads: 128,
    query_rows: 128,
    key_rows: 64,
    forward_keys: 64,
    gradient_keys: 32,
    step_queries: 64,
    buffers: 2,
};

/// `wgmma`, of compute capability 9.0 alone.
static WGMMA: Kernels = Kernels {
    one_generation: true,
    text: concat!(
        include_str!("intrinsics.cu"),
        include_str!("intrinsics_hopper.cu"),
        include_str!("elements.cu"),
        include_str!("attention_rows.cu"),
        include_str!("attention_hopper.cu")
    ),
    threads: 256,
    query_rows: 128,
    key_rows: 128,
    forward_keys: 128,
    gradient_keys: 64,
    step_queries: 64,
    buffers: 3,
};

/// Set by `ALTIPLANO_ATTENTION=mma`, to compare the two.
static WITHOUT_WGMMA: LazyLock<bool> =
    LazyLock::new(|| std::env::var("ALTIPLANO_ATTENTION").is_ok_and(|kind| kind == "mma"));

impl Kernels {
    /// The fastest a GPU of `capability` has.
    fn of(capability: (i32, i32)) -> &'static Self {
        if capability == (9, 0) && !*WITHOUT_WGMMA { &WGMMA } else { &MMA }
    }

    /// Whether queries are `bounded` below is decided when they are compiled.
    fn source(&self, head_dim: usize, bounded: bool) -> Source<3> {
        let defines =
            [("HEAD_DIM", head_dim), ("BOUNDED", usize::from(bounded)), ("THREADS", self.threads)];
        Source {
            one_generation: self.one_generation,
            ..Source::new("attention", self.text, defines)
        }
    }

    /// Bytes of shared memory of the three tiled kernels: bf16 tiles, and what a step of dk and dv
    /// reads of each query.
    fn shared_bytes(&self, head_dim: usize) -> [usize; 3] {
        let tile = |rows: usize| 2 * rows * head_dim;
        let steps = |rows: usize| self.buffers * 2 * tile(rows);
        [
            tile(self.query_rows) + 4 * tile(self.forward_keys),
            2 * tile(self.query_rows) + steps(self.gradient_keys),
            2 * tile(self.key_rows)
                + steps(self.step_queries)
                + self.buffers * 3 * 4 * self.step_queries,
        ]
    }
}

/// The GPU of `q` and its kernels, if they take it: in bf16, with a head width they know.
fn kernels_for(q: &CubeTensor, shape: Shape) -> Option<(Arc<Gpu>, &'static Kernels)> {
    if q.dtype != DType::BF16 || !HEAD_DIMS.contains(&shape.head_dim) {
        return None;
    }
    let gpu = Gpu::of(q)?;
    let kernels = Kernels::of(gpu.capability);
    Some((gpu, kernels))
}

/// Computes `o` and `lse` from (q, k, v, first_visible). False where another kernel must.
pub(in super::super) fn forward(tensors: [&CubeTensor; 6], shape: Shape, bounded: bool) -> bool {
    let Some((gpu, kernels)) = kernels_for(tensors[0], shape) else { return false };
    let [shared, ..] = kernels.shared_bytes(shape.head_dim);
    let source = kernels.source(shape.head_dim, bounded);
    let forward = gpu.kernel(&source, "attention_forward", shared);
    gpu.enqueue(tensors, move |gpu, [q, k, v, first_visible, o, lse]| {
        let [queries, keys, heads, kv_heads] =
            [shape.queries, shape.keys, shape.heads, shape.kv_heads].map(|n| n as i32);
        let scale = shape.scale();
        forward.launch(
            gpu,
            (shape.queries.div_ceil(kernels.query_rows), shape.heads, shape.batch),
            kernels.threads,
            arguments![q, k, v, first_visible, o, lse, queries, keys, heads, kv_heads, scale],
        )
    });
    true
}

/// Computes `delta`, `dq`, `dk` and `dv` from (dout, q, k, v, o, lse, first_visible). False where
/// other kernels must.
pub(in super::super) fn backward(tensors: [&CubeTensor; 11], shape: Shape, bounded: bool) -> bool {
    let Some((gpu, kernels)) = kernels_for(tensors[1], shape) else { return false };
    let [_, query_bytes, key_value_bytes] = kernels.shared_bytes(shape.head_dim);
    let source = kernels.source(shape.head_dim, bounded);
    let row_products = gpu.kernel(&source, "attention_row_products", 0);
    let query_gradient = gpu.kernel(&source, "attention_query_gradient", query_bytes);
    let key_value_gradient = gpu.kernel(&source, "attention_key_value_gradient", key_value_bytes);
    gpu.enqueue(tensors, move |gpu, [dout, q, k, v, o, lse, first_visible, delta, dq, dk, dv]| {
        let [time, heads, kv_heads] =
            [shape.queries, shape.heads, shape.kv_heads].map(|n| n as i32);
        let rows = (shape.batch * shape.queries * shape.heads) as i32;
        let scale = shape.scale();
        let rows_per_block = kernels.threads / (shape.head_dim / 8);
        row_products.launch(
            gpu,
            ((rows as usize).div_ceil(rows_per_block), 1, 1),
            kernels.threads,
            arguments![dout, o, delta, rows, time, heads],
        )?;
        query_gradient.launch(
            gpu,
            (shape.queries.div_ceil(kernels.query_rows), shape.heads, shape.batch),
            kernels.threads,
            arguments![dout, q, k, v, lse, delta, first_visible, dq, time, heads, kv_heads, scale],
        )?;
        key_value_gradient.launch(
            gpu,
            (shape.keys.div_ceil(kernels.key_rows), shape.kv_heads, shape.batch),
            kernels.threads,
            arguments![
                dout,
                q,
                k,
                v,
                lse,
                delta,
                first_visible,
                dk,
                dv,
                time,
                heads,
                kv_heads,
                scale
            ],
        )
    });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
