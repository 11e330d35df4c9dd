//! Parameters in safetensors files with Hugging Face names.
//!
//! Files are memory-mapped and checked before a byte is used: names, shapes and types against the
//! configuration, never a length the file claims.

use std::borrow::Cow;
use std::fs::File;
use std::path::Path;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::backend::f32_storage;
use crate::config::LlamaConfig;
use crate::error::{ModelError, Result};
use crate::param_tree::{Leaf, with_leaf};
use crate::params::TensorTree;

/// One parameter on its way to a file, as f32. On the CPU its bytes are written from where they are;
/// from elsewhere, or in another format, they are copied when their turn comes.
struct ParamView<'a> {
    tensor: Leaf<&'a Tensor<1>, &'a Tensor<2>>,
    shape: Vec<usize>,
    storage: Option<FlexTensor>,
}

impl<'a> ParamView<'a> {
    fn new(tensor: Leaf<&'a Tensor<1>, &'a Tensor<2>>) -> Self {
        let shape = with_leaf!(tensor, x => x.dims().to_vec());
        Self { shape, storage: with_leaf!(tensor, x => f32_storage(x)), tensor }
    }
}

impl View for ParamView<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match &self.storage {
            Some(storage) => Cow::Borrowed(storage.bytes()),
            None => Cow::Owned(self.tensor.to_data().convert_dtype(DType::F32).as_bytes().to_vec()),
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// Writes trees of tensors in f32 to one file, each name behind its prefix: `("", weights)` for a
/// model, `("m.", m)` and `("v.", v)` for the AdamW moments.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::WeightFile`] when the file cannot be written, with the
/// operating system's reason.
pub fn save(path: &Path, trees: &[(&str, &TensorTree)]) -> Result<()> {
    let views: Vec<(String, ParamView)> = trees
        .iter()
        .flat_map(|(prefix, tree)| {
            tree.iter().map(move |(param, x)| (format!("{prefix}{param}"), ParamView::new(x)))
        })
        .collect();
    // Made here with the permissions of any other file; safetensors would make it private.
    File::create(path).map_err(|source| ModelError::Io { path: path.to_path_buf(), source })?;
    // transformers refuses a file whose metadata does not name a format.
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| file_error(path, format!("cannot be written: {error}")))
}

/// Reads the parameters of `config` whose names stand behind `prefix`, as f32.
///
/// # Errors
/// [`ModelError::Io`] when the file cannot be opened, [`ModelError::WeightFile`] when it is not
/// a safetensors file or is cut short, [`ModelError::WeightTensor`] when a tensor is missing or has
/// another shape or an unknown type.
pub fn load(
    path: &Path,
    prefix: &str,
    config: &LlamaConfig,
    device: &Device,
) -> Result<TensorTree> {
    let io_error = |source| ModelError::Io { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io_error)?;
    // SAFETY: the map is read only and private; a file cut short by someone else while it is read
    // can end the process with a bus error, as with every memory-mapped reader, but not corrupt it.
    let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
    let tensors = SafeTensors::deserialize(&map)
        .map_err(|error| file_error(path, format!("is not a whole safetensors file: {error}")))?;
    TensorTree::build(config, |param| {
        let name = format!("{prefix}{param}");
        read_tensor(path, &tensors, &name, &param.shape(config), device)
    })
}

fn read_tensor(
    path: &Path,
    tensors: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor<1>> {
    let mismatch = |found: String| ModelError::WeightTensor {
        path: path.to_path_buf(),
        tensor: name.to_string(),
        found,
        expected: format!("{shape:?} of F32, F16 or BF16"),
    };
    let tensor = tensors.tensor(name).map_err(|_| mismatch("no such tensor".into()))?;
    if tensor.shape() != shape {
        return Err(mismatch(format!("{:?}", tensor.shape())));
    }
    let bytes = tensor.data();
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::BF16 => {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        other => return Err(mismatch(format!("{:?} of {other:?}", tensor.shape()))),
    };
    let count = values.len();
    Ok(Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32)))
}

fn file_error(path: &Path, reason: String) -> ModelError {
    ModelError::WeightFile { path: path.to_path_buf(), reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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
            norm_eps: 1e-6,
            init_std: 0.02,
        }
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
}
