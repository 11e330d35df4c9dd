//! Where a trainer comes from, and what of it a checkpoint keeps.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use altiplano_model::adapters::{AdapterShape, AdapterState, Adapters};
use altiplano_model::llama::Llama;
use altiplano_model::param_ops::AdamWState;
use altiplano_model::params::{Grads, Moments, TensorTree, Weights};
use altiplano_model::pass_weights::WeightSource;
use altiplano_model::weight_files::WeightFiles;
use altiplano_model::weights;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Trained, Trainer};
use crate::adamw::AdamW;
use crate::checkpoint::{ADAPTER_FILE, CheckpointFiles, MODEL_FILE, OPTIMIZER_FILE, TrainState};
use crate::config::{Shard, TrainConfig};
use crate::error::Result;
use crate::outlier_window::OutlierWindow;
use crate::shards::{
    FlatLayout, GradExchange, Held, ReadState, Remembered, ShardedAdamW, TensorWriters, join_parts,
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
            let device = master_weights.norm.device();
            let mut leaves: Vec<_> = master_weights.iter().map(|(_, leaf)| Some(leaf)).collect();
            let whole = (!config.parallel.shard.splits_weights()).then_some(&master_weights);
            return Self::shards(config, ranks, &device, whole, &mut |what, param, range| {
                if what != Remembered::Master {
                    return Ok(vec![0.0; range.len()]);
                }
                let leaf = leaves.get_mut(param.index()).and_then(Option::take);
                let whole = leaf.map(|leaf| leaf.to_data());
                let values = whole.iter().flat_map(|data| data.iter::<f32>());
                Ok(values.skip(range.start).take(range.len()).collect())
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
        let mut trainer = if is_sharded(config, ranks) {
            let open = |file: &str| WeightFiles::open_for(&checkpoint.join(file), &config.model);
            let (model, optimizer) = (open(MODEL_FILE)?, open(OPTIMIZER_FILE)?);
            let splits = config.parallel.shard.splits_weights();
            let whole = if splits { None } else { Some(load(MODEL_FILE, "")?) };
            Self::shards(config, ranks, device, whole.as_ref(), &mut |what, param, range| {
                let shape = param.shape(&config.model);
                let slice = place.slice(param, &config.model);
                let (files, name) = match what {
                    Remembered::Master => (&model, param.to_string()),
                    Remembered::M => (&optimizer, format!("m.{param}")),
                    Remembered::V => (&optimizer, format!("v.{param}")),
                };
                Ok(weights::read_slice(files, &name, &shape, &slice, range)?)
            })?
        } else {
            let master_weights = load(MODEL_FILE, "")?;
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

    /// A trainer that has a part of the master weights and moments, which `read` gives; `whole` are the f32
    /// weights unless copies split them.
    fn shards(
        config: &TrainConfig,
        ranks: &Arc<Ranks>,
        device: &Device,
        whole: Option<&Weights>,
        read: ReadState<'_>,
    ) -> Result<Self> {
        let layout = flat_layout(config, ranks);
        let mut optimizer = Box::new(ShardedAdamW::new(
            &ranks.place().local_config(&config.model),
            config.optimizer.clone(),
            Arc::clone(&layout),
            ranks.data_group().clone(),
            config.parallel.overlap,
            device,
            read,
        )?);
        let exchange = Box::new(exchange(config, ranks, &layout, device));
        let (weights, source) = match whole {
            Some(whole) => (whole.compute_copy(config.precision), None),
            None => {
                let (gains, parts) = optimizer.split_weights(config.precision);
                let source: Arc<dyn WeightSource> = parts;
                (gains, Some(source))
            }
        };
        let trained = Trained::Shards { optimizer, exchange };
        let mut trainer = Self::of(config, weights, trained, ranks)?;
        trainer.model.source = source;
        Ok(trainer)
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

    /// The weights of the model, whole, on the first rank; each rank of its copy gives its part. All ranks ask for
    /// them together.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub(crate) fn whole_weights(&self) -> Result<Option<Weights>> {
        let (place, first_copy) = (self.ranks.place(), self.ranks.share().index == 0);
        // Every copy takes part where none has all of them.
        let part = match self.model.source {
            Some(_) => self.model.all_weights()?,
            None => self.model.weights.clone(),
        };
        if place.ranks() == 1 || !first_copy {
            return Ok(first_copy.then_some(part));
        }
        let (config, device) = (&self.model.config, self.model.device());
        let mut whole = Vec::new();
        for (param, leaf) in part.iter() {
            let values = leaf.to_data();
            let dtype = values.dtype();
            let values = values.iter::<f32>().collect();
            let joined = join_parts(values, param, config, &self.ranks, 0, "the weights")?;
            whole.extend(joined.map(|values| {
                let data = TensorData::new(values, [param.count(config)]).convert_dtype(dtype);
                Tensor::<1>::from_data(data, (device, dtype))
            }));
        }
        if place.rank() > 0 {
            return Ok(None);
        }
        let mut whole = whole.into_iter();
        let Ok(weights) = Weights::build(config, |param| {
            // One was joined for each parameter.
            let missing = || Tensor::zeros([param.count(config)], device);
            Ok::<_, Infallible>(whole.next().unwrap_or_else(missing))
        });
        Ok(Some(weights))
    }

    /// Writes what is trained and its moments among the files of a checkpoint. All ranks do it together and
    /// write what falls to each; a file gets no more than `file_bytes` where there are ranks for more
    /// files.
    ///
    /// # Errors
    /// When a file of this rank cannot be written; when the exchange fails.
    pub(crate) fn save_tensors(&self, files: &mut CheckpointFiles, file_bytes: u64) -> Result<()> {
        let config = &self.model.config;
        let of_ranks = |files: &mut CheckpointFiles, held| {
            let writers = TensorWriters { held, config, ranks: &self.ranks, file_bytes };
            let weights = writers.write(files, MODEL_FILE, named_weights(config));
            // Other ranks do not wait for one that has failed, unless nobody is there to exchange with.
            if let Err(error) = &weights
                && error.is_from_exchange()
            {
                return weights;
            }
            let moments = writers.write(files, OPTIMIZER_FILE, named_moments(config));
            weights.and(moments)
        };
        match &self.trained {
            Trained::Shards { optimizer, .. } => of_ranks(files, Held::Shards(optimizer)),
            Trained::Copies { optimizer, .. } => of_ranks(files, Held::Copies(&optimizer.state)),
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
}

/// Whether copies of the model split the state of the optimizer. With [`Shard::Gradients`] one copy
/// has the sums of many.
fn is_sharded(config: &TrainConfig, ranks: &Ranks) -> bool {
    match config.parallel.shard {
        Shard::None => false,
        Shard::Optimizer => ranks.data_group().ranks() > 1,
        shard => shard.splits_gradients(),
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
