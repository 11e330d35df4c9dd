//! Σ x², the piece of the global gradient norm, and zeroing of accumulators.

use burn::backend::Dispatch;
use burn::tensor::{DType, ElementConversion, Tensor};

use super::fast;
use crate::backend::TransformerOps;

/// Σ x² in f64, in an order that does not depend on the number of threads.
pub fn sum_of_squares<const D: usize>(x: &Tensor<D>) -> f64 {
    if !fast(x) {
        return x.clone().cast(DType::F64).square().sum().into_scalar::<f64>().elem();
    }
    let sum: Tensor<1> = Tensor::from_dispatch(Dispatch::sum_of_squares(x.clone().into_dispatch()));
    sum.into_scalar::<f64>()
}

/// Sets every element of an accumulator to zero, in place.
pub fn fill_zero<const D: usize>(x: &mut Tensor<D>) {
    if !fast(x) {
        return x.inplace(|x| x.zeros_like());
    }
    x.inplace(|x| Tensor::from_dispatch(Dispatch::fill_zero(x.into_dispatch())));
}
