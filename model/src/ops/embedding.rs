//! Embedding: a row of the table for each token. Derivation: `docs/backward/embedding.md`.
//!
//! ```text
//! y_m    = w[ids_m]
//!
//! dw[v] += Σ_{m : ids_m = v} dy_m
//! ```
//!
//! The sum runs in the order of m, whatever the number of threads.

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use super::fast;
use crate::backend::TransformerOps;

/// Rows of `weight` (V, C) picked by `ids` (B, T): (B, T, C).
pub fn embedding_forward(weight: &Tensor<2>, ids: &Tensor<2, Int>) -> Tensor<3> {
    if !fast(weight) {
        return reference::forward(weight, ids);
    }
    Tensor::from_dispatch(Dispatch::embedding_forward(
        weight.clone().into_dispatch(),
        ids.clone().into_dispatch(),
    ))
}

/// `dweight` (V, C) += `dy` (B, T, C) scattered by `ids` (B, T).
pub fn embedding_backward(dy: &Tensor<3>, ids: &Tensor<2, Int>, dweight: &mut Tensor<2>) {
    if !fast(dy) {
        return reference::backward(dy, ids, dweight);
    }
    dweight.inplace(|dweight| {
        Tensor::from_dispatch(Dispatch::embedding_backward(
            dweight.into_dispatch(),
            dy.clone().into_dispatch(),
            ids.clone().into_dispatch(),
        ))
    });
}

/// The op in plain tensor operations.
pub mod reference {
    use burn::tensor::{IndexingUpdateOp, Int, Tensor};

    /// See [`super::embedding_forward`].
    pub fn forward(weight: &Tensor<2>, ids: &Tensor<2, Int>) -> Tensor<3> {
        let [batch, time] = ids.dims();
        let [_, channels] = weight.dims();
        weight.clone().select(0, ids.clone().flatten(0, 1)).reshape([batch, time, channels])
    }

    /// See [`super::embedding_backward`].
    pub fn backward(dy: &Tensor<3>, ids: &Tensor<2, Int>, dweight: &mut Tensor<2>) {
        let dy = super::super::wide(dy).cast(dweight.dtype()).flatten(0, 1);
        let ids = ids.clone().flatten(0, 1);
        dweight.inplace(|dweight| dweight.select_assign(0, ids, dy, IndexingUpdateOp::Add));
    }
}
