//! HTML to text: the visible text of a page, its block structure as lines.
//!
//! The tokenizer follows the HTML standard (<https://html.spec.whatwg.org/multipage/parsing.html>:
//! attributes, comments, raw text, the escapes of scripts, character references). No tree is
//! built: a bounded stack of the elements that matter to text (`pre`, what is skipped, and what
//! closes them) stands for it, so that memory and time are bounded and linear for any input.
//! What a tree would do and this does not: text that stands directly in a table is left where it
//! is instead of being moved before the table.

mod layout;
mod meta;
mod tag;
mod tokenizer;
mod walk;

pub use meta::declared_charset;

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use walk::{Style, walk};

/// A web page as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Text of the first `<title>`, on one line; `None` when there is none or it is blank.
    pub title: Option<String>,
    /// The visible text: one line per block, cells of a table row separated by tabs, no blank
    /// lines except inside `<pre>`.
    pub text: String,
}

/// How web pages become text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HtmlOptions {
    /// Leave out the text inside `<nav>` (bool, default false).
    pub skip_navigation: bool,
    /// Written before each item of a list without numbers, `- ` for example (string, default
    /// none). The items of a list with numbers keep them: `1. `.
    pub list_marker: String,
}

impl HtmlOptions {
    /// Checks what the types cannot. `key` is the dotted path of these options.
    ///
    /// # Errors
    /// [`DataError::Config`] when the marker is not a short part of one line.
    pub fn validate(&self, key: &str) -> Result<()> {
        if self.list_marker.contains(['\n', '\r']) || self.list_marker.len() > 16 {
            return Err(DataError::config(
                format!("{key}.list_marker"),
                format!("{:?}", self.list_marker),
                "at most 16 bytes on one line",
            ));
        }
        Ok(())
    }
}

/// The title and text of a web page.
///
/// `script`, `style`, `noscript`, `template`, `iframe`, `svg`, media fallbacks and form fields
/// are left out, `<pre>` is kept as it is, white space elsewhere becomes single spaces. NUL is
/// dropped.
pub fn web_page(html: &str, options: &HtmlOptions) -> Page {
    walk(
        html,
        Style {
            blank_lines: false,
            list_marker: &options.list_marker,
            skip_navigation: options.skip_navigation,
        },
    )
}

/// The text of a StackExchange post: paragraphs separated by a blank line, list items as `* `
/// or `1. ` lines, code blocks verbatim with their indentation, links as their label, images dropped.
/// Outside code blocks there are never two blank lines in a row.
pub fn stack_exchange(html: &str) -> String {
    walk(html, Style { blank_lines: true, list_marker: "* ", skip_navigation: false }).text
}

#[cfg(test)]
mod tests;
