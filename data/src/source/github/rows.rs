//! Dumps: JSON lines and Parquet.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use serde_json::{Map, Value};

use super::{CodeFile, GithubSource};
use crate::document::{ParquetFile, Reason};
use crate::error::{DataError, Result};
use crate::source::input::InputReader;
use crate::source::json_object::wanted_fields;
use crate::source::lines::{Line, Lines};
use crate::source::parquet::{cell, is_cell};
use crate::source::record::{too_long, utf8};
use crate::source::{ReadContext, Record, RecordSink, Rejection};

/// Names of the fields, the first that a record has counts: BigQuery's, then those of The Stack
/// and of RedPajama.
const CONTENT: [&str; 2] = ["content", "text"];
const PATH: [&str; 2] = ["path", "max_stars_repo_path"];
const REPO_NAME: [&str; 3] = ["repo_name", "repository_name", "max_stars_repo_name"];
const LICENSE: [&str; 4] = ["license", "licence", "licenses", "max_stars_repo_licenses"];
const COMMIT: [&str; 4] = ["commit", "commit_id", "revision_id", "max_stars_repo_head_hexsha"];
const LANG: [&str; 2] = ["lang", "language"];
const COPIES: [&str; 1] = ["copies"];
const BINARY: [&str; 1] = ["binary"];
const ALL: [&[&str]; 8] = [&CONTENT, &PATH, &REPO_NAME, &LICENSE, &COMMIT, &LANG, &COPIES, &BINARY];

pub(super) fn read_jsonl(
    config: &GithubSource,
    context: &ReadContext<'_>,
    sink: RecordSink<'_>,
) -> Result<()> {
    let mut reader = InputReader::open(&context.input.path)?;
    // Escapes make a line longer than its content.
    let mut lines = Lines::new(&mut reader, config.max_record_bytes.saturating_mul(2));
    let mut buffer = Vec::new();
    loop {
        let found = lines.next(&mut buffer)?;
        (context.bytes_read)(lines.newly_consumed());
        let offset = lines.offset();
        match found {
            Line::End => return Ok(()),
            Line::TooLong => sink(too_long(offset, lines.length(), config.max_record_bytes))?,
            Line::Whole if buffer.trim_ascii().is_empty() => {}
            Line::Whole => sink(parse_line(config, context, offset, &mut buffer))?,
        }
    }
}

fn parse_line(
    config: &GithubSource,
    context: &ReadContext<'_>,
    offset: u64,
    buffer: &mut Vec<u8>,
) -> Record {
    let bytes = buffer.len() as u64;
    let reject =
        |reason, detail: String| Record::Rejected(Rejection { reason, offset, bytes, detail });
    let line = match utf8(std::mem::take(buffer), offset) {
        Ok(line) => line,
        Err(rejection) => return Record::Rejected(rejection),
    };
    let wanted = |name: &str| ALL.iter().any(|names| names.contains(&name));
    let mut fields = match wanted_fields(line.trim_start_matches('\u{feff}'), &wanted) {
        Ok(Some(fields)) => fields,
        Ok(None) => return reject(Reason::BAD_JSON, "not an object".into()),
        Err(error) => return reject(Reason::BAD_JSON, error.to_string()),
    };
    let binary = match take(&mut fields, &BINARY) {
        Some(Value::Bool(binary)) => binary,
        // BigQuery's export writes booleans as text.
        Some(Value::String(binary)) => binary == "true",
        _ => false,
    };
    let Some(Value::String(content)) = take(&mut fields, &CONTENT) else {
        // The dump has no content for what git takes for binary.
        let reason = if binary { Reason::unwanted("binary") } else { Reason::MISSING_TEXT };
        return reject(reason, "no string field \"content\"".into());
    };
    let mut text = |names: &[&str]| match take(&mut fields, names) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let (path, repo_name, commit, lang) =
        (text(&PATH), text(&REPO_NAME), text(&COMMIT), text(&LANG));
    let license = match take(&mut fields, &LICENSE) {
        Some(Value::String(name)) => joined([name]),
        Some(Value::Array(names)) => joined(names.into_iter().map(|name| match name {
            Value::String(name) => name,
            other => other.to_string(),
        })),
        _ => None,
    };
    let copies = take(&mut fields, &COPIES).and_then(|value| match value {
        Value::String(digits) => digits.parse().ok(),
        other => other.as_u64(),
    });
    let file = CodeFile {
        content,
        path,
        repo_name,
        commit,
        license,
        lang,
        copies,
        binary,
        offset,
        repaired: None,
    };
    file.into_record(context.source, config.max_record_bytes)
}

fn take(fields: &mut Map<String, Value>, names: &[&str]) -> Option<Value> {
    names.iter().find_map(|&name| fields.remove(name).filter(|value| !value.is_null()))
}

/// Names of licenses that all apply, as one expression in lower case.
fn joined(names: impl IntoIterator<Item = String>) -> Option<String> {
    let mut names: Vec<String> =
        names.into_iter().map(|name| name.trim().to_ascii_lowercase()).collect();
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    match &mut names[..] {
        [] => None,
        [name] => Some(std::mem::take(name)),
        names => {
            Some(names.iter().map(|name| format!("({name})")).collect::<Vec<_>>().join(" and "))
        }
    }
}

pub(super) fn read_parquet(
    config: &GithubSource,
    context: &ReadContext<'_>,
    sink: RecordSink<'_>,
) -> Result<()> {
    let (input, path) = (context.input, &context.input.path);
    let file = ParquetFile::open(path)?;
    let fields = file.schema().fields().clone();
    if !fields.iter().any(|field| CONTENT.contains(&field.name().as_str())) {
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        let reason = format!("no column \"content\"; it has {}", names.join(", "));
        return Err(DataError::bad_file(path, reason));
    }
    let wanted = (0..fields.len()).filter(|&index| {
        let name = fields[index].name().as_str();
        ALL.iter().any(|names| names.contains(&name)) && is_read(fields[index].data_type())
    });
    let total_rows = file.footer().file_metadata().num_rows().max(1) as u64;
    let (mut row, mut reported) = (0, 0);
    for batch in file.rows(wanted, config.max_record_bytes as u64)? {
        let batch = batch?;
        let columns = columns(&batch);
        for index in 0..batch.num_rows() {
            let record = parse_row(config, context, &columns, index, row);
            row += 1;
            sink(record)?;
        }
        // Rows stand for bytes: Parquet does not say how far into the file a row lies.
        let position = input.bytes.saturating_mul(row.min(total_rows)) / total_rows;
        (context.bytes_read)(position.saturating_sub(reported));
        reported = position;
    }
    (context.bytes_read)(input.bytes.saturating_sub(reported));
    Ok(())
}

/// Whether something is read of columns of this type; others are not decoded.
fn is_read(kind: &DataType) -> bool {
    match kind {
        DataType::List(item) | DataType::LargeList(item) => is_cell(item.data_type()),
        DataType::Boolean => true,
        kind => is_cell(kind),
    }
}

/// The columns of a batch by the first of their names.
fn columns(batch: &RecordBatch) -> BTreeMap<&'static str, &ArrayRef> {
    ALL.iter()
        .filter_map(|names| {
            let column = names.iter().find_map(|name| batch.column_by_name(name))?;
            Some((names[0], column))
        })
        .collect()
}

fn parse_row(
    config: &GithubSource,
    context: &ReadContext<'_>,
    columns: &BTreeMap<&str, &ArrayRef>,
    index: usize,
    row: u64,
) -> Record {
    let text = |names: &[&str]| {
        columns.get(names[0]).and_then(|column| cell(column, index)).filter(|text| !text.is_empty())
    };
    let binary = columns.get(BINARY[0]).is_some_and(|column| {
        matches!(column.data_type(), DataType::Boolean)
            && !column.is_null(index)
            && column.as_boolean().value(index)
    });
    let Some(content) = columns.get(CONTENT[0]).and_then(|column| cell(column, index)) else {
        return Record::Rejected(Rejection {
            reason: if binary { Reason::unwanted("binary") } else { Reason::MISSING_TEXT },
            offset: row,
            bytes: 0,
            detail: "null in column \"content\"".to_owned(),
        });
    };
    let license = columns.get(LICENSE[0]).and_then(|column| licenses(column, index));
    let file = CodeFile {
        repaired: None,
        content,
        path: text(&PATH),
        repo_name: text(&REPO_NAME),
        commit: text(&COMMIT),
        license,
        lang: text(&LANG),
        copies: text(&COPIES).and_then(|copies| copies.parse().ok()),
        binary,
        offset: row,
    };
    file.into_record(context.source, config.max_record_bytes)
}

/// A license column holds names or lists of names.
fn licenses(column: &ArrayRef, index: usize) -> Option<String> {
    if column.is_null(index) {
        return None;
    }
    let list = match column.data_type() {
        DataType::List(_) => column.as_list::<i32>().value(index),
        DataType::LargeList(_) => column.as_list::<i64>().value(index),
        _ => return joined(cell(column, index)),
    };
    joined((0..list.len()).filter_map(|place| cell(&list, place)))
}
