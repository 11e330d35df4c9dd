//! How a tokenizer was trained, and the digest of its model: `tokenizer.model.json` beside
//! `tokenizer.model`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic_file::{remove_durably, write_atomically};
use crate::checksum::FileDigest;
use crate::error::Result;
use crate::json_file::{read_json, write_json};

/// What to do about a model that is not as it was written.
const TRAIN_AGAIN: &str = "`altiplano tokenizer train` makes both anew; delete the .json beside \
                           the model if the model is another one that you put there";

/// How a tokenizer was trained.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Description {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Bytes of text the trainer saw.
    pub sample_bytes: u64,
    /// Sentences it saw.
    pub sample_sentences: u64,
    /// Documents they come from.
    pub documents: u64,
}

/// The description with the digest of the model.
#[derive(Serialize, Deserialize)]
struct Described {
    #[serde(flatten)]
    description: Description,
    model: FileDigest,
}

impl Description {
    fn path(model: &Path) -> PathBuf {
        let mut name = model.as_os_str().to_owned();
        name.push(".json");
        name.into()
    }

    /// Writes the model `bytes` to `model`, and the description beside it.
    pub fn write_with(self, model: &Path, bytes: &[u8]) -> Result<()> {
        let path = Self::path(model);
        // A crash must not leave a new model with the word of the old one.
        remove_durably(&path)?;
        let digest = write_atomically(model, bytes)?;
        write_json(&path, &Described { description: self, model: digest }).map(drop)
    }

    /// Holds `bytes`, read from `model`, against the description beside it. There is none beside a
    /// model that was not trained here.
    pub fn check(model: &Path, bytes: &[u8]) -> Result<()> {
        match read_json::<Described>(&Self::path(model), TRAIN_AGAIN) {
            Err(missing) if missing.is_not_found() => Ok(()),
            described => described?.model.check(bytes, model, TRAIN_AGAIN),
        }
    }
}
