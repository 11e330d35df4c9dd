//! AdamW over all parameters: its state, and the numbers of a step.

use altiplano_model::backend::AdamWStep;
use altiplano_model::param_ops::{self, AdamWState};
use altiplano_model::params::{Grads, Weights};

use crate::config::OptimizerConfig;

/// The optimizer: master weights and moments of every parameter, and the run's constants.
#[derive(Debug)]
pub struct AdamW {
    /// Master weights and moments.
    pub state: AdamWState,
    config: OptimizerConfig,
}

impl AdamW {
    /// An optimizer that goes on from `state`.
    pub fn new(config: OptimizerConfig, state: AdamWState) -> Self {
        Self { state, config }
    }

    /// The update of `step`, counted from 1 for the bias correction: the master weights move by
    /// `grads` · `grad_scale` at the learning rate `lr`, and `weights`, which the forward pass
    /// reads, follow them in their own precision.
    pub fn step(
        &mut self,
        step: u64,
        weights: &mut Weights,
        grads: &Grads,
        lr: f64,
        grad_scale: f64,
    ) {
        let hyper = numbers_of_step(&self.config, step, lr, grad_scale);
        param_ops::adamw_step(&mut self.state, weights, grads, &hyper);
    }
}

/// The numbers of one update.
pub(crate) fn numbers_of_step(
    config: &OptimizerConfig,
    step: u64,
    lr: f64,
    grad_scale: f64,
) -> AdamWStep {
    AdamWStep {
        lr: lr as f32,
        beta1: config.beta1 as f32,
        beta2: config.beta2 as f32,
        eps: config.eps as f32,
        weight_decay: config.weight_decay as f32,
        step,
        grad_scale: grad_scale as f32,
    }
}
