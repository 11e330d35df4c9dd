//! Documents to token shards.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::manifest::{ShardManifest, ShardSummary, tokens_folder};
use super::writer::ShardWriter;
use super::{VERSION, manifest::TOKENIZE_AGAIN};
use crate::atomic_file::{remove_durably, remove_unfinished};
use crate::document::{Document, DocumentFile, SourceDocuments, Split};
use crate::error::{DataError, Result};
use crate::fingerprint::Fingerprint;
use crate::lock::FolderLock;
use crate::pipeline::documents_folder;
use crate::progress::{Progress, ProgressMode, Work};
use crate::tokenizer::{PieceType, Tokenizer};

/// Text encoded at a time, in bytes: the documents of such a batch are encoded in parallel.
const BATCH_BYTES: usize = 16 << 20;
/// Most tokens in a shard.
const LARGEST_SHARD: u64 = 1 << 32;

/// How shards are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShardConfig {
    /// Tokens after which a shard is closed, at the end of a document (integer, default
    /// 100000000). Writing one needs 2 or 4 bytes of memory per token.
    pub tokens_per_shard: u64,
    /// Put the tokenizer's mark before every document (bool, default true).
    pub add_bos: bool,
    /// Put the tokenizer's mark behind every document (bool, default true).
    pub add_eos: bool,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self { tokens_per_shard: 100_000_000, add_bos: true, add_eos: true }
    }
}

impl ShardConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`DataError::Config`].
    pub fn validate(&self) -> Result<()> {
        if !(1..=LARGEST_SHARD).contains(&self.tokens_per_shard) {
            return Err(DataError::config(
                "shards.tokens_per_shard",
                self.tokens_per_shard,
                format!("1 to {LARGEST_SHARD}"),
            ));
        }
        Ok(())
    }
}

/// What tokenizing did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TokenizeReport {
    /// One entry per source, in the order given.
    pub sources: Vec<TokenizedSource>,
}

/// The tokens of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenizedSource {
    /// Name of the source.
    pub source: String,
    /// Its shards were already there.
    pub skipped: bool,
    /// The shards.
    pub shards: Vec<ShardSummary>,
    /// Tokens that are single bytes, among those written now (0 when skipped).
    pub byte_tokens: u64,
}

impl TokenizedSource {
    /// Tokens, documents and text bytes of one side of the holdout.
    pub fn totals(&self, split: Split) -> (u64, u64, u64) {
        let shards = self.shards.iter().filter(|shard| shard.split == split);
        shards.fold((0, 0, 0), |(tokens, documents, bytes), shard| {
            (
                tokens.saturating_add(shard.tokens),
                documents.saturating_add(shard.documents),
                bytes.saturating_add(shard.text_bytes),
            )
        })
    }
}

impl std::fmt::Display for TokenizeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:<20} {:<10} {:>12} {:>14} {:>12}",
            "source", "split", "documents", "tokens", "bytes/token"
        )?;
        for source in &self.sources {
            for split in Split::ALL {
                let (tokens, documents, bytes) = source.totals(split);
                writeln!(
                    f,
                    "{:<20} {:<10} {documents:>12} {tokens:>14} {:>12.3}",
                    source.source,
                    split.name(),
                    bytes as f64 / (tokens as f64).max(1.0)
                )?;
            }
        }
        Ok(())
    }
}

/// Writes the token shards of `sources` below the folder that is locked. A source whose documents, tokenizer and
/// configuration are unchanged is skipped, after its documents and shards were held against their
/// manifests. The same for any number of threads.
///
/// # Errors
/// An error of reading documents, encoding or writing shards.
pub fn tokenize(
    lock: &FolderLock,
    sources: &[&str],
    tokenizer: &Tokenizer,
    config: &ShardConfig,
    progress: ProgressMode,
) -> Result<TokenizeReport> {
    config.validate()?;
    let output = lock.folder();
    remove_unfinished(output)?;
    let mut report = TokenizeReport::default();
    for source in sources {
        report.sources.push(tokenize_source(output, source, tokenizer, config, progress)?);
    }
    Ok(report)
}

fn tokenize_source(
    output: &Path,
    source: &str,
    tokenizer: &Tokenizer,
    config: &ShardConfig,
    progress: ProgressMode,
) -> Result<TokenizedSource> {
    let documents = SourceDocuments::open(&documents_folder(output, source))?;
    let key = key(tokenizer, config, &documents);
    let folder = tokens_folder(output, source);
    remove_unfinished(&folder)?;
    if let Some(manifest) = finished(&folder, &key, progress) {
        documents.verify()?;
        return Ok(TokenizedSource {
            source: source.to_owned(),
            skipped: true,
            shards: manifest.shards,
            byte_tokens: 0,
        });
    }

    // A crash must not leave new shards with the word of old ones.
    remove_durably(&ShardManifest::path(&folder))?;
    let all = || documents.files(None);
    let total = all().map(|file| file.text_bytes).fold(0, u64::saturating_add);
    let progress =
        Progress::new(progress, "tokens", Work::bytes(total).of(all().count() as u64, "files"));
    let mut job = Job {
        folder: &folder,
        tokenizer,
        config,
        progress: &progress,
        shards: Vec::new(),
        byte_tokens: 0,
    };
    for split in Split::ALL {
        job.write_split(split, documents.files(Some(split)))?;
    }
    let Job { shards, byte_tokens, .. } = job;
    let (fingerprint, vocab_size) = (tokenizer.fingerprint(), tokenizer.vocab_size());
    let manifest = ShardManifest::new(source, fingerprint, vocab_size, key, shards);
    manifest.write(&folder)?;
    remove_stale(&folder, &manifest.shards)?;
    let tokens: u64 = manifest.shards.iter().map(|shard| shard.tokens).sum();
    progress.finish(&format!("{source}: {tokens} tokens"));
    Ok(TokenizedSource {
        source: source.to_owned(),
        skipped: false,
        shards: manifest.shards,
        byte_tokens,
    })
}

/// The work on one source.
struct Job<'a> {
    folder: &'a Path,
    tokenizer: &'a Tokenizer,
    config: &'a ShardConfig,
    progress: &'a Progress,
    shards: Vec<ShardSummary>,
    byte_tokens: u64,
}

impl Job<'_> {
    fn write_split<'f>(
        &mut self,
        split: Split,
        files: impl Iterator<Item = &'f DocumentFile>,
    ) -> Result<()> {
        let mut number = 0;
        let mut writer = self.writer(split, number);
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for file in files {
            for document in file.reader()? {
                let document = document?;
                batch_bytes += document.text.len();
                batch.push(document);
                if batch_bytes >= BATCH_BYTES {
                    self.encode(split, &mut number, &mut writer, &mut batch)?;
                    batch_bytes = 0;
                }
            }
            self.progress.item_done();
        }
        self.encode(split, &mut number, &mut writer, &mut batch)?;
        if writer.documents() > 0 {
            self.shards.push(writer.finish(split)?);
        }
        Ok(())
    }

    /// Encodes a batch in parallel and appends it in order.
    fn encode(
        &mut self,
        split: Split,
        number: &mut usize,
        writer: &mut ShardWriter,
        batch: &mut Vec<Document>,
    ) -> Result<()> {
        let encoded: Vec<(Vec<u32>, u64)> = batch
            .par_iter()
            .map(|document| {
                let ids = self.tokenizer.encode_document(
                    &document.text,
                    self.config.add_bos,
                    self.config.add_eos,
                )?;
                let is_byte = |id: &&u32| {
                    let piece = self.tokenizer.piece(**id);
                    piece.is_some_and(|piece| matches!(piece.kind, PieceType::Byte(_)))
                };
                let bytes = ids.iter().filter(is_byte).count() as u64;
                self.progress.add(document.text.len() as u64);
                Ok((ids, bytes))
            })
            .collect::<Result<_>>()?;
        for (document, (ids, byte_tokens)) in batch.drain(..).zip(encoded) {
            writer.push(&ids, document.text.len() as u64)?;
            self.byte_tokens += byte_tokens;
            if writer.tokens() >= self.config.tokens_per_shard {
                *number += 1;
                let full = std::mem::replace(writer, self.writer(split, *number));
                self.shards.push(full.finish(split)?);
            }
        }
        Ok(())
    }

    fn writer(&self, split: Split, number: usize) -> ShardWriter {
        let name = format!("{}-{number:05}.arrow", split.name());
        ShardWriter::new(
            &self.folder.join(name),
            self.tokenizer.fingerprint(),
            self.tokenizer.vocab_size(),
        )
    }
}

/// Hash of all that decides what the shards hold.
fn key(tokenizer: &Tokenizer, config: &ShardConfig, documents: &SourceDocuments) -> String {
    let mut key = Fingerprint::of(VERSION);
    key.part(tokenizer.fingerprint()).json(config);
    for file in &documents.manifest.files {
        key.part(&file.file).part(&file.blake3);
    }
    key.hex()
}

/// The manifest of an earlier run that did the same work, if its shards are as they were written.
/// What is altered is said.
fn finished(folder: &Path, key: &str, progress: ProgressMode) -> Option<ShardManifest> {
    let manifest = match ShardManifest::read(folder) {
        Ok(manifest) if manifest.key == key => manifest,
        Ok(_) | Err(DataError::NotMade { .. }) => return None,
        Err(error) => {
            say_redo(error);
            return None;
        }
    };
    let bytes = Split::ALL.map(|split| manifest.file_bytes(split)).iter().sum();
    let work = Work::bytes(bytes).of(manifest.shards.len() as u64, "files");
    let progress = Progress::new(progress, "checksums", work);
    let verified = manifest.shards.par_iter().try_for_each(|shard| {
        let name = Path::new(&shard.file).file_name().unwrap_or_default();
        shard.digest().verify(&folder.join(name), TOKENIZE_AGAIN)?;
        progress.add(shard.file_bytes);
        progress.item_done();
        Ok(())
    });
    drop(progress);
    verified.map_err(say_redo).ok().map(|()| manifest)
}

fn say_redo(error: DataError) {
    tracing::warn!("{}; the shards are written again", error.without_remedy());
}

/// Deletes shards of an earlier run that the new manifest does not name.
fn remove_stale(folder: &Path, shards: &[ShardSummary]) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".arrow") && !shards.iter().any(|shard| shard.file == name) {
            remove_durably(&entry.path())?;
        }
    }
    Ok(())
}
