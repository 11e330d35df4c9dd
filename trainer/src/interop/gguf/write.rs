//! A model as a GGUF file.

use std::io::Write;
use std::path::Path;

use altiplano_data::Tokenizer;
use altiplano_data::atomic_file::{AtomicFile, remove_abandoned};
use altiplano_data::progress::ProgressMode;
use altiplano_model::LlamaConfig;
use altiplano_model::quantize::StoredAs;

use super::container::value_type;
use super::{ALIGNMENT, FileType, MAGIC, TENSOR_TYPES, VERSION, key, rope_scaling, vocabulary};
use crate::checkpoint::hugging_face::TOKENIZER_FILE;
use crate::error::{Result, TrainerError};
use crate::interop::output::parent_of;
use crate::interop::parameter::Parameter;
use crate::interop::rows::{Part, RotaryLayout};
use crate::interop::stored_model::{StoredModel, Summary, file_error, progress};

/// The version of the quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// Keys and values in the order they are written.
#[derive(Default)]
pub(super) struct Keys {
    count: u64,
    bytes: Vec<u8>,
}

impl Keys {
    fn begin(&mut self, key: &str, kind: u32) {
        self.count += 1;
        push_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) {
        self.begin(key, value_type::U32);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn size(&mut self, key: &str, value: usize) {
        // Sizes of a valid configuration are below 2²⁵.
        self.u32(key, value as u32);
    }

    pub(super) fn f32(&mut self, key: &str, value: f64) {
        self.begin(key, value_type::F32);
        self.bytes.extend((value as f32).to_le_bytes());
    }

    pub(super) fn bool(&mut self, key: &str, value: bool) {
        self.begin(key, value_type::BOOL);
        self.bytes.push(u8::from(value));
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.begin(key, value_type::STRING);
        push_text(&mut self.bytes, value);
    }

    fn array<T>(
        &mut self,
        key: &str,
        element: u32,
        values: impl Iterator<Item = T>,
        push: impl Fn(&mut Vec<u8>, T),
    ) {
        self.begin(key, value_type::ARRAY);
        self.bytes.extend(element.to_le_bytes());
        let at = self.bytes.len();
        self.bytes.extend(0u64.to_le_bytes());
        let mut count = 0u64;
        for value in values {
            push(&mut self.bytes, value);
            count += 1;
        }
        self.bytes[at..at + size_of::<u64>()].copy_from_slice(&count.to_le_bytes());
    }

    pub(super) fn texts(&mut self, key: &str, values: impl Iterator<Item = String>) {
        self.array(key, value_type::STRING, values, |bytes, value| push_text(bytes, &value));
    }

    pub(super) fn floats(&mut self, key: &str, values: impl Iterator<Item = f32>) {
        self.array(key, value_type::F32, values, |bytes, value| bytes.extend(value.to_le_bytes()));
    }

    pub(super) fn integers(&mut self, key: &str, values: impl Iterator<Item = i32>) {
        self.array(key, value_type::I32, values, |bytes, value| bytes.extend(value.to_le_bytes()));
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// How a file is written.
#[derive(Debug, Clone, Copy)]
pub struct GgufOptions<'a> {
    /// How matrices are stored.
    pub file_type: FileType,
    /// `general.name`; the size of the model when there is none.
    pub name: Option<&'a str>,
    /// Whether a file that is there is replaced.
    pub overwrite: bool,
    /// Whether progress is shown.
    pub progress: ProgressMode,
}

/// Name of a file of this type in a directory.
pub fn file_name(file_type: FileType) -> String {
    format!("model-{}.gguf", file_type.name())
}

/// Writes a model as the file `path`.
///
/// # Errors
/// [`TrainerError::OutputExists`]; when the model has no tokenizer or one that GGUF has no name for,
/// the file cannot be written, or a value does not fit the format.
pub fn write(model: &StoredModel, path: &Path, options: GgufOptions) -> Result<Summary> {
    if path.exists() && !(options.overwrite && path.is_file()) {
        return Err(TrainerError::OutputExists {
            path: path.to_path_buf(),
            what: match path.is_file() {
                true => "is there already; choose another name, or replace it by --overwrite",
                false => "is there already and is not a file",
            }
            .into(),
        });
    }
    let tokenizer = plain_tokenizer(model)?;
    let mut keys = Keys::default();
    write_general(&mut keys, &model.config, options);
    write_shape(&mut keys, &model.config);
    rope_scaling::write(&mut keys, &model.config);
    vocabulary::write(&mut keys, tokenizer, model.tokens, &model.text, model.config.vocab_size);

    let tensors = plan(model, options.file_type)?;
    let total = tensors.iter().map(|tensor| tensor.bytes).sum();
    let progress = progress(options.progress, "weights", total);
    let mut summary = Summary::new("gguf", path, model);
    remove_abandoned(parent_of(path))?;
    let mut file = AtomicFile::create(path)?;
    let head = header(&keys, &tensors);
    let mut length = head.len();
    file.write_all(&head).map_err(TrainerError::io(path))?;
    for tensor in &tensors {
        match &tensor.content {
            Content::Values(bytes) => file.write_all(bytes).map_err(TrainerError::io(path))?,
            Content::Parameter(parameter, part) => {
                model.rows(*parameter)?.write(part, &mut file, path, &progress)?;
            }
        }
        let end = tensor.bytes.next_multiple_of(ALIGNMENT);
        let padding = [0; ALIGNMENT];
        file.write_all(&padding[..end - tensor.bytes]).map_err(TrainerError::io(path))?;
        length += end;
        summary.tensor(tensor.stored());
    }
    file.commit()?;
    progress.finish(&format!("{} tensors", tensors.len()));
    let other = tensors.iter().filter(|tensor| tensor.fell_back).count();
    if other > 0 {
        summary.notes.push(format!(
            "{other} tensors are stored in a larger format than {} says: their rows are not whole \
             blocks of it",
            options.file_type.name()
        ));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    summary.file(name, length as u64);
    Ok(summary)
}

fn plain_tokenizer(model: &StoredModel) -> Result<&Tokenizer> {
    let Some(tokenizer) = &model.tokenizer else {
        let dir = model.hugging_face_dir.clone().unwrap_or_default();
        let reason = "missing: a GGUF file holds the tokenizer too";
        return Err(file_error(&dir.join(TOKENIZER_FILE), reason));
    };
    if !tokenizer.is_sentencepiece() {
        let reason = "is not a SentencePiece model, and a GGUF file is made of those alone; \
                      --format hf takes it as it is";
        return Err(file_error(tokenizer.path(), reason));
    }
    if !tokenizer.is_plain_bpe() {
        let reason = "is not a BPE model that takes texts as they are, and GGUF has no other kind \
                      of SentencePiece model for LLaMA";
        return Err(file_error(tokenizer.path(), reason));
    }
    Ok(tokenizer)
}

/// A tensor of the file.
struct Tensor {
    name: String,
    /// Slowest first.
    dimensions: Vec<usize>,
    content: Content,
    bytes: usize,
    /// Whether its rows are not whole blocks of the format it should have.
    fell_back: bool,
}

/// What a tensor holds.
enum Content {
    /// A parameter of the model.
    Parameter(Parameter, Part),
    /// Numbers in f32.
    Values(Vec<u8>),
}

impl Tensor {
    fn stored(&self) -> StoredAs {
        match &self.content {
            Content::Parameter(_, part) => part.stored,
            Content::Values(_) => StoredAs::F32,
        }
    }
}

fn plan(model: &StoredModel, file_type: FileType) -> Result<Vec<Tensor>> {
    let tensor = |parameter: Parameter| {
        let shape = parameter.shape(&model.config);
        let (stored, fell_back) = file_type.stored_as(parameter, shape, &model.config);
        let part = Part::whole(shape, RotaryLayout::Pairs, stored);
        match part.bytes() {
            Some(bytes) => Ok(Tensor {
                name: parameter.gguf(),
                dimensions: shape.dimensions(),
                content: Content::Parameter(parameter, part),
                bytes,
                fell_back,
            }),
            None => Err(file_error(Path::new(&parameter.gguf()), "is too large to write")),
        }
    };
    let factors = rope_scaling::factors(&model.config).map(|factors| {
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        Ok(Tensor {
            name: rope_scaling::TENSOR.into(),
            dimensions: vec![factors.len()],
            bytes: bytes.len(),
            content: Content::Values(bytes),
            fell_back: false,
        })
    });
    model.parameters().map(tensor).chain(factors).collect()
}

fn write_general(keys: &mut Keys, config: &LlamaConfig, options: GgufOptions) {
    let size = size_label(config.parameter_count());
    keys.text(key::ARCHITECTURE, "llama");
    keys.text(key::TYPE, "model");
    keys.text(key::NAME, options.name.unwrap_or(&format!("LLaMA {size}")));
    keys.text(key::SIZE_LABEL, &size);
    keys.u32(key::FILE_TYPE, options.file_type.number());
    if options.file_type.is_quantized() {
        keys.u32(key::QUANTIZATION_VERSION, QUANTIZATION_VERSION);
    }
}

/// Sizes are u32 and constants f32: llama.cpp refuses other types.
fn write_shape(keys: &mut Keys, config: &LlamaConfig) {
    keys.size(key::VOCAB_SIZE, config.vocab_size);
    keys.size(key::CONTEXT_LENGTH, config.max_seq_len);
    keys.size(key::EMBEDDING_LENGTH, config.dim);
    keys.size(key::BLOCK_COUNT, config.n_layers);
    keys.size(key::FEED_FORWARD_LENGTH, config.ffn_dim());
    keys.size(key::HEAD_COUNT, config.n_heads);
    keys.size(key::HEAD_COUNT_KV, config.kv_heads());
    keys.size(key::KEY_LENGTH, config.head_dim());
    keys.size(key::VALUE_LENGTH, config.head_dim());
    keys.f32(key::RMS_EPSILON, config.norm_eps);
    keys.size(key::ROPE_DIMENSIONS, config.head_dim());
    keys.f32(key::ROPE_BASE, config.rope_theta);
}

/// Parameters in two digits or more, such as `15M` or `6.7B`.
fn size_label(parameters: usize) -> String {
    let parameters = parameters as f64;
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M")];
    let (unit, name) =
        units.into_iter().find(|(unit, _)| parameters >= *unit).unwrap_or((1e3, "K"));
    let scaled = parameters / unit;
    let digits = usize::from(scaled.round() < 10.0);
    format!("{scaled:.digits$}{name}")
}

/// All before the first tensor, filled up to the alignment.
fn header(keys: &Keys, tensors: &[Tensor]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(keys.count.to_le_bytes());
    bytes.extend(&keys.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        push_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
        for dimension in tensor.dimensions.iter().rev() {
            bytes.extend((*dimension as u64).to_le_bytes());
        }
        bytes.extend(type_number(tensor.stored()).to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += tensor.bytes.next_multiple_of(ALIGNMENT) as u64;
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn type_number(stored: StoredAs) -> u32 {
    let number = TENSOR_TYPES.iter().find(|(_, known)| *known == stored);
    // The table has every format.
    number.map_or(0, |(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        let labels = [6_738_415_616, 15_000_000, 1_100_048_384, 9_960_000, 999, 65_285_660_672];
        let expected = ["6.7B", "15M", "1.1B", "10M", "1.0K", "65B"];
        assert_eq!(labels.map(size_label), expected);
    }

    #[test]
    fn every_format_has_a_number() {
        for stored in StoredAs::ALL {
            assert!(TENSOR_TYPES.iter().any(|(_, known)| *known == stored), "{stored:?}");
        }
    }
}
