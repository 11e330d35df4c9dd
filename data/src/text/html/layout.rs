//! Text with its white space: breaks are asked for, and written when text follows.

use std::borrow::Cow;

use crate::text::script_marks::{Script, is_fraction, mark_after, mark_before};

/// Shown at a line end alone.
const SOFT_HYPHEN: char = '\u{ad}';

/// What separates two pieces of text, weakest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Break {
    #[default]
    None,
    Space,
    Tab,
    Line,
    Paragraph,
}

/// The text written so far.
#[derive(Default)]
pub(super) struct Layout<'a> {
    text: String,
    pending: Break,
    marker: Option<Cow<'a, str>>,
    /// Where a `^` was written that becomes a space if a fraction follows.
    power: Option<usize>,
}

impl<'a> Layout<'a> {
    /// With room for `bytes` of text.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ..Self::default() }
    }

    /// Asks for at least `wanted` before the next text.
    pub fn ask(&mut self, wanted: Break) {
        // The marker of a list item stands directly before its text.
        if self.marker.is_none() {
            self.pending = self.pending.max(wanted);
        }
    }

    /// Asks for a new line; the second in a row asks for a blank one.
    pub fn line_feed(&mut self) {
        let wanted = if self.pending >= Break::Line { Break::Paragraph } else { Break::Line };
        self.ask(wanted);
    }

    /// Begins an item of a list: its own line, directly below the one before unless `first`.
    pub fn item(&mut self, marker: Cow<'a, str>, first: bool) {
        self.marker = None;
        if first {
            self.ask(Break::Line);
        } else {
            self.pending = Break::Line;
        }
        if !marker.is_empty() {
            self.marker = Some(marker);
        }
    }

    /// Ends an item of a list; a marker without text disappears.
    pub fn end_item(&mut self) {
        self.marker = None;
        self.ask(Break::Line);
    }

    /// Writes the first text of a superscript or subscript, with the mark that keeps its digits from
    /// those before it.
    pub fn script(&mut self, script: Script, raw: &str) {
        let directly = self.pending == Break::None && self.marker.is_none();
        let begins = raw.starts_with(|c: char| !c.is_ascii_whitespace());
        if directly && begins {
            let mark = mark_before(script, &self.text, &decode(raw));
            self.power = (mark == "^").then_some(self.text.len());
            self.text.push_str(mark);
        }
        self.flow(raw);
    }

    /// Writes the first text behind a superscript or subscript.
    pub fn after_script(&mut self, raw: &str) {
        if self.pending == Break::None {
            self.text.push_str(mark_after(&self.text, raw));
            if let Some(at) = self.power
                && is_fraction(&decode(raw))
                && self.text[..at].ends_with(|c: char| c.is_ascii_digit())
            {
                self.text.replace_range(at..=at, " ");
            }
        }
        self.power = None;
        self.flow(raw);
    }

    /// Writes text with character references; runs of white space become one space, hyphens that
    /// are shown at line ends only are left out.
    pub fn flow(&mut self, raw: &str) {
        let mut decoded = decode(raw);
        if decoded.contains(SOFT_HYPHEN) {
            decoded = Cow::Owned(decoded.replace(SOFT_HYPHEN, ""));
        }
        let text = &*decoded;
        let bytes = text.as_bytes();
        let white = |byte: &u8| byte.is_ascii_whitespace();
        let skip = |from: usize| {
            from + bytes[from..].iter().position(|byte| !white(byte)).unwrap_or(bytes.len() - from)
        };
        let mut start = skip(0);
        if start > 0 {
            self.ask(Break::Space);
        }
        if start == bytes.len() {
            return;
        }
        self.write_break();
        let mut at = start;
        loop {
            let Some(found) = bytes[at..].iter().position(white) else {
                self.text.push_str(&text[start..]);
                return;
            };
            at += found;
            // One space between words is copied along with them.
            if bytes[at] == b' ' && bytes.get(at + 1).is_some_and(|next| !white(next)) {
                at += 1;
                continue;
            }
            self.text.push_str(&text[start..at]);
            at = skip(at);
            start = at;
            if at == bytes.len() {
                self.pending = Break::Space;
                return;
            }
            self.text.push(' ');
        }
    }

    /// Writes text with character references as it is; line ends become LF.
    pub fn verbatim(&mut self, raw: &str) {
        let decoded = decode(raw);
        if decoded.is_empty() {
            return;
        }
        if let Some(marker) = self.marker.take() {
            // Code keeps its own lines, so that its indentation stays true.
            self.write_break();
            self.text.push_str(marker.trim_end());
            self.pending = Break::Line;
        }
        self.write_break();
        match memchr::memchr(b'\r', decoded.as_bytes()) {
            Some(_) => self.text.push_str(&decoded.replace("\r\n", "\n").replace('\r', "\n")),
            None => self.text.push_str(&decoded),
        }
    }

    /// The text, without white space at its end and without blank lines at its beginning.
    pub fn finish(mut self) -> String {
        self.text.truncate(self.text.trim_end().len());
        let indented = self.text.trim_ascii_start().len();
        let start = &self.text[..self.text.len() - indented];
        if let Some(last) = start.rfind('\n') {
            self.text.drain(..=last);
        }
        self.text
    }

    fn write_break(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if !self.text.is_empty() {
            let ends = self.text.bytes().rev().take(2).take_while(|byte| *byte == b'\n').count();
            match pending {
                Break::None => {}
                Break::Space | Break::Tab if ends > 0 => {}
                Break::Space => self.text.push(' '),
                Break::Tab => self.text.push('\t'),
                Break::Line => self.text.push_str(&"\n"[..1 - ends.min(1)]),
                Break::Paragraph => self.text.push_str(&"\n\n"[..2 - ends]),
            }
        }
        if let Some(marker) = self.marker.take() {
            self.text.push_str(&marker);
        }
    }
}

/// `raw` with its character references replaced.
pub(super) fn decode(raw: &str) -> Cow<'_, str> {
    match memchr::memchr(b'&', raw.as_bytes()) {
        Some(_) => htmlize::unescape(raw),
        None => Cow::Borrowed(raw),
    }
}
