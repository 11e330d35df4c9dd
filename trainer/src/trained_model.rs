//! A checkpoint opened for reading: the model and its tokenizer.

use std::path::Path;

use altiplano_data::Tokenizer;
use altiplano_model::llama::Llama;
use altiplano_model::{ActivationCheckpointing, Precision, device, weights};

use crate::checkpoint::{self, hugging_face};
use crate::error::{Result, TrainerError};

/// A model and the tokenizer its ids come from.
#[derive(Debug)]
pub struct TrainedModel {
    /// The model.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl TrainedModel {
    /// Opens a checkpoint of ours, whose checksums are verified, or any Hugging Face directory of a
    /// LLaMA with `tokenizer.model`.
    ///
    /// # Errors
    /// Which file is missing, damaged or does not fit the others.
    pub fn open(dir: &Path, device: &str, precision: Precision) -> Result<Self> {
        if checkpoint::is_checkpoint(dir) {
            checkpoint::verify_files(dir, &[checkpoint::MODEL_FILE])?;
        }
        let device = device::select(device)?;
        let (config, _) = hugging_face::read(dir)?;
        let path = dir.join(hugging_face::TOKENIZER_FILE);
        let bytes = checkpoint::read_file(dir, hugging_face::TOKENIZER_FILE)?;
        let tokenizer = Tokenizer::from_bytes(&path, &bytes)?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(TrainerError::RunFile {
                path,
                reason: format!(
                    "has {} pieces, the model knows {} tokens: they do not belong together",
                    tokenizer.vocab_size(),
                    config.vocab_size
                ),
            });
        }
        let master_weights =
            weights::load(&dir.join(checkpoint::MODEL_FILE), "", &config, &device)?;
        let weights = master_weights.compute_copy(precision);
        let model = Llama::new(config, weights, ActivationCheckpointing::Full)?;
        Ok(Self { model, tokenizer })
    }
}
