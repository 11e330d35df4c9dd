//! CCNet's normal forms of text, and its hash of a paragraph.
//!
//! Two forms (facebookresearch/cc_net, `text_normalizer.py` and `dedup.py`, whose behaviour this
//! follows; a paragraph there is a line):
//! - [`normalize_for_dedup`]: paragraphs that differ in case, digits, typographic marks or control
//!   characters only become equal. [`ParagraphHasher`] hashes this form.
//! - [`normalize`]: what the n-gram language model sees.
//!
//! For ASCII the two are the same: lower case, digits to `0`, control characters deleted.

use sha1::{Digest, Sha1};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::python;

/// Hash of a paragraph of which [`normalize_for_dedup`] leaves nothing.
pub const EMPTY_PARAGRAPH: u64 = 957_977_401_221_134_810;

/// The form in which paragraphs are compared: stripped, lower case, decimal digits to `0`, the
/// typographic marks and the control characters U+0000 to U+001F and U+007F to U+009F deleted.
/// ASCII punctuation and accents stay.
pub fn normalize_for_dedup(line: &str) -> String {
    let mut normalized = Vec::new();
    normalize_for_dedup_into(line, &mut normalized);
    into_string(normalized)
}

/// The form the language model sees: stripped, lower case, without accents (NFD less the
/// category Mn), decimal digits to `0`, typographic marks to ASCII, control characters deleted.
/// Line feeds are control characters: a document becomes one line.
pub fn normalize(text: &str) -> String {
    let text = python::strip(text);
    let mut normalized = Vec::with_capacity(text.len());
    let lowered;
    let mut rest = match lower_in_context(text) {
        Some(text) => {
            lowered = text;
            lowered.as_str()
        }
        None => text,
    };
    while !rest.is_empty() {
        // Characters of ASCII are starters of their own, so NFD never reaches across them.
        let ascii = rest.bytes().position(|byte| !byte.is_ascii()).unwrap_or(rest.len());
        let (run, after) = rest.split_at(ascii);
        push_ascii(run.as_bytes(), &mut normalized);
        let other = after.bytes().position(|byte| byte.is_ascii()).unwrap_or(after.len());
        let (run, after) = after.split_at(other);
        for c in run.chars().flat_map(char::to_lowercase).nfd() {
            push_for_model(c, &mut normalized);
        }
        rest = after;
    }
    into_string(normalized)
}

/// Hashes paragraphs: the first 8 bytes of the SHA-1 of the normal form, as a little-endian
/// number. Keeps its buffer from one paragraph to the next.
#[derive(Debug, Default)]
pub struct ParagraphHasher {
    normalized: Vec<u8>,
}

impl ParagraphHasher {
    /// The hash of `line`, in any spelling [`normalize_for_dedup`] does not tell apart.
    pub fn hash(&mut self, line: &str) -> u64 {
        self.normalized.clear();
        normalize_for_dedup_into(line, &mut self.normalized);
        if self.normalized.is_empty() {
            return EMPTY_PARAGRAPH;
        }
        let digest = Sha1::digest(&self.normalized);
        digest.iter().take(8).rev().fold(0, |hash, &byte| hash << 8 | u64::from(byte))
    }
}

/// Appends the normal form of `line`; what is appended is UTF-8.
fn normalize_for_dedup_into(line: &str, out: &mut Vec<u8>) {
    let line = python::strip(line);
    if line.is_ascii() {
        return push_ascii(line.as_bytes(), out);
    }
    let lowered;
    let line = match lower_in_context(line) {
        Some(line) => {
            lowered = line;
            lowered.as_str()
        }
        None => line,
    };
    out.reserve(line.len());
    let mut buffer = [0; 4];
    for c in line.chars() {
        match c {
            '\u{20}'..='\u{7e}' => out.push(map_ascii(c as u8)),
            '\0'..='\u{9f}' => {}
            _ if is_digit(c) => out.push(b'0'),
            _ if ascii_of_mark(c).is_some() => {}
            _ => {
                for lower in c.to_lowercase() {
                    out.extend_from_slice(lower.encode_utf8(&mut buffer).as_bytes());
                }
            }
        }
    }
}

/// The text in lower case if that depends on neighbours: the Greek sigma at the end of a word.
fn lower_in_context(text: &str) -> Option<String> {
    text.contains('Σ').then(|| text.to_lowercase())
}

/// ASCII letters to lower case, digits to `0`.
fn map_ascii(byte: u8) -> u8 {
    if byte.is_ascii_digit() { b'0' } else { byte.to_ascii_lowercase() }
}

/// Appends the normal form of ASCII text.
fn push_ascii(text: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    // Two loops without branches, which the compiler vectorises; control characters are rare.
    out.extend(text.iter().map(|&byte| map_ascii(byte)));
    let control = text.iter().fold(false, |found, byte| found | byte.is_ascii_control());
    if control {
        let mut kept = start;
        for at in start..out.len() {
            let byte = out[at];
            out[kept] = byte;
            kept += usize::from(!byte.is_ascii_control());
        }
        out.truncate(kept);
    }
}

fn push_for_model(c: char, out: &mut Vec<u8>) {
    match c {
        '\u{20}'..='\u{7e}' => out.push(map_ascii(c as u8)),
        '\0'..='\u{9f}' => {}
        _ if is_digit(c) => out.push(b'0'),
        _ if c >= '\u{300}' && c.general_category() == GeneralCategory::NonspacingMark => {}
        _ => match ascii_of_mark(c) {
            Some(ascii) => out.extend_from_slice(ascii.as_bytes()),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        },
    }
}

/// Whether a character beyond ASCII is a decimal digit.
fn is_digit(c: char) -> bool {
    // No decimal digit lies in these ranges, where most text is.
    !matches!(c, ..'\u{660}' | '\u{2000}'..='\u{a61f}' | '\u{ac00}'..='\u{fe6f}')
        && python::is_decimal_digit(c)
}

/// The typographic marks CCNet takes out, and what it writes for them where it does not. Its
/// list also has the full-width digit one, which is a `0` by the time the marks are looked at.
fn ascii_of_mark(c: char) -> Option<&'static str> {
    Some(match c {
        '，' | '、' => ",",
        '。' => ".",
        '„' | '”' | '“' | '«' | '»' | '」' | '「' | '《' | '》' => "\"",
        '´' | '’' => "'",
        '∶' | '：' => ":",
        '？' => "?",
        '！' => "!",
        '（' => "(",
        '）' => ")",
        '；' => ";",
        '–' | '━' | '►' => "-",
        '—' => " - ",
        '．' => ". ",
        '～' => "~",
        '…' => "...",
        '〈' => "<",
        '〉' => ">",
        '【' => "[",
        '】' => "]",
        '％' => "%",
        _ => return None,
    })
}

fn into_string(bytes: Vec<u8>) -> String {
    // Only whole characters are ever appended, so nothing is replaced.
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Computed with cc_net's own rules in Python.
    const GOLDEN: [(&str, &str, u64); 8] = [
        ("", "", 957977401221134810),
        ("_Hello", "_hello", 728622142312897056),
        ("Read More…", "read more", 7649447560318723417),
        ("Call 555-1234 now!", "call 000-0000 now!", 3378084658456847375),
        ("  Tabs\tand\u{b}VT  ", "tabsandvt", 6429263285723926801),
        ("１２３", "000", 11531306602475876234),
        ("“Quoted” – text", "quoted  text", 12478443008919966080),
        (
            "Copyright © 2019 Acme. All rights reserved.",
            "copyright © 0000 acme. all rights reserved.",
            670903323261710824,
        ),
    ];

    #[test]
    fn paragraphs_hash_as_in_cc_net() {
        let mut hasher = ParagraphHasher::default();
        for (line, normalized, hash) in GOLDEN {
            assert_eq!(normalize_for_dedup(line), normalized);
            assert_eq!(hasher.hash(line), hash, "{line:?}");
        }
        assert_eq!(hasher.hash(" … \u{1f}"), EMPTY_PARAGRAPH);
    }

    #[test]
    fn case_follows_python() {
        assert_eq!(normalize_for_dedup("ΟΔΟΣ ΣΑΣ"), "οδος σας");
        assert_eq!(normalize_for_dedup("Ärger İ ǅ ẞ"), "ärger i̇ ǆ ß");
        assert_eq!(normalize_for_dedup("\u{85}a\u{9f}b\u{a0}"), "ab");
        assert_eq!(normalize_for_dedup("०१٣ 𝟙 ²½"), "000 0 ²½");
    }

    #[test]
    fn the_model_sees_one_line_without_accents() {
        assert_eq!(normalize(" Él dijo:\n“Ça va… 12％”—№ 4 "), "el dijo:\"ca va... 00%\" - № 0");
        assert_eq!(normalize("Ngày ０１．０２"), "ngay 00. 00");
        assert_eq!(normalize("한국 〈ｶﾞ〉 й"), "한국 <ｶﾞ> и".nfd().collect::<String>());
        assert_eq!(normalize("\u{2329}x\u{301}\u{316}y"), "<xy");
    }

    /// Python's definition, character by character and without short cuts.
    fn slow(line: &str) -> String {
        let lower = python::strip(line).to_lowercase();
        lower
            .chars()
            .map(|c| if python::is_decimal_digit(c) { '0' } else { c })
            .filter(|&c| ascii_of_mark(c).is_none() && !c.is_control())
            .collect()
    }

    #[test]
    fn no_character_takes_a_wrong_short_cut() {
        for c in '\0'..=char::MAX {
            if !c.is_ascii() {
                assert_eq!(is_digit(c), python::is_decimal_digit(c), "{c:?}");
            }
            let line = format!("a{c}b");
            assert_eq!(normalize_for_dedup(&line), slow(&line), "{c:?}");
        }
    }

    proptest! {
        #[test]
        fn short_cuts_change_nothing(line in "\\PC*|[ -~\t\r]*|[a-zΑ-ω0-9…“”é\u{300} ]*") {
            prop_assert_eq!(normalize_for_dedup(&line), slow(&line));
            let model: String = python::strip(&line)
                .to_lowercase()
                .nfd()
                .filter(|c| c.general_category() != GeneralCategory::NonspacingMark)
                .map(|c| if python::is_decimal_digit(c) { '0' } else { c })
                .map(|c| ascii_of_mark(c).map_or(c.to_string(), str::to_owned))
                .collect::<String>()
                .chars()
                .filter(|c| !c.is_control())
                .collect();
            prop_assert_eq!(normalize(&line), model);
        }
    }
}
