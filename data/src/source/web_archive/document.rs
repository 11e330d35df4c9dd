//! The document that a page becomes, served or as text.

use serde_json::{Map, Value};

use super::records::Headers;
use crate::document::{Document, metadata_text};
use crate::source::record::document_or_empty;
use crate::source::{Input, Record, Rejection};
use crate::text::charset::EncodingOptions;
use crate::text::html::HtmlOptions;

/// Where a record comes from.
pub(super) struct Origin<'a> {
    /// Name of the source.
    pub source: &'a str,
    /// The file.
    pub input: &'a Input,
    /// How HTML becomes text.
    pub html: &'a HtmlOptions,
    /// What becomes of text whose encoding is damaged.
    pub encoding: EncodingOptions,
    /// Most bytes of a decompressed page.
    pub most_bytes: usize,
}

/// Key of the metadata of pages whose record had a wrong `Content-Length`.
pub(super) const BAD_LENGTH: &str = "bad_content_length";
/// Key of the metadata of pages whose compressed body was cut or damaged.
pub(super) const CUT_BODY: &str = "cut_body";

/// The document of a page, with the metadata that cc_net writes: segment, length, lines, date and
/// domain. `fill` adds the metadata of its own kind of record and returns the text.
pub(super) fn document(
    origin: &Origin<'_>,
    headers: &Headers,
    offset: u64,
    place: &str,
    bytes: u64,
    fill: impl FnOnce(&mut Map<String, Value>) -> String,
) -> Record {
    let url = headers
        .get("WARC-Target-URI")
        // Some crawlers write `<http://…>`.
        .map(|url| url.trim_start_matches('<').trim_end_matches('>').to_owned());
    let date = headers.get("WARC-Date").map(str::to_owned);
    let mut metadata = Map::new();
    let text = fill(&mut metadata);
    metadata.insert("cc_segment".into(), origin.input.name.as_str().into());
    metadata.insert("length".into(), text.chars().count().into());
    metadata
        .insert("nlines".into(), (memchr::memchr_iter(b'\n', text.as_bytes()).count() + 1).into());
    if let Some(date) = &date {
        metadata.insert("date_download".into(), date.as_str().into());
    }
    if let Some(url) = &url {
        metadata.insert("source_domain".into(), domain(url).into());
    }
    let document = Document {
        id: format!("{}/{place}", origin.input.name),
        text,
        source: origin.source.to_owned(),
        url,
        created: date,
        metadata: Some(metadata_text(metadata)),
        ..Document::default()
    };
    match document_or_empty(document, offset) {
        Record::Rejected(rejection) => Record::Rejected(Rejection { bytes, ..rejection }),
        document => document,
    }
}

/// The part of an address between `//` and the path, as Python's `urlparse(url).netloc`.
fn domain(url: &str) -> &str {
    let rest = url.split_once("//").map_or("", |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_pythons() {
        assert_eq!(domain("http://user@Example.org:80/a//b?c#d"), "user@Example.org:80");
        assert_eq!(domain("https://example.org?x"), "example.org");
        assert_eq!(domain("example.org/a"), "");
    }
}
