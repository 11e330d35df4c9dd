//! The commands of a TeX file that take in other files.

use std::ops::Range;

use memchr::memchr2;

use crate::text::tex::{
    VerbatimFinder, bracket_end, control_name, environment, group_end, group_on_line, line_end,
    skip_blanks, takes_address,
};

/// Most bytes of a file's name.
const NAME_BYTES: usize = 1024;

/// A command that takes in another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inclusion {
    /// The command with its arguments.
    pub place: Range<usize>,
    /// The folder in front of the name, of `\import`.
    pub folder: String,
    /// The name as written.
    pub name: String,
    /// A style or class, of which only the definitions count: the ending of its file.
    pub style: Option<&'static str>,
}

/// What matters of a file when files are joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Files taken in, in order.
    pub inclusions: Vec<Inclusion>,
    /// Whether there is a `\documentclass` or `\documentstyle`.
    pub class: bool,
    /// Position after `\begin{document}`.
    pub document: Option<usize>,
    /// Where reading ends: at `\endinput`, or at the end.
    pub end: usize,
    /// Position of `\end{document}`, or the end.
    pub document_end: usize,
}

/// Reads `text`, passing over comments and verbatim text.
pub(super) fn scan(text: &str) -> Scan {
    let mut scan = Scan { end: text.len(), document_end: text.len(), ..Scan::default() };
    let mut verbatim = VerbatimFinder::of(text);
    let mut at = 0;
    while let Some(length) = memchr2(b'\\', b'%', &text.as_bytes()[at..]) {
        let here = at + length;
        if text.as_bytes()[here] == b'%' {
            at = line_end(text, here);
            continue;
        }
        let name = control_name(text, here);
        let after = here + 1 + name.len();
        at = after;
        if let Some(found) = verbatim.find(text, here, name) {
            at = found.end;
            continue;
        }
        match name {
            "begin" | "end" if document_named(text, after).is_none() => {}
            "begin" => scan.document = document_named(text, after),
            "end" => {
                scan.document_end = here;
                break;
            }
            // In the middle of a line it belongs to a condition, as in a guard against being
            // read twice.
            "endinput" if line_is_blank_before(text, here) => {
                scan.end = here;
                scan.document_end = scan.document_end.min(here);
                break;
            }
            "usepackage" | "RequirePackage" | "documentstyle" | "documentclass" | "LoadClass" => {
                scan.class |= name.starts_with("document");
                scan.inclusions.extend(styles(text, name, after));
            }
            _ if takes_address(name) => at = group_on_line(text, after).unwrap_or(after),
            _ => {
                if let Some(inclusion) = read_inclusion(text, here, name) {
                    at = inclusion.place.end;
                    scan.inclusions.push(inclusion);
                }
            }
        }
    }
    scan
}

/// Position after `{document}` at `at`, if that is there.
fn document_named(text: &str, at: usize) -> Option<usize> {
    environment(text, at).filter(|&(name, _)| name == "document").map(|(_, end)| end)
}

fn line_is_blank_before(text: &str, at: usize) -> bool {
    let before = text.as_bytes()[..at].iter().rev().take(200);
    before.copied().find(|byte| !matches!(byte, b' ' | b'\t')).is_none_or(|byte| byte == b'\n')
}

fn read_inclusion(text: &str, at: usize, name: &str) -> Option<Inclusion> {
    let after = at + 1 + name.len();
    let argument = |at: usize| {
        let open = skip_blanks(text, at);
        let end = group_on_line(text, open)?;
        let content = text[open + 1..end - 1].trim().trim_matches('"');
        // With commands in it, the name is not known without running TeX.
        let plain = content.len() <= NAME_BYTES && !content.contains(['\\', '#', '{', '|']);
        plain.then(|| (content.to_owned(), end))
    };
    let (folder, (name, end)) = match name {
        "input" | "include" | "subfile" | "subfileinclude" => {
            let file = argument(after).or_else(|| bare_name(text, after, name))?;
            (String::new(), file)
        }
        "import" | "subimport" | "inputfrom" | "subinputfrom" | "includefrom"
        | "subincludefrom" => {
            let (folder, next) = argument(after)?;
            (folder, argument(next)?)
        }
        _ => return None,
    };
    (!name.is_empty()).then_some(Inclusion { place: at..end, folder, name, style: None })
}

/// The styles and the class that a command asks for. They come behind it.
fn styles(text: &str, command: &str, after: usize) -> Vec<Inclusion> {
    let open = skip_blanks(text, after);
    let end = bracket_end(text, open);
    let options = end.map_or("", |end| &text[open + 1..end - 1]);
    let open = skip_blanks(text, end.unwrap_or(open));
    let Some(end) = group_end(text, open).filter(|end| end - open <= NAME_BYTES) else {
        return Vec::new();
    };
    let ending = if matches!(command, "usepackage" | "RequirePackage") { ".sty" } else { ".cls" };
    let names = text[open + 1..end - 1].split(',').map(|name| (name, ending));
    // The options of the old command are styles.
    let old = if command == "documentstyle" { options } else { "" };
    names
        .chain(old.split(',').map(|name| (name, ".sty")))
        .map(|(name, ending)| (name.trim(), ending))
        .filter(|(name, _)| !name.is_empty() && !name.contains(['\\', '#', '{', '%', '\n']))
        .map(|(name, ending)| Inclusion {
            place: end..end,
            folder: String::new(),
            name: name.to_owned(),
            style: Some(ending),
        })
        .collect()
}

/// The name in `\input name`, which blanks end.
fn bare_name(text: &str, at: usize, command: &str) -> Option<(String, usize)> {
    let open = skip_blanks(text, at);
    if command != "input" || open == at || text[open..].starts_with(['|', '{']) {
        return None;
    }
    let length = text[open..]
        .bytes()
        .take(NAME_BYTES)
        .take_while(|byte| !byte.is_ascii_whitespace() && !b"\\{}%#$&~^".contains(byte))
        .count();
    let name = text.get(open..open + length)?;
    (length > 0).then(|| (name.trim_matches('"').to_owned(), open + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        scan(text).inclusions.into_iter().map(|found| found.folder + &found.name).collect()
    }

    #[test]
    fn inclusions_of_all_forms_are_found() {
        assert_eq!(
            names(
                "\\input{a}\\include{b/c.tex} \\input d.tex\n\\input e\\relax\\subfile{ f }\
                 \\import{g/}{h}\\subimport{./}{i}\\input{\"j k\"}"
            ),
            ["a", "b/c.tex", "d.tex", "e", "f", "g/h", "./i", "j k"]
        );
    }

    #[test]
    fn what_only_looks_like_one_is_passed_over() {
        assert_eq!(
            names(
                "% \\input{a}\n\\%\\input{kept}\\verb|\\input{b}|\n\\begin{verbatim}\\input{c}\
                 \\end{verbatim}\\inputencoding{d}\\input{\\jobname.x}\\input|\"ls\" \\includegraphics{e}"
            ),
            ["kept"]
        );
    }

    #[test]
    fn where_the_document_begins_and_ends_is_seen() {
        let text = "\\documentclass{a}\\begin{document}x\\end{document}\\input{y}";
        let found = scan(text);
        assert!(found.class && found.inclusions.iter().all(|found| found.style.is_some()));
        let document = found.document.map(|at| &text[at..found.document_end]);
        assert_eq!(document, Some("x"));
        assert_eq!(scan("a\n  \\endinput\nb").end, 4);
        let guard = "\\ifx\\a\\b\\endinput\\fi b";
        assert_eq!(scan(guard).end, guard.len());
    }
}
