//! The rules, line by line.

use std::borrow::Cow;

use memchr::{memchr, memmem};

use super::super::{Step, StepCounts, Verdict};
use super::Rules;
use crate::document::Document;
use crate::text::python;
use crate::text::sentences::count_sentences;

/// Counts of lines that go, by TFDS's names.
const TOO_LONG_WORD: &str = "lines-with-too-long-word";
const NO_END_MARK: &str = "lines-no-endmark";
const TOO_SHORT: &str = "lines-too-short";
const JAVASCRIPT: &str = "lines-javascript";
const POLICY: &str = "lines-policy";
/// Citations taken out of lines that stay; TFDS does not count them.
const CITATIONS: &str = "citations";
/// Count of lines that stay.
const VALID: &str = "lines-valid";

/// Reasons for which a page goes, by TFDS's names.
const CONTENT_TOO_LONG: &str = "filtered-page-contenttoolong";
const LOREM_IPSUM: &str = "filtered-page-loremipsum";
const SQUIGGLY_BRACKET: &str = "filtered-page-squigglybracket";
const BAD_WORD: &str = "filtered-page-badword";
const TOO_FEW_SENTENCES: &str = "filtered-page-toofewsentences";
/// mC4's rule; the name is ours.
const TOO_FEW_PARAGRAPHS: &str = "filtered-page-toofewparagraphs";

/// The step.
pub(super) struct C4Step {
    rules: Rules,
    code_marks: Vec<memmem::Finder<'static>>,
}

/// What becomes of a line.
enum Line<'a> {
    Keep(Cow<'a, str>),
    Drop(&'static str),
    /// It drops the whole page.
    DropPage(&'static str),
}

impl C4Step {
    pub fn new(rules: Rules) -> Self {
        let finder = |mark: &String| memmem::Finder::new(mark.as_bytes()).into_owned();
        let code_marks = rules.code_marks.iter().map(finder).collect();
        Self { rules, code_marks }
    }

    fn judge<'a>(&self, line: &'a str) -> Line<'a> {
        let rules = &self.rules;
        if rules.max_word_chars > 0 && has_longer_word(line, rules.max_word_chars) {
            return Line::Drop(TOO_LONG_WORD);
        }
        let cited = line;
        let line =
            if rules.remove_citations { without_citations(line) } else { Cow::Borrowed(line) };
        let text = &*line;
        if !rules.end_marks.is_empty() {
            let ends = rules.end_marks.iter().any(|mark| text.ends_with(mark.as_str()));
            let trails = !rules.ellipsis.is_empty() && text.ends_with(rules.ellipsis.as_str());
            if !ends || trails {
                return Line::Drop(NO_END_MARK);
            }
        }
        let counted = if rules.words_before_citations { cited } else { text };
        let least = rules.min_words_per_line;
        if least > 0 && python::split(counted).take(least).count() < least {
            return Line::Drop(TOO_SHORT);
        }
        let [placeholder, javascript, policy] = rules.phrases.find(text);
        if placeholder {
            return Line::DropPage(LOREM_IPSUM);
        }
        if javascript {
            return Line::Drop(JAVASCRIPT);
        }
        if self.code_marks.iter().any(|mark| mark.find(text.as_bytes()).is_some()) {
            return Line::DropPage(SQUIGGLY_BRACKET);
        }
        if policy {
            return Line::Drop(POLICY);
        }
        if rules.bad_words.as_ref().is_some_and(|words| words.find(text)[0]) {
            return Line::DropPage(BAD_WORD);
        }
        Line::Keep(line)
    }
}

impl Step for C4Step {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let rules = &self.rules;
        let bound = rules.max_page_chars;
        if bound > 0 && document.text.len() > bound {
            let chars = document.text.chars().count();
            if chars > bound {
                let figures = format!("{chars} characters, at most {bound}");
                return Verdict::unwanted(CONTENT_TOO_LONG, figures);
            }
        }
        let mut kept = String::with_capacity(document.text.len());
        let mut page = StepCounts::default();
        let (mut sentences, mut valid, mut paragraphs) = (0, 0, 0);
        for (index, line) in python::split_lines(&document.text).enumerate() {
            let line = python::strip(line);
            match self.judge(line) {
                Line::Drop(reason) => page.remove(reason, line.len()),
                Line::DropPage(reason) => {
                    return Verdict::unwanted(reason, format!("line {}", index + 1));
                }
                Line::Keep(text) => {
                    if rules.min_sentences > 0 {
                        sentences += count_sentences(&text);
                    }
                    if rules.min_paragraphs > 0 {
                        let least = rules.min_paragraph_chars.saturating_sub(1);
                        paragraphs += usize::from(text.chars().nth(least).is_some());
                    }
                    if text.len() < line.len() {
                        page.remove(CITATIONS, line.len() - text.len());
                    }
                    if valid > 0 {
                        kept.push('\n');
                    }
                    kept.push_str(&text);
                    valid += 1;
                }
            }
        }
        if sentences < rules.min_sentences {
            let figures = format!("{sentences} sentences, at least {}", rules.min_sentences);
            return Verdict::unwanted(TOO_FEW_SENTENCES, figures);
        }
        if paragraphs < rules.min_paragraphs {
            let figures = format!("{paragraphs} paragraphs, at least {}", rules.min_paragraphs);
            return Verdict::unwanted(TOO_FEW_PARAGRAPHS, figures);
        }
        let stripped = python::strip(&kept);
        document.text = if stripped.len() == kept.len() { kept } else { stripped.to_owned() };
        if document.text.is_empty() {
            return Verdict::Drop { reason: crate::document::Reason::EMPTY, detail: String::new() };
        }
        // What is taken out of a page that goes is no longer a part of anything.
        for (reason, removed) in page.removed {
            counts.remove_parts(reason, removed);
        }
        *counts.noted.entry(VALID.to_owned()).or_default() += valid;
        Verdict::Keep
    }
}

/// Whether a word of `line` has more than `bound` characters.
fn has_longer_word(line: &str, bound: usize) -> bool {
    line.len() > bound
        && python::split(line).any(|word| word.len() > bound && word.chars().nth(bound).is_some())
}

/// The line without `[`digits`]`, `[edit]` and `[citation needed]`; digits are Unicode's.
fn without_citations(line: &str) -> Cow<'_, str> {
    let mut kept = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(open) = memchr(b'[', &line.as_bytes()[at..]).map(|offset| at + offset) {
        match citation_length(&line[open..]) {
            Some(length) => {
                kept.push_str(&line[copied..open]);
                copied = open + length;
                at = copied;
            }
            None => at = open + 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(line);
    }
    kept.push_str(&line[copied..]);
    Cow::Owned(kept)
}

/// Length of the citation at the start of `text`.
fn citation_length(text: &str) -> Option<usize> {
    let literals = ["[edit]", "[citation needed]"];
    if let Some(literal) = literals.into_iter().find(|literal| text.starts_with(literal)) {
        return Some(literal.len());
    }
    let digits = text[1..].find(|c| !python::is_decimal_digit(c))?;
    text[1 + digits..].starts_with(']').then_some(digits + 2)
}
