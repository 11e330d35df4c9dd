//! Low-rank adapter of a linear layer: `a` (r, in), `b` (out, r), the scale s = alpha / r. Derivation:
//! `docs/backward/lora.md`.
//!
//! ```text
//! u   = s x aᵀ
//! y  += u bᵀ
//!
//! du  = s dy b
//! da += duᵀ x
//! db += dyᵀ u
//! dx += du a
//! ```
//!
//! u is computed again in the backward pass: it costs r/out of the layer's own product and would have to
//! be kept for every adapter otherwise.

use burn::tensor::Tensor;

use super::linear::{
    linear_backward, linear_backward_add, linear_forward, linear_residual_forward,
};

/// The two factors of an adapter, and the scale of their product.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// A, (r, in).
    pub a: Tensor<2>,
    /// B, (out, r).
    pub b: Tensor<2>,
    /// s = alpha / r.
    pub scale: f64,
}

impl LoraPair {
    /// u (B, T, r), what b is multiplied with.
    fn low_rank(&self, x: &Tensor<3>) -> Tensor<3> {
        linear_forward(x, &self.a) * self.scale
    }
}

/// `y` (B, T, out) of the layer alone + s (`x` aᵀ) bᵀ, in the storage of `y` when nobody else holds it.
pub fn lora_forward(y: Tensor<3>, x: &Tensor<3>, pair: &LoraPair) -> Tensor<3> {
    linear_residual_forward(y, &pair.low_rank(x), &pair.b)
}

/// `dx` (B, T, in) of the layer alone + s dy b a; `grads` accumulates da and db.
pub fn lora_backward(
    dx: Tensor<3>,
    dy: &Tensor<3>,
    x: &Tensor<3>,
    pair: &LoraPair,
    grads: &mut LoraPair,
) -> Tensor<3> {
    let du = linear_backward(dy, &pair.low_rank(x), &pair.b, &mut grads.b) * pair.scale;
    linear_backward_add(dx, &du, x, &pair.a, &mut grads.a)
}

/// The op in plain tensor operations.
pub mod reference {
    use burn::tensor::Tensor;

    use super::super::{accumulate, wide};
    use super::LoraPair;

    /// See [`super::lora_forward`].
    pub fn forward(y: Tensor<3>, x: &Tensor<3>, pair: &LoraPair) -> Tensor<3> {
        let rows: Tensor<2> = wide(x).flatten(0, 1);
        let u = rows.matmul(wide(&pair.a).transpose()) * pair.scale;
        let shape = y.dims();
        y + u.matmul(wide(&pair.b).transpose()).reshape(shape).cast(x.dtype())
    }

    /// See [`super::lora_backward`].
    pub fn backward(
        dx: Tensor<3>,
        dy: &Tensor<3>,
        x: &Tensor<3>,
        pair: &LoraPair,
        grads: &mut LoraPair,
    ) -> Tensor<3> {
        let dy_rows: Tensor<2> = wide(dy).flatten(0, 1);
        let x_rows: Tensor<2> = wide(x).flatten(0, 1);
        let u = x_rows.clone().matmul(wide(&pair.a).transpose()) * pair.scale;
        let du = dy_rows.clone().matmul(wide(&pair.b)) * pair.scale;
        accumulate(&mut grads.b, dy_rows.transpose().matmul(u));
        accumulate(&mut grads.a, du.clone().transpose().matmul(x_rows));
        let shape = dx.dims();
        dx + du.matmul(wide(&pair.a)).reshape(shape).cast(x.dtype())
    }
}
