//! Where the body of a paper begins and ends.

use std::ops::Range;

use memchr::memchr;

use crate::text::tex::{
    VerbatimFinder, bracket_end, control_name, environment, is_word, skip_blanks,
};

/// Words of a paragraph that is no title.
const PROSE_WORDS: usize = 8;

/// The body found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body {
    /// From the first section to the back matter.
    pub range: Range<usize>,
    /// Where the document ends: back matter lies between the range and this.
    pub document_end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landmark {
    Section,
    Abstract,
    Document,
    BackMatter,
    End,
}

/// Finds the body: from the first section-like command, or else the abstract, or else
/// `\begin{document}` if `fallback`, or else, in plain TeX, the first bold heading or paragraph, to the appendix, the bibliography or the end of the
/// document, whichever is first.
pub(super) fn find_body(text: &str, fallback: bool) -> Option<Body> {
    let mut section = None;
    let mut substitutes = [None; 2];
    for (landmark, at) in landmarks(text, 0) {
        match landmark {
            Landmark::Section => {
                section = Some(at);
                break;
            }
            Landmark::Abstract => substitutes[0] = substitutes[0].or(Some(at)),
            Landmark::Document => substitutes[1] = substitutes[1].or(Some(at)),
            // Sections of the appendix are not the body's.
            Landmark::BackMatter | Landmark::End => break,
        }
    }
    let plain = || bold_heading(text).or_else(|| first_paragraph(text).filter(|_| fallback));
    let substitute = substitutes.into_iter().flatten().next().filter(|_| fallback);
    let start = section.or(substitute).or_else(plain)?;
    let mut back_matter = None;
    let mut document_end = text.len();
    for (landmark, at) in landmarks(text, start) {
        match landmark {
            Landmark::BackMatter => back_matter = back_matter.or(Some(at)),
            Landmark::End => {
                document_end = at;
                break;
            }
            _ => {}
        }
    }
    Some(Body { range: start..back_matter.unwrap_or(document_end), document_end })
}

/// The landmarks of `text` from `at` on. Of a `\begin{document}` the place after it counts.
fn landmarks(text: &str, mut at: usize) -> impl Iterator<Item = (Landmark, usize)> {
    let mut verbatim = VerbatimFinder::of(text);
    std::iter::from_fn(move || {
        loop {
            let here = at + memchr(b'\\', &text.as_bytes()[at..])?;
            let name = control_name(text, here);
            let after = here + 1 + name.len();
            at = after;
            if !is_word(name) {
                continue;
            }
            if let Some(found) = verbatim.find(text, here, name) {
                at = found.end;
                continue;
            }
            if let Some((landmark, place)) = landmark(text, name, after) {
                return Some((landmark, place.unwrap_or(here)));
            }
        }
    })
}

fn landmark(text: &str, name: &str, after: usize) -> Option<(Landmark, Option<usize>)> {
    let found = match name {
        "chapter" | "part" | "section" | "subsection" | "subsubsection" | "paragraph"
        | "subparagraph" => {
            let at = after + usize::from(text[after..].starts_with('*'));
            let at = skip_blanks(text, at);
            let at = bracket_end(text, at).map_or(at, |end| skip_blanks(text, end));
            text[at..].starts_with('{').then_some(Landmark::Section)?
        }
        // Plain TeX, harvmac and phyzzx, AMS-TeX.
        "beginsection" | "newsec" | "head" | "subhead" | "heading" => Landmark::Section,
        "subsec" | "subsubsec" | "sect" => {
            let at = skip_blanks(text, after);
            text[at..].starts_with('{').then_some(Landmark::Section)?
        }
        "abstract" => text[after..].starts_with('{').then_some(Landmark::Abstract)?,
        // AMS-TeX.
        "endtopmatter" => return Some((Landmark::Document, Some(after))),
        "Refs" | "appendix" | "printbibliography" | "listrefs" | "refout" | "footatend"
        | "REFERENCES" | "references" => Landmark::BackMatter,
        "bibliography" => {
            let at = skip_blanks(text, after);
            text[at..].starts_with('{').then_some(Landmark::BackMatter)?
        }
        "bye" | "enddocument" => Landmark::End,
        "begin" => match environment(text, after)? {
            ("abstract", _) => Landmark::Abstract,
            ("document", end) => return Some((Landmark::Document, Some(end))),
            ("references" | "REFERENCES" | "thebibliography" | "appendix" | "appendices", _) => {
                Landmark::BackMatter
            }
            _ => return None,
        },
        // The end of plain TeX has no name behind it.
        "end" if text[after..].trim_start().is_empty() => Landmark::End,
        "end" => match environment(text, after)? {
            ("document", _) => Landmark::End,
            _ => return None,
        },
        _ => return None,
    };
    Some((found, None))
}

/// Where the first bold line with a number begins, `{\bf 1. Introduction}`, as headings were set in
/// plain TeX.
fn bold_heading(text: &str) -> Option<usize> {
    memchr::memmem::find_iter(text.as_bytes(), b"\\bf").find_map(|at| {
        let after = text[at + 3..].trim_start_matches(['{', ' ', '\n', '~']);
        let number = after.trim_start_matches(|c: char| c.is_ascii_digit() || "IVX".contains(c));
        let digits = after.len() - number.len();
        let numbered = (1..=4).contains(&digits)
            && (number.starts_with(['.', ')', ':']) || number.starts_with([' ', '~', '\\']));
        let named =
            ["Introduction", "INTRODUCTION", "\\S"].iter().any(|name| after.starts_with(name));
        let wanted = (numbered || named)
            && text.as_bytes().get(at + 3).is_none_or(|b| !b.is_ascii_alphabetic());
        wanted.then(|| memchr::memrchr(b'\n', &text.as_bytes()[..at]).map_or(0, |feed| feed + 1))
    })
}

/// Where the first paragraph of prose begins.
fn first_paragraph(text: &str) -> Option<usize> {
    let mut at = 0;
    for paragraph in text.split_inclusive("\n\n") {
        let words = paragraph.split_ascii_whitespace().filter(|word| {
            word.len() > 1
                && word.bytes().all(|b| b.is_ascii_alphabetic() || b",.;:'-".contains(&b))
        });
        if words.count() >= PROSE_WORDS {
            return Some(at);
        }
        at += paragraph.len();
    }
    None
}

/// `text` with three or more blank lines in a row made one, and none at either end.
pub(super) fn collapse_blank_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1);
    let mut blank = 0;
    for line in text.trim_matches(['\n', ' ', '\t']).split('\n') {
        if line.trim_ascii().is_empty() {
            blank += 1;
            continue;
        }
        for _ in 0..if blank > 2 { 1 } else { blank } {
            out.push('\n');
        }
        blank = 0;
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn body(text: &str) -> Option<&str> {
        find_body(text, true).map(|body| &text[body.range])
    }

    #[test]
    fn the_body_begins_at_the_first_section_of_any_level() {
        for section in [
            "\\section{A}",
            "\\section*{A}",
            "\\section [short] {A}",
            "\\section[a{]}b]{A}",
            "\\chapter{A}",
            "\\part{A}",
            "\\subsection{A}",
            "\\subsubsection{A}",
            "\\paragraph{A}",
            "\\subparagraph{A}",
            "\\beginsection 1. A",
        ] {
            let text = format!("title \\begin{{abstract}}x\\end{{abstract}} {section} text");
            assert_eq!(body(&text), Some(&*format!("{section} text")), "{section}");
        }
        for other in ["\\sectionmark{A}", "\\section", "{\\section}{a}", "\\verb|\\section{A}|"] {
            assert_eq!(body(other), None, "{other}");
        }
    }

    #[test]
    fn without_sections_the_abstract_or_the_document_begins_it() {
        let text = "x \\begin{document} y \\begin{abstract} z \\end{document} w";
        assert_eq!(body(text), Some("\\begin{abstract} z "));
        assert_eq!(body("x \\begin{document} y \\end{document} w"), Some(" y "));
        assert_eq!(body("\\title x \\endtopmatter y \\bye"), Some(" y "));
        assert_eq!(find_body(text, false), None);
        assert_eq!(body("x"), None);
    }

    #[test]
    fn plain_tex_has_headings_of_its_own() {
        for (text, expected) in [
            ("\\Title{x}{y}\n\\newsec{One}\nText.\n\\listrefs\n\\bye", "\\newsec{One}\nText.\n"),
            (
                "\\centerline{\\bf A Title}\n\n\\noindent{\\bf 1. One}\n\nText.\n\\bye\n",
                "\\noindent{\\bf 1. One}\n\nText.\n",
            ),
            ("\\centerline{\\bf II. Two}\nText.\n\\end\n", "\\centerline{\\bf II. Two}\nText.\n"),
            (
                "\\magnification=1200\n\\centerline{A Title}\n\nThese are quite enough words to be some prose.\n\\bye",
                "These are quite enough words to be some prose.\n",
            ),
            ("\\head 1. One\\endhead x\\Refs y", "\\head 1. One\\endhead x"),
        ] {
            assert_eq!(body(text), Some(expected), "{text}");
        }
        assert_eq!(body("\\centerline{\\bf A Title} x \\bye"), None);
    }

    #[test]
    fn the_body_ends_at_the_back_matter() {
        for end in [
            "\\appendix",
            "\\begin{references}",
            "\\begin{REFERENCES}",
            "\\begin{thebibliography}{9}",
            "\\bibliography{refs}",
            "\\printbibliography",
            "\\end{document}",
        ] {
            let text = format!("\\section{{A}} text {end} \\section{{B}} more \\end{{document}}");
            assert_eq!(body(&text), Some("\\section{A} text "), "{end}");
        }
        let kept = "\\section{A} \\bibliographystyle{plain} \\appendixname \\verb|\\appendix|";
        assert_eq!(body(kept), Some(kept));
        let letter = "\\begin{document} text \\appendix \\section{Proof} x";
        assert_eq!(body(letter), Some(" text "));
    }

    #[test]
    fn many_blank_lines_become_one() {
        assert_eq!(
            collapse_blank_lines("\n\na\n\n\nb\n \n\n\t\nc\n\nd\n\n"),
            "a\n\n\nb\n\nc\n\nd\n"
        );
    }

    #[test]
    fn hostile_text_takes_linear_time() {
        for unit in ["\\section[", "\\begin{verbatim}", "\\begin{", "\\abstract"] {
            body(&unit.repeat(100_000));
        }
    }
}
