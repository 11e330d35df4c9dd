//! What is written around a book beside its markers: notes of the site that has the file, and credits.

use super::markers::contains;

/// Paragraphs at the beginning of the book that may be credits.
const CREDIT_PARAGRAPHS: usize = 8;
/// Longest paragraph of credits, in lines, that is known by what it names alone.
const CREDIT_LINES: usize = 12;
/// Longest header of the sites in Australia and Canada, in lines.
const SITE_HEADER_LINES: usize = 150;
/// Lines at the end of a file that may hold what those sites write there.
const SITE_FOOTER_LINES: usize = 40;

/// Beginnings of paragraphs that say who made the file, or which other versions of it there are.
const CREDITS: [&str; 62] = [
    "produced by",
    "e-text prepared by",
    "etext prepared by",
    "etext produced by",
    "e-text produced by",
    "ebook prepared by",
    "ebook produced by",
    "this etext was",
    "this e-text was",
    "this ebook was",
    "this e-book was",
    "this file was",
    "this book was produced",
    "prepared by",
    "scanned by",
    "scanned and proofed by",
    "transcribed by",
    "transcribed from the",
    "html version by",
    "digitized by",
    "digitised by",
    "proofread by",
    "proofed by",
    "typed by",
    "text file produced by",
    "credits:",
    "updated editions will",
    "special thanks to",
    "thanks to",
    "images generously",
    "[this file was first posted",
    "online distributed proofreading team",
    "note: project gutenberg",
    "note: images of the original",
    "note: this is",
    "note: the original file",
    "note: the html",
    "note: there is",
    "note: file for which",
    "note: see also",
    "[note: project gutenberg",
    "project gutenberg also has",
    "project gutenberg has the other volumes",
    "images of the original pages are available",
    "there is an illustrated edition",
    "there is an improved edition",
    "there are several editions of this",
    "this project gutenberg",
    "produit par",
    "ce livre a été",
    "produziert von",
    "erstellt von",
    "dieses buch wurde",
    "geproduceerd door",
    "prodotto da",
    "producido por",
    "produzido por",
    "tuottanut",
    "tuottaneet",
    "producerad av",
    "produceret af",
    "produceret",
];

/// What a short paragraph at the beginning of a book names when it is credits.
const CREDIT_NAMES: [&str; 9] = [
    "distributed proofread",
    "pgdp.net",
    "pgdpcanada",
    "gutenberg.org",
    "gutenberg.net",
    "internet archive",
    "archive.org",
    "hathitrust",
    "project gutenberg",
];

/// Where the header of Project Gutenberg Australia or Canada ends, which have no start marker: with
/// the first paragraph that says nothing of the file.
pub(super) fn site_header(lines: &[&str]) -> Option<usize> {
    let top = &lines[..lines.len().min(SITE_HEADER_LINES)];
    let first = top.iter().take(30).position(|line| {
        let line = line.to_lowercase();
        [
            "project gutenberg of australia",
            "project gutenberg australia",
            "project gutenberg canada",
        ]
        .iter()
        .any(|name| line.contains(name))
    })?;
    // Nothing but fields and names stands before it.
    let mut end = 0;
    let mut at = 0;
    while at < top.len() {
        if top[at].trim().is_empty() {
            at += 1;
            continue;
        }
        let length = top[at..].iter().take_while(|line| !line.trim().is_empty()).count();
        let paragraph = &top[at..at + length];
        if at > first && !paragraph.iter().any(|line| speaks_of_the_file(line)) {
            break;
        }
        at += length;
        end = at;
    }
    (end > first).then_some(end)
}

/// Whether a line is part of what those sites write around a book.
fn speaks_of_the_file(line: &str) -> bool {
    let line = line.trim_start_matches(['*', ' ']).to_lowercase();
    let begins = [
        "title:",
        "author:",
        "authors:",
        "translator:",
        "editor:",
        "illustrator:",
        "ebook no",
        "language:",
        "date first posted",
        "date most recently updated",
        "date last updated",
        "date of first publication",
        "place and date of edition",
        "edition:",
        "character set",
        "date:",
        "production notes",
        "this ebook",
        "this e-book",
        "copyright laws",
        "edition used",
        "most recent update",
        "first posted",
    ];
    let names = [
        "project gutenberg",
        "gutenberg.net.au",
        "gutenberg.ca",
        "public domain in australia",
        "public domain in canada",
        "copyright in your country",
        "do not download",
        "made available at no cost",
        "created from printed editions",
        "before downloading",
    ];
    begins.iter().any(|begin| line.starts_with(begin))
        || names.iter().any(|name| line.contains(name))
}

/// Where the last lines of those sites begin.
pub(super) fn site_footer(lines: &[&str], start: usize) -> Option<usize> {
    let from = start.max(lines.len().saturating_sub(SITE_FOOTER_LINES));
    let found = (from..lines.len()).find(|&number| {
        let line = lines[number].trim().to_lowercase();
        line.starts_with("[end of ")
            || line.len() < 100
                && [
                    "gutenberg australia",
                    "gutenberg of australia",
                    "gutenberg canada",
                    "gutenberg.net.au",
                    "gutenberg.ca",
                    "full of free ebooks",
                ]
                .iter()
                .any(|name| line.contains(name))
    })?;
    Some(found)
}

/// The first line after the credits and notes at the beginning of the book.
pub(super) fn skip_credits(lines: &[&str], start: usize) -> usize {
    let mut at = start;
    for _ in 0..CREDIT_PARAGRAPHS {
        let Some(paragraph) = (at..lines.len()).find(|&line| !lines[line].trim().is_empty()) else {
            break;
        };
        let blank = (paragraph..lines.len()).find(|&line| lines[line].trim().is_empty());
        let end = blank.unwrap_or(lines.len());
        let words = lines[paragraph].trim();
        let lower = words.to_lowercase();
        let names = || {
            // A name may go on in the next line.
            let joined = lines[paragraph..end].join(" ");
            end - paragraph <= CREDIT_LINES
                && CREDIT_NAMES.iter().any(|name| contains(&joined, name))
        };
        let credit = CREDITS.iter().any(|credit| lower.starts_with(credit));
        if !credit && !names() {
            break;
        }
        at = end;
    }
    at
}
