//! The tensor-core attention kernels, those of `attention_hopper.cu` or of `attention.cu`: compiled
//! at their first use, launched on our stream.

use std::sync::LazyLock;
use std::sync::PoisonError;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cudarc::driver::sys;

use super::kernel::{Module, arguments, launch};
use super::stream::{Gpu, Outcome};
use crate::backend::cube::attention::Shape;

/// Head widths the kernels are compiled for.
const HEAD_DIMS: [usize; 2] = [64, 128];

/// Kernels for one kind of tensor cores; the numbers are constants of the source.
pub(super) struct Kernels {
    /// With the instructions it is built from.
    source: &'static str,
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
    source: concat!(
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
    source: concat!(
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
    /// The fastest a GPU of `capability` has, and what to compile them for.
    fn of(capability: (i32, i32)) -> (&'static Self, String) {
        let (major, minor) = capability;
        match capability {
            (9, 0) if !*WITHOUT_WGMMA => (&WGMMA, "sm_90a".to_string()),
            _ => (&MMA, format!("sm_{major}{minor}")),
        }
    }

    fn defines(&self, head_dim: usize, bounded: bool) -> [(&'static str, usize); 3] {
        [("HEAD_DIM", head_dim), ("BOUNDED", usize::from(bounded)), ("THREADS", self.threads)]
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

/// The kernels for one head width.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    kernels: &'static Kernels,
    forward: sys::CUfunction,
    row_products: sys::CUfunction,
    query_gradient: sys::CUfunction,
    key_value_gradient: sys::CUfunction,
}

// SAFETY: functions of a loaded module may be launched from any thread.
unsafe impl Send for Functions {}

/// Compiles and loads the kernels for one head width into the current context.
fn load(head_dim: usize, bounded: bool, capability: (i32, i32)) -> Outcome<Functions> {
    let (kernels, architecture) = Kernels::of(capability);
    let module = Module::load(kernels.source, &kernels.defines(head_dim, bounded), &architecture)?;
    let [forward, query, key_value] = kernels.shared_bytes(head_dim);
    Ok(Functions {
        kernels,
        forward: module.function("attention_forward", forward)?,
        row_products: module.function("attention_row_products", 0)?,
        query_gradient: module.function("attention_query_gradient", query)?,
        key_value_gradient: module.function("attention_key_value_gradient", key_value)?,
    })
}

/// The kernels for `q`, if it is on an NVIDIA GPU, in bf16, with a head width they know.
///
/// # Panics
/// When they do not compile: NVRTC does not fit the driver or the GPU.
fn functions(
    q: &CubeTensor,
    shape: Shape,
    bounded: bool,
) -> Option<(std::sync::Arc<Gpu>, Functions)> {
    if q.dtype != DType::BF16 || !HEAD_DIMS.contains(&shape.head_dim) {
        return None;
    }
    let gpu = Gpu::of(q)?;
    let functions = {
        let mut loaded = gpu.attention.lock().unwrap_or_else(PoisonError::into_inner);
        *loaded.entry((shape.head_dim, bounded)).or_insert_with(|| {
            gpu.enter()
                .and_then(|()| load(shape.head_dim, bounded, gpu.capability))
                .unwrap_or_else(|reason| panic!("attention kernels: {reason}"))
        })
    };
    Some((gpu, functions))
}

/// Computes `o` and `lse` from (q, k, v, first_visible). False where another kernel must.
pub(in super::super) fn forward(tensors: [&CubeTensor; 6], shape: Shape, bounded: bool) -> bool {
    let Some((gpu, functions)) = functions(tensors[0], shape, bounded) else { return false };
    gpu.enqueue(tensors, move |gpu, [q, k, v, first_visible, o, lse]| {
        // Whole: its single fields may not cross threads.
        let functions = functions;
        let kernels = functions.kernels;
        let [queries, keys, heads, kv_heads] =
            [shape.queries, shape.keys, shape.heads, shape.kv_heads].map(|n| n as i32);
        let scale = shape.scale();
        launch(
            gpu,
            functions.forward,
            (shape.queries.div_ceil(kernels.query_rows), shape.heads, shape.batch),
            kernels.threads,
            kernels.shared_bytes(shape.head_dim)[0],
            arguments![q, k, v, first_visible, o, lse, queries, keys, heads, kv_heads, scale],
        )
    });
    true
}

/// Computes `delta`, `dq`, `dk` and `dv` from (dout, q, k, v, o, lse, first_visible). False where
/// other kernels must.
pub(in super::super) fn backward(tensors: [&CubeTensor; 11], shape: Shape, bounded: bool) -> bool {
    let Some((gpu, functions)) = functions(tensors[1], shape, bounded) else { return false };
    gpu.enqueue(tensors, move |gpu, [dout, q, k, v, o, lse, first_visible, delta, dq, dk, dv]| {
        let functions = functions;
        let kernels = functions.kernels;
        let [time, heads, kv_heads] =
            [shape.queries, shape.heads, shape.kv_heads].map(|n| n as i32);
        let rows = (shape.batch * shape.queries * shape.heads) as i32;
        let scale = shape.scale();
        let [_, query_bytes, key_value_bytes] = kernels.shared_bytes(shape.head_dim);
        let rows_per_block = kernels.threads / (shape.head_dim / 8);
        launch(
            gpu,
            functions.row_products,
            ((rows as usize).div_ceil(rows_per_block), 1, 1),
            kernels.threads,
            0,
            arguments![dout, o, delta, rows, time, heads],
        )?;
        launch(
            gpu,
            functions.query_gradient,
            (shape.queries.div_ceil(kernels.query_rows), shape.heads, shape.batch),
            kernels.threads,
            query_bytes,
            arguments![dout, q, k, v, lse, delta, first_visible, dq, time, heads, kv_heads, scale],
        )?;
        launch(
            gpu,
            functions.key_value_gradient,
            (shape.keys.div_ceil(kernels.key_rows), shape.kv_heads, shape.batch),
            kernels.threads,
            key_value_bytes,
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
