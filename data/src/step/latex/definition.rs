//! Definitions of macros: `\newcommand` and its relatives, `\def`, `\DeclareMathOperator`, `\let`.

use std::rc::Rc;

use memchr::memchr_iter;

use crate::text::tex::{bracket_end, control_name, group_end, skip_blanks};

/// Bytes of a name, a parameter text or an argument specification.
const HEAD_BYTES: usize = 256;

/// A macro.
#[derive(Debug)]
pub(super) struct Macro {
    /// Arguments, the optional one included.
    pub parameters: usize,
    /// The first argument when it is not given in brackets.
    pub default: Option<String>,
    /// The replacement, with `#1` to `#9`.
    pub body: Rc<str>,
    /// Whether calls are replaced. Not for macros that call themselves or that take arguments in
    /// another way than one after another.
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
    /// A macro with delimited or otherwise unusual arguments.
    Unsupported,
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

#[derive(Clone, Copy, PartialEq)]
enum Form {
    NewCommand,
    Def,
    Operator,
    Let,
    Document,
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
        | "DeclareDocumentCommand" => Form::Document,
        _ => return None,
    })
}

/// Reads the definition that the control word `command`, which ends at `at`, begins. None when
/// it is malformed or not closed in `text`.
pub(super) fn read_definition(text: &str, command: &str, at: usize) -> Option<Definition> {
    let form = form(command)?;
    let mut at = skip_blanks(text, at);
    let star = form != Form::Def && text[at..].starts_with('*');
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
            (defined(0, None, &format!("\\operatorname{star}{{{body}}}")), end)
        }
        Form::Let => {
            let at = if text[at..].starts_with('=') { skip_blanks(text, at + 1) } else { at };
            let target = text[at..].starts_with('\\').then(|| control_name(text, at))?;
            (Meaning::Alias(target.to_owned()), at + 1 + target.len())
        }
        Form::Document => document_command(text, at)?,
    };
    let keeps_existing = matches!(command, "providecommand" | "ProvideDocumentCommand");
    Some(Definition { name, meaning, keeps_existing, end })
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
    let mut default = None;
    if let Some((count, end)) = read_bracket(text, at) {
        parameters = count.trim().parse().ok().filter(|&count: &usize| count <= 9)?;
        at = skip_blanks(text, end);
        if let Some((value, end)) = read_bracket(text, at) {
            default = Some(value.to_owned());
            at = skip_blanks(text, end);
        }
    }
    if default.is_some() && parameters == 0 {
        return None;
    }
    // The body may be one control sequence: \newcommand\eps\varepsilon
    let (body, end) = match text[at..].starts_with('\\') {
        true => {
            let name = control_name(text, at);
            (&text[at..at + 1 + name.len()], at + 1 + name.len())
        }
        false => read_group(text, at)?,
    };
    Some((defined(parameters, default, body), end))
}

fn def(text: &str, at: usize) -> Option<(Meaning, usize)> {
    let head = text[at..].bytes().take(HEAD_BYTES).position(|byte| byte == b'{')?;
    let parameters = text[at..at + head].trim_end();
    let (body, end) = read_group(text, at + head)?;
    let count = parameters.len() / 2;
    let in_order = || {
        let expected = (1..=count).flat_map(|number| [b'#', b'0' + number as u8]);
        count <= 9 && parameters.bytes().eq(expected)
    };
    Some(match in_order() {
        true => (defined(count, None, body), end),
        false => (Meaning::Unsupported, end),
    })
}

/// xparse: mandatory arguments, and an optional first one.
fn document_command(text: &str, at: usize) -> Option<(Meaning, usize)> {
    let (specification, end) = read_group(text, at)?;
    let (body, end) = read_group(text, skip_blanks(text, end))?;
    let mut rest = specification.trim();
    let mut default = None;
    if let Some(after) = rest.strip_prefix('O') {
        let after = after.trim_start();
        let Some((value, length)) = read_group(after, 0) else {
            return Some((Meaning::Unsupported, end));
        };
        default = Some(value.to_owned());
        rest = &after[length..];
    }
    let letters = rest.bytes().filter(|byte| !byte.is_ascii_whitespace());
    let parameters = letters.clone().count() + usize::from(default.is_some());
    if parameters > 9 || letters.clone().any(|letter| letter != b'm') {
        return Some((Meaning::Unsupported, end));
    }
    Some((defined(parameters, default, body), end))
}

fn defined(parameters: usize, default: Option<String>, body: &str) -> Meaning {
    // Blanks after a call stay anyway, which is what \xspace is for.
    let body = body.trim_end().strip_suffix("\\xspace").unwrap_or(body);
    let defines = control_names(body).any(is_definition);
    let body = body.into();
    Meaning::Macro(Macro { parameters, default, body, expandable: true, frozen: false, defines })
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
    use super::*;

    fn read(text: &str) -> Option<(String, usize, Option<String>, String)> {
        let command = control_name(text, 0);
        let definition = read_definition(text, command, 1 + command.len())?;
        assert_eq!(&text[definition.end..], "!", "{text}");
        match definition.meaning {
            Meaning::Macro(m) => {
                Some((definition.name, m.parameters, m.default, m.body.to_string()))
            }
            Meaning::Alias(target) => Some((definition.name, 0, None, format!("={target}"))),
            Meaning::Unsupported => None,
        }
    }

    #[test]
    fn all_forms_are_read() {
        let cases = [
            ("\\newcommand{\\a}{x{y}}!", ("a", 0, None, "x{y}")),
            ("\\newcommand\\a{x}!", ("a", 0, None, "x")),
            ("\\renewcommand* {\\a} [2] {#1\n#2}!", ("a", 2, None, "#1\n#2")),
            ("\\newcommand\\a\\beta!", ("a", 0, None, "\\beta")),
            ("\\def\\a{x}!", ("a", 0, None, "x")),
            ("\\gdef\\a#1#2{x#1}!", ("a", 2, None, "x#1")),
            ("\\def\\,{x}!", (",", 0, None, "x")),
            ("\\DeclareMathOperator{\\tr}{Tr}!", ("tr", 0, None, "\\operatorname{Tr}")),
            ("\\DeclareMathOperator*{\\m}{max}!", ("m", 0, None, "\\operatorname*{max}")),
            ("\\let\\a=\\b!", ("a", 0, None, "=b")),
            ("\\let\\a\\b!", ("a", 0, None, "=b")),
            ("\\NewDocumentCommand{\\a}{O{d} m}{#1#2}!", ("a", 2, Some("d"), "#1#2")),
            ("\\def\\csname bb\\endcsname{x}!", ("bb", 0, None, "x")),
            ("\\newcommand{\\a}{et al.\\xspace}!", ("a", 0, None, "et al.")),
        ];
        for (text, (name, parameters, default, body)) in cases {
            let default = default.map(str::to_owned);
            assert_eq!(read(text), Some((name.into(), parameters, default, body.into())), "{text}");
        }
        let nested = read("\\newcommand{\\a}[2][{]}]{#1}!").unwrap();
        assert_eq!(nested.2.as_deref(), Some("{]}"));
    }

    #[test]
    fn unusual_and_broken_ones_are_told_apart() {
        for text in ["\\def\\a#1.#2{x}!", "\\def\\a#2{x}!", "\\NewDocumentCommand\\a{s m}{x}!"] {
            assert_eq!(read(text), None, "{text}");
        }
        for text in
            ["\\def\\a{x", "\\newcommand{\\a}[12]{x}", "\\newcommand x", "\\let\\a", "\\def"]
        {
            let command = control_name(text, 0);
            assert!(read_definition(text, command, 1 + command.len()).is_none(), "{text}");
        }
    }
}
