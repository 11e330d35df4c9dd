//! A checkpoint opened for computing losses: the model as tensors, and its tokenizer.

use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_model::llama::Llama;
use altiplano_model::params::Weights;
use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision, device, weights};
use burn::tensor::Device;

use crate::checkpoint::{self, hugging_face, peft};
use crate::error::{Result, TrainerError};

/// A model and the tokenizer its ids come from.
#[derive(Debug)]
pub struct TrainedModel {
    /// The directory that was opened.
    pub path: PathBuf,
    /// The model.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl TrainedModel {
    /// Opens a checkpoint of ours, whose checksums are verified, the newest one of a run, any Hugging
    /// Face directory of a LLaMA with its tokenizer, or low-rank adapters in PEFT's form, which are
    /// added to the weights of the model they name.
    ///
    /// # Errors
    /// Which file is missing, damaged or does not fit the others.
    pub fn open(path: &Path, device: &str, precision: Precision) -> Result<Self> {
        let dir = checkpoint::find(path)?;
        let device = device::select(device)?;
        let (config, master_weights, tokenizer) = if peft::is_adapter(&dir) {
            merged(&dir, &device)?
        } else {
            let (config, weights) = weights_of(&dir, &device)?;
            let tokenizer = tokenizer_of(&dir, config.vocab_size)?;
            (config, weights, tokenizer)
        };
        let weights = master_weights.compute_copy(precision);
        let model = Llama::new(config, weights, ActivationCheckpointing::Full)?;
        Ok(Self { path: dir, model, tokenizer })
    }
}

/// The model in a Hugging Face directory, in one file or more, or in a checkpoint, f32.
fn weights_of(dir: &Path, device: &Device) -> Result<(LlamaConfig, Weights)> {
    if checkpoint::is_checkpoint(dir) {
        checkpoint::verify_files(dir, &[checkpoint::MODEL_FILE])?;
    }
    let (config, _) = hugging_face::read(dir)?;
    let weights = weights::load(dir, "", &config, device)?;
    Ok((config, weights))
}

/// The model that the adapters in `dir` belong to, with them in its weights, f32, and its tokenizer: that of
/// the adapters where they have one.
///
/// # Errors
/// When the adapters or their model are not there, are damaged or do not fit together.
pub(crate) fn merged(dir: &Path, device: &Device) -> Result<(LlamaConfig, Weights, Tokenizer)> {
    let (shape, named) = peft::read_config(dir)?;
    let base = peft::base_of(dir, &named)?;
    let (config, mut weights) = weights_of(&base, device)?;
    peft::load(dir, &config, &shape, device)?.merge_into(&mut weights);
    let tokenizer = match hugging_face::read_tokenizer(dir)? {
        Some(tokenizer) => fitting(tokenizer, config.vocab_size)?,
        None => tokenizer_of(&base, config.vocab_size)?,
    };
    Ok((config, weights, tokenizer))
}

/// The tokenizer of the model in a Hugging Face directory or a checkpoint, which knows `vocab_size` tokens.
///
/// # Errors
/// When it is missing, damaged or has more pieces than that.
pub fn tokenizer_of(dir: &Path, vocab_size: usize) -> Result<Tokenizer> {
    match hugging_face::read_tokenizer(dir)? {
        Some(tokenizer) => fitting(tokenizer, vocab_size),
        None => {
            let path = dir.join(hugging_face::TOKENIZER_FILE);
            Err(TrainerError::RunFile { path, reason: NO_TOKENIZER.into() })
        }
    }
}

/// The tokenizer, unless it has more pieces than the model knows tokens.
fn fitting(tokenizer: Tokenizer, vocab_size: usize) -> Result<Tokenizer> {
    if tokenizer.vocab_size() <= vocab_size {
        return Ok(tokenizer);
    }
    Err(TrainerError::RunFile {
        path: tokenizer.path().to_path_buf(),
        reason: format!(
            "has {} pieces, the model knows {vocab_size} tokens: they do not belong together",
            tokenizer.vocab_size(),
        ),
    })
}

/// What is said where there is no `tokenizer.model`.
pub(crate) const NO_TOKENIZER: &str = "no such file and no tokenizer.json; text needs the tokenizer of the \
                            weights (a run on random data has none)";
