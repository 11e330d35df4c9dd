//! Lines, white space and letters as Python's `str` has them.
//!
//! The rules of the published pipelines were written for Python, whose notions differ from
//! Rust's: `str.splitlines` knows eleven line ends, `str.strip` and `str.split` also take
//! U+001C to U+001F for white space, `str.isalpha` goes by general category.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// Whether `str.isspace` holds for `c`.
pub fn is_space(c: char) -> bool {
    matches!(c, '\u{1c}'..='\u{1f}') || c.is_whitespace()
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.split()`: words between runs of white space.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Whether `str.splitlines` ends a line at `c`.
pub fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{0b}' | '\u{0c}' | '\u{1c}'
            ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// `str.splitlines()`: lines without their ends, CR LF being one end; no empty last line.
pub fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(at) = find_line_end(rest) else {
            return Some(std::mem::take(&mut rest));
        };
        let (line, end) = rest.split_at(at);
        let length =
            if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        rest = &end[length..];
        Some(line)
    })
}

fn find_line_end(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().find_map(|(at, &byte)| {
        let ends = match byte {
            b'\n' | b'\r' | 0x0b | 0x0c | 0x1c..=0x1e => true,
            0xc2 => bytes.get(at + 1) == Some(&0x85),
            0xe2 => {
                bytes.get(at + 1) == Some(&0x80) && matches!(bytes.get(at + 2), Some(0xa8 | 0xa9))
            }
            _ => false,
        };
        ends.then_some(at)
    })
}

/// Whether `str.isprintable` holds for `c`: neither of category C nor a separator other than the space.
pub fn is_printable(c: char) -> bool {
    use GeneralCategoryGroup::{Other, Separator};
    c == ' ' || !matches!(c.general_category_group(), Other | Separator)
}

/// Whether `str.isalpha` holds for `c`: general category L.
pub fn is_alpha(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphabetic();
    }
    c.general_category_group() == GeneralCategoryGroup::Letter
}

/// Whether `str.isalnum` holds for `c`: general category L, or a character with a decimal, digit
/// or numeric value, taken as category N.
pub fn is_alnum(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric();
    }
    let group = c.general_category_group();
    group == GeneralCategoryGroup::Letter || group == GeneralCategoryGroup::Number
}

/// Whether the regular expression `\d` of Python matches `c`: general category Nd.
pub fn is_decimal_digit(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    c.general_category() == GeneralCategory::DecimalNumber
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_python_ends_them() {
        let lines = |text| split_lines(text).collect::<Vec<_>>();
        assert_eq!(lines("a\nb\r\nc\rd"), ["a", "b", "c", "d"]);
        assert_eq!(lines("a\u{b}b\u{c}c\u{1c}d\u{1d}e\u{1e}f"), ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(lines("a\u{85}b\u{2028}c\u{2029}d\u{1f}e"), ["a", "b", "c", "d\u{1f}e"]);
        assert_eq!(lines("a\n\nb\n"), ["a", "", "b"]);
        assert_eq!(lines("\n"), [""]);
        assert_eq!(lines(""), [""; 0]);
        assert_eq!(lines("é\u{c2}x"), ["é\u{c2}x"]);
    }

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(strip("\u{1c} \ta b\u{1f}\u{a0}\n"), "a b");
        assert_eq!(split("a\u{1d}b  c\u{3000}d ").collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        // Zero width space is none.
        assert_eq!(strip("\u{200b}a"), "\u{200b}a");
    }

    #[test]
    fn letters_and_digits_are_pythons() {
        assert!(is_alpha('é') && is_alpha('中') && is_alpha('ª') && !is_alpha('1'));
        // A combining vowel sign is alphabetic to Rust, not to Python.
        assert!('\u{903}'.is_alphabetic() && !is_alpha('\u{903}'));
        assert!(is_alnum('²') && is_alnum('Ⅷ') && is_alnum('１') && !is_alnum('_'));
        assert!(is_decimal_digit('１') && is_decimal_digit('٣') && !is_decimal_digit('²'));
    }
}
