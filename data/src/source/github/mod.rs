//! Source code of GitHub: dumps of files with their licenses, and whole repositories.
//!
//! Dumps are JSON lines, as exports of the BigQuery data set `github_repos` are, or Parquet, as
//! in The Stack. Repositories are tar archives, as GitHub and `git archive` write them; their
//! licenses are found by license files and SPDX tags. One document is one file.

mod coding_line;
pub mod license;
mod rows;
mod tarball;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::input::{Input, InputReader, is_archive, list_inputs, pattern_below};
use super::record::too_long;
use super::record::with_fixed_text;
use super::{ReadContext, Record, RecordSink, Rejection, SourceOptions};
use crate::document::{Document, Reason, metadata_text};
use crate::error::{DataError, Result};
use crate::text::charset::{EncodingOptions, REPAIRED_ENCODING, default_max_bad_bytes};
use license::{UNKNOWN, own_license};

/// How the files lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GithubFormat {
    /// A line is a JSON object.
    #[default]
    Jsonl,
    /// A row is a file.
    Parquet,
    /// A file is a repository: `.tar`, `.tar.gz`, `.tgz`, `.tar.zst` or `.zip`.
    Repositories,
}

/// Source code of GitHub.
///
/// `jsonl` and `parquet` know the fields `content`, `path`, `repo_name`, `license` (a name, an
/// SPDX expression or a list, all of whose names then count), `commit`, `size`, `lang`, `copies`
/// and `binary`, and the names The Stack has for them. Only `content` is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GithubSource {
    /// Path patterns (list of strings), relative to the configuration: `*`, `?`, `[ab]`, `{a,b}`
    /// and `**` for any depth. `jsonl` may end in `.gz` or `.zst`.
    pub paths: Vec<PathBuf>,
    /// `jsonl`, `parquet` or `repositories` (string, default: as each file begins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<GithubFormat>,
    /// Undo the encoding of text that was encoded twice, `cafÃ©` (bool, default false).
    #[serde(default)]
    pub fix_mojibake: bool,
    /// For `repositories`: largest share of bytes that mean nothing in the encoding of a file; a
    /// file with more is not text (number, 0 to 1, default 0.05).
    #[serde(default = "default_max_bad_bytes")]
    pub max_bad_bytes: f64,
    /// Longest record, or file of a repository, in bytes; longer ones are counted and skipped
    /// (integer, default 16 MiB).
    #[serde(default = "default_max_record_bytes")]
    pub max_record_bytes: usize,
    /// For `repositories`: most bytes of one repository, decompressed (integer, default 16 GiB).
    /// One that expands further is counted and skipped whole.
    #[serde(default = "default_max_expanded_bytes")]
    pub max_expanded_bytes: u64,
}

fn default_max_record_bytes() -> usize {
    16 << 20
}
fn default_max_expanded_bytes() -> u64 {
    16 << 30
}

impl GithubSource {
    /// Files of `format` that match `paths`, all else at its default.
    pub fn new(paths: Vec<PathBuf>, format: GithubFormat) -> Self {
        Self {
            paths,
            format: Some(format),
            fix_mojibake: false,
            max_bad_bytes: default_max_bad_bytes(),
            max_record_bytes: default_max_record_bytes(),
            max_expanded_bytes: default_max_expanded_bytes(),
        }
    }
}

impl GithubSource {
    fn encoding(&self) -> EncodingOptions {
        EncodingOptions { fix_mojibake: false, max_bad_bytes: self.max_bad_bytes }
    }
}

impl SourceOptions for GithubSource {
    /// Version 1 took a bad byte for another encoding. Version 2 read neither the encodings of DOS and of
    /// seven bits nor comments that name one.
    fn version(&self) -> u32 {
        3
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        for path in &mut self.paths {
            *path = pattern_below(base, path);
        }
    }

    fn validate(&self, key: &str) -> Result<()> {
        if self.paths.is_empty() {
            let key = format!("{key}.paths");
            return Err(DataError::config(key, "an empty list", "at least one path"));
        }
        self.encoding().validate(key)?;
        if self.max_record_bytes == 0 || self.max_record_bytes > 1 << 30 {
            return Err(DataError::config(
                format!("{key}.max_record_bytes"),
                self.max_record_bytes,
                "1 to 1073741824",
            ));
        }
        if self.max_expanded_bytes == 0 {
            return Err(DataError::config(format!("{key}.max_expanded_bytes"), 0, "1 or more"));
        }
        Ok(())
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        list_inputs(&format!("{key}.paths"), &self.paths)
    }

    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let sink: RecordSink<'_> = &mut |record| sink(with_fixed_text(record, self.fix_mojibake));
        let format = match self.format {
            Some(format) => format,
            None => format_by_content(&context.input.path)?,
        };
        match format {
            GithubFormat::Jsonl => rows::read_jsonl(self, context, sink),
            GithubFormat::Parquet => rows::read_parquet(self, context, sink),
            GithubFormat::Repositories => tarball::read(self, context, sink),
        }
    }
}

/// How the files lie in the file, by its beginning.
fn format_by_content(path: &Path) -> Result<GithubFormat> {
    let mut reader = InputReader::open(path)?;
    let start = reader.fill()?;
    Ok(match start {
        [b'P', b'A', b'R', b'1', ..] => GithubFormat::Parquet,
        _ if is_archive(start) => GithubFormat::Repositories,
        _ => GithubFormat::Jsonl,
    })
}

/// One file of source code, before it is a document.
#[derive(Clone, Debug, Default, PartialEq)]
struct CodeFile {
    content: String,
    path: Option<String>,
    repo_name: Option<String>,
    commit: Option<String>,
    license: Option<String>,
    lang: Option<String>,
    copies: Option<u64>,
    /// Share of the bytes that mean nothing in the encoding.
    repaired: Option<f64>,
    /// Whether the dump says that it is not text.
    binary: bool,
    /// Where the record lies: a byte offset or a row.
    offset: u64,
}

impl CodeFile {
    /// The record, with an id from repository and path, or else from the content.
    fn into_record(self, source: &str, bound: usize) -> Record {
        let bytes = self.content.len() as u64;
        let reject = |reason, detail: &str| {
            let detail = format!("{}: {detail}", self.path.as_deref().unwrap_or("no path"));
            Record::Rejected(Rejection { reason, offset: self.offset, bytes, detail })
        };
        if self.content.len() > bound {
            return too_long(self.offset, bytes, bound);
        }
        if self.binary || is_binary(self.content.as_bytes()) {
            return reject(Reason::unwanted("binary"), "not text");
        }
        if self.content.trim().is_empty() {
            return reject(Reason::EMPTY, "white space only");
        }
        let hash = content_md5(&self.content);
        let id = match (&self.repo_name, &self.commit, &self.path) {
            (Some(repo), Some(commit), Some(path)) => format!("{repo}@{commit}:{path}"),
            (Some(repo), None, Some(path)) => format!("{repo}:{path}"),
            _ => hash.clone(),
        };
        // What a file says of itself counts more than what is around it.
        let own = own_license(&self.content);
        let license = own.or(self.license).unwrap_or_else(|| UNKNOWN.to_owned());
        let mut metadata = Map::new();
        let mut set = |key: &str, value: Option<Value>| {
            value.map(|value| metadata.insert(key.to_owned(), value));
        };
        let extension = self.path.as_deref().and_then(extension).map(Value::from);
        set("ext", extension);
        set("repo_name", self.repo_name.map(Value::from));
        set("path", self.path.map(Value::from));
        set("commit", self.commit.map(Value::from));
        set("lang", self.lang.map(Value::from));
        set("copies", self.copies.map(Value::from));
        set("license", Some(license.into()));
        set("size", Some(bytes.into()));
        set("content_md5", Some(hash.into()));
        set(REPAIRED_ENCODING, self.repaired.map(Value::from));
        Record::Document(Document {
            id,
            text: self.content,
            source: source.to_owned(),
            metadata: Some(metadata_text(metadata)),
            ..Document::default()
        })
    }
}

/// MD5 of the raw content in hexadecimal, as RedPajama takes it to find exact copies.
fn content_md5(content: &str) -> String {
    let digest = Md5::digest(content.as_bytes());
    digest.iter().fold(String::with_capacity(32), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The extension of a path, with its dot.
fn extension(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    let dot = name.rfind('.').filter(|&dot| dot > 0)?;
    Some(&name[dot..])
}

/// Git's own rule: a zero byte near the beginning.
fn is_binary(content: &[u8]) -> bool {
    content[..content.len().min(8000)].contains(&0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
