//! Expansion of a document's own macros.
//!
//! The text is read once, from top to bottom as TeX does: a definition is taken in and deleted
//! where it stands, a call is replaced and the replacement read in its turn. A redefinition
//! therefore holds from its place on, up to the end of its group. Of the document's own conditions
//! (`\newif`) the branch stays that holds. Blanks after a call stay as written, so that lines keep
//! their ends.

use std::rc::Rc;

use memchr::memchr;

use super::Part;
use super::comments::opens;
use super::definition::{Argument, Macro, NO_VALUE, is_definition, is_prefix, read_definition};
use super::macros::{Macros, Outcome, is_callable, substitute, substituted_length};
use crate::text::tex::{
    VerbatimFinder, after_blank_rest, bracket_end, control_name, ends_in_control_word, environment,
    group_end, skip_blanks, starts_with_letter,
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

/// Longest delimited argument.
const DELIMITED_BYTES: usize = 1 << 12;

/// An argument of a call.
enum Given {
    /// A part of a text.
    Part(Rc<str>, usize, usize),
    /// A default.
    Made(String),
}

impl Given {
    fn text(&self) -> &str {
        match self {
            Self::Part(text, from, to) => &text[*from..*to],
            Self::Made(text) => text,
        }
    }

    fn len(&self) -> usize {
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

/// Whether a text is the true value of xparse, and what stands for it.
const TRUE: &str = "\\BooleanTrue";
const FALSE: &str = "\\BooleanFalse";

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

    /// Conditions of the document: sets them, and takes out the branch that does not hold.
    fn condition(&mut self, text: &str, at: usize, name: &str) -> bool {
        let after = at + 1 + name.len();
        // TeX reads the blank behind a name with it.
        let next = after + usize::from(text[after..].starts_with(' '));
        if self.macros.set_condition(name) {
            let end = match at == 0 || text.as_bytes()[at - 1] == b'\n' {
                true => after_blank_rest(text, after).unwrap_or(next),
                false => next,
            };
            self.counts.definitions.add(end - at);
            self.go_to(end);
            self.seam = true;
            return true;
        }
        if let Some(holds) = self.macros.condition(name) {
            let end = match holds {
                true => {
                    self.branches.push(0);
                    next
                }
                false => {
                    self.work += text.len() - after;
                    let found = (self.work <= self.most_work)
                        .then(|| self.skip_branch(text, after))
                        .flatten();
                    let Some((end, is_else)) = found else { return false };
                    self.work -= text.len() - end;
                    if is_else {
                        self.branches.push(0);
                    }
                    end + usize::from(text[end..].starts_with(' '))
                }
            };
            self.go_to(end);
            self.seam = true;
            return true;
        }
        let Some(open) = self.branches.last_mut() else { return false };
        match name {
            "fi" if *open == 0 => {
                self.branches.pop();
                self.go_to(next);
            }
            "else" if *open == 0 => {
                let Some((end, _)) = self.skip_branch(text, after) else { return false };
                self.branches.pop();
                self.go_to(end + usize::from(text[end..].starts_with(' ')));
            }
            "fi" => {
                *open -= 1;
                return false;
            }
            _ => {
                if name.starts_with("if") && opens(name) {
                    *open += 1;
                }
                return false;
            }
        }
        self.seam = true;
        true
    }

    /// Position behind the `\fi` or `\else` that ends the branch at `at`, and whether it is an
    /// `\else`.
    fn skip_branch(&self, text: &str, mut at: usize) -> Option<(usize, bool)> {
        let mut depth = 0usize;
        loop {
            at += memchr(b'\\', &text.as_bytes()[at..])?;
            let name = control_name(text, at);
            at += 1 + name.len();
            match name {
                "fi" if depth == 0 => return Some((at, false)),
                "else" if depth == 0 => return Some((at, true)),
                "fi" => depth -= 1,
                "newif" => {
                    at = skip_blanks(text, at);
                    at += usize::from(text[at..].starts_with('\\'));
                }
                _ if name.starts_with("if") && opens(name) => depth += 1,
                _ => {}
            }
        }
    }

    /// `\IfBooleanTF`, `\IfNoValueTF` and their like: the branch that holds, where it is known.
    fn choice(&mut self, text: &str, name: &str, after: usize, depth: usize) -> bool {
        let Some((kind, which)) = ["TF", "T", "F"]
            .iter()
            .find_map(|which| Some((name.strip_suffix(which)?, *which)))
            .filter(|(kind, _)| matches!(*kind, "IfBoolean" | "IfNoValue" | "IfValue"))
        else {
            return false;
        };
        let mut at = after;
        let mut group = || {
            let open = skip_blanks(text, at);
            let end = group_end(text, open)?;
            at = end;
            Some(&text[open + 1..end - 1])
        };
        let Some(value) = group().map(str::trim) else { return false };
        let holds = match (kind, value) {
            ("IfBoolean", TRUE) => true,
            ("IfBoolean", FALSE) => false,
            ("IfBoolean", _) => return false,
            ("IfNoValue", value) => value == NO_VALUE,
            (_, value) => value != NO_VALUE,
        };
        let (then, otherwise) = match which {
            "TF" => (group(), group()),
            "T" => (group(), Some("")),
            _ => (Some(""), group()),
        };
        let (Some(then), Some(otherwise)) = (then, otherwise) else { return false };
        let chosen: Rc<str> = if holds { then } else { otherwise }.into();
        self.work += at - after;
        self.go_to(at);
        self.frames.push(Frame { text: chosen, at: 0, depth: depth + 1 });
        self.seam = true;
        true
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

    /// Reads one argument at `cursor`. The outer None says that it is missing, the inner that it is
    /// none of the body's.
    fn argument(&mut self, argument: &Argument, cursor: &mut Cursor) -> Option<Option<Given>> {
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

    fn mandatory(&mut self, cursor: &mut Cursor) -> Option<Given> {
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
    fn find_delimiter(&mut self, text: &str, from: usize, delimiter: &str) -> Option<usize> {
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
    fn next_token(&self, mut cursor: Cursor) -> Option<Cursor> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { depth: 20, growth: 4 };

    fn expanded(text: &str) -> String {
        expand(text, LIMITS, &mut ExpansionCounts::default()).0
    }

    #[test]
    fn macros_of_all_forms_are_replaced_and_their_definitions_deleted() {
        for (text, expected) in [
            ("\\newcommand{\\a}{x}\n\\a\\ \\a{}\\a.\\ab", "x\\ xx.\\ab"),
            ("\\newcommand\\a{x}\\a", "x"),
            ("\\renewcommand{\\a}[1]{<#1>}\\a{y}\\a z\\a\\b", "<y><z><\\b>"),
            ("\\newcommand{\\a}[2][d]{<#1,#2>}\\a{x}\\a[y]{z}", "<d,x><y,z>"),
            ("\\def\\a#1#2{#2#1}\\a{x}{y} \\a xy", "yx yx"),
            ("\\def\\a{\\b}\\def\\b{\\c}\\def\\c{x}\\a", "x"),
            ("\\providecommand{\\a}{x}\\providecommand{\\a}{y}\\a", "x"),
            ("\\DeclareMathOperator{\\tr}{Tr}$\\tr A$", "$\\operatorname{Tr} A$"),
            ("\\long\\def\\a#1{#1\n\n}\\a{x}", "x\n\n"),
            ("\\newcommand{\\be}{%\n\\begin{equation}}", ""),
            ("a\n\\newcommand{\\x}{y}  \nb", "a\nb"),
            // A body is text, no template.
            ("\\newcommand{\\a}{\\g<0>\\1\\\\$1}\\a", "\\g<0>\\1\\\\$1"),
            ("\\let\\old\\a\\def\\a{x}\\old\\a", "\\a x"),
            ("\\def\\a{x}\\let\\b=\\a\\def\\a{y}\\b\\a", "xy"),
        ] {
            assert_eq!(expanded(text), expected, "{text}");
        }
    }

    #[test]
    fn arguments_of_all_kinds_are_read() {
        for (text, expected) in [
            ("\\def\\pair(#1,#2){<#1;#2>}\\pair(a,{b,c})", "<a;b,c>"),
            ("\\def\\norm|#1|{[#1]}\\norm|x|", "[x]"),
            ("\\def\\a#1.{<#1>}\\a{y}. \\a yz.", "<y> <yz>"),
            ("\\def\\a#1\\end#2{<#1;#2>}\\a x\\end y", "<x;y>"),
            ("\\NewDocumentCommand\\a{s m}{\\IfBooleanTF{#1}{S}{N}#2}\\a*{x}\\a{y}", "SxNy"),
            ("\\NewDocumentCommand\\a{m o}{#1\\IfNoValueTF{#2}{-}{(#2)}}\\a{x}[y]\\a{z}", "x(y)z-"),
            ("\\NewDocumentCommand\\a{D<>{d} m}{#1#2}\\a<e>{x}\\a{y}", "exdy"),
            (
                "\\DeclarePairedDelimiter{\\abs}{\\lvert}{\\rvert}$\\abs{x}$ $\\abs*{y}$ $\\abs[\\big]{z}$",
                "$\\lvert x\\rvert$ $\\left\\lvert y\\right\\rvert$ $\\big\\lvert z\\big\\rvert$",
            ),
        ] {
            assert_eq!(expanded(text), expected, "{text}");
        }
    }

    #[test]
    fn the_branch_that_holds_stays() {
        for (text, expected) in [
            ("\\newif\\ifd\\dfalse a \\ifd X \\else Y \\fi b", "a Y b"),
            ("\\newif\\ifd\n\\dtrue\na \\ifd X\\else Y\\fi b", "\na Xb"),
            ("\\newif\\ifd a\\ifd X\\fi b", "ab"),
            (
                "\\newif\\ifd\\dtrue\\ifd\\ifnum1=1 x\\else y\\fi\\else z\\fi",
                "\\ifnum1=1 x\\else y\\fi",
            ),
            ("\\newif\\ifd\\ifd\\ifnum1=1 x\\else y\\fi\\else z\\fi", "z"),
            ("\\newif\\ifd\\ifd never ends", "\\ifd never ends"),
            ("\\ifother x\\else y\\fi", "\\ifother x\\else y\\fi"),
        ] {
            assert_eq!(expanded(text).trim(), expected.trim(), "{text}");
        }
    }

    #[test]
    fn definitions_end_with_their_group_and_what_is_left_is_counted() {
        assert_eq!(expanded("\\def\\a{x}{\\def\\a{y}\\a}\\a"), "x{y}x".trim_start_matches('x'));
        assert_eq!(expanded("\\begin{q}\\def\\a{y}\\a\\end{q}\\a"), "\\begin{q}y\\end{q}\\a");
        assert_eq!(expanded("{\\gdef\\a{y}}\\a {\\global\\def\\b{z}}\\b"), "{}y {}z");
        assert_eq!(expanded("\\def\\part{\\partial}$\\part_\\mu$"), "$\\partial_\\mu$");
        let mut counts = ExpansionCounts::default();
        expand("\\def\\a#2{x}\\def\\b{y}\\a{1} \\b \\alpha", LIMITS, &mut counts);
        assert_eq!(counts.left, 1);
    }

    #[test]
    fn definitions_of_environments_go() {
        assert_eq!(
            expanded(
                "a\n\\newenvironment{m}{\\begin{t}}{\\end{t}}\n\\newtheorem{l}{L}\nb\\bibliographystyle{plain}"
            ),
            "a\nb"
        );
    }

    #[test]
    fn a_redefinition_holds_from_its_place_on() {
        assert_eq!(expanded("\\def\\a{x}\\a\\def\\a{y}\\a"), "xy");
    }

    #[test]
    fn arguments_may_come_from_the_text_around_and_nest() {
        assert_eq!(expanded("\\def\\a{\\b}\\def\\b#1{<#1>}\\a{x}"), "<x>");
        assert_eq!(expanded("\\def\\b#1{<#1>}\\b{\\b{\\b x}}"), "<<<x>>>");
        assert_eq!(
            expanded("\\def\\d#1{\\expandafter\\def\\csname b#1\\endcsname{<#1>}}\\d{X}\\bX"),
            "<X>"
        );
    }

    #[test]
    fn control_words_do_not_join_letters() {
        assert_eq!(
            expanded("\\def\\e{\\epsilon}\\e{}x \\e1 a\\def\\.{\\cdot}\\.b"),
            "\\epsilon x \\epsilon1 a\\cdot b"
        );
        assert_eq!(expanded("\\def\\a#1{\\b#1}\\a x"), "\\b x");
    }

    #[test]
    fn verbatim_text_stays() {
        let verbatim = "\\verb|\\a|\\begin{verbatim}\\a\\def\\a{y}\\end{verbatim}";
        assert_eq!(expanded(&format!("\\def\\a{{x}}{verbatim}\\a")), format!("{verbatim}x"));
    }

    #[test]
    fn what_cannot_be_replaced_stays_as_it_is() {
        for (text, expected) in [
            ("\\def\\a{\\a x}\\a", "\\a"),
            ("\\def\\a{\\b}\\def\\b{\\a}\\a", "\\b"),
            ("\\def\\a#1.{x}\\a y\n\nz.", "\\a y\n\nz."),
            ("\\def\\a(#1){x}\\a y", "\\a y"),
            ("\\def\\a#1{x}{\\a}", "{\\a}"),
            ("\\def\\a#1{x}\\a\n\ny", "\\a\n\ny"),
            ("\\renewcommand{\\section}[1]{#1}\\section{x}", "\\section{x}"),
            ("\\newcommand{\\a}{open", "\\newcommand{\\a}{open"),
        ] {
            assert_eq!(expanded(text), expected, "{text}");
        }
    }

    #[test]
    fn of_the_preamble_only_definitions_count() {
        let mut counts = ExpansionCounts::default();
        let text =
            "\\usepackage{x}\\newcommand{\\a}{x}\\title{\\a}\n\\begin{document}\\a\\end{document}";
        let (out, preamble) = expand(text, LIMITS, &mut counts);
        assert_eq!(out, "\\begin{document}x\\end{document}");
        assert_eq!((counts.found, counts.expanded, counts.definitions.parts), (1, 1, 1));
        let before = text.find("\\begin").map_or(0, |at| at as u64);
        assert_eq!(preamble.bytes + counts.definitions.bytes, before);
    }

    #[test]
    fn growth_is_bounded() {
        let mut text = String::from("\\def\\a{\\b\\b}");
        for (name, next) in ('b'..'t').zip('c'..'u') {
            text += &format!("\\def\\{name}{{\\{next}\\{next}\\{next}\\{next}}}");
        }
        let mut empty = text.clone();
        text += "\\def\\t{xxxxxxxxxx}\\a\\a\\a";
        empty += "\\def\\t{}\\a\\a\\a";
        for text in [
            text,
            empty,
            "\\def\\a#1{#1#1#1#1#1#1#1#1}".to_owned() + &"\\a{".repeat(50) + "x" + &"}".repeat(50),
        ] {
            let mut counts = ExpansionCounts::default();
            let (out, _) = expand(&text, LIMITS, &mut counts);
            assert!(out.len() <= 4 * text.len() + GROWTH_ALLOWANCE, "{}", out.len());
            assert!(counts.overflow + counts.too_deep > 0);
        }
    }

    #[test]
    fn hostile_text_takes_bounded_time() {
        for unit in [
            "\\def\\a{",
            "\\newcommand{",
            "\\a{",
            "\\def\\a#1{#1}\\a{",
            "\\long",
            "\\begin{verbatim}",
            "\\def\\x{\\x}\\x",
        ] {
            let text = "\\def\\a#1{#1#1}".to_owned() + &unit.repeat(1_000_000 / unit.len());
            let (out, _) = expand(&text, LIMITS, &mut ExpansionCounts::default());
            assert!(out.len() <= 4 * text.len() + GROWTH_ALLOWANCE);
        }
    }
}
