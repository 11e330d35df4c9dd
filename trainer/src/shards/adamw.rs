//! AdamW where each copy of a model has the master weights and moments of a part of it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use altiplano_comm::{Element, Group, Pending, Rows};
use altiplano_model::backend::AdamWStep;
use altiplano_model::ops;
use altiplano_model::param_ops::step_of;
use altiplano_model::param_tree::{Leaf, Param, ParamTree};
use altiplano_model::params::Weights;
use altiplano_model::{LlamaConfig, Precision};
use burn::tensor::{DType, Device, Tensor, TensorData, bf16};

use super::buckets::{GradExchange, elements, placeholder, tensor_of, values};
use super::layout::{FlatLayout, Segment};
use super::weights::ShardedWeights;
use crate::adamw::numbers_of_step;
use crate::config::OptimizerConfig;
use crate::error::{Result, TrainerError};

/// Buckets of updated weights that are under way at a time.
const UNDER_WAY: usize = 2;

/// Of one tensor, or of a part of it: three numbers for every element, f32.
#[derive(Debug)]
struct State {
    master: Tensor<1>,
    m: Tensor<1>,
    v: Tensor<1>,
}

/// What AdamW remembers of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// The weight in full precision.
    Master,
    /// Running mean of the gradient.
    M,
    /// Running mean of its square.
    V,
}

impl State {
    fn of(&self, what: Remembered) -> Vec<f32> {
        values(match what {
            Remembered::Master => &self.master,
            Remembered::M => &self.m,
            Remembered::V => &self.v,
        })
    }
}

/// The optimizer of a copy: of its part of every bucket, and of all norm gains.
#[derive(Debug)]
pub struct ShardedAdamW {
    model: LlamaConfig,
    config: OptimizerConfig,
    layout: Arc<FlatLayout>,
    params: ParamTree<Param, Param>,
    group: Group,
    overlap: bool,
    device: Device,
    gains: Vec<(Param, State)>,
    parts: Vec<Vec<(Segment, State)>>,
    /// Where copies split the weights too: this one's parts of them.
    weights: Option<Arc<ShardedWeights>>,
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32))
}

/// Where master weights and moments come from: what of it, the parameter, which elements of this tensor rank's part.
pub(crate) type ReadState<'a> =
    &'a mut dyn FnMut(Remembered, Param, Range<usize>) -> Result<Vec<f32>>;

impl ShardedAdamW {
    /// The part of the copy that `group` says, which `read` gives.
    ///
    /// # Errors
    /// The first of `read`.
    pub(crate) fn new(
        model: &LlamaConfig,
        config: OptimizerConfig,
        layout: Arc<FlatLayout>,
        group: Group,
        overlap: bool,
        device: &Device,
        read: ReadState<'_>,
    ) -> Result<Self> {
        let params = ParamTree::of_model(model);
        let mut state = |param: Param, range: Range<usize>| {
            let mut read =
                |what| Ok::<_, TrainerError>(vector(read(what, param, range.clone())?, device));
            Ok::<State, TrainerError>(State {
                master: read(Remembered::Master)?,
                m: read(Remembered::M)?,
                v: read(Remembered::V)?,
            })
        };
        let mut gains = Vec::new();
        let mut parts: Vec<Vec<(Segment, State)>> =
            layout.buckets().iter().map(|_| Vec::new()).collect();
        for (param, _) in params.iter() {
            let Some((bucket, number)) = layout.place(param) else {
                gains.push((param, state(param, 0..param.count(model))?));
                continue;
            };
            if let Some(segment) = layout.segment(bucket, number, group.rank()) {
                let state = state(param, segment.in_matrix.clone())?;
                parts[bucket].push((segment, state));
            }
        }
        // As the bucket has them.
        parts.iter_mut().for_each(|part| part.sort_by_key(|(segment, _)| segment.in_part.start));
        Ok(Self {
            model: model.clone(),
            config,
            layout,
            params,
            group,
            overlap,
            device: device.clone(),
            gains,
            parts,
            weights: None,
        })
    }

    /// Gives the parts of the weights, in the precision of the run, which change with the master weights from now
    /// on; and the weights that every copy has: the norm gains.
    pub(crate) fn split_weights(&mut self, precision: Precision) -> (Weights, Arc<ShardedWeights>) {
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let buckets = 0..self.parts.len();
        let part = |bucket: usize| {
            let mut part = vec![0.0; self.layout.part_length(bucket)];
            for (segment, state) in &self.parts[bucket] {
                part[segment.in_part.clone()].copy_from_slice(&values(&state.master));
            }
            vector(part, &self.device).cast(dtype)
        };
        let parts: Vec<Tensor<1>> = buckets.map(part).collect();
        let (layout, group) = (Arc::clone(&self.layout), self.group.clone());
        let weights = ShardedWeights::new(&self.model, layout, group, self.overlap, parts);
        let weights = Arc::new(weights);
        self.weights = Some(Arc::clone(&weights));
        let mut gains = self.gains.iter();
        let held = self.params.each_ref().map(|_| (), |_| ());
        let Ok(held) = held.try_map(
            &mut gains,
            |gains, ()| {
                let gain = gains.next().map(|(_, state)| values(&state.master));
                Ok::<_, Infallible>(vector(gain.unwrap_or_default(), &self.device))
            },
            |_, ()| Ok::<_, Infallible>(placeholder(&self.device, dtype)),
        );
        (held, weights)
    }

    /// The update of `step`, counted from 1: the own part of the master weights moves by the gradients of
    /// `exchange`, and the copies hand each other what the forward pass reads, unless passes gather it.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub fn step(
        &mut self,
        step: u64,
        weights: &mut Weights,
        exchange: &GradExchange,
        lr: f64,
        grad_scale: f64,
    ) -> Result<()> {
        let hyper = numbers_of_step(&self.config, step, lr, grad_scale);
        let gradients: Vec<(Param, &[f32])> = exchange.gains().collect();
        let leaves = weights.iter_mut().filter_map(|(_, leaf)| match leaf {
            Leaf::Vector(weight) => Some(weight),
            Leaf::Matrix(_) => None,
        });
        for (((param, state), (_, gradient)), weight) in
            self.gains.iter_mut().zip(gradients).zip(leaves)
        {
            let hyper = step_of(*param, &hyper);
            let gradient = vector(gradient.to_vec(), &self.device);
            ops::adamw_step(&mut state.master, &mut state.m, &mut state.v, &gradient, None, &hyper);
            // A copy, since the master weight is changed in place.
            *weight = vector(values(&state.master), &self.device);
        }
        match weights.embed_tokens.dtype() {
            DType::BF16 => self.step_matrices::<bf16>(weights, exchange, &hyper),
            _ => self.step_matrices::<f32>(weights, exchange, &hyper),
        }
    }

    fn step_matrices<E: Element + burn::tensor::Element + Default>(
        &mut self,
        weights: &mut Weights,
        exchange: &GradExchange,
        hyper: &AdamWStep,
    ) -> Result<()> {
        let mut under_way: VecDeque<(usize, Pending<Vec<E>>)> = VecDeque::new();
        let most = if self.overlap { UNDER_WAY } else { 0 };
        // In the order in which the next forward pass needs them.
        for bucket in (0..self.parts.len()).rev() {
            let rows = Rows::single(self.layout.buckets()[bucket].length);
            let own = rows.part(self.group.rank(), self.group.ranks());
            let (length, start) = match self.weights {
                Some(_) => (own.len(), 0),
                None => (rows.count, own.start),
            };
            let mut whole = vec![E::default(); length];
            let own = &mut whole[start..start + own.len()];
            for (segment, state) in &mut self.parts[bucket] {
                let hyper = step_of(segment.param, hyper);
                let gradient = exchange.part(bucket)[segment.in_part.clone()].to_vec();
                let gradient = vector(gradient, &self.device);
                let State { master, m, v } = state;
                let updated = if E::dtype() == DType::F32 {
                    ops::adamw_step(master, m, v, &gradient, None, &hyper);
                    master.to_data()
                } else {
                    let count = segment.in_part.len();
                    let mut copy = Tensor::<1>::zeros([count], (&self.device, E::dtype()));
                    ops::adamw_step(master, m, v, &gradient, Some(&mut copy), &hyper);
                    copy.into_data()
                };
                own[segment.in_part.clone()].copy_from_slice(&elements::<E>(&updated));
            }
            if let Some(weights) = &self.weights {
                let data = TensorData::new(whole, [length]);
                weights.set(bucket, Tensor::from_data(data, (&self.device, E::dtype())));
                continue;
            }
            let group = self.group.of(self.layout.describe("weights", bucket));
            under_way.push_back((bucket, group.start_all_gather::<E, _>(whole, rows)?));
            while under_way.len() > most {
                let Some((bucket, pending)) = under_way.pop_front() else { break };
                self.unpack(bucket, &pending.wait()?, weights);
            }
        }
        for (bucket, pending) in under_way {
            self.unpack(bucket, &pending.wait()?, weights);
        }
        Ok(())
    }

    fn unpack<E: burn::tensor::Element>(&self, bucket: usize, whole: &[E], weights: &mut Weights) {
        for matrix in &self.layout.buckets()[bucket].matrices {
            let values = whole[matrix.start..matrix.start + matrix.count].to_vec();
            let data = TensorData::new(values, matrix.param.shape(&self.model));
            if let Some(weight) = tensor_of(weights, &self.params, matrix.param) {
                *weight = Tensor::from_data(data, (&self.device, E::dtype()));
            }
        }
    }

    /// What this copy remembers of its elements of a parameter.
    pub(crate) fn own(&self, what: Remembered, param: Param) -> Option<Vec<f32>> {
        if let Some((_, state)) = self.gains.iter().find(|(gain, _)| *gain == param) {
            return Some(state.of(what));
        }
        let (bucket, _) = self.layout.place(param)?;
        let (_, state) = self.parts[bucket].iter().find(|(segment, _)| segment.param == param)?;
        Some(state.of(what))
    }

    /// The master weights, moments and weights of every norm gain, which all copies hold: their bytes.
    pub(crate) fn held_in_common(&self) -> impl Iterator<Item = (Param, Vec<f32>)> {
        let kinds = [Remembered::Master, Remembered::M, Remembered::V];
        self.gains.iter().map(move |(param, state)| {
            (*param, kinds.iter().flat_map(|kind| state.of(*kind)).collect())
        })
    }

    /// What this copy has of the weights that copies split.
    pub(crate) fn weights(&self) -> Option<&ShardedWeights> {
        self.weights.as_deref()
    }

    /// Bytes of the optimizer's tensors on this copy.
    pub fn state_bytes(&self) -> usize {
        let matrices = self.parts.iter().flatten().map(|(segment, _)| segment.in_part.len());
        let gains = self.gains.iter().map(|(param, _)| param.count(&self.model));
        3 * size_of::<f32>() * (matrices.sum::<usize>() + gains.sum::<usize>())
    }

    pub(crate) fn layout(&self) -> &FlatLayout {
        &self.layout
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }
}
