//! Superscripts and subscripts in plain text: 10<sup>23</sup> is not 1023.
//!
//! Most of them need no mark: H₂O is `H2O`, 1ˢᵗ is `1st`. Where the digits of a number would run into
//! those beside it, or a power would look like an index, a `^` or `_` keeps them apart.

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// `<sup>`.
    Super,
    /// `<sub>`.
    Sub,
}

/// Bytes before a script that are looked at: emphasis may stand between.
const BEFORE_BYTES: usize = 8;
/// Endings of ordinal numbers and abbreviations, which are part of the word before them.
const ORDINALS: &[&str] = &[
    "a", "as", "da", "de", "do", "e", "ed", "eme", "er", "ers", "ere", "es", "ième", "ème", "ère",
    "ma", "me", "nd", "nda", "nde", "ndo", "o", "os", "ra", "rd", "re", "ro", "st", "ta", "te",
    "th", "to", "º", "ª", "ste", "va", "vo",
];

/// What is written before the script with `content` that follows `before` directly. `content` may
/// have markup in it.
pub(crate) fn mark_before(script: Script, before: &str, content: &str) -> &'static str {
    let start = before.floor_char_boundary(before.len().saturating_sub(BEFORE_BYTES));
    let before = before[start..].trim_end_matches(['\'', '*']).chars().next_back().unwrap_or(' ');
    let content = content.trim_start().trim_start_matches('\'');
    let signs = ['-', '+', '−', '–', '±', '∓'];
    let unsigned = content.strip_prefix("&minus;").unwrap_or(content).trim_start_matches(signs);
    let digit = unsigned.starts_with(|c: char| c.is_ascii_digit());
    let signed = unsigned.len() < content.len();
    match script {
        Script::Super if before.is_ascii_digit() => {
            let word = content.trim_end_matches([' ', '\'', '.']).to_lowercase();
            let letter = unsigned.starts_with(char::is_alphanumeric);
            let power = digit || letter && !ORDINALS.contains(&word.as_str());
            if power || signed { "^" } else { "" }
        }
        Script::Super if digit && (before.is_alphabetic() || ")]}".contains(before)) => "^",
        // A charge: Na+.
        Script::Super => "",
        Script::Sub if digit && before.is_ascii_digit() => "_",
        Script::Sub => "",
    }
}

/// What is written behind a script, where `before` is all up to its end and `after` follows.
pub(crate) fn mark_after(before: &str, after: &str) -> &'static str {
    let digits = before.ends_with(|c: char| c.is_ascii_digit())
        && after.starts_with(|c: char| c.is_ascii_digit());
    if digits { " " } else { "" }
}

/// Whether what follows a superscript makes it the numerator of a fraction, `<sup>1</sup>/<sub>2`.
pub(crate) fn is_fraction(after: &str) -> bool {
    after.strip_prefix(['/', '⁄', '∕']).is_some_and(|rest| {
        let rest = rest.trim_start();
        rest.is_empty() || rest.get(..4).is_some_and(|tag| tag.eq_ignore_ascii_case("<sub"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_what_they_are() {
        for (before, content, mark) in [
            ("6.022 × 10", "23", "^"),
            ("10", "−3", "^"),
            ("10", "&minus;3", "^"),
            ("10", "-3", "^"),
            ("2", "''n''", "^"),
            ("2", "10", "^"),
            ("''x''", "2", "^"),
            ("(a + b)", "2", "^"),
            ("km", "2", "^"),
            ("Ca", "2+", "^"),
            ("SO4", "2−", "^"),
            ("21", "st", ""),
            ("1", "er", ""),
            ("XX", "e", ""),
            ("M", "me", ""),
            ("Na", "+", ""),
            (" ", "14", ""),
            ("a note", "[1]", ""),
        ] {
            assert_eq!(mark_before(Script::Super, before, content), mark, "{before} {content}");
        }
        for (before, content, mark) in
            [("H", "2", ""), ("E", "k", ""), ("1010", "2", "_"), ("10", "n", ""), ("x", "i", "")]
        {
            assert_eq!(mark_before(Script::Sub, before, content), mark, "{before} {content}");
        }
        assert_eq!(mark_after("log2", "8"), " ");
        assert_eq!(mark_after("H2", "O"), "");
        assert!(is_fraction("/<sub>2</sub>") && is_fraction("⁄<SUB>2") && !is_fraction("/2"));
    }
}
