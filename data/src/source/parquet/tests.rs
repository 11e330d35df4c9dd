use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringDictionaryBuilder};
use arrow_array::types::Int32Type;
use arrow_array::{DictionaryArray, Int32Array, StringArray};
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use super::*;
use crate::source::{
    GithubFormat, GithubSource, ReadContext, SourceOptions, TextFormat, TextSource,
};

/// Columns with their names.
type Columns = Vec<(&'static str, ArrayRef)>;

/// Writes a file that does not say which Arrow types it was written from.
fn write(path: &Path, columns: Columns, properties: WriterPropertiesBuilder) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let options = ArrowWriterOptions::new()
        .with_properties(properties.build())
        .with_skip_arrow_metadata(true);
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new_with_options(file, batch.schema(), options).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn zstd() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap()))
}

/// Of records of at most a thousand bytes, so that a page is large when it is not for one record.
fn text_source(path: &Path) -> TextSource {
    TextSource {
        format: Some(TextFormat::Parquet),
        max_record_bytes: 1000,
        ..TextSource::files(vec![path.to_owned()])
    }
}

fn read(source: &dyn SourceOptions) -> Result<Vec<Record>> {
    let input = source.inputs("text").unwrap().remove(0);
    let mut records = Vec::new();
    let context = ReadContext {
        source: "web",
        input: &input,
        scratch: Path::new(""),
        memory_bytes: 0,
        bytes_read: &|_| {},
    };
    source.read(&context, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}

fn texts(records: &[Record]) -> Vec<&str> {
    fn text(record: &Record) -> &str {
        match record {
            Record::Document(document) => &document.text,
            other => panic!("{other:?}"),
        }
    }
    records.iter().map(text).collect()
}

fn strings(texts: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

/// `rows` times the same value, which is held once.
fn repeated(value: &str, rows: usize) -> ArrayRef {
    let keys = Int32Array::from(vec![0; rows]);
    let values = Arc::new(StringArray::from(vec![value]));
    Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).unwrap())
}

fn file(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    let error = read(&text_source(path)).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn files_of_every_usual_codec_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let written: Vec<String> = (0..1000).map(|n| format!("Text {n} of a thousand.")).collect();
    let column = strings(&written.iter().map(String::as_str).collect::<Vec<_>>());
    for (name, codec) in [
        ("none.parquet", Compression::UNCOMPRESSED),
        ("snappy.parquet", Compression::SNAPPY),
        ("gzip.parquet", Compression::GZIP(GzipLevel::default())),
        ("lz4.parquet", Compression::LZ4),
        ("lz4_raw.parquet", Compression::LZ4_RAW),
        ("zstd.parquet", Compression::ZSTD(ZstdLevel::default())),
    ] {
        let path = file(&folder, name);
        let properties = WriterProperties::builder().set_compression(codec);
        write(&path, vec![("text", column.clone())], properties);
        assert_eq!(texts(&read(&text_source(&path)).unwrap()), written, "{name}");
    }
}

#[test]
fn a_codec_that_is_not_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "brotli.parquet");
    let properties = WriterProperties::builder().set_compression(Compression::UNCOMPRESSED);
    write(&path, vec![("text", strings(&["a"]))], properties);
    // In the footer the codec stands behind the column's path; 4 is Brotli, written as twice that.
    let mut bytes = std::fs::read(&path).unwrap();
    let codec = bytes.windows(6).rposition(|window| window == b"text\x15\x00").unwrap() + 5;
    bytes[codec] = 8;
    std::fs::write(&path, bytes).unwrap();
    refused(&path, &["BROTLI", "column \"text\"", "snappy"]);
}

/// 8 MiB that take a few bytes, a thousand times.
#[test]
fn rows_that_are_long_are_decoded_a_few_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "dictionary.parquet");
    let length = 8 << 20;
    write(&path, vec![("text", repeated(&"a".repeat(length), 1000))], zstd());
    assert!(std::fs::metadata(&path).unwrap().len() < 30_000);
    let rows = ParquetFile::open(&path).unwrap().rows([0], 0).unwrap();
    let mut decoded = 0;
    for batch in rows.take(5) {
        let batch = batch.unwrap();
        assert!(batch.num_rows() * length <= 64 << 20, "{} rows", batch.num_rows());
        decoded += batch.num_rows();
    }
    assert!(decoded > 20);
    // Short ones come together.
    write(&path, vec![("text", repeated("a", 1000))], zstd());
    let mut rows = ParquetFile::open(&path).unwrap().rows([0], 0).unwrap();
    assert_eq!(rows.next().unwrap().unwrap().num_rows(), 256);
    assert_eq!(read(&text_source(&path)).unwrap().len(), 1000);
}

#[test]
fn a_page_that_is_large_only_in_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "page.parquet");
    let gzip = WriterProperties::builder().set_compression(Compression::GZIP(GzipLevel::default()));
    for properties in [zstd(), gzip] {
        write(&path, vec![("text", strings(&[&"a".repeat(80 << 20)]))], properties);
        refused(&path, &["column \"text\"", "in memory"]);
        // A record may be as long as the source allows.
        let source = TextSource { max_record_bytes: 80 << 20, ..text_source(&path) };
        assert_eq!(read(&source).unwrap().len(), 1);
    }
}

/// The decoder of gzip does not stop at the length that the header claims.
#[test]
fn a_page_longer_than_it_claims_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "longer.parquet");
    let gzip = WriterProperties::builder()
        .set_compression(Compression::GZIP(GzipLevel::default()))
        .set_dictionary_enabled(false);
    let length = 70 << 20;
    write(&path, vec![("text", strings(&[&"a".repeat(length)]))], gzip);
    let mut bytes = std::fs::read(&path).unwrap();
    // The second field of the page's header: the length with four bytes of its own in front, and
    // six of levels, as Thrift writes numbers.
    let number = |value: usize| {
        let mut rest = value * 2;
        let mut bytes = vec![0x15];
        while rest > 0x7f {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    };
    let claim = [4, 10, 8, 12].iter().map(|more| number(length + more));
    let (at, claim) = claim
        .filter_map(|claim| {
            let at = bytes[..40].windows(claim.len()).position(|window| window == claim)?;
            Some((at, claim))
        })
        .next()
        .unwrap();
    // The same number of bytes for a much smaller one.
    let smaller = number(3 << 20);
    assert_eq!(smaller.len(), claim.len());
    bytes[at..at + claim.len()].copy_from_slice(&smaller);
    std::fs::write(&path, bytes).unwrap();
    refused(&path, &["longer than the"]);
}

#[test]
fn more_rows_than_a_file_of_its_size_can_mean_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "nulls.parquet");
    let nulls = || Arc::new(StringArray::new_null(2 << 20));
    write(&path, vec![("text", nulls())], zstd());
    refused(&path, &["claims 2097152 rows"]);
}

#[test]
fn lists_that_are_long_only_in_memory_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "lists.parquet");
    let licenses = |name: &str, count: usize| {
        let mut lists = ListBuilder::new(StringDictionaryBuilder::<Int32Type>::new());
        for _ in 0..count {
            lists.values().append(name).unwrap();
        }
        lists.append(true);
        let columns: Columns =
            vec![("content", strings(&["a = 1\n"])), ("licenses", Arc::new(lists.finish()))];
        write(&path, columns, zstd());
        read(&GithubSource::new(vec![path.clone()], GithubFormat::Parquet))
    };
    assert_eq!(licenses("MIT", 40_000).unwrap().len(), 1);
    let error = licenses(&"M".repeat(8 << 10), 40_000).unwrap_err().to_string();
    assert!(error.contains("licenses") && error.contains("40000 values"), "{error}");
}

#[test]
fn counts_of_lengths_are_held_against_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "delta.parquet");
    let written = ["one text", "one text more", "another"];
    for encoding in [Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY] {
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_column_encoding(ColumnPath::from("text"), encoding);
        write(&path, vec![("text", strings(&written))], properties);
        assert_eq!(texts(&read(&text_source(&path)).unwrap()), written, "{encoding}");
        // Blocks of 128, 4 parts, 3 values: DELTA_BYTE_ARRAY has two such lists.
        let whole = std::fs::read(&path).unwrap();
        let heads: Vec<usize> =
            (0..whole.len() - 4).filter(|&at| whole[at..at + 4] == [0x80, 1, 4, 3]).collect();
        assert_eq!(heads.len(), if encoding == Encoding::DELTA_BYTE_ARRAY { 2 } else { 1 });
        for head in heads {
            let mut bytes = whole.clone();
            bytes[head + 3] = 127;
            std::fs::write(&path, bytes).unwrap();
            refused(&path, &["a page of 3 values claims 127 lengths"]);
        }
    }
}

#[test]
fn columns_that_are_not_read_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "other.parquet");
    // An id of a type that cannot be one, as a page that would not be allowed.
    let binary = arrow_array::BinaryArray::from_vec(vec![&vec![7; 70 << 20][..]]);
    let columns: Columns = vec![("text", strings(&["a"])), ("id", Arc::new(binary))];
    write(&path, columns, zstd());
    let records = read(&text_source(&path)).unwrap();
    let Record::Document(document) = &records[0] else { panic!("{records:?}") };
    assert_eq!(document.id, "other.parquet/00000000");
    // The text must be text.
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    write(&path, vec![("text", numbers)], zstd());
    refused(&path, &["\"text\" is of type Int32, expected text"]);
}
