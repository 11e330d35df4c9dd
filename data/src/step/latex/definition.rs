//! Definitions of macros: `\newcommand` and its relatives, `\def`, `\DeclareMathOperator`, `\let`.

use std::rc::Rc;

use memchr::memchr_iter;

use crate::text::tex::{bracket_end, control_name, group_end, skip_blanks};

/// Bytes of a name, a parameter text or an argument specification.
const HEAD_BYTES: usize = 256;

/// How a macro takes an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Argument {
    /// A group or one token.
    Mandatory,
    /// In brackets; without them this, or the mark for a missing value.
    Bracketed(Option<String>),
    /// Between two characters, as `d()` of xparse; without them this.
    Between(char, char, Option<String>),
    /// Everything up to this text.
    Until(String),
    /// Whether this character is there.
    Token(char),
    /// Text that has to be there; no argument of the body.
    Literal(String),
}

/// What a missing value of xparse is.
pub(super) const NO_VALUE: &str = "-NoValue-";

/// A macro.
#[derive(Debug)]
pub(super) struct Macro {
    /// What a call is made of.
    pub arguments: Vec<Argument>,
    /// The replacement, with `#1` to `#9`.
    pub body: Rc<str>,
    /// Whether calls are replaced. Not for macros that call themselves.
    pub expandable: bool,
    /// Whether the body is not read again: what `\let` made of a control sequence that was no
    /// macro then.
    pub frozen: bool,
    /// Whether the body defines macros.
    pub defines: bool,
}

/// What a definition says.
#[derive(Debug)]
pub(super) enum Meaning {
    /// A macro.
    Macro(Macro),
    /// `\let`: the meaning of this control sequence.
    Alias(String),
    /// A macro with unusual arguments.
    Unsupported,
    /// `\newif`: a condition, false at first.
    Condition,
    /// A definition of something else than a macro, an environment for example: it says nothing
    /// of the text.
    Other,
}

/// A definition found in the text.
#[derive(Debug)]
pub(super) struct Definition {
    /// The name, without backslash.
    pub name: String,
    /// What it says.
    pub meaning: Meaning,
    /// Whether an existing macro stays: `\providecommand`.
    pub keeps_existing: bool,
    /// Whether it holds outside of the group it is in: `\gdef`.
    pub global: bool,
    /// Position after it.
    pub end: usize,
}

/// Whether `name` begins a definition.
pub(super) fn is_definition(name: &str) -> bool {
    form(name).is_some()
}

/// Whether `name` may stand before a definition and goes with it.
pub(super) fn is_prefix(name: &str) -> bool {
    matches!(name, "long" | "global" | "outer" | "protected" | "expandafter")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    NewCommand,
    Def,
    Operator,
    Let,
    Document,
    Paired,
    Condition,
    /// So many groups after the name, and what may stand in brackets.
    Other(usize),
}

fn form(name: &str) -> Option<Form> {
    Some(match name {
        "newcommand" | "renewcommand" | "providecommand" | "DeclareRobustCommand" => {
            Form::NewCommand
        }
        "def" | "gdef" | "edef" | "xdef" => Form::Def,
        "DeclareMathOperator" => Form::Operator,
        "let" => Form::Let,
        "NewDocumentCommand"
        | "RenewDocumentCommand"
        | "ProvideDocumentCommand"
        | "DeclareDocumentCommand"
        | "NewExpandableDocumentCommand"
        | "DeclareExpandableDocumentCommand" => Form::Document,
        "DeclarePairedDelimiter" | "DeclarePairedDelimiterX" | "DeclarePairedDelimiterXPP" => {
            Form::Paired
        }
        "newif" => Form::Condition,
        "newenvironment" | "renewenvironment" | "lstnewenvironment" => Form::Other(2),
        "NewDocumentEnvironment" | "RenewDocumentEnvironment" => Form::Other(3),
        "newtheorem" | "spnewtheorem" | "newaliascnt" => Form::Other(1),
        "declaretheorem"
        | "DefineVerbatimEnvironment"
        | "newenvironments"
        | "theoremstyle"
        | "newcounter"
        | "newtheoremstyle"
        | "bibliographystyle" => Form::Other(0),
        _ => return None,
    })
}

/// Reads the definition that the control word `command`, which ends at `at`, begins. None when
/// it is malformed or not closed in `text`.
pub(super) fn read_definition(text: &str, command: &str, at: usize) -> Option<Definition> {
    let form = form(command)?;
    if let Form::Other(groups) = form {
        return other(text, command, at, groups);
    }
    let mut at = skip_blanks(text, at);
    let star = !matches!(form, Form::Def | Form::Condition) && text[at..].starts_with('*');
    if star {
        at = skip_blanks(text, at + 1);
    }
    let (name, at) = read_name(text, at)?;
    let at = skip_blanks(text, at);
    let (meaning, end) = match form {
        Form::NewCommand => new_command(text, at)?,
        Form::Def => def(text, at)?,
        Form::Operator => {
            let (body, end) = read_group(text, at)?;
            let star = if star { "*" } else { "" };
            (defined(Vec::new(), &format!("\\operatorname{star}{{{body}}}")), end)
        }
        Form::Let => {
            let at = if text[at..].starts_with('=') { skip_blanks(text, at + 1) } else { at };
            let target = text[at..].starts_with('\\').then(|| control_name(text, at))?;
            (Meaning::Alias(target.to_owned()), at + 1 + target.len())
        }
        Form::Document => document_command(text, at)?,
        Form::Paired => paired(text, at, command)?,
        Form::Condition | Form::Other(_) => {
            name.starts_with("if").then_some(())?;
            (Meaning::Condition, at)
        }
    };
    let keeps_existing = matches!(command, "providecommand" | "ProvideDocumentCommand");
    let global = matches!(command, "gdef" | "xdef");
    Some(Definition { name, meaning, keeps_existing, global, end })
}

/// `\newtheorem{name}[counter]{Title}[section]` and its like: the name, `groups` more groups, and
/// what stands in brackets between and behind them.
fn other(text: &str, command: &str, at: usize, groups: usize) -> Option<Definition> {
    let mut at = skip_blanks(text, at);
    if text[at..].starts_with('*') {
        at = skip_blanks(text, at + 1);
    }
    if let Some(end) = bracket_end(text, at) {
        at = skip_blanks(text, end);
    }
    let (name, mut end) = read_group(text, at)?;
    let extra = match command {
        "DefineVerbatimEnvironment" | "newtheoremstyle" => 2,
        "spnewtheorem" => 3,
        _ => groups,
    };
    let mut read = 0;
    // Brackets may follow the last group: [section].
    for _ in 0..groups.max(extra) + 4 {
        let next = skip_blanks(text, end);
        if let Some(after) = bracket_end(text, next) {
            end = after;
        } else if read < extra
            && let Some(after) = group_end(text, next)
        {
            end = after;
            read += 1;
        } else {
            break;
        }
    }
    (read >= groups).then(|| Definition {
        name: name.trim().to_owned(),
        meaning: Meaning::Other,
        keeps_existing: false,
        global: false,
        end,
    })
}

/// `\name`, `{\name}` or `\csname name\endcsname`.
fn read_name(text: &str, at: usize) -> Option<(String, usize)> {
    let braced = text[at..].starts_with('{');
    let at = if braced { skip_blanks(text, at + 1) } else { at };
    if !text[at..].starts_with('\\') {
        return None;
    }
    let name = control_name(text, at);
    let mut end = at + 1 + name.len();
    let mut name = name.to_owned();
    if name == "csname" {
        let stop = text[end..].bytes().take(HEAD_BYTES).position(|byte| byte == b'\\')?;
        name = text[end..end + stop].trim().to_owned();
        if control_name(text, end + stop) != "endcsname" || name.contains(['{', '}', '#']) {
            return None;
        }
        end += stop + "\\endcsname".len();
    }
    if braced {
        end = skip_blanks(text, end);
        text[end..].starts_with('}').then_some(())?;
        end += 1;
    }
    (!name.is_empty()).then_some((name, end))
}

fn read_group(text: &str, at: usize) -> Option<(&str, usize)> {
    let end = group_end(text, at)?;
    Some((&text[at + 1..end - 1], end))
}

fn read_bracket(text: &str, at: usize) -> Option<(&str, usize)> {
    let end = bracket_end(text, at)?;
    Some((&text[at + 1..end - 1], end))
}

fn new_command(text: &str, mut at: usize) -> Option<(Meaning, usize)> {
    let mut parameters = 0;
    let mut arguments = Vec::new();
    if let Some((count, end)) = read_bracket(text, at) {
        parameters = count.trim().parse().ok().filter(|&count: &usize| count <= 9)?;
        at = skip_blanks(text, end);
        if let Some((value, end)) = read_bracket(text, at) {
            arguments.push(Argument::Bracketed(Some(value.to_owned())));
            at = skip_blanks(text, end);
        }
    }
    if arguments.len() > parameters {
        return None;
    }
    arguments.resize(parameters, Argument::Mandatory);
    // The body may be one control sequence: \newcommand\eps\varepsilon
    let (body, end) = match text[at..].starts_with('\\') {
        true => {
            let name = control_name(text, at);
            (&text[at..at + 1 + name.len()], at + 1 + name.len())
        }
        false => read_group(text, at)?,
    };
    Some((defined(arguments, body), end))
}

/// `\def\name#1.#2{…}`: what stands between the parameters delimits them.
fn def(text: &str, at: usize) -> Option<(Meaning, usize)> {
    let head = text[at..].bytes().take(HEAD_BYTES).position(|byte| byte == b'{')?;
    let parameters = &text[at..at + head];
    let (body, end) = read_group(text, at + head)?;
    let mut pieces = parameters.split('#');
    let mut arguments = Vec::new();
    let first = pieces.next().unwrap_or_default().trim_start();
    if !first.trim_end().is_empty() {
        arguments.push(Argument::Literal(first.to_owned()));
    }
    let last = parameters.matches('#').count();
    for (index, piece) in pieces.enumerate() {
        let number = (b'1' + index as u8) as char;
        let Some(delimiter) = piece.strip_prefix(number).filter(|_| index < 9) else {
            return Some((Meaning::Unsupported, end));
        };
        // A blank before the body is mostly there to be read.
        let delimiter = if index + 1 == last { delimiter.trim_end() } else { delimiter };
        arguments.push(match delimiter {
            "" => Argument::Mandatory,
            text => Argument::Until(text.to_owned()),
        });
    }
    Some((defined(arguments, body), end))
}

/// xparse: an argument specification and the body.
fn document_command(text: &str, at: usize) -> Option<(Meaning, usize)> {
    let (specification, end) = read_group(text, at)?;
    let (body, end) = read_group(text, skip_blanks(text, end))?;
    let Some(arguments) = xparse_arguments(specification) else {
        return Some((Meaning::Unsupported, end));
    };
    Some((defined(arguments, body), end))
}

/// The arguments that a specification of xparse asks for; none when it has what is not known.
fn xparse_arguments(specification: &str) -> Option<Vec<Argument>> {
    let mut arguments = Vec::new();
    let mut rest = specification.trim_start();
    while let Some(letter) = rest.chars().next() {
        rest = rest[letter.len_utf8()..].trim_start();
        let character = |rest: &mut &str| {
            let c = rest.chars().next()?;
            *rest = rest[c.len_utf8()..].trim_start();
            Some(c)
        };
        let default = |rest: &mut &str| {
            let (value, length) = read_group(rest, 0)?;
            let value = value.to_owned();
            *rest = rest[length..].trim_start();
            Some(value)
        };
        arguments.push(match letter {
            // How an argument is handed over.
            '+' | '!' => continue,
            '>' => {
                default(&mut rest)?;
                continue;
            }
            'm' => Argument::Mandatory,
            'o' => Argument::Bracketed(None),
            'O' => Argument::Bracketed(Some(default(&mut rest)?)),
            's' => Argument::Token('*'),
            't' => Argument::Token(character(&mut rest)?),
            'd' | 'r' => Argument::Between(character(&mut rest)?, character(&mut rest)?, None),
            'D' | 'R' => {
                let (open, close) = (character(&mut rest)?, character(&mut rest)?);
                Argument::Between(open, close, Some(default(&mut rest)?))
            }
            _ => return None,
        });
    }
    (arguments.len() <= 9).then_some(arguments)
}

/// mathtools: `\DeclarePairedDelimiter{\abs}{\lvert}{\rvert}`. A star makes the delimiters fit, and
/// brackets give their size.
fn paired(text: &str, mut at: usize, command: &str) -> Option<(Meaning, usize)> {
    let mut count = 1;
    let extended = command != "DeclarePairedDelimiter";
    if extended {
        let (number, end) = read_bracket(text, at)?;
        count = number.trim().parse().ok().filter(|count| (1..=7).contains(count))?;
        at = skip_blanks(text, end);
    }
    let mut group = || {
        let (content, end) = read_group(text, skip_blanks(text, at))?;
        at = end;
        Some(content)
    };
    let (mut before, mut after) = ("", "");
    if command.ends_with("XPP") {
        before = group()?;
    }
    let (left, right) = (group()?, group()?);
    if command.ends_with("XPP") {
        after = group()?;
    }
    let inside = if extended { group()? } else { "#1" };
    // The star and the brackets come before the arguments of the body.
    let shifted = |text: &str| {
        let mut out = String::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(c) = characters.next() {
            out.push(c);
            if c == '#' {
                match characters.next() {
                    Some(digit @ '1'..='7') => out.push((digit as u8 + 2) as char),
                    other => out.extend(other),
                }
            }
        }
        out.replace("\\delimsize", "")
    };
    let (before, inside, after) = (shifted(before), shifted(inside), shifted(after));
    let body = format!(
        "{before}\\IfBooleanTF{{#1}}{{\\left{left} {inside}\\right{right}}}\
         {{\\IfNoValueTF{{#2}}{{{left} {inside}{right}}}{{#2{left} {inside}#2{right}}}}}{after}"
    );
    let mut arguments = vec![Argument::Token('*'), Argument::Bracketed(None)];
    arguments.resize(2 + count, Argument::Mandatory);
    Some((defined(arguments, &body), at))
}

fn defined(arguments: Vec<Argument>, body: &str) -> Meaning {
    // Blanks after a call stay anyway, which is what \xspace is for.
    let body = body.trim_end().strip_suffix("\\xspace").unwrap_or(body);
    let defines = control_names(body).any(is_definition);
    Meaning::Macro(Macro { arguments, body: body.into(), expandable: true, frozen: false, defines })
}

/// Names of the control sequences of `text`, in order.
pub(super) fn control_names(text: &str) -> impl Iterator<Item = &str> {
    let mut after = 0;
    memchr_iter(b'\\', text.as_bytes()).filter_map(move |at| {
        if at < after {
            return None;
        }
        let name = control_name(text, at);
        after = at + 1 + name.len();
        Some(name)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Argument::{Between, Bracketed, Literal, Mandatory, Token, Until};
    use super::*;

    fn read(text: &str) -> Option<(String, Vec<Argument>, String)> {
        let command = control_name(text, 0);
        let definition = read_definition(text, command, 1 + command.len())?;
        assert_eq!(&text[definition.end..], "!", "{text}");
        let (arguments, body) = match definition.meaning {
            Meaning::Macro(found) => (found.arguments, found.body.to_string()),
            Meaning::Alias(target) => (Vec::new(), format!("={target}")),
            Meaning::Condition => (Vec::new(), "if".into()),
            Meaning::Other => (Vec::new(), String::new()),
            Meaning::Unsupported => return None,
        };
        Some((definition.name, arguments, body))
    }

    #[test]
    fn all_forms_are_read() {
        let some = |text: &str| Some(text.to_owned());
        let cases = [
            ("\\newcommand{\\a}{x{y}}!", "a", vec![], "x{y}"),
            ("\\newcommand\\a{x}!", "a", vec![], "x"),
            ("\\renewcommand* {\\a} [2] {#1\n#2}!", "a", vec![Mandatory, Mandatory], "#1\n#2"),
            ("\\newcommand\\a\\beta!", "a", vec![], "\\beta"),
            ("\\def\\a{x}!", "a", vec![], "x"),
            ("\\gdef\\a#1#2{x#1}!", "a", vec![Mandatory, Mandatory], "x#1"),
            ("\\def\\,{x}!", ",", vec![], "x"),
            ("\\DeclareMathOperator{\\tr}{Tr}!", "tr", vec![], "\\operatorname{Tr}"),
            ("\\DeclareMathOperator*{\\m}{max}!", "m", vec![], "\\operatorname*{max}"),
            ("\\let\\a=\\b!", "a", vec![], "=b"),
            ("\\let\\a\\b!", "a", vec![], "=b"),
            (
                "\\NewDocumentCommand{\\a}{O{d} m}{#1#2}!",
                "a",
                vec![Bracketed(some("d")), Mandatory],
                "#1#2",
            ),
            (
                "\\NewDocumentCommand\\a{s t+ o +m d() D<>{x}}{x}!",
                "a",
                vec![
                    Token('*'),
                    Token('+'),
                    Bracketed(None),
                    Mandatory,
                    Between('(', ')', None),
                    Between('<', '>', some("x")),
                ],
                "x",
            ),
            ("\\def\\csname bb\\endcsname{x}!", "bb", vec![], "x"),
            ("\\newcommand{\\a}{et al.\\xspace}!", "a", vec![], "et al."),
            ("\\newcommand{\\a}[2][{]}]{#1}!", "a", vec![Bracketed(some("{]}")), Mandatory], "#1"),
            (
                "\\def\\a(#1,#2){x}!",
                "a",
                vec![Literal("(".into()), Until(",".into()), Until(")".into())],
                "x",
            ),
            ("\\def\\a#1.#2{x}!", "a", vec![Until(".".into()), Mandatory], "x"),
            ("\\newif\\ifdraft!", "ifdraft", vec![], "if"),
            ("\\newtheorem{lem}[thm]{Lemma}[section]!", "lem", vec![], ""),
            ("\\newtheorem*{rem}{Remark}!", "rem", vec![], ""),
            ("\\newenvironment{a}[1][x]{\\begin{b}}{\\end{b}}!", "a", vec![], ""),
            ("\\lstnewenvironment{code}{}{}!", "code", vec![], ""),
            ("\\bibliographystyle{plain}!", "plain", vec![], ""),
        ];
        for (text, name, arguments, body) in cases {
            assert_eq!(read(text), Some((name.into(), arguments, body.into())), "{text}");
        }
        let (_, arguments, body) =
            read("\\DeclarePairedDelimiterX\\inner[2]{\\langle}{\\rangle}{#1,#2}!").unwrap();
        assert_eq!(arguments.len(), 4);
        assert!(body.contains("\\langle #3,#4\\rangle"), "{body}");
    }

    #[test]
    fn unusual_and_broken_ones_are_told_apart() {
        for text in ["\\def\\a#2{x}!", "\\NewDocumentCommand\\a{u{x} m}{x}!"] {
            assert_eq!(read(text), None, "{text}");
        }
        for text in [
            "\\def\\a{x",
            "\\newcommand{\\a}[12]{x}",
            "\\newcommand x",
            "\\let\\a",
            "\\def",
            "\\newif\\draft",
            "\\newtheorem{a}",
        ] {
            let command = control_name(text, 0);
            assert!(read_definition(text, command, 1 + command.len()).is_none(), "{text}");
        }
    }
}
