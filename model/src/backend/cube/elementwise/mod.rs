//! Ops that take their tensors element by element: the residual sum, SwiGLU, RoPE; zeroing, and
//! writing rows into a tensor.

mod cubecl;
mod cuda;
#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

pub(super) use self::cubecl::{write_at, zero};
use super::engine::{Call, Engine};
use super::tensor::{accumulator, contiguous, dims, elements, new_like};

/// Elements of a piece, the 16 bytes of bf16 that a thread of the CUDA kernels takes.
const PIECE: usize = 8;

/// Whether `x` is in bf16 and made of whole pieces.
fn is_whole_pieces(x: &CubeTensor) -> bool {
    x.dtype == DType::BF16 && elements(x).is_multiple_of(PIECE)
}

/// The tensor for a result of the shape of `x`: `x` itself where nothing else holds its storage.
fn reused(x: &CubeTensor) -> (CubeTensor, bool) {
    if x.can_mut() { (x.clone(), true) } else { (new_like(x), false) }
}

/// `y` = `x` + `branch`.
struct Residual {
    x: CubeTensor,
    branch: CubeTensor,
    y: CubeTensor,
    /// Whether `y` is `x`.
    in_place: bool,
}

impl Call for Residual {
    fn tensor(&self) -> &CubeTensor {
        &self.x
    }

    fn suits_cuda(&self) -> bool {
        is_whole_pieces(&self.x)
    }
}

pub(super) fn residual_forward(x: CubeTensor, branch: CubeTensor) -> CubeTensor {
    let (x, branch) = (contiguous(x), contiguous(branch));
    let (y, in_place) = reused(&x);
    let call = Residual { x, branch, y: y.clone(), in_place };
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => cuda::residual(&gpu, &call),
        Engine::CubeCl => cubecl::residual(call),
    }
    y
}

/// `y`, `x` (B, T, H, D) rotated by the angles of `cos` and `sin` (T, D/2).
struct Rotation {
    x: CubeTensor,
    cos: CubeTensor,
    sin: CubeTensor,
    y: CubeTensor,
    /// Whether `y` is `x`.
    in_place: bool,
    /// 1 forward, −1 backward.
    direction: f32,
    time: usize,
    heads: usize,
    head_dim: usize,
}

impl Call for Rotation {
    fn tensor(&self) -> &CubeTensor {
        &self.x
    }

    fn suits_cuda(&self) -> bool {
        self.x.dtype == DType::BF16
            && self.cos.dtype == DType::F32
            && self.head_dim.is_multiple_of(2 * PIECE)
    }
}

fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, direction: f32) -> CubeTensor {
    let (x, cos, sin) = (contiguous(x), contiguous(cos), contiguous(sin));
    let [_, time, heads, head_dim] = dims(&x)[..] else { panic!("RoPE takes (B, T, H, D)") };
    let (y, in_place) = reused(&x);
    let call = Rotation { x, cos, sin, y: y.clone(), in_place, direction, time, heads, head_dim };
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => cuda::rotate(&gpu, &call),
        Engine::CubeCl => cubecl::rotate(call),
    }
    y
}

pub(super) fn rope_forward(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
    rotate(x, cos, sin, 1.0)
}

pub(super) fn rope_backward(dy: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
    rotate(dy, cos, sin, -1.0)
}

/// `y` = silu(`gate`) · `up`.
struct SwigluForward {
    gate: CubeTensor,
    up: CubeTensor,
    y: CubeTensor,
}

impl Call for SwigluForward {
    fn tensor(&self) -> &CubeTensor {
        &self.gate
    }

    fn suits_cuda(&self) -> bool {
        is_whole_pieces(&self.gate)
    }
}

pub(super) fn swiglu_forward(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let (gate, up) = (contiguous(gate), contiguous(up));
    let y = new_like(&gate);
    let call = SwigluForward { gate, up, y: y.clone() };
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => cuda::swiglu_forward(&gpu, &call),
        Engine::CubeCl => cubecl::swiglu_forward(call),
    }
    y
}

/// `dgate` and `dup` of `dy`.
struct SwigluBackward {
    dy: CubeTensor,
    gate: CubeTensor,
    up: CubeTensor,
    dgate: CubeTensor,
    dup: CubeTensor,
}

impl Call for SwigluBackward {
    fn tensor(&self) -> &CubeTensor {
        &self.gate
    }

    fn suits_cuda(&self) -> bool {
        is_whole_pieces(&self.gate)
    }
}

pub(super) fn swiglu_backward(
    dy: CubeTensor,
    gate: CubeTensor,
    up: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let (dy, gate, up) = (contiguous(dy), contiguous(gate), contiguous(up));
    let (dgate, dup) = (new_like(&gate), new_like(&up));
    let call = SwigluBackward { dy, gate, up, dgate: dgate.clone(), dup: dup.clone() };
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => cuda::swiglu_backward(&gpu, &call),
        Engine::CubeCl => cubecl::swiglu_backward(call),
    }
    (dgate, dup)
}

pub(super) fn fill_zero(x: CubeTensor) -> CubeTensor {
    let x = accumulator(x, "fill_zero");
    zero(&x);
    x
}

pub(super) fn kv_cache_write(cache: CubeTensor, rows: CubeTensor, position: usize) -> CubeTensor {
    let (cache, rows) = (accumulator(cache, "kv_cache_write"), contiguous(rows));
    let width: usize = dims(&cache)[1..].iter().product();
    assert!(
        position * width + elements(&rows) <= elements(&cache),
        "kv_cache_write: {} rows at {position} go past the cache",
        dims(&rows)[0]
    );
    write_at(&rows, &cache, position * width);
    cache
}
