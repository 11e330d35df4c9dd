//! The list of a source's shards: `tokens/<source>/manifest.json`.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Shard, VERSION};
use crate::atomic_file::hash_file;
use crate::document::Split;
use crate::error::{DataError, Result};

/// What one shard holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardSummary {
    /// File name inside the folder of the source.
    pub file: String,
    /// The side of the holdout.
    pub split: Split,
    /// Size of the file.
    pub file_bytes: u64,
    /// Hash of the file.
    pub file_blake3: String,
    /// Tokens, marks included.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Bytes of the documents' text.
    pub text_bytes: u64,
    /// Hash of the tokens and document ends, as in the shard's metadata.
    pub blake3: String,
}

/// The shards of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardManifest {
    /// Always `tokens`.
    pub format: String,
    /// Version of the format.
    pub version: String,
    /// Name of the source.
    pub source: String,
    /// Fingerprint of the tokenizer.
    pub tokenizer: String,
    /// Entries of its vocabulary.
    pub vocab_size: usize,
    /// Hash of the configuration, the tokenizer and the documents.
    pub key: String,
    /// The shards: train, then validation, in order.
    pub shards: Vec<ShardSummary>,
}

/// The folder of a source's shards below the output folder.
pub fn tokens_folder(output: &Path, source: &str) -> PathBuf {
    output.join("tokens").join(source)
}

impl ShardManifest {
    /// Path of the manifest in the folder of a source.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("manifest.json")
    }

    /// Reads the manifest of `folder`.
    ///
    /// # Errors
    /// [`DataError::NoInput`] when there is none, [`DataError::BadFile`] when it is damaged,
    /// [`DataError::Shard`] when it is of another version.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(DataError::NoInput {
                    key: "token shards".into(),
                    pattern: path.display().to_string(),
                });
            }
            Err(error) => return Err(DataError::io(&path)(error)),
        };
        let manifest: Self = serde_json::from_slice(&bytes)
            .map_err(|error| DataError::bad_file(&path, format!("no shard manifest: {error}")))?;
        if (manifest.format.as_str(), manifest.version.as_str()) != (FORMAT, VERSION) {
            return Err(DataError::Shard {
                path,
                what: "format and version",
                found: format!("{} {}", manifest.format, manifest.version),
                expected: format!("{FORMAT} {VERSION}"),
            });
        }
        Ok(manifest)
    }

    /// Opens the shards of one side of the holdout and holds each against the manifest; with
    /// `checksums` every byte is read.
    ///
    /// # Errors
    /// [`DataError::Shard`] or [`DataError::TokenizerMismatch`] naming the file.
    pub fn open_shards(&self, folder: &Path, split: Split, checksums: bool) -> Result<Vec<Shard>> {
        let summaries: Vec<_> = self.shards.iter().filter(|shard| shard.split == split).collect();
        summaries
            .par_iter()
            .map(|summary| {
                // Only the name counts: a manifest cannot point outside its folder.
                let name = Path::new(&summary.file).file_name().unwrap_or_default();
                let shard = Shard::open(&folder.join(name))?;
                self.check(&shard, summary, checksums)?;
                Ok(shard)
            })
            .collect()
    }

    fn check(&self, shard: &Shard, summary: &ShardSummary, checksums: bool) -> Result<()> {
        let header = shard.header();
        let differs = |what, found: String, expected: String| {
            Err(DataError::Shard {
                path: shard.path().to_owned(),
                what,
                found,
                expected: format!("{expected}, as manifest.json says"),
            })
        };
        if header.tokenizer != self.tokenizer {
            return Err(DataError::TokenizerMismatch {
                path: shard.path().to_owned(),
                found: header.tokenizer.clone(),
                expected: self.tokenizer.clone(),
            });
        }
        if header.vocab_size != self.vocab_size {
            let (found, expected) = (header.vocab_size, self.vocab_size);
            return differs("vocabulary size", found.to_string(), expected.to_string());
        }
        for (what, found, expected) in [
            ("tokens", header.tokens, summary.tokens),
            ("documents", header.documents, summary.documents),
            ("text bytes", header.text_bytes, summary.text_bytes),
        ] {
            if found != expected {
                return differs(what, found.to_string(), expected.to_string());
            }
        }
        if header.blake3 != summary.blake3 {
            let (found, expected) = (header.blake3.clone(), summary.blake3.clone());
            return differs("checksum of the tokens", found, expected);
        }
        if checksums {
            let found = hash_file(shard.path())?;
            if found != summary.file_blake3 {
                return differs("checksum of the file", found, summary.file_blake3.clone());
            }
        }
        Ok(())
    }
}
