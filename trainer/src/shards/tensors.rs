//! Whole tensors for a checkpoint, from the ranks that have their parts.
//!
//! Small checkpoints are written by the first rank, large ones by several, each with a file of its own. All
//! ranks go through the tensors in one order; a writer holds one at a time. The copies' parts of a
//! tensor rank's matrix come together on the copy of the writer, and those of its tensor ranks on
//! the writer.

use std::io::Write;
use std::path::Path;

use altiplano_model::parallel::TensorRank;
use altiplano_model::param_ops::AdamWState;
use altiplano_model::param_tree::{Param, ParamTree};
use altiplano_model::{LlamaConfig, weight_files, weights};

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

/// The whole of `param` from the parts of the tensor ranks of a copy, on the one of them that is `root`:
/// `part` is this rank's.
///
/// # Errors
/// A rank ended, did not answer in time, or called something else.
pub(crate) fn join_parts(
    part: Vec<f32>,
    param: Param,
    config: &LlamaConfig,
    ranks: &Ranks,
    root: usize,
    what: &str,
) -> Result<Option<Vec<f32>>> {
    let (place, group) = (ranks.place(), ranks.tensor_ranks().of(what));
    if place.ranks() == 1 {
        return Ok(Some(part));
    }
    if place.rank() != root {
        if place.is_first_holder(param, config) {
            group.start_send::<f32, _>(part, root)?.wait()?;
        }
        return Ok(None);
    }
    let width = param.shape(config).last().copied().unwrap_or(1);
    let mut whole = vec![0.0; param.count(config)];
    for holder in TensorRank::all(place.ranks(), config)? {
        if !holder.is_first_holder(param, config) {
            continue;
        }
        let slice = holder.slice(param, config);
        if holder.rank() == root {
            slice.put(&part, &mut whole, width);
            continue;
        }
        let received = vec![0.0; slice.rows.len() * slice.columns.len()];
        let received = group.start_receive::<f32, _>(received, holder.rank())?.wait()?;
        slice.put(&received, &mut whole, width);
    }
    Ok(Some(whole))
}

/// The tensors of a checkpoint on their way from the ranks that have parts of them to the ranks that write
/// them. All ranks call the same functions in the same order.
pub(crate) struct TensorWriters<'a> {
    pub held: Held<'a>,
    pub config: &'a LlamaConfig,
    pub ranks: &'a Ranks,
    /// Tensors of more bytes than this are written to several files, as far as there are ranks.
    pub file_bytes: u64,
}

impl TensorWriters<'_> {
    /// Writes `tensors`, which are in the order of their names, to the file `name` or to several in its
    /// place with their index, each on a rank of its own.
    ///
    /// # Errors
    /// When the file of this rank cannot be written, which other ranks do not wait for; when the exchange
    /// fails.
    pub fn write(
        &self,
        files: &mut CheckpointFiles,
        name: &str,
        tensors: Vec<NamedTensor>,
    ) -> Result<()> {
        let dealt = deal(tensors, self.config, self.ranks.count(), self.file_bytes);
        let names: Vec<String> = (0..dealt.len())
            .map(|number| weight_files::shard_name(name, number, dealt.len()))
            .collect();
        let writer = |file: usize| file * self.ranks.count() / dealt.len();
        let me = self.ranks.rank();
        let mut exchanged = false;
        let written = match (0..dealt.len()).find(|file| writer(*file) == me) {
            None => Ok(()),
            Some(file) => files.write(&names[file], |out, path| {
                let shapes = dealt[file]
                    .iter()
                    .map(|tensor| (tensor.name.clone(), tensor.param.shape(self.config)));
                let header = weights::write_header(out, path, shapes.collect());
                let mut written = header.map_err(TrainerError::from);
                exchanged = true;
                self.exchange(&dealt, writer, |values| {
                    if written.is_ok() {
                        written = write_values(out, path, values);
                    }
                })?;
                written
            }),
        };
        if !exchanged {
            // Others do not wait for a writer that has failed.
            self.exchange(&dealt, writer, |_| ())?;
        }
        written?;
        if dealt.len() > 1 && me == 0 {
            let index =
                weight_files::index_json(names.iter().zip(&dealt).map(|(file, tensors)| {
                    let tensors = tensors.iter();
                    let sized = tensors
                        .map(|tensor| (tensor.name.as_str(), 4 * tensor.param.count(self.config)));
                    (file.as_str(), sized.collect())
                }));
            files.write_bytes(&weight_files::index_name(name), index.as_bytes())?;
        }
        Ok(())
    }

    /// Brings every tensor to its writer, which hands its own to `put` in the order of its file. Writers take turns, so
    /// that one writes while another receives.
    fn exchange(
        &self,
        dealt: &[Vec<NamedTensor>],
        writer: impl Fn(usize) -> usize,
        mut put: impl FnMut(&[f32]),
    ) -> Result<()> {
        let longest = dealt.iter().map(Vec::len).max().unwrap_or(0);
        for turn in 0..longest {
            for (file, tensors) in dealt.iter().enumerate() {
                let Some(tensor) = tensors.get(turn) else { continue };
                if let Some(values) = self.bring(tensor, writer(file))? {
                    put(&values);
                }
            }
        }
        Ok(())
    }

    /// The values of a tensor on the rank `writer`.
    fn bring(&self, tensor: &NamedTensor, writer: usize) -> Result<Option<Vec<f32>>> {
        let (place, grid) = (self.ranks.place(), self.ranks.grid());
        let (copy, root) = (grid.data_rank(writer), grid.tensor_rank(writer));
        let holds = place.is_first_holder(tensor.param, self.config);
        let here = self.ranks.share().index == copy;
        let part = match self.held {
            // What several tensor ranks hold, the first gives.
            _ if !holds => None,
            Held::Shards(optimizer) => self.of_copies(optimizer, tensor, copy)?,
            Held::Copies(state) => here.then(|| of_state(state, tensor)).flatten(),
        };
        if !here {
            return Ok(None);
        }
        let what = format!("{} for the checkpoint", tensor.name);
        join_parts(part.unwrap_or_default(), tensor.param, self.config, self.ranks, root, &what)
    }

    /// This tensor rank's part of a tensor on the copy `root`, of the shards of all copies.
    fn of_copies(
        &self,
        optimizer: &ShardedAdamW,
        tensor: &NamedTensor,
        root: usize,
    ) -> Result<Option<Vec<f32>>> {
        let (layout, group) = (optimizer.layout(), optimizer.group());
        let (own, is_root) = (optimizer.own(tensor.what, tensor.param), group.rank() == root);
        let Some((bucket, number)) = layout.place(tensor.param) else {
            return Ok(own.filter(|_| is_root));
        };
        let group = group.of(format!("{} for the checkpoint", tensor.name));
        if !is_root {
            if let Some(own) = own {
                group.start_send::<f32, _>(own, root)?.wait()?;
            }
            return Ok(None);
        }
        let local = self.ranks.place().local_config(self.config);
        let mut whole = vec![0.0; tensor.param.count(&local)];
        for copy in 0..group.ranks() {
            let Some(segment) = layout.segment(bucket, number, copy) else { continue };
            match &own {
                Some(own) if copy == root => whole[segment.in_matrix].copy_from_slice(own),
                _ => {
                    let received = vec![0.0; segment.in_matrix.len()];
                    let received = group.start_receive::<f32, _>(received, copy)?.wait()?;
                    whole[segment.in_matrix].copy_from_slice(&received);
                }
            }
        }
        Ok(Some(whole))
    }
}

/// The tensors of each file: neighbours together, files of about the same length, one for so many bytes but not more
/// than there are `ranks`.
fn deal(
    tensors: Vec<NamedTensor>,
    config: &LlamaConfig,
    ranks: usize,
    file_bytes: u64,
) -> Vec<Vec<NamedTensor>> {
    let bytes = |tensor: &NamedTensor| (size_of::<f32>() * tensor.param.count(config)) as u64;
    let total: u64 = tensors.iter().map(bytes).sum();
    let files = total.div_ceil(file_bytes.max(1)).clamp(1, ranks as u64);
    let mut dealt: Vec<Vec<NamedTensor>> = (0..files).map(|_| Vec::new()).collect();
    let mut before = 0;
    for tensor in tensors {
        // By the middle of the tensor, so that no file gets all of what lies on a border.
        let middle = before + bytes(&tensor) / 2;
        before += bytes(&tensor);
        let file = (u128::from(middle) * u128::from(files) / u128::from(total.max(1))) as usize;
        dealt[file.min(files as usize - 1)].push(tensor);
    }
    dealt.retain(|tensors| !tensors.is_empty());
    dealt
}

fn write_values(out: &mut impl Write, path: &Path, values: &[f32]) -> Result<()> {
    for block in values.chunks(BLOCK) {
        let bytes: Vec<u8> = block.iter().flat_map(|value| value.to_le_bytes()).collect();
        out.write_all(&bytes).map_err(TrainerError::io(path))?;
    }
    Ok(())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config() -> LlamaConfig {
        let yaml = "{dim: 64, n_layers: 3, n_heads: 4, n_kv_heads: 2, hidden_dim: 160, vocab_size: 300, max_seq_len: 8}";
        serde_yaml::from_str(yaml).unwrap()
    }

    /// Every tensor is in one file, files are in the order of the names and about equal.
    #[test]
    fn tensors_are_dealt_evenly_to_files() {
        let config = config();
        let all = named_moments(&config);
        let names = |dealt: &[Vec<NamedTensor>]| -> Vec<String> {
            dealt.iter().flatten().map(|tensor| tensor.name.clone()).collect()
        };
        let total: usize = all.iter().map(|tensor| 4 * tensor.param.count(&config)).sum();
        for (ranks, file_bytes, expected) in [
            (1, 1, 1),
            (4, 4 << 30, 1),
            (4, total as u64, 1),
            (4, total as u64 / 2, 2),
            (4, 1, 4),
            (3, total as u64 / 3 + 1, 3),
        ] {
            let dealt = deal(all.clone(), &config, ranks, file_bytes);
            assert_eq!(dealt.len(), expected, "{ranks} ranks, {file_bytes} bytes");
            assert_eq!(names(&dealt), names(std::slice::from_ref(&all)));
            for tensors in &dealt {
                let bytes: usize = tensors.iter().map(|t| 4 * t.param.count(&config)).sum();
                let largest = 4 * 300 * 64;
                assert!(bytes.abs_diff(total / expected) <= largest, "{bytes} of {total}");
            }
        }
        // More files than tensors that are large: none is empty.
        assert!(deal(all, &config, 1000, 1).iter().all(|tensors| !tensors.is_empty()));
    }
}
