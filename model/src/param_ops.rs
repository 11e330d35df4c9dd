//! Ops over all parameters at once: AdamW, the squares of the gradient norm, zeroing.
//!
//! On NVIDIA GPUs each is a few launches whatever the number of parameters. Elsewhere it is the op
//! of [`crate::ops`] on one parameter after the other; for CPU kernels a parameter is work enough.

pub use altiplano_kernels::{PIECE, piece_sums_of_squares};
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

/// The step of one parameter: those that do not decay have no weight decay.
pub fn step_of(param: Param, hyper: &AdamWStep) -> AdamWStep {
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
    use crate::backend::cube::adamw::cuda as all_at_once;
    use crate::param_tree::with_leaf;
    use crate::params::{Grads, TensorTree, Weights};

    pub(super) fn runs_on_device_of(tree: &TensorTree) -> bool {
        let norm = tree.norm.clone().try_into_primitive::<Cube>();
        norm.is_ok_and(|norm| all_at_once::runs_on(&norm))
    }

    /// All parameters are on the device of the norm that [`runs_on_device_of`] looked at.
    fn primitive<const D: usize>(x: Tensor<D>) -> CubeTensor {
        x.try_into_primitive::<Cube>().ok().expect("all parameters are on one device")
    }

    impl<const D: usize> AdamWTensors<'_, D> {
        fn take(self, weight_decay: f32) -> all_at_once::AdamWTensors {
            let shared = release_shared_master(self.weight);
            all_at_once::AdamWTensors {
                param: primitive(self.master_weight.extract()),
                m: primitive(self.m.extract()),
                v: primitive(self.v.extract()),
                grad: primitive(self.grad.clone()),
                copy: (!shared).then(|| primitive(self.weight.extract())),
                weight_decay,
            }
        }

        fn put(self, updated: all_at_once::AdamWTensors) {
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
        let updated = all_at_once::adamw(taken.collect(), hyper);
        let places = adamw_tensors(state, weights, grads);
        for ((_, tensors), updated) in places.into_iter().zip(updated) {
            with_leaf!(tensors, tensors => tensors.put(updated));
        }
    }

    pub(super) fn sums_of_squares(tree: &TensorTree) -> Vec<f64> {
        let tensors = tree.iter().map(|(_, x)| with_leaf!(x, x => primitive(x.clone())));
        let sums =
            Tensor::<2>::from_primitive::<Cube>(all_at_once::sums_of_squares(tensors.collect()));
        let values: Vec<f64> = sums.into_data().iter::<f64>().collect();
        values.chunks(2).map(|sum| sum[0] + sum[1]).collect()
    }

    pub(super) fn fill_zero(tree: &mut TensorTree) {
        let taken = tree.iter_mut().map(|(_, x)| with_leaf!(x, x => primitive(x.extract())));
        let zeroed = all_at_once::zero(taken.collect());
        for ((_, x), zeroed) in tree.iter_mut().zip(zeroed) {
            with_leaf!(x, x => *x = Tensor::from_primitive::<Cube>(zeroed));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use half::bf16;

    use super::*;
    use crate::config::{LlamaConfig, Precision};
    use crate::param_tree::Leaf;

    fn config() -> LlamaConfig {
        LlamaConfig {
            dim: 16,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: Some(2),
            hidden_dim: Some(24),
            multiple_of: 256,
            vocab_size: 30,
            max_seq_len: 8,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    fn values(tree: &TensorTree) -> Vec<Vec<f32>> {
        let values = |data: TensorData| data.iter::<f32>().collect();
        tree.iter().map(|(_, x)| values(x.to_data())).collect()
    }

    /// Without a gradient a step is the decay alone: lr λ = 1/4 of every matrix and nothing of a norm
    /// gain. The second step shows that the first left no handle behind.
    #[test]
    fn matrices_decay_and_the_weights_follow_the_master_weights() {
        let (config, device) = (config(), Device::flex());
        let grads = Grads::zeros(&config, DType::F32, &device);
        for precision in [Precision::F32, Precision::Bf16] {
            let master_weights = Weights::init(&config, 1, DType::F32, &device);
            let mut weights = master_weights.compute_copy(precision);
            let zeros = || Moments::zeros(&config, DType::F32, &device);
            let mut state = AdamWState { master_weights, m: zeros(), v: zeros() };
            for step in [1, 2] {
                let before = values(&state.master_weights);
                let hyper = AdamWStep {
                    lr: 0.5,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.5,
                    step,
                    grad_scale: 1.0,
                };
                adamw_step(&mut state, &mut weights, &grads, &hyper);
                let (after, weights) = (values(&state.master_weights), values(&weights));
                for (param, leaf) in state.master_weights.iter() {
                    let (before, after) = (&before[param.index()], &after[param.index()]);
                    let matrix = matches!(leaf, Leaf::Matrix(_));
                    let rest = if matrix { 0.75 } else { 1.0 };
                    assert!(before.iter().zip(after).all(|(x, y)| rest * x == *y), "{param}");
                    let rounded = |x: &f32| match precision {
                        Precision::Bf16 if matrix => bf16::from_f32(*x).to_f32(),
                        _ => *x,
                    };
                    let expected: Vec<f32> = after.iter().map(rounded).collect();
                    assert_eq!(weights[param.index()], expected, "{param} {precision:?}");
                }
            }
        }
    }

    #[test]
    fn sums_are_in_the_order_of_the_checkpoint() {
        let (config, device) = (config(), Device::flex());
        let mut tree = Weights::init(&config, 1, DType::F32, &device);
        let expected: Vec<f64> =
            values(&tree).iter().map(|x| x.iter().map(|x| f64::from(*x).powi(2)).sum()).collect();
        for (sum, expected) in sums_of_squares(&tree).iter().zip(&expected) {
            assert!((sum - expected).abs() < 1e-9 * expected, "{sum} {expected}");
        }
        fill_zero(&mut tree);
        assert_eq!(sums_of_squares(&tree), vec![0.0; expected.len()]);
    }
}
