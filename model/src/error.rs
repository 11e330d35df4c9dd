//! What can go wrong in the model crate.

use std::path::PathBuf;

use altiplano_comm::CommError;

/// Result of the model crate.
pub type Result<T> = std::result::Result<T, ModelError>;

/// Errors of the model crate. Each names what was found, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    // Configuration
    /// A field of the model configuration does not fit.
    #[error("model.{field}: found {found}, expected {expected}")]
    Config {
        /// Field of [`crate::config::LlamaConfig`].
        field: &'static str,
        /// The value given.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// The model cannot be split over so many tensor ranks.
    #[error("parallel.tensor: found {ranks}, expected {expected}")]
    TensorRanks {
        /// Ranks asked for.
        ranks: usize,
        /// What would fit, with the field of the model that decides it.
        expected: String,
    },
    /// Ranks could not exchange what they needed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The device asked for is not usable here.
    #[error("device {device:?} is not usable: {reason}")]
    Device {
        /// As the user wrote it.
        device: String,
        /// Why, and what to do.
        reason: String,
    },

    // Weights
    /// A weight file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A weight file is not what its name says.
    #[error("{path}: {reason}")]
    WeightFile {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A tensor of a weight file is missing or has another shape.
    #[error("{path}: tensor {tensor:?}: found {found}, expected {expected}")]
    WeightTensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What the file holds.
        found: String,
        /// What the configuration asks for.
        expected: String,
    },

    // Inference
    /// A prompt leaves no room in the context.
    #[error(
        "the prompt has {found} tokens and the context of the model {limit}: shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        found: usize,
        /// Tokens of the context.
        limit: usize,
    },
    /// An option of the engine does not fit.
    #[error("engine option {option}: found {found}, expected {expected}")]
    EngineOption {
        /// Field of [`crate::infer::EngineOptions`].
        option: &'static str,
        /// The value given.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// A field of a request does not fit.
    #[error("request: {field}: found {found}, expected {expected}")]
    Request {
        /// Field of [`crate::infer::Request`] or its sampling parameters.
        field: &'static str,
        /// The value given.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// A request could not run even alone.
    #[error(
        "the request needs room for {tokens} tokens, {blocks} blocks of the cache, and the whole \
         cache has {limit}: shorten the prompt, ask for fewer tokens or give the cache more memory"
    )]
    CacheTooSmall {
        /// Tokens of prompt and answer whose keys and values are kept.
        tokens: usize,
        /// Blocks that hold them.
        blocks: usize,
        /// Blocks of the cache.
        limit: usize,
    },
    /// The memory of the cache of keys and values cannot be had.
    #[error("the cache of keys and values needs {bytes} bytes: {reason}; use fewer blocks")]
    CacheMemory {
        /// Bytes asked for.
        bytes: u128,
        /// The operating system's answer.
        reason: String,
    },
    /// No token can be chosen.
    #[error("no token can be chosen: {reason}")]
    Generation {
        /// What stands against it.
        reason: String,
    },
    /// A forward pass gives what is no number.
    #[error("{place}: {found}")]
    NotFinite {
        /// The first tensor or layer it comes from.
        place: String,
        /// What was found there, and what to do.
        found: String,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the model's vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: i64,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
}

impl ModelError {
    /// A parameter holds values that are not finite.
    pub fn tensor_not_finite(param: impl std::fmt::Display) -> Self {
        Self::NotFinite {
            place: format!("tensor {:?}", param.to_string()),
            found: "holds values that are not finite; the file is damaged, or its training diverged: use \
                    another checkpoint"
                .into(),
        }
    }
}
