//! The record every source ends in, and its Parquet file.
//!
//! One schema for all sources: `id, text, source, url, language, language_score, added, created,
//! metadata`. Strings are UTF-8, times are RFC 3339, `metadata` is a JSON object as a string.
//! Files are compressed with zstd; the footer carries the number of documents and of text bytes.
//! The files of a source are listed in its manifest with their lengths and hashes, and whatever
//! reads them holds them against it.

mod manifest;
mod page_header;
mod page_values;
mod parquet;
mod reader;
mod reason;
mod writer;

pub(crate) use manifest::RUN_AGAIN;
pub use manifest::{
    DocumentManifest, ManifestInput, ManifestStep, SourceDocuments, list_documents,
};
pub(crate) use parquet::ParquetFile;
pub use reader::{DocumentFile, DocumentReader};
pub use reason::Reason;
pub use writer::{DocumentFileSummary, DocumentWriter};

use std::borrow::Cow;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

/// Key of the footer entry with the number of documents.
const DOCUMENTS_KEY: &str = "altiplano.documents";
/// Key of the footer entry with the bytes of text.
const TEXT_BYTES_KEY: &str = "altiplano.text_bytes";

/// Key of the metadata of a document whose id got a suffix: the id it came with.
pub(crate) const GIVEN_ID: &str = "given_id";

/// One document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Unique inside its source and stable across runs: derived from the input's file name and
    /// the record's place in it, or the input's own id.
    pub id: String,
    /// The text.
    pub text: String,
    /// Name of the source.
    pub source: String,
    /// Where the text came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// ISO 639 code of the language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Confidence of the language, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_score: Option<f64>,
    /// When the text entered the corpus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added: Option<String>,
    /// When the text was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What is particular to the source: a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

impl Document {
    /// Sets `key` of the metadata to `value`.
    pub fn set_metadata(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        let mut metadata = self.metadata();
        metadata.insert(key.to_owned(), value.into());
        self.metadata = Some(metadata_text(metadata));
    }

    /// The id the document came with: another one's too where it was given a suffix.
    pub fn given_id(&self) -> Cow<'_, str> {
        if !self.has_metadata(GIVEN_ID) {
            return self.id.as_str().into();
        }
        match self.metadata().remove(GIVEN_ID) {
            Some(serde_json::Value::String(given)) => given.into(),
            _ => self.id.as_str().into(),
        }
    }

    /// Whether the metadata have the key `key`, or an object in them has, without reading them.
    pub fn has_metadata(&self, key: &str) -> bool {
        // Inside a string the quotes would have backslashes.
        let has = |metadata: &String| {
            memchr::memmem::find_iter(metadata.as_bytes(), key.as_bytes()).any(|at| {
                let after = metadata.as_bytes().get(at + key.len()..at + key.len() + 2);
                at > 0 && metadata.as_bytes()[at - 1] == b'"' && after == Some(b"\":")
            })
        };
        self.metadata.as_ref().is_some_and(has)
    }

    /// The metadata; empty when there is none or it is no JSON object.
    pub fn metadata(&self) -> serde_json::Map<String, serde_json::Value> {
        let parsed = self.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok());
        parsed.unwrap_or_default()
    }
}

/// An object as the `metadata` of a document: keys in the order of the alphabet at every depth, so
/// that equal metadata are equal bytes.
pub(crate) fn metadata_text(metadata: impl Into<serde_json::Value>) -> String {
    let mut metadata = metadata.into();
    metadata.sort_all_objects();
    metadata.to_string()
}

/// The two sides of the holdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on.
    Train,
    /// Held out: never trained on, and never shown to the tokenizer's trainer.
    Validation,
}

impl Split {
    /// Both splits.
    pub const ALL: [Self; 2] = [Self::Train, Self::Validation];

    /// The name in file names: `train` or `validation`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

fn schema() -> SchemaRef {
    let optional = |name: &str, kind| Field::new(name, kind, true);
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("source", DataType::Utf8, false),
        optional("url", DataType::Utf8),
        optional("language", DataType::Utf8),
        optional("language_score", DataType::Float64),
        optional("added", DataType::Utf8),
        optional("created", DataType::Utf8),
        optional("metadata", DataType::Utf8),
    ]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn documents(count: usize) -> Vec<Document> {
        (0..count)
            .map(|index| Document {
                id: format!("file.txt/{index:08}"),
                text: format!("Text {index}\nwith a second line, é and 日本.")
                    .repeat(1 + index % 5),
                source: "test".into(),
                url: (index % 2 == 0).then(|| format!("http://example.org/{index}")),
                language: Some("en".into()),
                language_score: (index % 3 == 0).then_some(0.5),
                metadata: (index % 7 == 0).then(|| "{\"k\":1}".to_owned()),
                ..Document::default()
            })
            .collect()
    }

    #[test]
    fn documents_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train-00000.parquet");
        let written = documents(500);
        // A small row group, so that there are many of them.
        let mut writer = DocumentWriter::create_with_row_group(&path, 4096).unwrap();
        for document in &written {
            writer.write(document).unwrap();
        }
        let summary = writer.finish().unwrap();
        let bytes: usize = written.iter().map(|document| document.text.len()).sum();
        assert_eq!((summary.documents, summary.text_bytes), (500, bytes as u64));

        let file = DocumentFile::open(&path).unwrap();
        assert_eq!((file.documents, file.text_bytes), (500, bytes as u64));
        let read: Vec<_> = file.reader().unwrap().map(|document| document.unwrap()).collect();
        assert_eq!(read, written);
    }

    #[test]
    fn the_file_is_the_same_bytes_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let hash = |name: &str, on_a_thread: bool| {
            let path = folder.path().join(name);
            let mut writer = DocumentWriter::create_with_row_group(&path, 4096).unwrap();
            if on_a_thread {
                writer = writer.on_a_thread().unwrap();
            }
            for document in documents(500) {
                writer.write(&document).unwrap();
            }
            writer.finish().unwrap().blake3
        };
        assert_eq!(hash("a.parquet", false), hash("b.parquet", false));
        assert_eq!(hash("a.parquet", false), hash("c.parquet", true));
    }

    #[test]
    fn a_writer_that_is_dropped_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let writer = DocumentWriter::create_with_row_group(&path, 4096).unwrap();
        let mut writer = writer.on_a_thread().unwrap();
        for document in documents(100) {
            writer.write(&document).unwrap();
        }
        drop(writer);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_intermediate_file_holds_the_same_documents() {
        let folder = tempfile::tempdir().unwrap();
        let written = documents(500);
        let mut lengths = Vec::new();
        for compressed in [false, true] {
            let path = folder.path().join("a.parquet");
            let mut writer = DocumentWriter::create_intermediate(&path, compressed).unwrap();
            for document in &written {
                writer.write(document).unwrap();
            }
            let summary = writer.finish().unwrap();
            assert!(compressed || summary.file_bytes > summary.text_bytes);
            lengths.push(summary.file_bytes);
            let file = DocumentFile::open(&path).unwrap();
            let read: Vec<_> = file.reader().unwrap().map(|document| document.unwrap()).collect();
            assert_eq!(read, written);
        }
        assert!(lengths[0] > 2 * lengths[1], "{lengths:?}");
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let mut writer = DocumentWriter::create(&path).unwrap();
        for document in documents(50) {
            writer.write(&document).unwrap();
        }
        writer.finish().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 3, 8, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = DocumentFile::open(&path).unwrap_err();
            assert!(error.to_string().contains("a.parquet"), "{error}");
        }
    }
}
