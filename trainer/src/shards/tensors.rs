//! Whole tensors for a checkpoint, from the copies that have their parts.
//!
//! The first copy writes. All copies go through the tensors in one order; the writer holds one at a
//! time.

use std::io::Write;

use altiplano_model::param_tree::{Param, ParamTree};
use altiplano_model::{LlamaConfig, weights};

use super::adamw::{Remembered, ShardedAdamW};
use crate::checkpoint::CheckpointFiles;
use crate::error::{Result, TrainerError};

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

/// The tensors of a checkpoint, one after the other, on the first copy; their parts leave the others.
pub(crate) struct GatheredTensors<'a> {
    optimizer: &'a ShardedAdamW,
    config: &'a LlamaConfig,
    tensors: Vec<NamedTensor>,
    next: usize,
}

impl<'a> GatheredTensors<'a> {
    /// Those of `tensors`, in this order.
    pub fn new(
        optimizer: &'a ShardedAdamW,
        config: &'a LlamaConfig,
        tensors: Vec<NamedTensor>,
    ) -> Self {
        Self { optimizer, config, tensors, next: 0 }
    }

    /// The values of the next tensor; none on the other copies, and behind the last.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub fn next(&mut self) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.tensors.get(self.next).cloned() else { return Ok(None) };
        self.next += 1;
        let (layout, group) = (self.optimizer.layout(), self.optimizer.group());
        let own = self.optimizer.own(tensor.what, tensor.param);
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
        let mut whole = vec![0.0; tensor.param.count(self.config)];
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
