//! Pages that are text already: `conversion` records of WET files.

use std::borrow::Cow;

use super::document::{BAD_LENGTH, Origin, document};
use super::records::WarcRecord;
use crate::source::{Record, Rejection};
use crate::text::python::is_space;

/// The document of a `conversion` record: the first line is the title, the others are the text,
/// each without white space at its ends (as cc_net reads them).
pub(super) fn read(record: WarcRecord, origin: &Origin<'_>) -> Record {
    let WarcRecord { headers, block, offset, place, bad_length } = record;
    let bytes = block.len() as u64;
    let decoded = match origin.encoding.decode_utf8(block) {
        Ok(decoded) => decoded,
        Err((reason, detail)) => {
            return Record::Rejected(Rejection { reason, offset, bytes, detail });
        }
    };
    let page = &*decoded.text;
    let nul_bytes = memchr::memchr_iter(0, page.as_bytes()).count() as u64;
    let page = match nul_bytes {
        0 => Cow::Borrowed(page),
        _ => Cow::Owned(page.replace('\0', "")),
    };
    // Python's text files also end lines at CR.
    let page = match memchr::memchr(b'\r', page.as_bytes()) {
        Some(_) => Cow::Owned(page.replace("\r\n", "\n").replace('\r', "\n")),
        None => page,
    };
    let (title, body) = page.split_once('\n').unwrap_or((&page, ""));
    let body = body.strip_suffix('\n').unwrap_or(body);
    let mut text = String::with_capacity(body.len());
    let mut from = 0;
    // Lines that need no change are copied together.
    let mut whole = 0;
    for end in memchr::memchr_iter(b'\n', body.as_bytes()).chain([body.len()]) {
        let line = &body[from..end];
        if needs_strip(line) {
            text.push_str(&body[whole..from]);
            text.push_str(line.trim_matches(is_space));
            whole = end;
        }
        from = end + 1;
    }
    text.push_str(&body[whole..]);
    let digest = headers.get("WARC-Block-Digest").map(str::to_owned);
    document(origin, &headers, offset, &place, bytes, |metadata| {
        decoded.note(metadata);
        if bad_length {
            metadata.insert(BAD_LENGTH.into(), true.into());
        }
        metadata.insert("title".into(), title.trim_matches(is_space).into());
        if let Some(digest) = digest {
            metadata.insert("digest".into(), digest.into());
        }
        if nul_bytes > 0 {
            metadata.insert("nul_bytes".into(), nul_bytes.into());
        }
        text
    })
}

/// Whether `line` may have white space at its ends: not if both are printable ASCII.
fn needs_strip(line: &str) -> bool {
    let visible = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_graphic);
    !(visible(line.as_bytes().first()) && visible(line.as_bytes().last()))
}
