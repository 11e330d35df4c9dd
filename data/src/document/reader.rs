//! Streams documents out of Parquet files.

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, RecordBatch};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::manifest::RUN_AGAIN;
use super::{DOCUMENTS_KEY, Document, DocumentFileSummary, Split, TEXT_BYTES_KEY, schema};
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};

/// Documents decoded at a time.
const ROWS_PER_BATCH: usize = 256;

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
        let builder = open_documents(path)?;
        let entries = builder.metadata().file_metadata().key_value_metadata();
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
        let reader = without_panic(&self.path, || {
            open_documents(&self.path)?
                .with_batch_size(ROWS_PER_BATCH)
                .build()
                .map_err(|error| DataError::bad_file(&self.path, error))
        })?;
        Ok(DocumentReader {
            path: self.path.clone(),
            reader,
            ready: VecDeque::new(),
            failed: false,
        })
    }
}

/// The documents of one file, in file order.
pub struct DocumentReader {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
    ready: VecDeque<Document>,
    failed: bool,
}

impl Iterator for DocumentReader {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.failed {
            let path = &self.path;
            let reader = &mut self.reader;
            let batch = without_panic(path, || {
                reader.next().transpose().map_err(|error| DataError::bad_file(path, error))
            });
            match batch {
                Ok(Some(batch)) => self.ready.extend(documents_of(&batch)),
                Ok(None) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

/// Opens a Parquet file with the columns of documents.
fn open_documents(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let builder = open_parquet(path)?;
    if builder.schema().fields() != schema().fields() {
        return Err(DataError::bad_file(
            path,
            format!("columns {:?}, expected {:?}", builder.schema().fields(), schema().fields()),
        ));
    }
    Ok(builder)
}

/// Opens a Parquet file of any schema.
pub(crate) fn open_parquet(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(DataError::io(path))?;
    without_panic(path, || {
        ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|error| DataError::bad_file(path, error))
    })
}

/// Runs a Parquet decoder. It checks most but not all of what a file claims; what it does not
/// check ends in a panic, which becomes an error here.
pub(crate) fn without_panic<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(DataError::bad_file(path, "the Parquet data is damaged; write or fetch the file again"))
    })
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
