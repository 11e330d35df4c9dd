//! The kernels of `elementwise.cu`: residual sums, SwiGLU and RoPE in bf16, chains of equal ids, on
//! our stream.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Source, arguments};
use super::stream::Gpu;
use crate::backend::cube::tensor::{dims, elements};

/// Threads of a block.
const THREADS: usize = 256;

/// Elements of a piece, 16 bytes.
const PIECE: usize = 8;

/// Bytes of shared memory of `chain`: a tile of ids.
const CHAIN_BYTES: usize = 4 * 4 * THREADS;

fn source() -> Source<1> {
    let text = concat!(
        include_str!("intrinsics.cu"),
        include_str!("elements.cu"),
        include_str!("elementwise.cu")
    );
    Source::new("elementwise", text, [("THREADS", THREADS)])
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
    let Some(gpu) = Gpu::of(x) else { return false };
    let kernel = gpu.kernel(&source(), "residual_sum", 0);
    gpu.enqueue([x, branch, y], move |gpu, [x, branch, y]| {
        let arguments = arguments![x, branch, y, pieces];
        kernel.launch(gpu, grid(pieces), THREADS, arguments)
    });
    true
}

/// Computes `y` = silu(`gate`) · `up`. False where another kernel must.
pub(in super::super) fn swiglu_forward(gate: &CubeTensor, up: &CubeTensor, y: &CubeTensor) -> bool {
    let Some(pieces) = pieces(gate) else { return false };
    let Some(gpu) = Gpu::of(gate) else { return false };
    let kernel = gpu.kernel(&source(), "swiglu_forward", 0);
    gpu.enqueue([gate, up, y], move |gpu, [gate, up, y]| {
        let arguments = arguments![gate, up, y, pieces];
        kernel.launch(gpu, grid(pieces), THREADS, arguments)
    });
    true
}

/// Computes `dgate` and `dup` from (dy, gate, up). False where another kernel must.
pub(in super::super) fn swiglu_backward(
    [dy, gate, up]: [&CubeTensor; 3],
    [dgate, dup]: [&CubeTensor; 2],
) -> bool {
    let Some(pieces) = pieces(gate) else { return false };
    let Some(gpu) = Gpu::of(gate) else { return false };
    let kernel = gpu.kernel(&source(), "swiglu_backward", 0);
    gpu.enqueue([dy, gate, up, dgate, dup], move |gpu, [dy, gate, up, dgate, dup]| {
        let arguments = arguments![dy, gate, up, dgate, dup, pieces];
        kernel.launch(gpu, grid(pieces), THREADS, arguments)
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
    let Some(gpu) = Gpu::of(x) else { return false };
    let kernel = gpu.kernel(&source(), "rotate", 0);
    let pieces = (elements(x) / PIECE / 2) as i64;
    gpu.enqueue([x, cos, sin, y], move |gpu, [x, cos, sin, y]| {
        let [time, heads, half] = [time, heads, head_dim / 2 / PIECE].map(|n| n as i32);
        let arguments = arguments![x, cos, sin, y, time, heads, half, direction, pieces];
        kernel.launch(gpu, grid(pieces), THREADS, arguments)
    });
    true
}

/// Chains the positions of equal `ids` by `next` and `follows`, which starts as zeros. False where
/// another kernel must.
pub(in super::super) fn chain(ids: &CubeTensor, next: &CubeTensor, follows: &CubeTensor) -> bool {
    let Some(gpu) = Gpu::of(ids) else { return false };
    let kernel = gpu.kernel(&source(), "chain", CHAIN_BYTES);
    let count = elements(ids);
    gpu.enqueue([ids, next, follows], move |gpu, [ids, next, follows]| {
        let blocks = (count.div_ceil(THREADS), 1, 1);
        let count = count as i32;
        let arguments = arguments![ids, next, follows, count];
        kernel.launch(gpu, blocks, THREADS, arguments)
    });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
