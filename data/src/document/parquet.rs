//! Parquet files of any origin, read within a bound of memory.
//!
//! A few bytes of a file can stand for gigabytes: a page says how large it is decompressed, a
//! dictionary holds a long value once for any number of rows, and a run of equal values is a
//! count. So the headers of a row group's pages are looked at before any is decompressed. They
//! tell whether the pages fit, and how many rows can be decoded together.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use flate2::read::MultiGzDecoder;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, Type};
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::serialized_reader::SerializedPageReader;

use super::page_header::{Encoding, PageHeader};
use super::page_values::{delta_counts, longest_value, values_of};
use crate::decoder_panic;
use crate::error::{DataError, Result};
use crate::storage::local_file;

/// Most rows decoded together.
const MOST_ROWS: usize = 256;
/// Most bytes of rows decoded together, if they are more than one.
const BATCH_BYTES: u64 = 64 << 20;
/// Decompressed pages of this size are read whatever they are compressed; one record may lie in
/// them besides.
const PAGE_BYTES: u64 = 64 << 20;
/// Larger ones are read if they are at most so many times as large as in the file. Text is rarely
/// compressed to less than a twentieth.
const MOST_COMPRESSED: u64 = 64;
/// Most bytes of the values of a column of lists: a row may hold all of a row group's.
const LIST_BYTES: u64 = 256 << 20;
/// Rows that a file of any size may have, and how many more for each of its bytes.
const FREE_ROWS: u64 = 1 << 20;
const ROWS_PER_BYTE: u64 = 64;
/// Deflate makes at most so many bytes of one.
const GZIP_RATIO: u64 = 1032;
/// LZ4 makes at most so many bytes of one.
const LZ4_RATIO: u64 = 255;
/// First bytes of an LZ4 frame, which older writers put into a page without its length.
const LZ4_FRAME: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// A Parquet file whose footer has been read.
pub(crate) struct ParquetFile {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    metadata: ArrowReaderMetadata,
}

impl ParquetFile {
    /// Reads the footer of `path`.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::BadFile`] when it is no Parquet file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = local_file(path)?;
        let file_bytes = file.metadata().map_err(DataError::io(path))?.len();
        let metadata = without_panic(path, || {
            ArrowReaderMetadata::load(&file, ArrowReaderOptions::default())
                .map_err(|error| DataError::bad_file(path, error))
        })?;
        Ok(Self { path: path.to_owned(), file, file_bytes, metadata })
    }

    /// The columns.
    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// The footer.
    pub fn footer(&self) -> &ParquetMetaData {
        self.metadata.metadata()
    }

    /// The rows with the columns of these numbers, in file order. A record has about
    /// `record_bytes` at most: where pages are small, much larger ones come too.
    ///
    /// # Errors
    /// [`DataError::BadFile`] when the file claims more rows than its size allows.
    pub fn rows(
        self,
        columns: impl IntoIterator<Item = usize>,
        record_bytes: u64,
    ) -> Result<ParquetRows> {
        let rows = self.footer().file_metadata().num_rows();
        let most = FREE_ROWS.saturating_add(self.file_bytes.saturating_mul(ROWS_PER_BYTE));
        if !u64::try_from(rows).is_ok_and(|rows| rows <= most) {
            let reason = format!(
                "it claims {rows} rows; expected at most {most} in a file of {} bytes; write the \
                 file again without rows that hold nothing",
                self.file_bytes
            );
            return Err(DataError::bad_file(&self.path, reason));
        }
        let mask = ProjectionMask::roots(self.footer().file_metadata().schema_descr(), columns);
        Ok(ParquetRows { file: self, mask, record_bytes, group: 0, reader: None, failed: false })
    }
}

/// Batches of rows of a Parquet file. Nothing comes after an error.
pub(crate) struct ParquetRows {
    file: ParquetFile,
    mask: ProjectionMask,
    record_bytes: u64,
    /// The next row group.
    group: usize,
    /// Of the row group before it.
    reader: Option<ParquetRecordBatchReader>,
    failed: bool,
}

impl ParquetRows {
    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let path = &self.file.path;
            if let Some(reader) = &mut self.reader {
                let batch = without_panic(path, || {
                    reader.next().transpose().map_err(|error| DataError::bad_file(path, error))
                })?;
                if batch.is_some() {
                    return Ok(batch);
                }
                self.reader = None;
            }
            if self.group == self.file.footer().num_row_groups() {
                return Ok(None);
            }
            self.reader = Some(without_panic(path, || self.open_group(self.group))?);
            self.group += 1;
        }
    }

    fn open_group(&self, group: usize) -> Result<ParquetRecordBatchReader> {
        let ParquetFile { path, file, metadata, .. } = &self.file;
        let rows = self.check_group(group)?;
        let file = file.try_clone().map_err(DataError::io(path))?;
        ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
            .with_projection(self.mask.clone())
            .with_row_groups(vec![group])
            .with_batch_size(rows)
            .build()
            .map_err(|error| DataError::bad_file(path, error))
    }

    /// Looks at the page headers of a row group; the rows that can be decoded together.
    fn check_group(&self, group: usize) -> Result<usize> {
        let row_group = self.file.footer().row_group(group);
        let fail = |reason: String| {
            DataError::bad_file(&self.file.path, format!("row group {group}: {reason}"))
        };
        let rows = u64::try_from(row_group.num_rows())
            .map_err(|_| fail(format!("{} rows", row_group.num_rows())))?;
        let pages_bytes = PAGE_BYTES.saturating_add(self.record_bytes);
        let (mut held, mut compressed, mut row_bytes) = (0u64, 0u64, 0u64);
        for (index, column) in row_group.columns().iter().enumerate() {
            if !self.mask.leaf_included(index) {
                continue;
            }
            let chunk = Chunk { file: &self.file, column, pages_bytes };
            let name = column.column_path();
            let fail = |reason: String| fail(format!("column {name}: {reason}"));
            let pages = chunk.pages().map_err(fail)?;
            let nested = column.column_descr().max_rep_level() > 0;
            if !nested && pages.values > rows {
                return Err(fail(format!("{} values, expected {rows}", pages.values)));
            }
            held = held.saturating_add(pages.dictionary.bytes).saturating_add(pages.data.bytes);
            compressed = compressed
                .saturating_add(pages.dictionary.in_file)
                .saturating_add(pages.data.in_file);
            if column.column_type() == Type::BYTE_ARRAY {
                row_bytes = row_bytes.saturating_add(pages.longest());
            }
            // What follows decompresses pages, so they must fit.
            if held > pages_bytes && held / MOST_COMPRESSED > compressed {
                return Err(fail(format!(
                    "its pages, and those of the columns before it, have {compressed} bytes here \
                     and {held} in memory; expected at most {pages_bytes}, or {MOST_COMPRESSED} \
                     times what they have here; write the file again with smaller pages"
                )));
            }
            if pages.delta {
                chunk.check_delta_counts().map_err(fail)?;
            }
            if nested {
                chunk.check_lists(&pages).map_err(fail)?;
            }
        }
        let rows = BATCH_BYTES.checked_div(row_bytes).unwrap_or(u64::MAX);
        Ok(usize::try_from(rows).unwrap_or(MOST_ROWS).clamp(1, MOST_ROWS))
    }
}

impl Iterator for ParquetRows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.next_batch();
        self.failed = batch.is_err();
        batch.transpose()
    }
}

/// The largest page of a kind.
#[derive(Default)]
struct Largest {
    /// Decompressed.
    bytes: u64,
    in_file: u64,
}

impl Largest {
    fn add(&mut self, header: &PageHeader) {
        let bytes = header.uncompressed.max(header.compressed);
        if bytes > self.bytes {
            *self = Self { bytes, in_file: header.compressed };
        }
    }
}

/// What the page headers of a column chunk say.
#[derive(Default)]
struct Pages {
    dictionary: Largest,
    data: Largest,
    /// Values in its data pages, nulls included.
    values: u64,
    /// Some lengths are written as differences.
    delta: bool,
    /// Some values are written as what they add to the one before.
    incremental: bool,
}

impl Pages {
    /// No value is longer: it lies in a page, or is made of what lies in one.
    fn longest(&self) -> u64 {
        self.dictionary.bytes.max(self.data.bytes)
    }
}

/// A column of a row group.
struct Chunk<'a> {
    file: &'a ParquetFile,
    column: &'a ColumnChunkMetaData,
    pages_bytes: u64,
}

type Checked<T> = std::result::Result<T, String>;

fn text(error: impl ToString) -> String {
    error.to_string()
}

impl Chunk<'_> {
    /// Reads the headers of the pages, not the pages.
    fn pages(&self) -> Checked<Pages> {
        let codec = self.column.compression();
        if !is_read(codec) {
            let name = format!("{codec:?}");
            return Err(format!(
                "compressed with {}; expected snappy, gzip, lz4, zstd or no compression; write \
                 the file again with one of them",
                name.split('(').next().unwrap_or_default()
            ));
        }
        let (start, length) = self.column.byte_range();
        let end = start.checked_add(length).filter(|&end| end <= self.file.file_bytes);
        let end = end.ok_or_else(|| {
            format!("{length} bytes at {start}, beyond the end of the file; fetch it again")
        })?;
        // Every reading of it begins with a seek, so that both may move its place.
        let file = self.file.file.try_clone().map_err(text)?;
        let mut file = BufReader::with_capacity(4096, file);
        let (mut pages, mut at) = (Pages::default(), start);
        while at < end {
            file.seek(SeekFrom::Start(at)).map_err(text)?;
            let header = PageHeader::read(&mut file, end - at)
                .map_err(|error| format!("the header of the page at byte {at}: {error}"))?;
            let data = at + header.length;
            at = data + header.compressed;
            self.check_expansion(&mut file, data, &header, codec)?;
            if header.is_dictionary {
                if data - header.length != start {
                    return Err(format!("a dictionary at byte {data}, behind other pages"));
                }
                if header.values > header.uncompressed {
                    return Err(format!(
                        "a dictionary of {} values in {} bytes",
                        header.values, header.uncompressed
                    ));
                }
                pages.dictionary.add(&header);
                continue;
            }
            pages.data.add(&header);
            pages.values = pages.values.saturating_add(header.values);
            pages.incremental |= header.encoding == Encoding::DELTA_BYTE_ARRAY;
            pages.delta |= matches!(
                header.encoding,
                Encoding::DELTA_BYTE_ARRAY | Encoding::DELTA_LENGTH_BYTE_ARRAY
            );
        }
        Ok(pages)
    }

    /// Holds what a page has in memory against its header, where the decoder would not.
    fn check_expansion(
        &self,
        file: &mut BufReader<File>,
        data: u64,
        header: &PageHeader,
        codec: Compression,
    ) -> Checked<()> {
        let may_exceed = |ratio: u64| header.compressed.saturating_mul(ratio) > self.pages_bytes;
        match codec {
            Compression::GZIP(_) if may_exceed(GZIP_RATIO) && header.is_compressed => {
                file.seek(SeekFrom::Start(data + header.level_bytes)).map_err(text)?;
                let in_file = header.compressed.saturating_sub(header.level_bytes);
                let most = header.uncompressed.saturating_sub(header.level_bytes);
                let decoder = MultiGzDecoder::new(file.take(in_file));
                let length = std::io::copy(&mut decoder.take(most + 1), &mut std::io::sink());
                match length {
                    Ok(length) if length > most => Err(format!(
                        "the page at byte {data} is longer than the {} bytes that it claims",
                        header.uncompressed
                    )),
                    // Damage is the decoder's to tell.
                    _ => Ok(()),
                }
            }
            Compression::LZ4 if may_exceed(LZ4_RATIO) => {
                let mut magic = [0; LZ4_FRAME.len()];
                file.seek(SeekFrom::Start(data)).map_err(text)?;
                match file.read_exact(&mut magic) {
                    Ok(()) if magic == LZ4_FRAME => Err(format!(
                        "the page at byte {data} is an LZ4 frame without its length; write the \
                         file again with smaller pages"
                    )),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn reader(&self) -> Checked<SerializedPageReader<File>> {
        let file = Arc::new(self.file.file.try_clone().map_err(text)?);
        let values = usize::try_from(self.column.num_values()).unwrap_or(usize::MAX);
        SerializedPageReader::new(file, self.column, values, None).map_err(text)
    }

    /// Lengths written as differences have a count of their own, for which memory is taken.
    fn check_delta_counts(&self) -> Checked<()> {
        let mut reader = self.reader()?;
        while let Some(page) = reader.get_next_page().map_err(text)? {
            let most = page.num_values() as u64;
            let values = values_of(&page, self.column.column_descr());
            let counts = delta_counts(page.encoding(), values.unwrap_or_default());
            if let Some(count) = counts.into_iter().find(|&count| count > most) {
                return Err(format!("a page of {most} values claims {count} lengths"));
            }
        }
        Ok(())
    }

    /// A row of a column of lists may hold any number of values.
    fn check_lists(&self, pages: &Pages) -> Checked<()> {
        let mut longest = if pages.incremental { pages.data.bytes } else { 0 };
        if pages.dictionary.bytes > 0 {
            let page = self.reader()?.get_next_page().map_err(text)?;
            if let Some(Page::DictionaryPage { buf, .. }) = page {
                longest = longest.max(longest_value(&buf));
            }
        }
        // Levels and offsets come to about 16 bytes a value.
        let bytes = pages.values.saturating_mul(longest.saturating_add(16));
        if bytes > LIST_BYTES {
            return Err(format!(
                "{} values of up to {longest} bytes in lists; expected at most {LIST_BYTES} bytes \
                 of them; write the file again with smaller row groups",
                pages.values
            ));
        }
        Ok(())
    }
}

fn is_read(codec: Compression) -> bool {
    matches!(
        codec,
        Compression::UNCOMPRESSED
            | Compression::SNAPPY
            | Compression::GZIP(_)
            | Compression::LZ4
            | Compression::LZ4_RAW
            | Compression::ZSTD(_)
    )
}

/// Runs a Parquet decoder. It checks most but not all of what a file claims; what it does not
/// check ends in a panic, which becomes an error here.
fn without_panic<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    decoder_panic::catch(decode).unwrap_or_else(|| {
        Err(DataError::bad_file(path, "the Parquet data is damaged; write or fetch the file again"))
    })
}
