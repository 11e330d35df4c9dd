//! RMSNorm, with the residual connection before it and the gradient of the residual stream after it.

mod cubecl;
mod cuda;
#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::elementwise;
use super::engine::{Call, Engine};
use super::tensor::{accumulator, contiguous, dims, new, new_like, rows_and_width};

/// `y` (…, C) and `rstd` (…) of `x` (…, C) and `weight` (C).
struct Forward {
    x: CubeTensor,
    weight: CubeTensor,
    y: CubeTensor,
    rstd: CubeTensor,
    eps: f64,
}

impl Forward {
    /// With new tensors for the results, of contiguous `x` and `weight`.
    fn new(x: CubeTensor, weight: CubeTensor, eps: f64) -> Self {
        let shape = dims(&x);
        let y = new_like(&x);
        let rstd = new(&x, &shape[..shape.len() - 1], DType::F32);
        Self { x, weight, y, rstd, eps }
    }
}

/// `dx` (…, C) of `dy` (…, C), and `dweight` (C) added to.
struct Backward {
    dy: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
    rstd: CubeTensor,
    dx: CubeTensor,
    dweight: CubeTensor,
}

/// Any of the passes over the rows of this tensor.
struct Rows<'a>(&'a CubeTensor);

impl Call for Rows<'_> {
    fn tensor(&self) -> &CubeTensor {
        self.0
    }

    /// In bf16, of a width whose rows fit the registers.
    fn suits_cuda(&self) -> bool {
        let (_, channels) = rows_and_width(self.0);
        self.0.dtype == DType::BF16 && channels <= cuda::WIDEST && channels.is_multiple_of(8)
    }
}

/// (y, rstd) of `x`.
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, eps: f64) -> (CubeTensor, CubeTensor) {
    let call = Forward::new(contiguous(x), contiguous(weight), eps);
    let (y, rstd) = (call.y.clone(), call.rstd.clone());
    match Engine::for_op(&Rows(&call.x)) {
        Engine::Cuda(gpu) => cuda::forward(&gpu, &call, None),
        Engine::CubeCl => cubecl::forward(call),
    }
    (y, rstd)
}

/// (x + branch, y, rstd).
pub(super) fn residual_forward(
    x: CubeTensor,
    branch: CubeTensor,
    weight: CubeTensor,
    eps: f64,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (x, branch, weight) = (contiguous(x), contiguous(branch), contiguous(weight));
    match Engine::for_op(&Rows(&x)) {
        Engine::Cuda(gpu) => {
            let h = new_like(&x);
            let call = Forward::new(x, weight, eps);
            cuda::forward(&gpu, &call, Some((&branch, &h)));
            (h, call.y, call.rstd)
        }
        Engine::CubeCl => {
            let h = elementwise::residual_forward(x, branch);
            let (y, rstd) = forward(h.clone(), weight, eps);
            (h, y, rstd)
        }
    }
}

/// (dx, dweight accumulated).
pub(super) fn backward(
    dy: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
    rstd: CubeTensor,
    dweight: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let dweight = accumulator(dweight, "rms_norm_backward");
    let [dy, x, weight, rstd] = [dy, x, weight, rstd].map(contiguous);
    let dx = new_like(&x);
    let call = Backward { dy, x, weight, rstd, dx: dx.clone(), dweight: dweight.clone() };
    match Engine::for_op(&Rows(&call.x)) {
        Engine::Cuda(gpu) => cuda::backward(&gpu, &call, None),
        Engine::CubeCl => cubecl::backward(call),
    }
    (dx, dweight)
}

/// (dstream + dx, dweight accumulated).
pub(super) fn residual_backward(
    dstream: CubeTensor,
    dy: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
    rstd: CubeTensor,
    dweight: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let dweight = accumulator(dweight, "residual_rms_norm_backward");
    let [dstream, dy, x, weight, rstd] = [dstream, dy, x, weight, rstd].map(contiguous);
    match Engine::for_op(&Rows(&x)) {
        Engine::Cuda(gpu) => {
            let dx = if dstream.can_mut() { dstream.clone() } else { new_like(&x) };
            let call = Backward { dy, x, weight, rstd, dx, dweight };
            cuda::backward(&gpu, &call, Some(&dstream));
            (call.dx, call.dweight)
        }
        Engine::CubeCl => {
            let (dx, dweight) = backward(dy, x, weight, rstd, dweight);
            (elementwise::residual_forward(dstream, dx), dweight)
        }
    }
}
