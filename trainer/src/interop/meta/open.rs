//! A directory in Meta's layout as a model.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_model::LlamaConfig;

use super::archive::{Archive, unfit};
use super::params::Params;
use super::{PARAMS_FILE, file_name};
use crate::checkpoint::hugging_face::{SpecialTokens, TOKENIZER_FILE};
use crate::error::{Result, TrainerError};
use crate::interop::parameter::{Parameter, Shape, Split};
use crate::interop::rows::{Heads, Piece, RotaryLayout, Rows};
use crate::interop::stored_model::{
    StoredModel, StoredWeights, TextSettings, check_vocabulary, file_error,
};

/// Most files of a model-parallel group.
const MAX_SHARDS: usize = 100;
/// Tables that the reference code stores and computes anew.
const IGNORED_TENSORS: &str = "rope.freqs";

/// The files of a model-parallel group, in order.
#[derive(Debug)]
struct MetaWeights(Vec<Archive>);

impl StoredWeights for MetaWeights {
    fn rows(&self, parameter: Parameter, shape: Shape, head_dim: usize) -> Result<Rows<'_>> {
        let name = parameter.meta();
        let heads = Heads { layout: RotaryLayout::Pairs, head_dim };
        let mut rows = Rows {
            name,
            shape,
            heads: parameter.is_rotary().then_some(heads),
            pieces: Vec::new(),
            packed: None,
            low_rank: None,
        };
        let split = self.split(parameter, shape)?;
        let count = self.0.len();
        for (n, archive) in self.0.iter().enumerate() {
            let (mut of_rows, mut of_columns) = (0..shape.rows, 0..shape.columns);
            let share = |whole: usize| n * whole / count..(n + 1) * whole / count;
            match split {
                Split::Copied => {}
                Split::Rows => of_rows = share(shape.rows),
                Split::Columns => of_columns = share(shape.columns),
            }
            let part = Shape {
                rows: of_rows.len(),
                columns: of_columns.len(),
                is_vector: shape.is_vector,
            };
            let Some((tensor, bytes)) = archive.tensor(&rows.name) else {
                let expected = format!("{:?}", part.dimensions());
                return Err(unfit(archive, &rows.name, "no such tensor".into(), expected));
            };
            if tensor.shape != part.dimensions() {
                let found = format!("{:?} of {}", tensor.shape, tensor.stored.name());
                let expected = format!("{:?}, 1/{count} of the parameter", part.dimensions());
                return Err(unfit(archive, &rows.name, found, expected));
            }
            let piece = Piece { bytes, stored: tensor.stored, rows: of_rows, columns: of_columns };
            match (split, rows.pieces.first()) {
                (Split::Copied, Some(first)) => {
                    if first.stored != piece.stored || first.bytes[..] != piece.bytes[..] {
                        let expected = format!("the values of {}", file_name(0));
                        return Err(unfit(archive, &rows.name, "other values".into(), expected));
                    }
                }
                _ => rows.pieces.push(piece),
            }
        }
        Ok(rows)
    }
}

impl MetaWeights {
    /// How the files share a parameter. LLaMA 1 and 2 cut the embedding by columns, LLaMA 3 by rows.
    fn split(&self, parameter: Parameter, shape: Shape) -> Result<Split> {
        let count = self.0.len();
        let by_rows = parameter == Parameter::embedding()
            && count > 1
            && self
                .0
                .first()
                .and_then(|first| first.tensor(&parameter.meta()))
                .is_some_and(|(tensor, _)| tensor.shape == [shape.rows / count, shape.columns]);
        let split = if by_rows { Split::Rows } else { parameter.split() };
        let whole = match split {
            Split::Copied => count,
            Split::Rows => shape.rows,
            Split::Columns => shape.columns,
        };
        match self.0.first() {
            Some(first) if !whole.is_multiple_of(count) => {
                let expected = format!("a multiple of {count}, the number of files");
                Err(unfit(first, &parameter.meta(), format!("a length of {whole}"), expected))
            }
            _ => Ok(split),
        }
    }

    /// Length of the first dimension of a parameter, over all files that share it.
    fn first_dimension(&self, parameter: Parameter) -> Result<usize> {
        let mut sum = 0usize;
        for archive in &self.0 {
            let tensor = archive.tensor(&parameter.meta());
            let length = tensor.and_then(|(tensor, _)| tensor.shape.first().copied());
            let Some(length) = length else {
                let (found, expected) = ("no such tensor".into(), "a matrix".into());
                return Err(unfit(archive, &parameter.meta(), found, expected));
            };
            sum = sum.saturating_add(length);
        }
        Ok(sum)
    }

    /// Every tensor is a parameter of the model, or a table. The parameters are all there, so that
    /// the set of their names is no larger than the files.
    fn refuse_unknown(&self, config: &LlamaConfig) -> Result<()> {
        let known: HashSet<String> =
            Parameter::all(config).map(|parameter| parameter.meta()).collect();
        for archive in &self.0 {
            let unknown = |name: &&str| !known.contains(*name) && !name.ends_with(IGNORED_TENSORS);
            if let Some(name) = archive.names().find(unknown) {
                let expected = "only the parameters of a LLaMA without biases";
                let found = "a tensor of this name";
                return Err(unfit(archive, name, found.into(), expected.into()));
            }
        }
        Ok(())
    }
}

/// Opens a directory. `max_seq_len` is the model's context, which the files do not say.
///
/// # Errors
/// Which file is missing or damaged, which tensor is missing, not known or of another shape than
/// `params.json` asks for.
pub fn open(dir: &Path, max_seq_len: usize) -> Result<StoredModel> {
    let params = Params::read(dir)?;
    let weights = MetaWeights(open_archives(dir)?);
    let tokenizer = open_tokenizer(dir)?;
    let vocab_size = match params.vocab_size {
        Some(size) if size > 0 => usize::try_from(size).unwrap_or(usize::MAX),
        // The head is cut by rows, so its rows are counted over the files.
        _ => weights.first_dimension(Parameter::head())?,
    };
    let hidden_dim = weights.first_dimension(Parameter::gate(0))?;
    let config = params.config(dir, hidden_dim, vocab_size, max_seq_len)?;
    let default = SpecialTokens::default();
    let id = |mark: fn(&Tokenizer) -> Option<u32>| tokenizer.as_ref().and_then(mark);
    let tokens = SpecialTokens {
        bos: id(Tokenizer::bos_id).unwrap_or(default.bos),
        eos: id(Tokenizer::eos_id).unwrap_or(default.eos),
    };
    check_vocabulary(&dir.join(PARAMS_FILE), tokenizer.as_ref(), tokens, vocab_size)?;
    for parameter in Parameter::all(&config) {
        weights.rows(parameter, parameter.shape(&config), config.head_dim())?;
    }
    weights.refuse_unknown(&config)?;
    Ok(StoredModel {
        tokens,
        tokenizer,
        text: TextSettings::default(),
        hugging_face_dir: None,
        weights: Box::new(weights),
        config,
    })
}

/// The files of the group, which are numbered from 0 without a gap.
fn open_archives(dir: &Path) -> Result<Vec<Archive>> {
    let path = |n: usize| dir.join(file_name(n));
    let count = (0..MAX_SHARDS).take_while(|n| path(*n).exists()).count();
    let beyond = (count..MAX_SHARDS).find(|n| path(*n).exists());
    if let Some(beyond) = beyond {
        let reason = format!("missing, but {} is there: fetch the model again", file_name(beyond));
        return Err(file_error(&path(count), reason));
    }
    if count == 0 {
        let reason = format!("has no {}: expected a model in Meta's layout", file_name(0));
        return Err(file_error(dir, reason));
    }
    (0..count).map(|n| Archive::open(&path(n))).collect()
}

/// The tokenizer of the directory, or of the one above it, where Meta puts it.
fn open_tokenizer(dir: &Path) -> Result<Option<Tokenizer>> {
    let beside: PathBuf = dir.join(TOKENIZER_FILE);
    let above = dir.parent().map(|parent| parent.join(TOKENIZER_FILE));
    let found = [Some(beside), above].into_iter().flatten().find(|path| path.is_file());
    found.map(|path| Tokenizer::open(&path)).transpose().map_err(TrainerError::from)
}
