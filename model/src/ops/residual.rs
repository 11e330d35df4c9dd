//! Residual connection. Derivation: `docs/backward/residual.md`.
//!
//! ```text
//! y       = x + branch
//!
//! dx      = dy
//! dbranch = dy
//! ```
//!
//! Where the branch left the stream its gradient is added to the stream's, so the backward pass is
//! the same addition. A layer does it inside its neighbours, which saves passes over memory:
//! [`super::residual_rms_norm_forward`], [`super::residual_rms_norm_backward`] and
//! [`super::linear_residual_forward`]. Generation ends a layer with the op here.

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::fast;
use crate::backend::TransformerOps;

/// `x` + `branch`, both (B, T, C); written into the storage of `x` when nobody else holds it.
pub fn residual_forward(x: Tensor<3>, branch: &Tensor<3>) -> Tensor<3> {
    if !fast(&x) {
        return x + branch.clone();
    }
    Tensor::from_dispatch(Dispatch::residual_forward(
        x.into_dispatch(),
        branch.clone().into_dispatch(),
    ))
}
