//! License headers of source files.

mod comments;
mod notice;

use std::sync::LazyLock;

use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

use self::comments::{Comments, line_after};
use self::notice::{Place, has_mention, notices_of};
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

/// Removes license notices from the top of source files: those in the comments that begin in the
/// first 100 lines, each on a line of its own, up to the first code behind one. Comments are blocks
/// (`/* */`, `<!-- -->`, `(* *)`, `{- -}`, docstrings), runs of line comments and those of
/// reStructuredText, by the file's extension; without a path, those whose marks mean nothing else.
///
/// Of a comment with a notice the paragraphs go that are part of it. What else is in the same comment
/// stays: usage, descriptions, documentation. Lines that tell a tool something stay too: the first
/// line of a script, encodings, `# frozen_string_literal`, `// @ts-check`. A mere mention of
/// copyright is not a notice. A file that is nothing but notices is dropped as empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GithubHeaderOptions {
    /// `none`, or `redpajama` for that pipeline's rule with its mistakes (string, default `none`).
    pub compat: HeaderCompat,
}

impl StepOptions for GithubHeaderOptions {
    /// Version 1 took one comment whole.
    fn version(&self) -> u32 {
        2
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
        let parts = match self.compat {
            HeaderCompat::Redpajama => redpajama_header(&document.text).into_iter().collect(),
            HeaderCompat::None => {
                let metadata = document.metadata();
                let path = metadata.get("path").and_then(|path| path.as_str());
                find_notices(&document.text, Comments::of(path, &document.text))
            }
        };
        if parts.is_empty() {
            return Verdict::Keep;
        }
        let mut left = String::with_capacity(document.text.len());
        let mut at = 0;
        for &(from, to) in &parts {
            left.push_str(&document.text[at..from]);
            at = to;
        }
        left.push_str(&document.text[at..]);
        if left.trim().is_empty() {
            let detail = "nothing but a header".to_owned();
            return Verdict::Drop { reason: Reason::EMPTY, detail };
        }
        document.text = left;
        for (from, to) in parts {
            counts.remove("header", to - from);
        }
        Verdict::Keep
    }
}

/// The parts of the top of `text` that are license notices, in order.
fn find_notices(text: &str, comments: Comments) -> Vec<(usize, usize)> {
    if !has_mention(top(text)) {
        return Vec::new();
    }
    let mut parts: Vec<(usize, usize)> = Vec::new();
    let mark = '\u{feff}'.len_utf8();
    let mut at = if text.starts_with('\u{feff}') { mark } else { 0 };
    let mut code_seen = false;
    let mut number = 0;
    while number < HEADER_LINES && at < text.len() {
        let line = &text[at..line_after(text, at)];
        if line.trim().is_empty() || comments::is_directive(line, number) {
            at += line.len();
            number += 1;
            continue;
        }
        let Some(comment) = comments.comment_at(text, at, number) else {
            // What follows code is part of it, and a docstring is a string behind code.
            if !parts.is_empty() {
                break;
            }
            code_seen = true;
            at += line.len();
            number += 1;
            continue;
        };
        let (start, end) = (comment.start, comment.end);
        let place = Place { code_seen, heading: comments.spaced_hash };
        if comment.is_docstring && code_seen {
            break;
        }
        if end - start <= HEADER_BYTES {
            let found = notices_of(text, &comment, place);
            let whole = found == [(start, end)];
            match parts.last_mut() {
                // Blank lines between notices go with them.
                Some(last) if whole && text[last.1..start].trim().is_empty() => last.1 = end,
                _ => parts.extend(found),
            }
        }
        number += text[at..end].matches('\n').count().max(1);
        at = end;
    }
    // The byte order mark says nothing any more.
    if parts.first().is_some_and(|&(from, _)| from == mark) && text.starts_with('\u{feff}') {
        parts[0].0 = 0;
    }
    parts
}

/// The part of `text` that a header may be in.
fn top(text: &str) -> &str {
    let mut end = 0;
    for _ in 0..HEADER_LINES {
        if end >= text.len() {
            break;
        }
        end = line_after(text, end);
    }
    // A header may begin in the last of these lines and go on below.
    &text[..text.floor_char_boundary(end + HEADER_BYTES)]
}

static COPYRIGHT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("(?i)copyright").expect("the pattern above is valid"));

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
mod tests;
