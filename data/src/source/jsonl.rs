//! JSON lines: one object a line, its text in a named field.

use serde_json::Value;

use super::input::{Input, InputReader};
use super::json_object::wanted_fields;
use super::lines::{Line, Lines};
use super::record::{Fields, document_or_empty, too_long, utf8};
use super::{Record, RecordSink, Rejection};
use crate::document::{Document, Reason};
use crate::error::Result;

pub(super) fn read(
    wanted: &Fields<'_>,
    source: &str,
    input: &Input,
    bytes_read: &dyn Fn(u64),
    sink: RecordSink<'_>,
) -> Result<()> {
    let mut reader = InputReader::open(&input.path)?;
    let mut lines = Lines::new(&mut reader, wanted.max_record_bytes);
    let mut buffer = Vec::new();
    let mut index = 0;
    loop {
        let found = lines.next(&mut buffer)?;
        bytes_read(lines.newly_consumed());
        let offset = lines.offset();
        match found {
            Line::End => return Ok(()),
            Line::TooLong => sink(too_long(offset, lines.length(), wanted.max_record_bytes))?,
            // Blank lines, often the last one, are not records.
            Line::Whole if buffer.trim_ascii().is_empty() => {}
            Line::Whole => sink(record(wanted, source, input, index, offset, &mut buffer))?,
        }
        index += 1;
    }
}

fn record(
    wanted: &Fields<'_>,
    source: &str,
    input: &Input,
    index: u64,
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
    let line = line.trim_start_matches('\u{feff}');
    let mut fields = match wanted_fields(line, &|name| wanted.contain(name)) {
        Ok(Some(fields)) => fields,
        Ok(None) => return reject(Reason::BAD_JSON, "not an object".into()),
        Err(error) => return reject(Reason::BAD_JSON, error.to_string()),
    };
    let Some(Value::String(text)) = fields.remove(wanted.text) else {
        return reject(Reason::MISSING_TEXT, format!("no string field {:?}", wanted.text));
    };
    let mut string = |field: &str| match fields.remove(field) {
        Some(Value::String(value)) => Some(value),
        Some(Value::Number(value)) => Some(value.to_string()),
        _ => None,
    };
    let document = Document {
        id: string(wanted.id)
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| format!("{}/{index:08}", input.name)),
        text,
        source: source.to_owned(),
        url: string(wanted.url),
        created: string(wanted.created),
        ..Document::default()
    };
    document_or_empty(document, offset)
}
