//! The kernels of `elementwise.cu`: residual sums, SwiGLU and RoPE in bf16, chains of equal ids, on
//! our stream.

use std::sync::Arc;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cudarc::driver::sys;

use super::kernel::{Module, arguments, launch};
use super::stream::Gpu;
use crate::backend::cube::tensor::{dims, elements};

/// The kernels and the instructions they are built from.
pub(super) const SOURCE: &str = concat!(
    include_str!("intrinsics.cu"),
    include_str!("elements.cu"),
    include_str!("elementwise.cu")
);

/// Threads of a block.
const THREADS: usize = 256;

const DEFINES: [(&str, usize); 1] = [("THREADS", THREADS)];

/// Elements of a piece, 16 bytes.
const PIECE: usize = 8;

/// Bytes of shared memory of `chain`: a tile of ids.
const CHAIN_BYTES: usize = 4 * 4 * THREADS;

/// The kernels.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    residual_sum: sys::CUfunction,
    swiglu_forward: sys::CUfunction,
    swiglu_backward: sys::CUfunction,
    rotate: sys::CUfunction,
    chain: sys::CUfunction,
}

// SAFETY: functions of a loaded module may be launched from any thread.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

/// The kernels, if `x` is on an NVIDIA GPU.
///
/// # Panics
/// When they do not compile: NVRTC does not fit the driver or the GPU.
fn functions(x: &CubeTensor) -> Option<(Arc<Gpu>, Functions)> {
    let gpu = Gpu::of(x)?;
    let load = || {
        gpu.enter()?;
        let module = Module::load(SOURCE, &DEFINES, &gpu.architecture())?;
        Ok::<_, String>(Functions {
            residual_sum: module.function("residual_sum", 0)?,
            swiglu_forward: module.function("swiglu_forward", 0)?,
            swiglu_backward: module.function("swiglu_backward", 0)?,
            rotate: module.function("rotate", 0)?,
            chain: module.function("chain", CHAIN_BYTES)?,
        })
    };
    let functions = *gpu
        .elementwise
        .get_or_init(|| load().unwrap_or_else(|reason| panic!("elementwise kernels: {reason}")));
    Some((gpu, functions))
}

/// Pieces of `x`, if it is in bf16 and made of whole ones.
fn pieces(x: &CubeTensor) -> Option<i64> {
    let count = elements(x);
    (x.dtype == DType::BF16 && count.is_multiple_of(PIECE)).then_some((count / PIECE) as i64)
}

fn grid(pieces: i64) -> (usize, usize, usize) {
    ((pieces as usize).div_ceil(THREADS), 1, 1)
}

/// Computes `y` = `x` + `branch`; `y` may be `x`. False where another kernel must.
pub(in super::super) fn residual_sum(x: &CubeTensor, branch: &CubeTensor, y: &CubeTensor) -> bool {
    let Some(pieces) = pieces(x) else { return false };
    let Some((gpu, functions)) = functions(x) else { return false };
    gpu.enqueue([x, branch, y], move |gpu, [x, branch, y]| {
        // Whole: its single fields may not cross threads.
        let functions = functions;
        let arguments = arguments![x, branch, y, pieces];
        launch(gpu, functions.residual_sum, grid(pieces), THREADS, 0, arguments)
    });
    true
}

/// Computes `y` = silu(`gate`) · `up`. False where another kernel must.
pub(in super::super) fn swiglu_forward(gate: &CubeTensor, up: &CubeTensor, y: &CubeTensor) -> bool {
    let Some(pieces) = pieces(gate) else { return false };
    let Some((gpu, functions)) = functions(gate) else { return false };
    gpu.enqueue([gate, up, y], move |gpu, [gate, up, y]| {
        let functions = functions;
        let arguments = arguments![gate, up, y, pieces];
        launch(gpu, functions.swiglu_forward, grid(pieces), THREADS, 0, arguments)
    });
    true
}

/// Computes `dgate` and `dup` from (dy, gate, up). False where another kernel must.
pub(in super::super) fn swiglu_backward(
    [dy, gate, up]: [&CubeTensor; 3],
    [dgate, dup]: [&CubeTensor; 2],
) -> bool {
    let Some(pieces) = pieces(gate) else { return false };
    let Some((gpu, functions)) = functions(gate) else { return false };
    gpu.enqueue([dy, gate, up, dgate, dup], move |gpu, [dy, gate, up, dgate, dup]| {
        let functions = functions;
        let arguments = arguments![dy, gate, up, dgate, dup, pieces];
        launch(gpu, functions.swiglu_backward, grid(pieces), THREADS, 0, arguments)
    });
    true
}

/// Computes `y`, `x` (B, T, H, D) turned by `cos` and `sin` (T, D/2); `y` may be `x`. `direction` is
/// 1 forward, −1 backward. False where another kernel must.
pub(in super::super) fn rotate(
    x: &CubeTensor,
    [cos, sin]: [&CubeTensor; 2],
    y: &CubeTensor,
    direction: f32,
) -> bool {
    let [_, time, heads, head_dim] = dims(x)[..] else { panic!("RoPE takes (B, T, H, D)") };
    if x.dtype != DType::BF16 || cos.dtype != DType::F32 || !head_dim.is_multiple_of(2 * PIECE) {
        return false;
    }
    let Some((gpu, functions)) = functions(x) else { return false };
    let pieces = (elements(x) / PIECE / 2) as i64;
    gpu.enqueue([x, cos, sin, y], move |gpu, [x, cos, sin, y]| {
        let functions = functions;
        let [time, heads, half] = [time, heads, head_dim / 2 / PIECE].map(|n| n as i32);
        let arguments = arguments![x, cos, sin, y, time, heads, half, direction, pieces];
        launch(gpu, functions.rotate, grid(pieces), THREADS, 0, arguments)
    });
    true
}

/// Chains the positions of equal `ids` by `next` and `follows`, which starts as zeros. False where
/// another kernel must.
pub(in super::super) fn chain(ids: &CubeTensor, next: &CubeTensor, follows: &CubeTensor) -> bool {
    let Some((gpu, functions)) = functions(ids) else { return false };
    let count = elements(ids);
    gpu.enqueue([ids, next, follows], move |gpu, [ids, next, follows]| {
        let functions = functions;
        let blocks = (count.div_ceil(THREADS), 1, 1);
        let count = count as i32;
        let arguments = arguments![ids, next, follows, count];
        launch(gpu, functions.chain, blocks, THREADS, CHAIN_BYTES, arguments)
    });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
