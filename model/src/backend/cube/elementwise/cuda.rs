//! The launches of `cuda.cu`: residual sums, SwiGLU and RoPE in bf16.

use std::sync::Arc;

use super::{PIECE, Residual, Rotation, SwigluBackward, SwigluForward};
use crate::backend::cube::nvidia::{Gpu, Source, arguments, cuda_source};
use crate::backend::cube::tensor::elements;

/// Threads of a block.
const THREADS: usize = 256;

pub(super) fn source() -> Source<1> {
    Source::new("elementwise", cuda_source!("cuda.cu"), [("THREADS", THREADS)])
}

/// A block for every [`THREADS`] of `pieces`.
fn grid(pieces: i64) -> (usize, usize, usize) {
    ((pieces as usize).div_ceil(THREADS), 1, 1)
}

pub(super) fn residual(gpu: &Arc<Gpu>, Residual { x, branch, y, .. }: &Residual) {
    let kernel = gpu.kernel(&source(), "residual_sum", 0);
    let pieces = (elements(x) / PIECE) as i64;
    gpu.enqueue([x, branch, y], move |stream, [x, branch, y]| {
        let arguments = arguments![x, branch, y, pieces];
        kernel.launch(stream, grid(pieces), THREADS, arguments)
    });
}

pub(super) fn swiglu_forward(gpu: &Arc<Gpu>, SwigluForward { gate, up, y }: &SwigluForward) {
    let kernel = gpu.kernel(&source(), "swiglu_forward", 0);
    let pieces = (elements(gate) / PIECE) as i64;
    gpu.enqueue([gate, up, y], move |stream, [gate, up, y]| {
        let arguments = arguments![gate, up, y, pieces];
        kernel.launch(stream, grid(pieces), THREADS, arguments)
    });
}

pub(super) fn swiglu_backward(gpu: &Arc<Gpu>, call: &SwigluBackward) {
    let SwigluBackward { dy, gate, up, dgate, dup } = call;
    let kernel = gpu.kernel(&source(), "swiglu_backward", 0);
    let pieces = (elements(gate) / PIECE) as i64;
    gpu.enqueue([dy, gate, up, dgate, dup], move |stream, [dy, gate, up, dgate, dup]| {
        let arguments = arguments![dy, gate, up, dgate, dup, pieces];
        kernel.launch(stream, grid(pieces), THREADS, arguments)
    });
}

pub(super) fn rotate(gpu: &Arc<Gpu>, call: &Rotation) {
    let Rotation { x, cos, sin, y, direction, time, heads, head_dim, .. } = call;
    let kernel = gpu.kernel(&source(), "rotate", 0);
    let direction = *direction;
    let [time, heads, half] = [*time, *heads, head_dim / 2 / PIECE].map(|n| n as i32);
    let pieces = (elements(x) / PIECE / 2) as i64;
    gpu.enqueue([x, cos, sin, y], move |stream, [x, cos, sin, y]| {
        let arguments = arguments![x, cos, sin, y, time, heads, half, direction, pieces];
        kernel.launch(stream, grid(pieces), THREADS, arguments)
    });
}
