//! Parameters in safetensors files with Hugging Face names.
//!
//! Files are checked before a byte is used: names, shapes and types against the configuration, never
//! a length the file claims.

use std::borrow::Cow;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::adapters::{AdapterShape, Adapters};
use crate::backend::f32_storage;
use crate::config::LlamaConfig;
use crate::error::{ModelError, Result};
use crate::param_tree::{Leaf, with_leaf};
use crate::params::TensorTree;
use crate::weight_files::{StoredTensor, WeightFiles};

/// Multiple of bytes that the header's length is filled up to, as the format asks for.
const HEADER_ALIGNMENT: usize = 8;

/// One parameter on its way to a file, as f32. On the CPU its bytes are written from where they are;
/// from elsewhere, or in another format, they are copied when their turn comes.
struct ParamView<'a> {
    tensor: Leaf<&'a Tensor<1>, &'a Tensor<2>>,
    storage: Option<FlexTensor>,
}

impl<'a> ParamView<'a> {
    fn new(tensor: Leaf<&'a Tensor<1>, &'a Tensor<2>>) -> Self {
        Self { storage: with_leaf!(tensor, x => f32_storage(x)), tensor }
    }

    fn shape(&self) -> Vec<usize> {
        with_leaf!(self.tensor, x => x.dims().to_vec())
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.storage {
            Some(storage) => Cow::Borrowed(storage.bytes()),
            None => Cow::Owned(self.tensor.to_data().convert_dtype(DType::F32).as_bytes().to_vec()),
        }
    }
}

/// Writes trees of tensors in f32 as one safetensors file, each name behind its prefix:
/// `("", weights)` for a model, `("m.", m)` and `("v.", v)` for the AdamW moments. The writer sees
/// the bytes in the order of the file, so it can hash them; `path` is for messages.
///
/// # Errors
/// [`ModelError::Io`] when `out` fails, [`ModelError::WeightFile`] when the names do not fit into
/// one file.
pub fn write(out: &mut impl Write, path: &Path, trees: &[(&str, &TensorTree)]) -> Result<()> {
    let views = trees.iter().flat_map(|(prefix, tree)| {
        tree.iter().map(move |(param, x)| (format!("{prefix}{param}"), ParamView::new(x)))
    });
    write_views(out, path, views.collect())
}

/// As [`write()`], for adapters under PEFT's names.
///
/// # Errors
/// As [`write()`].
pub fn write_adapters(
    out: &mut impl Write,
    path: &Path,
    trees: &[(&str, &Adapters)],
) -> Result<()> {
    let views = trees.iter().flat_map(|(prefix, tree)| {
        let view = |x| ParamView::new(Leaf::Matrix(x));
        tree.iter().map(move |(param, x)| (format!("{prefix}{param}"), view(x)))
    });
    write_views(out, path, views.collect())
}

fn write_views(
    out: &mut impl Write,
    path: &Path,
    mut views: Vec<(String, ParamView<'_>)>,
) -> Result<()> {
    // All of one type, so the order is that of the names, as safetensors itself has it.
    views.sort_by(|(left, _), (right, _)| left.cmp(right));
    let shapes = views.iter().map(|(name, view)| (name.clone(), view.shape())).collect();
    write_header(out, path, shapes)?;
    let written = views.iter().try_for_each(|(_, view)| out.write_all(&view.data()));
    written.map_err(|source| ModelError::Io { path: path.to_path_buf(), source })
}

/// Writes what stands before the elements of tensors of f32 in a safetensors file. The elements
/// follow, little-endian, tensor by tensor in the order of `shapes`, which is that of the names.
///
/// # Errors
/// As [`write()`].
pub fn write_header(
    out: &mut impl Write,
    path: &Path,
    shapes: Vec<(String, Vec<usize>)>,
) -> Result<()> {
    let mut end = 0;
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * size_of::<f32>();
        (name, TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) })
    });
    // transformers refuses a file whose metadata does not name a format.
    let format = [("format".to_string(), "pt".to_string())].into();
    let cannot = |reason: String| file_error(path, format!("cannot be written: {reason}"));
    let metadata = Metadata::new(Some(format), tensors.collect())
        .map_err(|error| cannot(error.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| cannot(error.to_string()))?;
    header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| out.write_all(&header))
        .map_err(|source| ModelError::Io { path: path.to_path_buf(), source })
}

/// Reads the parameters of `config` whose names stand behind `prefix`, as f32. `path` is a
/// safetensors file, or a Hugging Face directory with `model.safetensors` or its shards.
///
/// # Errors
/// As [`WeightFiles::open_for`]; [`ModelError::WeightTensor`] when a tensor is missing or has another
/// shape or an unknown type.
pub fn load(
    path: &Path,
    prefix: &str,
    config: &LlamaConfig,
    device: &Device,
) -> Result<TensorTree> {
    let files = WeightFiles::open_for(path, config)?;
    // A configuration may claim any number of layers: nothing is made before the last is there.
    if let Some(last) = config.n_layers.checked_sub(1) {
        let name = format!("{prefix}model.layers.{last}.input_layernorm.weight");
        if files.tensor(&name).is_none() {
            return Err(ModelError::WeightTensor {
                path: files.path().to_path_buf(),
                tensor: name,
                found: "no such tensor".into(),
                expected: format!("the weights of {} layers", config.n_layers),
            });
        }
    }
    if config.tie_word_embeddings {
        check_tied(&files, prefix)?;
    }
    TensorTree::build(config, |param| {
        read_tensor(&files, &format!("{prefix}{param}"), &param.shape(config), device)
    })
}

/// A file that has an output head beside a tied embedding has the same one: programs differ in
/// which of two they use.
///
/// # Errors
/// [`ModelError::WeightTensor`] when they differ.
pub fn check_tied(files: &WeightFiles, prefix: &str) -> Result<()> {
    let name = format!("{prefix}lm_head.weight");
    let Some(head) = files.tensor(&name) else { return Ok(()) };
    let embedding = files.tensor(&format!("{prefix}model.embed_tokens.weight"));
    let same =
        |other: &StoredTensor| other.dtype == head.dtype && other.bytes[..] == head.bytes[..];
    if embedding.as_ref().is_some_and(same) {
        return Ok(());
    }
    Err(ModelError::WeightTensor {
        path: head.path.to_path_buf(),
        tensor: name,
        found: "other values than the embedding's".into(),
        expected: "none, or the same: config.json says tie_word_embeddings true".into(),
    })
}

/// Reads the adapters of a model of this configuration whose names stand behind `prefix`, as f32, from the
/// safetensors file `path`.
///
/// # Errors
/// As [`load`].
pub fn load_adapters(
    path: &Path,
    prefix: &str,
    config: &LlamaConfig,
    shape: &AdapterShape,
    device: &Device,
) -> Result<Adapters> {
    let files = WeightFiles::open_for(path, config)?;
    Adapters::build(config, shape, |param, size| {
        let flat = read_tensor(&files, &format!("{prefix}{param}"), &size, device)?;
        Ok(flat.reshape(size))
    })
}

fn read_tensor(
    files: &WeightFiles,
    name: &str,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor<1>> {
    let count = shape.iter().product();
    let values = read_range(files, name, shape, 0..count)?;
    Ok(Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32)))
}

/// Some of the elements of the tensor `name`, which has this `shape`, as f32: those of `range` in the
/// order in which they lie in the file.
///
/// # Errors
/// [`ModelError::WeightTensor`] when it is missing or has another shape or an unknown type.
pub fn read_range(
    files: &WeightFiles,
    name: &str,
    shape: &[usize],
    range: Range<usize>,
) -> Result<Vec<f32>> {
    let mismatch = |path: &Path, found: String| ModelError::WeightTensor {
        path: path.to_path_buf(),
        tensor: name.to_string(),
        found,
        expected: format!("{shape:?} of F32, F16 or BF16"),
    };
    let tensor =
        files.tensor(name).ok_or_else(|| mismatch(files.path(), "no such tensor".into()))?;
    if tensor.shape != shape {
        return Err(mismatch(tensor.path, format!("{:?}", tensor.shape)));
    }
    let bytes = tensor.bytes;
    let element = |size: usize| range.start * size..range.end * size;
    Ok(match tensor.dtype {
        Dtype::F32 => bytes[element(4)]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Dtype::BF16 => bytes[element(2)]
            .chunks_exact(2)
            .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        Dtype::F16 => bytes[element(2)]
            .chunks_exact(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        other => return Err(mismatch(tensor.path, format!("{:?} of {other:?}", tensor.shape))),
    })
}

fn file_error(path: &Path, reason: String) -> ModelError {
    ModelError::WeightFile { path: path.to_path_buf(), reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn config() -> LlamaConfig {
        LlamaConfig {
            dim: 16,
            n_layers: 1,
            n_heads: 2,
            n_kv_heads: None,
            hidden_dim: Some(24),
            multiple_of: 256,
            vocab_size: 30,
            max_seq_len: 8,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    /// Writes a file.
    fn save(path: &Path, trees: &[(&str, &TensorTree)]) -> Result<()> {
        let mut bytes = Vec::new();
        write(&mut bytes, path, trees)?;
        std::fs::write(path, bytes).unwrap();
        Ok(())
    }

    /// The file is, byte for byte, the one that safetensors itself writes of the same tensors.
    #[test]
    fn the_bytes_are_those_of_safetensors() {
        let device = Device::flex();
        let (m, v) = (
            TensorTree::init(&config(), 1, DType::F32, &device),
            TensorTree::init(&config(), 2, DType::F32, &device),
        );
        let trees = [("v.", &v), ("m.", &m)];
        let mut written = Vec::new();
        write(&mut written, Path::new("x"), &trees).unwrap();
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = trees
            .iter()
            .flat_map(|(prefix, tree)| {
                tree.iter().map(move |(param, x)| {
                    let bytes = x.to_data().as_bytes().to_vec();
                    (format!("{prefix}{param}"), param.shape(&config()), bytes)
                })
            })
            .collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let format = [("format".to_string(), "pt".to_string())].into();
        assert!(written == safetensors::serialize(views, Some(format)).unwrap());
    }

    /// A full disk ends the write with the file's name.
    #[test]
    fn a_writer_that_fails_is_named() {
        let params = TensorTree::init(&config(), 1, DType::F32, &Device::flex());
        let mut room = [0; 100];
        let error = write(&mut &mut room[..], Path::new("full.safetensors"), &[("", &params)]);
        assert!(error.unwrap_err().to_string().contains("full.safetensors"));
    }

    fn bytes(tree: &TensorTree) -> Vec<Vec<u8>> {
        tree.iter().map(|(_, x)| x.to_data().as_bytes().to_vec()).collect()
    }

    #[test]
    fn round_trip_is_exact() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let path = folder.path().join("model.safetensors");
        let (m, v) = (
            TensorTree::init(&config(), 1, DType::F32, &device),
            TensorTree::init(&config(), 2, DType::F32, &device),
        );
        save(&path, &[("m.", &m), ("v.", &v)]).unwrap();
        assert_eq!(bytes(&load(&path, "m.", &config(), &device).unwrap()), bytes(&m));
        assert_eq!(bytes(&load(&path, "v.", &config(), &device).unwrap()), bytes(&v));
    }

    /// A tree in another format is written as f32 too.
    #[test]
    fn other_formats_become_f32() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let path = folder.path().join("model.safetensors");
        let bf16 = TensorTree::init(&config(), 1, DType::BF16, &device);
        save(&path, &[("", &bf16)]).unwrap();
        let read = load(&path, "", &config(), &device).unwrap();
        let expected: Vec<_> = bf16
            .iter()
            .map(|(_, x)| x.to_data().convert_dtype(DType::F32).as_bytes().to_vec())
            .collect();
        assert_eq!(bytes(&read), expected);
    }

    /// A model in shards is read as the model in one file.
    #[test]
    fn shards_are_read() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let params = TensorTree::init(&config(), 1, DType::F32, &device);
        let mut weight_map = serde_json::Map::new();
        for (n, (param, x)) in params.iter().enumerate() {
            let (name, file) = (param.to_string(), format!("model-{n:05}.safetensors"));
            let shape = ParamView::new(x).shape();
            let data = x.to_data();
            let view = TensorView::new(Dtype::F32, shape, data.as_bytes()).unwrap();
            let bytes = safetensors::serialize([(&name, view)], None).unwrap();
            std::fs::write(folder.path().join(&file), bytes).unwrap();
            weight_map.insert(name, file.into());
        }
        let index = serde_json::json!({ "weight_map": weight_map }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let read = load(folder.path(), "", &config(), &device).unwrap();
        assert_eq!(bytes(&read), bytes(&params));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let path = folder.path().join("model.safetensors");
        let params = TensorTree::init(&config(), 1, DType::F32, &device);
        save(&path, &[("", &params)]).unwrap();

        let wider = LlamaConfig { hidden_dim: Some(32), ..config() };
        let error = load(&path, "", &wider, &device).unwrap_err().to_string();
        assert!(error.contains("gate_proj") && error.contains("[24, 16]"), "{error}");
        assert!(error.contains("[32, 16]"), "{error}");

        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = load(&path, "", &config(), &device).unwrap_err().to_string();
            assert!(error.contains("model.safetensors"), "{error}");
        }
        // A header that claims more than the file holds.
        std::fs::write(&path, [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap();
        assert!(load(&path, "", &config(), &device).is_err());
    }

    #[test]
    fn a_header_too_large_for_its_model_is_not_read() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let path = folder.path().join("model.safetensors");
        let error = |tensors: usize| {
            let entry =
                |n| format!("\"{n}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}");
            let entries: Vec<String> = (0..tensors).map(entry).collect();
            let header = format!("{{{}}}", entries.join(","));
            let length = (header.len() as u64).to_le_bytes();
            std::fs::write(&path, [&length[..], header.as_bytes()].concat()).unwrap();
            load(&path, "", &config(), &device).unwrap_err().to_string()
        };
        assert!(error(100).contains("no such tensor"), "{}", error(100));
        assert!(error(100_000).contains("a header of"), "{}", error(100_000));
    }
}
