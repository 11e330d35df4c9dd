//! Rows of the files in which tasks are published: JSON lines, JSON, CSV, TSV, Parquet, lists of
//! labels. A file is read whole; the largest task has some ten thousand rows.

use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use serde_json::{Map, Value};

use crate::document::ParquetFile;
use crate::error::{DataError, Result};
use crate::source::InputReader;

/// Most bytes of a file, decompressed.
const LARGEST_FILE: u64 = 1 << 30;
/// About the most bytes of a row of Parquet.
const LARGEST_ROW: u64 = 16 << 20;

/// A row of a file, with its place for messages.
#[derive(Debug, Clone)]
pub(super) struct Row {
    path: PathBuf,
    /// Which row, counted from 1.
    number: usize,
    /// An object with the columns, or whatever a line of JSON holds.
    value: Value,
}

/// Why a row does not become an example.
#[derive(Debug)]
pub(super) enum RowFault {
    /// The file is not one of the task.
    File(DataError),
    /// This row alone cannot be used.
    LeftOut(&'static str),
}

impl From<DataError> for RowFault {
    fn from(error: DataError) -> Self {
        Self::File(error)
    }
}

/// What a row becomes.
pub(super) type RowResult<T> = std::result::Result<T, RowFault>;

impl Row {
    /// A row at a place.
    pub fn new(path: &Path, number: usize, value: Value) -> Self {
        Self { path: path.to_owned(), number, value }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number in the file, counted from 1.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The value of a column, or of a column in a column: `question.stem`.
    pub fn get(&self, column: &str) -> Option<&Value> {
        let mut value = &self.value;
        for part in column.split('.') {
            value = value.get(part)?;
        }
        Some(value).filter(|value| !value.is_null())
    }

    /// Adds a column, such as labels that lie in a file of their own.
    pub fn set(&mut self, column: &str, value: Value) {
        if let Value::Object(columns) = &mut self.value {
            columns.insert(column.to_owned(), value);
        }
    }

    /// The error that the file is not one of the task.
    pub fn unlike(&self, expected: &str) -> RowFault {
        let found = match &self.value {
            Value::Object(columns) => {
                let names: Vec<&str> = columns.keys().map(String::as_str).collect();
                format!("the columns {}", names.join(", "))
            }
            other => format!("{:.60}", other.to_string()),
        };
        let reason = format!(
            "row {}: expected {expected}, found {found}; this is a file of another task or of another \
             version of it",
            self.number
        );
        RowFault::File(DataError::bad_file(&self.path, reason))
    }

    /// A text.
    pub fn text(&self, column: &str) -> RowResult<&str> {
        let value = self.get(column).and_then(Value::as_str);
        value.ok_or_else(|| self.unlike(&format!("a text in `{column}`")))
    }

    /// The text of a column, or the number of the row.
    pub fn id(&self, column: &str) -> String {
        let id = self.get(column).and_then(Value::as_str);
        id.map_or_else(|| self.number.to_string(), str::to_owned)
    }

    /// A list of texts.
    pub fn texts(&self, column: &str) -> RowResult<Vec<String>> {
        self.get(column)
            .and_then(texts_of)
            .ok_or_else(|| self.unlike(&format!("a list of texts in `{column}`")))
    }

    /// A whole number, also where it is written as text.
    pub fn number_in(&self, column: &str) -> RowResult<i64> {
        let number = self.get(column).and_then(|value| match value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            Value::Bool(truth) => Some(i64::from(*truth)),
            _ => None,
        });
        number.ok_or_else(|| self.unlike(&format!("a whole number in `{column}`")))
    }
}

/// The texts of a list.
pub(super) fn texts_of(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}

/// The rows of a file, by the ending of its name: `jsonl`, `json`, `csv`, `tsv`, `parquet`, `lst` and
/// `txt`, the text formats also compressed (`.gz`, `.zst`). `columns` names those of a CSV file without
/// a line of names.
pub(super) fn read_rows(path: &Path, columns: Option<&[&str]>) -> Result<Vec<Row>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let plain = InputReader::uncompressed_name(name);
    let ending = plain.rsplit_once('.').map_or("", |(_, ending)| ending);
    match ending {
        "parquet" => parquet(path),
        "csv" => separated(path, b',', true, columns),
        "tsv" => separated(path, b'\t', false, columns),
        "lst" => {
            let text = read_text(path)?;
            let rows = text.lines().enumerate();
            Ok(rows.map(|(n, line)| Row::new(path, n + 1, line.into())).collect())
        }
        _ => json(path),
    }
}

/// The text of a file.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = read_bytes(path)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| DataError::bad_file(path, format!("is not UTF-8: {error}")))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut reader = InputReader::open(path)?;
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.fill()?;
        if chunk.is_empty() {
            return Ok(bytes);
        }
        let count = chunk.len();
        bytes.extend_from_slice(chunk);
        reader.consume(count);
        if bytes.len() as u64 > LARGEST_FILE {
            let reason = format!("has more than {LARGEST_FILE} bytes; no task has so many");
            return Err(DataError::bad_file(path, reason));
        }
    }
}

/// Values that follow one another, as in JSON lines, or one list of them.
fn json(path: &Path) -> Result<Vec<Row>> {
    let text = read_text(path)?;
    let mut rows = Vec::new();
    for value in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        let value = value.map_err(|error| {
            DataError::bad_file(path, format!("row {}: is not JSON: {error}", rows.len() + 1))
        })?;
        match value {
            Value::Array(list) if rows.is_empty() => {
                let list = list.into_iter().enumerate();
                rows.extend(list.map(|(n, value)| Row::new(path, n + 1, value)));
            }
            value => rows.push(Row::new(path, rows.len() + 1, value)),
        }
    }
    Ok(rows)
}

/// Lines of cells. The first line has the names of the columns unless `columns` are given.
fn separated(
    path: &Path,
    delimiter: u8,
    quoting: bool,
    columns: Option<&[&str]>,
) -> Result<Vec<Row>> {
    let text = read_text(path)?;
    let mut reader = csv::ReaderBuilder::new();
    reader.delimiter(delimiter).quoting(quoting).has_headers(columns.is_none());
    let mut reader = reader.from_reader(text.as_bytes());
    let damaged = |error: csv::Error| DataError::bad_file(path, error);
    let names: Vec<String> = match columns {
        Some(columns) => columns.iter().map(|name| (*name).to_owned()).collect(),
        None => reader.headers().map_err(damaged)?.iter().map(str::to_owned).collect(),
    };
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(damaged)?;
        if record.len() != names.len() {
            let reason = format!(
                "row {}: {} cells, expected {}: {}",
                rows.len() + 1,
                record.len(),
                names.len(),
                names.join(", ")
            );
            return Err(DataError::bad_file(path, reason));
        }
        let cells = names.iter().cloned().zip(record.iter().map(Value::from));
        rows.push(Row::new(path, rows.len() + 1, Value::Object(cells.collect())));
    }
    Ok(rows)
}

fn parquet(path: &Path) -> Result<Vec<Row>> {
    let file = ParquetFile::open(path)?;
    let fields = file.schema().fields().clone();
    let mut rows = Vec::new();
    for batch in file.rows(0..fields.len(), LARGEST_ROW)? {
        let batch = batch?;
        for row in 0..batch.num_rows() {
            let mut columns = Map::new();
            for (field, array) in fields.iter().zip(batch.columns()) {
                columns.insert(field.name().clone(), cell(array, row));
            }
            rows.push(Row::new(path, rows.len() + 1, Value::Object(columns)));
        }
    }
    Ok(rows)
}

/// A cell of Parquet as JSON; types that no task uses are null.
fn cell(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let list = |values: ArrayRef| (0..values.len()).map(|n| cell(&values, n)).collect::<Value>();
    macro_rules! number {
        ($kind:ty) => {
            array.as_primitive::<$kind>().value(row).into()
        };
    }
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::List(_) => list(array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row)),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let cells = columns.map(|(field, array)| (field.name().clone(), cell(array, row)));
            Value::Object(cells.collect())
        }
        _ => Value::Null,
    }
}
