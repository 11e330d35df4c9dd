//! One optimizer step: micro-batches, norm, checks, update.

use std::path::Path;

use altiplano_data::Batch;
use altiplano_model::adapters::{AdapterShape, AdapterState, Adapters};
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::param_ops::{AdamWState, fill_zero};
use altiplano_model::params::{Grads, Moments, TensorTree, Weights};
use altiplano_model::weights;
use burn::tensor::{DType, Device};

use crate::adamw::{AdamW, numbers_of_step};
use crate::checkpoint::{ADAPTER_FILE, CheckpointFiles, MODEL_FILE, OPTIMIZER_FILE, TrainState};
use crate::config::{OptimizerConfig, TrainConfig};
use crate::error::{Result, TrainerError};
use crate::grad_clip::{clip_factor, global_norm, global_norm_of_adapters};
use crate::outlier_window::OutlierWindow;

/// Everything an optimizer step reads and changes.
#[derive(Debug)]
pub struct Trainer {
    /// The model, with the weights in the precision of the run.
    pub model: Llama,
    trained: Trained,
    /// Recent losses, for the outlier test.
    pub loss_window: OutlierWindow,
    /// Recent gradient norms, for the outlier test.
    pub grad_norm_window: OutlierWindow,
    document_mask: bool,
    grad_clip: f64,
    skip_outliers: Option<f64>,
}

/// What a step changes, with its gradients.
#[derive(Debug)]
enum Trained {
    /// All weights: the master weights, of which the model has a copy, and their moments.
    Weights { optimizer: Box<AdamW>, grads: Box<Grads> },
    /// Low-rank adapters alone. The weights of the model stay, and nothing else is kept of them.
    Adapters { state: AdapterState, config: OptimizerConfig, grads: Adapters },
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Mean cross entropy over the targets, in nats.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether the update was left out because the step was an outlier.
    pub skipped: bool,
}

impl Trainer {
    /// A trainer before its first step, with the starting weights of the run's seed.
    ///
    /// # Errors
    /// When the model's configuration does not fit together.
    pub fn start(config: &TrainConfig, device: &Device) -> Result<Self> {
        Self::start_from(config, Weights::init(&config.model, config.seed, DType::F32, device))
    }

    /// A trainer before its first step, with weights that come from elsewhere, f32.
    ///
    /// # Errors
    /// As [`Trainer::start`].
    pub fn start_from(config: &TrainConfig, master_weights: Weights) -> Result<Self> {
        let device = master_weights.norm.device();
        let zeros = || Moments::zeros(&config.model, DType::F32, &device);
        let (m, v) = (zeros(), zeros());
        Self::new(config, AdamWState { master_weights, m, v })
    }

    /// The trainer that [`Trainer::save_tensors`] wrote into a checkpoint, whose files are already
    /// verified and whose `state` is read.
    ///
    /// # Errors
    /// When a file cannot be read or its tensors are not those of the configuration.
    pub fn resume(
        config: &TrainConfig,
        checkpoint: &Path,
        state: &TrainState,
        device: &Device,
    ) -> Result<Self> {
        let load = |file: &str, prefix: &str| {
            weights::load(&checkpoint.join(file), prefix, &config.model, device)
        };
        let master_weights = load(MODEL_FILE, "")?;
        let (m, v) = (load(OPTIMIZER_FILE, "m.")?, load(OPTIMIZER_FILE, "v.")?);
        let mut trainer = Self::new(config, AdamWState { master_weights, m, v })?;
        trainer.loss_window = state.loss_window.clone();
        trainer.grad_norm_window = state.grad_norm_window.clone();
        Ok(trainer)
    }

    /// A trainer of adapters before its first step: `weights` are those of the model, f32, which are kept in the
    /// precision of the run.
    ///
    /// # Errors
    /// As [`Trainer::start`].
    pub fn start_adapters(
        config: &TrainConfig,
        weights: &Weights,
        adapters: Adapters,
    ) -> Result<Self> {
        Self::with_adapters(config, weights, AdapterState::start(adapters))
    }

    /// The trainer of adapters that [`Trainer::save_tensors`] wrote into a checkpoint, whose files are already
    /// verified.
    ///
    /// # Errors
    /// As [`Trainer::resume`].
    pub fn resume_adapters(
        config: &TrainConfig,
        weights: &Weights,
        shape: &AdapterShape,
        checkpoint: &Path,
        state: &TrainState,
    ) -> Result<Self> {
        let device = weights.norm.device();
        let load = |file: &str, prefix: &str| {
            weights::load_adapters(&checkpoint.join(file), prefix, &config.model, shape, &device)
        };
        let (m, v) = (load(OPTIMIZER_FILE, "m.")?, load(OPTIMIZER_FILE, "v.")?);
        let adapters = AdapterState { master: load(ADAPTER_FILE, "")?, m, v };
        let mut trainer = Self::with_adapters(config, weights, adapters)?;
        trainer.loss_window = state.loss_window.clone();
        trainer.grad_norm_window = state.grad_norm_window.clone();
        Ok(trainer)
    }

    fn with_adapters(config: &TrainConfig, weights: &Weights, state: AdapterState) -> Result<Self> {
        let grads = state.master.zeros_like(DType::F32);
        let adapters = state.master.compute_copy(config.precision);
        let trained = Trained::Adapters { state, config: config.optimizer.clone(), grads };
        let mut trainer = Self::of(config, weights.compute_copy(config.precision), trained)?;
        trainer.model.adapters = Some(adapters);
        Ok(trainer)
    }

    fn new(config: &TrainConfig, state: AdamWState) -> Result<Self> {
        let weights = state.master_weights.compute_copy(config.precision);
        let grads = Box::new(Grads::zeros(&config.model, DType::F32, &weights.norm.device()));
        let optimizer = Box::new(AdamW::new(config.optimizer.clone(), state));
        Self::of(config, weights, Trained::Weights { optimizer, grads })
    }

    fn of(config: &TrainConfig, weights: Weights, trained: Trained) -> Result<Self> {
        Ok(Self {
            model: Llama::new(config.model.clone(), weights, config.activation_checkpointing)?,
            trained,
            loss_window: OutlierWindow::default(),
            grad_norm_window: OutlierWindow::default(),
            document_mask: config.document_mask,
            grad_clip: config.optimizer.grad_clip,
            skip_outliers: config.skip_outliers,
        })
    }

    /// The f32 weights AdamW updates, of which those of the model are a copy; where adapters train, the weights
    /// of the model, which stay.
    pub fn master_weights(&self) -> &Weights {
        match &self.trained {
            Trained::Weights { optimizer, .. } => &optimizer.state.master_weights,
            Trained::Adapters { .. } => &self.model.weights,
        }
    }

    /// Writes what is trained and its moments among the files of a checkpoint.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save_tensors(&self, files: &mut CheckpointFiles) -> Result<()> {
        match &self.trained {
            Trained::Weights { optimizer, .. } => {
                let mut write = |name: &str, trees: &[(&str, &TensorTree)]| {
                    files.write(name, |out, path| Ok(weights::write(out, path, trees)?))
                };
                let AdamWState { master_weights, m, v } = &optimizer.state;
                write(MODEL_FILE, &[("", master_weights)])?;
                write(OPTIMIZER_FILE, &[("m.", m), ("v.", v)])
            }
            Trained::Adapters { state, .. } => {
                let mut write = |name: &str, trees: &[(&str, &Adapters)]| {
                    files.write(name, |out, path| Ok(weights::write_adapters(out, path, trees)?))
                };
                let AdapterState { master, m, v } = state;
                write(ADAPTER_FILE, &[("", master)])?;
                write(OPTIMIZER_FILE, &[("m.", m), ("v.", v)])
            }
        }
    }

    /// One step over `batches`, whose gradients are weighted by their valid targets so that any
    /// split of the same sequences gives the same update.
    ///
    /// # Errors
    /// [`TrainerError::NonFinite`] before any weight changes, with what is not finite and where
    /// the sequences came from.
    pub fn step(&mut self, step: u64, batches: &[Batch], lr: f64) -> Result<StepOutcome> {
        match &mut self.trained {
            Trained::Weights { grads, .. } => fill_zero(grads),
            Trained::Adapters { grads, .. } => grads.fill_zero(),
        }
        let targets = batches.iter().map(Batch::valid_targets).sum::<usize>().max(1);
        // Read after the last micro-batch: a GPU has all of them to work on before the host waits.
        let mut losses = Vec::with_capacity(batches.len());
        for batch in batches {
            let tokens = self.token_batch(batch)?;
            let scale = 1.0 / targets as f64;
            losses.push(match &mut self.trained {
                Trained::Weights { grads, .. } => {
                    self.model.loss_and_gradients(&tokens, scale, &mut **grads)?
                }
                Trained::Adapters { grads, .. } => {
                    self.model.loss_and_adapter_gradients(&tokens, scale, grads)?
                }
            });
        }
        let sums = losses.into_iter().map(|losses| losses.into_data().iter::<f64>().sum::<f64>());
        let loss = sums.sum::<f64>() / targets as f64;

        let not_finite = |what: String, found: String| TrainerError::NonFinite {
            step,
            what,
            found,
            hint: format!(
                "The batch came from {}. Try a lower optimizer.lr, a longer warm-up or precision: \
                 f32; `skip_outliers` leaves out steps that stand out before this happens",
                describe_origins(batches)
            ),
        };
        if !loss.is_finite() {
            return Err(not_finite("the loss".into(), loss.to_string()));
        }
        let grad_norm = match &self.trained {
            Trained::Weights { grads, .. } => global_norm(grads).map_err(|param| param.to_string()),
            Trained::Adapters { grads, .. } => {
                global_norm_of_adapters(grads).map_err(|param| param.to_string())
            }
        };
        let grad_norm = grad_norm
            .map_err(|param| not_finite(format!("the gradient of {param}"), "inf or NaN".into()))?;

        let skipped = self.is_outlier(loss, grad_norm);
        if !skipped {
            let grad_scale = clip_factor(grad_norm, self.grad_clip);
            match &mut self.trained {
                Trained::Weights { optimizer, grads } => {
                    optimizer.step(step, &mut self.model.weights, grads, lr, grad_scale);
                }
                Trained::Adapters { state, config, grads } => {
                    let hyper = numbers_of_step(config, step, lr, grad_scale);
                    if let Some(adapters) = &mut self.model.adapters {
                        state.step(adapters, grads, &hyper);
                    }
                }
            }
        }
        Ok(StepOutcome { loss, grad_norm, skipped })
    }

    /// Losses of every target of a batch, (B·T), 0 where ignored.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn losses(&self, batch: &Batch) -> Result<Vec<f32>> {
        let losses = self.model.losses(&self.token_batch(batch)?)?;
        Ok(losses.into_data().iter::<f32>().collect())
    }

    fn token_batch(&self, batch: &Batch) -> Result<TokenBatch> {
        Ok(TokenBatch::new(
            &batch.inputs,
            &batch.targets,
            self.document_mask.then_some(&batch.first_visible[..]),
            batch.seq_len,
            self.model.config.vocab_size,
            self.model.device(),
        )?)
    }

    fn is_outlier(&mut self, loss: f64, grad_norm: f64) -> bool {
        let Some(limit) = self.skip_outliers else { return false };
        let beyond = |z: Option<f64>| z.is_some_and(|z| z > limit);
        // Both windows move on at every step.
        let loss_is = beyond(self.loss_window.z_score(loss));
        let norm_is = beyond(self.grad_norm_window.z_score(grad_norm));
        loss_is || norm_is
    }
}

/// The files and token offsets of the sequences of a step, shortened.
fn describe_origins(batches: &[Batch]) -> String {
    const SHOWN: usize = 8;
    let origins: Vec<String> =
        batches.iter().flat_map(|batch| &batch.origins).map(ToString::to_string).collect();
    let more = origins.len().saturating_sub(SHOWN);
    let shown = origins[..origins.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
