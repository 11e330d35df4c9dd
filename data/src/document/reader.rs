//! Streams documents out of Parquet files.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::Float64Type;
use arrow_array::{Array, RecordBatch};

use super::parquet::{ParquetFile, ParquetRows};
use super::{DOCUMENTS_KEY, Document, Split, TEXT_BYTES_KEY, schema};
use crate::error::{DataError, Result};

/// Size of a document that any file may have; larger ones are read too if the file is not small.
const DOCUMENT_BYTES: u64 = 64 << 20;

/// A document file and its counts. Opening it reads the footer only.
#[derive(Clone, Debug)]
pub struct DocumentFile {
    /// The file.
    pub path: PathBuf,
    /// Documents in it.
    pub documents: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
}

impl DocumentFile {
    /// Reads the footer of `path`.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::BadFile`] when it is no document file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = ParquetFile::open(path)?;
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
        if file.schema().fields() != schema().fields() {
            return Err(DataError::bad_file(
                path,
                format!(
                    "columns {:?}, expected {:?}",
                    file.schema().fields(),
                    schema().fields()
                ),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            documents: count(DOCUMENTS_KEY)?,
            text_bytes: count(TEXT_BYTES_KEY)?,
        })
    }

    /// Streams the documents in file order, holding one row group at a time.
    ///
    /// # Errors
    /// As [`DocumentFile::open`].
    pub fn reader(&self) -> Result<DocumentReader> {
        let file = ParquetFile::open(&self.path)?;
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

/// Document files of `path`, sorted by name: the file itself, the files of a source folder, or
/// those of every source below a folder of sources. `split` keeps only one side of the holdout.
///
/// # Errors
/// [`DataError::NoInput`] when there is none.
pub fn list_documents(path: &Path, split: Option<Split>) -> Result<Vec<DocumentFile>> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
        let entry = entry.map_err(|error| DataError::bad_file(path, error))?;
        let name = entry.file_name().to_string_lossy();
        let hidden = name.starts_with('.');
        let wanted = split.is_none_or(|split| name.starts_with(split.name()));
        if entry.file_type().is_file() && name.ends_with(".parquet") && !hidden && wanted {
            files.push(DocumentFile::open(entry.path())?);
        }
    }
    if files.is_empty() {
        return Err(DataError::NoInput {
            key: "documents".into(),
            pattern: path.display().to_string(),
        });
    }
    Ok(files)
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
