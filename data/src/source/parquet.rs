//! Parquet: one row a document, its text in a named column.

use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;

use super::input::Input;
use super::text::{TextSource, document_or_empty, too_long};
use super::{Record, RecordSink, Rejection};
use crate::document::{Document, Reason};
use crate::document::{open_parquet, without_panic};
use crate::error::{DataError, Result};

pub(super) fn read(
    config: &TextSource,
    source: &str,
    input: &Input,
    bytes_read: &dyn Fn(u64),
    sink: RecordSink<'_>,
) -> Result<()> {
    let path = &input.path;
    let builder = open_parquet(path)?;
    let wanted = [&config.text_field, &config.id_field, &config.url_field, &config.created_field];
    let columns: Vec<usize> = builder
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| wanted.contains(&field.name()))
        .map(|(index, _)| index)
        .collect();
    if builder.schema().field_with_name(&config.text_field).is_err() {
        return Err(DataError::bad_file(
            path,
            format!(
                "no column {:?}; it has {}; set `text_field`",
                config.text_field,
                column_names(&builder).join(", ")
            ),
        ));
    }
    let total_rows = builder.metadata().file_metadata().num_rows().max(1) as u64;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
    let mut reader = without_panic(path, || {
        builder
            .with_projection(mask)
            .with_batch_size(256)
            .build()
            .map_err(|error| DataError::bad_file(path, error))
    })?;
    let mut row_number = 0;
    let mut reported = 0;
    loop {
        let batch = without_panic(path, || {
            reader.next().transpose().map_err(|error| DataError::bad_file(path, error))
        })?;
        let Some(batch) = batch else {
            bytes_read(input.bytes.saturating_sub(reported));
            return Ok(());
        };
        read_batch(config, source, input, &batch, &mut row_number, sink)?;
        // Rows stand for bytes: Parquet does not say how far into the file a row lies.
        let position = input.bytes.saturating_mul(row_number.min(total_rows)) / total_rows;
        bytes_read(position.saturating_sub(reported));
        reported = position;
    }
}

fn read_batch(
    config: &TextSource,
    source: &str,
    input: &Input,
    batch: &RecordBatch,
    row_number: &mut u64,
    sink: RecordSink<'_>,
) -> Result<()> {
    let column = |name: &str| batch.column_by_name(name);
    let Some(texts) = column(&config.text_field) else {
        return Err(DataError::bad_file(&input.path, "the text column is gone"));
    };
    check_text_type(&input.path, &config.text_field, texts)?;
    for row in 0..batch.num_rows() {
        let offset = *row_number;
        *row_number += 1;
        let id = column(&config.id_field)
            .and_then(|array| cell(array, row))
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| format!("{}/{offset:08}", input.name));
        let record = match cell(texts, row) {
            None => Record::Rejected(Rejection {
                reason: Reason::MISSING_TEXT,
                offset,
                bytes: 0,
                detail: format!("null in column {:?}", config.text_field),
            }),
            Some(text) if text.len() > config.max_record_bytes => {
                too_long(offset, text.len() as u64, config.max_record_bytes)
            }
            Some(text) => document_or_empty(
                Document {
                    id,
                    text,
                    source: source.to_owned(),
                    url: column(&config.url_field).and_then(|array| cell(array, row)),
                    created: column(&config.created_field).and_then(|array| cell(array, row)),
                    ..Document::default()
                },
                offset,
            ),
        };
        sink(record)?;
    }
    Ok(())
}

fn check_text_type(path: &Path, name: &str, array: &ArrayRef) -> Result<()> {
    match array.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Ok(()),
        other => Err(DataError::bad_file(
            path,
            format!("column {name:?} is of type {other}, expected text"),
        )),
    }
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

fn column_names<T>(builder: &parquet::arrow::arrow_reader::ArrowReaderBuilder<T>) -> Vec<String> {
    let fields = builder.schema().fields();
    fields.iter().map(|field| field.name().clone()).collect()
}
