//! Arguments of a call, read from the text behind it and from the texts around.

use std::rc::Rc;

use super::super::definition::{Argument, NO_VALUE};
use super::{Cursor, Expander};
use crate::text::tex::{
    bracket_end, control_name, ends_in_control_word, group_end, skip_blanks, starts_with_letter,
};

/// Longest delimited argument.
const DELIMITED_BYTES: usize = 1 << 12;

/// An argument of a call.
pub(super) enum Given {
    /// A part of a text.
    Part(Rc<str>, usize, usize),
    /// A default.
    Made(String),
}

impl Given {
    pub fn text(&self) -> &str {
        match self {
            Self::Part(text, from, to) => &text[*from..*to],
            Self::Made(text) => text,
        }
    }

    pub fn len(&self) -> usize {
        self.text().len()
    }
}

/// The end of `wanted` if `text` has it at `at`. A blank in it stands for any number of them, and
/// none is needed behind a control word.
fn matches_at(text: &str, at: usize, wanted: &str) -> Option<usize> {
    let mut at = at;
    for c in wanted.chars() {
        if c == ' ' {
            let after = skip_blanks(text, at);
            (after > at || ends_in_control_word(&text[..at])).then_some(())?;
            at = after;
        } else {
            text.get(at..)?.starts_with(c).then_some(())?;
            at += c.len_utf8();
        }
    }
    // A control word does not go on.
    let joined = ends_in_control_word(wanted) && starts_with_letter(&text[at..]);
    (!joined).then_some(at)
}

/// Whether a text is the true value of xparse, and what stands for it.
pub(super) const TRUE: &str = "\\BooleanTrue";
pub(super) const FALSE: &str = "\\BooleanFalse";

impl Expander {
    /// Reads one argument at `cursor`. The outer None says that it is missing, the inner that it is
    /// none of the body's.
    pub(super) fn argument(
        &mut self,
        argument: &Argument,
        cursor: &mut Cursor,
    ) -> Option<Option<Given>> {
        let missing = |default: &Option<String>| {
            Some(Some(Given::Made(default.clone().unwrap_or_else(|| NO_VALUE.to_owned()))))
        };
        match argument {
            Argument::Mandatory => self.mandatory(cursor).map(Some),
            Argument::Bracketed(default) => {
                let Some(open) = self.next_token(*cursor) else { return missing(default) };
                let text = &self.frames[open.frame].text;
                if text.as_bytes().get(open.at) != Some(&b'[') {
                    return missing(default);
                }
                let end = bracket_end(text, open.at)?;
                let given = Given::Part(Rc::clone(text), open.at + 1, end - 1);
                *cursor = Cursor { frame: open.frame, at: end };
                Some(Some(given))
            }
            Argument::Between(open_mark, close_mark, default) => {
                let Some(open) = self.next_token(*cursor) else { return missing(default) };
                let text = Rc::clone(&self.frames[open.frame].text);
                if !text[open.at..].starts_with(*open_mark) {
                    return missing(default);
                }
                let from = open.at + open_mark.len_utf8();
                let mut buffer = [0; 4];
                let to = self.find_delimiter(&text, from, close_mark.encode_utf8(&mut buffer))?;
                *cursor = Cursor { frame: open.frame, at: to + close_mark.len_utf8() };
                Some(Some(Given::Part(text, from, to)))
            }
            Argument::Token(mark) => {
                let found = self
                    .next_token(*cursor)
                    .filter(|place| self.frames[place.frame].text[place.at..].starts_with(*mark));
                if let Some(place) = found {
                    *cursor = Cursor { frame: place.frame, at: place.at + mark.len_utf8() };
                }
                let value = if found.is_some() { TRUE } else { FALSE };
                Some(Some(Given::Made(value.to_owned())))
            }
            Argument::Literal(literal) => {
                let place = self.next_token(*cursor)?;
                let text = &self.frames[place.frame].text;
                let end = matches_at(text, place.at, literal)?;
                *cursor = Cursor { frame: place.frame, at: end };
                Some(None)
            }
            Argument::Until(delimiter) => {
                // The end of a replacement goes on in the text around it.
                let mut place = *cursor;
                while place.at >= self.frames[place.frame].text.len() {
                    place.frame = place.frame.checked_sub(1)?;
                    place.at = self.frames[place.frame].at;
                }
                let text = Rc::clone(&self.frames[place.frame].text);
                let to = self.find_delimiter(&text, place.at, delimiter)?;
                let end = matches_at(&text, to, delimiter)?;
                *cursor = Cursor { frame: place.frame, at: end };
                // A group that is the whole argument loses its braces.
                let from = place.at;
                let whole = group_end(&text, from) == Some(to) && to > from;
                let braces = usize::from(whole);
                Some(Some(Given::Part(text, from + braces, to - braces)))
            }
        }
    }

    pub(super) fn mandatory(&mut self, cursor: &mut Cursor) -> Option<Given> {
        let open = self.next_token(*cursor)?;
        let text = Rc::clone(&self.frames[open.frame].text);
        let (from, to, end) = match text.as_bytes().get(open.at)? {
            b'{' => match group_end(&text, open.at) {
                Some(end) => (open.at + 1, end - 1, end),
                None => {
                    self.work += text.len() - open.at;
                    return None;
                }
            },
            b'}' => return None,
            b'\\' => {
                let end = open.at + 1 + control_name(&text, open.at).len();
                (open.at, end, end)
            }
            _ => {
                let length = text[open.at..].chars().next().map_or(0, char::len_utf8);
                (open.at, open.at + length, open.at + length)
            }
        };
        *cursor = Cursor { frame: open.frame, at: end };
        Some(Given::Part(text, from, to))
    }

    /// Where `delimiter` is, outside of groups, near enough and in the same paragraph.
    pub(super) fn find_delimiter(
        &mut self,
        text: &str,
        from: usize,
        delimiter: &str,
    ) -> Option<usize> {
        let bytes = text.as_bytes();
        let last = bytes.len().min(from + DELIMITED_BYTES);
        let mut at = from;
        while at < last {
            if text.is_char_boundary(at) && matches_at(text, at, delimiter).is_some() {
                return Some(at);
            }
            match bytes[at] {
                b'{' => match group_end(text, at) {
                    Some(end) => {
                        at = end;
                        continue;
                    }
                    None => break,
                },
                b'}' => break,
                b'\\' => at += 1,
                b'\n' if bytes.get(at + 1) == Some(&b'\n') => break,
                _ => {}
            }
            at += 1;
        }
        self.work += at.min(bytes.len()) - from;
        None
    }

    /// The next place after blanks; when a replacement ends, in the text around it. None at the
    /// end of the paragraph or the document.
    pub(super) fn next_token(&self, mut cursor: Cursor) -> Option<Cursor> {
        loop {
            let text = &self.frames[cursor.frame].text;
            cursor.at = skip_blanks(text, cursor.at);
            match text.as_bytes().get(cursor.at) {
                Some(b'\n') => return None,
                Some(_) => return Some(cursor),
                None => {
                    cursor.frame = cursor.frame.checked_sub(1)?;
                    cursor.at = self.frames[cursor.frame].at;
                }
            }
        }
    }
}
