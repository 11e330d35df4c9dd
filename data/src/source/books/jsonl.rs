//! Books as JSON lines: PG-19 and Books3.

use serde::Deserialize;
use serde_json::Value;

use super::{BooksLayout, BooksSource, address, books3_id};
use crate::document::{Document, Reason, metadata_text};
use crate::error::Result;
use crate::source::input::InputReader;
use crate::source::lines::{Line, Lines};
use crate::source::record::{document_or_empty, too_long, utf8};
use crate::source::{ReadContext, Record, RecordSink, Rejection};
use crate::text::python;

/// A line, of either layout.
#[derive(Deserialize)]
struct Book {
    text: Option<String>,
    #[serde(alias = "short_book_title")]
    title: Option<String>,
    author: Option<String>,
    publication_date: Option<Value>,
    url: Option<String>,
}

pub(super) fn read(
    options: &BooksSource,
    context: &ReadContext<'_>,
    sink: RecordSink<'_>,
) -> Result<()> {
    let mut reader = InputReader::open(&context.input.path)?;
    let mut lines = Lines::new(&mut reader, options.max_book_bytes);
    let mut buffer = Vec::new();
    loop {
        let found = lines.next(&mut buffer)?;
        (context.bytes_read)(lines.newly_consumed());
        let offset = lines.offset();
        match found {
            Line::End => return Ok(()),
            Line::TooLong => sink(too_long(offset, lines.length(), options.max_book_bytes))?,
            Line::Whole if buffer.trim_ascii().is_empty() => {}
            Line::Whole => {
                let record = record(options.layout, context.source, offset, &mut buffer);
                sink(record)?;
            }
        }
    }
}

fn record(layout: BooksLayout, source: &str, offset: u64, buffer: &mut Vec<u8>) -> Record {
    let bytes = buffer.len() as u64;
    let reject =
        |reason, detail: String| Record::Rejected(Rejection { reason, offset, bytes, detail });
    let line = match utf8(std::mem::take(buffer), offset) {
        Ok(line) => line,
        Err(rejection) => return Record::Rejected(rejection),
    };
    let book: Book = match serde_json::from_str(line.trim_start_matches('\u{feff}')) {
        Ok(book) => book,
        Err(error) => return reject(Reason::BAD_JSON, error.to_string()),
    };
    let Some(text) = book.text else {
        return reject(Reason::MISSING_TEXT, "no string field \"text\"".into());
    };
    let mut metadata = serde_json::Map::new();
    metadata.insert("n_words".into(), python::split(&text).count().into());
    for (key, value) in [("title", book.title), ("author", book.author)] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            metadata.insert(key.into(), value.into());
        }
    }
    if let Some(year) = book.publication_date.as_ref().and_then(year) {
        metadata.insert("year".into(), year.into());
    }
    let number = match layout {
        BooksLayout::Books3 => None,
        _ => book.url.as_deref().and_then(number_in_address),
    };
    let id = match (layout, number) {
        (BooksLayout::Books3, _) => books3_id(&text),
        (_, Some(number)) => format!("pg:{number}"),
        (_, None) => format!("pg19:{}", &blake3::hash(text.as_bytes()).to_hex()[..32]),
    };
    let document = Document {
        id,
        text,
        source: source.to_owned(),
        url: book.url.or_else(|| number.map(address)),
        language: (layout == BooksLayout::Pg19).then(|| "en".to_owned()),
        metadata: Some(metadata_text(metadata)),
        ..Document::default()
    };
    document_or_empty(document, offset)
}

/// The year in `1813`, `"1813"` or `"1813-01-28"`.
fn year(date: &Value) -> Option<u64> {
    match date {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.split('-').next()?.trim().parse().ok(),
        _ => None,
    }
}

/// The number in `http://www.gutenberg.org/ebooks/1342`.
fn number_in_address(url: &str) -> Option<u64> {
    let last = url.trim_end_matches('/').rsplit('/').next()?;
    last.split('.').next()?.parse().ok()
}
