//! Comments of programming languages.

use std::sync::LazyLock;

use regex::bytes::Regex;

use super::HEADER_BYTES;

/// How comments of a language look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comments {
    /// Opening and closing marks.
    blocks: &'static [(&'static str, &'static str)],
    /// Marks of line comments.
    lines: &'static [&'static str],
    /// Whether `#` begins a comment only before a blank or a line end.
    pub spaced_hash: bool,
    /// Whether a text at the beginning, in three quotes, is documentation.
    docstrings: bool,
    /// Whether `..` begins a comment that goes on in indented lines.
    restructured: bool,
}

/// A comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Comment {
    /// Where it begins: its first line, if nothing but blanks is before it there.
    pub start: usize,
    /// Where it ends, with its line end.
    pub end: usize,
    /// Where the text of each of its lines is, without the marks.
    pub lines: Vec<Line>,
    /// It is documentation of the code that follows or is around it.
    pub is_documentation: bool,
    /// It is a string that documents a module.
    pub is_docstring: bool,
    /// It is a run of line comments, so that a line of it can go alone.
    pub is_run: bool,
    /// It is a run of lines that begin with a single `#`.
    pub is_hash: bool,
}

/// A line of a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins.
    pub start: usize,
    /// Where the next one begins.
    pub end: usize,
    /// Where its text begins, behind the mark.
    pub text: usize,
    /// Where its text ends, before a closing mark.
    pub text_end: usize,
}

const C: (&str, &str) = ("/*", "*/");
const XML: (&str, &str) = ("<!--", "-->");

impl Comments {
    const NONE: Self = Self {
        blocks: &[],
        lines: &[],
        spaced_hash: false,
        docstrings: false,
        restructured: false,
    };
    /// Marks that mean nothing else in most languages.
    const ANY: Self =
        Self { blocks: &[C, XML], lines: &["//", "#", "--"], spaced_hash: true, ..Self::NONE };

    /// By the extension of `path`, where that is not enough by `text`.
    pub fn of(path: Option<&str>, text: &str) -> Self {
        let new = |blocks, lines| Self { blocks, lines, ..Self::NONE };
        let Some(path) = path else { return Self::ANY };
        let name = path.rsplit('/').next().unwrap_or(path);
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        match extension.to_ascii_lowercase().as_str() {
            "m" if is_matlab(text) => new(&[("%{", "%}")], &["%"]),
            "c" | "h" | "cs" | "cpp" | "hpp" | "c++" | "h++" | "cc" | "hh" | "cxx" | "hxx"
            | "inl" | "go" | "java" | "js" | "mjs" | "cjs" | "rs" | "scala" | "ts" | "mts"
            | "cts" | "tsx" | "jsx" | "m" | "mm" | "swift" | "kt" | "kts" | "dart" | "groovy"
            | "gradle" | "proto" | "thrift" | "cu" | "cuh" | "glsl" | "hlsl" | "v" | "sv"
            | "svh" | "zig" | "sol" | "d" | "scss" | "less" | "jsonc" | "json5" | "vala" => {
                new(&[C], &["//!", "///", "//"])
            }
            "css" => new(&[C], &[]),
            "php" | "php3" | "php4" | "php5" | "phps" | "phpt" => new(&[C], &["///", "//", "#"]),
            "py" | "pyi" | "pyx" | "pxd" => Self { docstrings: true, ..new(&[], &["#"]) },
            "rb" | "rake" | "gemspec" => new(&[("=begin", "=end")], &["#"]),
            "sh" | "bash" | "command" | "zsh" | "fish" | "ksh" | "awk" | "sed" | "pl" | "pm"
            | "perl" | "cmake" | "dockerfile" | "r" | "yml" | "yaml" | "toml" | "mk" | "tcl"
            | "ex" | "exs" | "nim" | "properties" | "conf" | "cfg" | "nix" | "tf" | "coffee"
            | "bzl" | "bazel" => new(&[], &["#"]),
            "ps1" | "psd1" | "psm1" => new(&[("<#", "#>")], &["#"]),
            "jl" => new(&[("#=", "=#")], &["#"]),
            "sql" => new(&[C], &["--"]),
            "lua" => new(&[("--[[", "]]")], &["--"]),
            "hs" | "elm" | "purs" | "idr" => new(&[("{-", "-}")], &["--"]),
            "ada" | "adb" | "ads" | "vhd" | "vhdl" => new(&[], &["--"]),
            "ml" | "mli" | "mll" | "mly" => new(&[("(*", "*)")], &[]),
            "fs" | "fsi" | "fsx" => new(&[("(*", "*)")], &["///", "//"]),
            "pas" | "dpr" => new(&[("(*", "*)"), ("{", "}")], &["//"]),
            "html" | "htm" | "xml" | "md" | "markdown" | "xhtml" | "svg" | "vue" | "xsl"
            | "xslt" | "xsd" => new(&[XML], &[]),
            "jsp" => new(&[("<%--", "--%>"), XML], &[]),
            "twig" | "jinja" | "j2" => new(&[("{#", "#}"), XML], &[]),
            "tex" | "sty" | "cls" | "erl" | "hrl" | "prolog" => new(&[], &["%"]),
            "lisp" | "lsp" | "cl" | "el" | "clj" | "cljs" | "cljc" | "scm" | "rkt" | "ss" => {
                new(&[("#|", "|#")], &[";"])
            }
            "ini" => new(&[], &[";", "#"]),
            "vim" => new(&[], &["\""]),
            "m4" | "ac" => new(&[], &["dnl", "#"]),
            "asm" | "s" => new(&[C], &[";", "//", "#"]),
            "smali" => new(&[], &["#"]),
            "bat" | "cmd" => new(&[], &["REM", "rem", "Rem", "@REM", "@rem", "::"]),
            "vb" | "bas" | "vbs" => new(&[], &["'"]),
            "f90" | "f95" | "f03" | "f08" => new(&[], &["!"]),
            "f" | "for" | "f77" | "fpp" => new(&[], &["!", "C ", "c ", "*"]),
            "rst" => Self { restructured: true, ..Self::NONE },
            _ if name == "Dockerfile" || name == "Makefile" || name == "CMakeLists.txt" => {
                new(&[], &["#"])
            }
            // Text, POD.
            "pod" | "txt" => Self::NONE,
            _ => Self::ANY,
        }
    }

    /// The comment that begins in the line at `at`, line `number` of the file, if nothing but blanks
    /// stands before it.
    pub fn comment_at(&self, text: &str, at: usize, number: usize) -> Option<Comment> {
        let end = line_after(text, at);
        let line = text[at..end].trim_start();
        let indent = end - at - line.len();
        self.block(text, at, indent)
            .or_else(|| self.docstring(text, at, indent))
            .or_else(|| self.explicit_markup(text, at))
            .or_else(|| self.line_mark(line).map(|_| self.run(text, at, number)))
    }

    /// The line comment that `line`, without blanks in front, is.
    fn line_mark(&self, line: &str) -> Option<&'static str> {
        self.lines.iter().copied().find(|&mark| {
            let Some(rest) = line.strip_prefix(mark) else { return false };
            match mark {
                "#" if self.spaced_hash => {
                    rest.starts_with([' ', '\t', '\n', '\r', '#']) || rest.is_empty()
                }
                // A banner of slashes is not documentation.
                "///" => !rest.starts_with('/'),
                // REM is a word.
                "REM" | "rem" | "Rem" | "@REM" | "@rem" | "dnl" => {
                    !rest.starts_with(|c: char| c.is_ascii_alphanumeric())
                }
                _ => true,
            }
        })
    }

    /// The run of line comments that begins with line `number` at `start`.
    fn run(&self, text: &str, start: usize, mut number: usize) -> Comment {
        let mut lines = Vec::new();
        let mut run_mark = None;
        let mut at = start;
        while at < text.len() {
            let end = line_after(text, at);
            let whole = &text[at..end];
            let line = whole.trim_start();
            let found = self.line_mark(line).filter(|_| !is_directive(whole, number));
            number += 1;
            let Some(mark) = found else { break };
            if run_mark.is_some_and(|known| known != mark) {
                break;
            }
            run_mark = Some(mark);
            let after = end - line.len() + mark.len();
            let content =
                text[after..end].trim_start_matches(mark.chars().next_back().unwrap_or(' '));
            let text_start = end - content.len();
            lines.push(Line { start: at, end, text: text_start, text_end: end });
            at = end;
        }
        let mark = run_mark.unwrap_or_default();
        Comment {
            start,
            end: at,
            lines,
            is_documentation: matches!(mark, "//!" | "///"),
            is_docstring: false,
            is_run: true,
            is_hash: mark == "#" && !text[start..].trim_start().starts_with("##"),
        }
    }

    /// The block comment at `indent` of the line at `at`.
    fn block(&self, text: &str, at: usize, indent: usize) -> Option<Comment> {
        let rest = &text[at + indent..];
        let (open, close) = self.blocks.iter().find(|(open, _)| rest.starts_with(open))?;
        // A pragma of Haskell, a directive of Pascal.
        if rest.starts_with("{-#") || rest.starts_with("{$") {
            return None;
        }
        let inside = at + indent + open.len();
        let (text_end, end) = find_close(text, inside, close)?;
        Some(block_lines(text, at, inside, text_end, end))
    }

    /// A documentation string at the top of a file.
    fn docstring(&self, text: &str, at: usize, indent: usize) -> Option<Comment> {
        let rest = self.docstrings.then(|| &text[at + indent..])?;
        let quotes = rest.trim_start_matches(['r', 'R', 'u', 'U']);
        let mark = ["\"\"\"", "'''"].into_iter().find(|mark| quotes.starts_with(mark))?;
        let inside = at + indent + rest.len() - quotes.len() + mark.len();
        let (text_end, end) = find_close(text, inside, mark)?;
        let comment = block_lines(text, at, inside, text_end, end);
        Some(Comment { is_docstring: true, ..comment })
    }

    /// A comment of reStructuredText: `..`, and the indented lines below.
    fn explicit_markup(&self, text: &str, start: usize) -> Option<Comment> {
        let first = text[start..].strip_prefix("..").filter(|_| self.restructured)?;
        let line = first.lines().next().unwrap_or_default();
        let directive = line.contains("::") || line.trim_start().starts_with(['_', '|', '[']);
        if directive || !line.is_empty() && !line.starts_with([' ', '\t']) {
            return None;
        }
        let first_end = line_after(text, start);
        let mut lines = vec![Line { start, end: first_end, text: start + 2, text_end: first_end }];
        let (mut at, mut end) = (first_end, first_end);
        while at < text.len() {
            let next = line_after(text, at);
            let line = &text[at..next];
            let blank = line.trim().is_empty();
            if !blank && !line.starts_with([' ', '\t']) {
                break;
            }
            lines.push(Line { start: at, end: next, text: at, text_end: next });
            at = next;
            if !blank {
                end = next;
            }
        }
        lines.retain(|line| line.start < end);
        Some(Comment {
            start,
            end,
            lines,
            is_documentation: false,
            is_docstring: false,
            is_run: false,
            is_hash: false,
        })
    }
}

/// Position of the next line.
pub(super) fn line_after(text: &str, at: usize) -> usize {
    memchr::memchr(b'\n', &text.as_bytes()[at..]).map_or(text.len(), |length| at + length + 1)
}

/// Where the closing mark begins, and where the comment ends: with the line if only blanks follow.
fn find_close(text: &str, inside: usize, close: &str) -> Option<(usize, usize)> {
    let window = &text.as_bytes()[inside..text.len().min(inside + HEADER_BYTES)];
    let text_end = inside + memchr::memmem::find(window, close.as_bytes())?;
    let end = text_end + close.len();
    let next = line_after(text, end);
    Some((text_end, if text[end..next].trim().is_empty() { next } else { end }))
}

/// The block comment of the lines from `start` on, whose text is from `inside` to `text_end`.
fn block_lines(text: &str, start: usize, inside: usize, text_end: usize, end: usize) -> Comment {
    let mut lines = Vec::new();
    let mut at = start;
    while at < end {
        let next = line_after(text, at).min(end);
        let from = at.max(inside).min(next);
        let to = next.min(text_end).max(from);
        let content = text[from..to].trim_start();
        // What is drawn at the left edge, and behind the opening mark.
        let plain = content.trim_start_matches(['*', '!', '#', '|', '%']);
        lines.push(Line { start: at, end: next, text: to - plain.len(), text_end: to });
        at = next;
    }
    Comment {
        start,
        end,
        lines,
        // `/*!` is documentation for some tools, but mostly says that it must be kept.
        is_documentation: false,
        is_docstring: false,
        is_run: false,
        is_hash: false,
    }
}

/// MATLAB and Objective-C share an extension.
fn is_matlab(text: &str) -> bool {
    let first = text.lines().map(str::trim_start).find(|line| !line.is_empty());
    first.is_some_and(|line| {
        line.starts_with('%') || ["function", "classdef"].iter().any(|word| line.starts_with(word))
    })
}

/// Whether a line tells a tool something, so that it stays though it looks like a comment.
pub(super) fn is_directive(line: &str, number: usize) -> bool {
    let line = line.trim();
    if number == 0 && line.starts_with("#!") {
        return true;
    }
    if line.starts_with("<?") || line.starts_with("<!DOCTYPE") || line.starts_with("<!doctype") {
        return true;
    }
    line.len() < 400 && DIRECTIVE.is_match(line.as_bytes()) && !MENTION.is_match(line.as_bytes())
}

/// Directives of compilers, interpreters, editors and linters.
static DIRECTIVE: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?x)^(
        \#\s*(frozen[_-]string[_-]literal|warn_indent|shareable_constant_value|typed|encoding|coding
            |syntax|escape|check|shellcheck|rubocop|pylint|flake8|noqa|mypy|pyright|pytype|type|isort
            |yapf|fmt|ruff|cython|distutils|yaml-language-server|vim?|ex|cspell|hadolint|nosec
            |renovate|spell-checker)\s*[:=].*
        |\#\s*-\*-.*-\*-.*
        |\#.*coding[:=]\s*[-\w.]+.*
        |(//|/\*)\s*(@ts-|@flow|@jsx|@format|eslint|tslint|jshint|jslint|jscs:|prettier-|biome-|deno-lint
            |istanbul|c8\ |clang-format|NOLINT|nolint|swiftlint|swift-tools-version|go:|\+build
            |sourceMappingURL|globals?\ |exported\ |cspell|dart-format|ignore_for_file|\#region
            |@dart|pragma|scalastyle|ktlint|vim?:|-\*-).*
        |///\s*<(reference|amd).*
        |(--|;+|%|\x22|')\s*(-\*-.*-\*-|vim?:|luacheck:|selene:|stylelint).*
        |\#\s*(///(\s.*)?|region\b.*)
    )$";
    Regex::new(pattern).expect("the pattern above is valid")
});

/// A directive does not speak of this.
static MENTION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i-u)copyright|licen[cs]e[ds]?\b|all rights reserved")
        .expect("the pattern above is valid")
});
