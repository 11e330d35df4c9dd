//! HTTP responses: headers, transfer and content encodings (RFC 9110, RFC 9112).

use std::borrow::Cow;
use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use memchr::memchr;

use super::members::{GZIP_MAGIC, ZSTD_MAGIC};
use super::records::Headers;
use crate::document::Reason;

/// The record holds no HTTP response.
const BAD_HTTP: Reason = Reason::broken("bad_http");
/// The body is compressed in a way that cannot be read, or damaged.
const BAD_ENCODING: Reason = Reason::broken("content_encoding");
/// Stands for the encoding that a body has without a header that says so.
const UNSAID: &str = "unsaid";
/// Bytes of a brotli body that are read together.
const BROTLI_BUFFER: usize = 1 << 12;

/// An HTTP response with its encodings undone.
#[derive(Debug)]
pub(super) struct Response<'a> {
    /// Status code.
    pub status: u16,
    /// The `Content-Type`, empty when there is none.
    pub content_type: String,
    /// The body.
    pub body: Cow<'a, [u8]>,
    /// The compressed body was cut or damaged; this is its readable part.
    pub cut: bool,
}

impl<'a> Response<'a> {
    /// Reads a response. A body of more than `most_bytes` after decompression is refused.
    pub fn parse(block: &'a [u8], most_bytes: usize) -> Result<Self, (Reason, String)> {
        let mut rest = block;
        let status_line = take_line(&mut rest).unwrap_or_default();
        let status = status(status_line).ok_or_else(|| {
            let start = &status_line[..status_line.len().min(40)];
            (BAD_HTTP, format!("no status line but {:?}", String::from_utf8_lossy(start)))
        })?;
        let mut headers = Headers::default();
        loop {
            match take_line(&mut rest) {
                Some(b"") => break,
                // Servers send lines that are no headers; browsers pass over them.
                Some(line) => _ = headers.add(line),
                None => return Err((BAD_HTTP, "it ends inside the headers".into())),
            }
        }
        let mut body = Cow::Borrowed(rest);
        // Crawlers often undo an encoding and keep its header, so the body has the last word.
        if lists(&headers, "Transfer-Encoding", "chunked")
            && let Some(whole) = dechunk(&body)
        {
            body = Cow::Owned(whole);
        }
        // The encoding applied last is undone first.
        let encodings = headers.get("Content-Encoding").unwrap_or_default().to_ascii_lowercase();
        let mut cut = false;
        for encoding in encodings.rsplit(',').map(str::trim).take(4).chain([UNSAID]) {
            if let Some((plain, whole)) = decompress(encoding, &body, most_bytes)? {
                body = Cow::Owned(plain);
                cut |= !whole;
            }
        }
        let content_type = headers.get("Content-Type").unwrap_or_default().to_owned();
        Ok(Self { status, content_type, body, cut })
    }
}

/// The next line without its end; `None` when there is no line end.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let at = memchr(b'\n', rest)?;
    let line = &rest[..at];
    *rest = &rest[at + 1..];
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// The code of `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.get(..line.len().min(64))?).unwrap_or_default();
    if !line.starts_with("HTTP/") {
        return None;
    }
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn lists(headers: &Headers, name: &str, wanted: &str) -> bool {
    let value = headers.get(name).unwrap_or_default();
    value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted))
}

/// A chunked body in one piece; what there is of one that ends early; `None` when it is not
/// chunked, though a header says so: a first line that happens to be a number is followed by
/// something else than as many bytes and a line end.
fn dechunk(body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::with_capacity(body.len());
    let mut rest = body;
    let mut first = true;
    loop {
        let before = rest;
        let size = take_line(&mut rest).and_then(|line| {
            let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
            let digits = std::str::from_utf8(digits).ok()?;
            // `from_str_radix` would take a sign.
            let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            hexadecimal.then(|| usize::from_str_radix(digits, 16).ok()).flatten()
        });
        let Some(size) = size else {
            // A body that goes on without chunks keeps what it goes on with.
            whole.extend_from_slice(before);
            return (!first).then_some(whole);
        };
        let count = size.min(rest.len());
        let follows = &rest[count..];
        let ends = follows.is_empty() || follows.starts_with(b"\r\n") || follows.starts_with(b"\n");
        // A lone line feed is nobody's end of a size that is not right.
        let strict = before[..before.len() - rest.len()].ends_with(b"\r\n");
        if first && (!ends || size > rest.len() && !strict) {
            return None;
        }
        first = false;
        whole.extend_from_slice(&rest[..count]);
        rest = follows;
        if size == 0 || rest.is_empty() {
            return Some(whole);
        }
        if !ends {
            whole.extend_from_slice(rest);
            return Some(whole);
        }
        take_line(&mut rest);
    }
}

/// A body decompressed, and whether it was whole.
type Decompressed = (Vec<u8>, bool);

/// `None` when the body is not compressed. Of a body that is cut or damaged the part before the damage
/// counts.
fn decompress(
    encoding: &str,
    body: &[u8],
    most_bytes: usize,
) -> Result<Option<Decompressed>, (Reason, String)> {
    let mut decoder: Box<dyn Read + '_> = match encoding {
        // The header may be wrong about the way, but not what the body begins with.
        _ if body.starts_with(&GZIP_MAGIC) => Box::new(MultiGzDecoder::new(body)),
        _ if body.starts_with(&ZSTD_MAGIC) => Box::new(
            zstd::stream::read::Decoder::new(body)
                .map_err(|error| (BAD_ENCODING, error.to_string()))?,
        ),
        UNSAID | "gzip" | "x-gzip" | "zstd" | "" | "identity" => return Ok(None),
        // Meant is zlib; many servers send it without its header.
        "deflate" if is_zlib(body) => Box::new(ZlibDecoder::new(body)),
        // Crawlers that name an encoding they have undone send text.
        _ if begins_as_text(body) => return Ok(None),
        "deflate" => Box::new(DeflateDecoder::new(body)),
        "br" => Box::new(brotli_decompressor::Decompressor::new(body, BROTLI_BUFFER)),
        _ => return Err((BAD_ENCODING, format!("{encoding:?} is not supported"))),
    };
    let mut plain = Vec::new();
    let limit = most_bytes as u64 + 1;
    let result = decoder.by_ref().take(limit).read_to_end(&mut plain);
    if plain.len() > most_bytes {
        let detail = format!("a compressed page of more than {most_bytes} bytes");
        return Err((Reason::TOO_LONG, detail));
    }
    match result {
        Ok(_) => Ok(Some((plain, true))),
        Err(_) if !plain.is_empty() => Ok(Some((plain, false))),
        Err(error) => Err((BAD_ENCODING, format!("{encoding}: {error}"))),
    }
}

/// RFC 1950, section 2.2.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [method, flags, ..] if method & 0x0f == 8
        && (u16::from(*method) << 8 | u16::from(*flags)) % 31 == 0)
}

fn begins_as_text(body: &[u8]) -> bool {
    let start = body[..body.len().min(64)].trim_ascii_start();
    start.iter().all(|byte| *byte >= 0x80 || *byte >= b' ' || byte.is_ascii_whitespace())
        && (start.is_empty() || start[0] == b'<' || start.is_ascii())
}

/// The media type in lower case, and the character set, of a `Content-Type`.
pub(super) fn parse_content_type(value: &str) -> (String, Option<String>) {
    let mut parts = value.split(';');
    let kind = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let charset = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (name.trim().eq_ignore_ascii_case("charset") && !value.is_empty())
            .then(|| value.to_ascii_lowercase())
    });
    (kind, charset)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn body(headers: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let block = [format!("HTTP/1.1 200 OK\r\n{headers}\r\n").as_bytes(), body].concat();
        Response::parse(&block, 1000)
            .map(|response| response.body.into_owned())
            .map_err(|(reason, detail)| format!("{}: {detail}", reason.name()))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn headers_are_read_by_name() {
        let block = b"HTTP/1.0 404 Not Found\nX: y\nno header\ncontent-TYPE:\n text/HTML;\n\
                      \tcharset=\"KOI8-R\"\n\nbody";
        let response = Response::parse(block, 100).unwrap();
        assert_eq!(response.status, 404);
        assert_eq!(&*response.body, b"body");
        assert_eq!(
            parse_content_type(&response.content_type),
            ("text/html".into(), Some("koi8-r".into()))
        );
        assert!(Response::parse(b"<html>", 100).is_err());
        assert!(Response::parse(b"HTTP/1.1 200 OK\r\nA: b", 100).is_err());
    }

    #[test]
    fn chunks_are_joined() {
        let chunked = "Transfer-Encoding: gzip, Chunked\r\n";
        let whole = b"4\r\nWiki\r\n6;x=y\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\n\r\n";
        assert_eq!(body(chunked, whole).unwrap(), b"Wikipedia in \r\n\r\nchunks.");
        assert_eq!(body(chunked, &whole[..20]).unwrap(), b"Wikipedi");
        // The crawler has undone it, or the size is nonsense.
        assert_eq!(body(chunked, b"<p>plain").unwrap(), b"<p>plain");
        for plain in
            [&b"2020\nwas a year of many things"[..], b"face\r\nto face", b"12\r\nshort\r\n"]
        {
            let cut = plain == b"12\r\nshort\r\n" || plain.starts_with(b"face");
            let expected = if cut {
                &plain[plain.iter().position(|b| *b == b'\n').unwrap() + 1..]
            } else {
                plain
            };
            assert_eq!(body(chunked, plain).unwrap(), expected);
        }
        assert_eq!(body(chunked, b"4\r\nWikipedia").unwrap(), b"4\r\nWikipedia");
        assert_eq!(body(chunked, b"4\r\nWiki\r\n<p>more").unwrap(), b"Wiki<p>more");
        assert_eq!(body(chunked, b"ffffffffffffffffff\r\nx").unwrap(), b"ffffffffffffffffff\r\nx");
        assert_eq!(body(chunked, b"ffffffff\r\nx").unwrap(), b"x");
        assert_eq!(body(chunked, b"+4\r\nWiki").unwrap(), b"+4\r\nWiki");
    }

    #[test]
    fn compressed_bodies_are_decompressed_within_bounds() {
        let text = b"<p>some text, some text, some text";
        let with = |encoding: &str, bytes: &[u8]| {
            body(&format!("Content-Encoding: {encoding}\r\n"), bytes)
        };
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(text).unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        raw.write_all(text).unwrap();
        assert_eq!(with("gzip", &gzip(text)).unwrap(), text);
        assert_eq!(with("gzip, X-GZIP", &gzip(&gzip(text))).unwrap(), text);
        assert_eq!(with("deflate", &zlib.finish().unwrap()).unwrap(), text);
        assert_eq!(with("deflate", &raw.finish().unwrap()).unwrap(), text);
        assert_eq!(with("zstd", &zstd::encode_all(&text[..], 3).unwrap()).unwrap(), text);
        for undone in ["gzip", "deflate", "br", "identity"] {
            assert_eq!(with(undone, text).unwrap(), text, "{undone}");
        }
        assert!(with("compress", &[0x1f, 0x9d, 0x80]).unwrap_err().contains("not supported"));
        assert!(with("br", &[0x8b, 0x02, 0x01]).unwrap_err().starts_with("content_encoding"));
        // What the encoder of Node.js makes of the text.
        let brotli = b"\x1b\x21\x00\xf8\x1d\x07\x6e\xec\x1a\xa0\x57\x60\xcd\x9a\x85\xa7\x8c\
            \x4e\xfb\xbc\xc1\xcd\x49\x90\x36\xbc\x58\x2a\x02\x40\x63\xcb\x3d\x00";
        assert_eq!(with("br", brotli).unwrap(), text);
        // No header, another one's name, and a body that is cut.
        assert_eq!(body("", &gzip(text)).unwrap(), text);
        assert_eq!(with("br", &gzip(text)).unwrap(), text);
        let long: Vec<u8> =
            (0..300u32).flat_map(|n| (n * 7919 % 1000).to_string().into_bytes()).collect();
        for whole in [gzip(&long), zstd::encode_all(&long[..], 3).unwrap()] {
            let cut = &whole[..whole.len() - 30];
            match with("gzip", cut) {
                Ok(part) => assert!(!part.is_empty() && long.starts_with(&part)),
                // A Zstandard block is whole or not there.
                Err(error) => assert!(error.starts_with("content_encoding"), "{error}"),
            }
        }
        let block = [b"HTTP/1.1 200 OK\r\n\r\n", &gzip(&long)[..300]].concat();
        assert!(Response::parse(&block, 10_000).unwrap().cut);
        let bomb = gzip(&vec![b'a'; 1 << 20]);
        assert!(with("gzip", &bomb).unwrap_err().starts_with("too_long"));
        assert_eq!(with("gzip", &gzip(&[b'a'; 1000])).unwrap().len(), 1000);
    }
}
