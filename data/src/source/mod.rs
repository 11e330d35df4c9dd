//! Readers of raw text.
//!
//! A source is a list of input files and a reader that turns one file into records. A record is
//! a document or a rejection with its reason; nothing disappears without being counted. Inputs
//! may be compressed (`.gz`, also with many members, and `.zst`).

mod input;
mod jsonl;
mod lines;
mod parquet;
mod text;

pub use input::{Input, InputReader, list_inputs};
pub use text::{TextFormat, TextSource};

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::document::{Document, Reason};
use crate::error::{DataError, Result};

/// One source of a data configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name of the source (string). Names the folders of its documents and tokens: letters,
    /// digits, `-`, `_` and `.` only.
    pub name: String,
    /// Plain text: files, JSON lines or Parquet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSource>,
}

impl SourceConfig {
    /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
    pub fn resolve(&mut self, base: &Path) {
        if let Some(text) = &mut self.text {
            text.resolve(base);
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        let key = format!("sources.{}", self.name);
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(allowed) {
            return Err(DataError::config(
                "sources.name",
                format!("{:?}", self.name),
                "a folder name of letters, digits, `-`, `_` and `.`, not starting with `.`",
            ));
        }
        match &self.text {
            Some(text) => text.validate(&format!("{key}.text")),
            None => Err(DataError::config(key, "no kind", "a kind of source: `text`")),
        }
    }

    /// Lists the input files, sorted.
    ///
    /// # Errors
    /// [`DataError::NoInput`] when nothing matches.
    pub fn inputs(&self) -> Result<Vec<Input>> {
        match &self.text {
            Some(text) => text.inputs(&format!("sources.{}.text", self.name)),
            None => Ok(Vec::new()),
        }
    }

    /// Name and version of the step that reads this source. A new version redoes finished work.
    pub fn step(&self) -> (&'static str, u32) {
        ("text", 1)
    }

    /// Reads one input and hands its records to `sink` in file order. `bytes_read` hears how many
    /// bytes of the (compressed) file were consumed since the last call.
    ///
    /// # Errors
    /// As [`SourceOptions::read`].
    pub fn read(
        &self,
        input: &Input,
        bytes_read: &dyn Fn(u64),
        sink: RecordSink<'_>,
    ) -> Result<()> {
        let context = ReadContext {
            source: &self.name,
            input,
            scratch: Path::new(""),
            memory_bytes: 0,
            bytes_read,
        };
        match &self.text {
            Some(text) => text.read(&context, sink),
            None => Ok(()),
        }
    }
}

/// The configuration of one kind of source: a map in YAML, and the reader it describes.
pub trait SourceOptions {
    /// Version of the reader. A new one redoes finished work.
    fn version(&self) -> u32;

    /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
    fn resolve(&mut self, base: &Path);

    /// Checks what the types cannot. `key` is the dotted path of the source's kind.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    fn validate(&self, key: &str) -> Result<()>;

    /// Lists the input files, sorted.
    ///
    /// # Errors
    /// [`DataError::NoInput`] when nothing matches.
    fn inputs(&self, key: &str) -> Result<Vec<Input>>;

    /// Reads one input and hands its records to `sink` in file order.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::Archive`] or [`DataError::BadFile`] when the file itself
    /// cannot be read, and whatever `sink` returns. A bad record is no error but a
    /// [`Record::Rejected`].
    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()>;
}

/// Receives the records of an input, in order.
pub type RecordSink<'a> = &'a mut dyn FnMut(Record) -> Result<()>;

/// What a reader is given besides its configuration.
pub struct ReadContext<'a> {
    /// Name of the source, for [`Document::source`].
    pub source: &'a str,
    /// The file to read.
    pub input: &'a Input,
    /// A folder for temporary files; exists, is empty, and is deleted afterwards.
    pub scratch: &'a Path,
    /// Most memory to hold, in bytes.
    pub memory_bytes: u64,
    /// Hears how many bytes of the (compressed) file were consumed since the last call.
    pub bytes_read: &'a dyn Fn(u64),
}

/// What a reader found.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A document.
    Document(Document),
    /// A record that cannot become a document.
    Rejected(Rejection),
}

/// A record that was not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// Where the record begins: a byte offset into the decompressed file, or a row number of a
    /// Parquet file.
    pub offset: u64,
    /// Length of the record in bytes.
    pub bytes: u64,
    /// Detail for the log.
    pub detail: String,
}
