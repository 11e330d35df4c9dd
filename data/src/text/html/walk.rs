//! From tokens to text.

use std::borrow::Cow;

use super::Page;
use super::layout::{Break, Layout, decode};
use super::tag::Tag;
use super::tokenizer::{Token, Tokenizer};
use crate::text::script_marks::Script;

/// Open elements that are tracked; deeper ones are only counted, as browsers do.
const DEEPEST: usize = 512;
/// Lists inside lists that are told apart.
const DEEPEST_LIST: u32 = 64;

/// How the text is written.
#[derive(Clone, Copy)]
pub(super) struct Style<'a> {
    /// Blank lines between paragraphs.
    pub blank_lines: bool,
    /// Written before each item of a list without numbers.
    pub list_marker: &'a str,
    /// Leave out the text inside `<nav>`.
    pub skip_navigation: bool,
}

/// The title and the text of `html`.
pub(super) fn walk(html: &str, style: Style<'_>) -> Page {
    // The standard drops NUL from text.
    let without_nul;
    let html = if memchr::memchr(0, html.as_bytes()).is_some() {
        without_nul = html.replace('\0', "");
        &without_nul
    } else {
        html
    };
    let mut walker = Walker {
        style,
        layout: Layout::with_capacity(html.len() / 4),
        title: None,
        open: Vec::new(),
        deeper: 0,
        skipped: 0,
        verbatim: 0,
        lists: 0,
        nonempty_lists: 0,
        numbers: Vec::new(),
        script: None,
        after_pre: false,
    };
    for token in Tokenizer::new(html) {
        walker.token(token);
    }
    Page { title: walker.title, text: walker.layout.finish() }
}

struct Walker<'a> {
    style: Style<'a>,
    layout: Layout<'a>,
    title: Option<String>,
    /// Tracked elements that are open.
    open: Vec<Tag>,
    /// Tracked elements that are open beyond [`DEEPEST`].
    deeper: u64,
    /// How many of `open` hide their text.
    skipped: u32,
    /// How many of `open` keep their white space.
    verbatim: u32,
    /// How many of `open` are lists.
    lists: u32,
    /// Bit per open list: whether it has an item.
    nonempty_lists: u64,
    /// Of the open lists, outermost first, the number of the next item and what it grows by; none
    /// for a list without numbers.
    numbers: Vec<Option<(i64, i64)>>,
    /// A superscript or subscript whose text, or the text behind which, comes next.
    script: Option<(Script, Side)>,
    /// Whether a `<pre>` has just begun: a line feed directly after it is not part of it.
    after_pre: bool,
}

/// Where text stands to a superscript or subscript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Inside,
    Behind,
}

impl Walker<'_> {
    fn token(&mut self, token: Token<'_>) {
        let after_pre = std::mem::take(&mut self.after_pre);
        match token {
            Token::Text(_) if self.skipped > 0 => {}
            Token::Text(text) if self.verbatim > 0 => {
                let text = match text.strip_prefix("\r\n").or(text.strip_prefix('\n')) {
                    Some(rest) if after_pre => rest,
                    _ => text,
                };
                self.layout.verbatim(text);
            }
            Token::Text(text) => match self.script.take() {
                Some((script, Side::Inside)) => self.layout.script(script, text),
                Some((_, Side::Behind)) => self.layout.after_script(text),
                None => self.layout.flow(text),
            },
            Token::Start(tag, self_closing, attributes) => {
                self.start(tag, self_closing, attributes);
            }
            Token::End(tag) => self.end(tag),
            Token::Raw(tag, text) => self.raw(tag, text),
        }
    }

    fn start(&mut self, tag: Tag, self_closing: bool, attributes: &str) {
        if tag.ends_svg() && self.open.last() == Some(&Tag::Svg) {
            self.pop();
        }
        if self.skipped == 0 {
            self.separate(tag, attributes);
            self.script = match tag {
                Tag::Sup => Some((Script::Super, Side::Inside)),
                Tag::Sub => Some((Script::Sub, Side::Inside)),
                // Emphasis inside or behind a script changes nothing.
                Tag::Other => self.script,
                _ => None,
            };
        }
        // `/>` means something on foreign elements only.
        if tag.is_tracked() && !(tag == Tag::Svg && self_closing) {
            self.push(tag);
            if tag.is_list()
                && let Some(numbers) = self.numbers.last_mut()
            {
                *numbers = (tag == Tag::Ol).then(|| numbering(attributes));
            }
        }
    }

    /// Asks for the white space that `tag` brings.
    fn separate(&mut self, tag: Tag, attributes: &str) {
        match tag {
            Tag::Br if self.verbatim > 0 => self.layout.verbatim("\n"),
            Tag::Br if self.style.blank_lines => self.layout.line_feed(),
            Tag::Li => {
                let bit = 1 << self.lists.min(DEEPEST_LIST - 1);
                let first = self.nonempty_lists & bit == 0 && self.lists < 2;
                self.nonempty_lists |= bit;
                let marker = match self.numbers.last_mut() {
                    Some(Some((next, step))) => {
                        let number = number_attribute(attributes, "value").unwrap_or(*next);
                        *next = number.saturating_add(*step);
                        Cow::Owned(format!("{number}. "))
                    }
                    _ => Cow::Borrowed(self.style.list_marker),
                };
                self.layout.item(marker, first);
            }
            _ if tag.is_cell() => self.layout.ask(Break::Tab),
            _ if tag.is_block() => self.layout.ask(self.block_break(tag)),
            _ => {}
        }
    }

    /// What stands before and after a block.
    fn block_break(&self, tag: Tag) -> Break {
        let nested_list = tag.is_list() && self.lists > 0;
        if self.style.blank_lines && !tag.is_row() && !nested_list && tag != Tag::Br {
            Break::Paragraph
        } else {
            Break::Line
        }
    }

    fn end(&mut self, tag: Tag) {
        if tag.is_tracked() {
            if self.deeper > 0 {
                self.deeper -= 1;
            } else {
                self.close(tag);
            }
        }
        if self.skipped > 0 {
            return;
        }
        match tag {
            Tag::Li => self.layout.end_item(),
            // `</br>` and `</p>` without a start are elements of their own.
            Tag::Br => self.separate(tag, ""),
            Tag::Sup => self.script = Some((Script::Super, Side::Behind)),
            Tag::Sub => self.script = Some((Script::Sub, Side::Behind)),
            _ if tag.is_block() => self.layout.ask(self.block_break(tag)),
            _ => {}
        }
    }

    fn raw(&mut self, tag: Tag, text: &str) {
        match tag {
            _ if self.skipped > 0 => {}
            Tag::Title if self.title.is_none() => {
                let decoded = decode(text);
                let words: Vec<_> = decoded.split_ascii_whitespace().collect();
                self.title = (!words.is_empty()).then(|| words.join(" "));
            }
            Tag::Plaintext | Tag::Xmp => {
                self.layout.ask(Break::Line);
                // Nothing in it is a character reference.
                self.layout.verbatim(&text.replace('&', "&amp;"));
                self.layout.ask(Break::Line);
            }
            _ => {}
        }
    }

    fn push(&mut self, tag: Tag) {
        if self.open.len() >= DEEPEST {
            self.deeper += 1;
            return;
        }
        self.open.push(tag);
        self.skipped += u32::from(self.hides(tag));
        self.verbatim += u32::from(tag.is_verbatim());
        self.after_pre = tag.is_verbatim();
        if tag.is_list() {
            self.lists += 1;
            self.nonempty_lists &= !(1 << self.lists.min(DEEPEST_LIST - 1));
            self.numbers.push(None);
        }
    }

    fn pop(&mut self) {
        let Some(tag) = self.open.pop() else {
            return;
        };
        self.skipped -= u32::from(self.hides(tag));
        self.verbatim -= u32::from(tag.is_verbatim());
        self.lists -= u32::from(tag.is_list());
        if tag.is_list() {
            self.numbers.pop();
        }
    }

    /// Closes the innermost open `tag` and all inside it, unless a barrier stands between.
    fn close(&mut self, tag: Tag) {
        for at in (0..self.open.len()).rev() {
            if self.open[at] == tag {
                while self.open.len() > at {
                    self.pop();
                }
                return;
            }
            // A table's own end tag reaches through its cells.
            if self.open[at].is_barrier() && !(tag == Tag::Table && self.open[at] != Tag::Template)
            {
                return;
            }
        }
    }

    fn hides(&self, tag: Tag) -> bool {
        tag.is_skipped() || (tag == Tag::Nav && self.style.skip_navigation)
    }
}

/// The first number of a list and what it grows by, from the attributes of its `<ol>`.
fn numbering(attributes: &str) -> (i64, i64) {
    let reversed = attribute(attributes, "reversed").is_some();
    let first = number_attribute(attributes, "start");
    // How many items a reversed list has is not known here.
    match (reversed, first) {
        (true, Some(first)) => (first, -1),
        (_, first) => (first.unwrap_or(1), 1),
    }
}

fn number_attribute(attributes: &str, name: &str) -> Option<i64> {
    let value = attribute(attributes, name)?;
    let number: i64 = value.trim().parse().ok()?;
    (number.unsigned_abs() < 1_000_000).then_some(number)
}

/// The value of the attribute called `name`, without its quotes; empty when it has none.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = attributes;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
        let end = rest.find(|c: char| c.is_ascii_whitespace() || "=>/".contains(c))?;
        let found = rest[..end].eq_ignore_ascii_case(name);
        let before = rest.len();
        rest = rest[end..].trim_ascii_start();
        let mut value = "";
        if let Some(after) = rest.strip_prefix('=') {
            let after = after.trim_ascii_start();
            (value, rest) = match after.strip_prefix(['"', '\'']) {
                Some(quoted) => quoted.split_once(&after[..1])?,
                None => {
                    let ends = |c: char| c.is_ascii_whitespace() || c == '>';
                    after.split_at(after.find(ends).unwrap_or(after.len()))
                }
            };
        }
        if found {
            return Some(value);
        }
        // A `=` or `>` where a name should be.
        if rest.len() == before {
            rest = rest.get(1..)?;
        }
    }
}
