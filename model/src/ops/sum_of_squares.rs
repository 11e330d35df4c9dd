//! Σ x², the piece of the global gradient norm, and zeroing of accumulators.

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use super::fast;
use crate::backend::TransformerOps;

/// Σ x² as numbers to be added in f64, left on the device; [`totals`] reads many at once. The
/// order of the sum does not depend on the number of threads.
pub fn sum_of_squares<const D: usize>(x: &Tensor<D>) -> Tensor<1> {
    if !fast(x) {
        return x.clone().cast(DType::F64).square().sum();
    }
    Tensor::from_dispatch(Dispatch::sum_of_squares(x.clone().into_dispatch()))
}

/// The sums of [`sum_of_squares`] on the host: one transfer for all, so a device works on without
/// waiting until the last is asked for.
pub fn totals(sums: Vec<Tensor<1>>) -> Vec<f64> {
    let Some(first) = sums.first() else { return Vec::new() };
    let [pieces] = first.dims();
    let values: Vec<f64> = Tensor::cat(sums, 0).into_data().iter::<f64>().collect();
    values.chunks(pieces).map(|pieces| pieces.iter().sum()).collect()
}

/// Sets every element of an accumulator to zero, in place.
pub fn fill_zero<const D: usize>(x: &mut Tensor<D>) {
    if !fast(x) {
        return x.inplace(|x| x.zeros_like());
    }
    x.inplace(|x| Tensor::from_dispatch(Dispatch::fill_zero(x.into_dispatch())));
}
