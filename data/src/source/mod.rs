//! Readers of raw text.
//!
//! A source is a list of input files and a reader that turns one file into records. A record is
//! a document or a rejection with its reason; nothing disappears without being counted. Inputs
//! may be compressed (`.gz`, also with many members, and `.zst`).

mod archive;
mod arxiv;
mod books;
mod github;
mod input;
mod json_object;
mod json_records;
mod jsonl;
mod lines;
mod parquet;
mod plain;
mod record;
mod sharegpt;
mod stack_exchange;
mod text;
mod web_archive;
mod wikipedia;

pub(crate) use archive::rfc3339;
pub use arxiv::{ArxivFormat, ArxivSource, SplicedTex, splice_tex};
pub use books::{BooksLayout, BooksSource};
pub use github::{GithubFormat, GithubSource, license};
pub use input::{Input, InputReader, list_inputs, pattern_below};
pub(crate) use json_records::JsonRecords;
pub use plain::{PlainFile, PlainText, list_plain, plain_format, read_plain};
pub use record::{Record, Rejection};
pub use sharegpt::SharegptSource;
pub use stack_exchange::{LARGEST_SITES, SitePosts, StackExchangeSource, ThreadLayout};
pub use text::{TextFormat, TextSource};
pub use web_archive::{WebArchiveFormat, WebArchiveSource};
pub use wikipedia::{TemplateFile, TemplateIndex, WikipediaSource};

use std::path::Path;

use crate::error::Result;

/// The configuration of one kind of source: a map in YAML, and the reader it describes.
pub trait SourceOptions: Send + Sync {
    /// Version of the reader. A new one redoes finished work.
    fn version(&self) -> u32;

    /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
    fn make_paths_absolute(&mut self, base: &Path);

    /// Checks what the types cannot. `key` is the dotted path of the source's kind.
    ///
    /// # Errors
    /// [`crate::DataError::Config`] naming the key.
    fn validate(&self, key: &str) -> Result<()>;

    /// Lists the input files, sorted.
    ///
    /// # Errors
    /// [`crate::DataError::NoInput`] when nothing matches.
    fn inputs(&self, key: &str) -> Result<Vec<Input>>;

    /// Reads one input and hands its records to `sink` in file order.
    ///
    /// # Errors
    /// [`crate::DataError::Io`], [`crate::DataError::Archive`] or [`crate::DataError::BadFile`] when the file itself
    /// cannot be read, and whatever `sink` returns. A bad record is not an error but a
    /// [`Record::Rejected`].
    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()>;
}

/// Receives the records of an input, in order.
pub type RecordSink<'a> = &'a mut dyn FnMut(Record) -> Result<()>;

/// What a reader is given besides its configuration.
pub struct ReadContext<'a> {
    /// Name of the source, for [`crate::document::Document::source`].
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
