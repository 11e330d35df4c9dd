//! Where a trainer comes from, and what of it a checkpoint keeps.

use std::path::Path;
use std::sync::Arc;

use altiplano_model::adapters::{AdapterShape, AdapterState, Adapters};
use altiplano_model::llama::Llama;
use altiplano_model::param_ops::AdamWState;
use altiplano_model::param_tree::Leaf;
use altiplano_model::params::{Grads, Moments, TensorTree, Weights};
use altiplano_model::weight_files::WeightFiles;
use altiplano_model::weights;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Trained, Trainer};
use crate::adamw::AdamW;
use crate::checkpoint::{ADAPTER_FILE, CheckpointFiles, MODEL_FILE, OPTIMIZER_FILE, TrainState};
use crate::config::{Shard, TrainConfig};
use crate::error::{Result, TrainerError};
use crate::outlier_window::OutlierWindow;
use crate::shards::{
    FlatLayout, GatheredTensors, GradExchange, Held, ReadMoment, ShardedAdamW, join_parts,
    named_moments, named_weights,
};
use crate::world::Ranks;

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
        Self::start_on(config, master_weights, &Ranks::single())
    }

    /// The same as one of several ranks, of which each has its part of the weights.
    ///
    /// # Errors
    /// As [`Trainer::start`].
    pub fn start_on(
        config: &TrainConfig,
        master_weights: Weights,
        ranks: &Arc<Ranks>,
    ) -> Result<Self> {
        if is_sharded(config, ranks) {
            return Self::shards(config, &master_weights, ranks, &mut |_, _, range| {
                Ok(vec![0.0; range.len()])
            });
        }
        let device = master_weights.norm.device();
        let local = ranks.place().local_config(&config.model);
        let zeros = || Moments::zeros(&local, DType::F32, &device);
        let (m, v) = (zeros(), zeros());
        Self::new(config, AdamWState { master_weights, m, v }, ranks)
    }

    /// The trainer whose tensors are in a checkpoint, whose files are already
    /// verified and whose `state` is read.
    ///
    /// # Errors
    /// When a file cannot be read or its tensors are not those of the configuration.
    pub fn resume(
        config: &TrainConfig,
        checkpoint: &Path,
        state: &TrainState,
        device: &Device,
        ranks: &Arc<Ranks>,
    ) -> Result<Self> {
        let place = ranks.place();
        let load = |file: &str, prefix: &str| {
            weights::load_part(&checkpoint.join(file), prefix, &config.model, &place, device)
        };
        let master_weights = load(MODEL_FILE, "")?;
        let mut trainer = if is_sharded(config, ranks) {
            let files = WeightFiles::open_for(&checkpoint.join(OPTIMIZER_FILE), &config.model)?;
            Self::shards(config, &master_weights, ranks, &mut |prefix, param, range| {
                let shape = param.shape(&config.model);
                let name = format!("{prefix}{param}");
                let slice = place.slice(param, &config.model);
                Ok(weights::read_slice(&files, &name, &shape, &slice, range)?)
            })?
        } else {
            let (m, v) = (load(OPTIMIZER_FILE, "m.")?, load(OPTIMIZER_FILE, "v.")?);
            Self::new(config, AdamWState { master_weights, m, v }, ranks)?
        };
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

    /// The trainer of adapters whose tensors are in a checkpoint, whose files are already
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
        let weights = weights.compute_copy(config.precision);
        let mut trainer = Self::of(config, weights, trained, &Ranks::single())?;
        trainer.model.adapters = Some(adapters);
        Ok(trainer)
    }

    fn new(config: &TrainConfig, state: AdamWState, ranks: &Arc<Ranks>) -> Result<Self> {
        let weights = state.master_weights.compute_copy(config.precision);
        let device = weights.norm.device();
        let optimizer = Box::new(AdamW::new(config.optimizer.clone(), state));
        let trained = if ranks.is_alone() {
            let grads = Box::new(Grads::zeros(&config.model, DType::F32, &device));
            Trained::Weights { optimizer, grads }
        } else {
            let exchange = Box::new(exchange(config, ranks, &flat_layout(config, ranks), &device));
            Trained::Copies { optimizer, exchange }
        };
        Self::of(config, weights, trained, ranks)
    }

    fn shards(
        config: &TrainConfig,
        master_weights: &Weights,
        ranks: &Arc<Ranks>,
        moments: ReadMoment<'_>,
    ) -> Result<Self> {
        let device = master_weights.norm.device();
        let layout = flat_layout(config, ranks);
        let optimizer = Box::new(ShardedAdamW::new(
            &ranks.place().local_config(&config.model),
            config.optimizer.clone(),
            Arc::clone(&layout),
            ranks.data_group().clone(),
            config.parallel.overlap,
            master_weights,
            moments,
        )?);
        let exchange = Box::new(exchange(config, ranks, &layout, &device));
        let weights = master_weights.compute_copy(config.precision);
        Self::of(config, weights, Trained::Shards { optimizer, exchange }, ranks)
    }

    fn of(
        config: &TrainConfig,
        weights: Weights,
        trained: Trained,
        ranks: &Arc<Ranks>,
    ) -> Result<Self> {
        let mut model = Llama::new(config.model.clone(), weights, config.activation_checkpointing)?;
        model.tensor = ranks.tensor_group();
        Ok(Self {
            model,
            trained,
            loss_window: OutlierWindow::default(),
            grad_norm_window: OutlierWindow::default(),
            document_mask: config.document_mask,
            grad_clip: config.optimizer.grad_clip,
            skip_outliers: config.skip_outliers,
            ranks: Arc::clone(ranks),
            check_every: config.parallel.check_every,
        })
    }

    /// What other ranks have of a checkpoint, for the rank that writes it. All ranks ask for it together; each
    /// then calls [`GatheredTensors::finish`].
    pub(crate) fn gathered_tensors(&self) -> Option<GatheredTensors<'_>> {
        let held = match &self.trained {
            Trained::Shards { optimizer, .. } => Held::Shards(optimizer),
            Trained::Copies { optimizer, .. } if self.ranks.place().ranks() > 1 => {
                Held::Copies(&optimizer.state)
            }
            _ => return None,
        };
        let config = &self.model.config;
        let tensors = [named_weights(config), named_moments(config)].concat();
        Some(GatheredTensors::new(held, config, &self.ranks, tensors))
    }

    /// The weights of the model, whole, on the first rank; each rank of its copy gives its part. All ranks ask for
    /// them together.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub(crate) fn whole_weights(&self) -> Result<Option<Weights>> {
        let place = self.ranks.place();
        if place.ranks() == 1 {
            return Ok(self.ranks.is_first().then(|| self.model.weights.clone()));
        }
        if self.ranks.share().index > 0 {
            return Ok(None);
        }
        let (config, device) = (&self.model.config, self.model.device());
        let mut leaves = self.model.weights.iter();
        let whole = Weights::build(config, |param| {
            let (values, dtype) = match leaves.next() {
                Some((_, Leaf::Vector(gain))) => (gain.to_data(), gain.dtype()),
                Some((_, Leaf::Matrix(matrix))) => (matrix.to_data(), matrix.dtype()),
                None => (TensorData::new(Vec::<f32>::new(), [0]), DType::F32),
            };
            let part = values.iter::<f32>().collect();
            let whole = join_parts(part, param, config, &self.ranks, "the weights")?;
            let whole = whole.unwrap_or_else(|| vec![0.0; param.count(config)]);
            let data = TensorData::new(whole, [param.count(config)]).convert_dtype(dtype);
            Ok::<_, TrainerError>(Tensor::from_data(data, (device, dtype)))
        })?;
        Ok(self.ranks.is_first().then_some(whole))
    }

    /// The weights of the model, whole, on the ranks that compute with them: on all where none splits matrices,
    /// else on the first. All ranks ask for them together.
    ///
    /// # Errors
    /// As [`Trainer::whole_weights`].
    pub(crate) fn weights_for_reading(&self) -> Result<Option<Weights>> {
        match self.ranks.place().ranks() {
            1 => Ok(Some(self.model.weights.clone())),
            _ => self.whole_weights(),
        }
    }

    /// Writes what is trained and its moments among the files of a checkpoint; `gathered` are the
    /// [`gathered_tensors`](Self::gathered_tensors), if there are any.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn save_tensors(
        &self,
        files: &mut CheckpointFiles,
        gathered: Option<&mut GatheredTensors<'_>>,
    ) -> Result<()> {
        if let Some(gathered) = gathered {
            let config = &self.model.config;
            gathered.write(files, MODEL_FILE, &named_weights(config))?;
            return gathered.write(files, OPTIMIZER_FILE, &named_moments(config));
        }
        match &self.trained {
            // Their tensors are always gathered.
            Trained::Shards { .. } => Ok(()),
            Trained::Weights { optimizer, .. } | Trained::Copies { optimizer, .. } => {
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
}

/// Whether copies of the model split the state of the optimizer. With [`Shard::Gradients`] one copy
/// has the sums of many.
fn is_sharded(config: &TrainConfig, ranks: &Ranks) -> bool {
    match config.parallel.shard {
        Shard::None => false,
        Shard::Optimizer => ranks.data_group().ranks() > 1,
        Shard::Gradients | Shard::Parameters => true,
    }
}

fn flat_layout(config: &TrainConfig, ranks: &Ranks) -> Arc<FlatLayout> {
    let copies = ranks.data_group().ranks();
    let local = ranks.place().local_config(&config.model);
    Arc::new(FlatLayout::new(&local, copies, config.parallel.bucket_bytes))
}

fn exchange(
    config: &TrainConfig,
    ranks: &Ranks,
    layout: &Arc<FlatLayout>,
    device: &Device,
) -> GradExchange {
    let (layout, parallel) = (Arc::clone(layout), &config.parallel);
    GradExchange::new(&config.model, layout, ranks, parallel.shard, parallel.overlap, device)
}
