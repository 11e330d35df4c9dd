//! The character set a page declares.

use memchr::memmem;

/// Bytes looked at; the standard asks for 1024, pages often have more before the declaration.
const BYTES: usize = 4096;

/// The character set that a `<meta>` tag or the XML declaration near the beginning of `html`
/// names, in lower case; `None` when there is none. UTF-16 is never believed here: bytes in which
/// the tag could be read are not UTF-16 (HTML standard, prescan).
pub fn declared_charset(html: &[u8]) -> Option<String> {
    let start = html[..html.len().min(BYTES)].to_ascii_lowercase();
    let declaration = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start);
    let in_declaration = declaration
        .starts_with(b"<?xml")
        .then(|| value(&declaration[..declaration.iter().position(|b| *b == b'>')?], b"encoding"))
        .flatten();
    in_declaration.or_else(|| in_meta(&start)).filter(|label| !label.starts_with("utf-16"))
}

fn in_meta(start: &[u8]) -> Option<String> {
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'<', &start[at..]) {
        at += found;
        let rest = &start[at..];
        if rest.starts_with(b"<!--") {
            at += 4 + memmem::find(&rest[4..], b"-->")?;
        } else if rest.starts_with(b"<meta") {
            let end = memchr::memchr(b'>', rest).unwrap_or(rest.len());
            if let Some(label) = value(&rest[..end], b"charset") {
                return Some(label);
            }
            at += end;
        } else {
            at += 1;
        }
    }
    None
}

/// The value after `key` and `=` in a tag, without quotes.
fn value(tag: &[u8], key: &[u8]) -> Option<String> {
    let mut from = 0;
    while let Some(found) = memmem::find(&tag[from..], key) {
        from += found + key.len();
        let Some(rest) = tag[from..].trim_ascii_start().strip_prefix(b"=") else {
            continue;
        };
        let rest = rest.trim_ascii_start();
        let rest = rest.strip_prefix(b"\"").or(rest.strip_prefix(b"'")).unwrap_or(rest);
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b"\"';,>/".contains(byte);
        let label = &rest[..rest.iter().position(ends).unwrap_or(rest.len())];
        let label = std::str::from_utf8(label).ok()?;
        return (!label.is_empty()).then(|| label.to_owned());
    }
    None
}
