//! Whole tensors for a checkpoint, from the ranks that have their parts.
//!
//! The first rank writes. All ranks go through the tensors in one order; the writer holds one at a
//! time. A copy's parts of a tensor rank's matrix come together on the first copy, and those of its
//! tensor ranks on the first rank.

use std::io::Write;

use altiplano_model::parallel::TensorRank;
use altiplano_model::param_ops::AdamWState;
use altiplano_model::param_tree::{Param, ParamTree};
use altiplano_model::{LlamaConfig, weights};

use super::adamw::{Remembered, ShardedAdamW};
use crate::checkpoint::CheckpointFiles;
use crate::error::{Result, TrainerError};
use crate::world::Ranks;

/// Elements that are turned into bytes at a time.
const BLOCK: usize = 1 << 16;

/// A tensor of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct NamedTensor {
    /// Its name in the file.
    pub name: String,
    pub param: Param,
    pub what: Remembered,
}

fn named(config: &LlamaConfig, kinds: &[(&str, Remembered)]) -> Vec<NamedTensor> {
    let params = ParamTree::of_model(config);
    let mut tensors = Vec::new();
    for (prefix, what) in kinds {
        for (param, _) in params.iter() {
            tensors.push(NamedTensor { name: format!("{prefix}{param}"), param, what: *what });
        }
    }
    // The order of a file.
    tensors.sort_by(|left, right| left.name.cmp(&right.name));
    tensors
}

/// The tensors of the file of weights, in its order.
pub(crate) fn named_weights(config: &LlamaConfig) -> Vec<NamedTensor> {
    named(config, &[("", Remembered::Master)])
}

/// The tensors of the file of moments, in its order.
pub(crate) fn named_moments(config: &LlamaConfig) -> Vec<NamedTensor> {
    named(config, &[("m.", Remembered::M), ("v.", Remembered::V)])
}

/// What a rank holds of a checkpoint.
#[derive(Clone, Copy)]
pub(crate) enum Held<'a> {
    /// A part of its copy's.
    Shards(&'a ShardedAdamW),
    /// All of its copy's.
    Copies(&'a AdamWState),
}

/// The whole of `param` from the parts of the tensor ranks of a copy, on the first of them: `part` is this
/// rank's.
///
/// # Errors
/// A rank ended, did not answer in time, or called something else.
pub(crate) fn join_parts(
    part: Vec<f32>,
    param: Param,
    config: &LlamaConfig,
    ranks: &Ranks,
    what: &str,
) -> Result<Option<Vec<f32>>> {
    let (place, group) = (ranks.place(), ranks.tensor_ranks().of(what));
    if place.rank() > 0 {
        if place.is_first_holder(param, config) {
            group.start_send::<f32, _>(part, 0)?.wait()?;
        }
        return Ok(None);
    }
    let width = param.shape(config).last().copied().unwrap_or(1);
    let mut whole = vec![0.0; param.count(config)];
    place.slice(param, config).put(&part, &mut whole, width);
    for other in TensorRank::all(place.ranks(), config)?.into_iter().skip(1) {
        if other.is_first_holder(param, config) {
            let slice = other.slice(param, config);
            let received = vec![0.0; slice.rows.len() * slice.columns.len()];
            let received = group.start_receive::<f32, _>(received, other.rank())?.wait()?;
            slice.put(&received, &mut whole, width);
        }
    }
    Ok(Some(whole))
}

/// The tensors of a checkpoint, one after the other, on the first rank; their parts leave the others.
pub(crate) struct GatheredTensors<'a> {
    held: Held<'a>,
    config: &'a LlamaConfig,
    ranks: &'a Ranks,
    tensors: Vec<NamedTensor>,
    next: usize,
}

impl<'a> GatheredTensors<'a> {
    /// Those of `tensors`, in this order.
    pub fn new(
        held: Held<'a>,
        config: &'a LlamaConfig,
        ranks: &'a Ranks,
        tensors: Vec<NamedTensor>,
    ) -> Self {
        Self { held, config, ranks, tensors, next: 0 }
    }

    /// The values of the next tensor; none on the other ranks, and behind the last.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub fn next(&mut self) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.tensors.get(self.next).cloned() else { return Ok(None) };
        self.next += 1;
        let part = match self.held {
            Held::Shards(optimizer) => self.of_copy(optimizer, &tensor)?,
            Held::Copies(state) => {
                let first = self.ranks.data_group().rank() == 0;
                first.then(|| of_state(state, &tensor)).flatten()
            }
        };
        let what = format!("{} for the checkpoint", tensor.name);
        match part {
            Some(part) if self.ranks.place().ranks() > 1 => {
                join_parts(part, tensor.param, self.config, self.ranks, &what)
            }
            part => Ok(part),
        }
    }

    /// This tensor rank's part of a tensor on the first copy, of the shards of all copies.
    fn of_copy(&self, optimizer: &ShardedAdamW, tensor: &NamedTensor) -> Result<Option<Vec<f32>>> {
        let (layout, group) = (optimizer.layout(), optimizer.group());
        let own = optimizer.own(tensor.what, tensor.param);
        let Some((bucket, number)) = layout.place(tensor.param) else {
            return Ok(own.filter(|_| group.rank() == 0));
        };
        let group = group.of(format!("{} for the checkpoint", tensor.name));
        if group.rank() > 0 {
            if let Some(own) = own {
                group.start_send::<f32, _>(own, 0)?.wait()?;
            }
            return Ok(None);
        }
        let local = self.ranks.place().local_config(self.config);
        let mut whole = vec![0.0; tensor.param.count(&local)];
        if let (Some(own), Some(segment)) = (own, layout.segment(bucket, number, 0)) {
            whole[segment.in_matrix].copy_from_slice(&own);
        }
        for copy in 1..group.ranks() {
            let Some(segment) = layout.segment(bucket, number, copy) else { continue };
            let received = vec![0.0; segment.in_matrix.len()];
            let received = group.start_receive::<f32, _>(received, copy)?.wait()?;
            whole[segment.in_matrix].copy_from_slice(&received);
        }
        Ok(Some(whole))
    }

    /// Writes the file `name` with `tensors`, which are the next ones, on the first copy.
    ///
    /// # Errors
    /// When the file cannot be written; as [`GatheredTensors::next`].
    pub fn write(
        &mut self,
        files: &mut CheckpointFiles,
        name: &str,
        tensors: &[NamedTensor],
    ) -> Result<()> {
        let shape = |tensor: &NamedTensor| (tensor.name.clone(), tensor.param.shape(self.config));
        let shapes = tensors.iter().map(shape).collect();
        files.write(name, |out, path| {
            weights::write_header(out, path, shapes)?;
            for _ in tensors {
                for block in self.next()?.unwrap_or_default().chunks(BLOCK) {
                    let bytes: Vec<u8> =
                        block.iter().flat_map(|value| value.to_le_bytes()).collect();
                    out.write_all(&bytes).map_err(TrainerError::io(path))?;
                }
            }
            Ok(())
        })
    }

    /// Goes through the tensors that are left, so that no copy waits for a writer that has failed.
    ///
    /// # Errors
    /// As [`GatheredTensors::next`].
    pub fn finish(&mut self) -> Result<()> {
        while self.next < self.tensors.len() {
            self.next()?;
        }
        Ok(())
    }
}

/// A tensor of an optimizer that is whole.
fn of_state(state: &AdamWState, tensor: &NamedTensor) -> Option<Vec<f32>> {
    let tree = match tensor.what {
        Remembered::Master => &state.master_weights,
        Remembered::M => &state.m,
        Remembered::V => &state.v,
    };
    let (_, leaf) = tree.iter().nth(tensor.param.index())?;
    Some(leaf.to_data().iter::<f32>().collect())
}
