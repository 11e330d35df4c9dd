//! AdamW over all parameters: the moments, and the numbers of a step.

use altiplano_model::backend::AdamWStep;
use altiplano_model::param_ops;
use altiplano_model::params::Params;

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
        let hyper = AdamWStep {
            lr: lr as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            eps: config.eps as f32,
            weight_decay: config.weight_decay as f32,
            step,
            grad_scale: grad_scale as f32,
        };
        param_ops::adamw_step(masters, weights, &mut self.m, &mut self.v, grads, &hyper);
    }
}
