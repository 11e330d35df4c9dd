//! Parquet: one row a document, its text in a named column.

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;

use super::input::Input;
use super::record::{Fields, document_or_empty, too_long};
use super::{Record, RecordSink, Rejection};
use crate::document::{Document, ParquetFile, Reason};
use crate::error::{DataError, Result};

pub(super) fn read(
    wanted: &Fields<'_>,
    source: &str,
    input: &Input,
    bytes_read: &dyn Fn(u64),
    sink: RecordSink<'_>,
) -> Result<()> {
    let path = &input.path;
    let file = ParquetFile::open(path)?;
    let fields = file.schema().fields().clone();
    let text = fields.iter().find(|field| *field.name() == wanted.text);
    match text.map(|field| field.data_type()) {
        Some(kind) if is_text(kind) => {}
        Some(other) => {
            return Err(DataError::bad_file(
                path,
                format!("column {:?} is of type {other}, expected text", wanted.text),
            ));
        }
        None => {
            let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            return Err(DataError::bad_file(
                path,
                format!(
                    "no column {:?}; it has {}; set `text_field`",
                    wanted.text,
                    names.join(", ")
                ),
            ));
        }
    }
    let columns = (0..fields.len()).filter(|&index| {
        wanted.contain(fields[index].name()) && is_cell(fields[index].data_type())
    });
    let total_rows = file.footer().file_metadata().num_rows().max(1) as u64;
    let mut row_number = 0;
    let mut reported = 0;
    for batch in file.rows(columns, wanted.max_record_bytes as u64)? {
        read_batch(wanted, source, input, &batch?, &mut row_number, sink)?;
        // Rows stand for bytes: Parquet does not say how far into the file a row lies.
        let position = input.bytes.saturating_mul(row_number.min(total_rows)) / total_rows;
        bytes_read(position.saturating_sub(reported));
        reported = position;
    }
    bytes_read(input.bytes.saturating_sub(reported));
    Ok(())
}

fn read_batch(
    wanted: &Fields<'_>,
    source: &str,
    input: &Input,
    batch: &RecordBatch,
    row_number: &mut u64,
    sink: RecordSink<'_>,
) -> Result<()> {
    let column = |name: &str| batch.column_by_name(name);
    let Some(texts) = column(wanted.text) else {
        return Err(DataError::bad_file(&input.path, "the text column is gone"));
    };
    for row in 0..batch.num_rows() {
        let offset = *row_number;
        *row_number += 1;
        let id = column(wanted.id)
            .and_then(|array| cell(array, row))
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| format!("{}/{offset:08}", input.name));
        let record = match cell(texts, row) {
            None => Record::Rejected(Rejection {
                reason: Reason::MISSING_TEXT,
                offset,
                bytes: 0,
                detail: format!("null in column {:?}", wanted.text),
            }),
            Some(text) if text.len() > wanted.max_record_bytes => {
                too_long(offset, text.len() as u64, wanted.max_record_bytes)
            }
            Some(text) => document_or_empty(
                Document {
                    id,
                    text,
                    source: source.to_owned(),
                    url: column(wanted.url).and_then(|array| cell(array, row)),
                    created: column(wanted.created).and_then(|array| cell(array, row)),
                    ..Document::default()
                },
                offset,
            ),
        };
        sink(record)?;
    }
    Ok(())
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether [`cell`] reads columns of this type; others are not decoded.
pub(super) fn is_cell(kind: &DataType) -> bool {
    is_text(kind) || matches!(kind, DataType::Int32 | DataType::Int64 | DataType::UInt64)
}

/// A cell as text; other types than text and whole numbers are treated as absent.
pub(super) fn cell(array: &ArrayRef, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row).to_owned()),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row).to_owned()),
        DataType::Utf8View => Some(array.as_string_view().value(row).to_owned()),
        DataType::Int32 => Some(array.as_primitive::<Int32Type>().value(row).to_string()),
        DataType::Int64 => Some(array.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::UInt64 => Some(array.as_primitive::<UInt64Type>().value(row).to_string()),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
