//! The exchange of gradients: the sink of the backward pass on a copy of the model.

use std::collections::VecDeque;
use std::sync::Arc;

use altiplano_comm::double_double::DoubleDouble;
use altiplano_comm::{CommError, Group, Pending, Rows};
use altiplano_model::LlamaConfig;
use altiplano_model::parallel::TensorRank;
use altiplano_model::param_ops::{fill_zero, piece_sums_of_squares};
use altiplano_model::param_tree::{Leaf, Param, ParamTree};
use altiplano_model::params::{GradSink, Grads, ModelPart};
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::layout::{FlatLayout, Segment, matrices, matrices_mut};
use crate::config::Shard;
use crate::error::Result;
use crate::world::Ranks;

/// Buckets that are under way at a time: one is filled while another travels.
const UNDER_WAY: usize = 2;

/// Gradients of a step on one copy, and its part of their sum over all copies.
#[derive(Debug)]
pub struct GradExchange {
    /// Of the whole model.
    model: LlamaConfig,
    /// Of this tensor rank's part.
    config: LlamaConfig,
    place: TensorRank,
    /// The ranks of this copy, where each adds up the gradients of norm gains over its own tokens.
    tensor: Option<Group>,
    /// The ranks of this copy with the same head of keys and values.
    kv: Group,
    layout: Arc<FlatLayout>,
    params: ParamTree<Param, Param>,
    group: Group,
    shard: Shard,
    overlap: bool,
    device: Device,
    /// What the backward pass adds to. With [`Shard::Gradients`] and beyond a matrix is there from the moment its
    /// layer begins until it is in its bucket.
    grads: Grads,
    buckets: Vec<State>,
    /// Buckets that travel, in the order in which they started.
    running: VecDeque<usize>,
    spare: Vec<Vec<f32>>,
    /// Where each norm gain lies in the concatenation of all.
    gains: Vec<(Param, std::ops::Range<usize>)>,
    /// The sum of the gains' gradients.
    gain_sum: Vec<f32>,
    /// Everybody's gains of the last micro-batch, on their way.
    gains_under_way: Option<Pending<Vec<f32>>>,
    /// Whether the gradients of this micro-batch travel: those of a copy's last one carry those of the
    /// others, unless every one goes alone.
    travels: bool,
    /// What went wrong within the backward pass, which has no errors.
    failed: Option<CommError>,
}

/// A bucket, and this copy's part of its sum.
#[derive(Debug)]
enum State {
    Still {
        part: Vec<f32>,
    },
    Filling {
        part: Vec<f32>,
        bucket: Vec<f32>,
        missing: usize,
    },
    Running(Pending<(Vec<f32>, Vec<f32>)>),
    /// The exchange failed.
    Lost,
}

/// What stands for a matrix that is elsewhere.
pub(super) fn placeholder(device: &Device, dtype: DType) -> Tensor<2> {
    Tensor::zeros([1, 1], (device, dtype))
}

/// The elements of an f32 tensor.
pub(super) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    elements(&tensor.to_data())
}

/// The elements of data, which is of this type or is converted.
pub(super) fn elements<E: burn::tensor::Element>(data: &TensorData) -> Vec<E> {
    match data.as_slice::<E>() {
        Ok(values) => values.to_vec(),
        Err(_) => data.iter::<E>().collect(),
    }
}

impl GradExchange {
    /// No gradients yet.
    pub fn new(
        model: &LlamaConfig,
        layout: Arc<FlatLayout>,
        ranks: &Ranks,
        shard: Shard,
        overlap: bool,
        device: &Device,
    ) -> Self {
        let place = ranks.place();
        let config = &place.local_config(model);
        let params = ParamTree::of_model(config);
        let grads = match shard.splits_gradients() {
            true => params.each_ref().map(
                |gain| Tensor::zeros([gain.count(config)], (device, DType::F32)),
                |_| placeholder(device, DType::F32),
            ),
            false => Grads::zeros(config, DType::F32, device),
        };
        let mut end = 0;
        let mut gains = Vec::new();
        for (param, leaf) in params.iter() {
            if let Leaf::Vector(_) = leaf {
                let start = end;
                end += param.count(config);
                gains.push((param, start..end));
            }
        }
        let part = |bucket| State::Still { part: vec![0.0; layout.part_length(bucket)] };
        Self {
            model: model.clone(),
            config: config.clone(),
            place,
            tensor: ranks.tensor_group().splits_tokens().then(|| ranks.tensor_ranks().clone()),
            kv: ranks.kv_group().clone(),
            buckets: (0..layout.buckets().len()).map(part).collect(),
            layout,
            params,
            group: ranks.data_group().clone(),
            shard,
            overlap,
            device: device.clone(),
            grads,
            running: VecDeque::new(),
            spare: Vec::new(),
            gain_sum: vec![0.0; end],
            gains,
            gains_under_way: None,
            travels: false,
            failed: None,
        }
    }

    /// Begins a step.
    pub fn begin_step(&mut self) {
        self.gain_sum.fill(0.0);
        match self.shard.splits_gradients() {
            true => {
                for state in &mut self.buckets {
                    if let State::Still { part } = state {
                        part.fill(0.0);
                    }
                }
            }
            false => fill_zero(&mut self.grads),
        }
    }

    /// Begins a micro-batch, which is the copy's `last` of the step or not.
    pub fn begin_micro_batch(&mut self, last: bool) {
        self.travels = last || self.shard.splits_gradients();
        if self.shard.splits_gradients() {
            for (_, leaf) in self.grads.iter_mut() {
                if let Leaf::Vector(grad) = leaf {
                    *grad = grad.zeros_like();
                }
            }
        }
    }

    /// Ends a micro-batch.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub fn end_micro_batch(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        if !self.travels {
            return Ok(());
        }
        let own: Vec<f32> = self
            .grads
            .iter()
            .filter_map(|(_, leaf)| match leaf {
                Leaf::Vector(grad) => Some(values(grad)),
                Leaf::Matrix(_) => None,
            })
            .flatten()
            .collect();
        self.take_gains()?;
        let (rank, copies) = (self.group.rank(), self.group.ranks());
        let rows = Rows { count: copies, width: own.len() };
        let mut whole = vec![0.0; copies * own.len()];
        whole[rows.part(rank, copies)].copy_from_slice(&own);
        let gains = self.group.of("gradients of the norm gains");
        self.gains_under_way = Some(gains.start_all_gather::<f32, _>(whole, rows)?);
        if !self.overlap {
            self.take_gains()?;
        }
        Ok(())
    }

    /// Adds everybody's gains to the sum, in the order of the copies.
    fn take_gains(&mut self) -> Result<()> {
        let Some(pending) = self.gains_under_way.take() else { return Ok(()) };
        for gains in pending.wait()?.chunks_exact(self.gain_sum.len().max(1)) {
            self.gain_sum.iter_mut().zip(gains).for_each(|(sum, gain)| *sum += gain);
        }
        Ok(())
    }

    /// Waits until the gradients of the step are summed.
    ///
    /// # Errors
    /// As [`GradExchange::end_micro_batch`].
    pub fn end_step(&mut self) -> Result<()> {
        self.take_gains()?;
        while let Some(bucket) = self.running.pop_front() {
            self.wait(bucket)?;
        }
        Ok(self.sum_shared()?)
    }

    /// Completes the gradients of what several tensor ranks hold.
    fn sum_shared(&mut self) -> std::result::Result<(), CommError> {
        if let Some(group) = &self.tensor {
            let group = group.of("gradients of the norm gains");
            let gains = std::mem::take(&mut self.gain_sum);
            self.gain_sum = group.start_all_reduce::<f32, _>(gains)?.wait()?;
        }
        if self.kv.ranks() == 1 {
            return Ok(());
        }
        let layers = self.params.layers.iter().flat_map(|layer| [layer.k_proj, layer.v_proj]);
        let own: Vec<(usize, Segment)> = layers
            .filter_map(|param| {
                let (bucket, number) = self.layout.place(param)?;
                let segment = self.layout.segment(bucket, number, self.group.rank())?;
                Some((bucket, segment))
            })
            .collect();
        let values: Vec<f32> = own
            .iter()
            .flat_map(|(bucket, segment)| self.part(*bucket)[segment.in_part.clone()].to_vec())
            .collect();
        let group = self.kv.of("gradients of keys and values");
        let sums = group.start_all_reduce::<f32, _>(values)?.wait()?;
        let mut rest = &sums[..];
        for (bucket, segment) in own {
            let (sum, after) = rest.split_at(segment.in_part.len());
            if let State::Still { part } = &mut self.buckets[bucket] {
                part[segment.in_part].copy_from_slice(sum);
            }
            rest = after;
        }
        Ok(())
    }

    fn wait(&mut self, bucket: usize) -> std::result::Result<(), CommError> {
        match std::mem::replace(&mut self.buckets[bucket], State::Lost) {
            State::Running(pending) => {
                let (values, part) = pending.wait()?;
                self.spare.push(values);
                self.buckets[bucket] = State::Still { part };
            }
            other => self.buckets[bucket] = other,
        }
        Ok(())
    }

    /// Puts a gradient that is complete into its bucket, and sends the bucket off when it is full.
    fn pack(&mut self, param: Param, grad: Tensor<2>) -> std::result::Result<(), CommError> {
        let Some((index, number)) = self.layout.place(param) else { return Ok(()) };
        // The sum of the micro-batch before this one.
        if matches!(self.buckets[index], State::Running(_)) {
            self.running.retain(|running| *running != index);
            self.wait(index)?;
        }
        let placed = &self.layout.buckets()[index];
        let matrix = placed.matrices[number];
        if let State::Still { part } = &mut self.buckets[index] {
            let part = std::mem::take(part);
            let mut bucket = self.spare.pop().unwrap_or_default();
            bucket.clear();
            bucket.resize(placed.length, 0.0);
            let missing = placed.matrices.len();
            self.buckets[index] = State::Filling { part, bucket, missing };
        }
        let State::Filling { bucket, missing, .. } = &mut self.buckets[index] else {
            return Ok(());
        };
        let data = grad.into_data();
        let target = &mut bucket[matrix.start..matrix.start + matrix.count];
        match data.as_slice::<f32>() {
            Ok(values) => target.copy_from_slice(values),
            Err(_) => target.iter_mut().zip(data.iter::<f32>()).for_each(|(to, from)| *to = from),
        }
        *missing -= 1;
        if *missing == 0 { self.send_off(index) } else { Ok(()) }
    }

    fn send_off(&mut self, index: usize) -> std::result::Result<(), CommError> {
        while self.running.len() >= UNDER_WAY {
            let Some(oldest) = self.running.pop_front() else { break };
            self.wait(oldest)?;
        }
        let State::Filling { part, bucket, .. } =
            std::mem::replace(&mut self.buckets[index], State::Lost)
        else {
            return Ok(());
        };
        let rows = Rows::single(bucket.len());
        let group = self.group.of(self.layout.describe("gradients", index));
        let pending = match self.shard.splits_gradients() {
            true => group.start_reduce_scatter_add::<f32, _, _>(bucket, part, rows)?,
            false => group.start_reduce_scatter::<f32, _, _>(bucket, part, rows)?,
        };
        self.buckets[index] = State::Running(pending);
        match self.overlap {
            true => self.running.push_back(index),
            false => self.wait(index)?,
        }
        Ok(())
    }

    /// This copy's part of the summed gradients of a bucket.
    pub fn part(&self, bucket: usize) -> &[f32] {
        match &self.buckets[bucket] {
            State::Still { part } => part,
            _ => &[],
        }
    }

    /// The summed gradient of every norm gain.
    pub fn gains(&self) -> impl Iterator<Item = (Param, &[f32])> {
        self.gains.iter().map(|(param, range)| (*param, &self.gain_sum[range.clone()]))
    }

    /// Σ g² over this copy's parts, and over the norm gains on the first copy, of what no tensor rank before
    /// this one holds: those of all ranks together make the norm, whatever their number.
    ///
    /// # Errors
    /// The first parameter whose gradient is not finite here.
    pub fn squares(&self) -> std::result::Result<DoubleDouble, Param> {
        let copy = self.group.rank();
        let mut sum = DoubleDouble::default();
        let mut worst: Option<Param> = None;
        let mut add = |param: Param, gradient: &[f32], counts: bool| {
            let squares: DoubleDouble = piece_sums_of_squares(gradient).into_iter().collect();
            if !squares.round().is_finite() {
                worst = Some(match worst {
                    Some(other) if other.index() < param.index() => other,
                    _ => param,
                });
            }
            if counts {
                sum = sum.plus(squares);
            }
        };
        for bucket in 0..self.buckets.len() {
            for segment in self.layout.segments(bucket, copy) {
                let counts = self.place.is_first_holder(segment.param, &self.model);
                add(segment.param, &self.part(bucket)[segment.in_part], counts);
            }
        }
        for (param, gradient) in self.gains() {
            add(param, gradient, copy == 0 && self.place.rank() == 0);
        }
        worst.map_or(Ok(sum), Err)
    }

    /// The summed gradients of all parameters, whole: the parts of all copies.
    ///
    /// # Errors
    /// As [`GradExchange::end_micro_batch`].
    pub fn gather(&mut self) -> Result<&Grads> {
        for bucket in 0..self.buckets.len() {
            let placed = &self.layout.buckets()[bucket];
            let rows = Rows::single(placed.length);
            let mut whole = self.spare.pop().unwrap_or_default();
            whole.clear();
            whole.resize(placed.length, 0.0);
            let own = rows.part(self.group.rank(), self.group.ranks());
            whole[own].copy_from_slice(self.part(bucket));
            let group = self.group.of(self.layout.describe("gradients", bucket));
            let whole = group.start_all_gather::<f32, _>(whole, rows)?.wait()?;
            for matrix in &placed.matrices {
                let shape = matrix.param.shape(&self.config);
                let values = whole[matrix.start..matrix.start + matrix.count].to_vec();
                let data = TensorData::new(values, shape);
                let tensor = Tensor::from_data(data, (&self.device, DType::F32));
                if let Some(grad) = tensor_of(&mut self.grads, &self.params, matrix.param) {
                    *grad = tensor;
                }
            }
            self.spare.push(whole);
        }
        for ((_, leaf), (_, range)) in self
            .grads
            .iter_mut()
            .filter(|(_, leaf)| matches!(leaf, Leaf::Vector(_)))
            .zip(&self.gains)
        {
            if let Leaf::Vector(grad) = leaf {
                let values = self.gain_sum[range.clone()].to_vec();
                let count = values.len();
                *grad =
                    Tensor::from_data(TensorData::new(values, [count]), (&self.device, DType::F32));
            }
        }
        Ok(&self.grads)
    }

    /// The matrices whose gradients a part completes.
    fn completed(&self, part: ModelPart) -> Vec<Param> {
        match part {
            ModelPart::Head => self.params.lm_head.into_iter().collect(),
            ModelPart::Norm => Vec::new(),
            ModelPart::Layer(n) => matrices(&self.params.layers[n]).map(|param| *param).into(),
            ModelPart::Embedding => vec![self.params.embed_tokens],
        }
    }
}

/// The tensor of a matrix in a tree.
pub(super) fn tensor_of<'a>(
    tree: &'a mut Grads,
    params: &ParamTree<Param, Param>,
    wanted: Param,
) -> Option<&'a mut Tensor<2>> {
    if wanted == params.embed_tokens {
        return Some(&mut tree.embed_tokens);
    }
    if Some(wanted) == params.lm_head {
        return tree.lm_head.as_mut();
    }
    let layers = tree.layers.iter_mut().zip(&params.layers);
    layers.into_iter().find_map(|(tensors, params)| {
        let number = matrices(params).iter().position(|param| **param == wanted)?;
        matrices_mut(tensors).into_iter().nth(number)
    })
}

impl GradSink for GradExchange {
    fn begin(&mut self, part: ModelPart) -> &mut Grads {
        if self.shard.splits_gradients() {
            let mut wanted = self.completed(part);
            if part == ModelPart::Head && wanted.is_empty() {
                // Tied: the head adds to the embedding.
                wanted.push(self.params.embed_tokens);
            }
            for param in wanted {
                let shape: [usize; 2] = match param.shape(&self.config)[..] {
                    [rows, columns] => [rows, columns],
                    _ => continue,
                };
                let zeros = || Tensor::zeros(shape, (&self.device, DType::F32));
                match tensor_of(&mut self.grads, &self.params, param) {
                    Some(grad) if grad.dims() != shape => *grad = zeros(),
                    _ => {}
                }
            }
        }
        &mut self.grads
    }

    fn end(&mut self, part: ModelPart) {
        if !self.travels || self.failed.is_some() {
            return;
        }
        for param in self.completed(part) {
            let Some(grad) = tensor_of(&mut self.grads, &self.params, param) else { continue };
            let complete = match self.shard.splits_gradients() {
                true => std::mem::replace(grad, placeholder(&self.device, DType::F32)),
                false => grad.clone(),
            };
            if let Err(error) = self.pack(param, complete) {
                self.failed = Some(error);
                return;
            }
        }
    }
}
