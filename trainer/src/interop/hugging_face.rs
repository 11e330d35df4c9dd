//! Hugging Face model directories: opened as a source, and written by an export or an import.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use altiplano_data::progress::ProgressMode;
use altiplano_model::quantize::StoredAs;
use altiplano_model::quantize::awq::PACKED;
use altiplano_model::weight_files::WeightFiles;
use altiplano_model::{LlamaConfig, weights};
use burn::tensor::{Device, Tensor};
use safetensors::Dtype;
use serde_json::{Value, json};

use super::output::OutputDirectory;
use super::parameter::{Parameter, Shape};
use super::rows::{Heads, LowRank, Packed, Piece, RotaryLayout, Rows};
use super::safetensors_file::Plan;
use super::stored_model::{
    StoredModel, StoredWeights, Summary, TextSettings, check_vocabulary, file_error, progress,
    tensor_error,
};
use crate::checkpoint::hugging_face::{PadToken, TOKENIZER_CONFIG_FILE, TOKENIZER_JSON_FILE};
use crate::checkpoint::{self, CHAT_TEMPLATE_FILE, CheckpointFiles, hugging_face, peft};
use crate::error::{Result, TrainerError};

const CONFIG_FILE: &str = "config.json";
/// What a copy of a directory has too.
const COPIED_FILES: [&str; 2] = ["generation_config.json", CHAT_TEMPLATE_FILE];
/// The tokenizer for programs that do not read SentencePiece's model.
const TOKENIZER_FILES: [&str; 4] =
    [TOKENIZER_JSON_FILE, TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json"];
/// Keys of `config.json` that are taken over as they are, because they decide nothing of the weights.
const KEPT_KEYS: [&str; 4] = ["bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"];

/// The safetensors files of a directory.
#[derive(Debug)]
struct SafetensorsWeights {
    files: WeightFiles,
    /// Inputs that share a scale, where the matrices of the layers are packed by AWQ.
    awq_group: Option<usize>,
}

/// What a packed matrix is stored as.
const PACKED_NAMES: [&str; 3] = ["qweight", "qzeros", "scales"];

impl StoredWeights for SafetensorsWeights {
    fn rows(&self, parameter: Parameter, shape: Shape, head_dim: usize) -> Result<Rows<'_>> {
        let name = parameter.hugging_face();
        if let Some(group) = self.awq_group
            && parameter.layer().is_some()
            && !shape.is_vector
        {
            return self.packed_rows(parameter, shape, head_dim, group);
        }
        let expected = || format!("{:?} of F32, F16 or BF16", shape.dimensions());
        let Some(tensor) = self.files.tensor(&name) else {
            return Err(tensor_error(self.files.path(), &name, "no such tensor", expected()));
        };
        let found = || format!("{:?} of {:?}", tensor.shape, tensor.dtype);
        let stored = match tensor.dtype {
            Dtype::F32 => StoredAs::F32,
            Dtype::F16 => StoredAs::F16,
            Dtype::BF16 => StoredAs::Bf16,
            _ => return Err(tensor_error(tensor.path, &name, found(), expected())),
        };
        if tensor.shape != shape.dimensions() {
            return Err(tensor_error(tensor.path, &name, found(), expected()));
        }
        let heads = Heads { layout: RotaryLayout::Halves, head_dim };
        let (rows, columns) = (0..shape.rows, 0..shape.columns);
        let piece = Piece { bytes: tensor.bytes, stored, rows, columns };
        let heads = parameter.is_rotary().then_some(heads);
        Ok(Rows { name, shape, heads, pieces: vec![piece], packed: None, low_rank: None })
    }
}

impl SafetensorsWeights {
    /// A matrix that is packed by AWQ.
    fn packed_rows(
        &self,
        parameter: Parameter,
        shape: Shape,
        head_dim: usize,
        group: usize,
    ) -> Result<Rows<'_>> {
        let (inputs, outputs) = (shape.columns, shape.rows);
        let stem = stem(parameter);
        let part = |name: &str, dtype: Dtype, dimensions: [usize; 2]| {
            let name = format!("{stem}.{name}");
            let expected = || format!("{dimensions:?} of {dtype:?}");
            let Some(tensor) = self.files.tensor(&name) else {
                return Err(tensor_error(self.files.path(), &name, "no such tensor", expected()));
            };
            if tensor.dtype != dtype || tensor.shape != dimensions {
                let found = format!("{:?} of {:?}", tensor.shape, tensor.dtype);
                return Err(tensor_error(tensor.path, &name, found, expected()));
            }
            Ok(tensor.bytes)
        };
        if !inputs.is_multiple_of(group) || !outputs.is_multiple_of(PACKED) {
            let found = format!("a matrix of {outputs} rows of {inputs}");
            let expected = format!("rows of whole groups of {group}, a multiple of {PACKED} rows");
            return Err(tensor_error(self.files.path(), &stem, found, expected));
        }
        let [qweight, qzeros, scales] = PACKED_NAMES;
        let packed = Packed {
            qweight: part(qweight, Dtype::I32, [inputs, outputs / PACKED])?,
            qzeros: part(qzeros, Dtype::I32, [inputs / group, outputs / PACKED])?,
            scales: part(scales, Dtype::F16, [inputs / group, outputs])?,
            group,
        };
        let heads = Heads { layout: RotaryLayout::Halves, head_dim };
        let heads = parameter.is_rotary().then_some(heads);
        Ok(Rows {
            name: stem,
            shape,
            heads,
            pieces: Vec::new(),
            packed: Some(packed),
            low_rank: None,
        })
    }

    /// Names of the tensors of a parameter.
    fn names(&self, parameter: Parameter) -> Vec<String> {
        let packed = parameter.layer().is_some() && !parameter.is_vector();
        match self.awq_group {
            Some(_) if packed => {
                let stem = stem(parameter);
                PACKED_NAMES.iter().map(|name| format!("{stem}.{name}")).collect()
            }
            _ => vec![parameter.hugging_face()],
        }
    }

    /// Every tensor of the files is a parameter of the model, or what older writers left in. The
    /// parameters are all there, so that the set of their names is no larger than the files.
    fn refuse_unknown(&self, config: &LlamaConfig) -> Result<()> {
        let known: HashSet<String> =
            Parameter::all(config).flat_map(|parameter| self.names(parameter)).collect();
        let head = Parameter::head().hugging_face();
        if config.tie_word_embeddings {
            weights::check_tied(&self.files, "")?;
        }
        let unknown = |name: &String| {
            let copy_of_embedding = config.tie_word_embeddings && *name == head;
            !known.contains(name) && !name.ends_with(".inv_freq") && !copy_of_embedding
        };
        let Some(name) = self.files.names().into_iter().find(unknown) else { return Ok(()) };
        let path = self.files.tensor(&name).map_or(self.files.path(), |tensor| tensor.path);
        Err(tensor_error(path, &name, "a tensor of this name", "only the parameters of a LLaMA"))
    }
}

/// The name of a parameter without `.weight`.
fn stem(parameter: Parameter) -> String {
    let name = parameter.hugging_face();
    name.strip_suffix(".weight").unwrap_or(&name).to_owned()
}

/// Opens a checkpoint of a run, whose checksums are verified, the newest one of a run, or any Hugging
/// Face directory of a LLaMA.
///
/// # Errors
/// Which file is missing, damaged or does not fit the others, which tensor is missing, not known or
/// of another shape.
pub fn open(path: &Path) -> Result<StoredModel> {
    let dir = &checkpoint::find(path)?;
    refuse_adapters(dir)?;
    // Refuses packed weights.
    hugging_face::read(dir)?;
    open_packed(path)
}

/// As [`open`], also a directory whose matrices are packed by AWQ.
///
/// # Errors
/// As [`open`].
pub fn open_packed(path: &Path) -> Result<StoredModel> {
    let dir = &checkpoint::find(path)?;
    refuse_adapters(dir)?;
    if checkpoint::is_checkpoint(dir) {
        checkpoint::verify_files(dir, &[checkpoint::MODEL_FILE])?;
    }
    let (config, tokens, awq_group) = hugging_face::read_packed(dir)?;
    let tokenizer = hugging_face::read_tokenizer(dir)?;
    check_vocabulary(&dir.join(CONFIG_FILE), tokenizer.as_ref(), tokens, config.vocab_size)?;
    let weights = SafetensorsWeights { files: WeightFiles::open(dir)?, awq_group };
    for parameter in Parameter::all(&config) {
        weights.rows(parameter, parameter.shape(&config), config.head_dim())?;
    }
    weights.refuse_unknown(&config)?;
    Ok(StoredModel {
        text: read_text_settings(dir)?,
        tokenizer,
        tokens,
        hugging_face_dir: Some(dir.to_path_buf()),
        weights: Box::new(weights),
        config,
    })
}

/// Adapters alone are no model.
fn refuse_adapters(dir: &Path) -> Result<()> {
    if !peft::is_adapter(dir) {
        return Ok(());
    }
    let reason = "holds low-rank adapters and no model: `altiplano export --merge` adds them to the model \
                  they name";
    Err(TrainerError::RunFile { path: dir.to_path_buf(), reason: reason.into() })
}

/// The parameters of a model with low-rank adapters added.
#[derive(Debug)]
struct MergedWeights {
    base: Box<dyn StoredWeights>,
    /// By Hugging Face's name of the matrix.
    adapters: HashMap<String, LowRank>,
}

impl StoredWeights for MergedWeights {
    fn rows(&self, parameter: Parameter, shape: Shape, head_dim: usize) -> Result<Rows<'_>> {
        let low_rank = self.adapters.get(&parameter.hugging_face()).cloned();
        Ok(Rows { low_rank, ..self.base.rows(parameter, shape, head_dim)? })
    }
}

/// Opens low-rank adapters in PEFT's form together with the model they name: a matrix with an adapter is
/// W + s B A, computed in f32. Text settings, tokenizer and the tokens that begin and end a text are those of
/// the adapters where they have them.
///
/// # Errors
/// As [`open`]; when the adapters or their model are not there or do not fit together.
pub fn open_merged(path: &Path) -> Result<StoredModel> {
    let dir = &checkpoint::find(path)?;
    let (shape, named) = peft::read_config(dir)?;
    let mut model = open(&peft::base_of(dir, &named)?)?;
    let values = |x: &Tensor<2>| x.to_data().iter::<f32>().collect::<Vec<f32>>().into();
    let adapters = peft::load(dir, &model.config, &shape, &Device::flex())?;
    let by_name = adapters.pairs().map(|(layer, target, pair)| {
        let module = target.module();
        let name = format!("model.layers.{layer}.{module}.{target}.weight");
        let (a, b) = (values(&pair.a), values(&pair.b));
        (name, LowRank { a, b, rank: shape.rank, scale: pair.scale as f32 })
    });
    model.weights = Box::new(MergedWeights { adapters: by_name.collect(), base: model.weights });
    if dir.join(TOKENIZER_CONFIG_FILE).exists() {
        model.text = TextSettings { padding: model.text.padding, ..read_text_settings(dir)? };
    }
    if let Some(tokenizer) = hugging_face::read_tokenizer(dir)? {
        let tokens = &mut model.tokens;
        tokens.bos = tokenizer.bos_id().unwrap_or(tokens.bos);
        tokens.eos = tokenizer.eos_id().unwrap_or(tokens.eos);
        let path = dir.join(TOKENIZER_CONFIG_FILE);
        check_vocabulary(&path, Some(&tokenizer), *tokens, model.config.vocab_size)?;
        model.tokenizer = Some(tokenizer);
    }
    model.hugging_face_dir = None;
    Ok(model)
}

/// Reads what programs that generate text need, where the directory says it.
fn read_text_settings(dir: &Path) -> Result<TextSettings> {
    let read = |name: &str| -> Result<Option<Value>> {
        let path = dir.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = checkpoint::read_bounded(&path)?;
        let json = serde_json::from_slice(&text)
            .map_err(|error| file_error(&path, format!("is not JSON: {error}")))?;
        Ok(Some(json))
    };
    let mut settings = TextSettings::default();
    if let Some(config) = read(TOKENIZER_CONFIG_FILE)? {
        let flag =
            |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
        settings.add_bos = flag("add_bos_token", settings.add_bos);
        settings.add_eos = flag("add_eos_token", settings.add_eos);
    }
    settings.chat_template = match checkpoint::read_chat_template(dir) {
        // A list without a default is a matter of who converses; the weights can be used.
        Err(TrainerError::Data(_)) => None,
        found => found?.map(|found| found.source),
    };
    let config = read(CONFIG_FILE)?.unwrap_or_default();
    let padding = config.get("pad_token_id").and_then(Value::as_u64);
    settings.padding = padding.and_then(|id| u32::try_from(id).ok());
    Ok(settings)
}

/// How a directory is written.
#[derive(Debug, Clone, Copy)]
pub struct HuggingFaceOptions {
    /// Number format of the weights: one of the floating-point formats.
    pub stored: StoredAs,
    /// Most bytes of a file of weights.
    pub max_shard_bytes: u64,
    /// Whether a model that is there is replaced.
    pub overwrite: bool,
    /// Whether progress is shown.
    pub progress: ProgressMode,
}

/// Writes a model as a Hugging Face directory.
///
/// # Errors
/// When the directory cannot be written or replaced, or a value does not fit the format.
pub fn write(model: &StoredModel, dir: &Path, options: HuggingFaceOptions) -> Result<Summary> {
    let plan = Plan::new(model, options.stored, options.max_shard_bytes)?;
    let output = OutputDirectory::create(dir, options.overwrite)?;
    let mut files = CheckpointFiles::new(output.temporary());
    let progress = progress(options.progress, "weights", plan.bytes());
    plan.write(model, &mut files, &progress)?;
    write_settings(model, output.temporary(), &mut files, options.stored, &[])?;
    let mut summary = Summary::new("hf", dir, model);
    (0..plan.tensors()).for_each(|_| summary.tensor(options.stored));
    if model.tokenizer.is_none() {
        summary.notes.push(format!(
            "no {} and no {TOKENIZER_JSON_FILE} was there: the model can be trained on, not prompted \
             with text",
            hugging_face::TOKENIZER_FILE
        ));
    }
    summary.files_of(output.temporary())?;
    output.commit()?;
    progress.finish(&format!("{} tensors", plan.tensors()));
    Ok(summary)
}

/// Everything but the weights: as this program writes it, then what the source has of its own.
/// `config.json` has the keys of `more` too.
pub(super) fn write_settings(
    model: &StoredModel,
    written: &Path,
    files: &mut CheckpointFiles,
    stored: StoredAs,
    more: &[(&str, Value)],
) -> Result<()> {
    hugging_face::write(
        files,
        &model.config,
        model.tokens,
        model.tokenizer.as_ref(),
        None,
        PadToken::None,
    )?;
    let mut config = read_object(&written.join(CONFIG_FILE))?;
    let number_format = match stored {
        StoredAs::F16 => "float16",
        StoredAs::Bf16 => "bfloat16",
        _ => "float32",
    };
    // Both spellings: transformers 4 reads the first, transformers 5 the second.
    config["torch_dtype"] = number_format.into();
    config["dtype"] = number_format.into();
    if let Some(padding) = model.text.padding {
        config["pad_token_id"] = padding.into();
    }
    // A directory that has a tokenizer for other programs keeps it, whatever is special about it.
    let keeps_tokenizer = |dir: &&PathBuf| dir.join(TOKENIZER_JSON_FILE).exists();
    let kept = model.hugging_face_dir.as_ref().filter(keeps_tokenizer);
    if let Some(dir) = &model.hugging_face_dir {
        let source = read_object(&dir.join(CONFIG_FILE))?;
        for key in KEPT_KEYS {
            if let Some(value) = source.get(key) {
                config[key] = value.clone();
            }
        }
        copy(dir, files, &COPIED_FILES)?;
    }
    for (key, value) in more {
        config[*key] = value.clone();
    }
    files.write_bytes(CONFIG_FILE, format!("{config:#}\n").as_bytes())?;
    match kept {
        Some(dir) => copy(dir, files, &TOKENIZER_FILES),
        None => write_text_settings(model, written, files),
    }
}

/// Copies those of the files that are there. Those of JSON have to be JSON: programs that read the
/// copy would stop at them.
fn copy(dir: &Path, files: &mut CheckpointFiles, names: &[&str]) -> Result<()> {
    for name in names.iter().filter(|name| dir.join(name).exists()) {
        let bytes = checkpoint::read_file(dir, name)?;
        if name.ends_with(".json") {
            serde_json::from_slice::<serde::de::IgnoredAny>(&bytes)
                .map_err(|error| file_error(&dir.join(name), format!("is not JSON: {error}")))?;
        }
        files.write_bytes(name, &bytes)?;
    }
    Ok(())
}

/// Puts what the source says of text into `tokenizer_config.json`.
fn write_text_settings(
    model: &StoredModel,
    written: &Path,
    files: &mut CheckpointFiles,
) -> Result<()> {
    let path = written.join(TOKENIZER_CONFIG_FILE);
    if !path.exists() {
        return Ok(());
    }
    let before = read_object(&path)?;
    let mut config = before.clone();
    config["add_bos_token"] = json!(model.text.add_bos);
    config["add_eos_token"] = json!(model.text.add_eos);
    if let Some(template) = &model.text.chat_template {
        config["chat_template"] = json!(template);
    }
    if config == before {
        return Ok(());
    }
    files.write_bytes(TOKENIZER_CONFIG_FILE, format!("{config:#}\n").as_bytes())
}

fn read_object(path: &Path) -> Result<Value> {
    let text = checkpoint::read_bounded(path)?;
    match serde_json::from_slice(&text) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(_) => Err(file_error(path, "expected a JSON object")),
        Err(error) => Err(file_error(path, format!("is not JSON: {error}"))),
    }
}
