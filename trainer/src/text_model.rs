//! A model opened for generating text: its weights mapped where they lie, its tokenizer, the tokens that
//! end a text.

use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_data::chat::TemplateSource;
use altiplano_model::device;
use altiplano_model::infer::{InferenceModel, InferencePrecision};
use altiplano_model::param_tree::ParamTree;
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::Value;

use crate::checkpoint::{self, hugging_face, peft};
use crate::error::{Result, TrainerError};
use crate::interop::{self, StoredModel};
use crate::trained_model::{NO_TOKENIZER, merged};

/// A model that generates text.
#[derive(Debug)]
pub struct TextModel {
    /// The directory or file that was opened.
    pub path: PathBuf,
    /// The model.
    pub model: InferenceModel,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
    /// How conversations become text, where the file that was opened says it itself: a GGUF file.
    pub template: Option<TemplateSource>,
}

impl TextModel {
    /// Opens a checkpoint of ours, whose checksums are verified, the newest one of a run, any Hugging
    /// Face directory of a LLaMA with its tokenizer, a GGUF file, or low-rank adapters, which are added
    /// to the weights of the model they name. The weights of a model stay in the format
    /// they have, and in their files, unless `precision` asks for another.
    ///
    /// # Errors
    /// Which file or tensor is missing, damaged or does not fit the others.
    pub fn open(path: &Path, device: &str, precision: Option<InferencePrecision>) -> Result<Self> {
        if path.is_dir() && peft::is_adapter(&checkpoint::find(path)?) {
            return Self::with_adapters(&checkpoint::find(path)?, device, precision);
        }
        let stored = open_stored(path)?;
        let opened = opened_path(&stored, path);
        let end_tokens = end_tokens(&stored)?;
        let model = inference_model(&stored, device, precision)?;
        let Some(tokenizer) = stored.tokenizer else {
            let path = opened.join(hugging_face::TOKENIZER_FILE);
            return Err(TrainerError::RunFile { path, reason: NO_TOKENIZER.into() });
        };
        let template = stored.text.chat_template.filter(|_| opened.is_file());
        let origin = format!("{}: {}", opened.display(), interop::gguf::CHAT_TEMPLATE_KEY);
        let template = template.map(|source| TemplateSource { origin, source });
        Ok(Self { path: opened, model, tokenizer, end_tokens, template })
    }

    /// Opens low-rank adapters in PEFT's form, added to the weights of the model they name.
    fn with_adapters(
        dir: &Path,
        device: &str,
        precision: Option<InferencePrecision>,
    ) -> Result<Self> {
        let (config, weights, tokenizer) = merged(dir, &device::select(device)?)?;
        let end_tokens = tokenizer.eos_id().into_iter().collect();
        let model = match precision {
            None => InferenceModel::from_weights(config, &weights)?,
            Some(_) => InferenceModel::in_memory(config, &weights, precision)?,
        };
        Ok(Self { path: dir.to_path_buf(), model, tokenizer, end_tokens, template: None })
    }
}

/// Opens the weights alone, for what needs no text. Also gives the directory or file that was opened.
///
/// # Errors
/// As [`TextModel::open`].
pub fn open_weights(
    path: &Path,
    device: &str,
    precision: Option<InferencePrecision>,
) -> Result<(PathBuf, InferenceModel)> {
    let stored = open_stored(path)?;
    Ok((opened_path(&stored, path), inference_model(&stored, device, precision)?))
}

/// A file is one of GGUF if its name or its beginning says so; no other file is a model.
fn open_stored(path: &Path) -> Result<StoredModel> {
    let is_named_so = || path.extension().is_some_and(|extension| extension == "gguf");
    match path.is_file() && (is_named_so() || interop::gguf::begins_file(path)) {
        true => interop::gguf::open(path),
        false => interop::hugging_face::open(path),
    }
}

fn opened_path(stored: &StoredModel, path: &Path) -> PathBuf {
    stored.hugging_face_dir.clone().unwrap_or_else(|| path.to_path_buf())
}

fn inference_model(
    stored: &StoredModel,
    device: &str,
    precision: Option<InferencePrecision>,
) -> Result<InferenceModel> {
    let device = device::select(device)?;
    let mut parameters = stored.parameters();
    let mut next = || match parameters.next() {
        Some(parameter) => stored.rows(parameter),
        None => unreachable!("both lists of parameters are those of one configuration"),
    };
    let weights = ParamTree::of_model(&stored.config).try_map(
        &mut next,
        |next, _| Ok::<_, TrainerError>(vector(next()?.to_vector(), &device)),
        |next, _| next()?.to_matrix(),
    )?;
    Ok(InferenceModel::new(stored.config.clone(), weights, precision, &device)?)
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32))
}

/// The tokens that end a text: those of `generation_config.json`, else those of `config.json` (or of
/// the keys of a GGUF file), else the tokenizer's own.
fn end_tokens(stored: &StoredModel) -> Result<Vec<u32>> {
    let vocab_size = stored.config.vocab_size;
    let of_tokenizer = || stored.tokenizer.as_ref().and_then(Tokenizer::eos_id);
    let Some(dir) = &stored.hugging_face_dir else { return Ok(vec![stored.tokens.eos]) };
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let text = checkpoint::read_file(dir, name)?;
        let unfit = |reason: String| TrainerError::RunFile { path: path.clone(), reason };
        let json: Value = serde_json::from_slice(&text)
            .map_err(|error| unfit(format!("is not JSON: {error}")))?;
        let ids = match json.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
        };
        let id = |id: &Value| {
            let known = id.as_u64().filter(|id| (*id as usize) < vocab_size);
            known.map(|id| id as u32).ok_or_else(|| {
                unfit(format!(
                    "eos_token_id: found {id}, expected an id below the vocabulary's {vocab_size}, \
                     or a list of them"
                ))
            })
        };
        let ids = ids.iter().map(id).collect::<Result<Vec<u32>>>()?;
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(of_tokenizer().into_iter().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use altiplano_model::config::LlamaConfig;
    use altiplano_model::error::ModelError;

    use super::*;
    use crate::checkpoint::CheckpointFiles;
    use crate::interop::{Parameter, Rows, Shape, StoredWeights, TextSettings};

    /// A model in the directory without weights.
    fn stored(dir: &Path) -> StoredModel {
        #[derive(Debug)]
        struct NoWeights;
        impl StoredWeights for NoWeights {
            fn rows(&self, _: Parameter, _: Shape, _: usize) -> Result<Rows<'_>> {
                Err(ModelError::TokenId { id: 0, vocab_size: 0 }.into())
            }
        }
        let yaml = "{dim: 16, n_layers: 1, n_heads: 2, vocab_size: 50, max_seq_len: 20}";
        let config: LlamaConfig = serde_yaml::from_str(yaml).unwrap();
        let tokens = hugging_face::SpecialTokens { bos: 1, eos: 2 };
        hugging_face::write(
            &mut CheckpointFiles::new(dir),
            &config,
            tokens,
            None,
            None,
            hugging_face::PadToken::None,
        )
        .unwrap();
        StoredModel {
            config,
            tokens,
            tokenizer: None,
            text: TextSettings::default(),
            hugging_face_dir: Some(dir.to_path_buf()),
            weights: Box::new(NoWeights),
        }
    }

    #[test]
    fn end_tokens_come_from_the_first_file_that_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let model = stored(dir.path());
        let write = |name: &str, eos: &str| {
            std::fs::write(dir.path().join(name), format!("{{\"eos_token_id\": {eos}}}")).unwrap();
        };
        write("config.json", "7");
        for (generation, expected) in
            [("[3, 4]", vec![3, 4]), ("5", vec![5]), ("null", vec![7]), ("[]", vec![7])]
        {
            write("generation_config.json", generation);
            assert_eq!(end_tokens(&model).unwrap(), expected, "{generation}");
        }
        for wrong in ["50", "-1", "\"2\"", "[1, 2.5]"] {
            write("generation_config.json", wrong);
            let error = end_tokens(&model).unwrap_err().to_string();
            assert!(error.contains("generation_config.json") && error.contains("50"), "{error}");
        }
        std::fs::remove_file(dir.path().join("generation_config.json")).unwrap();
        write("config.json", "[8, 9]");
        assert_eq!(end_tokens(&model).unwrap(), [8, 9]);
        write("config.json", "null");
        assert_eq!(end_tokens(&model).unwrap(), [0u32; 0]);
    }
}
