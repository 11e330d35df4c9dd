//! AWQ: a Hugging Face directory whose matrices are packed in 4 bits, after a search on calibration
//! texts (`altiplano_model::quantize::awq`).
//!
//! Embedding, output head and norm gains are f16. One layer is in memory at a time, in f32, with what
//! flows through it for the calibration tokens.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use altiplano_data::progress::{Progress, ProgressMode, Work};
use altiplano_model::layer::LayerContext;
use altiplano_model::ops::RopeTable;
use altiplano_model::param_tree::LayerTree;
use altiplano_model::params::LayerWeights;
use altiplano_model::quantize::StoredAs;
use altiplano_model::quantize::awq::search::search_layer;
use altiplano_model::quantize::awq::{PACKED, PackedMatrix};
use altiplano_model::{LlamaConfig, device};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::{Map, Value, json};

use super::hugging_face::write_settings;
use super::output::OutputDirectory;
use super::parameter::Parameter;
use super::rows::{Part, RotaryLayout};
use super::stored_model::{StoredModel, Summary, file_error};
use crate::checkpoint::{CheckpointFiles, MODEL_FILE};
use crate::error::{Result, TrainerError};

/// Inputs that share a scale, unless asked for otherwise: what every reader knows.
pub const DEFAULT_GROUP: usize = 128;
/// Calibration sequences, as published.
pub const DEFAULT_SEQUENCES: usize = 128;
/// Tokens of a calibration sequence.
const SEQUENCE: usize = 512;
/// Sequences that flow through a layer at once.
const CHUNK: usize = 4;

/// How a directory is written.
#[derive(Debug, Clone, Copy)]
pub struct AwqOptions {
    /// Inputs that share a scale.
    pub group: usize,
    /// Most calibration sequences.
    pub sequences: usize,
    /// Whether a model that is there is replaced.
    pub overwrite: bool,
    /// Whether progress is shown.
    pub progress: ProgressMode,
}

/// One tensor of the file.
struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: usize,
}

/// Writes a model as a directory, calibrated on `texts`.
///
/// # Errors
/// [`TrainerError::Usage`] when the widths of the model are not whole groups; when there is no tokenizer
/// or too little text, a value does not fit f16, or the directory cannot be written or replaced.
pub fn write(
    model: &StoredModel,
    texts: &[(String, String)],
    dir: &Path,
    options: AwqOptions,
) -> Result<Summary> {
    check_widths(&model.config, options.group)?;
    let sequences = calibration_sequences(model, texts, options.sequences)?;
    let output = OutputDirectory::create(dir, options.overwrite)?;
    let mut files = CheckpointFiles::new(output.temporary());
    let mut summary = Summary::new("awq", dir, model);
    let layers = Work::count(model.config.n_layers as u64, "layers");
    let progress = Progress::new(options.progress, "search", layers);
    let entries = entries(model, options.group);
    files.write(MODEL_FILE, |out, path| {
        out.write_all(&header(&entries)).map_err(TrainerError::io(path))?;
        write_tensors(model, sequences, options, out, path, &progress)
    })?;
    for entry in &entries {
        summary.tensors += 1;
        let name = if entry.dtype == "F16" { "f16" } else { "awq" };
        *summary.stored_as.entry(name).or_default() += 1;
    }
    let quantization = json!({
        "quant_method": "awq",
        "bits": 4,
        "group_size": options.group,
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": null,
    });
    let more = [("quantization_config", quantization)];
    write_settings(model, output.temporary(), &mut files, StoredAs::F16, &more)?;
    summary.files_of(output.temporary())?;
    output.commit()?;
    progress.finish(&format!("{} layers", model.config.n_layers));
    Ok(summary)
}

/// Inputs of every matrix are whole groups, outputs whole integers.
fn check_widths(config: &LlamaConfig, group: usize) -> Result<()> {
    let kv = config.kv_heads() * config.head_dim();
    for (what, width, unit) in [
        ("dim", config.dim, group),
        ("n_heads · head_dim", config.attention_dim(), group),
        ("hidden_dim", config.ffn_dim(), group),
        ("n_kv_heads · head_dim", kv, PACKED),
        ("dim", config.dim, PACKED),
    ] {
        if !width.is_multiple_of(unit) {
            let message = format!(
                "--format awq: {what} is {width}, expected a multiple of {unit}; a smaller \
                 --group-size may divide it, and gguf holds any width"
            );
            return Err(TrainerError::Usage { message });
        }
    }
    Ok(())
}

/// The ids of the texts one after the other, cut into sequences that begin with the begin mark.
fn calibration_sequences(
    model: &StoredModel,
    texts: &[(String, String)],
    most: usize,
) -> Result<Vec<Vec<i32>>> {
    let Some(tokenizer) = &model.tokenizer else {
        let dir = model.hugging_face_dir.clone().unwrap_or_default();
        return Err(file_error(&dir, "has no tokenizer: calibration texts need one"));
    };
    let length = SEQUENCE.min(model.config.max_seq_len);
    let mut ids = Vec::new();
    for (_, text) in texts {
        let document = tokenizer.encode_document(text, true, false)?;
        ids.extend(document.into_iter().map(|id| id as i32));
        if ids.len() >= most * length {
            break;
        }
    }
    let sequences: Vec<Vec<i32>> =
        ids.chunks_exact(length).take(most).map(<[i32]>::to_vec).collect();
    if sequences.is_empty() {
        let message = format!(
            "--calibration: {} tokens, expected at least {length}: give more text",
            ids.len()
        );
        return Err(TrainerError::Usage { message });
    }
    Ok(sequences)
}

/// The matrices of a layer, in the order of the file.
const MATRICES: [usize; 7] = [1, 2, 3, 4, 6, 7, 8];

/// The tensors of the file: embedding, layers, norm, output head.
fn entries(model: &StoredModel, group: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut push = |name: String, dtype: &'static str, shape: Vec<usize>| {
        let size = if dtype == "F16" { 2 } else { 4 };
        let bytes = size * shape.iter().product::<usize>();
        entries.push(Entry { name, dtype, shape, bytes });
    };
    for parameter in model.parameters() {
        let shape = parameter.shape(&model.config);
        let name = parameter.hugging_face();
        if shape.is_vector || parameter.layer().is_none() {
            push(name, "F16", shape.dimensions());
            continue;
        }
        let (inputs, outputs) = (shape.columns, shape.rows);
        let stem = name.trim_end_matches(".weight");
        push(format!("{stem}.qweight"), "I32", vec![inputs, outputs / PACKED]);
        push(format!("{stem}.qzeros"), "I32", vec![inputs / group, outputs / PACKED]);
        push(format!("{stem}.scales"), "F16", vec![inputs / group, outputs]);
    }
    entries
}

/// Length of the header, the header, and spaces up to a multiple of 8.
fn header(entries: &[Entry]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for entry in entries {
        let begin = end;
        end += entry.bytes;
        let tensor = json!({
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [begin, end],
        });
        header.insert(entry.name.clone(), tensor);
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Searches and writes layer after layer.
fn write_tensors(
    model: &StoredModel,
    sequences: Vec<Vec<i32>>,
    options: AwqOptions,
    out: &mut dyn Write,
    path: &Path,
    progress: &Progress,
) -> Result<()> {
    let hidden = Progress::new(ProgressMode::Hidden, "", Work::bytes(0));
    let copy = |parameter: Parameter, out: &mut dyn Write| {
        let part = Part::whole(parameter.shape(&model.config), RotaryLayout::Halves, StoredAs::F16);
        model.rows(parameter)?.write(&part, out, path, &hidden)
    };
    let device = device::select("cpu")?;
    copy(Parameter::embedding(), out)?;
    let frequencies = model.config.rope_frequencies();
    let rope = RopeTable::new(sequences[0].len(), &frequencies, DType::F32, &device);
    let context = LayerContext::of_one_rank(&model.config, &rope);
    let mut inputs = embedded(model, &sequences, &device)?;
    for layer in 0..model.config.n_layers {
        let of_layer: Vec<Parameter> =
            model.parameters().filter(|parameter| parameter.layer() == Some(layer)).collect();
        let weights = layer_weights(model, &of_layer, &device)?;
        let found = device::in_pool(&device, || {
            search_layer(&weights, std::mem::take(&mut inputs), &context, options.group)
        })?;
        tracing::debug!(layer, shares = ?found.shares, "searched");
        inputs = found.outputs;
        for (parameter, values) in of_layer.iter().zip(in_order(&found.weights)) {
            let shape = parameter.shape(&model.config);
            if shape.is_vector {
                let mut bytes = vec![0; 2 * values.len()];
                StoredAs::F16.encode(&values, &mut bytes).map_err(|out_of_range| {
                    let found =
                        format!("{}: the value {}", parameter.hugging_face(), out_of_range.0);
                    file_error(path, format!("{found} does not fit f16"))
                })?;
                out.write_all(&bytes).map_err(TrainerError::io(path))?;
                continue;
            }
            let packed = PackedMatrix::pack(&values, shape.rows, options.group);
            let words = packed.qweight.iter().chain(&packed.qzeros);
            let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(packed.scales.iter().flat_map(|scale| scale.to_le_bytes()));
            out.write_all(&bytes).map_err(TrainerError::io(path))?;
        }
        progress.add(1);
    }
    for parameter in model.parameters().filter(|parameter| parameter.layer().is_none()) {
        if parameter != Parameter::embedding() {
            copy(parameter, out)?;
        }
    }
    Ok(())
}

/// A parameter in f32.
fn values(model: &StoredModel, parameter: Parameter) -> Result<Vec<f32>> {
    let hidden = Progress::new(ProgressMode::Hidden, "", Work::bytes(0));
    let part = Part::whole(parameter.shape(&model.config), RotaryLayout::Halves, StoredAs::F32);
    let mut bytes = Vec::new();
    model.rows(parameter)?.write(&part, &mut bytes, Path::new(""), &hidden)?;
    let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    Ok(bytes.chunks_exact(size_of::<f32>()).map(number).collect())
}

/// What the first layer sees of each chunk of sequences.
fn embedded(
    model: &StoredModel,
    sequences: &[Vec<i32>],
    device: &Device,
) -> Result<Vec<Tensor<3>>> {
    let (embedding, width) = (values(model, Parameter::embedding())?, model.config.dim);
    let row = |id: &i32| -> Range<usize> { *id as usize * width..(*id as usize + 1) * width };
    let chunk = |sequences: &[Vec<i32>]| {
        let time = sequences[0].len();
        let ids = sequences.iter().flatten();
        let values: Vec<f32> = ids.flat_map(|id| embedding[row(id)].iter().copied()).collect();
        let data = TensorData::new(values, [sequences.len(), time, width]);
        Tensor::from_data(data, (device, DType::F32))
    };
    Ok(sequences.chunks(CHUNK).map(chunk).collect())
}

fn layer_weights(
    model: &StoredModel,
    parameters: &[Parameter],
    device: &Device,
) -> Result<LayerWeights> {
    let read = |n: usize| values(model, parameters[n]);
    let vector = |n: usize| -> Result<Tensor<1>> {
        let values = read(n)?;
        let data = TensorData::new(values.clone(), [values.len()]);
        Ok(Tensor::from_data(data, (device, DType::F32)))
    };
    let matrix = |n: usize| -> Result<Tensor<2>> {
        let shape = parameters[n].shape(&model.config);
        let data = TensorData::new(read(n)?, [shape.rows, shape.columns]);
        Ok(Tensor::from_data(data, (device, DType::F32)))
    };
    let [q, k, v, o, gate, up, down] = MATRICES;
    Ok(LayerTree {
        input_layernorm: vector(0)?,
        q_proj: matrix(q)?,
        k_proj: matrix(k)?,
        v_proj: matrix(v)?,
        o_proj: matrix(o)?,
        post_attention_layernorm: vector(5)?,
        gate_proj: matrix(gate)?,
        up_proj: matrix(up)?,
        down_proj: matrix(down)?,
    })
}

/// The values of a layer's parameters in the order of the checkpoint.
fn in_order(weights: &LayerWeights) -> [Vec<f32>; 9] {
    let vector = |x: &Tensor<1>| -> Vec<f32> { x.to_data().iter().collect() };
    let matrix = |x: &Tensor<2>| -> Vec<f32> { x.to_data().iter().collect() };
    [
        vector(&weights.input_layernorm),
        matrix(&weights.q_proj),
        matrix(&weights.k_proj),
        matrix(&weights.v_proj),
        matrix(&weights.o_proj),
        vector(&weights.post_attention_layernorm),
        matrix(&weights.gate_proj),
        matrix(&weights.up_proj),
        matrix(&weights.down_proj),
    ]
}
