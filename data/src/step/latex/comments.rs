//! Comments of TeX source: `%` to the end of the line, `comment` environments, `\iffalse`.

use memchr::memchr2;

use super::Part;
use crate::text::tex::{
    VerbatimFinder, after_blank_rest, control_name, ends_in_control_word, group_on_line, is_word,
    line_end, starts_with_letter, takes_address,
};

/// `text` without comments.
///
/// As in TeX, `%` takes the line end and the blanks of the next line with it, and a line that is
/// only a comment vanishes; a paragraph break after a comment stays. `\%` is a per cent sign and
/// `\\%` a line break with a comment. In verbatim text and addresses `%` is a character. Of
/// `\iffalse … \else … \fi` the second branch stays.
pub(super) fn strip_comments(text: &str, comments: &mut Part, disabled: &mut Part) -> String {
    let mut stripper = Stripper {
        text,
        at: 0,
        out: String::with_capacity(text.len()),
        line_start: 0,
        line_has_text: false,
        glue: false,
        kept_branches: Vec::new(),
        unclosed_condition: false,
        verbatim: VerbatimFinder::of(text),
    };
    stripper.run(comments, disabled);
    stripper.out
}

struct Stripper<'a> {
    text: &'a str,
    at: usize,
    out: String,
    /// Where the last line of `out` begins, and whether it has more than blanks.
    line_start: usize,
    line_has_text: bool,
    /// Something was taken out right before: what follows must not join a control word.
    glue: bool,
    /// Open conditions inside each branch kept of an `\iffalse`.
    kept_branches: Vec<usize>,
    unclosed_condition: bool,
    verbatim: VerbatimFinder,
}

impl Stripper<'_> {
    fn run(&mut self, comments: &mut Part, disabled: &mut Part) {
        let text = self.text;
        while let Some(length) = memchr2(b'\\', b'%', &text.as_bytes()[self.at..]) {
            self.keep_to(self.at + length);
            let at = self.at;
            if text.as_bytes()[at] == b'%' {
                self.comment();
                comments.add(self.at - at);
                continue;
            }
            let name = control_name(text, at);
            let after = at + 1 + name.len();
            if let Some(verbatim) = self.verbatim.find(text, at, name) {
                if verbatim.comment {
                    self.drop_to(verbatim.end);
                    comments.add(self.at - at);
                } else {
                    self.keep_to(verbatim.end);
                }
            } else if takes_address(name) {
                self.keep_to(group_on_line(text, after).unwrap_or(after));
            } else if name == "iffalse" && !self.unclosed_condition && !self.is_assigned() {
                match skip_branch(text, after) {
                    Some((end, has_else)) => {
                        self.drop_to(end);
                        disabled.add(self.at - at);
                        if has_else {
                            self.kept_branches.push(0);
                        }
                    }
                    None => {
                        self.unclosed_condition = true;
                        self.keep_to(after);
                    }
                }
            } else if name == "fi" && self.kept_branches.last() == Some(&0) {
                self.kept_branches.pop();
                self.drop_to(after);
                disabled.add(self.at - at);
            } else {
                if let Some(open) = self.kept_branches.last_mut() {
                    match name {
                        "fi" => *open -= 1,
                        _ if name.starts_with("if") && opens(name) => *open += 1,
                        _ => {}
                    }
                }
                self.keep_to(after);
            }
        }
        self.keep_to(text.len());
    }

    fn keep_to(&mut self, end: usize) {
        let chunk = &self.text[self.at..end];
        self.at = end;
        if chunk.is_empty() {
            return;
        }
        if self.glue && starts_with_letter(chunk) && ends_in_control_word(&self.out) {
            self.out.push('\n');
            self.line_start = self.out.len();
            self.line_has_text = false;
        }
        self.glue = false;
        let last_line = match memchr::memrchr(b'\n', chunk.as_bytes()) {
            Some(feed) => {
                self.line_start = self.out.len() + feed + 1;
                self.line_has_text = false;
                &chunk[feed + 1..]
            }
            None => chunk,
        };
        self.line_has_text |= last_line.bytes().any(|byte| byte != b' ' && byte != b'\t');
        self.out.push_str(chunk);
    }

    /// Takes out a stretch up to `end`, and its line with it when nothing else is on it.
    fn drop_to(&mut self, end: usize) {
        self.at = end;
        self.glue = true;
        if !self.line_has_text
            && let Some(next) = after_blank_rest(self.text, end)
        {
            self.out.truncate(self.line_start);
            self.at = next;
        }
    }

    fn comment(&mut self) {
        let bytes = self.text.as_bytes();
        let feed = line_end(self.text, self.at);
        self.at = (feed + 1).min(bytes.len());
        if !self.line_has_text {
            self.out.truncate(self.line_start);
            return;
        }
        let blanks =
            bytes[self.at..].iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
        self.glue = true;
        if bytes.get(self.at + blanks) == Some(&b'\n') {
            // A paragraph ends after the comment.
            self.out.push('\n');
            self.line_start = self.out.len();
            self.line_has_text = false;
        } else {
            self.at += blanks;
        }
    }

    /// Whether what was kept last is `\let\name=` or `\newif`, so that a condition is only named.
    fn is_assigned(&self) -> bool {
        let is_blank = |c: char| c == ' ' || c == '=';
        let mut from = self.out.len().saturating_sub(100);
        while !self.out.is_char_boundary(from) {
            from += 1;
        }
        let before = self.out[from..].trim_end_matches(is_blank);
        if before.ends_with("\\newif") || before.ends_with("\\let") {
            return true;
        }
        let letters = |c: char| c.is_ascii_alphabetic() || c == '@';
        let target = before.trim_end_matches(letters);
        target
            .strip_suffix('\\')
            .is_some_and(|rest| rest.trim_end_matches(is_blank).ends_with("\\let"))
    }
}

/// Whether the control word `name`, which begins with `if`, is a condition that `\fi` closes.
pub(super) fn opens(name: &str) -> bool {
    // Commands with arguments in braces: ifthen, etoolbox and others.
    const CLOSED: [&str; 24] = [
        "iff",
        "ifthenelse",
        "iftoggle",
        "ifbool",
        "ifboolexpr",
        "ifdef",
        "ifundef",
        "ifcsdef",
        "ifcsundef",
        "ifdefempty",
        "ifdefvoid",
        "ifdefstring",
        "ifstrequal",
        "ifstrempty",
        "ifblank",
        "ifnumcomp",
        "ifnumequal",
        "ifnumgreater",
        "ifnumless",
        "ifdimcomp",
        "ifinlist",
        "iflanguage",
        "ifpackageloaded",
        "ifstreq",
    ];
    !CLOSED.contains(&name)
}

/// Position after the `\fi` or the `\else` that ends the branch begun at `at`, and whether it is
/// an `\else`.
fn skip_branch(text: &str, mut at: usize) -> Option<(usize, bool)> {
    let mut depth = 0usize;
    let mut previous = "";
    loop {
        at += memchr2(b'\\', b'%', &text.as_bytes()[at..])?;
        if text.as_bytes()[at] == b'%' {
            at = line_end(text, at);
            continue;
        }
        let name = control_name(text, at);
        at += 1 + name.len();
        match name {
            "fi" if depth == 0 => return Some((at, false)),
            "else" if depth == 0 => return Some((at, true)),
            "fi" => depth -= 1,
            _ if name.starts_with("if") && is_word(name) && opens(name) => {
                depth += usize::from(previous != "newif" && previous != "let");
            }
            _ => {}
        }
        previous = name;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip(text: &str) -> String {
        strip_comments(text, &mut Part::default(), &mut Part::default())
    }

    #[test]
    fn a_per_cent_sign_is_a_comment_only_when_it_is_one() {
        // The character before `%` stays.
        assert_eq!(strip("word % note\nnext"), "word next");
        assert_eq!(strip("10\\% of it\n"), "10\\% of it\n");
        assert_eq!(strip("line \\\\% note\nnext"), "line \\\\next");
        assert_eq!(strip("line \\\\\\% sign\n"), "line \\\\\\% sign\n");
        // At the end of a line, and at the end of the text.
        assert_eq!(strip("a%\nb"), "ab");
        assert_eq!(strip("a%"), "a");
        assert_eq!(strip("a % "), "a ");
        assert_eq!(strip("%%% all\n%\nb"), "b");
    }

    #[test]
    fn lines_and_paragraphs_stay_apart_as_in_tex() {
        assert_eq!(strip("a%\n   b"), "ab");
        assert_eq!(strip("a\n  % note\nb"), "a\nb");
        assert_eq!(strip("a % note\n\nb"), "a \n\nb");
        assert_eq!(strip("a\n% note\n\nb"), "a\n\nb");
        assert_eq!(strip("\\alpha%\nx"), "\\alpha\nx");
        assert_eq!(strip("a%\n  % more\n  b"), "ab");
    }

    #[test]
    fn verbatim_text_and_addresses_keep_their_signs() {
        for text in [
            "\\verb|50% of|\n",
            "\\begin{verbatim}\n% kept\n\\end{verbatim}\n",
            "\\begin{lstlisting}\nx = y % 2\n\\end{lstlisting}\n",
            "\\url{http://example.org/a%20b} x\n",
            "\\href{http://example.org/a%7Eb}{text}\n",
        ] {
            assert_eq!(strip(text), text);
        }
        assert_eq!(strip("\\url{open % note\nb"), "\\url{open b");
    }

    #[test]
    fn comment_environments_and_false_branches_go() {
        assert_eq!(strip("a\n\\begin{comment}\nx % \\end{x}\n\\end{comment}\nb"), "a\nb");
        assert_eq!(strip("a \\iffalse x \\ifx y \\fi z \\fi b"), "a  b");
        assert_eq!(strip("a\n\\iffalse\nx\n\\fi\nb"), "a\nb");
        assert_eq!(strip("a\\iffalse x\\else y\\ifx z\\fi w\\fi b"), "a y\\ifx z\\fi w b");
        assert_eq!(strip("\\iffalse a $x \\iff y$ \\fi b"), " b");
        assert_eq!(strip("\\alpha\\iffalse x\\fi b"), "\\alpha b");
        // Only named, or never closed.
        for text in ["\\let\\ifdraft\\iffalse a \\fi", "\\let\\ifx = \\iffalse", "\\iffalse open"] {
            assert_eq!(strip(text), text);
        }
    }

    #[test]
    fn what_goes_is_counted() {
        let (mut comments, mut disabled) = (Part::default(), Part::default());
        let text = "a % 1\n% 2\nb \\iffalse x\\fi c";
        let out = strip_comments(text, &mut comments, &mut disabled);
        assert_eq!(out, "a b  c");
        assert_eq!((comments.parts, disabled.parts), (2, 1));
        assert_eq!(comments.bytes + disabled.bytes + out.len() as u64, text.len() as u64);
    }

    #[test]
    fn hostile_text_takes_linear_time() {
        // Each of these takes minutes where a search starts again at every opening.
        for unit in ["\\iffalse", "\\begin{comment}", "\\iffalse\\else", "  %\n", "\\verb|", "%"] {
            let text = unit.repeat(300_000);
            strip(&text);
        }
        strip(&format!("x{}{}", " ".repeat(300_000), "%\n".repeat(300_000)));
    }
}
