//! Records of ARC files, which the Internet Archive and Common Crawl wrote before WARC: a line with
//! address, host, time, type and length, and a block that begins behind it.

use super::records::Headers;

/// Begins every ARC file.
pub(super) const MAGIC: &[u8] = b"filedesc:";

/// What the addresses of records begin with.
const SCHEMES: [&[u8]; 8] =
    [b"http:", b"https:", b"dns:", b"ftp:", b"filedesc:", b"whois:", b"warcinfo:", b"metadata:"];

/// Whether `bytes` can begin a record.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    SCHEMES.iter().any(|scheme| {
        bytes.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// The headers that a WARC record of the same meaning has, from the line that begins a record; None
/// when it is no such line.
///
/// Version 1 has address, host, time, type and length, version 2 five fields more before the
/// length. Addresses may hold blanks.
pub(super) fn headers(line: &[u8]) -> Option<Headers> {
    if !may_begin(line) {
        return None;
    }
    let line = String::from_utf8_lossy(line);
    let fields: Vec<&str> = line.trim_end().split(' ').collect();
    let length: u64 = fields.last()?.parse().ok()?;
    let date_at = |from_end: usize| {
        let at = fields.len().checked_sub(from_end).filter(|&at| at >= 2)?;
        Some((at, date(fields[at])?))
    };
    let (at, date) = date_at(3).or_else(|| date_at(8))?;
    let url = fields[..at - 1].join(" ");
    let (kind, content_type) = match url.split(':').next()?.to_ascii_lowercase().as_str() {
        "filedesc" | "warcinfo" => ("warcinfo", fields[at + 1]),
        "metadata" => ("metadata", fields[at + 1]),
        "http" | "https" => ("response", "application/http; msgtype=response"),
        "dns" | "whois" => ("response", "text/dns"),
        _ => ("resource", fields[at + 1]),
    };
    let mut headers = Headers::default();
    headers.push("WARC-Type", kind);
    headers.push("WARC-Target-URI", url);
    headers.push("WARC-Date", date);
    headers.push("Content-Type", content_type);
    headers.push("Content-Length", length.to_string());
    Some(headers)
}

/// `19970202185145` as `1997-02-02T18:51:45Z`.
fn date(text: &str) -> Option<String> {
    if !matches!(text.len(), 12 | 14) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = text.get(12..).filter(|seconds| !seconds.is_empty()).unwrap_or("00");
    Some(format!(
        "{}-{}-{}T{}:{}:{seconds}Z",
        &text[..4],
        &text[4..6],
        &text[6..8],
        &text[8..10],
        &text[10..12]
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        for line in [
            "http://e.org/a b 10.0.0.1 19970202185145 text/html 123",
            "http://e.org/a b 10.0.0.1 19970202185145 text/html 200 fac069150613fe55599cc7fa88aa089d - 209 a.arc.gz 123",
        ] {
            let headers = headers(line.as_bytes()).unwrap();
            assert_eq!(headers.get("WARC-Target-URI"), Some("http://e.org/a b"));
            assert_eq!(headers.get("WARC-Date"), Some("1997-02-02T18:51:45Z"));
            assert_eq!(headers.get("Content-Length"), Some("123"));
        }
        for other in ["http: 1 2 3 4", "http://e.org 1.1.1.1 19970202185145 text/html x", "a", ""] {
            assert!(headers(other.as_bytes()).is_none(), "{other}");
        }
    }
}
