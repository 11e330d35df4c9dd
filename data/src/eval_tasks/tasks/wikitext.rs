//! WikiText: perplexity of whole articles.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::json;

use crate::error::Result;
use crate::eval_tasks::example::{Example, ExampleKind, Rules};
use crate::eval_tasks::rows::{Row, RowResult, read_rows, read_text};
use crate::eval_tasks::task::{BITS_PER_BYTE, BYTE_PERPLEXITY, LIKELIHOODS, Task, WORD_PERPLEXITY};

const MEASURES: &[&str] = &[WORD_PERPLEXITY, BYTE_PERPLEXITY, BITS_PER_BYTE];

pub static TASK: Task = Task {
    name: "wikitext",
    title: "WikiText, perplexity of articles",
    published: "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-raw-v1.zip",
    licence: "CC BY-SA 3.0",
    files: &["wiki.test.raw", "wiki.test.tokens", "test*.parquet", "test.jsonl"],
    measures: [MEASURES, MEASURES],
    read,
    examples,
    ..LIKELIHOODS
};

/// An article a row, in `page`: the official file has them one after the other, each behind a line such
/// as ` = Title = `.
fn read(path: &Path) -> Result<Vec<Row>> {
    if path.extension().is_some_and(|ending| ending == "parquet" || ending == "jsonl") {
        return read_rows(path, None);
    }
    let text = read_text(path)?;
    let mut pages: Vec<String> = Vec::new();
    let mut page: Vec<&str> = Vec::new();
    let end = |page: &mut Vec<&str>, pages: &mut Vec<String>| {
        let text = page.join("\n");
        page.clear();
        if !text.trim().is_empty() {
            pages.push(text);
        }
    };
    for line in text.split('\n') {
        let heading = line.replace("= = =", "===").replace("= =", "==");
        let heading = heading.trim();
        if heading.starts_with("= ") && heading.ends_with(" =") {
            end(&mut page, &mut pages);
        }
        page.push(line);
    }
    end(&mut page, &mut pages);
    let rows = pages.into_iter().enumerate();
    Ok(rows.map(|(n, page)| Row::new(path, n + 1, json!({ "page": page }))).collect())
}

/// What lm-evaluation-harness replaces by patterns, in this order.
#[allow(clippy::unwrap_used, reason = "the patterns are constants")]
static PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\(\s*([^\)]*?)\s*\)", "($1)"),
        (r"\[\s*([^\]]*?)\s*\]", "[$1]"),
        (r"\{\s*([^}]*?)\s*\}", "{$1}"),
        (r#""\s*([^"]*?)\s*""#, "\"$1\""),
        (r"'\s*([^']*?)\s*'", "'$1'"),
    ]
    .map(|(pattern, replacement)| (Regex::new(pattern).unwrap(), replacement))
    .to_vec()
});

/// The text as it was before it was cut into words: the spaces around marks are taken out again.
fn detokenized(page: &str) -> String {
    let mut text = page.replace("s '", "s'");
    for (from, to) in [(" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")] {
        text = text.replace(from, to);
    }
    for mark in [":", ";", ".", "!", "?", ","] {
        text = text.replace(&format!(" {mark} "), &format!("{mark} "));
    }
    for (pattern, replacement) in PATTERNS.iter() {
        text = pattern.replace_all(&text, *replacement).into_owned();
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// Words and bytes are those of the file.
fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let page = row.text("page")?;
    // White space at an end has an empty word on its other side.
    let inner = page.split_whitespace().count();
    let at_ends = [page.starts_with(char::is_whitespace), page.ends_with(char::is_whitespace)];
    let words = inner + at_ends.iter().filter(|at_end| **at_end).count();
    Ok(vec![Example {
        id: row.number().to_string(),
        groups: Vec::new(),
        shot_key: String::new(),
        description: String::new(),
        question: String::new(),
        answer: String::new(),
        kind: ExampleKind::Text { text: detokenized(page), words, bytes: page.len() },
    }])
}
