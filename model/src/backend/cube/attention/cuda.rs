//! The launches of the tensor-core kernels: those of `wgmma.cu` on Hopper, of `mma.cu` on other GPUs.

use std::sync::{Arc, LazyLock};

use super::{Backward, Forward, Inputs};
use crate::backend::cube::nvidia::{Gpu, Source, arguments, cuda_source};

/// Head widths the kernels are compiled for.
pub(super) const HEAD_DIMS: [usize; 2] = [64, 128];

/// The kernels for one kind of tensor cores and the sizes they are compiled with. A block owns rows of
/// the score matrix (queries, for o and dq) or columns (keys, for dk and dv) and walks along the others
/// in steps.
pub(super) struct Kernels {
    /// With the instructions they are built from.
    pub text: &'static str,
    /// Whether those are of one generation alone.
    pub one_generation: bool,
    /// Threads of a block.
    pub threads: usize,
    /// Queries that a block owns in the forward pass and for dq.
    pub query_rows: usize,
    /// Keys that a block owns for dk and dv.
    pub key_rows: usize,
    /// Keys of a step of the forward pass.
    pub forward_keys: usize,
    /// Keys of a step of dq.
    pub gradient_keys: usize,
    /// Queries of a step of dk and dv.
    pub step_queries: usize,
    /// Steps of dq, and of dk and dv, whose rows are in shared memory at once.
    pub buffers: usize,
}

/// `mma.sync`, from compute capability 8.0 on.
pub(super) static MMA: Kernels = Kernels {
    one_generation: false,
    text: cuda_source!("rows.cu", "mma.cu"),
    threads: 128,
    query_rows: 128,
    key_rows: 64,
    forward_keys: 64,
    gradient_keys: 32,
    step_queries: 64,
    buffers: 2,
};

/// `wgmma`, of compute capability 9.0 alone.
pub(super) static WGMMA: Kernels = Kernels {
    one_generation: true,
    text: cuda_source!("../nvidia/intrinsics_hopper.cu", "rows.cu", "wgmma.cu"),
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
    pub fn of(capability: (i32, i32)) -> &'static Self {
        if capability == (9, 0) && !*WITHOUT_WGMMA { &WGMMA } else { &MMA }
    }

    /// Whether queries are `bounded` below is decided when they are compiled.
    pub fn source(&self, head_dim: usize, bounded: bool) -> Source<9> {
        let defines = [
            ("HEAD_DIM", head_dim),
            ("BOUNDED", usize::from(bounded)),
            ("THREADS", self.threads),
            ("QUERY_ROWS", self.query_rows),
            ("KEY_ROWS", self.key_rows),
            ("FORWARD_KEYS", self.forward_keys),
            ("GRADIENT_KEYS", self.gradient_keys),
            ("STEP_QUERIES", self.step_queries),
            ("BUFFERS", self.buffers),
        ];
        Source {
            one_generation: self.one_generation,
            ..Source::new("attention", self.text, defines)
        }
    }

    /// Bytes of shared memory of the forward pass, of dq, and of dk and dv: bf16 tiles, and what a step
    /// of dk and dv reads of each query. The forward pass has two steps there.
    pub fn shared_bytes(&self, head_dim: usize) -> [usize; 3] {
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

/// Computes `o` and `lse`.
pub(super) fn forward(gpu: &Arc<Gpu>, Forward { inputs, o, lse }: &Forward) {
    let Inputs { q, k, v, first_visible, bounded, shape } = inputs;
    let shape = *shape;
    let kernels = Kernels::of(gpu.capability());
    let [shared, ..] = kernels.shared_bytes(shape.head_dim);
    let source = kernels.source(shape.head_dim, *bounded);
    let forward = gpu.kernel(&source, "attention_forward", shared);
    let tensors = [q, k, v, first_visible, o, lse];
    gpu.enqueue(tensors, move |stream, [q, k, v, first_visible, o, lse]| {
        let [queries, keys, heads, kv_heads] =
            [shape.queries, shape.keys, shape.heads, shape.kv_heads].map(|n| n as i32);
        let scale = shape.scale();
        forward.launch(
            stream,
            (shape.queries.div_ceil(kernels.query_rows), shape.heads, shape.batch),
            kernels.threads,
            arguments![q, k, v, first_visible, o, lse, queries, keys, heads, kv_heads, scale],
        )
    });
}

/// Computes `delta`, `dq`, `dk` and `dv`.
pub(super) fn backward(gpu: &Arc<Gpu>, call: &Backward) {
    let Backward { inputs, dout, o, lse, delta, dq, dk, dv } = call;
    let Inputs { q, k, v, first_visible, bounded, shape } = inputs;
    let shape = *shape;
    let kernels = Kernels::of(gpu.capability());
    let [_, query_bytes, key_value_bytes] = kernels.shared_bytes(shape.head_dim);
    let source = kernels.source(shape.head_dim, *bounded);
    let row_products = gpu.kernel(&source, "attention_row_products", 0);
    let query_gradient = gpu.kernel(&source, "attention_query_gradient", query_bytes);
    let key_value_gradient = gpu.kernel(&source, "attention_key_value_gradient", key_value_bytes);
    let tensors = [dout, q, k, v, o, lse, first_visible, delta, dq, dk, dv];
    gpu.enqueue(tensors, move |stream, addresses| {
        let [dout, q, k, v, o, lse, first_visible, delta, dq, dk, dv] = addresses;
        let [time, heads, kv_heads] =
            [shape.queries, shape.heads, shape.kv_heads].map(|n| n as i32);
        let rows = (shape.batch * shape.queries * shape.heads) as i32;
        let scale = shape.scale();
        let rows_per_block = kernels.threads / (shape.head_dim / 8);
        row_products.launch(
            stream,
            ((rows as usize).div_ceil(rows_per_block), 1, 1),
            kernels.threads,
            arguments![dout, o, delta, rows, time, heads],
        )?;
        query_gradient.launch(
            stream,
            (shape.queries.div_ceil(kernels.query_rows), shape.heads, shape.batch),
            kernels.threads,
            arguments![dout, q, k, v, lse, delta, first_visible, dq, time, heads, kv_heads, scale],
        )?;
        key_value_gradient.launch(
            stream,
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
}
