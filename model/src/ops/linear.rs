//! Linear layer without bias, `w` stored (out, in) as PyTorch does. Derivation:
//! `docs/backward/linear.md`.
//!
//! ```text
//! y   = x wᵀ
//!
//! dx  = dy w
//! dw += dyᵀ x
//! ```

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::fast;
use crate::backend::TransformerOps;

/// A matrix (out, in) in whatever form a forward pass multiplies by.
pub trait LinearWeight {
    /// `x` (B, T, in) · `self`ᵀ: (B, T, out).
    fn forward(&self, x: &Tensor<3>) -> Tensor<3>;
}

impl LinearWeight for Tensor<2> {
    fn forward(&self, x: &Tensor<3>) -> Tensor<3> {
        linear_forward(x, self)
    }
}

/// `x` (B, T, in) · `weight` (out, in)ᵀ: (B, T, out).
pub fn linear_forward(x: &Tensor<3>, weight: &Tensor<2>) -> Tensor<3> {
    if !fast(x) {
        return reference::forward(x, weight);
    }
    Tensor::from_dispatch(Dispatch::linear_forward(
        x.clone().into_dispatch(),
        weight.clone().into_dispatch(),
    ))
}

/// A layer that ends in a residual stream: `residual` (B, T, out) + `x` (B, T, in) wᵀ, in the storage
/// of `residual` when nobody else holds it. The gradient of the stream passes unchanged; those of `x`
/// and w are [`linear_backward`]'s.
pub fn linear_residual_forward(
    residual: Tensor<3>,
    x: &Tensor<3>,
    weight: &Tensor<2>,
) -> Tensor<3> {
    if !fast(x) {
        return residual + reference::forward(x, weight);
    }
    Tensor::from_dispatch(Dispatch::linear_residual_forward(
        residual.into_dispatch(),
        x.clone().into_dispatch(),
        weight.clone().into_dispatch(),
    ))
}

/// dx (B, T, in) of `dy` (B, T, out); `dweight` (out, in) += dyᵀ x.
pub fn linear_backward(
    dy: &Tensor<3>,
    x: &Tensor<3>,
    weight: &Tensor<2>,
    dweight: &mut Tensor<2>,
) -> Tensor<3> {
    if !fast(x) {
        return reference::backward(dy, x, weight, dweight);
    }
    linear_backward_weight(dy, x, dweight);
    linear_backward_input(dy, weight)
}

/// The dx (B, T, in) of [`linear_backward`] alone, for a weight that stays.
pub fn linear_backward_input(dy: &Tensor<3>, weight: &Tensor<2>) -> Tensor<3> {
    if !fast(dy) {
        return reference::backward_input(dy, weight);
    }
    Tensor::from_dispatch(Dispatch::linear_backward_input(
        dy.clone().into_dispatch(),
        weight.clone().into_dispatch(),
    ))
}

/// [`linear_backward`] of one of several layers with the same input: `dx` (B, T, in) + dy w, in the
/// storage of `dx` when nobody else holds it.
pub fn linear_backward_add(
    dx: Tensor<3>,
    dy: &Tensor<3>,
    x: &Tensor<3>,
    weight: &Tensor<2>,
    dweight: &mut Tensor<2>,
) -> Tensor<3> {
    if !fast(x) {
        return dx + reference::backward(dy, x, weight, dweight);
    }
    linear_backward_weight(dy, x, dweight);
    linear_backward_input_add(dx, dy, weight)
}

/// The dx of [`linear_backward_add`] alone, for a weight that stays.
pub fn linear_backward_input_add(dx: Tensor<3>, dy: &Tensor<3>, weight: &Tensor<2>) -> Tensor<3> {
    if !fast(dy) {
        return dx + reference::backward_input(dy, weight);
    }
    Tensor::from_dispatch(Dispatch::linear_backward_input_add(
        dx.into_dispatch(),
        dy.clone().into_dispatch(),
        weight.clone().into_dispatch(),
    ))
}

/// The `dweight` (out, in) += dyᵀ x of [`linear_backward`] alone.
pub fn linear_backward_weight(dy: &Tensor<3>, x: &Tensor<3>, dweight: &mut Tensor<2>) {
    if !fast(x) {
        return reference::backward_weight(dy, x, dweight);
    }
    dweight.inplace(|dweight| {
        Tensor::from_dispatch(Dispatch::linear_backward_weight(
            dweight.into_dispatch(),
            dy.clone().into_dispatch(),
            x.clone().into_dispatch(),
        ))
    });
}

/// The op in plain tensor operations.
pub mod reference {
    use burn::tensor::Tensor;

    use super::super::{accumulate, wide};

    /// See [`super::linear_forward`].
    pub fn forward(x: &Tensor<3>, weight: &Tensor<2>) -> Tensor<3> {
        let [batch, time, _] = x.dims();
        let [outputs, _] = weight.dims();
        let rows: Tensor<2> = wide(x).flatten(0, 1);
        rows.matmul(wide(weight).transpose()).reshape([batch, time, outputs]).cast(x.dtype())
    }

    /// See [`super::linear_backward`].
    pub fn backward(
        dy: &Tensor<3>,
        x: &Tensor<3>,
        weight: &Tensor<2>,
        dweight: &mut Tensor<2>,
    ) -> Tensor<3> {
        backward_weight(dy, x, dweight);
        backward_input(dy, weight)
    }

    /// See [`super::linear_backward_weight`].
    pub fn backward_weight(dy: &Tensor<3>, x: &Tensor<3>, dweight: &mut Tensor<2>) {
        let dy_rows: Tensor<2> = wide(dy).flatten(0, 1);
        let x_rows: Tensor<2> = wide(x).flatten(0, 1);
        accumulate(dweight, dy_rows.transpose().matmul(x_rows));
    }

    /// See [`super::linear_backward_input`].
    pub fn backward_input(dy: &Tensor<3>, weight: &Tensor<2>) -> Tensor<3> {
        let [batch, time, _] = dy.dims();
        let [_, inputs] = weight.dims();
        let dy_rows: Tensor<2> = wide(dy).flatten(0, 1);
        dy_rows.matmul(wide(weight)).reshape([batch, time, inputs]).cast(dy.dtype())
    }
}
