//! Expansion of a document's own macros.
//!
//! The text is read once, from top to bottom as TeX does: a definition is taken in and deleted
//! where it stands, a call is replaced and the replacement read in its turn. A redefinition
//! therefore holds from its place on; groups do not end it. Blanks after a call stay as written,
//! so that lines keep their ends.

use std::rc::Rc;

use memchr::memchr;

use super::Part;
use super::definition::{Macro, is_definition, is_prefix, read_definition};
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
            verbatim: VerbatimFinder::default(),
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
            self.emit(&text[from..at]);
            if found.is_some() {
                self.control_sequence(&text, at, depth);
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
        let handled = after == at + 1 + name.len()
            && is_callable(name)
            && (self.definition(text, at, name) || self.call(name, after, depth));
        if !handled {
            self.emit(&text[at..after]);
            self.go_to(after);
        }
    }

    /// Takes in and deletes the definition at `at`, if there is one.
    fn definition(&mut self, text: &str, at: usize, name: &str) -> bool {
        let mut command = name;
        let mut command_at = at;
        for _ in 0..MOST_PREFIXES {
            if !is_prefix(command) {
                break;
            }
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
        match self.macros.define(definition, &mut self.work) {
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
        let mut arguments: Vec<(Rc<str>, usize, usize)> = Vec::new();
        let mut first = None;
        if let Some(default) = &called.default {
            let open = self.next_token(*cursor)?;
            let text = &self.frames[open.frame].text;
            if text.as_bytes().get(open.at) == Some(&b'[') {
                let end = bracket_end(text, open.at)?;
                arguments.push((Rc::clone(text), open.at + 1, end - 1));
                *cursor = Cursor { frame: open.frame, at: end };
            } else {
                first = Some(default.as_str());
            }
        }
        let given = usize::from(called.default.is_some());
        for _ in given..called.parameters {
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
            self.work += end - open.at;
            arguments.push((text, from, to));
            *cursor = Cursor { frame: open.frame, at: end };
        }
        if called.parameters == 0 {
            // \name{} is a way to end the name.
            let text = &self.frames[cursor.frame].text;
            if text[cursor.at..].starts_with("{}") {
                cursor.at += 2;
            }
        }
        let texts: Vec<&str> = first
            .into_iter()
            .chain(arguments.iter().map(|(text, from, to)| &text[*from..*to]))
            .collect();
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
            ("\\def\\a#1.{x}\\a y.", "\\a y."),
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
