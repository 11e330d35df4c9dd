//! What the names and first lines of Project Gutenberg files say.

use std::collections::BTreeMap;

use memchr::memmem;

use crate::source::input::InputReader;

/// Bytes of a file in which its header is looked for.
const HEADER_BYTES: usize = 8 << 10;

/// What the name of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BookName {
    /// The name without its folder and endings.
    pub stem: String,
    /// Number of the book at Project Gutenberg.
    pub number: Option<u64>,
    /// How good the encoding is: 0 is UTF-8, 1 has 8 bits, 2 is what the name does not say.
    pub rank: u8,
}

impl BookName {
    /// Reads `path`: `1342-0.txt`, `1342-8.zip`, `pg1342.txt.utf8`, `moby.txt.gz`.
    pub fn parse(path: &str) -> Self {
        let name = InputReader::uncompressed_name(path).rsplit('/').next().unwrap_or_default();
        let mut stem = name;
        for ending in [".utf8", ".utf-8", ".txt", ".zip", ".epub"] {
            let start = stem.len().saturating_sub(ending.len());
            if stem.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(ending)) {
                stem = &stem[..start];
            }
        }
        let (digits, rank) = match (stem.strip_suffix("-0"), stem.strip_suffix("-8")) {
            (Some(rest), _) => (rest, 0),
            (None, Some(rest)) => (rest, 1),
            // The site's own file names: always UTF-8.
            _ => stem.strip_prefix("pg").map_or((stem, 2), |rest| (rest, 0)),
        };
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = if whole { digits.parse().ok() } else { None };
        Self { stem: stem.to_owned(), number, rank: if number.is_some() { rank } else { 2 } }
    }
}

/// Keeps, of the files of one book, the one in the best encoding, the first of equals.
pub(super) fn best_of_each_book<T>(files: Vec<T>, name: impl Fn(&T) -> &str) -> Vec<T> {
    let mut best: BTreeMap<u64, (u8, usize)> = BTreeMap::new();
    let parsed: Vec<BookName> = files.iter().map(|file| BookName::parse(name(file))).collect();
    for (index, file) in parsed.iter().enumerate() {
        if let Some(number) = file.number {
            let entry = best.entry(number).or_insert((file.rank, index));
            *entry = (*entry).min((file.rank, index));
        }
    }
    let kept = |index: usize| match parsed[index].number {
        Some(number) => best[&number].1 == index,
        None => true,
    };
    files.into_iter().enumerate().filter_map(|(at, file)| kept(at).then_some(file)).collect()
}

/// The encoding a header declares: `Character set encoding: ISO-8859-1`.
pub(super) fn declared_encoding(bytes: &[u8]) -> Option<String> {
    let header = &bytes[..bytes.len().min(HEADER_BYTES)];
    let key = b"haracter set encoding:";
    let start = memmem::find(header, key)? + key.len();
    let line = header[start..].split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let label = String::from_utf8_lossy(line).trim().to_ascii_lowercase();
    Some(if label.contains("latin") { "iso-8859-1".to_owned() } else { label })
}

/// The number a header gives the book: `[EBook #1342]`.
pub(super) fn number_in_header(text: &str) -> Option<u64> {
    let mut end = text.len().min(HEADER_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let header = text[..end].to_ascii_lowercase();
    ["[ebook #", "[e-book #", "[etext #", "[e-text #", "[etext# "].iter().find_map(|key| {
        let start = header.find(key)? + key.len();
        let digits = header[start..].split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_number_and_encoding() {
        for (path, stem, number, rank) in [
            ("1/1342-0.txt", "1342-0", Some(1342), 0),
            ("1342-8.ZIP", "1342-8", Some(1342), 1),
            ("1342.txt.gz", "1342", Some(1342), 2),
            ("pg1342.txt.utf8", "pg1342", Some(1342), 0),
            ("moby-8.txt", "moby-8", None, 2),
            ("pg.txt", "pg", None, 2),
            ("A Book.epub.txt", "A Book", None, 2),
            ("99999999999999999999999.txt", "99999999999999999999999", None, 2),
        ] {
            let expected = BookName { stem: stem.into(), number, rank };
            assert_eq!(BookName::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn the_best_file_of_a_book_is_kept() {
        let files = vec!["1-8.txt", "1.txt", "x.txt", "x.txt.gz", "2.txt", "2/2.txt", "pg1.txt"];
        let kept = best_of_each_book(files, |name| name);
        assert_eq!(kept, ["x.txt", "x.txt.gz", "2.txt", "pg1.txt"]);
    }

    #[test]
    fn headers_are_read() {
        let header = "Title: é\r\nRelease Date: 2001 [EBook #2701]\r\n\
                      Character set encoding: ISO Latin-1\r\n";
        assert_eq!(declared_encoding(header.as_bytes()).as_deref(), Some("iso-8859-1"));
        assert_eq!(number_in_header(header), Some(2701));
        assert_eq!(number_in_header("[Etext #x] and more"), None);
        assert_eq!(number_in_header(&"é".repeat(HEADER_BYTES)), None);
    }
}
