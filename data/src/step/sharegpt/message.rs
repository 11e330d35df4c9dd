//! One message: from the HTML of a chat page to what was said.

use std::sync::LazyLock;

use regex::Regex;

use super::markdown::markdown;

/// Patterns that are compiled once; a pattern that does not compile finds nothing.
struct Patterns {
    wrappers: Option<Regex>,
    counter: Option<Regex>,
    copied: Option<Regex>,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns {
    wrappers: Regex::new(r"(?s)<(?:div|span)\b[^>]*>").ok(),
    // A number of answers, as `2 / 3`, alone on its line.
    counter: Regex::new(r"^\d+ / \d+(?:\n|$)").ok(),
    copied: Regex::new(r"Copy\d+ chars / \d+ words").ok(),
});

/// What the page writes above the code of a block.
const COPY_CODE: &str = "Copy code";
const FENCE: &str = "```";

/// The Markdown of a message.
pub fn clean_message(html: &str) -> String {
    let without = |pattern: &Option<Regex>, text: &str| match pattern {
        Some(pattern) => pattern.replace_all(text, "").into_owned(),
        None => text.to_owned(),
    };
    // Indentation in code blocks and underscores in code suffer from these; the parser closes the rest.
    let html = without(&PATTERNS.wrappers, html);
    let text = code_blocks(markdown(&html).trim());
    let text = without(&PATTERNS.counter, &text);
    let text = without(&PATTERNS.copied, &text);
    text.replace("\n\n\n", "\n").trim().to_owned()
}

/// The text with its code blocks in Markdown's form: `language`, `Copy code` and the code run together on the
/// page. Blocks are taken one by one, so a plain one before another with `Copy code` stays as it is.
fn code_blocks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(FENCE) {
        let inside = &rest[begin + FENCE.len()..];
        let Some(length) = inside.find(FENCE) else { break };
        let (block, behind) = (&inside[..length], &inside[length + FENCE.len()..]);
        out.push_str(&rest[..begin]);
        match block.split_once(COPY_CODE) {
            Some((language, code)) if !language.trim().contains('\n') => {
                let code = code.trim_start_matches(COPY_CODE);
                let code = code.strip_prefix('\n').unwrap_or(code).trim_end();
                // An empty block is the page's button alone.
                if !code.trim().is_empty() {
                    let language = language.trim();
                    out.push_str(&format!("{FENCE}{language}\n{code}\n{FENCE}"));
                }
            }
            _ => {
                out.push_str(FENCE);
                out.push_str(block);
                out.push_str(FENCE);
            }
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_page_adds_is_taken_off() {
        for (html, expected) in [
            ("<div class=\"x\"><p>Hello</p></div>", "Hello"),
            ("2 / 2\n<p>Answer</p>", "Answer"),
            ("1 / 2 cup of flour", "1 / 2 cup of flour"),
            ("textCopy12 chars / 3 words", "text"),
            (
                "<pre><div>python<button>Copy code</button></div><code>    a = 1\nb\n</code></pre>",
                "```python\n    a = 1\nb\n```",
            ),
            ("<pre>Copy code</pre>after", "after"),
            (
                "<pre><code>plain\n</code></pre><pre><div>rust<button>Copy code</button></div><code>x\n</code></pre>",
                "```\nplain\n```\n\n```rust\nx\n```",
            ),
            ("a\n\n\n\nb", "a\n\nb"),
        ] {
            assert_eq!(clean_message(html), expected, "{html}");
        }
    }
}
