//! AdamW over all parameters: moments, decay on matrices only, the compute copy.

use altiplano_model::backend::AdamWStep;
use altiplano_model::ops::adamw_step;
use altiplano_model::params::{Param, ParamMut, Params};
use burn::tensor::{DType, Tensor};

use crate::config::OptimizerConfig;

/// First and second moments of every parameter.
#[derive(Debug)]
pub struct AdamW {
    /// Running mean of the gradient.
    pub m: Params,
    /// Running mean of its square.
    pub v: Params,
    config: OptimizerConfig,
}

impl AdamW {
    /// An optimizer that goes on from the moments `m` and `v`.
    pub fn new(config: OptimizerConfig, m: Params, v: Params) -> Self {
        Self { m, v, config }
    }

    /// The update of `step` (counted from 1, for the bias correction): `masters` moves by
    /// `grads` · `grad_scale`. `weights`, which the forward pass reads,
    /// becomes their copy in its own precision; for bf16 that happens in the same pass over memory.
    pub fn step(
        &mut self,
        step: u64,
        masters: &mut Params,
        weights: &mut Params,
        grads: &Params,
        lr: f64,
        grad_scale: f64,
    ) {
        let config = &self.config;
        let hyper = |weight_decay: f64| AdamWStep {
            lr: lr as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.eps as f32,
            weight_decay: weight_decay as f32,
            step,
            grad_scale: grad_scale as f32,
        };
        let trees = masters
            .named_mut()
            .into_iter()
            .zip(weights.named_mut())
            .zip(self.m.named_mut().into_iter().zip(self.v.named_mut()))
            .zip(grads.named());
        for ((((_, master), (_, weight)), ((_, m), (_, v))), (_, grad)) in trees {
            match (master, weight, m, v, grad) {
                (
                    ParamMut::Vector(master),
                    ParamMut::Vector(weight),
                    ParamMut::Vector(m),
                    ParamMut::Vector(v),
                    Param::Vector(grad),
                ) => update(master, weight, m, v, grad, &hyper(0.0)),
                (
                    ParamMut::Matrix(master),
                    ParamMut::Matrix(weight),
                    ParamMut::Matrix(m),
                    ParamMut::Matrix(v),
                    Param::Matrix(grad),
                ) => update(master, weight, m, v, grad, &hyper(config.weight_decay)),
                _ => unreachable!("all trees have the shape of the configuration"),
            }
        }
    }
}

/// One parameter. An f32 weight is the master itself under another handle, and has to let go of it
/// while the update works in place.
fn update<const D: usize>(
    master: &mut Tensor<D>,
    weight: &mut Tensor<D>,
    m: &mut Tensor<D>,
    v: &mut Tensor<D>,
    grad: &Tensor<D>,
    hyper: &AdamWStep,
) {
    if weight.dtype() == DType::BF16 {
        adamw_step(master, m, v, grad, Some(weight), hyper);
    } else {
        drop(weight.extract());
        adamw_step(master, m, v, grad, None, hyper);
        *weight = master.clone();
    }
}
