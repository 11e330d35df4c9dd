//! Residual connection: y = x + branch(x).
//!
//! The gradient flows both ways unchanged: the stream receives dy, and so does the branch, whose
//! own input gradient is added to the stream where the branch left it: dx = dy + dbranch_input.
//! The backward pass is therefore the same addition. A layer in training has both inside its
//! neighbours: [`super::residual_rms_norm_forward`], [`super::residual_rms_norm_backward`] and
//! [`super::linear_residual_forward`]; with a cache of keys and values it adds here.

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
