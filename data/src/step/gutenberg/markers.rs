//! The lines that tell a book from what Project Gutenberg put around it.
//!
//! The forms are those found in its plain text files since 1991: the modern
//! `*** START OF THE PROJECT GUTENBERG EBOOK … ***`, the `SMALL PRINT` of the years before 2000,
//! and `End of the Project Gutenberg Etext of …`.

/// Lines at the top of a file that may hold a start marker.
const HEADER_LINES: usize = 600;
/// Without a start marker, no line before this one is an end marker.
const FOOTER_FROM_LINE: usize = 100;
/// Paragraphs at the beginning of the book that may be credits.
const CREDIT_PARAGRAPHS: usize = 8;
/// Longest legal section inside a book, in lines.
const LEGAL_LINES: usize = 40;

/// Beginnings of paragraphs that say who made the file.
const CREDITS: [&str; 20] = [
    "produced by",
    "e-text prepared by",
    "etext prepared by",
    "etext produced by",
    "ebook prepared by",
    "ebook produced by",
    "this etext was",
    "this e-text was",
    "this ebook was",
    "this file was",
    "prepared by",
    "scanned by",
    "scanned and proofed by",
    "transcribed by",
    "transcribed from the",
    "html version by",
    "digitized by",
    "credits:",
    "[this file was first posted",
    "online distributed proofreading team",
];

/// Where the book lies in the lines of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// First line of the book.
    pub start: usize,
    /// First line after it.
    pub end: usize,
    /// A line said where the book begins.
    pub start_marked: bool,
    /// A line said where the book ends.
    pub end_marked: bool,
    /// Legal sections inside the book: ranges of lines.
    pub legal: Vec<(usize, usize)>,
}

/// Finds the book in `lines`.
pub(super) fn find_book(lines: &[&str]) -> Bounds {
    let mut bounds = Bounds { end: lines.len(), ..Bounds::default() };
    for (number, line) in lines.iter().enumerate().take(HEADER_LINES) {
        if is_start(line) {
            bounds.start_marked = true;
            bounds.start = number + 1;
            // A long title goes on in the next line.
            let open = !line.trim_end().ends_with('*');
            if open && lines.get(number + 1).is_some_and(|next| next.trim_end().ends_with("***")) {
                bounds.start += 1;
            }
        }
    }
    let header = HEADER_LINES.min(lines.len());
    let from = if bounds.start_marked { bounds.start } else { FOOTER_FROM_LINE };
    let ends = |(number, line): (usize, &&str)| {
        is_end(line) || number >= header && is_small_print_start(line)
    };
    let found = lines.iter().enumerate().skip(from).find(|&(number, line)| ends((number, line)));
    if let Some((number, _)) = found {
        bounds.end = number;
        bounds.end_marked = true;
    }
    bounds.start = skip_credits(&lines[..bounds.end], bounds.start);
    bounds.legal = legal_sections(lines, &bounds);
    bounds
}

/// Stars and spaces before the words of `line`, and the words.
fn stars(line: &str) -> (usize, &str) {
    let words = line.trim_start_matches(|c: char| c == '*' || c.is_whitespace());
    (line.len() - words.len() - line.bytes().take_while(|&b| b == b' ').count(), words.trim_end())
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn contains(text: &str, words: &str) -> bool {
    text.to_ascii_lowercase().contains(words)
}

fn is_start(line: &str) -> bool {
    let (stars, words) = stars(line);
    if stars == 0 {
        return false;
    }
    let modern = stars >= 3 && starts_with(words, "start of") && contains(words, "gutenberg");
    let small_print = starts_with(words, "end") && contains(words, "the small print");
    modern || small_print || is_small_print_start(line)
}

fn is_small_print_start(line: &str) -> bool {
    let (stars, words) = stars(line);
    stars > 0 && starts_with(words, "start") && contains(words, "the small print")
}

fn is_end(line: &str) -> bool {
    // Most lines are prose: look at their first letter alone.
    let first = line.trim_start().bytes().next();
    if !matches!(first, Some(b'*' | b'E' | b'e' | b'T' | b't' | b'F' | b'f')) {
        return false;
    }
    let (_, words) = stars(line);
    let words = strip(words, "this is ");
    let words = strip(words, "the ");
    ["end of ", "ende dieses ", "ende dieser ", "ende des ", "fin de ", "fin du "].iter().any(
        |phrase| {
            let Some(rest) = words.get(phrase.len()..).filter(|_| starts_with(words, phrase))
            else {
                return false;
            };
            let rest = strip(strip(rest, "the "), "this ");
            ["project gutenberg", "projekt gutenberg", "projet gutenberg"]
                .iter()
                .any(|name| starts_with(rest, name))
        },
    )
}

fn strip<'a>(text: &'a str, prefix: &str) -> &'a str {
    if starts_with(text, prefix) { &text[prefix.len()..] } else { text }
}

/// The first line after the credits at the beginning of the book.
fn skip_credits(lines: &[&str], start: usize) -> usize {
    let mut at = start;
    for _ in 0..CREDIT_PARAGRAPHS {
        let Some(paragraph) = (at..lines.len()).find(|&line| !lines[line].trim().is_empty()) else {
            break;
        };
        let words = lines[paragraph].trim();
        if !CREDITS.iter().any(|credit| starts_with(words, credit)) {
            break;
        }
        let blank = (paragraph..lines.len()).find(|&line| lines[line].trim().is_empty());
        at = blank.unwrap_or(lines.len());
    }
    at
}

fn legal_sections(lines: &[&str], bounds: &Bounds) -> Vec<(usize, usize)> {
    let mut sections = Vec::new();
    let mut number = bounds.start;
    while number < bounds.end {
        if starts_with(lines[number].trim_start(), "<<this electronic version of") {
            let last = bounds.end.min(number + LEGAL_LINES);
            let end = (number..last)
                .find(|&line| contains(lines[line], "service that charges for download"));
            if let Some(end) = end {
                sections.push((number, end + 1));
                number = end;
            }
        }
        number += 1;
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_markers_of_all_times() {
        for line in [
            "*** START OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***",
            "***START OF THIS PROJECT GUTENBERG EBOOK X***",
            "  *** START OF THIS PROJECT GUTENBERG EBOOK THE LONG TITLE OF",
            "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***",
            "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
            "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.03.17.02*END*",
        ] {
            assert!(is_start(line), "{line}");
        }
        for line in ["START OF THE PROJECT GUTENBERG", "* * *", "*** The start", "", "*END*"] {
            assert!(!is_start(line), "{line}");
        }
    }

    #[test]
    fn end_markers_of_all_times() {
        for line in [
            "*** END OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***",
            "***END OF THIS PROJECT GUTENBERG EBOOK X***",
            "End of the Project Gutenberg Etext of Moby Dick",
            "End of Project Gutenberg's Moby Dick, by Herman Melville",
            "End of The Project Gutenberg Etext",
            "END OF PROJECT GUTENBERG ETEXT",
            "This is the end of the Project Gutenberg Etext",
            "Ende dieses Projekt Gutenberg Etextes Faust",
        ] {
            assert!(is_end(line), "{line}");
        }
        for line in
            ["End of the Project", "THE END", "the end of the world", "End of Chapter 1", ""]
        {
            assert!(!is_end(line), "{line}");
        }
    }

    #[test]
    fn the_book_is_between_its_markers() {
        let lines = [
            "The Project Gutenberg EBook of X",
            "*** START OF THIS PROJECT GUTENBERG EBOOK A LONG TITLE",
            "THAT GOES ON ***",
            "",
            "Produced by A and the Online",
            "Distributed Proofreading Team at http://www.pgdp.net",
            "",
            "CHAPTER I",
            "<<THIS ELECTRONIC VERSION OF X IS",
            "SERVICE THAT CHARGES FOR DOWNLOAD TIME>>",
            "Text.",
            "End of Project Gutenberg's X",
            "*** END OF THIS PROJECT GUTENBERG EBOOK X ***",
        ];
        let expected = Bounds {
            start: 6,
            end: 11,
            start_marked: true,
            end_marked: true,
            legal: vec![(8, 10)],
        };
        assert_eq!(find_book(&lines), expected);
        let plain = ["a"; 50];
        let whole = Bounds { end: 50, ..Bounds::default() };
        assert_eq!(find_book(&plain), whole);
        // Credits may be all that is left of a header.
        let credits = Bounds { start: 2, end: 4, ..Bounds::default() };
        assert_eq!(find_book(&lines[4..8]), credits);
        // Early lines may quote a marker; a start marker late in the book is none.
        let mut late = vec!["a"; 700];
        late[50] = "End of Project Gutenberg's X";
        late[650] = lines[1];
        assert_eq!(find_book(&late), Bounds { end: 700, ..Bounds::default() });
    }
}
