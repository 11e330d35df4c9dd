//! Streams documents out of Parquet files.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, RecordBatch};
use arrow_schema::{Field, Fields};

use super::manifest::RUN_AGAIN;
use super::parquet::{ParquetFile, ParquetRows};
use super::{DOCUMENTS_KEY, Document, DocumentFileSummary, Split, TEXT_BYTES_KEY, schema};
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};

/// Size of a document that any file may have; larger ones are read too if the file is not small.
const DOCUMENT_BYTES: u64 = 64 << 20;

/// A document file and its counts.
#[derive(Clone, Debug)]
pub struct DocumentFile {
    /// The file.
    pub path: PathBuf,
    /// Documents in it.
    pub documents: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// What was written, where a manifest tells.
    written: Option<Arc<Written>>,
}

/// What a file is meant to hold, and whether that was looked at.
#[derive(Debug)]
struct Written {
    digest: FileDigest,
    verified: OnceLock<()>,
}

impl DocumentFile {
    /// A file that no manifest names: its footer is read, and its counts are believed.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::BadFile`] when it is no document file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_documents(path)?;
        let entries = file.footer().file_metadata().key_value_metadata();
        let count = |key: &str| {
            entries
                .into_iter()
                .flatten()
                .find(|entry| entry.key == key)
                .and_then(|entry| entry.value.as_ref()?.parse().ok())
                .ok_or_else(|| {
                    DataError::bad_file(
                        path,
                        format!(
                            "no entry {key:?} in the footer: not written by `altiplano data run`"
                        ),
                    )
                })
        };
        Ok(Self {
            path: path.to_owned(),
            documents: count(DOCUMENTS_KEY)?,
            text_bytes: count(TEXT_BYTES_KEY)?,
            written: None,
        })
    }

    /// A file as `summary` describes it. Only its length is looked at here; its bytes are before
    /// the first document is read.
    ///
    /// # Errors
    /// [`DataError::Altered`] when it is missing or has another length.
    pub(crate) fn of_summary(path: &Path, summary: &DocumentFileSummary) -> Result<Self> {
        let digest = summary.digest();
        digest.verify_length(path, RUN_AGAIN)?;
        Ok(Self {
            path: path.to_owned(),
            documents: summary.documents,
            text_bytes: summary.text_bytes,
            written: Some(Arc::new(Written { digest, verified: OnceLock::new() })),
        })
    }

    /// Whether the file is of this side of the holdout, by its name; every file is when none is
    /// asked for.
    pub(super) fn is_of(&self, split: Option<Split>) -> bool {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        split.is_none_or(|split| name.starts_with(split.name()))
    }

    /// Holds every byte against what was written, once. There is nothing to hold a file against
    /// that no manifest names.
    ///
    /// # Errors
    /// [`DataError::Altered`] when it is not as it was written.
    pub fn verify(&self) -> Result<()> {
        if let Some(written) = &self.written
            && written.verified.get().is_none()
        {
            written.digest.verify(&self.path, RUN_AGAIN)?;
            let _ = written.verified.set(());
        }
        Ok(())
    }

    /// Streams the documents in file order, holding one row group at a time. The file is verified
    /// before the first one.
    ///
    /// # Errors
    /// As [`DocumentFile::open`] and [`DocumentFile::verify`].
    pub fn reader(&self) -> Result<DocumentReader> {
        self.verify()?;
        let file = open_documents(&self.path)?;
        let columns = 0..schema().fields().len();
        Ok(DocumentReader { rows: file.rows(columns, DOCUMENT_BYTES)?, ready: VecDeque::new() })
    }
}

/// The documents of one file, in file order.
pub struct DocumentReader {
    rows: ParquetRows,
    ready: VecDeque<Document>,
}

impl Iterator for DocumentReader {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            match self.rows.next()? {
                Ok(batch) => self.ready.extend(documents_of(&batch)),
                Err(error) => return Some(Err(error)),
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

/// Opens a Parquet file with the columns of documents.
fn open_documents(path: &Path) -> Result<ParquetFile> {
    let file = ParquetFile::open(path)?;
    if file.schema().fields() != schema().fields() {
        return Err(DataError::bad_file(
            path,
            format!(
                "not written by `altiplano data run`: it has the columns {}, expected {}",
                columns(file.schema().fields()),
                columns(schema().fields())
            ),
        ));
    }
    Ok(file)
}

/// Names and types of columns, as `id (Utf8), text (Utf8)`.
fn columns(fields: &Fields) -> String {
    let column = |field: &Arc<Field>| format!("{} ({})", field.name(), field.data_type());
    fields.iter().map(column).collect::<Vec<_>>().join(", ")
}

fn documents_of(batch: &RecordBatch) -> Vec<Document> {
    let text = |column: usize, row: usize| {
        let array = batch.column(column).as_string::<i32>();
        array.is_valid(row).then(|| array.value(row).to_owned())
    };
    (0..batch.num_rows())
        .map(|row| Document {
            id: text(0, row).unwrap_or_default(),
            text: text(1, row).unwrap_or_default(),
            source: text(2, row).unwrap_or_default(),
            url: text(3, row),
            language: text(4, row),
            language_score: {
                let array = batch.column(5).as_primitive::<Float64Type>();
                array.is_valid(row).then(|| array.value(row))
            },
            added: text(6, row),
            created: text(7, row),
            metadata: text(8, row),
        })
        .collect()
}
