//! Wikitext cut into calls of templates, their arguments and text, as MediaWiki's preprocessor does it.
//!
//! One pass with a stack of open braces and links. What does not close is text. Every part is a range of
//! the text, so nothing is copied.

use std::ops::Range;

use memchr::memmem;

use crate::step::wikitext::tags::{TAG_COUNT, TagKind, find_closing, tag_at};

/// Deepest nesting of braces and links; deeper ones are text.
const MAX_DEPTH: usize = 64;

/// Bytes that may begin or end a part.
const MARKUP: [bool; 256] = {
    let mut table = [false; 256];
    let markup = b"{}[]|=<";
    let mut index = 0;
    while index < markup.len() {
        table[markup[index] as usize] = true;
        index += 1;
    }
    table
};

/// Wikitext with its structure.
#[derive(Clone, Debug, Default)]
pub(super) struct Parsed {
    /// The wikitext.
    pub text: String,
    /// Its parts, in order, none left out.
    pub nodes: Vec<Node>,
}

/// A part of wikitext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// As it is.
    Text(Range<usize>),
    /// `{{{name|default}}}`.
    Parameter { name: Vec<Node>, default: Option<Vec<Node>>, source: Range<usize> },
    /// `{{title|part|part}}`.
    Call { title: Vec<Node>, parts: Vec<Part>, source: Range<usize> },
}

/// What stands between two `|` of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// What is before the first `=`.
    pub name: Option<Vec<Node>>,
    /// What is behind it, or all.
    pub value: Vec<Node>,
}

/// Braces or brackets that are open.
struct Open {
    braces: bool,
    count: usize,
    start: usize,
    parts: Vec<OpenPart>,
}

/// A part that is not finished.
#[derive(Default)]
struct OpenPart {
    /// Where its `|` is; the first has none.
    pipe: usize,
    /// What is before the `=`, and where that is.
    name: Option<(Vec<Node>, usize)>,
    nodes: Vec<Node>,
}

struct Parser<'a> {
    text: &'a str,
    root: Vec<Node>,
    stack: Vec<Open>,
    /// Tags for which no closing tag follows any more: they are looked for once.
    unclosed: [bool; TAG_COUNT],
}

impl Parsed {
    /// Cuts the wikitext of a page.
    pub fn of_page(text: String) -> Self {
        let mut parser = Parser {
            text: &text,
            root: Vec::new(),
            stack: Vec::new(),
            unclosed: [false; TAG_COUNT],
        };
        parser.run();
        let nodes = parser.root;
        Self { text, nodes }
    }

    /// Cuts the wikitext of a template, of what it gives to the pages that call it.
    pub fn of_template(text: &str) -> Self {
        Self::of_page(transcluded(text))
    }
}

impl Parser<'_> {
    fn run(&mut self) {
        let bytes = self.text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let plain = bytes[at..].iter().position(|&byte| MARKUP[usize::from(byte)]);
            let end = plain.map_or(bytes.len(), |length| at + length);
            self.push_text(at..end);
            at = end;
            let Some(&byte) = bytes.get(at) else { break };
            // Only braces and brackets are taken together: of others a long run would be counted at
            // each of them.
            let run = match byte {
                b'|' | b'=' | b'<' => 1,
                _ => bytes[at..].iter().take_while(|&&other| other == byte).count(),
            };
            at = match byte {
                b'{' | b'[' if run >= 2 && self.stack.len() < MAX_DEPTH => self.open(at, run),
                b'}' if run >= 2 => self.close_braces(at, run),
                b']' if run >= 2 => self.close_brackets(at, run),
                b'|' if self.in_braces() => {
                    if let Some(open) = self.stack.last_mut() {
                        open.parts.push(OpenPart { pipe: at, ..OpenPart::default() });
                    }
                    at + 1
                }
                b'=' if self.in_braces() => self.equals(at),
                b'<' => self.tag(at),
                _ => self.text_to(at, at + run),
            };
        }
        while let Some(open) = self.stack.pop() {
            let nodes = as_text(open);
            self.nodes().extend(nodes);
        }
    }

    fn in_braces(&self) -> bool {
        self.stack.last().is_some_and(|open| open.braces)
    }

    fn nodes(&mut self) -> &mut Vec<Node> {
        match self.stack.last_mut().and_then(|open| open.parts.last_mut()) {
            Some(part) => &mut part.nodes,
            None => &mut self.root,
        }
    }

    fn push_text(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let nodes = self.nodes();
        match nodes.last_mut() {
            Some(Node::Text(last)) if last.end == range.start => last.end = range.end,
            _ => nodes.push(Node::Text(range)),
        }
    }

    fn text_to(&mut self, from: usize, to: usize) -> usize {
        self.push_text(from..to);
        to
    }

    fn open(&mut self, at: usize, run: usize) -> usize {
        let braces = self.text.as_bytes()[at] == b'{';
        // Of brackets two open a link; those before them are text.
        let count = if braces { run } else { 2 };
        self.push_text(at..at + run - count);
        let start = at + run - count;
        self.stack.push(Open { braces, count, start, parts: vec![OpenPart::default()] });
        at + run
    }

    fn close_brackets(&mut self, at: usize, run: usize) -> usize {
        match self.stack.pop_if(|open| !open.braces) {
            Some(open) => {
                let nodes = as_text(open);
                self.nodes().extend(nodes);
                self.text_to(at, at + 2)
            }
            None => self.text_to(at, at + run),
        }
    }

    fn close_braces(&mut self, mut at: usize, mut run: usize) -> usize {
        while run >= 2 && self.in_braces() {
            let Some(open) = self.stack.pop() else { break };
            let matched = run.min(open.count).min(3);
            let left = open.count - matched;
            let source = open.start + left..at + matched;
            let node = closed(open.parts, matched == 3, source);
            at += matched;
            run -= matched;
            if left >= 2 {
                // The braces before those are still open, with this as what they hold so far.
                let part = OpenPart { nodes: vec![node], ..OpenPart::default() };
                let parts = vec![part];
                self.stack.push(Open { braces: true, count: left, start: open.start, parts });
            } else {
                self.push_text(open.start..open.start + left);
                self.nodes().push(node);
            }
        }
        self.text_to(at, at + run)
    }

    fn equals(&mut self, at: usize) -> usize {
        let open = self.stack.last_mut().filter(|open| open.parts.len() > 1);
        match open.and_then(|open| open.parts.last_mut()).filter(|part| part.name.is_none()) {
            Some(part) => {
                part.name = Some((std::mem::take(&mut part.nodes), at));
                at + 1
            }
            None => self.text_to(at, at + 1),
        }
    }

    /// Comments, and elements whose content is no wikitext, are text as they stand.
    fn tag(&mut self, at: usize) -> usize {
        let bytes = self.text.as_bytes();
        if bytes[at..].starts_with(b"<!--") {
            let end =
                memmem::find(&bytes[at + 4..], b"-->").map_or(bytes.len(), |end| at + end + 7);
            return self.text_to(at, end);
        }
        let Some(tag) = tag_at(bytes, at) else { return self.text_to(at, at + 1) };
        let opaque = matches!(
            tag.kind,
            TagKind::Raw(_) | TagKind::Formula | TagKind::Nowiki | TagKind::Code
        );
        let holds = opaque && !tag.closing && !tag.empty && !self.unclosed[tag.index];
        let closing = holds.then(|| find_closing(bytes, tag.end, tag.index)).flatten();
        self.unclosed[tag.index] |= holds && closing.is_none();
        self.text_to(at, closing.map_or(tag.end, |(_, end)| end))
    }
}

/// A call or parameter that is whole.
fn closed(parts: Vec<OpenPart>, parameter: bool, source: Range<usize>) -> Node {
    let mut parts = parts.into_iter();
    let first = parts.next().map(|part| part.nodes).unwrap_or_default();
    if parameter {
        // A default may have a `=` in it; what is behind a second `|` is nothing.
        let default = parts.next().map(|part| match part.name {
            Some((mut nodes, equals)) => {
                nodes.push(Node::Text(equals..equals + 1));
                nodes.extend(part.nodes);
                nodes
            }
            None => part.nodes,
        });
        return Node::Parameter { name: first, default, source };
    }
    let part = |part: OpenPart| Part { name: part.name.map(|(name, _)| name), value: part.nodes };
    Node::Call { title: first, parts: parts.map(part).collect(), source }
}

/// What did not close, as the text it is.
fn as_text(open: Open) -> Vec<Node> {
    let mut nodes = vec![Node::Text(open.start..open.start + open.count)];
    for (index, part) in open.parts.into_iter().enumerate() {
        if index > 0 {
            nodes.push(Node::Text(part.pipe..part.pipe + 1));
        }
        if let Some((name, equals)) = part.name {
            nodes.extend(name);
            nodes.push(Node::Text(equals..equals + 1));
        }
        nodes.extend(part.nodes);
    }
    nodes
}

/// What a template gives to the pages that call it: without comments and what is in `<noinclude>`,
/// with what is in `<includeonly>`; if there is `<onlyinclude>`, what is in that alone.
fn transcluded(text: &str) -> String {
    let only = text.contains("<onlyinclude>") && text.contains("</onlyinclude>");
    if !only {
        return included(text);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("<onlyinclude>") {
        let (inside, after) = after.split_once("</onlyinclude>").unwrap_or((after, ""));
        out.push_str(&included(inside));
        rest = after;
    }
    out
}

fn included(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'<', &bytes[at..]) {
        let start = at + found;
        out.push_str(&text[at..start]);
        if bytes[start..].starts_with(b"<!--") {
            let end = memmem::find(&bytes[start + 4..], b"-->");
            at = end.map_or(bytes.len(), |end| start + end + 7);
            at = without_line(text, &mut out, at);
            continue;
        }
        let Some(tag) = tag_at(bytes, start) else {
            out.push('<');
            at = start + 1;
            continue;
        };
        let name = text[start..tag.end].trim_start_matches(['<', '/']).to_ascii_lowercase();
        let is = |wanted: &str| {
            let rest = name.strip_prefix(wanted);
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        };
        let closing =
            || find_closing(bytes, tag.end, tag.index).map_or(bytes.len(), |(_, end)| end);
        if is("noinclude") {
            at = if tag.closing || tag.empty { tag.end } else { closing() };
        } else if is("includeonly") || is("onlyinclude") {
            at = tag.end;
        } else if matches!(tag.kind, TagKind::Nowiki) && !tag.closing && !tag.empty {
            at = closing();
            out.push_str(&text[start..at]);
        } else {
            out.push_str(&text[start..tag.end]);
            at = tag.end;
        }
    }
    out.push_str(&text[at..]);
    out
}

/// A comment alone on its line takes the line with it: `out` ends where the comment begins, which ends
/// at `end`. Returns where the text goes on.
fn without_line(text: &str, out: &mut String, end: usize) -> usize {
    let before = out.trim_end_matches([' ', '\t']);
    let after = text[end..].trim_start_matches([' ', '\t']);
    if before.ends_with('\n') && after.starts_with('\n') {
        out.truncate(before.len());
        return text.len() - after.len() + 1;
    }
    end
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The structure, written with other signs.
    fn shown(parsed: &Parsed, nodes: &[Node]) -> String {
        let show = |node: &Node| match node {
            Node::Text(range) => parsed.text[range.clone()].to_owned(),
            Node::Parameter { name, default, .. } => {
                let default =
                    default.as_ref().map(|default| format!("?{}", shown(parsed, default)));
                format!("<{}{}>", shown(parsed, name), default.unwrap_or_default())
            }
            Node::Call { title, parts, source } => {
                assert!(parsed.text[source.clone()].starts_with("{{"));
                assert!(parsed.text[source.clone()].ends_with("}}"));
                let parts = parts.iter().map(|part| {
                    let name = part.name.as_ref().map(|name| format!("{}:=", shown(parsed, name)));
                    format!(";{}{}", name.unwrap_or_default(), shown(parsed, &part.value))
                });
                format!("({}{})", shown(parsed, title), parts.collect::<String>())
            }
        };
        nodes.iter().map(show).collect()
    }

    /// Whose time would grow with the square of the length, this does not see the end of.
    #[test]
    fn a_million_of_anything_is_text() {
        for unit in
            ["|", "=", "<", "{", "[", "}", "]", "{{a|", "[[a|", "{{a|b=", "{{a|=|", "<nowiki>"]
        {
            let text = unit.repeat(1_000_000 / unit.len());
            let parsed = Parsed::of_page(text.clone());
            let Some(Node::Text(first)) = parsed.nodes.first() else { panic!("{unit}") };
            assert_eq!(first.start, 0, "{unit}");
            assert!(shown(&parsed, &parsed.nodes) == text, "{unit}");
        }
    }

    #[test]
    fn braces_match_as_in_mediawiki() {
        for (text, expected) in [
            ("a {{b}} c", "a (b) c"),
            ("{{b|c|d=e=f}}", "(b;c;d:=e=f)"),
            ("{{{1}}}", "<1>"),
            ("{{{1|x=y|z}}}", "<1?x=y>"),
            ("{{{{{1}}}}}", "(<1>)"),
            ("{{{{{1|}}}|a}}", "(<1?>;a)"),
            ("{{{{a}}}}", "{<a>}"),
            ("{{ {{a}}}}", "( (a))"),
            ("{{{ {{a}} }}}", "< (a) >"),
            ("{{{{a}} }}", "((a) )"),
            ("{{{a}}", "{(a)"),
            ("{{a}}}", "(a)}"),
            ("{{a|[[b|c]]}}", "(a;[[b|c]])"),
            ("{{a|[[b=c]]|d}}", "(a;[[b=c]];d)"),
            ("{{a|b", "{{a|b"),
            ("{{a|b=c {{d|e}}", "{{a|b=c (d;e)"),
            ("[[a {{b}}", "[[a (b)"),
            ("{{a|<nowiki>|}}</nowiki>}}", "(a;<nowiki>|}}</nowiki>)"),
            ("{{a|<!-- | }} -->b}}", "(a;<!-- | }} -->b)"),
            ("{{a|<math>x|y</math>|c}}", "(a;<math>x|y</math>;c)"),
            ("a = b | c", "a = b | c"),
            ("{{a=b|c}}", "(a=b;c)"),
            ("[[[a]]]", "[[[a]]]"),
            ("{| x |} {{a|{{!}}}}", "{| x |} (a;(!))"),
        ] {
            let parsed = Parsed::of_page(text.to_owned());
            assert_eq!(shown(&parsed, &parsed.nodes), expected, "{text}");
        }
        let deep = "{{a|".repeat(5000) + &"}}".repeat(5000);
        let parsed = Parsed::of_page(deep.clone());
        assert!(!parsed.nodes.is_empty());
    }

    #[test]
    fn templates_give_what_is_for_pages() {
        for (text, expected) in [
            ("a<noinclude>doc</noinclude>b", "ab"),
            ("a<noinclude>never closed", "a"),
            ("<includeonly>a</includeonly><noinclude>b</noinclude>", "a"),
            (
                "x<onlyinclude>a<noinclude>n</noinclude></onlyinclude>y<onlyinclude>b</onlyinclude>",
                "ab",
            ),
            ("a<!-- c -->b", "ab"),
            ("a\n<!-- c -->\nb", "a\nb"),
            ("a\n <!-- c --> \nb <!-- d -->\ne", "a\nb \ne"),
            ("<NOINCLUDE>x</NOINCLUDE >a<noinclude/>", "a"),
            ("<nowiki><noinclude></nowiki>a", "<nowiki><noinclude></nowiki>a"),
            ("a < b <stdio.h>", "a < b <stdio.h>"),
        ] {
            assert_eq!(transcluded(text), expected, "{text}");
        }
    }
}
