//! The tensor-core attention kernels of `attention.cu`: compiled at their first use, launched on
//! our stream.

use std::sync::PoisonError;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cudarc::driver::sys;

use super::kernel::{Module, THREADS, arguments, launch};
use super::stream::{Gpu, Outcome};
use crate::backend::cube::attention::Shape;

/// The kernels and the instructions they are built from.
pub(super) const SOURCE: &str =
    concat!(include_str!("intrinsics.cu"), include_str!("attention.cu"));

/// Head widths the kernels are compiled for.
const HEAD_DIMS: [usize; 2] = [64, 128];

// The constants of the same names in attention.cu.
const QUERY_ROWS: usize = 128;
const FORWARD_KEYS: usize = 64;
const GRADIENT_KEYS: usize = 32;
const KEY_ROWS: usize = 64;
const STEP_QUERIES: usize = 64;

/// The kernels for one head width.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    forward: sys::CUfunction,
    row_products: sys::CUfunction,
    query_gradient: sys::CUfunction,
    key_value_gradient: sys::CUfunction,
}

// SAFETY: functions of a loaded module may be launched from any thread.
unsafe impl Send for Functions {}

/// Bytes of shared memory of the three tiled kernels: bf16 tiles, and what a step of dk and dv
/// reads of each query.
fn shared_bytes(head_dim: usize) -> [usize; 3] {
    let tile = |rows: usize| 2 * rows * head_dim;
    [
        tile(QUERY_ROWS) + 4 * tile(FORWARD_KEYS),
        2 * tile(QUERY_ROWS) + 4 * tile(GRADIENT_KEYS),
        2 * tile(KEY_ROWS) + 4 * tile(STEP_QUERIES) + 2 * 3 * 4 * STEP_QUERIES,
    ]
}

/// Compiles and loads the kernels for one head width into the current context.
fn load(head_dim: usize, bounded: bool, capability: (i32, i32)) -> Outcome<Functions> {
    let defines = [("HEAD_DIM", head_dim), ("BOUNDED", usize::from(bounded))];
    let module = Module::load(SOURCE, &defines, capability)?;
    let [forward, query, key_value] = shared_bytes(head_dim);
    Ok(Functions {
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
        let [queries, keys, heads, kv_heads] =
            [shape.queries, shape.keys, shape.heads, shape.kv_heads].map(|n| n as i32);
        let scale = shape.scale();
        launch(
            gpu,
            functions.forward,
            (shape.queries.div_ceil(QUERY_ROWS), shape.heads, shape.batch),
            shared_bytes(shape.head_dim)[0],
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
        let [time, heads, kv_heads] =
            [shape.queries, shape.heads, shape.kv_heads].map(|n| n as i32);
        let rows = (shape.batch * shape.queries * shape.heads) as i32;
        let scale = shape.scale();
        let [_, query_bytes, key_value_bytes] = shared_bytes(shape.head_dim);
        let rows_per_block = THREADS as usize / (shape.head_dim / 8);
        launch(
            gpu,
            functions.row_products,
            ((rows as usize).div_ceil(rows_per_block), 1, 1),
            0,
            arguments![dout, o, delta, rows, time, heads],
        )?;
        launch(
            gpu,
            functions.query_gradient,
            (shape.queries.div_ceil(QUERY_ROWS), shape.heads, shape.batch),
            query_bytes,
            arguments![dout, q, k, v, lse, delta, first_visible, dq, time, heads, kv_heads, scale],
        )?;
        launch(
            gpu,
            functions.key_value_gradient,
            (shape.keys.div_ceil(KEY_ROWS), shape.kv_heads, shape.batch),
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
