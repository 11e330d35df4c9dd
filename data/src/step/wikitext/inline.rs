//! The markup inside lines: links, tags, comments, character references, magic words.

use memchr::memmem;

use super::markup::{APOSTROPHE, Frame, GAP, Kind, Scanner};
use super::parts::Part;
use super::tags::{Tag, TagKind, find_closing, tag_at};
use crate::text::script_marks::{Script, is_fraction, mark_after, mark_before};
use crate::text::wikipedia::LinkNamespace;

/// Longest character reference, `&CounterClockwiseContourIntegral;`.
const LONGEST_REFERENCE: usize = 33;
/// Bytes of a superscript that are looked at.
const SCRIPT_BYTES: usize = 48;
/// Longest magic word looked for, in characters.
const LONGEST_MAGIC_WORD: usize = 40;
/// What the address of an external link begins with.
const SCHEMES: [&[u8]; 8] =
    [b"http://", b"https://", b"//", b"ftp://", b"mailto:", b"news:", b"irc://", b"ftps://"];

impl Scanner<'_> {
    // Links.

    pub fn pipe(&mut self) {
        let takes = |frame: &Frame| matches!(frame.kind, Kind::Braces(_) | Kind::Link);
        if self.frames.last().is_some_and(takes) {
            self.pipes.push(self.result.text.len());
        }
        self.emit(1);
    }

    fn scheme_at(&self, at: usize) -> bool {
        let starts = |scheme: &[u8]| {
            let found = self.bytes.get(at..at + scheme.len());
            found.is_some_and(|found| found.eq_ignore_ascii_case(scheme))
        };
        SCHEMES.iter().any(|scheme| starts(scheme))
    }

    pub fn open_brackets(&mut self) {
        let count = self.run_length();
        let scheme = self.scheme_at(self.at + count);
        let (links, externals) = match count {
            1 => (0, usize::from(scheme)),
            2 => (1, 0),
            _ => (1, usize::from(scheme)),
        };
        self.emit(count - 2 * links - externals);
        if links == 1 {
            self.push(Kind::Link);
            self.at += 2;
        }
        if externals == 1 {
            self.push(Kind::ExternalLink);
            self.at += 1;
        }
    }

    pub fn close_brackets(&mut self) {
        let mut count = self.run_length();
        while count > 0 {
            let inline = |frame: &Frame| matches!(frame.kind, Kind::Element(_));
            let found = self.frames.iter().rposition(|frame| !inline(frame));
            let kind = found.map(|index| (index, self.frames[index].kind));
            match kind {
                Some((index, Kind::ExternalLink)) => {
                    self.forget_above(index + 1);
                    self.at += 1;
                    count -= 1;
                    self.close_external_link();
                }
                Some((index, Kind::Link)) if count >= 2 => {
                    self.forget_above(index + 1);
                    self.at += 2;
                    count -= 2;
                    self.close_link();
                }
                _ if count >= 2 && self.orphans > 0 => {
                    self.orphans -= 1;
                    self.at += 2;
                    count -= 2;
                }
                _ => {
                    self.emit(count);
                    count = 0;
                }
            }
        }
    }

    fn close_external_link(&mut self) {
        let Some(frame) = self.pop() else { return };
        self.pipes.truncate(frame.pipes);
        let content = &self.result.text[frame.output..];
        self.result.work += content.len();
        let space = content.find([' ', '\t']);
        let label = space.map(|at| at + 1).filter(|&at| !content[at..].trim().is_empty());
        match label {
            Some(label) => {
                self.result.text.drain(frame.output..frame.output + label);
            }
            None => {
                self.count(Part::ExternalLinks, &frame);
                self.cut(frame.output);
            }
        }
    }

    fn close_link(&mut self) {
        let pipe = self.frames.last().and_then(|frame| self.pipes.get(frame.pipes)).copied();
        let Some(frame) = self.pop() else { return };
        self.pipes.truncate(frame.pipes);
        let content = &self.result.text[frame.output..];
        self.result.work += content.len();
        let target = &content[..pipe.map_or(content.len(), |pipe| pipe - frame.output)];
        let visible = target.trim_start().strip_prefix(':');
        if visible.is_none()
            && let Some((prefix, _)) = target.split_once(':')
            && let Some(namespace) = self.settings.names.namespace(prefix)
        {
            let part = match namespace {
                LinkNamespace::File => Part::Files,
                LinkNamespace::Category => Part::Categories,
                LinkNamespace::Interlanguage => Part::Interlanguage,
            };
            self.count(part, &frame);
            return self.cut(frame.output);
        }
        let colon = visible.map_or(0, |rest| target.len() - rest.len());
        let label = pipe.map(|pipe| pipe + 1).filter(|&label| label < self.result.text.len());
        let skipped = match (label, pipe) {
            (Some(label), _) => label - frame.output,
            // `[[target|]]` shows the target.
            (None, Some(pipe)) => {
                self.result.text.truncate(pipe);
                colon
            }
            (None, None) => colon,
        };
        self.result.text.drain(frame.output..frame.output + skipped);
    }

    // Tags, comments, references, magic words.

    pub fn angle(&mut self) {
        if self.bytes[self.at..].starts_with(b"<!--") {
            return self.comment();
        }
        let Some(tag) = tag_at(self.bytes, self.at) else {
            return self.emit(1);
        };
        self.result.work += tag.end - self.at;
        match tag.kind {
            TagKind::Transparent => self.at = tag.end,
            TagKind::Script(script) => self.script(tag, script),
            TagKind::Break => {
                self.at = tag.end;
                if !self.at_line_start() {
                    self.result.text.push('\n');
                }
            }
            TagKind::Nested => self.element(tag),
            TagKind::Raw(_) | TagKind::Formula | TagKind::Nowiki | TagKind::Code => {
                self.extension(tag);
            }
        }
    }

    fn script(&mut self, tag: Tag, script: Script) {
        self.at = tag.end;
        if tag.empty {
            return;
        }
        let ahead = &self.bytes[tag.end..self.bytes.len().min(tag.end + SCRIPT_BYTES)];
        self.result.work += ahead.len();
        if tag.closing {
            let after = &self.page[tag.end..self.page.floor_char_boundary(tag.end + SCRIPT_BYTES)];
            self.result.text.push_str(mark_after(&self.result.text, after));
            return;
        }
        let end = memchr::memchr(b'<', ahead).map_or(ahead.len(), |end| end);
        let end = self.page.floor_char_boundary(tag.end + end);
        let content = &self.page[tag.end..end];
        let mark = mark_before(script, &self.result.text, content);
        let closing = tag_at(self.bytes, end).filter(|closing| closing.closing);
        let fraction = closing.is_some_and(|closing| is_fraction(&self.page[closing.end..]));
        let digit = self.result.text.ends_with(|c: char| c.is_ascii_digit());
        self.result.text.push_str(match fraction && digit && mark == "^" {
            true => " ",
            false => mark,
        });
    }

    fn comment(&mut self) {
        let start = self.at;
        let end = memmem::find(&self.bytes[start + 4..], b"-->");
        self.at = end.map_or(self.bytes.len(), |end| start + 4 + end + 3);
        self.result.unbalanced |= end.is_none();
        self.result.removals.add(Part::Comments, self.at - start);
        if self.at_line_start() {
            // A comment alone on its line takes the line with it.
            if self.bytes.get(self.at) == Some(&b'\n') {
                self.at += 1;
            }
            self.line_start();
        }
    }

    fn element(&mut self, tag: Tag) {
        let kind = Kind::Element(tag.index);
        if !tag.closing {
            if !tag.empty {
                self.push(kind);
            }
            self.at = tag.end;
            return;
        }
        self.at = tag.end;
        // An element ends inside the template or table it began in.
        let found = self.frames.iter().rposition(|frame| {
            frame.kind == kind || matches!(frame.kind, Kind::Braces(_) | Kind::Table)
        });
        let Some(index) = found.filter(|&index| self.frames[index].kind == kind) else { return };
        let unbalanced = self.result.unbalanced;
        self.forget_above(index + 1);
        // Cells and rows need no closing tags.
        self.result.unbalanced = unbalanced;
        if let Some(frame) = self.pop() {
            self.pipes.truncate(frame.pipes);
            self.count(Part::Elements, &frame);
            self.cut(frame.output);
        }
    }

    fn extension(&mut self, tag: Tag) {
        let start = self.at;
        self.at = tag.end;
        if tag.closing {
            return;
        }
        let mut content = "";
        if !tag.empty {
            if self.unclosed[tag.index] {
                self.result.unbalanced = true;
                return;
            }
            let Some((from, to)) = find_closing(self.bytes, tag.end, tag.index) else {
                self.unclosed[tag.index] = true;
                self.result.work += self.bytes.len() - tag.end;
                self.result.unbalanced = true;
                return;
            };
            content = &self.page[tag.end..from];
            self.at = to;
        }
        match tag.kind {
            TagKind::Nowiki => self.literal(content),
            TagKind::Code if self.is_inline(tag, start, content) => self.literal(content.trim()),
            TagKind::Formula if self.settings.formulas && !content.trim().is_empty() => {
                self.result.text.push('$');
                self.literal(content.trim());
                self.result.text.push('$');
            }
            kind => {
                let part = match kind {
                    TagKind::Raw(part) => part,
                    TagKind::Code => Part::Elements,
                    _ => Part::Formulas,
                };
                self.result.removals.add(part, self.at - start);
                self.result.text.push(GAP);
            }
        }
    }

    /// Whether code is part of a sentence, as its tag says.
    fn is_inline(&mut self, tag: Tag, start: usize, content: &str) -> bool {
        let attributes = &self.page[start..tag.end];
        self.result.work += attributes.len();
        let says = attributes.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| {
            word.eq_ignore_ascii_case("inline") || word.eq_ignore_ascii_case("enclose")
        });
        says && !attributes.contains("enclose=\"div") && !content.contains('\n')
    }

    /// Text that is no wikitext, but may hold character references.
    fn literal(&mut self, text: &str) {
        self.result.work += text.len();
        if self.at_line_start() {
            self.result.text.push(GAP);
        }
        for c in htmlize::unescape(text).chars() {
            self.result.text.push(match c {
                '\'' => APOSTROPHE,
                '\n' => ' ',
                c => c,
            });
        }
    }

    pub fn reference(&mut self) {
        let window = &self.bytes[self.at..self.bytes.len().min(self.at + LONGEST_REFERENCE)];
        let name = window[1..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'#');
        let end = 1 + name.count();
        self.result.work += end;
        if end == 1 || window.get(end) != Some(&b';') {
            return self.emit(1);
        }
        let written = &self.page[self.at..=self.at + end];
        if written == "&nbsp;" {
            self.result.text.push(' ');
        } else {
            self.literal(written);
        }
        self.at += end + 1;
    }

    pub fn underscore(&mut self) {
        match self.page[self.at..].strip_prefix("__").and_then(magic_word_end) {
            Some(length) => {
                self.result.removals.add(Part::MagicWords, length + 2);
                self.at += length + 2;
            }
            None => self.emit(self.run_length()),
        }
    }

    pub fn hyphen(&mut self) {
        let protects = matches!(self.bytes[self.at + 1..], [b'{', next, ..] if next != b'{');
        if self.settings.converter && protects {
            self.at += 2;
        } else {
            self.emit(1);
        }
    }
}

/// Where the magic word of which `after` is the part after the first `__` ends:
/// `NOTOC__`, `OHNE_INHALT__`.
fn magic_word_end(after: &str) -> Option<usize> {
    let mut characters = after.char_indices().take(LONGEST_MAGIC_WORD).peekable();
    while let Some((at, c)) = characters.next() {
        if c == '_' && characters.peek().is_some_and(|&(_, next)| next == '_') {
            return (at > 0).then_some(at + 2);
        }
        if c != '_' && !c.is_uppercase() {
            return None;
        }
    }
    None
}
