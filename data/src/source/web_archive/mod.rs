//! Web crawls: WET files (text) and WARC files (pages as served), as Common Crawl writes them, and
//! ARC files, as it wrote them before.
//!
//! Records are found by their headers' names and delimited by `Content-Length`, never by the line
//! `WARC/1.0`, which pages contain too. Every record is counted: those that are not pages under
//! `record_…`, damaged ones with their place in the compressed file.

mod arc;
mod document;
mod http;
mod list;
mod members;
mod page;
mod payload;
mod records;
mod wet;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::input::pattern_below;
use super::{Input, ReadContext, Record, RecordSink, Rejection, SourceOptions, list_inputs};
use crate::document::Reason;
use crate::error::{DataError, Result};
use crate::storage::absolute;
use crate::text::charset::EncodingOptions;
use crate::text::html::HtmlOptions;
use document::Origin;
use records::{Found, Records, WarcRecord};

/// Which records of an archive become documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebArchiveFormat {
    /// Text: `conversion` records.
    Wet,
    /// Pages as served: `response` and `resource` records.
    Warc,
    /// Both, by each record's own type.
    #[default]
    Auto,
}

/// Web archives: WET, WARC or ARC files, plain or compressed with gzip or Zstandard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebArchiveSource {
    /// Path patterns (list of strings, default none), relative to the configuration, or addresses in
    /// object storage: `*`, `?`, `[ab]`, `{a,b}` and `**` for any depth.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathBuf>,
    /// A file that names archives, one path or address a line, such as `wet.paths.gz` (string,
    /// default none). The files must be below `root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<PathBuf>,
    /// The folder, bucket or server that the paths of `list` are below; of an address in `list` the path
    /// counts (string, default the folder of `list`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// `wet`, `warc` or `auto` (string, default `auto`: by each record's own type).
    pub format: WebArchiveFormat,
    /// How HTML becomes text (map, default as the step `html`).
    pub html: HtmlOptions,
    /// Undo the encoding of text that was encoded twice, `cafÃ©` (bool, default false).
    pub fix_mojibake: bool,
    /// Largest share of bytes that mean nothing in the encoding of a page; a page with more is
    /// dropped as `bad_encoding` (number, 0 to 1, default 0.05).
    pub max_bad_bytes: f64,
    /// Longest record in bytes, also after its own compression is undone; longer ones are
    /// counted and skipped (integer, default 64 MiB).
    pub max_record_bytes: usize,
}

impl Default for WebArchiveSource {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            list: None,
            root: None,
            format: WebArchiveFormat::Auto,
            html: HtmlOptions::default(),
            fix_mojibake: false,
            max_bad_bytes: EncodingOptions::default().max_bad_bytes,
            max_record_bytes: 64 << 20,
        }
    }
}

impl WebArchiveSource {
    /// Files that match `paths`, all else at its default.
    pub fn files(paths: Vec<PathBuf>) -> Self {
        Self { paths, ..Self::default() }
    }

    fn encoding(&self) -> EncodingOptions {
        EncodingOptions { fix_mojibake: self.fix_mojibake, max_bad_bytes: self.max_bad_bytes }
    }

    /// The document of a record, or why there is none.
    fn record(&self, record: WarcRecord, origin: &Origin<'_>) -> Record {
        let kind = record.headers.get("WARC-Type").unwrap_or_default().to_ascii_lowercase();
        let (text, served) = match self.format {
            WebArchiveFormat::Wet => (true, false),
            WebArchiveFormat::Warc => (false, true),
            WebArchiveFormat::Auto => (true, true),
        };
        let reason = match kind.as_str() {
            "conversion" if text => return wet::read(record, origin),
            "response" if served && is_http(&record) => return page::read(record, true, origin),
            "resource" if served => return page::read(record, false, origin),
            "warcinfo" => "record_warcinfo",
            "request" => "record_request",
            "metadata" => "record_metadata",
            "revisit" => "record_revisit",
            "conversion" => "record_conversion",
            "response" => "record_response",
            "resource" => "record_resource",
            _ => "record_other",
        };
        Record::Rejected(Rejection {
            reason: Reason::unwanted(reason),
            offset: record.offset,
            bytes: record.block.len() as u64,
            detail: kind,
        })
    }
}

/// Name servers are answered with `response` records too (`dns:` addresses).
fn is_http(record: &WarcRecord) -> bool {
    let kind = record.headers.get("Content-Type").unwrap_or("application/http");
    kind.to_ascii_lowercase().starts_with("application/http")
}

impl SourceOptions for WebArchiveSource {
    /// Version 1 numbered pages for their ids, and took a bad byte for another encoding. Version 2 did not
    /// read the encodings of DOS and of seven bits.
    fn version(&self) -> u32 {
        3
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        for path in &mut self.paths {
            *path = pattern_below(base, path);
        }
        for path in self.list.iter_mut().chain(&mut self.root) {
            *path = absolute(base, path);
        }
    }

    fn validate(&self, key: &str) -> Result<()> {
        if self.paths.is_empty() && self.list.is_none() {
            return Err(DataError::config(
                format!("{key}.paths"),
                "an empty list and no `list`",
                "at least one path, or a `list`",
            ));
        }
        if self.root.is_some() && self.list.is_none() {
            return Err(DataError::config(
                format!("{key}.root"),
                "a folder without a `list`",
                "none, or a `list` whose paths are below it",
            ));
        }
        if self.max_record_bytes == 0 || self.max_record_bytes > 1 << 30 {
            return Err(DataError::config(
                format!("{key}.max_record_bytes"),
                self.max_record_bytes,
                "1 to 1073741824",
            ));
        }
        self.encoding().validate(key)?;
        self.html.validate(&format!("{key}.html"))
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        let mut all = if self.paths.is_empty() {
            Vec::new()
        } else {
            list_inputs(&format!("{key}.paths"), &self.paths)?
        };
        if let Some(list) = &self.list {
            let root = self.root.as_deref().or(list.parent()).unwrap_or(Path::new("."));
            let list_key = format!("{key}.list");
            all.extend(list::read(list, root).map_err(|error| error.of_key(&list_key))?);
        }
        let mut inputs: BTreeMap<String, Input> = BTreeMap::new();
        for input in all {
            if let Some(known) = inputs.get(&input.name)
                && known.path != input.path
            {
                return Err(DataError::config(
                    key,
                    format!("{} and {}", known.path.display(), input.path.display()),
                    "files with different names, because document ids are made from them",
                ));
            }
            inputs.insert(input.name.clone(), input);
        }
        Ok(inputs.into_values().collect())
    }

    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let origin = Origin {
            source: context.source,
            input: context.input,
            html: &self.html,
            encoding: self.encoding(),
            most_bytes: self.max_record_bytes,
        };
        let mut records = Records::open(&context.input.path, self.max_record_bytes)?;
        let mut found_any = false;
        loop {
            let found = records.next()?;
            (context.bytes_read)(records.newly_consumed());
            match found {
                Found::Record(record) => {
                    found_any = true;
                    sink(self.record(record, &origin))?;
                }
                Found::Bad(rejection) => {
                    found_any = true;
                    sink(Record::Rejected(rejection))?;
                }
                Found::End if !found_any => {
                    return Err(DataError::bad_file(
                        &context.input.path,
                        "it is empty; fetch it again",
                    ));
                }
                Found::End => return Ok(()),
            }
        }
    }
}
