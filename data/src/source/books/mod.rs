//! Books: files of Project Gutenberg, PG-19 and Books3.
//!
//! Project Gutenberg files come with their headers; the step `gutenberg` takes them off. Books3
//! was withdrawn for copyright reasons: it is only read from files the user brings, and only
//! when the user says to have the rights.

mod archive;
mod jsonl;
mod names;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::names::BookName;
use super::input::{Input, InputReader, list_inputs, pattern_below};
use super::record::{document_or_empty, too_long, with_fixed_text};
use super::{ReadContext, Record, RecordSink, Rejection, SourceOptions};
use crate::document::{Document, metadata_text};
use crate::error::{DataError, Result};
use crate::text::charset::{EncodingOptions, default_max_bad_bytes};
use crate::text::python;

/// How the books lie in the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BooksLayout {
    /// Plain text files of Project Gutenberg, `1342-0.txt`, `pg1342.txt` and the like, also in
    /// zip files.
    #[default]
    Gutenberg,
    /// PG-19: JSON lines with `short_book_title`, `publication_date`, `url` and `text`, or its
    /// text files `1342.txt`.
    Pg19,
    /// Books3: a text file a book, or JSON lines with `title` and `text`.
    Books3,
}

/// Books, one document each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BooksSource {
    /// Path patterns (list of strings), relative to the configuration. Text files and JSON lines
    /// (`.jsonl`) may end in `.gz` or `.zst`; `gutenberg` also reads `.zip`. Of several files of
    /// one Project Gutenberg book, the UTF-8 one (`-0`) is taken, else the 8-bit one (`-8`).
    pub paths: Vec<PathBuf>,
    /// `gutenberg`, `pg19` or `books3` (string, default `gutenberg`).
    #[serde(default)]
    pub layout: BooksLayout,
    /// For `books3`: you have the rights to use the books in these files (bool, default false).
    /// Required, because Books3 was withdrawn for copyright reasons.
    #[serde(default)]
    pub i_have_rights: bool,
    /// Undo the encoding of text that was encoded twice, `cafÃ©` (bool, default false).
    #[serde(default)]
    pub fix_mojibake: bool,
    /// For text files: largest share of bytes that mean nothing in the encoding of a book; a book
    /// with more is dropped as `bad_encoding` (number, 0 to 1, default 0.05).
    #[serde(default = "default_max_bad_bytes")]
    pub max_bad_bytes: f64,
    /// Longest book in bytes; longer ones are counted and skipped (integer, default 64 MiB).
    #[serde(default = "default_max_book_bytes")]
    pub max_book_bytes: usize,
}

fn default_max_book_bytes() -> usize {
    64 << 20
}

impl BooksSource {
    /// The files that match `paths` in `layout`, all else at its default.
    pub fn new(paths: Vec<PathBuf>, layout: BooksLayout) -> Self {
        Self {
            paths,
            layout,
            i_have_rights: false,
            fix_mojibake: false,
            max_bad_bytes: default_max_bad_bytes(),
            max_book_bytes: default_max_book_bytes(),
        }
    }

    fn encoding(&self) -> EncodingOptions {
        EncodingOptions { fix_mojibake: false, max_bad_bytes: self.max_bad_bytes }
    }
}

impl SourceOptions for BooksSource {
    /// Version 1 took a bad byte for another encoding. Version 2 did not read the encodings of DOS and of
    /// seven bits.
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
        if self.layout == BooksLayout::Books3 && !self.i_have_rights {
            return Err(DataError::config(
                format!("{key}.i_have_rights"),
                "false",
                "true for `layout: books3`: Books3 was withdrawn for copyright reasons, so say \
                 that you have the rights to use the books in these files",
            ));
        }
        self.encoding().validate(key)?;
        if self.max_book_bytes == 0 || self.max_book_bytes > 1 << 30 {
            let key = format!("{key}.max_book_bytes");
            return Err(DataError::config(key, self.max_book_bytes, "1 to 1073741824"));
        }
        Ok(())
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        let inputs = list_inputs(&format!("{key}.paths"), &self.paths)?;
        if self.layout == BooksLayout::Books3 {
            return Ok(inputs);
        }
        let count = inputs.len();
        let inputs = names::best_of_each_book(inputs, |input| &input.name);
        if inputs.len() < count {
            tracing::info!("{} files are of books there is a better file of", count - inputs.len());
        }
        Ok(inputs)
    }

    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let sink: RecordSink<'_> = &mut |record| sink(with_fixed_text(record, self.fix_mojibake));
        let name = InputReader::uncompressed_name(&context.input.name);
        let extension = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        match (self.layout, extension.as_str()) {
            (BooksLayout::Gutenberg, "zip") => archive::read(self, context, sink),
            (BooksLayout::Pg19 | BooksLayout::Books3, "jsonl" | "json") => {
                jsonl::read(self, context, sink)
            }
            _ => self.read_file(context, sink),
        }
    }
}

impl BooksSource {
    fn read_file(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let mut reader = InputReader::open(&context.input.path)?;
        let (mut bytes, mut length) = (Vec::new(), 0);
        loop {
            let more = reader.fill()?;
            let count = more.len();
            if count == 0 {
                break;
            }
            let room = (self.max_book_bytes + 1).saturating_sub(bytes.len());
            bytes.extend_from_slice(&more[..count.min(room)]);
            length += count as u64;
            reader.consume(count);
            (context.bytes_read)(reader.newly_consumed());
        }
        (context.bytes_read)(reader.newly_consumed());
        if length > self.max_book_bytes as u64 {
            return sink(too_long(0, length, self.max_book_bytes));
        }
        let name = BookName::parse(&context.input.name);
        sink(self.book(context.source, &name, &bytes, 0))
    }

    /// A book that is a file of its own.
    fn book(&self, source: &str, name: &BookName, bytes: &[u8], offset: u64) -> Record {
        let declared = names::declared_encoding(bytes);
        let labels: Vec<&str> = declared.as_deref().into_iter().collect();
        let decoded = match self.encoding().decode(bytes, &labels) {
            Ok(decoded) => decoded,
            Err((reason, detail)) => {
                let (bytes, detail) = (bytes.len() as u64, format!("{}: {detail}", name.stem));
                return Record::Rejected(Rejection { reason, offset, bytes, detail });
            }
        };
        let number = match self.layout {
            BooksLayout::Books3 => None,
            _ => name.number.or_else(|| names::number_in_header(&decoded.text)),
        };
        let mut metadata = serde_json::Map::new();
        metadata.insert("encoding".into(), decoded.encoding.into());
        metadata.insert("n_words".into(), python::split(&decoded.text).count().into());
        decoded.note(&mut metadata);
        if self.layout == BooksLayout::Books3 {
            metadata.insert("title".into(), name.stem.clone().into());
        }
        let id = match (self.layout, number) {
            (BooksLayout::Books3, _) => books3_id(&decoded.text),
            (_, Some(number)) => format!("pg:{number}"),
            (_, None) => format!("pg:{}", name.stem),
        };
        let document = Document {
            id,
            text: decoded.text,
            source: source.to_owned(),
            url: number.map(address),
            language: (self.layout == BooksLayout::Pg19).then(|| "en".to_owned()),
            metadata: Some(metadata_text(metadata)),
            ..Document::default()
        };
        document_or_empty(document, offset)
    }
}

/// Page of a book at Project Gutenberg.
fn address(number: u64) -> String {
    format!("https://www.gutenberg.org/ebooks/{number}")
}

/// Books3 has no ids of its own: 128 bits of the text's hash.
fn books3_id(text: &str) -> String {
    format!("books3:{}", &blake3::hash(text.as_bytes()).to_hex()[..32])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
