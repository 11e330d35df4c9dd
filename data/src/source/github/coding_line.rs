//! The encoding that a source file says it has, in a comment for its editor or interpreter.

/// Bytes at the beginning and at the end of a file in which the comment may stand.
const AROUND: usize = 1024;
/// Lines at the beginning and at the end.
const LINES: usize = 5;

/// The encoding that `bytes` name: `# -*- coding: latin-1 -*-` of Emacs and Python in the first two
/// lines, `vim: set fileencoding=latin1` in the first or last five.
pub(super) fn coding_line(bytes: &[u8]) -> Option<String> {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(AROUND)]);
    let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(AROUND)..]);
    let mut first = start.lines().take(LINES);
    let two = first.by_ref().take(2).find_map(|line| of_emacs(line).or_else(|| of_vim(line)));
    two.or_else(|| first.find_map(of_vim))
        .or_else(|| end.lines().rev().take(LINES).find_map(of_vim))
}

/// `coding: NAME` or `coding=NAME`, in a comment of Python's or between the signs of Emacs.
fn of_emacs(line: &str) -> Option<String> {
    let variables =
        line.split_once("-*-").map(|(_, rest)| rest.split("-*-").next().unwrap_or(rest));
    let comment = || line.trim_start().starts_with('#').then_some(line);
    let text = variables.or_else(comment)?;
    text.match_indices("coding").find_map(|(at, word)| name(&text[at + word.len()..]))
}

/// `fileencoding=NAME` or `fenc=NAME` behind `vim:`.
fn of_vim(line: &str) -> Option<String> {
    let (_, options) = ["vim:", "vi:", "ex:"].iter().find_map(|word| line.split_once(word))?;
    let mut options = options.split(|c: char| c.is_whitespace() || c == ':');
    options.find_map(|option| {
        let words = ["fileencoding", "fenc"].iter();
        name(words.filter_map(|word| option.split_once(word)).next()?.1)
    })
}

/// The name behind a `:` or `=`.
fn name(after: &str) -> Option<String> {
    let value = after.strip_prefix([':', '='])?.trim_start_matches([' ', '\t']);
    let end = value.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let name = &value[..end.unwrap_or(value.len())];
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editors_and_python_are_understood() {
        for (text, expected) in [
            ("# -*- coding: latin-1 -*-\nx = 1", Some("latin-1")),
            ("#!/usr/bin/python\n# coding=euc_jp\n", Some("euc_jp")),
            ("# vim: set fileencoding=cp1251 :\n", Some("cp1251")),
            (
                "/* -*- mode: c; coding: iso-8859-1-unix; tab-width: 4 -*- */",
                Some("iso-8859-1-unix"),
            ),
            ("(* -*- coding: koi8-r -*- *)", Some("koi8-r")),
            ("int x;\n\n\n// vim: ts=4 fenc=sjis", Some("sjis")),
            ("% vim:fileencoding=latin1:sw=2\n", Some("latin1")),
            ("a\nb\n# coding: latin-1\n", None),
            ("x = \"coding: latin-1\"", None),
            ("# encoding of things\n", None),
            ("", None),
        ] {
            assert_eq!(coding_line(text.as_bytes()).as_deref(), expected, "{text}");
        }
        let far = format!("{}// vim: fenc=latin1", "x\n".repeat(9));
        assert_eq!(coding_line(far.as_bytes()).as_deref(), Some("latin1"));
    }
}
