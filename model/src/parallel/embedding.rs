//! Token embedding whose vocabulary is split over the tensor ranks by words.
//!
//! ```text
//! y_m    = Σ_ranks [ids_m is a word of the rank] w[ids_m]       one summand is not zero
//!
//! dw[v] += Σ_{m : ids_m = v} dy_m                                for the words v of the rank
//! ```
//!
//! The sum is exact, since it adds zeros to one row. The backward pass gathers dy and adds rows in
//! the order of m, as on one rank.

use std::ops::Range;

use burn::tensor::{Bool, Int, Tensor};

use super::tokens::{Tokens, sum_tokens_backward, sum_tokens_forward};
use crate::error::Result;
use crate::ops::{embedding_backward, embedding_forward};

/// Rows of the embedding picked by `ids` (B, T), of which `weight` (V/t, C) holds those of `words`:
/// this rank's share, (1, rows, C).
///
/// # Errors
/// As [`Pending::wait`](super::Pending::wait).
pub fn vocab_parallel_embedding_forward(
    weight: &Tensor<2>,
    ids: &Tensor<2, Int>,
    words: &Range<usize>,
    tokens: &Tokens,
) -> Result<Tensor<3>> {
    if tokens.tensor.is_single() {
        return Ok(embedding_forward(weight, ids));
    }
    let (ids, elsewhere) = own_ids(ids, words);
    let y = embedding_forward(weight, &ids);
    let elsewhere = elsewhere.unsqueeze_dim::<3>(2).expand(y.dims());
    sum_tokens_forward(y.mask_fill(elsewhere, 0.0), tokens).wait()
}

/// `dweight` (V/t, C) += the gradients of the tokens `ids` (B, T) that are `words` of this rank, of
/// whose gradients it has the share `dy` (1, rows, C).
///
/// # Errors
/// As [`Pending::wait`](super::Pending::wait).
pub fn vocab_parallel_embedding_backward(
    dy: &Tensor<3>,
    ids: &Tensor<2, Int>,
    dweight: &mut Tensor<2>,
    words: &Range<usize>,
    tokens: &Tokens,
) -> Result<()> {
    let dy = sum_tokens_backward(dy, tokens).wait()?;
    if tokens.tensor.is_single() {
        embedding_backward(&dy, ids, dweight);
        return Ok(());
    }
    let (ids, elsewhere) = own_ids(ids, words);
    let elsewhere = elsewhere.unsqueeze_dim::<3>(2).expand(dy.dims());
    embedding_backward(&dy.mask_fill(elsewhere, 0.0), &ids, dweight);
    Ok(())
}

/// The places of `ids` among `words`, 0 for another rank's; and which are another rank's.
fn own_ids(ids: &Tensor<2, Int>, words: &Range<usize>) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    let (start, end) = (words.start as i32, words.end as i32);
    let before = ids.clone().lower_elem(start);
    let elsewhere = before.bool_or(ids.clone().greater_equal_elem(end));
    ((ids.clone() - start).mask_fill(elsewhere.clone(), 0), elsewhere)
}
