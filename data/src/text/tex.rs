//! TeX source as characters: control sequences, groups, comments and verbatim text.
//!
//! Only what reading source without running TeX needs. Category codes are those of LaTeX, with
//! `@` always a letter: packages use it inside names, prose hardly ever right after one.
//! Positions are byte offsets; all functions are linear in what they pass over.

use memchr::{memchr, memchr3, memmem};

/// Most bytes of a `\verb` argument.
const VERB_BYTES: usize = 4096;
/// Most bytes of an optional argument.
const BRACKET_BYTES: usize = 4096;
/// Blanks that may follow on a line that goes whole.
const LINE_REST_BYTES: usize = 256;
/// Letters looked at to find out whether a text ends in a control word.
const CONTROL_WORD_BYTES: usize = 64;

/// Environments whose text is no TeX.
const VERBATIM: [&str; 13] = [
    "verbatim",
    "verbatim*",
    "Verbatim",
    "Verbatim*",
    "BVerbatim",
    "LVerbatim",
    "SaveVerbatim",
    "lstlisting",
    "minted",
    "alltt",
    "filecontents",
    "filecontents*",
    "comment",
];

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'@'
}

/// Name of the control sequence whose backslash is at `at`: letters, or one character that is no
/// letter (empty at the end of the text).
pub fn control_name(text: &str, at: usize) -> &str {
    let rest = text.get(at + 1..).unwrap_or_default();
    let letters = rest.bytes().take_while(|&byte| is_letter(byte)).count();
    let length = if letters > 0 { letters } else { rest.chars().next().map_or(0, char::len_utf8) };
    &rest[..length]
}

/// Whether `name` is a control word rather than a control symbol.
pub fn is_word(name: &str) -> bool {
    name.bytes().next().is_some_and(is_letter)
}

/// Position after blanks and at most one line end: what TeX skips between arguments.
pub fn skip_blanks(text: &str, mut at: usize) -> usize {
    let bytes = text.as_bytes();
    let mut lines = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b' ' | b'\t' => {}
            b'\n' if lines == 0 => lines += 1,
            _ => break,
        }
        at += 1;
    }
    at
}

/// Position of the next line feed at or after `at`, or the end of the text.
pub fn line_end(text: &str, at: usize) -> usize {
    memchr(b'\n', &text.as_bytes()[at..]).map_or(text.len(), |length| at + length)
}

/// Position of the next line when nothing but a few blanks follows `at` on its line.
pub fn after_blank_rest(text: &str, at: usize) -> Option<usize> {
    let rest = text.as_bytes()[at..].iter().take(LINE_REST_BYTES);
    let blanks = rest.take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match text.as_bytes().get(at + blanks) {
        None => Some(text.len()),
        Some(b'\n') => Some(at + blanks + 1),
        Some(_) => None,
    }
}

/// Position after the group that opens at `at` with `{`; none when it is not closed. The text
/// holds no comments any more.
pub fn group_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    let mut position = at;
    let mut depth = 0usize;
    loop {
        position += memchr3(b'\\', b'{', b'}', bytes.get(position..)?)?;
        match bytes[position] {
            b'\\' => position += 1,
            b'{' => depth += 1,
            _ => depth -= 1,
        }
        position += 1;
        if depth == 0 {
            return Some(position);
        }
    }
}

/// Position after the optional argument that opens at `at` with `[`: at the `]` outside of
/// groups. None when it is not closed soon.
pub fn bracket_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.get(at) != Some(&b'[') {
        return None;
    }
    let mut depth = 0usize;
    let mut position = at + 1;
    while position < at + BRACKET_BYTES {
        match bytes.get(position)? {
            b'\\' => position += 1,
            b'{' => depth += 1,
            b'}' => depth = depth.checked_sub(1)?,
            b']' if depth == 0 => return Some(position + 1),
            _ => {}
        }
        position += 1;
    }
    None
}

/// The environment named after a `\begin` or `\end` that ends at `at`, and the position after
/// its name.
pub fn environment(text: &str, at: usize) -> Option<(&str, usize)> {
    let open = skip_blanks(text, at);
    let rest = text.get(open..)?.strip_prefix('{')?;
    let length = rest.bytes().take(64).position(|byte| byte == b'}')?;
    let name = rest[..length].trim();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"*-_:@".contains(&byte));
    plain.then_some((name, open + length + 2))
}

/// Whether `text` ends in a control word, which a letter must not follow directly.
pub fn ends_in_control_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let letters =
        bytes.iter().rev().take(CONTROL_WORD_BYTES).take_while(|&&byte| is_letter(byte)).count();
    if letters == 0 {
        return false;
    }
    let before = &bytes[..bytes.len() - letters];
    // An even number of backslashes is line breaks.
    before.iter().rev().take(CONTROL_WORD_BYTES).take_while(|&&byte| byte == b'\\').count() % 2 == 1
}

/// Whether `next` must not directly follow a control word.
pub fn starts_with_letter(next: &str) -> bool {
    next.bytes().next().is_some_and(is_letter)
}

/// Whether there is any sign of TeX in `text`.
pub fn is_tex(text: &str) -> bool {
    const SIGNS: [&str; 24] = [
        "newsec",
        "noindent",
        "bigskip",
        "bf",
        "documentclass",
        "documentstyle",
        "begin",
        "chapter",
        "section",
        "subsection",
        "paragraph",
        "input",
        "include",
        "newcommand",
        "def",
        "magnification",
        "beginsection",
        "hsize",
        "vsize",
        "centerline",
        "title",
        "footnote",
        "cite",
        "bye",
    ];
    memchr::memchr_iter(b'\\', text.as_bytes()).any(|at| SIGNS.contains(&control_name(text, at)))
}

/// A stretch of text that is not to be read as TeX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verbatim {
    /// Position after it, with its closing delimiter.
    pub end: usize,
    /// Whether it is a `comment` environment.
    pub comment: bool,
}

/// Finds verbatim text. Remembers which environments are never closed, so that a text full of
/// openings is still passed over in linear time. One finder is for one text.
#[derive(Debug, Default)]
pub struct VerbatimFinder {
    unclosed: u64,
    /// Environments of the text's own.
    own: Vec<String>,
}

/// Environments of its own that a text can have.
const MOST_OWN: usize = 32;

impl VerbatimFinder {
    /// For `text`, with the environments that it defines itself: `\lstnewenvironment{code}`.
    pub fn of(text: &str) -> Self {
        let mut own: Vec<String> = Vec::new();
        for at in memchr::memchr_iter(b'\\', text.as_bytes()) {
            // Few control sequences begin so.
            if !matches!(text.as_bytes().get(at + 1), Some(b'l' | b'D' | b'n' | b'N')) {
                continue;
            }
            let command = control_name(text, at);
            let mut after = at + 1 + command.len();
            let known = matches!(
                command,
                "lstnewenvironment"
                    | "DefineVerbatimEnvironment"
                    | "newenvironment"
                    | "newminted"
                    | "NewTCBListing"
                    | "newtcblisting"
                    | "newverbatim"
            );
            if !known || own.len() == MOST_OWN {
                continue;
            }
            if command == "newtcblisting" {
                after = bracket_end(text, after).unwrap_or(after);
            }
            let Some((name, end)) = environment(text, after) else { continue };
            let name = match command {
                // Only one that begins what is verbatim itself.
                "newenvironment" => {
                    let open = skip_blanks(text, end);
                    let body = text
                        .get(open..)
                        .unwrap_or_default()
                        .trim_start_matches(['{', '%', '\n', ' ']);
                    let begins = ["\\verbatim", "\\begin{verbatim}", "\\lstlisting", "\\Verbatim"];
                    if !begins.iter().any(|start| body.starts_with(start)) {
                        continue;
                    }
                    name.to_owned()
                }
                "newminted" => format!("{name}code"),
                _ => name.to_owned(),
            };
            if !own.contains(&name) && !VERBATIM.contains(&name.as_str()) {
                own.push(name);
            }
        }
        Self { unclosed: 0, own }
    }

    /// The verbatim text that the control sequence `name` at `at` opens, if it does.
    pub fn find(&mut self, text: &str, at: usize, name: &str) -> Option<Verbatim> {
        let after = at + 1 + name.len();
        let end = match name {
            "begin" => return self.environment(text, after),
            "verb" | "Verb" => delimited(text, after + usize::from(text[after..].starts_with('*'))),
            "lstinline" => {
                let open = bracket_on_line(text, after);
                group_on_line(text, open).or_else(|| delimited(text, open))
            }
            "mintinline" => {
                let open = group_on_line(text, bracket_on_line(text, after))?;
                group_on_line(text, open).or_else(|| delimited(text, open))
            }
            _ => None,
        }?;
        Some(Verbatim { end, comment: false })
    }

    fn environment(&mut self, text: &str, at: usize) -> Option<Verbatim> {
        let (name, after) = environment(text, at)?;
        let own = || self.own.iter().position(|known| known == name).map(|at| at + VERBATIM.len());
        let number = VERBATIM.iter().position(|&known| known == name).or_else(own)?;
        if self.unclosed & (1 << number) != 0 {
            return None;
        }
        let closing = format!("\\end{{{name}}}");
        match memmem::find(&text.as_bytes()[after..], closing.as_bytes()) {
            Some(length) => {
                Some(Verbatim { end: after + length + closing.len(), comment: name == "comment" })
            }
            None => {
                self.unclosed |= 1 << number;
                None
            }
        }
    }
}

/// Position after text between two equal characters on one line, as in `\verb|x|`.
fn delimited(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let delimiter = *bytes.get(at)?;
    if !delimiter.is_ascii() || is_letter(delimiter) || b" *\n\t".contains(&delimiter) {
        return None;
    }
    let line = &bytes[at + 1..bytes.len().min(at + 1 + VERB_BYTES)];
    let length = memchr::memchr2(delimiter, b'\n', line)?;
    (line[length] == delimiter).then_some(at + length + 2)
}

/// Position after a group that closes on the line it opens on. Nothing escapes a brace here, nor
/// starts a comment.
pub fn group_on_line(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    let mut depth = 0usize;
    for (offset, byte) in bytes[at..].iter().take(VERB_BYTES).enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b'\n' => return None,
            _ => {}
        }
        if depth == 0 {
            return Some(at + offset + 1);
        }
    }
    None
}

/// Position after the optional argument at `at`, or `at` when there is none on the line.
fn bracket_on_line(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    if bytes.get(at) != Some(&b'[') {
        return at;
    }
    let line = &bytes[at..bytes.len().min(at + VERB_BYTES)];
    match memchr::memchr2(b']', b'\n', line) {
        Some(length) if line[length] == b']' => at + length + 1,
        _ => at,
    }
}

/// Whether the control sequence `name` takes an address, in which `%` is a character.
pub fn takes_address(name: &str) -> bool {
    matches!(name, "url" | "href" | "nolinkurl" | "path" | "burl" | "doi")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_or_one_character() {
        assert_eq!(control_name("a\\section*{x}", 1), "section");
        assert_eq!(control_name("\\%x", 0), "%");
        assert_eq!(control_name("\\éx", 0), "é");
        assert_eq!(control_name("\\", 0), "");
        assert_eq!(control_name("\\a@b1", 0), "a@b");
        assert!(is_word("a") && !is_word("%") && !is_word(""));
    }

    #[test]
    fn groups_nest_and_escaped_braces_do_not_count() {
        assert_eq!(group_end("{a{b}\\}c}d", 0), Some(9));
        assert_eq!(group_end("{a\\\\}b", 0), Some(5));
        assert_eq!(group_end("{a{b}", 0), None);
        assert_eq!(group_end("a{b}", 0), None);
        assert_eq!(bracket_end("[a{]}b]c", 0), Some(7));
        assert_eq!(bracket_end("[a}]", 0), None);
        assert_eq!(environment("\\begin {equation*} x", 6), Some(("equation*", 18)));
        assert_eq!(environment("\\begin{a\\b}", 6), None);
    }

    #[test]
    fn verbatim_text_is_found() {
        fn find(text: &str) -> Option<&str> {
            let name = control_name(text, 0);
            let found = VerbatimFinder::default().find(text, 0, name)?;
            Some(&text[..found.end])
        }
        assert_eq!(find("\\verb|%x|y"), Some("\\verb|%x|"));
        assert_eq!(find("\\verb*+a|+y"), Some("\\verb*+a|+"));
        assert_eq!(find("\\verb|a\n|"), None);
        assert_eq!(find("\\lstinline[language=C]!%!x"), Some("\\lstinline[language=C]!%!"));
        assert_eq!(find("\\lstinline{a{}%}x"), Some("\\lstinline{a{}%}"));
        assert_eq!(find("\\mintinline{c}|%|x"), Some("\\mintinline{c}|%|"));
        let block = "\\begin{verbatim}\n%\\end{x}\n\\end{verbatim}";
        assert_eq!(find(&format!("{block} rest")), Some(block));
        assert_eq!(find("\\begin{verbatim} open"), None);
        assert_eq!(find("\\begin{equation} x \\end{equation}"), None);
    }

    #[test]
    fn a_text_may_have_verbatim_environments_of_its_own() {
        let text = "\\lstnewenvironment{code}{}{}\\newenvironment{mine}{\\verbatim}{\\endverbatim}\
            \\newenvironment{other}{x}{y}\\newminted{c}{}\\begin{code}%\\end{code}";
        let mut finder = VerbatimFinder::of(text);
        assert_eq!(finder.own, ["code", "mine", "ccode"]);
        let at = text.find("\\begin{code}").unwrap();
        assert_eq!(finder.find(text, at, "begin").unwrap().end, text.len());
    }

    #[test]
    fn a_letter_after_a_control_word_is_seen() {
        assert!(ends_in_control_word("x\\alpha"));
        assert!(!ends_in_control_word("x\\\\alpha"));
        assert!(!ends_in_control_word("alpha"));
        assert!(!ends_in_control_word("\\alpha "));
    }

    #[test]
    fn tex_is_told_from_other_text() {
        assert!(is_tex("a \\section{x}"));
        assert!(!is_tex("C:\\windows\\sections %!PS-Adobe"));
    }
}
