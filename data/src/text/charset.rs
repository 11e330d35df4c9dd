//! Bytes of unknown encoding to text.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::Encoding;

/// Bytes the detector looks at; more does not change its guess.
const DETECTOR_BYTES: usize = 1 << 20;

/// Text and the encoding it was decoded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The text, without a byte order mark.
    pub text: String,
    /// Name of the encoding (WHATWG), `UTF-8` for example.
    pub encoding: &'static str,
    /// Whether bytes that mean nothing in that encoding became U+FFFD.
    pub lossy: bool,
}

/// Decodes `bytes`: by their byte order mark, as valid UTF-8, by the first of `declared` that is
/// the label of an encoding (an HTTP header, then a `<meta>` tag) and fits without an error, by
/// detection, in this order.
///
/// Valid UTF-8 goes before the declaration: text in another encoding is almost never valid
/// UTF-8, and declarations are often wrong.
pub fn decode(bytes: &[u8], declared: &[&str]) -> Decoded {
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        return with(encoding, &bytes[length..]);
    }
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        return Decoded { text: text.to_owned(), encoding: "UTF-8", lossy: false };
    }
    for label in declared {
        if let Some(encoding) = Encoding::for_label(label.trim().as_bytes()) {
            let decoded = with(encoding, bytes);
            if !decoded.lossy {
                return decoded;
            }
        }
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(&bytes[..bytes.len().min(DETECTOR_BYTES)], bytes.len() <= DETECTOR_BYTES);
    with(detector.guess(None, Utf8Detection::Allow), bytes)
}

fn with(encoding: &'static Encoding, bytes: &[u8]) -> Decoded {
    let (text, lossy) = encoding.decode_without_bom_handling(bytes);
    Decoded { text: text.into_owned(), encoding: encoding.name(), lossy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_win_then_utf8_then_the_declaration() {
        let utf16 = b"\xff\xfeh\x00\xf6\x00";
        assert_eq!(decode(utf16, &[]).text, "hö");
        assert_eq!(decode("\u{feff}höhe".as_bytes(), &["latin1"]).text, "höhe");
        assert_eq!(decode("höhe".as_bytes(), &["latin1"]).text, "höhe");
        let latin = decode(b"h\xf6he", &["nonsense", "iso-8859-1"]);
        assert_eq!((latin.text.as_str(), latin.encoding), ("höhe", "windows-1252"));
        let cyrillic = decode(b"\xcf\xf0\xe8\xe2\xe5\xf2, \xec\xe8\xf0", &["windows-1251"]);
        assert_eq!(cyrillic.text, "Привет, мир");
    }

    #[test]
    fn undeclared_text_is_detected() {
        let text = "Il a été décidé que la fête aurait lieu à Noël, près du château.";
        let latin: Vec<u8> = text.chars().map(|c| u8::try_from(c as u32).unwrap_or(b'?')).collect();
        let decoded = decode(&latin, &[]);
        assert_eq!(decoded.text, text);
        assert!(!decoded.lossy);
    }

    #[test]
    fn a_declaration_that_does_not_fit_is_not_believed() {
        // Not valid Shift_JIS, nor UTF-8.
        let decoded = decode(b"caf\xe9 \xe0 la carte \xfd", &["utf-8", "euc-kr"]);
        assert!(decoded.text.starts_with("café à"), "{decoded:?}");
    }
}
