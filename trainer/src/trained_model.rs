//! A checkpoint opened for computing losses: the model as tensors, and its tokenizer.

use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_model::llama::Llama;
use altiplano_model::{ActivationCheckpointing, Precision, device, weights};

use crate::checkpoint::{self, hugging_face};
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
    /// Opens a checkpoint of ours, whose checksums are verified, the newest one of a run, or any
    /// Hugging Face directory of a LLaMA with `tokenizer.model` or `tokenizer.json`.
    ///
    /// # Errors
    /// Which file is missing, damaged or does not fit the others.
    pub fn open(path: &Path, device: &str, precision: Precision) -> Result<Self> {
        let dir = checkpoint::find(path)?;
        if checkpoint::is_checkpoint(&dir) {
            checkpoint::verify_files(&dir, &[checkpoint::MODEL_FILE])?;
        }
        let device = device::select(device)?;
        let (config, _) = hugging_face::read(&dir)?;
        let Some(tokenizer) = hugging_face::read_tokenizer(&dir)? else {
            let path = dir.join(hugging_face::TOKENIZER_FILE);
            return Err(TrainerError::RunFile { path, reason: NO_TOKENIZER.into() });
        };
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(TrainerError::RunFile {
                path: tokenizer.path().to_path_buf(),
                reason: format!(
                    "has {} pieces, the model knows {} tokens: they do not belong together",
                    tokenizer.vocab_size(),
                    config.vocab_size
                ),
            });
        }
        // The weights of a directory from elsewhere may be in several files.
        let master_weights = weights::load(&dir, "", &config, &device)?;
        let weights = master_weights.compute_copy(precision);
        let model = Llama::new(config, weights, ActivationCheckpointing::Full)?;
        Ok(Self { path: dir, model, tokenizer })
    }
}

/// What is said where there is no `tokenizer.model`.
pub(crate) const NO_TOKENIZER: &str = "no such file and no tokenizer.json; text needs the tokenizer of the \
                            weights (a run on random data has none)";
