//! RMSNorm (Zhang and Sennrich 2019). Derivation: `docs/backward/rms_norm.md`.
//!
//! ```text
//! r   = 1 / √(mean(x²) + ε)      "rstd", one number per row of C
//! x̂   = r x
//! y   = w ∘ x̂
//!
//! dx̂  = w ∘ dy
//! s   = mean(dx̂ ∘ x̂)             one number per row
//! dx  = r (dx̂ − s x̂)
//! dw += Σ_rows dy ∘ x̂
//! ```
//!
//! r, s and both sums are f32 whatever the type of the activations.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::fast;
use crate::backend::TransformerOps;

/// `x` (B, T, C), `weight` (C): (y (B, T, C), rstd (B, T)).
pub fn rms_norm_forward(x: &Tensor<3>, weight: &Tensor<1>, eps: f64) -> (Tensor<3>, Tensor<2>) {
    if !fast(x) {
        return reference::forward(x, weight, eps);
    }
    let (y, rstd) =
        Dispatch::rms_norm_forward(x.clone().into_dispatch(), weight.clone().into_dispatch(), eps);
    (Tensor::from_dispatch(y), Tensor::from_dispatch(rstd))
}

/// dx (B, T, C); `dweight` (C) accumulates.
pub fn rms_norm_backward(
    dy: &Tensor<3>,
    x: &Tensor<3>,
    weight: &Tensor<1>,
    rstd: &Tensor<2>,
    dweight: &mut Tensor<1>,
) -> Tensor<3> {
    if !fast(x) {
        return reference::backward(dy, x, weight, rstd, dweight);
    }
    let (dx, sum) = Dispatch::rms_norm_backward(
        dy.clone().into_dispatch(),
        x.clone().into_dispatch(),
        weight.clone().into_dispatch(),
        rstd.clone().into_dispatch(),
        dweight.extract().into_dispatch(),
    );
    *dweight = Tensor::from_dispatch(sum);
    Tensor::from_dispatch(dx)
}

/// The residual connection and the norm after it, in one pass over memory: `x`, `branch` (B, T, C),
/// `weight` (C): (h = x + branch, rms_norm(h), both (B, T, C), rstd (B, T)).
pub fn residual_rms_norm_forward(
    x: &Tensor<3>,
    branch: &Tensor<3>,
    weight: &Tensor<1>,
    eps: f64,
) -> (Tensor<3>, Tensor<3>, Tensor<2>) {
    if !fast(x) {
        let h = x.clone() + branch.clone();
        let (y, rstd) = reference::forward(&h, weight, eps);
        return (h, y, rstd);
    }
    let (h, y, rstd) = Dispatch::residual_rms_norm_forward(
        x.clone().into_dispatch(),
        branch.clone().into_dispatch(),
        weight.clone().into_dispatch(),
        eps,
    );
    (Tensor::from_dispatch(h), Tensor::from_dispatch(y), Tensor::from_dispatch(rstd))
}

/// The backward pass of a norm on a branch and of the connection the branch leaves: the stream's
/// gradient `dstream` (B, T, C) passes and gains [`rms_norm_backward`]. In the storage of `dstream`
/// when nobody else holds it.
pub fn residual_rms_norm_backward(
    dstream: Tensor<3>,
    dy: &Tensor<3>,
    x: &Tensor<3>,
    weight: &Tensor<1>,
    rstd: &Tensor<2>,
    dweight: &mut Tensor<1>,
) -> Tensor<3> {
    if !fast(x) {
        return dstream + reference::backward(dy, x, weight, rstd, dweight);
    }
    let (dx, sum) = Dispatch::residual_rms_norm_backward(
        dstream.into_dispatch(),
        dy.clone().into_dispatch(),
        x.clone().into_dispatch(),
        weight.clone().into_dispatch(),
        rstd.clone().into_dispatch(),
        dweight.extract().into_dispatch(),
    );
    *dweight = Tensor::from_dispatch(sum);
    Tensor::from_dispatch(dx)
}

/// The op in plain tensor operations.
pub mod reference {
    use burn::tensor::Tensor;

    use super::super::{accumulate, wide};

    /// See [`super::rms_norm_forward`].
    pub fn forward(x: &Tensor<3>, weight: &Tensor<1>, eps: f64) -> (Tensor<3>, Tensor<2>) {
        let wide_x = wide(x);
        let rstd = wide_x.clone().square().mean_dim(2).add_scalar(eps).sqrt().recip(); // (B, T, 1)
        let y = wide_x * rstd.clone() * weight.clone().unsqueeze::<3>();
        (y.cast(x.dtype()), rstd.squeeze_dim(2))
    }

    /// See [`super::rms_norm_backward`].
    pub fn backward(
        dy: &Tensor<3>,
        x: &Tensor<3>,
        weight: &Tensor<1>,
        rstd: &Tensor<2>,
        dweight: &mut Tensor<1>,
    ) -> Tensor<3> {
        let dy = wide(dy);
        let rstd: Tensor<3> = rstd.clone().unsqueeze_dim(2); // (B, T, 1)
        let x_hat = wide(x) * rstd.clone();
        let rows: Tensor<2> = (dy.clone() * x_hat.clone()).flatten(0, 1);
        accumulate(dweight, rows.sum_dim(0).squeeze_dim(0));
        let dx_hat = dy * weight.clone().unsqueeze::<3>();
        let s = (dx_hat.clone() * x_hat.clone()).mean_dim(2);
        ((dx_hat - x_hat * s) * rstd).cast(x.dtype())
    }
}
