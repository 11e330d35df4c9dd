//! Pages as they were served: `response` and `resource` records of WARC files.

use super::document::{BAD_LENGTH, CUT_BODY, Origin, document};
use super::http::{Response, parse_content_type};
use super::payload::{is_binary, is_no_text};
use super::records::WarcRecord;
use crate::document::Reason;
use crate::source::{Record, Rejection};
use crate::text::html::{declared_charset, web_page};

/// The document of a `response` (with HTTP headers) or `resource` record (without).
pub(super) fn read(record: WarcRecord, is_response: bool, origin: &Origin<'_>) -> Record {
    let WarcRecord { headers, block, offset, place, bad_length } = record;
    let bytes = block.len() as u64;
    let reject =
        |reason, detail: String| Record::Rejected(Rejection { reason, offset, bytes, detail });
    let response = if is_response {
        match Response::parse(&block, origin.most_bytes) {
            Ok(response) => response,
            Err((reason, detail)) => return reject(reason, detail),
        }
    } else {
        let content_type = headers.get("Content-Type").unwrap_or_default().to_owned();
        Response { status: 200, content_type, body: block.into(), cut: false }
    };
    if !(200..300).contains(&response.status) {
        return reject(Reason::unwanted("http_status"), response.status.to_string());
    }
    let (kind, declared) = parse_content_type(&response.content_type);
    let is_html = match kind.as_str() {
        "text/html" | "application/xhtml+xml" => true,
        "text/plain" => false,
        // A server that says nothing: a browser would look at the page.
        "" if looks_like_html(&response.body) => true,
        _ => return reject(Reason::unwanted("content_type"), response.content_type),
    };
    let identified = headers.get("WARC-Identified-Payload-Type").unwrap_or_default();
    if is_no_text(identified) {
        return reject(Reason::unwanted("binary"), format!("identified as {identified}"));
    }
    if is_binary(&response.body) {
        let detail = format!("served as {}, but no text", response.content_type);
        return reject(Reason::unwanted("binary"), detail);
    }
    let in_page = if is_html { declared_charset(&response.body) } else { None };
    let labels: Vec<&str> = declared.iter().chain(&in_page).map(String::as_str).collect();
    let decoded = match origin.encoding.decode(&response.body, &labels) {
        Ok(decoded) => decoded,
        Err((reason, detail)) => return reject(reason, detail),
    };
    let (title, text) = if is_html {
        let page = web_page(&decoded.text, origin.html);
        (page.title, page.text)
    } else {
        (None, decoded.text.replace("\r\n", "\n").replace(['\r'], "\n").replace('\0', ""))
    };
    let digest = headers.get("WARC-Payload-Digest").or(headers.get("WARC-Block-Digest"));
    let digest = digest.map(str::to_owned);
    let truncated = headers.get("WARC-Truncated").map(str::to_owned);
    let cut = response.cut;
    document(origin, &headers, offset, &place, bytes, |metadata| {
        decoded.note(metadata);
        if bad_length {
            metadata.insert(BAD_LENGTH.into(), true.into());
        }
        if cut {
            metadata.insert(CUT_BODY.into(), true.into());
        }
        let mut insert = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                metadata.insert(key.to_owned(), value.into());
            }
        };
        insert("title", title);
        insert("digest", digest);
        insert("truncated", truncated);
        insert("charset", Some(decoded.encoding.to_owned()));
        text
    })
}

fn looks_like_html(body: &[u8]) -> bool {
    let start = body[..body.len().min(512)].to_ascii_lowercase();
    let start = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&start).trim_ascii_start();
    [&b"<!doctype html"[..], b"<html", b"<head", b"<body", b"<title", b"<!--"]
        .iter()
        .any(|begin| start.starts_with(begin))
}
