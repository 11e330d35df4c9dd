//! The plain text source: files, JSON lines or Parquet.

use std::path::{Path, PathBuf};

use encoding_rs::Encoding;
use memchr::memmem;
use serde::{Deserialize, Serialize};

use super::input::{Input, InputReader, is_archive, list_inputs, pattern_below};
use super::lines::{Line, Lines};
use super::record::{Fields, document_or_empty, too_long, with_fixed_text};
use super::{
    ReadContext, Record, RecordSink, Rejection, SourceOptions, jsonl, parquet, plain_format,
};
use crate::document::{Document, metadata_text};
use crate::error::{DataError, Result};
use crate::text::charset::{EncodingOptions, default_max_bad_bytes, encoding_of_label, utf16};

/// Least size of the documents that a file is cut into.
const LEAST_DOCUMENT_BYTES: usize = 100;

/// How the text lies in the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextFormat {
    /// A file is a document, or several ones between separator lines.
    #[default]
    Files,
    /// A line is a JSON object.
    Jsonl,
    /// A row is a document.
    Parquet,
}

/// Plain text in files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSource {
    /// Path patterns (list of strings), relative to the configuration: `*`, `?`, `[ab]`, `{a,b}`
    /// and `**` for any depth. `files` and `jsonl` may end in `.gz` or `.zst`.
    pub paths: Vec<PathBuf>,
    /// `files`, `jsonl` or `parquet` (string, default: as each file begins and is named; with a
    /// separator or a size of documents `files`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<TextFormat>,
    /// For `files`: a line that ends a document and is not part of it (string, default none: the
    /// whole file is one document).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_separator: Option<String>,
    /// For `files`: cut what is longer into documents of at most so many bytes, at the end of a
    /// paragraph or a line, so that a part of one long file can be held out (integer, at least
    /// 100, default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_bytes: Option<usize>,
    /// For `files`: turn CR LF into LF (bool, default true).
    #[serde(default = "default_true")]
    pub unix_newlines: bool,
    /// For `jsonl` and `parquet`: the field with the text (string, default `text`).
    #[serde(default = "default_text_field")]
    pub text_field: String,
    /// For `jsonl` and `parquet`: the field with the id (string, default `id`). Records without
    /// it get an id from the file name and their number.
    #[serde(default = "default_id_field")]
    pub id_field: String,
    /// For `jsonl` and `parquet`: the field with the address (string, default `url`).
    #[serde(default = "default_url_field")]
    pub url_field: String,
    /// For `jsonl` and `parquet`: the field with the time the text was written, `timestamp` for
    /// C4 (string, default `created`).
    #[serde(default = "default_created_field")]
    pub created_field: String,
    /// Least and most records of a file; a file with fewer or more is an error (list of two
    /// integers, default none). C4's training files have 356317 or 356318.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records_per_file: Option<[u64; 2]>,
    /// For `files`: the encoding of what is not UTF-8, `latin1` or `cp850` for example (string, default:
    /// found out for each document). JSON and Parquet are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// For `files`: largest share of bytes that mean nothing in the encoding of a document; one with more
    /// is dropped (number, 0 to 1, default 0.05).
    #[serde(default = "default_max_bad_bytes")]
    pub max_bad_bytes: f64,
    /// Undo the encoding of text that was encoded twice, `cafÃ©` (bool, default false).
    #[serde(default)]
    pub fix_mojibake: bool,
    /// Longest record in bytes; longer ones are counted and skipped (integer, default 64 MiB).
    #[serde(default = "default_max_record_bytes")]
    pub max_record_bytes: usize,
}

fn default_true() -> bool {
    true
}
fn default_text_field() -> String {
    "text".into()
}
fn default_id_field() -> String {
    "id".into()
}
fn default_url_field() -> String {
    "url".into()
}
fn default_created_field() -> String {
    "created".into()
}
fn default_max_record_bytes() -> usize {
    64 << 20
}

impl TextSource {
    /// Whole files that match `paths`, all else at its default.
    pub fn files(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            format: Some(TextFormat::Files),
            document_separator: None,
            document_bytes: None,
            unix_newlines: true,
            text_field: default_text_field(),
            id_field: default_id_field(),
            url_field: default_url_field(),
            created_field: default_created_field(),
            records_per_file: None,
            encoding: None,
            max_bad_bytes: default_max_bad_bytes(),
            fix_mojibake: false,
            max_record_bytes: default_max_record_bytes(),
        }
    }
}

impl SourceOptions for TextSource {
    /// Version 1 took every file without a `format` for one text. Version 2 read UTF-8 alone.
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
            return Err(DataError::config(
                format!("{key}.paths"),
                "an empty list",
                "at least one path",
            ));
        }
        if self.max_record_bytes == 0 || self.max_record_bytes > 1 << 30 {
            return Err(DataError::config(
                format!("{key}.max_record_bytes"),
                self.max_record_bytes,
                "1 to 1073741824",
            ));
        }
        if let Some([least, most]) = self.records_per_file
            && least > most
        {
            return Err(DataError::config(
                format!("{key}.records_per_file"),
                format!("[{least}, {most}]"),
                "the least first",
            ));
        }
        self.decoding().validate(key)?;
        if let Some(label) = self.encoding.as_ref().filter(|l| encoding_of_label(l).is_none()) {
            let expected =
                "the name of an encoding, `utf-8`, `windows-1252` or `cp850` for example";
            return Err(DataError::config(format!("{key}.encoding"), label, expected));
        }
        let records = self.format.is_some_and(|format| format != TextFormat::Files);
        if records && self.document_separator.is_some() {
            return Err(DataError::config(
                format!("{key}.document_separator"),
                "a separator",
                "none, because a record of `jsonl` or `parquet` is a document",
            ));
        }
        if records && self.encoding.is_some() {
            return Err(DataError::config(
                format!("{key}.encoding"),
                "an encoding",
                "none, because `jsonl` and `parquet` are UTF-8",
            ));
        }
        if records && self.document_bytes.is_some() {
            return Err(DataError::config(
                format!("{key}.document_bytes"),
                "a size",
                "none, because a record of `jsonl` or `parquet` is a document",
            ));
        }
        if let Some(bytes) = self.document_bytes
            && !(LEAST_DOCUMENT_BYTES..=self.max_record_bytes).contains(&bytes)
        {
            return Err(DataError::config(
                format!("{key}.document_bytes"),
                bytes,
                format!(
                    "{LEAST_DOCUMENT_BYTES} to {}, which is `max_record_bytes`",
                    self.max_record_bytes
                ),
            ));
        }
        if self.document_separator.as_ref().is_some_and(|line| line.contains(['\n', '\r'])) {
            return Err(DataError::config(
                format!("{key}.document_separator"),
                "a text with a line end",
                "one line",
            ));
        }
        Ok(())
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        list_inputs(&format!("{key}.paths"), &self.paths)
    }

    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let ReadContext { source, input, bytes_read, .. } = *context;
        let mut records = 0;
        let sink: RecordSink<'_> = &mut |record| {
            records += 1;
            sink(with_fixed_text(record, self.fix_mojibake))
        };
        let format = match self.format {
            Some(format) => format,
            None if self.document_separator.is_some() || self.document_bytes.is_some() => {
                TextFormat::Files
            }
            None => format_by_content(&input.path)?,
        };
        match format {
            TextFormat::Files => self.read_files(source, input, bytes_read, sink),
            TextFormat::Jsonl => jsonl::read(&self.fields(), source, input, bytes_read, sink),
            TextFormat::Parquet => parquet::read(&self.fields(), source, input, bytes_read, sink),
        }?;
        match self.records_per_file {
            Some([least, most]) if !(least..=most).contains(&records) => Err(DataError::bad_file(
                &input.path,
                format!(
                    "it has {records} records, `records_per_file` expects {least} to {most}; \
                         fetch the file again"
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// How the text lies in the file, by its beginning and its name.
///
/// # Errors
/// [`DataError::BadFile`] for an archive, whose bytes are no text.
fn format_by_content(path: &Path) -> Result<TextFormat> {
    let mut reader = InputReader::open(path)?;
    let start = reader.fill()?;
    if start.starts_with(b"PAR1") {
        return Ok(TextFormat::Parquet);
    }
    if is_archive(start) {
        return Err(DataError::bad_file(
            path,
            "it is an archive of files; unpack it, or read it as `github` or `books`",
        ));
    }
    let text = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(start).trim_ascii_start();
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let object = line.starts_with(b"{\"") || line.starts_with(b"{ \"");
    // A long first line reaches over the part that is looked at.
    let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok();
    let whole = line.len() < text.len();
    Ok(if object && (parsed || !whole || plain_format(path) == TextFormat::Jsonl) {
        TextFormat::Jsonl
    } else {
        TextFormat::Files
    })
}

impl TextSource {
    /// What becomes of damaged encodings. Text that was encoded twice is mended for all formats alike.
    fn decoding(&self) -> EncodingOptions {
        EncodingOptions { fix_mojibake: false, max_bad_bytes: self.max_bad_bytes }
    }

    fn fields(&self) -> Fields<'_> {
        Fields {
            text: &self.text_field,
            id: &self.id_field,
            url: &self.url_field,
            created: &self.created_field,
            max_record_bytes: self.max_record_bytes,
        }
    }

    fn read_files(
        &self,
        source: &str,
        input: &Input,
        bytes_read: &dyn Fn(u64),
        sink: RecordSink<'_>,
    ) -> Result<()> {
        let mut reader = InputReader::open(&input.path)?;
        // Where a file is cut, line ends have to be seen, and they are two bytes in UTF-16.
        if self.document_bytes.is_some() || self.document_separator.is_some() {
            let start = reader.fill()?;
            let label = self.encoding.as_deref().map(|label| label.trim().as_bytes());
            let given = label.and_then(Encoding::for_label).filter(|encoding| {
                [encoding_rs::UTF_16LE, encoding_rs::UTF_16BE].contains(encoding)
            });
            if let Some(encoding) = utf16(start).or(given) {
                reader = reader.decoded(encoding);
            }
        }
        let mut lines = match self.document_bytes {
            None => Lines::new(&mut reader, self.max_record_bytes),
            // Nothing is too long where it is cut; a separator is found only in one part.
            Some(bytes) => {
                let separator = self.document_separator.as_ref().map_or(0, |line| line.len() + 2);
                Lines::in_parts(&mut reader, bytes.max(separator))
            }
        };
        let mut line = Vec::new();
        let mut open = OpenDocument::default();
        let mut index = 0;
        loop {
            let found = lines.next(&mut line)?;
            bytes_read(lines.newly_consumed());
            if open.offset.is_none() && found != Line::End {
                open.offset = Some(lines.offset());
            }
            let separator = self.document_separator.as_deref().is_some_and(|separator| {
                found == Line::Whole && trim_line_end(&line) == separator.as_bytes()
            });
            if separator || found == Line::End {
                // Nothing after the last separator is not a document, but an empty file is one.
                let nothing = found == Line::End && index > 0 && open.length == 0;
                if !nothing {
                    let id = self.file_id(input, index);
                    sink(self.close(source, id, &mut open))?;
                    index += 1;
                }
                open = OpenDocument::default();
                if found == Line::End {
                    return Ok(());
                }
                continue;
            }
            open.length += lines.length();
            if self.document_bytes.is_some() || open.length <= self.max_record_bytes as u64 {
                open.text.extend_from_slice(&line);
            } else {
                open.text = Vec::new();
            }
            for mut part in self.full_parts(&mut open) {
                sink(self.close(source, self.file_id(input, index), &mut part))?;
                index += 1;
            }
        }
    }

    /// What `document_bytes` cuts off an open document.
    fn full_parts(&self, open: &mut OpenDocument) -> Vec<OpenDocument> {
        let Some(most) = self.document_bytes else { return Vec::new() };
        let mut parts = Vec::new();
        let (mut start, offset) = (0, open.offset.unwrap_or(0));
        while open.text.len() - start > most {
            let end = start + end_of_part(&open.text[start..], most);
            parts.push(OpenDocument {
                offset: Some(offset + start as u64),
                length: (end - start) as u64,
                text: open.text[start..end].to_vec(),
            });
            start = end;
        }
        open.text.drain(..start);
        open.offset = Some(offset + start as u64);
        open.length -= start as u64;
        parts
    }

    fn file_id(&self, input: &Input, index: u64) -> String {
        if self.document_separator.is_some() || self.document_bytes.is_some() {
            return format!("{}/{index:08}", input.name);
        }
        input.name.clone()
    }

    fn close(&self, source: &str, id: String, open: &mut OpenDocument) -> Record {
        let offset = open.offset.unwrap_or(0);
        if open.length > self.max_record_bytes as u64 {
            return too_long(offset, open.length, self.max_record_bytes);
        }
        let bytes = std::mem::take(&mut open.text);
        let labels: Vec<&str> = self.encoding.as_deref().into_iter().collect();
        let decoded = match self.decoding().decode(&bytes, &labels) {
            Ok(decoded) => decoded,
            Err((reason, detail)) => {
                let bytes = bytes.len() as u64;
                return Record::Rejected(Rejection { reason, offset, bytes, detail });
            }
        };
        let mut metadata = serde_json::Map::new();
        decoded.note(&mut metadata);
        let metadata = (!metadata.is_empty()).then(|| metadata_text(metadata));
        let mut text = decoded.text;
        if self.unix_newlines && text.contains("\r\n") {
            text = text.replace("\r\n", "\n");
        }
        document_or_empty(
            Document { id, text, source: source.to_owned(), metadata, ..Document::default() },
            offset,
        )
    }
}

#[derive(Default)]
struct OpenDocument {
    offset: Option<u64>,
    length: u64,
    text: Vec<u8>,
}

/// Where the first part of `text`, which is longer than `most` bytes, ends: behind the last blank
/// line of its second half, else behind its last line end, its last space, its last character.
fn end_of_part(text: &[u8], most: usize) -> usize {
    let half = &text[most / 2..most];
    let behind = |ending: &[u8]| Some(most / 2 + memmem::rfind(half, ending)? + ending.len());
    let space = || Some(most / 2 + half.iter().rposition(|byte| b" \t".contains(byte))? + 1);
    let character = || {
        let first = |at: &usize| text[*at] & 0xc0 != 0x80 && !text[at - 1..].starts_with(b"\r\n");
        // A character has at most four bytes.
        (most.saturating_sub(4).max(1)..=most).rev().find(first)
    };
    let paragraph = behind(b"\n\n").max(behind(b"\n\r\n"));
    paragraph.or_else(|| behind(b"\n")).or_else(space).or_else(character).unwrap_or(most)
}

fn trim_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests;
