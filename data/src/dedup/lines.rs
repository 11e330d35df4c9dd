//! The lines of a document and which of them are duplicates.

use super::duplicates::{Duplicates, Occurrence};
use crate::document::Document;
use crate::error::Result;
use crate::step::StepCounts;
use crate::text::python;

/// What is left of a document.
pub(super) struct KeptLines {
    /// The lines that stay, joined by line feeds.
    pub text: String,
    /// Their numbers in the document as it was.
    pub ids: Vec<usize>,
    /// Lines the document had.
    pub lines: usize,
    /// Reason and bytes of each line that does not stay, its line feed included.
    removed: Vec<(&'static str, usize)>,
}

/// How the lines that do not stay are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct LineReasons {
    /// Another document has the line.
    pub duplicate: &'static str,
    /// The document repeats it.
    pub repeated: &'static str,
    /// It is white space, if such lines are counted apart.
    pub empty: Option<&'static str>,
}

/// Takes the duplicates out of the lines of `document`, which has the owner `owner`. A line is
/// what stands between line feeds.
pub(super) fn kept_lines(
    decisions: &mut Duplicates,
    document: &Document,
    owner: u64,
    reasons: LineReasons,
) -> Result<KeptLines> {
    let lines = 1 + memchr::memchr_iter(b'\n', document.text.as_bytes()).count();
    let decisions = decisions.next_document(owner, lines)?;
    let mut kept = KeptLines { text: String::new(), ids: Vec::new(), lines, removed: Vec::new() };
    for (id, (line, decision)) in lines_of(&document.text).zip(decisions).enumerate() {
        let reason = match (decision, reasons.empty) {
            (Occurrence::Kept, _) => {
                if !kept.ids.is_empty() {
                    kept.text.push('\n');
                }
                kept.text.push_str(line);
                kept.ids.push(id);
                continue;
            }
            (_, Some(reason)) if python::strip(line).is_empty() => reason,
            (Occurrence::Duplicate, _) => reasons.duplicate,
            (Occurrence::Repeated, _) => reasons.repeated,
        };
        kept.removed.push((reason, line.len() + 1));
    }
    Ok(kept)
}

impl KeptLines {
    /// Counts the lines taken out of a document that stays. Their bytes and those of the text
    /// that is left add up to what there was.
    pub fn count(&self, counts: &mut StepCounts) {
        for &(reason, bytes) in &self.removed {
            counts.remove(reason, bytes);
        }
    }
}

/// The lines of `text`, as Python's `text.split("\n")`: an empty text has one.
pub(super) fn lines_of(text: &str) -> impl Iterator<Item = &str> {
    let mut feeds = memchr::memchr_iter(b'\n', text.as_bytes());
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        let feed = feeds.next();
        start = feed.map(|at| at + 1);
        Some(&text[from..feed.unwrap_or(text.len())])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_at_every_feed() {
        for text in ["", "a", "a\n", "\n\na\r\nb", "é\nü"] {
            assert!(lines_of(text).eq(text.split('\n')), "{text:?}");
        }
    }
}
