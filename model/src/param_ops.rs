//! Ops over all parameters at once: AdamW, the squares of the gradient norm, zeroing.
//!
//! On NVIDIA GPUs each is a few launches whatever the number of parameters. Elsewhere it is the op
//! of [`crate::ops`] on one parameter after the other; for CPU kernels a parameter is work enough.

use burn::tensor::{DType, Tensor};

use crate::backend::AdamWStep;
use crate::ops;
use crate::param_tree::{Param, ParamTree, with_leaf};
use crate::params::{Grads, Moments, TensorTree, Weights};

/// What AdamW updates and remembers: three numbers for every parameter, all f32.
#[derive(Debug)]
pub struct AdamWState {
    /// The weights in full precision. Where the model computes in f32, its weights are handles of
    /// these tensors.
    pub master_weights: Weights,
    /// Running mean of the gradient.
    pub m: Moments,
    /// Running mean of its square.
    pub v: Moments,
}

/// One AdamW step: `state` changes in place, `grads` is read.
///
/// `weights`, which the forward pass reads, follows the master weights: a bf16 matrix is written in
/// the same pass over memory, and an f32 weight is a handle of its master weight again.
pub fn adamw_step(state: &mut AdamWState, weights: &mut Weights, grads: &Grads, hyper: &AdamWStep) {
    #[cfg(feature = "cuda")]
    if cuda::runs_on_device_of(grads) {
        return cuda::adamw_step(state, weights, grads, hyper);
    }
    for (param, tensors) in adamw_tensors(state, weights, grads) {
        with_leaf!(tensors, tensors => tensors.step(&step_of(param, hyper)));
    }
}

/// The step of one parameter.
fn step_of(param: Param, hyper: &AdamWStep) -> AdamWStep {
    AdamWStep { weight_decay: if param.decays() { hyper.weight_decay } else { 0.0 }, ..*hyper }
}

/// The tensors of one parameter that take part in its step.
struct AdamWTensors<'a, const D: usize> {
    master_weight: &'a mut Tensor<D>,
    weight: &'a mut Tensor<D>,
    m: &'a mut Tensor<D>,
    v: &'a mut Tensor<D>,
    grad: &'a Tensor<D>,
}

fn adamw_tensors<'a>(
    state: &'a mut AdamWState,
    weights: &'a mut Weights,
    grads: &'a Grads,
) -> ParamTree<AdamWTensors<'a, 1>, AdamWTensors<'a, 2>> {
    let AdamWState { master_weights, m, v } = state;
    let weights = master_weights.each_mut().zip(weights.each_mut());
    let gradients = m.each_mut().zip(v.each_mut()).zip(grads.each_ref());
    weights.zip(gradients).map(
        |((master_weight, weight), ((m, v), grad))| AdamWTensors {
            master_weight,
            weight,
            m,
            v,
            grad,
        },
        |((master_weight, weight), ((m, v), grad))| AdamWTensors {
            master_weight,
            weight,
            m,
            v,
            grad,
        },
    )
}

impl<const D: usize> AdamWTensors<'_, D> {
    fn step(self, hyper: &AdamWStep) {
        let Self { master_weight, weight, m, v, grad } = self;
        if release_shared_master(weight) {
            ops::adamw_step(master_weight, m, v, grad, None, hyper);
            *weight = master_weight.clone();
        } else {
            ops::adamw_step(master_weight, m, v, grad, Some(weight), hyper);
        }
    }
}

/// Drops `weight` if it is a handle of the f32 master weight, which is updated in place and so may
/// have no other handle; says whether it was. A bf16 weight has storage of its own and stays.
fn release_shared_master<const D: usize>(weight: &mut Tensor<D>) -> bool {
    let shared = weight.dtype() != DType::BF16;
    if shared {
        drop(weight.extract());
    }
    shared
}

/// Σ x² of every parameter, in the order of the checkpoint, read from the device once.
pub fn sums_of_squares(tree: &TensorTree) -> Vec<f64> {
    #[cfg(feature = "cuda")]
    if cuda::runs_on_device_of(tree) {
        return cuda::sums_of_squares(tree);
    }
    let sums = tree.iter().map(|(_, x)| with_leaf!(x, x => ops::sum_of_squares(x)));
    ops::totals(sums.collect())
}

/// Sets every element of all tensors, f32, to zero, in place.
pub fn fill_zero(tree: &mut TensorTree) {
    #[cfg(feature = "cuda")]
    if cuda::runs_on_device_of(tree) {
        return cuda::fill_zero(tree);
    }
    for (_, x) in tree.iter_mut() {
        with_leaf!(x, x => ops::fill_zero(x));
    }
}

/// The same on an NVIDIA GPU. The tensors of all parameters are moved out of their trees, changed
/// by a few launches, and moved back.
#[cfg(feature = "cuda")]
mod cuda {
    use burn::tensor::Tensor;
    use burn_cubecl::Cube;
    use burn_cubecl::tensor::CubeTensor;

    use super::{AdamWState, AdamWTensors, adamw_tensors, release_shared_master, step_of};
    use crate::backend::AdamWStep;
    use crate::backend::cube::cuda::optimizer;
    use crate::param_tree::with_leaf;
    use crate::params::{Grads, TensorTree, Weights};

    pub(super) fn runs_on_device_of(tree: &TensorTree) -> bool {
        let norm = tree.norm.clone().try_into_primitive::<Cube>();
        norm.is_ok_and(|norm| optimizer::runs_on(&norm))
    }

    /// All parameters are on the device of the norm that [`runs_on_device_of`] looked at.
    fn primitive<const D: usize>(x: Tensor<D>) -> CubeTensor {
        x.try_into_primitive::<Cube>().ok().expect("all parameters are on one device")
    }

    impl<const D: usize> AdamWTensors<'_, D> {
        fn take(self, weight_decay: f32) -> optimizer::AdamWTensors {
            let shared = release_shared_master(self.weight);
            optimizer::AdamWTensors {
                param: primitive(self.master_weight.extract()),
                m: primitive(self.m.extract()),
                v: primitive(self.v.extract()),
                grad: primitive(self.grad.clone()),
                copy: (!shared).then(|| primitive(self.weight.extract())),
                weight_decay,
            }
        }

        fn put(self, updated: optimizer::AdamWTensors) {
            *self.master_weight = Tensor::from_primitive::<Cube>(updated.param);
            *self.m = Tensor::from_primitive::<Cube>(updated.m);
            *self.v = Tensor::from_primitive::<Cube>(updated.v);
            *self.weight = match updated.copy {
                Some(copy) => Tensor::from_primitive::<Cube>(copy),
                None => self.master_weight.clone(),
            };
        }
    }

    pub(super) fn adamw_step(
        state: &mut AdamWState,
        weights: &mut Weights,
        grads: &Grads,
        hyper: &AdamWStep,
    ) {
        let taken = adamw_tensors(state, weights, grads).into_iter().map(|(param, tensors)| {
            let weight_decay = step_of(param, hyper).weight_decay;
            with_leaf!(tensors, tensors => tensors.take(weight_decay))
        });
        let updated = optimizer::adamw(taken.collect(), hyper);
        let places = adamw_tensors(state, weights, grads);
        for ((_, tensors), updated) in places.into_iter().zip(updated) {
            with_leaf!(tensors, tensors => tensors.put(updated));
        }
    }

    pub(super) fn sums_of_squares(tree: &TensorTree) -> Vec<f64> {
        let tensors = tree.iter().map(|(_, x)| with_leaf!(x, x => primitive(x.clone())));
        let sums =
            Tensor::<2>::from_primitive::<Cube>(optimizer::sums_of_squares(tensors.collect()));
        let values: Vec<f64> = sums.into_data().iter::<f64>().collect();
        values.chunks(2).map(|sum| sum[0] + sum[1]).collect()
    }

    pub(super) fn fill_zero(tree: &mut TensorTree) {
        let taken = tree.iter_mut().map(|(_, x)| with_leaf!(x, x => primitive(x.extract())));
        let zeroed = optimizer::zero(taken.collect());
        for ((_, x), zeroed) in tree.iter_mut().zip(zeroed) {
            with_leaf!(x, x => *x = Tensor::from_primitive::<Cube>(zeroed));
        }
    }
}
