//! What the header of a Project Gutenberg file says about the book.

/// Lines of a file without markers in which fields are looked for.
pub(super) const FIELD_LINES: usize = 60;
/// Longest value of a field, in bytes.
const LONGEST_VALUE: usize = 1000;

/// Languages as Project Gutenberg writes them, and their ISO 639-1 codes.
const LANGUAGES: [(&str, &str); 36] = [
    ("afrikaans", "af"),
    ("arabic", "ar"),
    ("bulgarian", "bg"),
    ("catalan", "ca"),
    ("chinese", "zh"),
    ("czech", "cs"),
    ("danish", "da"),
    ("dutch", "nl"),
    ("english", "en"),
    ("esperanto", "eo"),
    ("estonian", "et"),
    ("finnish", "fi"),
    ("french", "fr"),
    ("frisian", "fy"),
    ("galician", "gl"),
    ("german", "de"),
    ("greek", "el"),
    ("hebrew", "he"),
    ("hungarian", "hu"),
    ("icelandic", "is"),
    ("irish", "ga"),
    ("italian", "it"),
    ("japanese", "ja"),
    ("latin", "la"),
    ("norwegian", "no"),
    ("polish", "pl"),
    ("portuguese", "pt"),
    ("romanian", "ro"),
    ("russian", "ru"),
    ("serbian", "sr"),
    ("slovenian", "sl"),
    ("spanish", "es"),
    ("swedish", "sv"),
    ("tagalog", "tl"),
    ("ukrainian", "uk"),
    ("welsh", "cy"),
];

/// Fields of a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub title: Option<String>,
    pub author: Option<String>,
    /// ISO 639-1 code.
    pub language: Option<&'static str>,
    pub release_date: Option<String>,
    /// Year of the original publication.
    pub year: Option<u32>,
}

/// Reads the fields in `lines`.
pub(super) fn read_header(lines: &[&str]) -> Header {
    let mut header = Header::default();
    let mut number = 0;
    while number < lines.len() {
        let line = lines[number].trim_start_matches('\u{feff}');
        number += 1;
        if header.title.is_none()
            && let Some((title, author)) = first_line(line)
        {
            header.title = Some(title.to_owned());
            header.author = author.map(str::to_owned);
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        let key = key.trim_matches(|c: char| c == '*' || c.is_whitespace());
        if key.len() > 30 || value.trim().is_empty() {
            continue;
        }
        // A value goes on in indented lines.
        let mut value = value.trim().to_owned();
        while let Some(more) = lines.get(number)
            && more.starts_with([' ', '\t'])
            && !more.trim().is_empty()
            && value.len() < LONGEST_VALUE
        {
            value.push(' ');
            value.push_str(more.trim());
            number += 1;
        }
        match key.to_ascii_lowercase().as_str() {
            "title" => header.title = Some(value),
            "author" | "authors" => header.author = Some(value),
            "language" => header.language = language_code(&value),
            "release date" => {
                let date = value.split('[').next().unwrap_or_default().trim();
                header.release_date = Some(date.to_owned()).filter(|date| !date.is_empty());
            }
            "original publication" => header.year = last_year(&value),
            _ => {}
        }
    }
    header
}

/// Title and author in `The Project Gutenberg Etext of Moby Dick, by Herman Melville`.
fn first_line(line: &str) -> Option<(&str, Option<&str>)> {
    let line = line.trim_matches(|c: char| c == '*' || c.is_whitespace());
    let lower = line.to_ascii_lowercase();
    let start = lower.find("project gutenberg").filter(|&at| at <= "this is the ".len())?;
    let of = start + lower[start..].find(" of ").filter(|&at| at <= 40)?;
    let rest = line[of + 4..].trim_matches(|c: char| c == '*' || c.is_whitespace());
    let (title, author) = match rest.to_ascii_lowercase().rfind(", by ") {
        Some(at) => (&rest[..at], Some(rest[at + 5..].trim())),
        None => (rest, None),
    };
    (!title.is_empty()).then_some((title, author.filter(|author| !author.is_empty())))
}

fn language_code(value: &str) -> Option<&'static str> {
    let first = value.split([',', ';', '/', '&']).next()?.trim().to_ascii_lowercase();
    let first = first.split(' ').next()?;
    let found = LANGUAGES.binary_search_by(|(name, _)| (*name).cmp(first)).ok()?;
    Some(LANGUAGES[found].1)
}

/// The last number of four digits that may be a year.
fn last_year(value: &str) -> Option<u32> {
    let numbers = value.split(|c: char| !c.is_ascii_digit()).filter(|digits| digits.len() == 4);
    numbers.filter_map(|digits| digits.parse().ok()).rfind(|year| (1400..2100).contains(year))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        assert!(LANGUAGES.is_sorted());
        let lines = [
            "\u{feff}The Project Gutenberg EBook of Moby Dick; or The Whale, by Herman Melville",
            "",
            "Title: Moby Dick;",
            "       or, The Whale",
            "",
            "Author: Herman Melville",
            "Release Date: July, 2001 [EBook #2701]",
            "Language: English",
            "Original publication: New York: Harper, 1851",
            "Note: see [1]",
        ];
        let header = read_header(&lines);
        assert_eq!(header.title.unwrap(), "Moby Dick; or, The Whale");
        assert_eq!(header.author.unwrap(), "Herman Melville");
        assert_eq!((header.language, header.year), (Some("en"), Some(1851)));
        assert_eq!(header.release_date.unwrap(), "July, 2001");
    }

    #[test]
    fn old_headers_have_a_first_line() {
        for (line, expected) in [
            (
                "***The Project Gutenberg Etext of Moby Dick, by Herman Melville***",
                Some(("Moby Dick", Some("Herman Melville"))),
            ),
            ("The Project Gutenberg Etext of Faust", Some(("Faust", None))),
            (
                "Project Gutenberg's Etext of Emma, by Jane Austen",
                Some(("Emma", Some("Jane Austen"))),
            ),
            ("Some words on Project Gutenberg and a lot of text", None),
            ("Chapter I", None),
        ] {
            assert_eq!(first_line(line), expected, "{line}");
        }
        assert_eq!(language_code("French and English"), Some("fr"));
        assert_eq!(language_code("Klingon"), None);
    }
}
