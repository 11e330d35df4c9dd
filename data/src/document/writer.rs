//! Writes documents to a Parquet file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use arrow_array::builder::{Float64Builder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use serde::{Deserialize, Serialize};

use super::{DOCUMENTS_KEY, Document, TEXT_BYTES_KEY, schema};
use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};

/// Text bytes after which a row group is closed. A reader holds one row group in memory.
const ROW_GROUP_BYTES: usize = 16 << 20;

/// What a finished file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentFileSummary {
    /// File name inside its folder.
    pub file: String,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Documents in it.
    pub documents: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// Hash of the file.
    pub blake3: String,
    /// Id of the first document, if there is one.
    pub first_id: Option<String>,
    /// Id of the last document, if there is one.
    pub last_id: Option<String>,
}

impl DocumentFileSummary {
    /// Length and hash of the file.
    pub fn digest(&self) -> FileDigest {
        FileDigest { bytes: self.file_bytes, blake3: self.blake3.clone() }
    }
}

/// Writes documents to one Parquet file, row group by row group.
pub struct DocumentWriter {
    encoder: Encoder,
    path: PathBuf,
    columns: Columns,
    pending_bytes: usize,
    row_group_bytes: usize,
    documents: u64,
    text_bytes: u64,
    first_id: Option<String>,
    last_id: Option<String>,
}

/// Compression with Zstandard at `level`.
fn properties(path: &Path, level: i32) -> Result<WriterPropertiesBuilder> {
    let level = ZstdLevel::try_new(level).map_err(|error| DataError::bad_file(path, error))?;
    Ok(WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_created_by("altiplano".to_owned()))
}

#[derive(Default)]
struct Columns {
    id: StringBuilder,
    text: StringBuilder,
    source: StringBuilder,
    url: StringBuilder,
    language: StringBuilder,
    language_score: Float64Builder,
    added: StringBuilder,
    created: StringBuilder,
    metadata: StringBuilder,
}

impl DocumentWriter {
    /// Starts the file `path`, which appears only when it is finished.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::BadFile`].
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_with_row_group(path, ROW_GROUP_BYTES)
    }

    /// As [`create`](Self::create), for a file that is read once and then of no more use: written
    /// with less effort, and larger. Compression is most of the work and may be left out.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_intermediate(path: &Path, compressed: bool) -> Result<Self> {
        let mut properties = properties(path, 1)?
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None);
        if !compressed {
            properties = properties.set_compression(Compression::UNCOMPRESSED);
        }
        Self::with_properties(path, properties.build(), ROW_GROUP_BYTES)
    }

    pub(super) fn create_with_row_group(path: &Path, row_group_bytes: usize) -> Result<Self> {
        Self::with_properties(path, properties(path, 3)?.build(), row_group_bytes)
    }

    fn with_properties(
        path: &Path,
        properties: WriterProperties,
        row_group_bytes: usize,
    ) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        let writer = ArrowWriter::try_new(file, schema(), Some(properties))
            .map_err(|error| DataError::bad_file(path, error))?;
        Ok(Self {
            encoder: Encoder::Here(Box::new(writer)),
            path: path.to_owned(),
            columns: Columns::default(),
            pending_bytes: 0,
            row_group_bytes,
            documents: 0,
            text_bytes: 0,
            first_id: None,
            last_id: None,
        })
    }

    /// Encodes row groups on a thread of their own from now on, while the next documents are made. The
    /// file is the same bytes; a row group more is in memory.
    ///
    /// # Errors
    /// [`DataError::Io`] when no thread can be started.
    pub fn on_a_thread(mut self) -> Result<Self> {
        if let Encoder::Here(writer) = self.encoder {
            self.encoder = Encoder::Thread(EncoderThread::start(*writer, &self.path)?);
        }
        Ok(self)
    }

    /// Adds one document.
    ///
    /// # Errors
    /// [`DataError::BadFile`] when the file cannot be written, a full disk for example.
    pub fn write(&mut self, document: &Document) -> Result<()> {
        let columns = &mut self.columns;
        columns.id.append_value(&document.id);
        columns.text.append_value(&document.text);
        columns.source.append_value(&document.source);
        columns.url.append_option(document.url.as_deref());
        columns.language.append_option(document.language.as_deref());
        columns.language_score.append_option(document.language_score);
        columns.added.append_option(document.added.as_deref());
        columns.created.append_option(document.created.as_deref());
        columns.metadata.append_option(document.metadata.as_deref());
        if self.first_id.is_none() {
            self.first_id = Some(document.id.clone());
        }
        self.last_id = Some(document.id.clone());
        self.documents += 1;
        self.text_bytes += document.text.len() as u64;
        self.pending_bytes += document.text.len();
        if self.pending_bytes >= self.row_group_bytes {
            self.close_row_group()?;
        }
        Ok(())
    }

    /// Finishes the file and makes it appear under its name.
    ///
    /// # Errors
    /// [`DataError::BadFile`] or [`DataError::Io`]; no file appears then.
    pub fn finish(mut self) -> Result<DocumentFileSummary> {
        self.close_row_group()?;
        let path = self.path;
        let mut writer = match self.encoder {
            Encoder::Here(writer) => *writer,
            Encoder::Thread(mut thread) => thread.finish()?,
        };
        for (key, value) in [(DOCUMENTS_KEY, self.documents), (TEXT_BYTES_KEY, self.text_bytes)] {
            let entry = KeyValue::new(key.to_owned(), value.to_string());
            writer.append_key_value_metadata(entry);
        }
        let file = writer.into_inner().map_err(|error| DataError::bad_file(&path, error))?;
        let digest = file.commit()?;
        Ok(DocumentFileSummary {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            file_bytes: digest.bytes,
            documents: self.documents,
            text_bytes: self.text_bytes,
            blake3: digest.blake3,
            first_id: self.first_id,
            last_id: self.last_id,
        })
    }

    fn close_row_group(&mut self) -> Result<()> {
        if self.pending_bytes == 0 && self.columns.id.values_slice().is_empty() {
            return Ok(());
        }
        let columns = &mut self.columns;
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(columns.id.finish()),
            Arc::new(columns.text.finish()),
            Arc::new(columns.source.finish()),
            Arc::new(columns.url.finish()),
            Arc::new(columns.language.finish()),
            Arc::new(columns.language_score.finish()),
            Arc::new(columns.added.finish()),
            Arc::new(columns.created.finish()),
            Arc::new(columns.metadata.finish()),
        ];
        self.pending_bytes = 0;
        let batch = RecordBatch::try_new(schema(), arrays)
            .map_err(|error| DataError::bad_file(&self.path, error))?;
        match &mut self.encoder {
            Encoder::Here(writer) => encode(writer, &batch, &self.path),
            Encoder::Thread(thread) => thread.send(batch),
        }
    }
}

/// Writes `batch` as a row group.
fn encode(writer: &mut ArrowWriter<AtomicFile>, batch: &RecordBatch, path: &Path) -> Result<()> {
    writer
        .write(batch)
        .and_then(|()| writer.flush())
        .map_err(|error| DataError::bad_file(path, error))
}

/// Where row groups are encoded.
enum Encoder {
    /// On the thread that adds the documents.
    Here(Box<ArrowWriter<AtomicFile>>),
    /// Beside it.
    Thread(EncoderThread),
}

/// A thread that encodes row groups in order. It ends when it fails or nothing more can come.
struct EncoderThread {
    path: PathBuf,
    batches: Option<SyncSender<RecordBatch>>,
    thread: Option<JoinHandle<Result<ArrowWriter<AtomicFile>>>>,
}

impl EncoderThread {
    fn start(mut writer: ArrowWriter<AtomicFile>, path: &Path) -> Result<Self> {
        // Without room: one row group is encoded while another is made.
        let (batches, received) = sync_channel::<RecordBatch>(0);
        let of = path.to_owned();
        let work = move || {
            for batch in received {
                encode(&mut writer, &batch, &of)?;
            }
            Ok(writer)
        };
        let thread = std::thread::Builder::new().name("documents".into()).spawn(work);
        let thread = thread.map_err(DataError::io(path))?;
        Ok(Self { path: path.to_owned(), batches: Some(batches), thread: Some(thread) })
    }

    fn send(&mut self, batch: RecordBatch) -> Result<()> {
        match &self.batches {
            Some(batches) if batches.send(batch).is_ok() => Ok(()),
            // It has failed: why is what it ends with.
            _ => Err(self.finish().err().unwrap_or_else(|| self.ended())),
        }
    }

    /// The writer, when everything sent is encoded.
    fn finish(&mut self) -> Result<ArrowWriter<AtomicFile>> {
        self.batches = None;
        let thread = self.thread.take().ok_or_else(|| self.ended())?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn ended(&self) -> DataError {
        DataError::bad_file(&self.path, "writing it has failed before")
    }
}

impl Drop for EncoderThread {
    fn drop(&mut self) {
        // What is not finished deletes its file, before anyone goes on.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
