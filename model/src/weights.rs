//! Parameters in safetensors files with Hugging Face names.
//!
//! Files are checked before a byte is used: names, shapes and types against the configuration, never
//! a length the file claims.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::Path;

use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, View};

use crate::config::LlamaConfig;
use crate::error::{ModelError, Result};
use crate::params::{Param, ParamSpec, Params};
use crate::weight_files::WeightFiles;

/// One parameter on its way to a file, as f32. On the CPU its bytes are written from where they are;
/// from elsewhere, or in another format, they are copied when their turn comes.
struct ParamView<'a> {
    param: Param<'a>,
    shape: Vec<usize>,
    storage: Option<FlexTensor>,
}

impl<'a> ParamView<'a> {
    fn new(param: Param<'a>) -> Self {
        Self { shape: param.shape(), storage: param.f32_storage(), param }
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
            None => Cow::Owned(self.param.to_data().convert_dtype(DType::F32).as_bytes().to_vec()),
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// Writes parameter trees in f32 to one file, each name behind its prefix: `("", weights)` for a
/// model, `("m.", m)` and `("v.", v)` for the AdamW moments.
///
/// # Errors
/// [`ModelError::Io`] or [`ModelError::WeightFile`] when the file cannot be written, with the
/// operating system's reason.
pub fn save(path: &Path, trees: &[(&str, &Params)]) -> Result<()> {
    let views: Vec<(String, ParamView)> = trees
        .iter()
        .flat_map(|(prefix, params)| {
            let view = |(name, param)| (format!("{prefix}{name}"), ParamView::new(param));
            params.named().into_iter().map(view).collect::<Vec<_>>()
        })
        .collect();
    let io_error = |source| ModelError::Io { path: path.to_path_buf(), source };
    // safetensors writes a private temporary file and renames it. A file made here has the
    // permissions of any other new file, and the final one gets them.
    let made = File::create(path).and_then(|file| file.metadata()).map_err(io_error)?;
    // transformers refuses a file whose metadata does not name a format.
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| {
        ModelError::WeightFile {
            path: path.to_path_buf(),
            reason: format!("cannot be written: {error}"),
        }
    })?;
    fs::set_permissions(path, made.permissions()).map_err(io_error)
}

/// Reads the parameters of `config` whose names stand behind `prefix`, as f32. `path` is a
/// safetensors file, or a Hugging Face directory with `model.safetensors` or its shards.
///
/// # Errors
/// As [`WeightFiles::open`]; [`ModelError::WeightTensor`] when a tensor is missing or has another
/// shape or an unknown type.
pub fn load(path: &Path, prefix: &str, config: &LlamaConfig, device: &Device) -> Result<Params> {
    let files = WeightFiles::open(path)?;
    Params::build(config, |_, spec| read_tensor(&files, prefix, spec, device))
}

fn read_tensor(
    files: &WeightFiles,
    prefix: &str,
    spec: &ParamSpec,
    device: &Device,
) -> Result<Tensor<1>> {
    let name = format!("{prefix}{}", spec.name);
    let mismatch = |path: &Path, found: String| ModelError::WeightTensor {
        path: path.to_path_buf(),
        tensor: name.clone(),
        found,
        expected: format!("{:?} of F32, F16 or BF16", spec.shape),
    };
    let tensor = files
        .tensor(&name)
        .ok_or_else(|| mismatch(files.path(), "no such tensor".into()))?;
    if tensor.shape != spec.shape {
        return Err(mismatch(tensor.path, format!("{:?}", tensor.shape)));
    }
    let bytes = tensor.bytes;
    let values: Vec<f32> = match tensor.dtype {
        Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::BF16 => {
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        other => return Err(mismatch(tensor.path, format!("{:?} of {other:?}", tensor.shape))),
    };
    let count = values.len();
    Ok(Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32)))
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

    fn bytes(params: &Params) -> Vec<Vec<u8>> {
        params.named().iter().map(|(_, p)| p.to_data().as_bytes().to_vec()).collect()
    }

    #[test]
    fn round_trip_is_exact() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let path = folder.path().join("model.safetensors");
        let (m, v) = (
            Params::init(&config(), 1, DType::F32, &device),
            Params::init(&config(), 2, DType::F32, &device),
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
        let bf16 = Params::init(&config(), 1, DType::BF16, &device);
        save(&path, &[("", &bf16)]).unwrap();
        let read = load(&path, "", &config(), &device).unwrap();
        let widened = |(_, p): &(String, Param)| p.to_data().convert_dtype(DType::F32);
        let expected: Vec<_> =
            bf16.named().iter().map(|p| widened(p).as_bytes().to_vec()).collect();
        assert_eq!(bytes(&read), expected);
    }

    /// A file of weights is as readable as any other file of the process.
    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        let (other, path) = (folder.path().join("other"), folder.path().join("model.safetensors"));
        File::create(&other).unwrap();
        let params = Params::init(&config(), 1, DType::F32, &device);
        // New, and over one that is there.
        for _ in 0..2 {
            save(&path, &[("", &params)]).unwrap();
            assert_eq!(mode(&path), mode(&other));
        }
    }

    /// A model in shards is read as the model in one file.
    #[test]
    fn shards_are_read() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let params = Params::init(&config(), 1, DType::F32, &device);
        let mut weight_map = serde_json::Map::new();
        for (n, (name, param)) in params.named().into_iter().enumerate() {
            let file = format!("model-{n:05}.safetensors");
            weight_map.insert(name.clone(), file.clone().into());
            let views = [(name, ParamView::new(param))];
            safetensors::serialize_to_file(views, None, &folder.path().join(file)).unwrap();
        }
        let index = serde_json::json!({ "weight_map": weight_map }).to_string();
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let read = load(folder.path(), "", &config(), &device).unwrap();
        assert_eq!(bytes(&read), bytes(&params));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Device::flex());
        let path = folder.path().join("model.safetensors");
        let params = Params::init(&config(), 1, DType::F32, &device);
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
