//! One optimizer step: micro-batches, norm, checks, update.

use altiplano_data::Batch;
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::param_ops::fill_zero;
use altiplano_model::params::Params;
use burn::tensor::{DType, Device};

use crate::adamw::AdamW;
use crate::config::TrainConfig;
use crate::error::{Result, TrainerError};
use crate::grad_clip::{clip_factor, global_norm};
use crate::metrics::OutlierWindow;

/// Everything an optimizer step reads and changes.
#[derive(Debug)]
pub struct Trainer {
    /// The model, with the weights in the precision of the run.
    pub model: Llama,
    /// The f32 weights AdamW updates. Under f32 they are the model's own.
    pub masters: Params,
    /// Moments.
    pub optimizer: AdamW,
    /// Recent losses, for the outlier test.
    pub loss_window: OutlierWindow,
    /// Recent gradient norms, for the outlier test.
    pub grad_norm_window: OutlierWindow,
    grads: Params,
    document_mask: bool,
    grad_clip: f64,
    skip_outliers: Option<f64>,
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
    /// A trainer at its first step, or one that goes on from `masters` and the moments given.
    ///
    /// # Errors
    /// When the model's configuration does not fit together.
    pub fn new(
        config: &TrainConfig,
        masters: Params,
        optimizer: AdamW,
        device: &Device,
    ) -> Result<Self> {
        let model = Llama::new(
            config.model.clone(),
            masters.compute_copy(config.precision),
            config.activation_checkpointing,
        )?;
        Ok(Self {
            model,
            masters,
            optimizer,
            loss_window: OutlierWindow::default(),
            grad_norm_window: OutlierWindow::default(),
            grads: Params::zeros(&config.model, DType::F32, device),
            document_mask: config.document_mask,
            grad_clip: config.optimizer.grad_clip,
            skip_outliers: config.skip_outliers,
        })
    }

    /// One step over `batches`, whose gradients are weighted by their valid targets so that any
    /// split of the same sequences gives the same update.
    ///
    /// # Errors
    /// [`TrainerError::NonFinite`] before any weight changes, with what is not finite and where
    /// the sequences came from.
    pub fn step(&mut self, step: u64, batches: &[Batch], lr: f64) -> Result<StepOutcome> {
        fill_zero(&mut self.grads);
        let targets = batches.iter().map(Batch::valid_targets).sum::<usize>().max(1);
        // Read after the last micro-batch: a GPU has all of them to work on before the host waits.
        let mut losses = Vec::with_capacity(batches.len());
        for batch in batches {
            let tokens = self.token_batch(batch)?;
            let scale = 1.0 / targets as f64;
            losses.push(self.model.loss_and_gradients(&tokens, scale, &mut self.grads));
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
        let grad_norm = global_norm(&self.grads)
            .map_err(|name| not_finite(format!("the gradient of {name}"), "inf or NaN".into()))?;

        let skipped = self.is_outlier(loss, grad_norm);
        if !skipped {
            self.optimizer.step(
                step,
                &mut self.masters,
                &mut self.model.weights,
                &self.grads,
                lr,
                clip_factor(grad_norm, self.grad_clip),
            );
        }
        Ok(StepOutcome { loss, grad_norm, skipped })
    }

    /// Losses of every target of a batch, (B·T), 0 where ignored.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn losses(&self, batch: &Batch) -> Result<Vec<f32>> {
        let losses = self.model.losses(&self.token_batch(batch)?);
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
