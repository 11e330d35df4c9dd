//! Wikitext to text, in one pass over the markup.
//!
//! Text is appended to the output as it comes; a construct that opens (`{{`, `[[`, `{|`, an
//! element) leaves a frame on a stack, and when it closes, the output is cut back to where it
//! opened, with its label or rendering put in place. What never closes stays text, without
//! looking ahead. Every byte is looked at a bounded number of times: forward searches either
//! consume what they passed or are remembered as failed, and the stack has at most [`MAX_DEPTH`]
//! frames, so time and memory are linear in the page for any markup.

use super::parts::{Part, Removals};
use super::tags::TAG_COUNT;
use super::templates::{Rendered, Rules, render};
use crate::text::wikipedia::WikiNames;

/// Deepest nesting. MediaWiki itself stops expanding templates at a depth of 40.
const MAX_DEPTH: usize = 64;
/// Bytes before and behind a template that are looked at.
const AROUND: usize = 60;
/// Templates of a page that are noted as lost.
const MOST_LOST: usize = 200;
/// Bytes of such a template, and of its name.
const LONGEST_LOST: usize = 200;
const LONGEST_LOST_NAME: usize = 60;
/// An apostrophe that is text: a noncharacter that stands for it until quotes are done.
pub(super) const APOSTROPHE: char = '\u{fdd0}';
/// Where something was taken out: a noncharacter, so that the space and punctuation around it
/// can be mended.
pub(super) const GAP: char = '\u{fdd1}';

/// How a page is cleaned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    /// Names of the page's language.
    pub names: &'a WikiNames,
    /// What templates print.
    pub rules: &'a Rules,
    /// Keep formulas as `$…$`.
    pub formulas: bool,
    /// Look for templates of disambiguation pages.
    pub disambiguation: bool,
    /// The page may use `-{…}-` to protect text from conversion between scripts.
    pub converter: bool,
}

/// A page without its markup, still with quotes, headings and lists.
#[derive(Debug, Default)]
pub(super) struct Unmarked {
    /// The text.
    pub text: String,
    /// What was taken out.
    pub removals: Removals,
    /// Something did not close, or closed without having been opened.
    pub unbalanced: bool,
    /// A template says that the page only tells similar titles apart.
    pub disambiguation: bool,
    /// Templates that were taken out of the middle of a line though nothing knows them: their names,
    /// with what stood around them.
    pub lost: Vec<(String, String)>,
    /// Bytes looked at, those looked at twice counted twice.
    pub work: usize,
}

/// What a construct is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `{{`, with the number of braces.
    Braces(usize),
    /// `[[`.
    Link,
    /// `[http`.
    ExternalLink,
    /// `{|`.
    Table,
    /// An element that goes with its content.
    Element(usize),
}

/// An open construct.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub kind: Kind,
    /// Where the markup begins in the page.
    pub input: usize,
    /// Where its text begins in the output.
    pub output: usize,
    /// Length of `pipes` when it opened.
    pub pipes: usize,
    /// Bytes counted as removed when it opened.
    pub removed: usize,
    /// Where in the output its first heading begins: a table that never closes ends there.
    pub heading: Option<usize>,
}

/// A page being read.
pub(super) struct Scanner<'a> {
    pub settings: Settings<'a>,
    pub page: &'a str,
    pub bytes: &'a [u8],
    pub at: usize,
    pub frames: Vec<Frame>,
    /// Frames of kind [`Kind::Braces`].
    pub braces: usize,
    /// Positions in the output of the `|` of open templates and links.
    pub pipes: Vec<usize>,
    /// Tags for which no closing tag follows any more.
    pub unclosed: [bool; TAG_COUNT],
    /// Links that turned out to be none; their `]]` are still to come.
    pub orphans: usize,
    pub result: Unmarked,
}

/// Takes the markup out of `page`.
pub(super) fn unmark(page: &str, settings: Settings<'_>) -> Unmarked {
    let mut scanner = Scanner {
        settings,
        page,
        bytes: page.as_bytes(),
        at: 0,
        frames: Vec::new(),
        braces: 0,
        pipes: Vec::new(),
        unclosed: [false; TAG_COUNT],
        orphans: 0,
        result: Unmarked { text: String::with_capacity(page.len() / 2), ..Unmarked::default() },
    };
    scanner.run();
    scanner.result
}

/// Bytes that may begin markup. A hyphen does only where scripts are converted.
const MARKUP: [bool; 256] = {
    let mut table = [false; 256];
    let markup = b"\n{}[]|<&_-";
    let mut index = 0;
    while index < markup.len() {
        table[markup[index] as usize] = true;
        index += 1;
    }
    table
};

impl Scanner<'_> {
    fn run(&mut self) {
        self.line_start();
        while self.at < self.bytes.len() {
            let start = self.at;
            let rest = &self.bytes[start..];
            let plain = rest.iter().position(|&byte| MARKUP[byte as usize]);
            self.at = plain.map_or(self.bytes.len(), |length| start + length);
            self.result.text.push_str(&self.page[start..self.at]);
            let Some(&byte) = self.bytes.get(self.at) else { break };
            match byte {
                b'\n' => self.line_end(),
                b'{' => self.open_braces(),
                b'}' => self.close_braces(),
                b'[' => self.open_brackets(),
                b']' => self.close_brackets(),
                b'|' => self.pipe(),
                b'<' => self.angle(),
                b'&' => self.reference(),
                b'_' => self.underscore(),
                _ => self.hyphen(),
            }
        }
        self.result.work += self.bytes.len();
        self.finish();
    }

    pub fn emit(&mut self, length: usize) {
        self.result.text.push_str(&self.page[self.at..self.at + length]);
        self.at += length;
    }

    /// How often the byte at the current place is repeated there.
    pub fn run_length(&self) -> usize {
        let byte = self.bytes[self.at];
        self.bytes[self.at..].iter().take_while(|&&other| other == byte).count()
    }

    pub fn push(&mut self, kind: Kind) {
        if self.frames.len() >= MAX_DEPTH {
            self.result.unbalanced = true;
            return;
        }
        self.braces += usize::from(matches!(kind, Kind::Braces(_)));
        self.frames.push(Frame {
            kind,
            input: self.at,
            output: self.result.text.len(),
            pipes: self.pipes.len(),
            removed: self.result.removals.bytes(),
            heading: None,
        });
    }

    /// Takes off the frames above the first `keep`; they turned out to be text.
    pub fn forget_above(&mut self, keep: usize) {
        for frame in self.frames.drain(keep..) {
            self.result.unbalanced = true;
            match frame.kind {
                Kind::Braces(_) => self.braces -= 1,
                Kind::Link => self.orphans += 1,
                _ => {}
            }
        }
    }

    /// Takes off the topmost frame, which is closed. Its `pipes` are left to be read and cut.
    pub fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop()?;
        self.braces -= usize::from(matches!(frame.kind, Kind::Braces(_)));
        Some(frame)
    }

    /// Counts what `frame` held, up to the current place, without what was counted inside.
    pub fn count(&mut self, part: Part, frame: &Frame) {
        let inside = self.result.removals.bytes() - frame.removed;
        self.result.removals.add(part, (self.at - frame.input).saturating_sub(inside));
    }

    pub fn cut(&mut self, output: usize) {
        self.result.text.truncate(output);
        self.result.text.push(GAP);
    }

    pub fn at_line_start(&self) -> bool {
        let text = &self.result.text;
        text.is_empty() || text.ends_with('\n')
    }

    // Lines: tables and headings.

    fn line_end(&mut self) {
        // An address and the target of a link end with their line.
        while let Some(frame) = self.frames.last() {
            let ends = match frame.kind {
                Kind::ExternalLink => true,
                Kind::Link => self.pipes.len() == frame.pipes,
                _ => false,
            };
            if !ends {
                break;
            }
            self.forget_above(self.frames.len() - 1);
        }
        self.emit(1);
        self.line_start();
    }

    pub fn line_start(&mut self) {
        let rest = &self.bytes[self.at..];
        let indent = rest.iter().take_while(|byte| b" \t:".contains(byte)).count();
        self.result.work += indent;
        match &rest[indent..] {
            [b'{', b'|', after @ ..] if after.first() != Some(&b'}') => {
                self.push(Kind::Table);
                self.at += indent + 2;
            }
            [b'|', b'}', after @ ..] => {
                let line = after.iter().take_while(|&&byte| byte != b'\n');
                let alone = line.clone().all(u8::is_ascii_whitespace);
                self.result.work += line.count();
                self.close_table(indent + 2, alone);
            }
            [b'=', b'=', ..] if indent == 0 => self.heading(),
            _ => {}
        }
    }

    /// Closes the innermost table at a `|}`, unless that belongs to a template above it. If the
    /// `|}` stands alone, templates above it did not close.
    fn close_table(&mut self, length: usize, alone: bool) {
        let found = self.frames.iter().rposition(|frame| {
            frame.kind == Kind::Table || !alone && matches!(frame.kind, Kind::Braces(_))
        });
        let Some(index) = found.filter(|&index| self.frames[index].kind == Kind::Table) else {
            return;
        };
        self.forget_above(index + 1);
        self.at += length;
        if let Some(frame) = self.pop() {
            self.pipes.truncate(frame.pipes);
            self.count(Part::Tables, &frame);
            self.cut(frame.output);
        }
    }

    /// No link or inline element goes on over a heading.
    fn heading(&mut self) {
        let structural = |frame: &Frame| matches!(frame.kind, Kind::Braces(_) | Kind::Table);
        let keep = self.frames.iter().rposition(structural).map_or(0, |index| index + 1);
        self.forget_above(keep);
        let here = self.result.text.len();
        if let Some(frame) = self.frames.last_mut() {
            frame.heading.get_or_insert(here);
        }
    }

    // Templates.

    fn open_braces(&mut self) {
        let count = self.run_length();
        if count == 1 {
            return self.emit(1);
        }
        // What a template renders to is read again for every two braces of its run, so a run
        // counts as that many levels.
        let levels = |frame: &Frame| match frame.kind {
            Kind::Braces(open) => open / 2,
            _ => 1,
        };
        let free = MAX_DEPTH.saturating_sub(self.frames.iter().map(levels).sum::<usize>());
        let kept = count.min(2 * free + 1).max(2);
        self.result.unbalanced |= kept < count;
        self.push(Kind::Braces(kept));
        self.at += count;
    }

    fn close_braces(&mut self) {
        let mut count = self.run_length();
        if count == 1 && self.settings.converter && self.bytes.get(self.at + 1) == Some(&b'-') {
            self.at += 2;
            return;
        }
        while count >= 2 && self.braces > 0 {
            let braces = |frame: &Frame| matches!(frame.kind, Kind::Braces(_));
            let Some(index) = self.frames.iter().rposition(braces) else { break };
            self.forget_above(index + 1);
            let Some(frame) = self.pop() else { break };
            let Kind::Braces(open) = frame.kind else { break };
            let matched = if count >= 3 && open >= 3 { 3 } else { 2 };
            count -= matched;
            self.at += matched;
            self.close_template(frame, matched == 3, open - matched);
        }
        if count == 1 {
            self.emit(1);
        } else {
            self.result.unbalanced |= count > 0;
            self.at += count;
        }
    }

    /// Ends a template or parameter; `left` braces of its run are still open.
    fn close_template(&mut self, frame: Frame, parameter: bool, left: usize) {
        let text = &self.result.text[frame.output..];
        self.result.work += text.len();
        let rendered = if parameter {
            Rendered::Nothing
        } else {
            let pipes = &self.pipes[frame.pipes..];
            let name = &text[..pipes.first().map_or(text.len(), |pipe| pipe - frame.output)];
            if self.settings.disambiguation && !self.result.disambiguation {
                self.result.disambiguation = self.settings.names.is_disambiguation(name);
            }
            let before = self.result.text[..frame.output].trim_end_matches(GAP);
            let start = before.floor_char_boundary(before.len().saturating_sub(AROUND));
            render(self.settings.rules, text, name.trim(), pipes, frame.output, &before[start..])
        };
        if rendered == Rendered::Unknown {
            self.lose(&frame);
        }
        self.pipes.truncate(frame.pipes);
        self.count(Part::Templates, &frame);
        match rendered {
            Rendered::Text(rendered) => {
                self.result.text.truncate(frame.output);
                self.result.text.push_str(&rendered);
            }
            Rendered::Nothing | Rendered::Unknown => self.cut(frame.output),
        }
        if left >= 2 && self.frames.len() < MAX_DEPTH {
            self.braces += 1;
            // It begins where the first did, and what that counted is inside it.
            self.frames.push(Frame { kind: Kind::Braces(left), ..frame });
        }
    }

    /// Notes the template of `frame`, which ends here, if it stood inside a line of text.
    fn lose(&mut self, frame: &Frame) {
        let enclosed = self.braces > 0
            || self.frames.iter().any(|frame| matches!(frame.kind, Kind::Table | Kind::Element(_)));
        if enclosed || self.result.lost.len() >= MOST_LOST {
            return;
        }
        let text = &self.result.text[..frame.output];
        let start = text.floor_char_boundary(text.len().saturating_sub(AROUND));
        let before = text[start..].rsplit('\n').next().unwrap_or_default();
        let end = self.page.floor_char_boundary(self.at + AROUND);
        let after = self.page[self.at..end].split('\n').next().unwrap_or_default();
        self.result.work += 2 * AROUND;
        let word = |text: &str| text.contains(char::is_alphanumeric);
        let most = self.page.floor_char_boundary(frame.input + LONGEST_LOST);
        let source = &self.page[frame.input..self.at.min(most).max(frame.input)];
        let one_line = !source.contains('\n');
        // At the beginning of a line it is part of a sentence if that goes on in the middle of one, or
        // if the line is an item of a list.
        let item = before.contains(['*', '#', ':', ';']);
        let goes_on =
            after.trim_start().starts_with(|c: char| c.is_lowercase() || ",;:)".contains(c));
        if !word(before) && !(one_line && word(after) && (item || goes_on)) {
            return;
        }
        let name = source.trim_start_matches('{');
        let name = name.split(['|', '}', '\n', '<', '{']).next().unwrap_or_default().trim();
        if name.is_empty() || name.len() > LONGEST_LOST_NAME {
            return;
        }
        let name = name.replace('_', " ").to_lowercase();
        let before = before.replace([GAP, APOSTROPHE], "");
        self.result.lost.push((name, format!("{before}{source}{after}")));
    }

    /// What is still open at the end of the page. A table ends there, or at the first heading
    /// in it; all else is text.
    fn finish(&mut self) {
        self.result.unbalanced |= !self.frames.is_empty();
        self.at = self.bytes.len();
        while let Some(frame) = self.pop() {
            if frame.kind == Kind::Table {
                let end = frame.heading.unwrap_or(self.result.text.len());
                self.result.work += self.result.text.len() - frame.output;
                self.result.removals.add(Part::Tables, end - frame.output);
                self.result.text.drain(frame.output..end);
            }
        }
    }
}
