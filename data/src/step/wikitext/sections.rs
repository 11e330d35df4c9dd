//! Lines, lists, headings and sections of a page without its markup.

use std::borrow::Cow;

use super::markup::{APOSTROPHE, GAP};
use super::parts::{Part, Removals};
use super::quotes::push_inline;
use crate::text::wikipedia::WikiNames;

/// Deepest level of headings.
const MAX_LEVEL: usize = 6;

/// Puts the text of a page together: headings as lines, items of lists without their marks, no
/// sections of references and links (if `drop_tail`), no empty sections, no lines without a
/// letter or digit, at most one blank line in a row.
pub(super) fn assemble(
    text: &str,
    names: &WikiNames,
    drop_tail: bool,
    removals: &mut Removals,
) -> String {
    let mut page =
        Page { body: String::with_capacity(text.len()), blank: false, headings: Vec::new() };
    let mut tail: Option<usize> = None;
    let mut tail_bytes = 0;
    for raw in text.split('\n') {
        let line = raw.trim();
        if line.is_empty() {
            page.blank = true;
            continue;
        }
        if let Some((level, title)) = heading(line) {
            let over = tail.is_some_and(|tail_level| level <= tail_level);
            if over {
                removals.add(Part::TailSections, std::mem::take(&mut tail_bytes));
                tail = None;
            }
            if tail.is_none() && drop_tail && names.is_tail_heading(&without_marks(title)) {
                tail = Some(level);
            }
            if tail.is_none() {
                page.heading(level, title, removals);
                continue;
            }
        }
        if tail.is_some() {
            tail_bytes += raw.len() + 1;
        } else {
            page.line(line, removals);
        }
    }
    if tail.is_some() {
        removals.add(Part::TailSections, tail_bytes);
    }
    page.forget_headings(0, removals);
    page.body
}

/// Level and title of a heading: `==x==` has level 2.
fn heading(line: &str) -> Option<(usize, &str)> {
    if !line.starts_with('=') {
        return None;
    }
    let line = line.trim_end_matches(|c: char| c == GAP || c.is_whitespace());
    let left = line.bytes().take_while(|&byte| byte == b'=').count();
    let right = line.bytes().rev().take_while(|&byte| byte == b'=').count();
    let level = left.min(right).min(MAX_LEVEL).min(line.len().saturating_sub(1) / 2);
    (level > 0).then(|| (level, line[level..line.len() - level].trim()))
}

/// A heading as in the tables of names.
fn without_marks(title: &str) -> Cow<'_, str> {
    if !title.contains("''") && !title.contains(GAP) {
        return Cow::Borrowed(title);
    }
    let mut plain = String::with_capacity(title.len());
    push_inline(title, &mut plain);
    Cow::Owned(plain)
}

/// The text so far.
struct Page {
    body: String,
    /// A blank line is due.
    blank: bool,
    /// Headings of open sections that have no text yet.
    headings: Vec<(usize, String)>,
}

impl Page {
    fn heading(&mut self, level: usize, title: &str, removals: &mut Removals) {
        self.forget_headings(level, removals);
        let mut plain = String::with_capacity(title.len());
        push_inline(title, &mut plain);
        if has_word(&plain) {
            self.headings.push((level, plain));
        }
        self.blank = true;
    }

    /// Sections of `level` or deeper end here; those without text were empty.
    fn forget_headings(&mut self, level: usize, removals: &mut Removals) {
        while let Some((_, title)) = self.headings.pop_if(|(open, _)| *open >= level) {
            removals.add(Part::EmptySections, title.len());
        }
    }

    fn line(&mut self, line: &str, removals: &mut Removals) {
        if line.starts_with(['|', '!']) || line.starts_with("{|") {
            return removals.add(Part::StrayTableLines, line.len());
        }
        let item = line.trim_start_matches(['*', '#', ':', ';']).trim_start();
        if !has_word(item) {
            if item.chars().any(|c| !matches!(c, GAP | APOSTROPHE | '\'') && !c.is_whitespace()) {
                removals.add(Part::PunctuationLines, item.len());
            }
            return;
        }
        for (_, title) in std::mem::take(&mut self.headings) {
            self.end_line(true);
            self.body.push_str(&title);
            self.blank = false;
        }
        self.end_line(self.blank);
        self.blank = false;
        push_inline(item, &mut self.body);
    }

    fn end_line(&mut self, blank: bool) {
        if !self.body.is_empty() {
            self.body.push_str(if blank { "\n\n" } else { "\n" });
        }
    }
}

fn has_word(line: &str) -> bool {
    line.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(text: &str) -> String {
        assemble(text, WikiNames::of(Some("en")), true, &mut Removals::default())
    }

    #[test]
    fn headings_and_lists_become_lines() {
        let text =
            "Intro.\n== One ==\n\n* a\n** b\n# c\n: d\n; term : meaning\n===Two===\nx\n\n\n\ny";
        let made = "Intro.\n\nOne\na\nb\nc\nd\nterm : meaning\n\nTwo\nx\n\ny";
        assert_eq!(assembled(text), made);
        assert_eq!(assembled("==A==\n===B===\nx"), "A\n\nB\nx");
    }

    #[test]
    fn empty_and_tail_sections_go() {
        let text = "x\n==Empty==\n===Deeper===\n==Full==\ny\n== See also ==\n* z\n=== Notes ===\nn\n\
                    ==Last==\nw\n==''References''==\nr";
        let mut removals = Removals::default();
        let made = assemble(text, WikiNames::of(Some("en")), true, &mut removals);
        assert_eq!(made, "x\n\nFull\ny\n\nLast\nw");
        let mut counts = crate::step::StepCounts::default();
        removals.add_to(&mut counts);
        assert_eq!(counts.removed()["tail_sections"].parts, 2);
        assert_eq!(counts.removed()["empty_sections"].parts, 2);
        let kept = assemble(text, WikiNames::of(Some("en")), false, &mut removals);
        assert_eq!(kept, "x\n\nFull\ny\n\nSee also\nz\n\nNotes\nn\n\nLast\nw\n\nReferences\nr");
    }

    #[test]
    fn odd_headings() {
        assert_eq!(heading("=x="), Some((1, "x")));
        assert_eq!(heading("===x=="), Some((2, "=x")));
        assert_eq!(heading("====="), Some((2, "=")));
        assert_eq!(heading("="), None);
        assert_eq!(heading("=="), None);
        assert_eq!(heading("== x"), None);
        assert_eq!(heading("========x========"), Some((6, "==x==")));
    }

    #[test]
    fn lines_without_words_go() {
        assert_eq!(assembled("a\n----\n|-\n| cell\n! head\n***\n.\n(…)\nb"), "a\nb");
    }
}
