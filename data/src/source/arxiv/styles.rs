//! The macros that authors keep in styles and classes of their own.
//!
//! Of such a file only plain definitions are of use to the text of a paper: `\newcommand{\R}{…}`. What
//! lays out pages, what the packages of everybody define, and what is internal stays outside.

use crate::text::tex::{bracket_end, control_name, group_end, is_word, skip_blanks};

/// Largest style that is looked at: those of authors are small.
const STYLE_BYTES: usize = 256 << 10;
/// Longest definition.
const DEFINITION_BYTES: usize = 2000;

/// Beginnings of the names of styles and classes that are published: their macros are not the
/// authors' own.
const PUBLISHED: &[&str] = &[
    "aa",
    "aas",
    "aastex",
    "aaai",
    "abstract",
    "achemso",
    "acl",
    "acm",
    "algorithm",
    "amsmath",
    "amssymb",
    "amsfonts",
    "amsthm",
    "amsart",
    "amsproc",
    "amsbook",
    "amscd",
    "amstex",
    "amsppt",
    "apj",
    "article",
    "authblk",
    "axodraw",
    "balance",
    "bbm",
    "beamer",
    "biblatex",
    "book",
    "booktabs",
    "bm",
    "caption",
    "cite",
    "cleveref",
    "color",
    "comment",
    "cvpr",
    "diagrams",
    "doublespace",
    "eccv",
    "elsart",
    "elsarticle",
    "emnlp",
    "epsf",
    "epsfig",
    "espcrc",
    "eurips",
    "fancyhdr",
    "feyn",
    "floatflt",
    "fullpage",
    "geometry",
    "graphic",
    "hyperref",
    "icassp",
    "iccv",
    "iclr",
    "icml",
    "iau",
    "ieee",
    "ifac",
    "ijcai",
    "interspeech",
    "iop",
    "jcap",
    "jhep",
    "kluwer",
    "latexsym",
    "letter",
    "listings",
    "llncs",
    "lncs",
    "longtable",
    "mathptm",
    "mn2e",
    "mnras",
    "multirow",
    "natbib",
    "naacl",
    "neurips",
    "nips",
    "paralist",
    "pos",
    "proc",
    "psfig",
    "pstricks",
    "refcheck",
    "report",
    "revtex",
    "sig-alternate",
    "siam",
    "spie",
    "svjour",
    "svmult",
    "tikz",
    "xy",
];

/// Control words by which a macro lays something out.
const LAYOUT: [&str; 30] = [
    "vskip",
    "hskip",
    "vspace",
    "hspace",
    "hbox",
    "vbox",
    "vtop",
    "hrule",
    "vrule",
    "setbox",
    "box",
    "copy",
    "penalty",
    "kern",
    "global",
    "parindent",
    "parskip",
    "baselineskip",
    "advance",
    "ifx",
    "expandafter",
    "csname",
    "write",
    "openout",
    "catcode",
    "output",
    "hsize",
    "vsize",
    "setlength",
    "addtolength",
];

/// The definitions in the style `path`, one a line, that the text of a paper needs; empty when it is
/// a published one.
pub(super) fn own_definitions(path: &str, text: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
    let published = PUBLISHED.iter().any(|known| {
        let rest = stem.strip_prefix(known);
        rest.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(|c: char| !c.is_ascii_alphabetic())
        }) || known.len() > 3 && rest.is_some()
    });
    if published || text.len() > STYLE_BYTES {
        return String::new();
    }
    let text = without_comments(text);
    let mut out = String::new();
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &text.as_bytes()[at..]) {
        let start = at + found;
        let command = control_name(&text, start);
        at = start + 1 + command.len();
        let Some(end) = definition_end(&text, command, at) else { continue };
        at = end;
        if is_of_use(&text[start..end]) {
            out.push_str(&text[start..end]);
            out.push('\n');
        }
    }
    out
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let bytes = line.as_bytes();
        let mut from = 0;
        let comment = loop {
            let Some(at) = memchr::memchr(b'%', &bytes[from..]).map(|at| from + at) else {
                break None;
            };
            let escapes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
            if escapes % 2 == 0 {
                break Some(at);
            }
            from = at + 1;
        };
        match comment {
            Some(at) => out.push_str(&line[..at]),
            None => out.push_str(line),
        }
    }
    out
}

/// Where the definition that `command` begins ends, if it is one.
fn definition_end(text: &str, command: &str, at: usize) -> Option<usize> {
    let groups = match command {
        "newcommand"
        | "renewcommand"
        | "providecommand"
        | "DeclareRobustCommand"
        | "def"
        | "gdef"
        | "DeclareMathOperator" => 1,
        "NewDocumentCommand"
        | "RenewDocumentCommand"
        | "ProvideDocumentCommand"
        | "DeclareDocumentCommand"
        | "DeclarePairedDelimiter" => 2,
        "lstnewenvironment" => 2,
        "newif" | "let" => 0,
        _ => return None,
    };
    let mut at = skip_blanks(text, at);
    if text[at..].starts_with('*') {
        at = skip_blanks(text, at + 1);
    }
    at = match text.as_bytes().get(at)? {
        b'{' => group_end(text, at)?,
        b'\\' => at + 1 + control_name(text, at).len(),
        _ => return None,
    };
    if command == "let" {
        at = skip_blanks(text, at);
        at = if text[at..].starts_with('=') { skip_blanks(text, at + 1) } else { at };
        return text[at..].starts_with('\\').then(|| at + 1 + control_name(text, at).len());
    }
    if matches!(command, "def" | "gdef") {
        at += text[at..].bytes().take(100).position(|byte| byte == b'{')?;
    }
    for _ in 0..groups {
        at = skip_blanks(text, at);
        while let Some(end) = bracket_end(text, at) {
            at = skip_blanks(text, end);
        }
        // The body may be one control sequence.
        at = match text.as_bytes().get(at)? {
            b'\\' => at + 1 + control_name(text, at).len(),
            _ => group_end(text, at)?,
        };
    }
    Some(at)
}

/// Whether a definition is one that an author writes for the text.
fn is_of_use(definition: &str) -> bool {
    definition.len() <= DEFINITION_BYTES
        && !definition.contains('@')
        && !memchr::memchr_iter(b'\\', definition.as_bytes()).any(|at| {
            let name = control_name(definition, at);
            is_word(name) && LAYOUT.contains(&name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_definitions_are_taken() {
        let style = "\\ProvidesPackage{mymacros}[2020/01/01]\n% \\def\\no{x}\n\
            \\newcommand{\\R}{\\mathbb{R}} % reals\n\\newcommand\\half{\\frac12}\n\
            \\newcommand{\\pd}[2][]{\\frac{\\partial #1}{\\partial #2}}\n\\def\\ve#1{{\\bf #1}}\n\
            \\def\\@internal{x}\n\\renewcommand{\\title}[1]{\\gdef\\@title{#1}}\n\
            \\def\\headline{\\hbox to\\hsize{x}}\n\\newif\\ifdraft\n\\DeclareMathOperator{\\tr}{tr}\n\
            \\let\\eps\\varepsilon\n\\RequirePackage{amsmath}\n\\newcommand{\\open}{x\n";
        assert_eq!(
            own_definitions("sub/mymacros.sty", style),
            "\\newcommand{\\R}{\\mathbb{R}}\n\\newcommand\\half{\\frac12}\n\
             \\newcommand{\\pd}[2][]{\\frac{\\partial #1}{\\partial #2}}\n\\def\\ve#1{{\\bf #1}}\n\
             \\newif\\ifdraft\n\\DeclareMathOperator{\\tr}{tr}\n\\let\\eps\\varepsilon\n"
        );
        for published in
            ["amsmath.sty", "x/IEEEtran.cls", "neurips_2023.sty", "aastex63.cls", "aa.cls"]
        {
            assert_eq!(own_definitions(published, style), "", "{published}");
        }
        assert!(!own_definitions("aardvark.sty", style).is_empty());
    }
}
