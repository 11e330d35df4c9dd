//! Gradients of what several ranks hold.
//!
//! A rank adds up what its own tokens and its own query heads give. Of a parameter that it shares
//! with others that is a part of the gradient, and the sum over the holders is the whole: of norm
//! gains over all tensor ranks where these split the tokens, of k_proj and v_proj over the ranks
//! with the same head. Sums are the same bits on every holder, so copies of a weight stay equal.

use burn::tensor::Tensor;

use super::group::{Group, Pending, TensorGroup};
use crate::error::Result;
use crate::param_tree::{Leaf, ParamTree};

/// Gradients of a rank's parts.
type Grads = ParamTree<Tensor<1>, Tensor<2>>;

/// Completes the gradients of the norm gains, in one exchange. Without sequence parallelism they
/// are complete.
///
/// # Errors
/// As [`Pending::wait`].
pub fn sum_gain_gradients(grads: &mut Grads, tensor: &TensorGroup) -> Result<()> {
    if !tensor.splits_tokens() {
        return Ok(());
    }
    let parts: Vec<Tensor<1>> = gains(grads).map(|gain| gain.clone()).collect();
    let sums = tensor.group().start_all_reduce(Tensor::cat(parts, 0)).wait()?;
    let (device, dtype) = (sums.device(), sums.dtype());
    let mut start = 0;
    for gain in gains(grads) {
        let count = gain.dims()[0];
        // Storage of its own, which the next step adds to in place.
        let sum = sums.clone().narrow(0, start, count).into_data();
        *gain = Tensor::from_data(sum, (&device, dtype));
        start += count;
    }
    Ok(())
}

fn gains(grads: &mut Grads) -> impl Iterator<Item = &mut Tensor<1>> {
    grads.iter_mut().filter_map(|(_, leaf)| match leaf {
        Leaf::Vector(gain) => Some(gain),
        Leaf::Matrix(_) => None,
    })
}

/// Completes the gradients of k_proj and v_proj over `holders`, the ranks with the same head: this
/// rank alone unless there are more tensor ranks than such heads.
///
/// # Errors
/// As [`Pending::wait`].
pub fn sum_kv_gradients(grads: &mut Grads, holders: &Group) -> Result<()> {
    let layers = grads.layers.iter_mut();
    let matrices = layers.flat_map(|layer| [&mut layer.k_proj, &mut layer.v_proj]);
    let exchanges: Vec<(&mut Tensor<2>, Pending<Tensor<2>>)> = matrices
        .map(|matrix| {
            let sum = holders.start_all_reduce(matrix.extract());
            (matrix, sum)
        })
        .collect();
    for (matrix, sum) in exchanges {
        *matrix = sum.wait()?;
    }
    Ok(())
}
