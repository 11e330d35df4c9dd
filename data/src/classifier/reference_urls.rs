//! The addresses that a Wikipedia article cites.
//!
//! An article's wikitext cites in `<ref>` tags, bare, with a name or grouped, on one line or on
//! many, and through cite templates anywhere. RedPajama's extraction (one regular expression per
//! line, `&lt;ref&gt(.*)&lt;/ref&gt;`) misses a semicolon, and so finds none of them.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::atomic_file::AtomicFile;
use crate::error::{DataError, Result};

/// Longest address taken in, in bytes.
const MAX_URL_BYTES: usize = 2048;
/// Longest tag and template looked at, in bytes: markup that never ends costs no more.
const MAX_TAG_BYTES: usize = 4096;
const MAX_TEMPLATE_BYTES: usize = 1 << 16;

/// The addresses that `wikitext`, the source of one article after XML unescaping, cites: those
/// in `<ref>` tags, and the `url` of cite templates. In the article's order, each once; archived
/// copies (`archive-url`) and commented text are left out.
pub fn reference_urls(wikitext: &str) -> Vec<String> {
    let text = without_comments(wikitext);
    let mut urls = Vec::new();
    let mut at = 0;
    while let Some(next) = text[at..].find(['<', '{']).map(|offset| at + offset) {
        let rest = &text[next..];
        if let Some(content) = ref_content(rest) {
            urls_in(content, false, &mut urls);
            at = next + (content.as_ptr() as usize - rest.as_ptr() as usize) + content.len();
        } else if let Some(template) = cite_template(rest) {
            urls_in(template, true, &mut urls);
            at = next + template.len();
        } else {
            at = next + 1;
        }
    }
    let mut seen = HashSet::new();
    urls.retain(|url| seen.insert(url.clone()));
    urls
}

/// What [`write_reference_urls`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceUrlReport {
    /// Articles.
    pub articles: u64,
    /// Those that cite an address.
    pub citing: u64,
    /// Addresses, each counted once per article.
    pub urls: u64,
    /// Different addresses: the lines written.
    pub unique: u64,
}

/// Writes the addresses that `articles` (wikitext) cite to `output`, one per line, each once, in
/// the order of the articles. Holds about 16 bytes of memory for each.
///
/// # Errors
/// [`DataError::Io`], and whatever `articles` returns.
pub fn write_reference_urls(
    articles: impl IntoIterator<Item = Result<String>>,
    output: &Path,
) -> Result<ReferenceUrlReport> {
    let mut report = ReferenceUrlReport::default();
    let mut seen = HashSet::new();
    let mut file = AtomicFile::create(output)?;
    for article in articles {
        let urls = reference_urls(&article?);
        report.articles += 1;
        report.citing += u64::from(!urls.is_empty());
        for url in urls {
            report.urls += 1;
            if seen.insert(xxh3_64(url.as_bytes())) {
                report.unique += 1;
                writeln!(file, "{url}").map_err(DataError::io(output))?;
            }
        }
    }
    file.commit()?;
    Ok(report)
}

/// The text without `<!-- … -->`; an open comment runs to the end.
fn without_comments(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("<!--") {
        kept.push_str(&rest[..start]);
        let comment = &rest[start + 4..];
        rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
    }
    kept.push_str(rest);
    kept
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.as_bytes()
        .get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// What stands between `<ref …>` and `</ref>` at the start of `text`. A tag that closes itself
/// has none; one that is never closed ends with its paragraph, or at the next tag.
fn ref_content(text: &str) -> Option<&str> {
    const OPEN: &str = "<ref";
    const CLOSE: &str = "</ref";
    if !starts_with_ignore_case(text, OPEN) {
        return None;
    }
    let attributes = &text[4..];
    // `<references>` is another tag.
    if !attributes.starts_with(|c: char| c.is_whitespace() || c == '>' || c == '/') {
        return None;
    }
    let end = attributes.bytes().take(MAX_TAG_BYTES).position(|byte| byte == b'>')?;
    if attributes[..end].ends_with('/') || attributes[..end].contains('<') {
        return None;
    }
    let content = &attributes[end + 1..];
    let closes = |at: usize| starts_with_ignore_case(&content[at..], CLOSE);
    let tag = content
        .match_indices('<')
        .map(|(at, _)| at)
        .find(|&at| closes(at) || starts_with_ignore_case(&content[at..], OPEN));
    let stop = match tag {
        Some(at) if closes(at) => at,
        other => {
            let end = other.unwrap_or(content.len());
            content[..end].find("\n\n").unwrap_or(end)
        }
    };
    Some(&content[..stop])
}

/// The template at the start of `text`, when its name is that of a citation.
fn cite_template(text: &str) -> Option<&str> {
    let name = text.strip_prefix("{{")?.trim_start();
    let cites = starts_with_ignore_case(name, "cite ")
        || starts_with_ignore_case(name, "cite_")
        || starts_with_ignore_case(name, "citation|")
        || starts_with_ignore_case(name, "citation ")
        || starts_with_ignore_case(name, "citation\n");
    if !cites {
        return None;
    }
    let mut depth = 0usize;
    let bytes = &text.as_bytes()[..text.len().min(MAX_TEMPLATE_BYTES)];
    let mut at = 0;
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"{{") => depth += 1,
            Some(b"}}") if depth == 1 => return Some(&text[..at + 2]),
            Some(b"}}") => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    None
}

/// Appends the addresses in `text`; with `in_template`, only those of the parameter `url` and its
/// kin (`chapter-url`, `conference-url` …).
fn urls_in(text: &str, in_template: bool, urls: &mut Vec<String>) {
    let mut at = 0;
    while let Some(found) = text[at..].find("://").map(|offset| at + offset) {
        at = found + 3;
        let before = &text[..found];
        let scheme = ["https", "http"].into_iter().find(|scheme| {
            before.len() >= scheme.len()
                && before.as_bytes()[before.len() - scheme.len()..]
                    .eq_ignore_ascii_case(scheme.as_bytes())
        });
        let Some(scheme) = scheme else { continue };
        let start = found - scheme.len();
        let parameter = parameter_before(&text[..start]);
        let archived = parameter.as_deref().is_some_and(|name| name.starts_with("archive"));
        let wanted = !in_template || parameter.as_deref().is_some_and(|name| name.ends_with("url"));
        let length = url_length(&text[start..]);
        // An address inside another one (an archive's) is not one of its own.
        at = start + length.max(scheme.len() + 3);
        let url = &text[start..start + length];
        if !wanted || archived || length <= scheme.len() + 3 || length > MAX_URL_BYTES {
            continue;
        }
        let url = htmlize::unescape(url);
        if url::Url::parse(&url)
            .is_ok_and(|parsed| parsed.host_str().is_some_and(|host| host.contains('.')))
        {
            urls.push(url.into_owned());
        }
    }
}

/// The name of the template parameter whose value begins at the end of `before`, in lower case.
fn parameter_before(before: &str) -> Option<String> {
    let before = before.trim_end().strip_suffix('=')?;
    let name = &before[before.rfind('|')? + 1..];
    Some(name.trim().to_ascii_lowercase())
}

/// Where the address at the start of `text` ends, as MediaWiki has it: at white space and
/// brackets, before punctuation, and before a closing parenthesis without an opening one.
fn url_length(text: &str) -> usize {
    let stop = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '|' | '[' | ']' | '<' | '>' | '"' | '{' | '}')
    };
    let mut end = text.find(stop).unwrap_or(text.len());
    if let Some(quotes) = text[..end].find("''") {
        end = quotes;
    }
    let url = &text[..end];
    let open = url.contains('(');
    url.trim_end_matches(|c| matches!(c, '.' | ',' | ';' | ':' | '!' | '?') || (c == ')' && !open))
        .len()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_references_are_found() {
        let text = r#"Fact.<ref>http://a.example/1</ref> Named.<ref name="b">[https://b.example/x?y=1&amp;z=2 Title]</ref>
Again.<ref name="b" /> Grouped.<ref group=note name=c>
{{cite web
 | url = https://c.example/path_(b)
 | title = T
 | archive-url = https://web.archive.org/web/2020/https://c.example/path
}}
</ref><REF>See http://d.example/page.html, and more.</REF> http://body.example/not-cited
<!-- <ref>http://hidden.example/</ref> -->
== Sources ==
* {{Citation|url=http://e.example/book|title=B {{nowrap|x}}}}
* {{cite book |chapter-url=http://f.example/ch |archiveurl=http://old.example/ch}}
* {{main|http://g.example/}}
<references/>"#;
        assert_eq!(
            reference_urls(text),
            [
                "http://a.example/1",
                "https://b.example/x?y=1&z=2",
                "https://c.example/path_(b)",
                "http://d.example/page.html",
                "http://e.example/book",
                "http://f.example/ch",
            ]
        );
    }

    #[test]
    fn redpajamas_misses_are_found() {
        // A name, two lines, and two references on one line, of which `(.*)` would make one.
        let named = "<ref name=\"x\">http://a.example/</ref>";
        let lines = "<ref>\nhttp://b.example/\n</ref>";
        let two = "<ref>http://c.example/</ref> text <ref>http://d.example/</ref>";
        let all = format!("{named}{lines}{two}");
        let found = reference_urls(&all);
        let expected =
            ["http://a.example/", "http://b.example/", "http://c.example/", "http://d.example/"];
        assert_eq!(found, expected);
    }

    #[test]
    fn broken_markup_ends_somewhere() {
        assert_eq!(
            reference_urls("<ref>http://a.example/x\n\nNext http://b.example/"),
            ["http://a.example/x"]
        );
        assert_eq!(reference_urls("<ref>http://a.example/<ref>http://b.example/</ref>").len(), 2);
        assert_eq!(reference_urls("{{cite web|url=http://a.example/"), [""; 0]);
        assert_eq!(reference_urls("<ref"), [""; 0]);
        assert_eq!(
            reference_urls("<ref>http://localhost/ http:// ftp://x.example/</ref>"),
            [""; 0]
        );
        let paragraphs = "<ref>One.\n\nhttp://a.example/x</ref>";
        assert_eq!(reference_urls(paragraphs), ["http://a.example/x"]);
        assert_eq!(reference_urls("<ref>(http://a.example/b).</ref>"), ["http://a.example/b"]);
    }

    #[test]
    fn repeated_addresses_are_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("urls.txt");
        let articles = [
            "<ref>http://a.example/</ref>",
            "none",
            "<ref>http://a.example/ http://b.example/</ref>",
        ];
        let report = write_reference_urls(articles.map(|text| Ok(text.to_owned())), &path).unwrap();
        assert_eq!(report, ReferenceUrlReport { articles: 3, citing: 2, urls: 3, unique: 2 });
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "http://a.example/\nhttp://b.example/\n"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_it(text in "(<ref[ />]?|</ref>|\\{\\{cite web|url=|\\}\\}|https?://|\\||[a-z.\n é'\")(]){0,40}") {
            for url in reference_urls(&text) {
                proptest::prop_assert!(url.starts_with("http"));
            }
        }
    }
}
