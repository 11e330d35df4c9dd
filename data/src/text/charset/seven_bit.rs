//! Encodings of seven bits, which look like ASCII with escapes.

use encoding_rs::ISO_2022_JP;
use memchr::memmem;

/// Fewest bytes in escapes of HZ by which a text is known.
const HZ_BYTES: usize = 8;

/// Whether `bytes` are ISO-2022-JP: ASCII with its escapes, which decode to Japanese.
pub(super) fn is_iso_2022_jp(bytes: &[u8]) -> bool {
    let escapes =
        [b"\x1b$B", b"\x1b$@"].iter().any(|escape| memmem::find(bytes, *escape).is_some());
    let text = || ISO_2022_JP.decode_without_bom_handling_and_without_replacement(bytes);
    let japanese = |c: char| ('\u{3000}'..='\u{9fff}').contains(&c);
    escapes && text().is_some_and(|text| text.contains(japanese))
}

/// The name of an encoding of seven bits that `bytes` are in and that browsers do not decode; none for
/// other text.
pub(super) fn undecodable(bytes: &[u8]) -> Option<&'static str> {
    if memchr::memchr(0x1b, bytes).is_none() && memmem::find(bytes, b"~{").is_none() {
        return None;
    }
    if !bytes.is_ascii() {
        return None;
    }
    let escape = |escape: &[u8]| memmem::find(bytes, escape).is_some();
    match () {
        () if escape(b"\x1b$)C") => Some("ISO-2022-KR"),
        () if escape(b"\x1b$)A") || escape(b"\x1b$)G") => Some("ISO-2022-CN"),
        () if is_hz(bytes) => Some("HZ"),
        () => None,
    }
}

/// Whether all that stands between `~{` and `~}` are characters of GB 2312, each of two bytes.
fn is_hz(bytes: &[u8]) -> bool {
    let mut found = 0;
    let mut rest = bytes;
    while let Some(start) = memmem::find(rest, b"~{") {
        let after = &rest[start + 2..];
        // Characters end with their line.
        let line = memchr::memchr(b'\n', after).unwrap_or(after.len());
        let end = memmem::find(&after[..line], b"~}").unwrap_or(line);
        let (characters, odd) = after[..end].as_chunks::<2>();
        let is_character = |[first, second]: &[u8; 2]| {
            (0x21..=0x77).contains(first) && (0x21..=0x7e).contains(second)
        };
        if !odd.is_empty() || !characters.iter().all(is_character) {
            return false;
        }
        found += 2 * characters.len();
        rest = &after[end..];
    }
    found >= HZ_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_seven_bits_are_told_from_ascii() {
        let japanese = ISO_2022_JP.encode("今日は。").0;
        assert!(is_iso_2022_jp(&japanese));
        assert!(!is_iso_2022_jp(b"plain \x1b[31mred\x1b[0m"));
        assert!(!is_iso_2022_jp(b"\x1b$Bcut"));
        for (bytes, name) in [
            (&b"\x1b$)C\x0e0!\x0f"[..], Some("ISO-2022-KR")),
            (b"\x1b$)A\x0e=;\x0f", Some("ISO-2022-CN")),
            (b"He said ~{VPND~} and ~{WVJ}~}.", Some("HZ")),
            (b"~{VPNDWVJ}", Some("HZ")),
            (b"(format t \"~{~a~^, ~}~%\" list)", None),
            (b"~{x~} a", None),
            (b"~{VPND~} but ~{a b~}", None),
            (b"a ~ b { c }", None),
            (b"plain", None),
        ] {
            assert_eq!(undecodable(bytes), name, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
