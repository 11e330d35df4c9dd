//! The books in files of Project Gutenberg: headers and footers off, text in one form.

mod body;
mod header;
mod markers;
mod notes;

use serde::{Deserialize, Serialize};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use self::body::{drop_illustrations, drop_page_numbers, unwrap_paragraphs};
use self::header::{FIELD_LINES, read_header};
use self::markers::{Bounds, find_book};
use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, Reason, metadata_text};
use crate::error::Result;
use crate::text::python;

/// Largest share of a file that may be taken for a header or a footer.
const LARGEST_SHARE: f64 = 0.3;
/// A footer up to this size is never suspicious, in bytes: the license alone has 20 kB, more
/// than many a short story.
const LICENSE_BYTES: usize = 64 << 10;

/// Takes the header and footer off a Project Gutenberg book, and brings its text into one form:
/// Unix line ends, Unicode normalization form C. What the header says of the book goes into the
/// metadata. A book without markers stays whole and is noted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GutenbergOptions {
    /// Take out `[Illustration: …]`, `[Image]`, `[Blank Page]` and their like (bool, default true).
    pub drop_illustrations: bool,
    /// Take out page numbers: `[Pg 12]`, `{12}`, and lines that are a number (bool, default
    /// false).
    pub drop_page_numbers: bool,
    /// Join the lines of paragraphs that were wrapped by hand (bool, default false). Verse stays.
    pub unwrap_paragraphs: bool,
}

impl Default for GutenbergOptions {
    fn default() -> Self {
        Self { drop_illustrations: true, drop_page_numbers: false, unwrap_paragraphs: false }
    }
}

impl StepOptions for GutenbergOptions {
    /// Version 1 knew fewer headers, end lines and notes.
    fn version(&self) -> u32 {
        2
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(self.clone()))
    }
}

impl Step for GutenbergOptions {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let file = unix_lines(std::mem::take(&mut document.text));
        // Nothing is counted until it is certain that the document stays.
        let mut own = StepCounts::default();
        let lines: Vec<&str> = file.split('\n').collect();
        let mut bounds = find_book(&lines);
        note_markers(&bounds, &mut own);
        let fields = if bounds.start_marked { bounds.start } else { FIELD_LINES.min(lines.len()) };
        let header = read_header(&lines[..fields]);
        bound_removal(&lines, &mut bounds, file.len(), &mut own);

        let mut text = book(&lines, &bounds, &mut own);
        if is_nfc_quick(text.chars()) != IsNormalized::Yes {
            text = text.nfc().collect();
        }
        if self.drop_illustrations {
            text = drop_illustrations(text, &mut own);
        }
        if self.drop_page_numbers {
            text = drop_page_numbers(text, &mut own);
        }
        if self.unwrap_paragraphs {
            text = unwrap_paragraphs(&text);
        }
        // The first line may be indented, a centred title for example.
        let text = text.trim_end().trim_start_matches('\n');
        if text.is_empty() {
            return Verdict::Drop { reason: Reason::EMPTY, detail: String::new() };
        }
        add_metadata(document, &header, bounds.start, python::split(text).count());
        document.text = text.to_owned();
        counts.merge(&own);
        Verdict::Keep
    }
}

/// CR LF and CR to LF, and no byte order mark.
fn unix_lines(mut text: String) -> String {
    if text.contains('\r') {
        text = text.replace("\r\n", "\n").replace('\r', "\n");
    }
    match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    }
}

fn note_markers(bounds: &Bounds, counts: &mut StepCounts) {
    if !bounds.start_marked {
        counts.note("no_start_marker");
    }
    if !bounds.end_marked {
        counts.note("no_end_marker");
    }
}

/// Bytes of `lines` with their line ends.
fn size(lines: &[&str]) -> usize {
    lines.iter().map(|line| line.len() + 1).sum()
}

/// A header or footer that would take too much of the file is not taken off.
fn bound_removal(lines: &[&str], bounds: &mut Bounds, bytes: usize, counts: &mut StepCounts) {
    let large = |removed: usize| removed as f64 > LARGEST_SHARE * bytes as f64;
    if large(size(&lines[..bounds.start])) {
        bounds.start = 0;
        counts.note("suspicious_header");
    }
    let footer = size(&lines[bounds.end..]);
    if large(footer) && footer > LICENSE_BYTES {
        bounds.end = lines.len();
        counts.note("suspicious_footer");
    }
}

/// The lines of the book, joined.
fn book(lines: &[&str], bounds: &Bounds, counts: &mut StepCounts) -> String {
    for (reason, around) in [("header", &lines[..bounds.start]), ("footer", &lines[bounds.end..])] {
        if !around.is_empty() {
            counts.remove(reason, size(around));
        }
    }
    let mut text = String::new();
    let mut at = bounds.start;
    for &(start, end) in bounds.legal.iter().chain([&(bounds.end, bounds.end)]) {
        for line in &lines[at..start] {
            text.push_str(line);
            text.push('\n');
        }
        if end > start {
            counts.remove("legal_sections", size(&lines[start..end]));
        }
        at = end;
    }
    text
}

/// What the document does not say already.
fn add_metadata(
    document: &mut Document,
    header: &header::Header,
    header_lines: usize,
    words: usize,
) {
    let mut metadata = document.metadata();
    let mut add = |key: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value
            && metadata.get(key).is_none_or(serde_json::Value::is_null)
        {
            metadata.insert(key.to_owned(), value);
        }
    };
    add("title", header.title.clone().map(Into::into));
    add("author", header.author.clone().map(Into::into));
    add("language", header.language.map(Into::into));
    add("release_date", header.release_date.clone().map(Into::into));
    add("year", header.year.map(Into::into));
    metadata.insert("n_words".into(), words.into());
    metadata.insert("header_lines_removed".into(), header_lines.into());
    document.metadata = Some(metadata_text(metadata));
    if document.language.is_none() {
        document.language = header.language.map(str::to_owned);
    }
}

#[cfg(test)]
mod tests;
