//! A GGUF file as a model.

use std::collections::HashSet;
use std::path::Path;

use altiplano_model::LlamaConfig;
use altiplano_model::mapped_file::MappedFile;

use super::container::{Contents, TensorPlace, Value, parse};
use super::{key, rope_scaling, vocabulary};
use crate::error::{Result, TrainerError};
use crate::interop::parameter::{Parameter, Shape};
use crate::interop::rows::{Heads, Piece, RotaryLayout, Rows};
use crate::interop::stored_model::{
    StoredModel, StoredWeights, check_vocabulary, file_error, tensor_error,
};

/// A file and what its header says.
#[derive(Debug)]
pub(super) struct Header {
    file: MappedFile,
    contents: Contents,
}

impl Header {
    fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let contents = parse(&file).map_err(|reason| file_error(path, reason))?;
        Ok(Self { file, contents })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.file
    }

    /// The error of a key whose value does not fit.
    pub(super) fn unfit(
        &self,
        key: &str,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> TrainerError {
        let (found, expected) = (found.into(), expected.into());
        file_error(self.path(), format!("{key}: found {found}, expected {expected}"))
    }

    pub(super) fn optional(&self, key: &str) -> Option<&Value> {
        self.contents.metadata.get(key)
    }

    pub(super) fn value(&self, key: &str) -> Result<&Value> {
        self.optional(key).ok_or_else(|| self.unfit(key, "no such key", "a value"))
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<String>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.unfit(key, format!("{other:?}"), "a text")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<String> {
        self.optional_text(key)?.ok_or_else(|| self.unfit(key, "no such key", "a text"))
    }

    pub(super) fn optional_u32(&self, key: &str) -> Result<Option<u32>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) if u32::try_from(*value).is_ok() => {
                Ok(Some(*value as u32))
            }
            Some(other) => Err(self.unfit(key, format!("{other:?}"), "an integer below 2³²")),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let size = self.optional_u32(key)?;
        size.map(|size| size as usize).ok_or_else(|| self.unfit(key, "no such key", "an integer"))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.optional(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.unfit(key, format!("{other:?}"), "true or false")),
        }
    }

    /// A number that was written in 32 bits is taken as the shortest decimal that means it: 1e-6
    /// stays 1e-6.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Float32(value)) => {
                Ok(Some(value.to_string().parse().unwrap_or(f64::from(*value))))
            }
            Some(Value::Float64(value)) => Ok(Some(*value)),
            Some(other) => Err(self.unfit(key, format!("{other:?}"), "a number")),
        }
    }

    /// The configuration of a LLaMA that this program computes.
    fn config(&self, vocab_size: usize) -> Result<LlamaConfig> {
        let expect = |key: &str, found: Option<String>, expected: String| match found {
            Some(found) if found != expected => Err(self.unfit(key, found, expected)),
            _ => Ok(()),
        };
        let number =
            |key: &str| Ok::<_, TrainerError>(self.optional_u32(key)?.map(|n| n.to_string()));
        expect(key::ARCHITECTURE, Some(self.text(key::ARCHITECTURE)?), "llama".into())?;
        if self.optional_u32(key::SPLIT_COUNT)?.is_some_and(|count| count > 1) {
            let reason = "is one of several files; join them first (llama-gguf-split --merge)";
            return Err(file_error(self.path(), reason));
        }
        expect(key::EXPERT_COUNT, number(key::EXPERT_COUNT)?, "0".into())?;
        expect(key::VOCAB_SIZE, number(key::VOCAB_SIZE)?, vocab_size.to_string())?;
        let n_heads = self.size(key::HEAD_COUNT)?;
        let epsilon = self.float(key::RMS_EPSILON)?;
        let dim = self.size(key::EMBEDDING_LENGTH)?;
        let follows = |head_dim: &usize| head_dim.checked_mul(n_heads) == Some(dim);
        let head_dim = self.optional_u32(key::KEY_LENGTH)?.map(|n| n as usize);
        let mut config = LlamaConfig {
            dim,
            n_layers: self.size(key::BLOCK_COUNT)?,
            n_heads,
            n_kv_heads: Some(
                self.optional_u32(key::HEAD_COUNT_KV)?.map_or(n_heads, |n| n as usize),
            ),
            head_dim: head_dim.filter(|head_dim| !follows(head_dim)),
            hidden_dim: Some(self.size(key::FEED_FORWARD_LENGTH)?),
            multiple_of: 256,
            vocab_size,
            max_seq_len: self.size(key::CONTEXT_LENGTH)?,
            rope_theta: self.float(key::ROPE_BASE)?.unwrap_or(10_000.0),
            tie_word_embeddings: !self.has_tensor(&Parameter::head().gguf()),
            rope_scaling: None,
            norm_eps: epsilon
                .ok_or_else(|| self.unfit(key::RMS_EPSILON, "no such key", "a number"))?,
            init_std: 0.02,
        };
        config.validate().map_err(|error| file_error(self.path(), error.to_string()))?;
        let head_dim = config.head_dim().to_string();
        for key in [key::VALUE_LENGTH, key::ROPE_DIMENSIONS] {
            expect(key, number(key)?, head_dim.clone())?;
        }
        config.rope_scaling = rope_scaling::read(self, &config)?;
        config.validate().map_err(|error| file_error(self.path(), error.to_string()))?;
        Ok(config)
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.contents.tensors.contains_key(name)
    }

    /// The tensor of this name has this shape, and is wherever it is.
    pub(super) fn tensor(&self, name: &str, shape: Shape) -> Result<&TensorPlace> {
        // Files have the fastest dimension first.
        let mut expected = shape.dimensions();
        expected.reverse();
        let Some(place) = self.contents.tensors.get(name) else {
            return Err(tensor_error(self.path(), name, "no such tensor", format!("{expected:?}")));
        };
        // Some writers add dimensions of 1.
        let mut found = place.dimensions.clone();
        while found.len() > expected.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found != expected {
            let found = format!("{:?} of {}", place.dimensions, place.stored.name());
            return Err(tensor_error(self.path(), name, found, format!("{expected:?}")));
        }
        Ok(place)
    }

    /// Every tensor of the file is a parameter of the model. The parameters are all there, so that
    /// the set of their names is no larger than the file.
    fn refuse_unknown(&self, config: &LlamaConfig) -> Result<()> {
        let known: HashSet<String> =
            Parameter::all(config).map(|parameter| parameter.gguf()).collect();
        let unknown = |name: &&String| !known.contains(*name) && *name != rope_scaling::TENSOR;
        match self.contents.tensors.keys().find(unknown) {
            None => Ok(()),
            Some(name) => {
                let expected = "only the parameters of a LLaMA without biases";
                Err(tensor_error(self.path(), name, "a tensor of this name", expected))
            }
        }
    }
}

impl StoredWeights for Header {
    fn rows(&self, parameter: Parameter, shape: Shape, head_dim: usize) -> Result<Rows<'_>> {
        let name = parameter.gguf();
        let place = self.tensor(&name, shape)?;
        let Some(bytes) = self.file.part(place.bytes.clone()) else {
            return Err(tensor_error(self.path(), &name, "bytes beyond the file", "a whole file"));
        };
        let heads = Heads { layout: RotaryLayout::Pairs, head_dim };
        let (rows, columns) = (0..shape.rows, 0..shape.columns);
        let piece = Piece { bytes, stored: place.stored, rows, columns };
        let heads = parameter.is_rotary().then_some(heads);
        Ok(Rows { name, shape, heads, pieces: vec![piece], packed: None, low_rank: None })
    }
}

/// Opens a file.
///
/// # Errors
/// Which key or tensor is missing, not known or not what a LLaMA has, or where the file is damaged.
pub fn open(path: &Path) -> Result<StoredModel> {
    let header = Header::open(path)?;
    // Other architectures have other keys, so this comes first.
    let architecture = header.text(key::ARCHITECTURE)?;
    if architecture != "llama" {
        return Err(header.unfit(key::ARCHITECTURE, format!("{architecture:?}"), "\"llama\""));
    }
    let vocabulary = vocabulary::read(&header)?;
    let config = header.config(vocabulary.size)?;
    check_vocabulary(path, Some(&vocabulary.tokenizer), vocabulary.tokens, config.vocab_size)?;
    for parameter in Parameter::all(&config) {
        header.tensor(&parameter.gguf(), parameter.shape(&config))?;
    }
    header.refuse_unknown(&config)?;
    Ok(StoredModel {
        tokens: vocabulary.tokens,
        tokenizer: Some(vocabulary.tokenizer),
        text: vocabulary.text,
        hugging_face_dir: None,
        weights: Box::new(header),
        config,
    })
}
