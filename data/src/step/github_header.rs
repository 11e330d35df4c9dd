//! License headers of source files.

use std::sync::LazyLock;

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, Reason};
use crate::error::Result;

/// Lines at the top among which a header begins.
const HEADER_LINES: usize = 100;
/// Longest header in bytes. Whole licenses are about 35 kB.
const HEADER_BYTES: usize = 64 << 10;

/// Which rule finds headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderCompat {
    /// Ours: see [`GithubHeaderOptions`].
    #[default]
    None,
    /// RedPajama's: the first C comment anywhere if it mentions copyright; without C comments the
    /// leading run of lines that begin with `//`, `#` or `--` or are empty, so also `#include`,
    /// the first line of a script, and headings.
    Redpajama,
}

/// Removes license headers from source files: the first comment that begins in the first 100
/// lines, on a line of its own, and speaks of copyright or licenses. Comments are blocks (`/* */`,
/// `<!-- -->`, `(* *)`, `{- -}`) and runs of line comments, both by the file's extension; without
/// a path, those whose marks mean nothing else. The first line of a script and encoding lines
/// stay. After the first line of code, and in documentation comments, a mere mention of a license
/// is not a header. A file that is nothing but a header is dropped as empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GithubHeaderOptions {
    /// `none`, or `redpajama` for that pipeline's rule with its mistakes (string, default `none`).
    pub compat: HeaderCompat,
}

impl StepOptions for GithubHeaderOptions {
    fn version(&self) -> u32 {
        1
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(GithubHeader { compat: self.compat }))
    }
}

struct GithubHeader {
    compat: HeaderCompat,
}

impl Step for GithubHeader {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let header = match self.compat {
            HeaderCompat::Redpajama => redpajama_header(&document.text),
            HeaderCompat::None => {
                let metadata = document.metadata();
                let path = metadata.get("path").and_then(|path| path.as_str());
                find_header(&document.text, Comments::of(path))
            }
        };
        if let Some((from, to)) = header {
            let blank = |part: &str| part.trim().is_empty();
            if blank(&document.text[..from]) && blank(&document.text[to..]) {
                let detail = "nothing but a header".to_owned();
                return Verdict::Drop { reason: Reason::EMPTY, detail };
            }
            document.text.replace_range(from..to, "");
            counts.remove("header", to - from);
        }
        Verdict::Keep
    }
}

/// How comments of a language look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Comments {
    /// Opening and closing marks.
    blocks: &'static [(&'static str, &'static str)],
    /// Marks of line comments.
    lines: &'static [&'static str],
    /// Whether `#` begins a comment only before a blank or a line end.
    spaced_hash: bool,
}

impl Comments {
    /// By the extension of `path`.
    fn of(path: Option<&str>) -> Self {
        const C: (&str, &str) = ("/*", "*/");
        const XML: (&str, &str) = ("<!--", "-->");
        let new = |blocks, lines| Self { blocks, lines, spaced_hash: false };
        let Some(path) = path else {
            return Self { blocks: &[C, XML], lines: &["//", "#", "--"], spaced_hash: true };
        };
        let name = path.rsplit('/').next().unwrap_or(path);
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        match extension.to_ascii_lowercase().as_str() {
            "c" | "h" | "cs" | "cpp" | "hpp" | "c++" | "h++" | "cc" | "hh" | "go" | "java"
            | "js" | "rs" | "scala" | "ts" | "tsx" | "jsx" | "m" | "swift" | "kt" | "dart" => {
                new(&[C], &["//!", "///", "//"])
            }
            "css" => new(&[C], &[]),
            "php" | "php3" | "php4" | "php5" | "phps" | "phpt" => new(&[C], &["///", "//", "#"]),
            "py" | "rb" | "sh" | "bash" | "command" | "zsh" | "pl" | "pm" | "perl" | "cmake"
            | "dockerfile" | "jl" | "r" | "yml" | "yaml" | "toml" => new(&[], &["#"]),
            "ps1" | "psd1" | "psm1" => new(&[("<#", "#>")], &["#"]),
            "sql" => new(&[C], &["--"]),
            "lua" => new(&[("--[[", "]]")], &["--"]),
            "hs" => new(&[("{-", "-}")], &["--"]),
            "ml" | "mli" => new(&[("(*", "*)")], &[]),
            "html" | "xml" | "md" | "markdown" | "xhtml" | "svg" => new(&[XML], &[]),
            "tex" => new(&[], &["%"]),
            "asm" => new(&[C], &[";", "//", "#"]),
            "smali" => new(&[], &["#"]),
            "bat" | "cmd" => new(&[], &["REM", "rem", "Rem", "::"]),
            "vb" => new(&[], &["'"]),
            "f90" | "f95" | "f03" | "f08" => new(&[], &["!"]),
            "f" | "for" | "f77" | "fpp" => new(&[], &["!", "C ", "c ", "*"]),
            _ if name == "Dockerfile" || name == "Makefile" => new(&[], &["#"]),
            // Text: reStructuredText, POD.
            "rst" | "pod" | "txt" => new(&[], &[]),
            _ => Self { blocks: &[C, XML], lines: &["//", "#", "--"], spaced_hash: true },
        }
    }

    /// The line comment that `line`, without blanks in front, is.
    fn line_mark(&self, line: &str) -> Option<&'static str> {
        self.lines.iter().copied().find(|&mark| {
            let Some(rest) = line.strip_prefix(mark) else { return false };
            match mark {
                "#" if self.spaced_hash => {
                    rest.starts_with([' ', '\t', '\n', '\r', '#']) || rest.is_empty()
                }
                // A banner of slashes is not documentation; what a compiler is told is not a comment.
                "///" => !rest.starts_with('/'),
                "//" => !rest.starts_with("go:"),
                // REM is a word.
                "REM" | "rem" | "Rem" => !rest.starts_with(|c: char| c.is_ascii_alphanumeric()),
                _ => true,
            }
        })
    }
}

/// The first comment of the top of `text` that is a license header, with its line end.
fn find_header(text: &str, comments: Comments) -> Option<(usize, usize)> {
    if !has_mention(text) {
        return None;
    }
    let mut at = 0;
    let mut code_seen = false;
    for number in 0..HEADER_LINES {
        if at >= text.len() {
            return None;
        }
        let end = line_after(text, at);
        let line = text[at..end].trim_start();
        let indent = end - at - line.len();
        if line.is_empty() || stays(line, number) {
            at = end;
            continue;
        }
        let mark = comments.line_mark(line);
        let comment = block_at(text, at + indent, comments)
            .or_else(|| mark.map(|_| run_end(text, at, number, comments)));
        let Some(comment_end) = comment else {
            code_seen = true;
            at = end;
            continue;
        };
        let content = &text[at..comment_end];
        // `# License` is also a heading of Markdown.
        let heading = comments.spaced_hash && mark == Some("#");
        let documentation = matches!(mark, Some("//!" | "///"));
        let header = if code_seen || heading || documentation { &*CLEAR_HEADER } else { &*HEADER };
        if content.len() <= HEADER_BYTES && header.is_match(content.as_bytes()) {
            return Some((at, comment_end));
        }
        at = comment_end;
    }
    None
}

/// What a header speaks of.
static HEADER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i-u)copyright|licen[cs]e|spdx|all rights reserved|redistribution")
});

/// What a header speaks of where other comments do too.
static CLEAR_HEADER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i-u)copyright|spdx-|all rights reserved|redistributions? |licen[cs]ed under")
});

static COPYRIGHT: LazyLock<Regex> = LazyLock::new(|| pattern("(?i)copyright"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the patterns above are valid")
}

/// Whether the top of `text` speaks of licenses at all: most files do not.
fn has_mention(text: &str) -> bool {
    let mut end = 0;
    for _ in 0..HEADER_LINES {
        if end >= text.len() {
            break;
        }
        end = line_after(text, end);
    }
    // A header may begin in the last of these lines and go on below.
    let end = (end + HEADER_BYTES).min(text.len());
    HEADER.is_match(&text.as_bytes()[..end])
}

/// Whether a line stays though it looks like a comment: the first line of a script, encodings,
/// what XML and PHP begin with.
fn stays(line: &str, number: usize) -> bool {
    if number == 0 && (line.starts_with("#!") || line.starts_with('\u{feff}')) {
        return true;
    }
    if line.starts_with("<?") || line.starts_with("<!DOCTYPE") || line.starts_with("<!doctype") {
        return true;
    }
    // PEP 263 and Emacs: coding: utf-8, in the first two lines.
    number < 2
        && line.starts_with(['#', '/', '%', ';', '-'])
        && line.contains("coding")
        && !HEADER.is_match(line.as_bytes())
}

/// Position of the next line.
fn line_after(text: &str, at: usize) -> usize {
    memchr::memchr(b'\n', &text.as_bytes()[at..]).map_or(text.len(), |length| at + length + 1)
}

/// Position after the block comment at `at`, if there is one and only blanks follow it on its
/// last line.
fn block_at(text: &str, at: usize, comments: Comments) -> Option<usize> {
    let rest = &text[at..];
    let (open, close) = comments.blocks.iter().find(|(open, _)| rest.starts_with(open))?;
    let inside = at + open.len();
    let window = &text.as_bytes()[inside..text.len().min(inside + HEADER_BYTES)];
    let length = memchr::memmem::find(window, close.as_bytes())?;
    let end = inside + length + close.len();
    let next = line_after(text, end);
    let only = text[end..next].trim().is_empty();
    Some(if only { next } else { end })
}

/// Position after the run of line comments that begins with line `number` at `at`.
fn run_end(text: &str, mut at: usize, mut number: usize, comments: Comments) -> usize {
    let mut mark = None;
    while at < text.len() {
        let end = line_after(text, at);
        let line = text[at..end].trim_start();
        let found = comments.line_mark(line).filter(|_| !stays(line, number));
        number += 1;
        if found.is_none() || mark.is_some_and(|mark| found != Some(mark)) {
            break;
        }
        mark = found;
        at = end;
    }
    at
}

/// What RedPajama cuts: the span of a comment, or of the leading lines.
fn redpajama_header(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    if let Some(open) = memchr::memmem::find(bytes, b"/*")
        && let Some(length) = memchr::memmem::find(&bytes[open + 2..], b"*/")
    {
        let end = open + 2 + length + 2;
        return COPYRIGHT.is_match(&bytes[open..end]).then_some((open, end));
    }
    let mut at = 0;
    while at < text.len() {
        let end = line_after(text, at);
        let line = &text[at..end];
        let header = ["//", "#", "--", "\n"].iter().any(|start| line.starts_with(start));
        if !header {
            break;
        }
        at = end;
    }
    (at > 0).then_some((0, at))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(compat: HeaderCompat, path: Option<&str>, text: &str) -> String {
        let mut document = Document { text: text.to_owned(), ..Document::default() };
        if let Some(path) = path {
            document.set_metadata("path", path);
        }
        let mut counts = StepCounts::default();
        let step = GithubHeaderOptions { compat }.build("").unwrap();
        let verdict = step.apply(&mut document, &mut counts);
        if let Verdict::Drop { reason, .. } = verdict {
            assert_eq!((reason, counts), (Reason::EMPTY, StepCounts::default()));
            return String::new();
        }
        let removed: u64 = counts.removed().values().map(|removed| removed.bytes).sum();
        assert_eq!(removed as usize + document.text.len(), text.len());
        document.text
    }

    fn ours(path: &str, text: &str) -> String {
        apply(HeaderCompat::None, Some(path), text)
    }

    #[test]
    fn headers_go_and_code_stays() {
        for (path, text, expected) in [
            ("a.c", "/*\n * Copyright 2020\n */\n#include <a.h>\n", "#include <a.h>\n"),
            ("a.c", "// Copyright 2020\n// MIT\n\nint x;\n", "\nint x;\n"),
            (
                "a.py",
                "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n# Copyright A\n# B\nx = 1\n",
                "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\nx = 1\n",
            ),
            (
                "a.h",
                "#ifndef A\n#define A\n/* Copyright (c) A */\nint x;\n",
                "#ifndef A\n#define A\nint x;\n",
            ),
            ("a.sql", "-- SPDX-License-Identifier: MIT\nselect 1;\n", "select 1;\n"),
            (
                "a.html",
                "<!DOCTYPE html>\n<!--\nLicensed under X\n-->\n<p>\n",
                "<!DOCTYPE html>\n<p>\n",
            ),
            ("a.hs", "{- Redistribution and use -}\nmain = x\n", "main = x\n"),
            ("a.php", "<?php\n/** @license MIT */\necho 1;\n", "<?php\necho 1;\n"),
            ("a.js", "/* a */ /* b */\n/*! Licence: MIT */ var x;\n", "/* a */ /* b */\n var x;\n"),
            ("a.rs", "// A note.\n\n// Copyright B\nfn f() {}\n", "// A note.\n\nfn f() {}\n"),
            ("a.bat", "@echo off\nREM Copyright A\nREMOVE x\n", "@echo off\nREMOVE x\n"),
            ("a.py", "# Copyright A\n# coding: latin-1\nx = 1\n", "# coding: latin-1\nx = 1\n"),
            (
                "a.go",
                "// Copyright A\n//go:build linux\npackage a\n",
                "//go:build linux\npackage a\n",
            ),
            ("a.rs", "///////\n// Copyright A\n///////\nfn f() {}\n", "fn f() {}\n"),
            ("Makefile", "# All rights reserved.\nall:\n", "all:\n"),
        ] {
            assert_eq!(ours(path, text), expected, "{path}");
        }
        assert_eq!(
            apply(HeaderCompat::None, None, "# Copyright A\n#include <a>\n"),
            "#include <a>\n"
        );
    }

    #[test]
    fn what_is_no_header_is_never_eaten() {
        for (path, text) in [
            ("a.c", "#include <license.h>\n#define COPYRIGHT 1\nint x;\n"),
            ("a.md", "# License\n\nThis is MIT. Copyright A.\n"),
            ("a.css", "#license { color: red }\n"),
            ("a.rs", "#![feature(license)]\n#[spdx]\nfn f() {}\n"),
            ("a.c", "/* A comment. */\nint x;\n"),
            ("a.go", "package a\n\n// License is what a file is under.\ntype License string\n"),
            ("a.sh", "#!/bin/sh -e license\necho 1\n"),
            ("a.rs", "//! Fast, and permissively licensed.\n\nfn f() {}\n"),
            ("a.js", "var x = 1; /* Copyright A */\n"),
            ("a.c", "/* Copyright without end\nint x;\n"),
            ("a.txt", "# Copyright A\n"),
            ("b.md", "Copyright A\n"),
        ] {
            assert_eq!(ours(path, text), text, "{path}");
        }
        let deep = format!("{}// Copyright A\n", "x();\n".repeat(100));
        assert_eq!(ours("a.c", &deep), deep);
        assert_eq!(ours("a.c", &deep[5..]), deep[5..deep.len() - 15]);
        for no_path in ["#include <a>\n#license\n", "# License\n\nText.\n"] {
            assert_eq!(apply(HeaderCompat::None, None, no_path), no_path);
        }
    }

    #[test]
    fn a_file_that_is_only_a_header_is_dropped() {
        for (compat, text) in [
            (HeaderCompat::None, "\n/* Copyright A */\n\n"),
            (HeaderCompat::None, "// Copyright A\n// B"),
            (HeaderCompat::Redpajama, "// A\n\n"),
        ] {
            let mut document = Document { text: text.to_owned(), ..Document::default() };
            let step = GithubHeaderOptions { compat }.build("").unwrap();
            let verdict = step.apply(&mut document, &mut StepCounts::default());
            assert_eq!(verdict, Verdict::unwanted("empty", "nothing but a header"), "{text:?}");
        }
    }

    #[test]
    fn redpajamas_rule_is_available_with_its_mistakes() {
        for (text, expected) in [
            ("int a; /* copyRight */ int b;\n", "int a;  int b;\n"),
            ("/* no */ x /* Copyright */", "/* no */ x /* Copyright */"),
            ("/* no */\n// Copyright\nx", "/* no */\n// Copyright\nx"),
            ("#include <a>\n\n// b\n-- c\nint x;\n", "int x;\n"),
            ("/* open Copyright\nx", "/* open Copyright\nx"),
            ("/*/ Copyright */x", "x"),
            ("# only\n", ""),
            (" # indented\n", " # indented\n"),
        ] {
            assert_eq!(apply(HeaderCompat::Redpajama, Some("a.c"), text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn only_one_stretch_goes(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "/*", "*/", "//", "#", "-- ", "<!--", "-->", "Copyright", "\n", "\n", "é", " ",
                    "#!", "coding", "<?xml", "x",
                ]),
                0..40,
            ),
            path in prop::option::of(prop::sample::select(vec!["a.c", "a.py", "a.html", "a.lua"])),
        ) {
            let text = parts.concat();
            for compat in [HeaderCompat::None, HeaderCompat::Redpajama] {
                let out = apply(compat, path, &text);
                let start = text.bytes().zip(out.bytes()).take_while(|(a, b)| a == b).count();
                prop_assert!(text.ends_with(&out[start..]), "{text:?} {out:?}");
            }
        }
    }
}
