//! Output head and cross entropy in one. Derivation: `docs/backward/head_cross_entropy.md`.
//!
//! ```text
//! z_m    = x_m wᵀ                                    V logits of token m
//! lse_m  = ln Σ_v exp(z_mv)
//! loss_m = lse_m − z_m[target_m]
//!
//! p_mv   = exp(z_mv − lse_m)
//! dz_mv  = scale (p_mv − [v = target_m])             of scale · Σ_m loss_m
//! dx     = dz w
//! dw    += dzᵀ x
//! ```
//!
//! The logits of all tokens would be the largest tensor of the whole step (B·T·V), so the kernels
//! work on chunks of tokens: logits of a chunk, its losses, its dz in the same storage, its part of
//! dx and dw. A negative target is ignored: loss 0, gradient 0.

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};

use super::fast;
use super::inference::head_logits;
use super::linear::linear_backward_input;
use crate::backend::TransformerOps;

/// The target of a position that takes no part in the loss (PyTorch's `ignore_index`).
pub const IGNORED_TARGET: i32 = -100;

/// `x` (B, T, C), `weight` (V, C), `targets` (B, T): losses (B, T) in nats, 0 where ignored.
pub fn head_cross_entropy_forward(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    targets: &Tensor<2, Int>,
) -> Tensor<2> {
    if !fast(x) {
        return reference::forward(x, weight, targets);
    }
    Tensor::from_dispatch(Dispatch::head_cross_entropy_forward(
        x.clone().into_dispatch(),
        weight.clone().into_dispatch(),
        targets.clone().into_dispatch(),
    ))
}

/// (losses (B, T), dx (B, T, C)) of `scale` · Σ losses; `dweight` (V, C) accumulates.
pub fn head_cross_entropy_backward(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    targets: &Tensor<2, Int>,
    scale: f64,
    dweight: &mut Tensor<2>,
) -> (Tensor<2>, Tensor<3>) {
    if !fast(x) {
        return reference::backward(x, weight, targets, scale, dweight);
    }
    let (losses, dx, sum) = Dispatch::head_cross_entropy_backward(
        x.clone().into_dispatch(),
        weight.clone().into_dispatch(),
        targets.clone().into_dispatch(),
        scale as f32,
        dweight.extract().into_dispatch(),
    );
    *dweight = Tensor::from_dispatch(sum);
    (Tensor::from_dispatch(losses), Tensor::from_dispatch(dx))
}

/// Rows of which [`head_cross_entropy_backward_input`] has the logits at a time.
const CHUNK_ROWS: usize = 256;

/// (losses (B, T), dx (B, T, C)) of `scale` · Σ losses, for a head that stays: no gradient of the weight,
/// which would be as large as the head.
pub fn head_cross_entropy_backward_input(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    targets: &Tensor<2, Int>,
    scale: f64,
) -> (Tensor<2>, Tensor<3>) {
    let [batch, time, width] = x.dims();
    let rows = batch * time;
    let (x, flat) = (x.clone().reshape([1, rows, width]), targets.clone().reshape([1, rows]));
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for begin in (0..rows).step_by(CHUNK_ROWS) {
        let end = rows.min(begin + CHUNK_ROWS);
        let (x, targets) =
            (x.clone().narrow(1, begin, end - begin), flat.clone().narrow(1, begin, end - begin));
        let (loss, dlogits) = reference::logit_gradients(&head_logits(&x, weight), &targets, scale);
        losses.push(loss);
        gradients.push(linear_backward_input(&dlogits.cast(x.dtype()), weight));
    }
    let losses = Tensor::cat(losses, 1).reshape([batch, time]);
    (losses, Tensor::cat(gradients, 1).reshape([batch, time, width]))
}

/// The op in plain tensor operations, with all logits at once.
pub mod reference {
    use burn::tensor::activation::log_softmax;
    use burn::tensor::{Int, Tensor};

    use super::super::{accumulate, wide};

    /// Log-probabilities (N, V), one-hot targets (N, V) with a zero row where ignored.
    fn log_probabilities(
        x: &Tensor<3>,
        weight: &Tensor<2>,
        targets: &Tensor<2, Int>,
    ) -> (Tensor<2>, Tensor<2>) {
        let rows: Tensor<2> = wide(x).flatten(0, 1);
        of_logits(rows.matmul(wide(weight).transpose()), targets)
    }

    /// (losses (B, T), gradient of the logits (B, T, V)) of `scale` · Σ losses.
    pub(super) fn logit_gradients(
        logits: &Tensor<3>,
        targets: &Tensor<2, Int>,
        scale: f64,
    ) -> (Tensor<2>, Tensor<3>) {
        let (log_p, one_hot) = of_logits(wide(logits).flatten(0, 1), targets);
        let losses = (log_p.clone() * one_hot.clone()).sum_dim(1).neg().reshape(targets.dims());
        let valid = one_hot.clone().sum_dim(1); // (N, 1): 0 where ignored
        let dlogits = (log_p.exp() * valid - one_hot) * scale;
        (losses, dlogits.reshape(logits.dims()))
    }

    fn of_logits(logits: Tensor<2>, targets: &Tensor<2, Int>) -> (Tensor<2>, Tensor<2>) {
        let [tokens, vocabulary] = logits.dims();
        let ids = Tensor::<1, Int>::arange(0..vocabulary as i64, &targets.device())
            .cast(targets.dtype())
            .reshape([1, vocabulary])
            .expand([tokens, vocabulary]);
        let targets = targets.clone().reshape([tokens, 1]).expand([tokens, vocabulary]);
        let one_hot = ids.equal(targets).float().cast(logits.dtype());
        (log_softmax(logits, 1), one_hot)
    }

    /// See [`super::head_cross_entropy_forward`].
    pub fn forward(x: &Tensor<3>, weight: &Tensor<2>, targets: &Tensor<2, Int>) -> Tensor<2> {
        let (log_p, one_hot) = log_probabilities(x, weight, targets);
        (log_p * one_hot).sum_dim(1).neg().reshape(targets.dims())
    }

    /// See [`super::head_cross_entropy_backward`].
    pub fn backward(
        x: &Tensor<3>,
        weight: &Tensor<2>,
        targets: &Tensor<2, Int>,
        scale: f64,
        dweight: &mut Tensor<2>,
    ) -> (Tensor<2>, Tensor<3>) {
        let (log_p, one_hot) = log_probabilities(x, weight, targets);
        let losses = (log_p.clone() * one_hot.clone()).sum_dim(1).neg().reshape(targets.dims());
        let valid = one_hot.clone().sum_dim(1); // (N, 1): 0 where ignored
        let dlogits = (log_p.exp() * valid - one_hot) * scale;
        let rows: Tensor<2> = wide(x).flatten(0, 1);
        accumulate(dweight, dlogits.clone().transpose().matmul(rows));
        let dx = dlogits.matmul(wide(weight)).reshape(x.dims()).cast(x.dtype());
        (losses, dx)
    }
}
