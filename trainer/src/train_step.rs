//! One optimizer step: micro-batches, norm, checks, update.

mod state;

use std::sync::Arc;
use std::time::Instant;

use altiplano_comm::double_double::DoubleDouble;
use altiplano_data::Batch;
use altiplano_model::adapters::{AdapterState, Adapters};
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::parallel::TensorRank;
use altiplano_model::param_ops::fill_zero;
use altiplano_model::param_tree::{Leaf, Param};
use altiplano_model::params::{Grads, Weights};
use burn::tensor::{Tensor, TensorData};

use crate::adamw::{AdamW, numbers_of_step};
use crate::config::OptimizerConfig;
use crate::error::{Result, TrainerError};
use crate::grad_clip::{clip_factor, squared_norm, squared_norm_of_adapters};
use crate::outlier_window::OutlierWindow;
use crate::shards::{GradExchange, ShardedAdamW};
use crate::step_record::{RanksOfStep, StepRecord, Targets};
use crate::world::Ranks;

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
    ranks: Arc<Ranks>,
    /// Steps between comparisons of what ranks hold in common; 0 means never.
    check_every: u64,
}

/// What a step changes, with its gradients.
#[derive(Debug)]
enum Trained {
    /// All weights: the master weights, of which the model has a copy, and their moments.
    Weights { optimizer: Box<AdamW>, grads: Box<Grads> },
    /// The same on several copies of the model, each of which has all of it and its share of the
    /// gradients' sum.
    Copies { optimizer: Box<AdamW>, exchange: Box<GradExchange> },
    /// All weights, of which each copy of the model has a part of the master weights and moments.
    Shards { optimizer: Box<ShardedAdamW>, exchange: Box<GradExchange> },
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
    /// Tokens of the step on all ranks, without padding.
    pub tokens: u64,
    /// Of a step on several ranks: what they tell of it.
    pub ranks: Option<RanksOfStep>,
}

impl Trainer {
    /// The ranks that train together.
    pub fn ranks(&self) -> &Arc<Ranks> {
        &self.ranks
    }

    /// Bytes of master weights and moments on this rank, where copies of the model split them.
    pub fn sharded_state_bytes(&self) -> Option<usize> {
        match &self.trained {
            Trained::Shards { optimizer, .. } => Some(optimizer.state_bytes()),
            _ => None,
        }
    }

    /// The f32 weights AdamW updates, of which those of the model are a copy; where adapters train or no rank
    /// has all of them, the weights of the model.
    pub fn master_weights(&self) -> &Weights {
        match &self.trained {
            Trained::Weights { optimizer, .. } | Trained::Copies { optimizer, .. } => {
                &optimizer.state.master_weights
            }
            Trained::Shards { .. } | Trained::Adapters { .. } => &self.model.weights,
        }
    }

    /// One step over `batches`, whose gradients are weighted by their valid targets so that any
    /// split of the same sequences gives the same update. On several ranks `batches` are the
    /// micro-batches of this one.
    ///
    /// # Errors
    /// [`TrainerError::NonFinite`] before any weight changes, with what is not finite and where
    /// the sequences came from. An exchange between ranks fails.
    pub fn step(&mut self, step: u64, batches: &[Batch], lr: f64) -> Result<StepOutcome> {
        let started = Instant::now();
        let waited = self.ranks.waited_seconds();
        let Targets { targets, tokens } = Targets::of_step(&self.ranks, batches)?;
        let losses = self.gradients(batches, 1.0 / targets as f64)?;
        let squares = self.squares();
        let record = StepRecord {
            step,
            squares: squares.unwrap_or_default(),
            not_finite: squares.err(),
            waited: self.ranks.waited_seconds() - waited,
            seconds: started.elapsed().as_secs_f64(),
            losses,
        };
        let summed = record.sum(&self.ranks)?;
        let loss = summed.loss / targets as f64;

        let not_finite = |what: String, found: String| -> Result<TrainerError> {
            Ok(self.ranks.agreed(TrainerError::NonFinite {
                step,
                what,
                found,
                hint: format!(
                    "The batch came from {}. Try a lower optimizer.lr, a longer warm-up or precision: \
                     f32; `skip_outliers` leaves out steps that stand out before this happens",
                    self.origins(batches)?
                ),
            }))
        };
        if !loss.is_finite() {
            let rank = self.ranks.suffix(summed.rank_of_loss);
            return Err(not_finite(format!("the loss{rank}"), loss.to_string())?);
        }
        if let Some((index, rank)) = summed.not_finite {
            let (name, rank) = (self.gradient_name(index), self.ranks.suffix(rank));
            return Err(not_finite(format!("the gradient of {name}{rank}"), "inf or NaN".into())?);
        }
        let grad_norm = summed.squares.sqrt();
        let skipped = self.is_outlier(loss, grad_norm);
        if !skipped {
            self.update(step, lr, clip_factor(grad_norm, self.grad_clip))?;
        }
        if self.check_every > 0 && step.is_multiple_of(self.check_every) {
            self.compare_copies()?;
        }
        Ok(StepOutcome { loss, grad_norm, skipped, tokens, ranks: summed.ranks })
    }

    /// The gradients of `scale` · Σ losses over these micro-batches and those of the other ranks, and the
    /// losses of these, each summed.
    fn gradients(&mut self, batches: &[Batch], scale: f64) -> Result<Vec<f64>> {
        match &mut self.trained {
            Trained::Weights { grads, .. } => fill_zero(grads),
            Trained::Adapters { grads, .. } => grads.fill_zero(),
            Trained::Copies { exchange, .. } | Trained::Shards { exchange, .. } => {
                exchange.begin_step();
            }
        }
        // Read after the last micro-batch: a GPU has all of them to work on before the host waits.
        let mut losses = Vec::with_capacity(batches.len());
        for (number, batch) in batches.iter().enumerate() {
            let tokens = self.token_batch(batch)?;
            losses.push(match &mut self.trained {
                Trained::Weights { grads, .. } => {
                    self.model.loss_and_gradients(&tokens, scale, &mut **grads)?
                }
                Trained::Copies { exchange, .. } | Trained::Shards { exchange, .. } => {
                    exchange.begin_micro_batch(number + 1 == batches.len());
                    let losses = self.model.loss_and_gradients(&tokens, scale, &mut **exchange)?;
                    exchange.end_micro_batch()?;
                    losses
                }
                Trained::Adapters { grads, .. } => {
                    self.model.loss_and_adapter_gradients(&tokens, scale, grads)?
                }
            });
        }
        if let Trained::Copies { exchange, .. } | Trained::Shards { exchange, .. } =
            &mut self.trained
        {
            exchange.end_step()?;
        }
        let sum = |losses: Tensor<2>| losses.into_data().iter::<f64>().sum::<f64>();
        Ok(losses.into_iter().map(sum).collect())
    }

    /// Σ g² of this rank's part of the gradients.
    ///
    /// # Errors
    /// The number of the first parameter whose gradient is not finite.
    fn squares(&self) -> std::result::Result<DoubleDouble, usize> {
        match &self.trained {
            Trained::Weights { grads, .. } => {
                squared_norm(grads).map(DoubleDouble::from).map_err(|param| param.index())
            }
            Trained::Copies { exchange, .. } | Trained::Shards { exchange, .. } => {
                exchange.squares().map_err(|param| param.index())
            }
            Trained::Adapters { grads, .. } => {
                squared_norm_of_adapters(grads).map(DoubleDouble::from)
            }
        }
    }

    /// The name of a parameter whose gradient [`Trainer::squares`] tells of.
    fn gradient_name(&self, index: usize) -> String {
        let adapter = match &self.trained {
            Trained::Adapters { grads, .. } => {
                grads.iter().nth(index).map(|(param, _)| param.to_string())
            }
            _ => None,
        };
        let param = || self.model.weights.iter().nth(index).map(|(param, _)| param.to_string());
        adapter.or_else(param).unwrap_or_default()
    }

    /// Moves the weights by the gradients.
    fn update(&mut self, step: u64, lr: f64, grad_scale: f64) -> Result<()> {
        let weights = &mut self.model.weights;
        match &mut self.trained {
            Trained::Weights { optimizer, grads } => {
                optimizer.step(step, weights, grads, lr, grad_scale);
            }
            Trained::Copies { optimizer, exchange } => {
                optimizer.step(step, weights, exchange.gather()?, lr, grad_scale);
            }
            Trained::Shards { optimizer, exchange } => {
                optimizer.step(step, weights, exchange, lr, grad_scale)?;
            }
            Trained::Adapters { state, config, grads } => {
                let hyper = numbers_of_step(config, step, lr, grad_scale);
                if let Some(adapters) = &mut self.model.adapters {
                    state.step(adapters, grads, &hyper);
                }
            }
        }
        Ok(())
    }

    /// Compares what all copies of the model hold.
    ///
    /// # Errors
    /// Two ranks differ in a tensor; both are named with it.
    fn compare_copies(&self) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        let (place, config, grid) = (self.ranks.place(), &self.model.config, self.ranks.grid());
        // What all copies hold, and what other tensor ranks hold as well.
        let mut hashes: Vec<(String, [u8; 32])> = Vec::new();
        let mut shared: Vec<(Param, (String, [u8; 32]))> = Vec::new();
        let parts = match &self.trained {
            Trained::Shards { optimizer, .. } => optimizer.weights(),
            _ => None,
        };
        for (param, weight) in self.model.weights.iter() {
            let is_shared = TensorRank::is_shared(place.ranks(), param, config);
            // Of weights that copies split, each has another part, and the tensor ranks of a copy the same.
            let part = parts.filter(|_| matches!(weight, Leaf::Matrix(_)));
            if part.is_some() && !is_shared {
                continue;
            }
            let data = match part {
                Some(parts) => parts.own(param).map(Tensor::into_data),
                None => Some(weight.to_data()),
            };
            let hash = blake3::hash(data.as_ref().map_or(&[][..], TensorData::as_bytes));
            let named = (param.to_string(), hash.into());
            if part.is_none() {
                hashes.push(named.clone());
            }
            if is_shared {
                shared.push((param, named));
            }
        }
        if let Trained::Shards { optimizer, .. } = &self.trained {
            for (param, values) in optimizer.held_in_common() {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                hashes.push((format!("optimizer state of {param}"), blake3::hash(&bytes).into()));
            }
        }
        self.ranks.compare("the copies of the model", &hashes, |rank| grid.tensor_rank(rank))?;
        for gains in [true, false] {
            let of_kind =
                shared.iter().filter(|(param, _)| (param.shape(config).len() == 1) == gains);
            let of_kind: Vec<_> = of_kind.map(|(_, named)| named.clone()).collect();
            let heads = config.kv_heads();
            let holder = |rank| match gains {
                true => grid.tensor_group(rank)[0],
                false => grid.kv_group(rank, heads)[0],
            };
            if !of_kind.is_empty() {
                self.ranks.compare("what tensor ranks have in common", &of_kind, holder)?;
            }
        }
        Ok(())
    }

    /// The files and token offsets of the sequences of a step on all ranks, shortened.
    fn origins(&self, batches: &[Batch]) -> Result<String> {
        let own = describe_origins(batches);
        if self.ranks.is_alone() {
            return Ok(own);
        }
        const SHOWN: usize = 4;
        let all = self.ranks.gather_texts("the origins of a batch", &own)?;
        let ranks = all.len();
        let shown = all.into_iter().take(SHOWN).enumerate();
        let shown: Vec<String> = shown.map(|(rank, own)| format!("rank {rank}: {own}")).collect();
        let more = ranks.saturating_sub(SHOWN);
        let shown = shown.join("; ");
        Ok(if more == 0 { shown } else { format!("{shown}; and {more} ranks more") })
    }

    /// Whether a pass gathers weights from all copies of the model, so that these make their passes together.
    pub fn gathers_weights(&self) -> bool {
        self.model.source.is_some() && self.ranks.data_group().ranks() > 1
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
