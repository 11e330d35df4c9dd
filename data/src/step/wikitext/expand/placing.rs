//! What comes out of a call, put into the page: words stay, boxes go.

use super::functions::ERROR;
use super::parse::{Node, Parsed};
use super::{Expanded, Expander, Frame, begins_a_line};

/// Stands for a call that gives no words: an empty template, which goes as others do.
const REMOVED: &str = "{{}}";
/// Bytes before and behind a call that are looked at.
const AROUND: usize = 256;
/// What names of boxes of facts and of navigation have in them, in lower case.
const BOX_NAMES: [&str; 22] = [
    "infobox",
    "infocaja",
    "infocaseta",
    "infokutija",
    "infookvir",
    "infopolje",
    "infoboks",
    "taxobox",
    "taxocaixa",
    "navbox",
    "navigation",
    "sidebar",
    "ficha de",
    "info/",
    "faktamall",
    "faktaboks",
    "карточка",
    "картка",
    "кутия",
    "кутија",
    "succession box",
    "automatic taxo",
];
/// What markup of boxes has in it.
const BOX_MARKUP: [&str; 5] = ["<table", "<div", "<gallery", "<dl", "<timeline"];
/// What elements that are not seen, or not printed, have in their tags.
const HIDDEN: [&str; 4] = ["display:none", "display: none", "noprint", "visibility:hidden"];
/// Longest of them, in bytes.
const LONGEST_HIDDEN: usize = 2048;
/// Elements that may be hidden.
const MAY_BE_HIDDEN: [&str; 5] = ["span", "sup", "small", "sub", "abbr"];

/// Whether a template of this name is a box whatever comes out of it.
pub(super) fn is_box_name(name: &str) -> bool {
    let name = name.to_lowercase().replace('_', " ");
    BOX_NAMES.iter().any(|part| name.contains(part))
}

impl Expander<'_> {
    /// Expands the calls of the page one after the other.
    pub(super) fn page(&mut self, parsed: &Parsed) -> Expanded {
        let frame = Frame { parsed, arguments: None };
        let mut page =
            Expanded { text: String::with_capacity(parsed.text.len()), ..Expanded::default() };
        // Calls that open a table or close one, where they stand.
        let mut halves = Vec::new();
        for node in &parsed.nodes {
            let source = match node {
                Node::Text(range) | Node::Parameter { source: range, .. } => {
                    page.text.push_str(&parsed.text[range.clone()]);
                    continue;
                }
                Node::Call { source, .. } => source.clone(),
            };
            let written = &parsed.text[source.clone()];
            self.begin_call();
            self.expanded = 0;
            let mut text = String::new();
            let failed = self.node(node, frame, &mut text).is_err();
            if failed || text == written || text.contains(ERROR) {
                page.text.push_str(written);
                continue;
            }
            page.templates += u64::from(self.expanded > 0);
            let text = without_hidden(&text);
            let after = &parsed.text[source.end..];
            let note = is_note(&text) && is_alone(&page.text, after);
            let tables = table_ends(&text);
            let is_box = tables.0.min(tables.1) > 0 || has_box(&text);
            if is_box || note || text.trim().is_empty() {
                page.boxes += u64::from(is_box);
                page.text.push_str(REMOVED);
                continue;
            }
            if begins_a_line(&text) && !page.text.is_empty() && !page.text.ends_with('\n') {
                page.text.push('\n');
            }
            let start = page.text.len();
            page.text.push_str(&text);
            if tables.0 != tables.1 {
                halves.push(start..page.text.len());
            }
        }
        let (opened, closed) = table_ends(&page.text);
        if opened != closed {
            // The other half is not there: it must not take what is between them away.
            for half in halves.into_iter().rev() {
                page.text.replace_range(half, REMOVED);
            }
        }
        page
    }
}

/// Tables that begin and that end in `text`.
fn table_ends(text: &str) -> (usize, usize) {
    let mut ends = (0, 0);
    for line in text.lines() {
        let line = line.trim_start_matches([' ', '\t', ':']);
        ends.0 += usize::from(line.starts_with("{|"));
        ends.1 += usize::from(line.starts_with("|}") && !line.starts_with("|}}"));
    }
    ends
}

fn has_box(text: &str) -> bool {
    let bytes = text.as_bytes();
    memchr::memchr_iter(b'<', bytes).any(|at| {
        BOX_MARKUP.iter().any(|tag| {
            let found = bytes.get(at..at + tag.len());
            found.is_some_and(|found| found.eq_ignore_ascii_case(tag.as_bytes()))
        })
    })
}

/// Whether nothing else but calls stands in the line between `before` and `after`, as far as it is looked
/// at.
fn is_alone(before: &str, after: &str) -> bool {
    let start = before.len().saturating_sub(AROUND);
    let mut line = &before[before.floor_char_boundary(start)..];
    while let Some(rest) = line.strip_suffix([' ', '\t']).or_else(|| line.strip_suffix(REMOVED)) {
        line = rest;
    }
    let after = &after[..after.floor_char_boundary(AROUND)];
    let rest = after.split('\n').next().unwrap_or_default().trim();
    let begins = line.ends_with('\n') || line.is_empty() && start == 0;
    begins && (rest.is_empty() || rest.starts_with("{{"))
}

/// Whether a line is a note about the page: indented, or all in italics.
fn is_note(text: &str) -> bool {
    let text = text.trim();
    text.starts_with(':')
        || text.starts_with("''") && text.ends_with("''") && !text.starts_with("'''")
}

/// `text` without the elements that readers do not see: keys to sort by, notes to editors.
fn without_hidden(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        match hidden_end(tag) {
            Some(end) => rest = &tag[end..],
            None => {
                out.push('<');
                rest = &tag[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Where the hidden element ends that `text` begins with; none when it begins with another.
fn hidden_end(text: &str) -> Option<usize> {
    // Such elements are short; looking no further keeps the time in bounds.
    let text = &text[..text.floor_char_boundary(LONGEST_HIDDEN)];
    let tag_end = text.find('>')?;
    let tag = text[..tag_end].to_ascii_lowercase();
    let name = *MAY_BE_HIDDEN.iter().find(|name| {
        let rest = tag[1..].strip_prefix(**name);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_whitespace()))
    })?;
    if !HIDDEN.iter().any(|word| tag.contains(word)) || tag.ends_with('/') {
        return None;
    }
    let mut open = 1usize;
    let mut at = tag_end + 1;
    loop {
        let next = at + text[at..].find('<')?;
        let after = text[next + 1..].trim_start_matches('/');
        let is_name = after.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name))
            && !after[name.len()..].starts_with(|c: char| c.is_ascii_alphanumeric());
        let end = next + text[next..].find('>')? + 1;
        at = next + 1;
        if !is_name {
            continue;
        }
        at = end;
        match text[next..].starts_with("</") {
            true => open -= 1,
            false if text[..end].ends_with("/>") => {}
            false => open += 1,
        }
        if open == 0 {
            return Some(end);
        }
    }
}
