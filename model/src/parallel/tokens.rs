//! The two op pairs that exchange activations between tensor ranks. Derivation:
//! `docs/backward/tokens.md`.
//!
//! ```text
//! gather   x  = x_0 ; x_1 ; …             every rank gets the tokens of all
//!          dx_r = rows r of Σ_ranks dx     every rank has used all of x
//!
//! sum      y_r  = rows r of Σ_ranks y      partial sums over a split dimension are completed
//!          dy = dy_0 ; dy_1 ; …
//! ```
//!
//! Each is the transpose of the other: the backward pass of one is the exchange of the other. A *share*
//! is a rank's rows of the (B·T, C) matrix, as a tensor (1, rows, C).
//!
//! Without sequence parallelism a share is everything: a gather is the identity forward and a sum
//! over ranks backward, a sum is a sum over ranks forward and the identity backward.

use burn::tensor::Tensor;

use super::group::{Pending, TensorGroup};
use crate::error::Result;
use crate::ops::{linear_forward, linear_residual_forward, residual_forward};

/// The tokens of a pass and the ranks that compute it together.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// The ranks.
    pub tensor: &'a TensorGroup,
    /// B and T of the whole micro-batch; not looked at on one rank.
    shape: [usize; 2],
}

impl<'a> Tokens<'a> {
    /// The tokens of a micro-batch of `shape` (B, T).
    pub fn new(tensor: &'a TensorGroup, shape: [usize; 2]) -> Self {
        Self { tensor, shape }
    }

    /// B · T.
    fn count(&self) -> usize {
        self.shape[0] * self.shape[1]
    }
}

impl Tokens<'static> {
    /// Whatever tokens a process that computes alone is given.
    pub fn on_one_rank() -> Self {
        Self::new(TensorGroup::one_rank(), [0, 0])
    }
}

/// The share `x` (1, rows, C) of this rank: the tokens of all ranks, (B, T, C).
pub fn gather_tokens_forward(x: &Tensor<3>, tokens: &Tokens) -> Pending<Tensor<3>> {
    shares_to_all(x, tokens)
}

/// `dx` (B, T, C), what this rank's use of all tokens gives: the gradient of its share, (1, rows, C).
pub fn gather_tokens_backward(dx: Tensor<3>, tokens: &Tokens) -> Pending<Tensor<3>> {
    sum_to_shares(dx, tokens)
}

/// `y` (B, T, C), a partial sum: this rank's share of the sum over ranks, (1, rows, C).
pub fn sum_tokens_forward(y: Tensor<3>, tokens: &Tokens) -> Pending<Tensor<3>> {
    sum_to_shares(y, tokens)
}

/// `dy` (1, rows, C), the gradient of this rank's share of the sum: that of its partial sum, (B, T, C).
pub fn sum_tokens_backward(dy: &Tensor<3>, tokens: &Tokens) -> Pending<Tensor<3>> {
    shares_to_all(dy, tokens)
}

/// The matrix that ends a half of a layer, of whose inputs this rank has a part: the share
/// `residual` (1, rows, C) + the sum over ranks of `x` (B, T, in) · `weight` (C, in)ᵀ. The residual
/// is added once, after the sum. The gradient of the sum is [`sum_tokens_backward`]'s; on one rank
/// it is all one op.
///
/// # Errors
/// As [`Pending::wait`].
pub fn linear_sum_residual_forward(
    residual: Tensor<3>,
    x: &Tensor<3>,
    weight: &Tensor<2>,
    tokens: &Tokens,
) -> Result<Tensor<3>> {
    if tokens.tensor.is_single() {
        return Ok(linear_residual_forward(residual, x, weight));
    }
    let branch = sum_tokens_forward(linear_forward(x, weight), tokens).wait()?;
    Ok(residual_forward(residual, &branch))
}

fn shares_to_all(x: &Tensor<3>, tokens: &Tokens) -> Pending<Tensor<3>> {
    let (share, [batch, time]) = (x.clone(), tokens.shape);
    if !tokens.tensor.splits_tokens() {
        return Pending::done(share);
    }
    let channels = x.dims()[2];
    let gathered = tokens.tensor.exchange(|group| group.start_all_gather(share, tokens.count()));
    gathered.map(move |x| x.reshape([batch, time, channels]))
}

fn sum_to_shares(x: Tensor<3>, tokens: &Tokens) -> Pending<Tensor<3>> {
    if !tokens.tensor.splits_tokens() {
        return tokens.tensor.exchange(|group| group.start_all_reduce(x));
    }
    let channels = x.dims()[2];
    let rows = x.reshape([1, tokens.count(), channels]);
    tokens.tensor.exchange(|group| group.start_reduce_scatter(rows))
}
