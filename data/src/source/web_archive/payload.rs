//! Whether a body is text at all, whatever the server says of it.

use crate::text::charset::is_utf16;

/// What files begin with that are no text.
const MAGIC: &[&[u8]] = &[
    b"%PDF-",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"Rar!\x1a\x07",
    b"7z\xbc\xaf\x27\x1c",
    b"\x1f\x8b\x08",
    b"\x1f\x9d",
    b"BZh",
    b"\xfd7zXZ\0",
    b"\x28\xb5\x2f\xfd",
    b"\x7fELF",
    b"MZ\x90\0",
    b"\xca\xfe\xba\xbe",
    b"\xfe\xed\xfa",
    b"\xcf\xfa\xed\xfe",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    b"{\\rtf",
    b"%!PS",
    b"\xc5\xd0\xd3\xc6",
    b"ID3",
    b"OggS",
    b"fLaC",
    b"RIFF",
    b"FLV\x01",
    b"FWS",
    b"CWS",
    b"ZWS",
    b"\x1a\x45\xdf\xa3",
    b"\0\0\x01\xba",
    b"\0\0\x01\xb3",
    b"\0\0\x01\0",
    b"\0\0\x02\0",
    b"II*\0",
    b"MM\0*",
    b"8BPS",
    b"wOFF",
    b"wOF2",
    b"OTTO",
    b"\0\x01\0\0\0",
    b"\0asm",
    b"SQLite format 3\0",
    b"!<arch>",
    b"\xed\xab\xee\xdb",
    b"dex\n03",
    b"AT&TFORM",
    b"ITSF",
    b"MSCF",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
];

/// Bytes that are looked at for control characters.
const BYTES: usize = 1 << 13;

/// Whether `body` is a picture, an archive, a program or another file that is not text.
pub(super) fn is_binary(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    // Pages may have a blank line before the document they are.
    let magic =
        |magic: &&[u8]| body.starts_with(magic) || magic[0] == b'%' && start.starts_with(magic);
    if MAGIC.iter().any(magic) || body.get(4..8) == Some(b"ftyp") {
        return true;
    }
    if body.get(257..262) == Some(b"ustar") {
        return true;
    }
    let start = &body[..body.len().min(BYTES)];
    // Text in UTF-16 has a zero in every character of ASCII; of other controls it has none either.
    let control = |byte: &&u8| matches!(**byte, 1..=8 | 0xb | 0xe..=0x1a | 0x1c..=0x1f | 0x7f);
    !is_utf16(start) && start.iter().filter(control).count() * 20 > start.len()
}

/// Whether the type that the crawler found a body to be of is none of text. An empty one is nothing.
pub(super) fn is_no_text(identified: &str) -> bool {
    let kind = identified.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some((main, sub)) = kind.split_once('/') else { return false };
    match main {
        "text" | "message" | "multipart" | "unk" | "no-type" | "x-unknown" => false,
        "image" => sub != "svg+xml",
        "application" => ![
            "xml",
            "xhtml",
            "html",
            "json",
            "javascript",
            "ecmascript",
            "php",
            "x-sh",
            "x-tex",
            "x-latex",
            "yaml",
            "toml",
            "x-perl",
            "x-python",
            "x-ruby",
        ]
        .iter()
        .any(|text| sub.contains(text)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_text_are_seen() {
        for body in [
            &b"%PDF-1.4\n%\xe2\xe3"[..],
            b"\r\n%PDF-1.4",
            b"\x89PNG\r\n\x1a\n",
            b"PK\x03\x04\x14\0",
            b"\0\0\0\x20ftypisom",
            b"\x01\x02\x03\x04\x05\x06text\x0e",
        ] {
            assert!(is_binary(body), "{body:?}");
        }
        let utf16: Vec<u8> =
            "Привет, мир и всё\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for body in [&b"<html>"[..], b"", b"plain \x1b[0m text", b"I like PDF", &utf16] {
            assert!(!is_binary(body), "{body:?}");
        }
    }

    #[test]
    fn types_that_are_no_text_are_known() {
        for kind in ["application/pdf", "image/jpeg", "video/mp4", "application/octet-stream"] {
            assert!(is_no_text(kind), "{kind}");
        }
        for kind in ["", "text/html; charset=x", "application/xhtml+xml", "image/svg+xml", "text"] {
            assert!(!is_no_text(kind), "{kind}");
        }
    }
}
