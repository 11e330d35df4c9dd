//! Bytes of unknown encoding to text.
//!
//! In the order of browsers: the byte order mark, then what is declared, then detection. UTF-8 comes
//! before all but the mark, because text in another encoding is almost never valid UTF-8: a text that
//! is UTF-8 but for a few bytes stays UTF-8, and every sequence that means nothing becomes U+FFFD and
//! is counted. Text of seven bits is ASCII, ISO-2022-JP, or in an encoding that browsers do not decode.

mod detect;
mod labels;
mod mojibake;
mod seven_bit;
mod utf8;

use encoding_rs::Encoding;

use crate::document::Reason;
use crate::error::{DataError, Result};
use detect::detect;
use detect::utf16_without_mark;
pub(crate) use detect::{is_utf16, utf16};
use labels::Charset;
pub use mojibake::fix_mojibake;
use utf8::Survey;

/// Too many bytes of a text mean nothing in its encoding.
pub const BAD_ENCODING: Reason = Reason::broken("bad_encoding");
/// A text is in an encoding that is not decoded: HZ, ISO-2022-KR, ISO-2022-CN.
pub const UNDECODABLE: Reason = Reason::broken("undecodable_encoding");
/// The key of the metadata, and of the counts, of texts with U+FFFD for bytes that mean nothing: the
/// share of these bytes.
pub const REPAIRED_ENCODING: &str = "repaired_encoding";
/// The key of the counts of texts that were encoded twice.
pub const FIXED_MOJIBAKE: &str = "fixed_mojibake";

/// So many bad bytes are no reason to drop a text, however short it is: one character that was cut.
const FEW_BAD_BYTES: usize = 3;

/// What becomes of text whose encoding is damaged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncodingOptions {
    /// Undo the encoding of text that was encoded twice, `cafÃ©`.
    pub fix_mojibake: bool,
    /// Largest share of bytes that mean nothing in the encoding of a document, 0 to 1; one with more
    /// is dropped. Up to three bytes are never too many.
    pub max_bad_bytes: f64,
}

impl Default for EncodingOptions {
    fn default() -> Self {
        Self { fix_mojibake: false, max_bad_bytes: 0.05 }
    }
}

impl EncodingOptions {
    /// Checks what the types cannot. `key` is the dotted path of these options.
    ///
    /// # Errors
    /// [`DataError::Config`] when the share is none.
    pub fn validate(&self, key: &str) -> Result<()> {
        if !(0.0..=1.0).contains(&self.max_bad_bytes) {
            let key = format!("{key}.max_bad_bytes");
            return Err(DataError::config(key, self.max_bad_bytes, "0 to 1"));
        }
        Ok(())
    }

    /// Decodes `bytes` as [`decode`] does.
    ///
    /// # Errors
    /// The reason and its detail when too many bytes mean nothing, or the encoding is not decoded.
    pub fn decode(
        &self,
        bytes: &[u8],
        declared: &[&str],
    ) -> std::result::Result<Decoded, (Reason, String)> {
        if let Some(name) = seven_bit::undecodable(bytes) {
            return Err((UNDECODABLE, format!("the text is in {name}, which is not decoded")));
        }
        self.judge(decode(bytes, declared))
    }

    /// Reads bytes that are UTF-8 by the rules of their format.
    ///
    /// # Errors
    /// As [`EncodingOptions::decode`].
    pub fn decode_utf8(&self, bytes: Vec<u8>) -> std::result::Result<Decoded, (Reason, String)> {
        let length = bytes.len();
        let mut decoded = match String::from_utf8(bytes) {
            Ok(text) => whole(text, encoding_rs::UTF_8, length),
            Err(error) => with(encoding_rs::UTF_8, error.as_bytes()),
        };
        if decoded.text.starts_with('\u{feff}') {
            decoded.text.drain(..'\u{feff}'.len_utf8());
        }
        self.judge(decoded)
    }

    fn judge(&self, mut decoded: Decoded) -> std::result::Result<Decoded, (Reason, String)> {
        self.check(&decoded)?;
        if self.fix_mojibake
            && let Some(fixed) = fix_mojibake(&decoded.text)
        {
            decoded.text = fixed;
            decoded.fixed_mojibake = true;
        }
        Ok(decoded)
    }

    /// Whether few enough bytes mean nothing.
    ///
    /// # Errors
    /// The reason and its detail when too many do.
    pub fn check(&self, decoded: &Decoded) -> std::result::Result<(), (Reason, String)> {
        let share = decoded.bad_share();
        if decoded.bad_bytes > FEW_BAD_BYTES && share > self.max_bad_bytes {
            let detail = format!(
                "{} of {} bytes mean nothing in their encoding {}, max_bad_bytes is {}",
                decoded.bad_bytes, decoded.bytes, decoded.encoding, self.max_bad_bytes
            );
            return Err((BAD_ENCODING, detail));
        }
        Ok(())
    }
}

/// `max_bad_bytes` where nobody sets it.
pub(crate) fn default_max_bad_bytes() -> f64 {
    EncodingOptions::default().max_bad_bytes
}

/// Text and the encoding it was decoded from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// The text, without a byte order mark.
    pub text: String,
    /// Name of the encoding (WHATWG, or `IBM437` and `IBM850`), `UTF-8` for example.
    pub encoding: &'static str,
    /// How many bytes mean nothing in that encoding; each sequence of them became U+FFFD.
    pub bad_bytes: usize,
    /// How many bytes there were.
    pub bytes: usize,
    /// The text had been encoded twice, and is not any more.
    pub fixed_mojibake: bool,
}

impl Decoded {
    /// Share of the bytes that mean nothing.
    pub fn bad_share(&self) -> f64 {
        self.bad_bytes as f64 / self.bytes.max(1) as f64
    }

    /// Says in the metadata of a document that its text was repaired, if it was.
    pub fn note(&self, metadata: &mut serde_json::Map<String, serde_json::Value>) {
        if self.bad_bytes > 0 {
            metadata.insert(REPAIRED_ENCODING.to_owned(), self.bad_share().into());
        }
        if self.fixed_mojibake {
            metadata.insert(FIXED_MOJIBAKE.to_owned(), true.into());
        }
    }
}

/// Decodes `bytes`, of which `declared` are the encodings that something says it has, the most
/// trusted one first: an HTTP header, then a `<meta>` tag. Labels that name no encoding count for
/// nothing.
pub fn decode(bytes: &[u8], declared: &[&str]) -> Decoded {
    if let Some(decoded) = with_utf32_mark(bytes) {
        return decoded;
    }
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        return with(encoding, &bytes[length..]);
    }
    if let Some(encoding) = utf16_without_mark(bytes) {
        return with(encoding, bytes);
    }
    let utf8 = Charset::Web(encoding_rs::UTF_8);
    let declared: Vec<Charset> =
        declared.iter().filter_map(|label| Charset::of_label(label)).collect();
    if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
        // Escapes in ASCII, which no other text has.
        let japanese = memchr::memchr(0x1b, bytes).is_some()
            && (declared.first() == Some(&Charset::Web(encoding_rs::ISO_2022_JP))
                || seven_bit::is_iso_2022_jp(bytes));
        return match japanese {
            true => with(encoding_rs::ISO_2022_JP, bytes),
            false => whole(text.to_owned(), encoding_rs::UTF_8, bytes.len()),
        };
    }
    let survey = Survey::of(bytes);
    let says_utf8 = declared.first() == Some(&utf8);
    if survey.is_utf8(says_utf8) {
        return with(encoding_rs::UTF_8, bytes);
    }
    for charset in declared.into_iter().filter(|charset| *charset != utf8) {
        let decoded = in_charset(charset, bytes);
        if decoded.bad_bytes * 10 <= survey.high_bytes {
            return decoded;
        }
    }
    let decoded = in_charset(detect(bytes), bytes);
    let believed = decoded.bad_bytes == 0 && detect::is_plausible(&decoded.text);
    match says_utf8 && !believed {
        true => with(encoding_rs::UTF_8, bytes),
        false => decoded,
    }
}

fn whole(text: String, encoding: &'static Encoding, bytes: usize) -> Decoded {
    Decoded { text, encoding: encoding.name(), bad_bytes: 0, bytes, fixed_mojibake: false }
}

/// `bytes` in `encoding`, what means nothing there as U+FFFD.
fn with(encoding: &'static Encoding, bytes: &[u8]) -> Decoded {
    if encoding == encoding_rs::UTF_8 {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let bad_bytes = bytes.utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
        return Decoded { bad_bytes, ..whole(text, encoding, bytes.len()) };
    }
    in_charset(Charset::Web(encoding), bytes)
}

/// As [`with`], for any encoding but UTF-8.
fn in_charset(charset: Charset, bytes: &[u8]) -> Decoded {
    let (text, lossy) = charset.decode(bytes);
    let bad_bytes = match lossy {
        // A decoder does not say how long a bad sequence was.
        true => text.matches(char::REPLACEMENT_CHARACTER).count().max(1),
        false => 0,
    };
    let whole = whole(text.into_owned(), encoding_rs::UTF_8, bytes.len());
    Decoded { bad_bytes, encoding: charset.name(), ..whole }
}

/// The name of the encoding that `label` means, in a configuration for example; none when it is not
/// known.
pub(crate) fn encoding_of_label(label: &str) -> Option<&'static str> {
    Charset::of_label(label).map(Charset::name)
}

/// UTF-32 with its mark, which begins as that of UTF-16 does.
fn with_utf32_mark(bytes: &[u8]) -> Option<Decoded> {
    let (unit, name): (fn([u8; 4]) -> u32, _) = match bytes {
        [0xff, 0xfe, 0, 0, ..] => (u32::from_le_bytes, "UTF-32LE"),
        [0, 0, 0xfe, 0xff, ..] => (u32::from_be_bytes, "UTF-32BE"),
        _ => return None,
    };
    let (units, rest) = bytes[4..].as_chunks::<4>();
    let mut bad_bytes = rest.len();
    let text = units
        .iter()
        .map(|bytes| {
            char::from_u32(unit(*bytes)).unwrap_or_else(|| {
                bad_bytes += 4;
                char::REPLACEMENT_CHARACTER
            })
        })
        .collect();
    // As UTF-16 it would be half zeros, so what is no UTF-32 is UTF-16 after all.
    let fits = bad_bytes * 4 < bytes.len();
    fits.then_some(Decoded {
        text,
        encoding: name,
        bad_bytes,
        bytes: bytes.len(),
        fixed_mojibake: false,
    })
}

#[cfg(test)]
mod tests;
