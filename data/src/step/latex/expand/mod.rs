//! Expansion of a document's own macros.
//!
//! The text is read once, from top to bottom as TeX does: a definition is taken in and deleted
//! where it stands, a call is replaced and the replacement read in its turn. A redefinition
//! therefore holds from its place on, up to the end of its group. Of the document's own conditions
//! (`\newif`) the branch stays that holds. Blanks after a call stay as written, so that lines keep
//! their ends.

mod arguments;
mod conditions;

use std::rc::Rc;

use memchr::memchr;

use self::arguments::Given;
use super::Part;
use super::definition::{Argument, Macro, is_definition, is_prefix, read_definition};
use super::macros::{Macros, Outcome, is_callable, substitute, substituted_length};
use crate::text::tex::{
    VerbatimFinder, after_blank_rest, control_name, ends_in_control_word, environment, skip_blanks,
    starts_with_letter,
};

/// Bytes every text may grow by, short ones too.
const GROWTH_ALLOWANCE: usize = 64 << 10;
/// `\long`, `\global` and the like before one definition.
const MOST_PREFIXES: usize = 4;
/// Bytes read or made for macros, for each byte of text.
const WORK_PER_BYTE: usize = 64;

/// What expansion found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ExpansionCounts {
    /// Definitions deleted.
    pub definitions: Part,
    /// Definitions whose calls were replaced.
    pub found: u64,
    /// Calls replaced.
    pub expanded: u64,
    /// Definitions with arguments of an unusual form.
    pub unsupported: u64,
    /// Definitions that call themselves.
    pub recursive: u64,
    /// Calls left because they were nested too deep.
    pub too_deep: u64,
    /// Calls left because the text would have grown too much.
    pub overflow: u64,
    /// Macros of the document that are still in its text.
    pub left: u64,
}

/// Bounds of expansion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How deep a replacement may lie in others.
    pub depth: usize,
    /// How many times longer the text may become.
    pub growth: usize,
}

/// `text`, free of comments, from `\begin{document}` on if it has one: without definitions, and
/// with the calls of macros replaced. Also the bytes before that, definitions not counted.
pub(super) fn expand(text: &str, limits: Limits, counts: &mut ExpansionCounts) -> (String, Part) {
    let document: Rc<str> = text.into();
    let mut expander = Expander::new(&document, limits, false);
    expander.run();
    if !expander.emitting {
        expander = Expander::new(&document, limits, true);
        expander.run();
    }
    expander.counts.left = expander.macros.left_in(&expander.out);
    *counts = expander.counts;
    (expander.out, expander.preamble)
}

/// A text being read: the document, or a replacement.
struct Frame {
    text: Rc<str>,
    at: usize,
    depth: usize,
}

/// A place to read arguments from: a frame and a position in it.
#[derive(Clone, Copy)]
struct Cursor {
    frame: usize,
    at: usize,
}

struct Expander {
    frames: Vec<Frame>,
    macros: Macros,
    out: String,
    /// False in the preamble, of which only the definitions count.
    emitting: bool,
    preamble: Part,
    /// Something was replaced right before: what follows must not join a control word.
    seam: bool,
    limits: Limits,
    most_bytes: usize,
    work: usize,
    most_work: usize,
    verbatim: VerbatimFinder,
    /// Conditions inside each branch that was kept, which is not closed yet.
    branches: Vec<usize>,
    counts: ExpansionCounts,
}

impl Expander {
    fn new(document: &Rc<str>, limits: Limits, emitting: bool) -> Self {
        let bytes = document.len();
        Self {
            frames: vec![Frame { text: Rc::clone(document), at: 0, depth: 0 }],
            macros: Macros::default(),
            out: String::with_capacity(if emitting { bytes } else { 0 }),
            emitting,
            preamble: Part::default(),
            seam: false,
            limits,
            most_bytes: bytes.saturating_mul(limits.growth).saturating_add(GROWTH_ALLOWANCE),
            work: 0,
            most_work: bytes.saturating_mul(WORK_PER_BYTE).saturating_add(1 << 20),
            verbatim: VerbatimFinder::of(document),
            branches: Vec::new(),
            counts: ExpansionCounts::default(),
        }
    }

    fn run(&mut self) {
        while let Some(frame) = self.frames.last_mut() {
            let from = frame.at;
            if from >= frame.text.len() {
                self.frames.pop();
                self.seam = true;
                continue;
            }
            let text = Rc::clone(&frame.text);
            let found = memchr(b'\\', &text.as_bytes()[from..]);
            let at = found.map_or(text.len(), |length| from + length);
            frame.at = at;
            let depth = frame.depth;
            // In the preamble braces are mostly those of arguments: \AtBeginDocument{\def…}.
            if self.emitting {
                self.count_groups(&text.as_bytes()[from..at]);
            }
            self.emit(&text[from..at]);
            if found.is_some() {
                self.control_sequence(&text, at, depth);
            }
        }
    }

    /// Groups that begin and end in text without control sequences.
    fn count_groups(&mut self, part: &[u8]) {
        for at in memchr::memchr2_iter(b'{', b'}', part) {
            match part[at] {
                b'{' => self.macros.begin_group(),
                _ => self.macros.end_group(),
            }
        }
    }

    fn emit(&mut self, part: &str) {
        if !self.emitting || part.is_empty() {
            return;
        }
        if self.seam {
            self.seam = false;
            if starts_with_letter(part) && ends_in_control_word(&self.out) {
                self.out.push(' ');
            }
        }
        self.out.push_str(part);
    }

    /// Goes on at `at` of the frame on top.
    fn go_to(&mut self, at: usize) {
        if let Some(frame) = self.frames.last_mut() {
            frame.at = at;
        }
    }

    fn control_sequence(&mut self, text: &str, at: usize, depth: usize) {
        let name = control_name(text, at);
        let mut after = at + 1 + name.len();
        if depth == 0 {
            if let Some(verbatim) = self.verbatim.find(text, at, name) {
                after = verbatim.end;
            } else if name == "begin"
                && !self.emitting
                && environment(text, after).is_some_and(|(name, _)| name == "document")
            {
                self.emitting = true;
                self.preamble.add(at.saturating_sub(self.counts.definitions.bytes as usize));
                self.out.reserve(text.len() - at);
            }
        }
        let plain = after == at + 1 + name.len();
        if plain && self.emitting {
            match name {
                "begin" if environment(text, after).is_some_and(|(name, _)| name != "document") => {
                    self.macros.begin_group();
                }
                "end" if environment(text, after).is_some_and(|(name, _)| name != "document") => {
                    self.macros.end_group();
                }
                "begingroup" | "bgroup" => self.macros.begin_group(),
                "endgroup" | "egroup" => self.macros.end_group(),
                _ => {}
            }
        }
        let handled = plain
            && is_callable(name)
            && (self.condition(text, at, name)
                || self.definition(text, at, name)
                || self.choice(text, name, after, depth)
                || self.call(name, after, depth));
        if !handled {
            self.emit(&text[at..after]);
            self.go_to(after);
        }
    }

    /// Takes in and deletes the definition at `at`, if there is one.
    fn definition(&mut self, text: &str, at: usize, name: &str) -> bool {
        let mut command = name;
        let mut command_at = at;
        let mut global = false;
        for _ in 0..MOST_PREFIXES {
            if !is_prefix(command) {
                break;
            }
            global |= command == "global";
            command_at = skip_blanks(text, command_at + 1 + command.len());
            if !text[command_at..].starts_with('\\') {
                return false;
            }
            command = control_name(text, command_at);
        }
        if !is_definition(command) || self.work > self.most_work {
            return false;
        }
        let Some(definition) = read_definition(text, command, command_at + 1 + command.len())
        else {
            self.work += text.len() - at;
            return false;
        };
        let mut end = definition.end;
        self.work += end - at;
        match self.macros.define(definition, global, &mut self.work) {
            Outcome::Known => self.counts.found += 1,
            Outcome::Recursive => self.counts.recursive += 1,
            Outcome::Unsupported => self.counts.unsupported += 1,
            Outcome::Ignored => {}
        }
        // A line that was only a definition goes whole.
        let line_begins = at == 0 || text.as_bytes()[at - 1] == b'\n';
        if line_begins && let Some(next) = after_blank_rest(text, end) {
            end = next;
        }
        self.counts.definitions.add(end - at);
        self.seam = true;
        self.go_to(end);
        true
    }

    /// Replaces the call of the macro `name`, which ends at `after`, if it is one.
    fn call(&mut self, name: &str, after: usize, depth: usize) -> bool {
        let Some(called) = self.macros.get(name) else { return false };
        if !self.emitting && !called.defines {
            return false;
        }
        if called.frozen {
            let body = Rc::clone(&called.body);
            self.go_to(after);
            self.emit(&body);
            self.seam = true;
            return true;
        }
        if self.work > self.most_work {
            self.counts.overflow += 1;
            return false;
        }
        if depth >= self.limits.depth {
            self.counts.too_deep += 1;
            return false;
        }
        let called = Rc::clone(called);
        let mut cursor = Cursor { frame: self.frames.len() - 1, at: after };
        let Some((body, size)) = self.replacement(&called, &mut cursor) else { return false };
        self.frames.truncate(cursor.frame + 1);
        self.go_to(cursor.at);
        self.frames.push(Frame { text: body, at: 0, depth: depth + 1 });
        self.work += size;
        self.seam = true;
        self.counts.expanded += u64::from(self.emitting);
        true
    }

    /// The body of `called` with the arguments at `cursor`, which moves behind them, and its
    /// size. None when arguments are missing or the text would grow too much.
    fn replacement(&mut self, called: &Macro, cursor: &mut Cursor) -> Option<(Rc<str>, usize)> {
        let mut arguments: Vec<Given> = Vec::new();
        if let Some(Argument::Until(_)) = called.arguments.first() {
            // The blank behind the name ends it.
            let text = &self.frames[cursor.frame].text;
            cursor.at += usize::from(text[cursor.at..].starts_with(' '));
        }
        for argument in &called.arguments {
            let given = self.argument(argument, cursor)?;
            self.work += given.as_ref().map_or(0, Given::len);
            arguments.extend(given);
        }
        if called.arguments.is_empty() {
            // \name{} is a way to end the name.
            let text = &self.frames[cursor.frame].text;
            if text[cursor.at..].starts_with("{}") {
                cursor.at += 2;
            }
        }
        let texts: Vec<&str> = arguments.iter().map(Given::text).collect();
        let size = substituted_length(&called.body, &texts);
        let waiting: usize =
            self.frames.iter().map(|frame| frame.text.len().saturating_sub(frame.at)).sum();
        if self.out.len() + waiting + size > self.most_bytes {
            self.counts.overflow += 1;
            return None;
        }
        let plain = texts.is_empty() && memchr(b'#', called.body.as_bytes()).is_none();
        let body =
            if plain { Rc::clone(&called.body) } else { substitute(&called.body, &texts).into() };
        Some((body, size + 1))
    }
}

#[cfg(test)]
mod tests;
