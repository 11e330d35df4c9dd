//! The list of a source's shards: `tokens/<source>/manifest.json`.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Shard};
use crate::checksum::FileDigest;
use crate::document::Split;
use crate::error::{DataError, Result};
use crate::json_file::{read_json, write_json};
use crate::progress::Progress;

/// Version of the manifest. A reader refuses any other.
const VERSION: &str = "2";

/// How shards are made anew.
pub(super) const TOKENIZE_AGAIN: &str = "write the shards again with `altiplano tokenize`";

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

impl ShardSummary {
    /// Length and hash of the file.
    pub fn digest(&self) -> FileDigest {
        FileDigest { bytes: self.file_bytes, blake3: self.file_blake3.clone() }
    }
}

/// The shards of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardManifest {
    /// Always `tokens`.
    pub format: String,
    /// Version of the manifest.
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
    /// The manifest of `shards` of a source.
    pub fn new(
        source: &str,
        tokenizer: &str,
        vocab_size: usize,
        key: String,
        shards: Vec<ShardSummary>,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION.to_owned(),
            source: source.to_owned(),
            tokenizer: tokenizer.to_owned(),
            vocab_size,
            key,
            shards,
        }
    }

    /// Writes the manifest of `folder`.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&Self::path(folder), self).map(drop)
    }

    /// Path of the manifest in the folder of a source.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("manifest.json")
    }

    /// Reads the manifest of `folder`.
    ///
    /// # Errors
    /// [`DataError::NotMade`] when there is none, [`DataError::Altered`] or
    /// [`DataError::BadFile`] when it is not as it was written, [`DataError::Shard`] when it is of
    /// another version.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        let manifest: Self = match read_json(&path, TOKENIZE_AGAIN) {
            Err(missing) if missing.is_not_found() => {
                return Err(DataError::NotMade {
                    path,
                    expected: "the token shards of a source with their manifest.json",
                    command: "tokenize CONFIG",
                });
            }
            manifest => manifest?,
        };
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

    /// Bytes of the shards of one side of the holdout.
    pub fn file_bytes(&self, split: Split) -> u64 {
        let shards = self.shards.iter().filter(|shard| shard.split == split);
        shards.map(|shard| shard.file_bytes).fold(0, u64::saturating_add)
    }

    /// Opens the shards of one side of the holdout and holds each against the manifest; with
    /// `checksums`, which counts them, every byte is read.
    ///
    /// # Errors
    /// [`DataError::Shard`], [`DataError::Altered`] or [`DataError::TokenizerMismatch`] naming the
    /// file.
    pub fn open_shards(
        &self,
        folder: &Path,
        split: Split,
        checksums: Option<&Progress>,
    ) -> Result<Vec<Shard>> {
        let summaries: Vec<_> = self.shards.iter().filter(|shard| shard.split == split).collect();
        summaries
            .par_iter()
            .map(|summary| {
                // Only the name counts: a manifest cannot point outside its folder.
                let name = Path::new(&summary.file).file_name().unwrap_or_default();
                let path = folder.join(name);
                summary.digest().verify_length(&path, TOKENIZE_AGAIN)?;
                let shard = Shard::open(&path)?;
                self.check(&shard, summary, checksums)?;
                Ok(shard)
            })
            .collect()
    }

    fn check(
        &self,
        shard: &Shard,
        summary: &ShardSummary,
        checksums: Option<&Progress>,
    ) -> Result<()> {
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
        if let Some(progress) = checksums {
            summary.digest().verify(shard.path(), TOKENIZE_AGAIN)?;
            progress.add(summary.file_bytes);
            progress.item_done();
        }
        Ok(())
    }
}
