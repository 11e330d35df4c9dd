//! Ops over all parameters at once: AdamW, the squares of the gradient norm, zeroing.
//!
//! On NVIDIA GPUs each is a few launches whatever the number of parameters. Elsewhere it is the op
//! of [`crate::ops`] on one parameter after the other; for CPU kernels a parameter is work enough.

use burn::tensor::{DType, Tensor};

use crate::backend::AdamWStep;
use crate::ops;
use crate::params::{Param, ParamMut, Params};

/// One AdamW step: `masters`, `m` and `v` change in place, `grads` is read. Norm gains do not decay.
///
/// `weights`, which the forward pass reads, becomes the copy of `masters` in its own precision: bf16
/// matrices are written in the same pass over memory, and an f32 weight is the master itself under
/// another handle.
pub fn adamw_step(
    masters: &mut Params,
    weights: &mut Params,
    m: &mut Params,
    v: &mut Params,
    grads: &Params,
    hyper: &AdamWStep,
) {
    // A master that is shared could not be changed in place.
    let is_copy: Vec<bool> = weights
        .named_mut()
        .into_iter()
        .map(|(_, weight)| match weight {
            ParamMut::Vector(weight) => let_go_of_master(weight),
            ParamMut::Matrix(weight) => let_go_of_master(weight),
        })
        .collect();
    #[cfg(feature = "cuda")]
    let done = cuda::adamw_step([masters, weights, m, v], grads, &is_copy, hyper);
    #[cfg(not(feature = "cuda"))]
    let done = false;
    let trees = masters
        .named_mut()
        .into_iter()
        .zip(weights.named_mut())
        .zip(m.named_mut().into_iter().zip(v.named_mut()))
        .zip(grads.named().into_iter().zip(is_copy));
    let gains = AdamWStep { weight_decay: 0.0, ..*hyper };
    let [gains, matrices] = [&gains, hyper].map(|hyper| (!done).then_some(hyper));
    for ((((_, master), (_, weight)), ((_, m), (_, v))), ((_, grad), is_copy)) in trees {
        match (master, weight, m, v, grad) {
            (
                ParamMut::Vector(master),
                ParamMut::Vector(weight),
                ParamMut::Vector(m),
                ParamMut::Vector(v),
                Param::Vector(grad),
            ) => update([master, weight, m, v], grad, is_copy, gains),
            (
                ParamMut::Matrix(master),
                ParamMut::Matrix(weight),
                ParamMut::Matrix(m),
                ParamMut::Matrix(v),
                Param::Matrix(grad),
            ) => update([master, weight, m, v], grad, is_copy, matrices),
            _ => unreachable!("all trees have the shape of the configuration"),
        }
    }
}

/// One parameter: the step, unless it is done, and the handle of the master that is no copy.
fn update<const D: usize>(
    [master, weight, m, v]: [&mut Tensor<D>; 4],
    grad: &Tensor<D>,
    is_copy: bool,
    hyper: Option<&AdamWStep>,
) {
    if let Some(hyper) = hyper {
        ops::adamw_step(master, m, v, grad, is_copy.then_some(&mut *weight), hyper);
    }
    if !is_copy {
        *weight = master.clone();
    }
}

/// Whether `weight` is a copy with storage of its own; a handle of the master is dropped.
fn let_go_of_master<const D: usize>(weight: &mut Tensor<D>) -> bool {
    let is_copy = weight.dtype() == DType::BF16;
    if !is_copy {
        drop(weight.extract());
    }
    is_copy
}

/// Σ x² of every parameter, in the order of [`Params::named`], read from the device once.
pub fn sums_of_squares(params: &Params) -> Vec<f64> {
    #[cfg(feature = "cuda")]
    if let Some(sums) = cuda::sums_of_squares(params) {
        return sums;
    }
    let sum = |(_, param): (String, Param<'_>)| match param {
        Param::Vector(x) => ops::sum_of_squares(x),
        Param::Matrix(x) => ops::sum_of_squares(x),
    };
    ops::totals(params.named().into_iter().map(sum).collect())
}

/// Sets every element of all parameters, f32, to zero, in place.
pub fn fill_zero(params: &mut Params) {
    #[cfg(feature = "cuda")]
    if cuda::fill_zero(params) {
        return;
    }
    for (_, param) in params.named_mut() {
        match param {
            ParamMut::Vector(x) => ops::fill_zero(x),
            ParamMut::Matrix(x) => ops::fill_zero(x),
        }
    }
}

/// The same on an NVIDIA GPU; each says whether it was done.
#[cfg(feature = "cuda")]
mod cuda {
    use burn::tensor::Tensor;
    use burn_cubecl::Cube;
    use burn_cubecl::tensor::CubeTensor;

    use crate::backend::AdamWStep;
    use crate::backend::cube::cuda::optimizer::{self, AdamWTensors};
    use crate::params::{Param, ParamMut, Params};

    fn primitive<const D: usize>(x: Tensor<D>) -> Option<CubeTensor> {
        x.try_into_primitive::<Cube>().ok()
    }

    /// The storage of a parameter, which is put back with [`put`].
    fn take(param: &mut ParamMut<'_>) -> CubeTensor {
        let taken = match param {
            ParamMut::Vector(x) => primitive(x.extract()),
            ParamMut::Matrix(x) => primitive(x.extract()),
        };
        taken.expect("all parameters are on one device")
    }

    fn put(param: ParamMut<'_>, storage: CubeTensor) {
        match param {
            ParamMut::Vector(x) => *x = Tensor::from_primitive::<Cube>(storage),
            ParamMut::Matrix(x) => *x = Tensor::from_primitive::<Cube>(storage),
        }
    }

    fn shared(param: &Param<'_>) -> Option<CubeTensor> {
        match param {
            Param::Vector(x) => primitive((*x).clone()),
            Param::Matrix(x) => primitive((*x).clone()),
        }
    }

    fn runs_on_device_of(params: &Params) -> bool {
        primitive(params.norm.clone()).is_some_and(|norm| optimizer::runs_on(&norm))
    }

    pub(super) fn adamw_step(
        [masters, weights, m, v]: [&mut Params; 4],
        grads: &Params,
        is_copy: &[bool],
        hyper: &AdamWStep,
    ) -> bool {
        if !runs_on_device_of(grads) {
            return false;
        }
        let mut params: Vec<_> = masters
            .named_mut()
            .into_iter()
            .zip(weights.named_mut())
            .zip(m.named_mut().into_iter().zip(v.named_mut()))
            .map(|(((_, master), (_, weight)), ((_, m), (_, v)))| (master, weight, m, v))
            .collect();
        let tensors = params
            .iter_mut()
            .zip(grads.named())
            .zip(is_copy)
            .map(|(((master, weight, m, v), (_, grad)), &is_copy)| AdamWTensors {
                weight_decay: match grad {
                    Param::Vector(_) => 0.0,
                    Param::Matrix(_) => hyper.weight_decay,
                },
                param: take(master),
                m: take(m),
                v: take(v),
                grad: shared(&grad).expect("all parameters are on one device"),
                copy: is_copy.then(|| take(weight)),
            })
            .collect();
        for ((master, weight, m, v), new) in
            params.into_iter().zip(optimizer::adamw(tensors, hyper))
        {
            put(master, new.param);
            put(m, new.m);
            put(v, new.v);
            if let Some(copy) = new.copy {
                put(weight, copy);
            }
        }
        true
    }

    pub(super) fn sums_of_squares(params: &Params) -> Option<Vec<f64>> {
        if !runs_on_device_of(params) {
            return None;
        }
        let tensors = params.named().iter().map(|(_, x)| shared(x)).collect::<Option<Vec<_>>>()?;
        let sums = Tensor::<2>::from_primitive::<Cube>(optimizer::sums_of_squares(tensors));
        let values: Vec<f64> = sums.into_data().iter::<f64>().collect();
        Some(values.chunks(2).map(|sum| sum[0] + sum[1]).collect())
    }

    pub(super) fn fill_zero(params: &mut Params) -> bool {
        if !runs_on_device_of(params) {
            return false;
        }
        let mut params = params.named_mut();
        let tensors = params.iter_mut().map(|(_, x)| take(x)).collect();
        for ((_, param), zeroed) in params.into_iter().zip(optimizer::zero(tensors)) {
            put(param, zeroed);
        }
        true
    }
}
