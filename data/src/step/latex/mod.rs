//! TeX source of papers to text: comments, own macros, preamble and bibliography removed.
//!
//! LLaMA removed everything before the first section, the bibliography, comments, and expanded
//! the users' definitions (arXiv 2302.13971, section 2.1). The details are RedPajama's without
//! its mistakes. Formulas and markup stay TeX.

mod comments;
mod cut;
mod definition;
mod expand;
mod macros;

use serde::{Deserialize, Serialize};

use super::{Removed, Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, Reason};
use crate::error::{DataError, Result};
use crate::text::tex::is_tex;
use comments::strip_comments;
use cut::{collapse_blank_lines, find_body};
use expand::{ExpansionCounts, Limits, expand};

/// TeX source to text. The document's text is one whole paper, its files joined
/// (the arXiv source does that).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatexOptions {
    /// Papers that come out shorter are dropped (integer, code points, default 1000).
    pub min_chars: usize,
    /// Where there is no section, begin at the abstract or else at the start of the document,
    /// instead of dropping the paper (bool, default true).
    pub fallback: bool,
    /// How deep macros may use macros (integer, 1 to 100, default 20).
    pub max_depth: usize,
    /// How many times longer macros may make a paper (integer, 1 to 100, default 4). Calls
    /// beyond that stay as they are.
    pub max_growth: usize,
}

impl Default for LatexOptions {
    fn default() -> Self {
        Self { min_chars: 1000, fallback: true, max_depth: 20, max_growth: 4 }
    }
}

impl StepOptions for LatexOptions {
    /// Version 1 knew no plain TeX and fewer forms of macros.
    fn version(&self) -> u32 {
        2
    }

    fn validate(&self, key: &str) -> Result<()> {
        for (name, value) in [("max_depth", self.max_depth), ("max_growth", self.max_growth)] {
            if !(1..=100).contains(&value) {
                return Err(DataError::config(format!("{key}.{name}"), value, "1 to 100"));
            }
        }
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(Latex { options: self.clone() }))
    }
}

/// Text taken out while a paper is worked on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    parts: u64,
    bytes: u64,
}

impl Part {
    fn add(&mut self, bytes: usize) {
        if bytes > 0 {
            self.parts += 1;
            self.bytes += bytes as u64;
        }
    }
}

struct Latex {
    options: LatexOptions,
}

impl Step for Latex {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        if !is_tex(&document.text) {
            return Verdict::unwanted("not_latex", "no command of LaTeX in the text");
        }
        let unix = document
            .text
            .contains('\r')
            .then(|| document.text.replace("\r\n", "\n").replace('\r', "\n"));
        let source = unix.as_ref().unwrap_or(&document.text);
        let (mut comments, mut disabled) = (Part::default(), Part::default());
        let plain = strip_comments(source, &mut comments, &mut disabled);
        let limits = Limits { depth: self.options.max_depth, growth: self.options.max_growth };
        let mut macros = ExpansionCounts::default();
        let (text, mut preamble) = expand(&plain, limits, &mut macros);
        let Some(body) = find_body(&text, self.options.fallback) else {
            return Verdict::unwanted("no_section", "nothing that begins a body");
        };
        preamble.add(body.range.start);
        let (mut bibliography, mut after_end) = (Part::default(), Part::default());
        bibliography.add(body.document_end - body.range.end);
        after_end.add(text.len() - body.document_end);
        let text = collapse_blank_lines(&text[body.range]);
        if text.trim().is_empty() {
            let detail = "nothing between the beginning of the body and its end".to_owned();
            return Verdict::Drop { reason: Reason::EMPTY, detail };
        }
        let chars = text.chars().count();
        if chars < self.options.min_chars {
            let detail = format!("{chars} code points, min_chars is {}", self.options.min_chars);
            return Verdict::unwanted("too_short", detail);
        }
        document.text = text;
        document.set_metadata("n_macros_expanded", macros.expanded);
        document.set_metadata("n_macros_left", macros.left);
        for (reason, part) in [
            ("comments", comments),
            ("disabled", disabled),
            ("definitions", macros.definitions),
            ("preamble", preamble),
            ("bibliography", bibliography),
            ("after_end", after_end),
        ] {
            if part.parts > 0 {
                let Part { parts, bytes } = part;
                counts.remove_parts(reason, Removed { parts, bytes });
            }
        }
        for (name, count) in [
            ("macros_found", macros.found),
            ("macros_expanded", macros.expanded),
            ("macros_unsupported", macros.unsupported),
            ("macros_recursive", macros.recursive),
            ("macros_too_deep", macros.too_deep),
            ("macros_overflow", macros.overflow),
            ("macros_left", macros.left),
        ] {
            if count > 0 {
                *counts.noted.entry(name.to_owned()).or_default() += count;
            }
        }
        Verdict::Keep
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(options: &LatexOptions, text: &str) -> (Verdict, Document, StepCounts) {
        let mut document = Document { id: "x".into(), text: text.into(), ..Document::default() };
        let mut counts = StepCounts::default();
        let verdict = options.build("latex").unwrap().apply(&mut document, &mut counts);
        (verdict, document, counts)
    }

    fn short() -> LatexOptions {
        LatexOptions { min_chars: 0, ..LatexOptions::default() }
    }

    const PAPER: &str = r"\documentclass{article} % class
\usepackage{amsmath}
\newcommand{\R}{\mathbb{R}}
\newcommand{\norm}[2][2]{\left\| #2 \right\|_{#1}}
\def\eps{\varepsilon}
\title{On \R}
\begin{document}
\maketitle
\begin{abstract}We study \R.\end{abstract}
% \section{Not here}
\section{Introduction}
In $\R^n$ we have $\norm{x} < \norm[1]{x}$, 10\% of the time.% always
\begin{comment}
Draft.
\end{comment}
\begin{verbatim}
\R stays % here
\end{verbatim}
\renewcommand{\eps}{\epsilon}
For $\eps>0$ \dots

The end.
\begin{thebibliography}{9}\bibitem{a} A.\end{thebibliography}
\end{document}
Notes.
";

    #[test]
    fn a_paper_without_text_is_dropped() {
        for text in ["\\begin{document}", "\\begin{document} \n\n\t\\end{document}"] {
            let (verdict, ..) = apply(&short(), text);
            let empty =
                matches!(&verdict, Verdict::Drop { reason, .. } if *reason == Reason::EMPTY);
            assert!(empty, "{text}: {verdict:?}");
        }
    }

    #[test]
    fn a_paper_becomes_its_body() {
        let (verdict, document, counts) = apply(&short(), PAPER);
        assert_eq!(verdict, Verdict::Keep);
        assert_eq!(
            document.text,
            r"\section{Introduction}
In $\mathbb{R}^n$ we have $\left\| x \right\|_{2} < \left\| x \right\|_{1}$, 10\% of the time.
\begin{verbatim}
\R stays % here
\end{verbatim}
For $\epsilon>0$ \dots

The end.
"
        );
        assert_eq!(document.metadata()["n_macros_expanded"], 5);
        assert_eq!(counts.noted["macros_found"], 4);
        assert_eq!(counts.removed()["comments"].parts, 4);
        let removed: u64 = counts.removed().values().map(|removed| removed.bytes).sum();
        assert!(removed > 400 && removed < PAPER.len() as u64, "{removed}");
        assert_eq!(counts.removed()["bibliography"].parts, 1);
    }

    #[test]
    fn what_is_no_paper_is_dropped_with_its_reason() {
        let reason = |options: &LatexOptions, text: &str| match apply(options, text).0 {
            Verdict::Drop { reason, .. } => reason.name().to_owned(),
            Verdict::Keep => String::new(),
        };
        assert_eq!(reason(&short(), "Just text, 100% of it."), "not_latex");
        assert_eq!(reason(&short(), "\\def\\a{x} \\a \\bye"), "no_section");
        assert_eq!(reason(&LatexOptions::default(), PAPER), "too_short");
        let strict = LatexOptions { fallback: false, ..short() };
        let letter = "\\begin{document}\\begin{abstract}x\\end{abstract} y\\end{document}";
        assert_eq!(reason(&strict, letter), "no_section");
        assert_eq!(reason(&short(), letter), "");
        let exact = |chars: usize| "\\section{é}".to_owned() + &"é".repeat(chars - 12) + "\n";
        assert_eq!(reason(&LatexOptions::default(), &exact(1000)), "");
        assert_eq!(reason(&LatexOptions::default(), &exact(999)), "too_short");
    }

    #[test]
    fn nothing_is_counted_for_a_dropped_paper() {
        let (_, document, counts) = apply(&LatexOptions::default(), PAPER);
        assert_eq!(counts, StepCounts::default());
        assert_eq!(document.text, PAPER);
    }

    #[test]
    fn old_line_ends_are_read() {
        let (_, unix, _) = apply(&short(), PAPER);
        for end in ["\r\n", "\r"] {
            let (_, other, _) = apply(&short(), &PAPER.replace('\n', end));
            assert_eq!(other.text, unix.text);
        }
    }

    #[test]
    fn options_read_from_yaml() {
        let options: LatexOptions = serde_yaml::from_str("{min_chars: 5}").unwrap();
        assert_eq!(options, LatexOptions { min_chars: 5, ..LatexOptions::default() });
        assert!(serde_yaml::from_str::<LatexOptions>("{min_char: 5}").is_err());
        let bad = LatexOptions { max_depth: 0, ..options };
        assert!(bad.validate("steps.0.latex").unwrap_err().to_string().contains("max_depth"));
    }

    /// Text made of what TeX gives a meaning to.
    fn tex() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            Just("\\def"),
            Just("\\newcommand"),
            Just("\\let"),
            Just("\\a"),
            Just("\\b"),
            Just("\\section"),
            Just("\\begin"),
            Just("\\end"),
            Just("{document}"),
            Just("{verbatim}"),
            Just("{comment}"),
            Just("\\iffalse"),
            Just("\\else"),
            Just("\\fi"),
            Just("\\ifx"),
            Just("\\verb"),
            Just("|"),
            Just("\\url"),
            Just("{"),
            Just("}"),
            Just("["),
            Just("]"),
            Just("#1"),
            Just("##"),
            Just("%"),
            Just("\\"),
            Just("\n"),
            Just(" "),
            Just("é"),
            Just("x"),
            Just("\\csname"),
            Just("\\endcsname"),
            Just("\\expandafter"),
            Just("*"),
            Just("="),
            Just("\\appendix"),
            Just("{\\a}"),
            Just("{\\b}{x#1\\a{#1}}"),
            Just("[2][é]"),
            Just("\\NewDocumentCommand"),
            Just("{O{x} m}"),
        ];
        prop::collection::vec(token, 0..60).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in tex()) {
            let (_, document, _) = apply(&short(), &text);
            prop_assert!(document.text.len() <= 4 * text.len() + (64 << 10) + 1);
        }
    }
}
