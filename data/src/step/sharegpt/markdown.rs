//! HTML as Markdown: headings with `#`, lists with `*` and numbers, code in fences, links and emphasis.
//! Text is not escaped, and its line feeds stay.

use scraper::node::Element;
use scraper::{Html, Node};

/// Elements whose text nobody sees.
const HIDDEN: [&str; 6] = ["script", "style", "template", "head", "noscript", "svg"];
/// Elements that stand apart from what is before and behind them.
const BLOCKS: [&str; 14] = [
    "p",
    "div",
    "section",
    "article",
    "header",
    "footer",
    "main",
    "figure",
    "table",
    "ul",
    "ol",
    "pre",
    "blockquote",
    "hr",
];
/// Lists inside lists that are indented further.
const DEEPEST_LIST: usize = 16;

/// What is open at a place of the page.
#[derive(Default)]
struct Writer {
    out: String,
    /// Hidden elements.
    hidden: usize,
    /// `pre` elements.
    verbatim: usize,
    /// Lists, with the number of the next item of those that count.
    lists: Vec<Option<u64>>,
    /// Length of the text behind the mark of the newest list item.
    item: usize,
}

/// The Markdown of a piece of HTML.
pub fn markdown(html: &str) -> String {
    let page = Html::parse_fragment(html);
    let mut writer = Writer { out: String::with_capacity(html.len()), ..Writer::default() };
    // An iteration instead of a recursion: a page may be nested as deep as it is long.
    let mut next = Some(page.tree.root());
    while let Some(node) = next {
        match node.value() {
            Node::Text(text) => writer.text(text),
            Node::Element(element) => writer.begin(element),
            _ => {}
        }
        next = node.first_child();
        let mut ended = node;
        while next.is_none() {
            if let Node::Element(element) = ended.value() {
                writer.end(element);
            }
            next = ended.next_sibling();
            if next.is_none() {
                match ended.parent() {
                    Some(parent) => ended = parent,
                    None => break,
                }
            }
        }
    }
    writer.out
}

impl Writer {
    fn text(&mut self, text: &str) {
        if self.hidden > 0 {
            return;
        }
        if self.verbatim > 0 {
            self.out.push_str(text);
            return;
        }
        // Blanks and tabs in a row are one blank; line feeds are the writer's.
        let mut blank = self.out.ends_with([' ', '\n']) || self.out.is_empty();
        for character in text.chars() {
            match character {
                ' ' | '\t' if blank => {}
                ' ' | '\t' => {
                    self.out.push(' ');
                    blank = true;
                }
                _ => {
                    self.out.push(character);
                    blank = character == '\n';
                }
            }
        }
    }

    /// An empty line before what comes next, unless there is one.
    fn paragraph(&mut self) {
        // A paragraph that begins a list item stands behind its mark.
        if self.item > 0 && self.item == self.out.len() {
            return;
        }
        while self.out.ends_with(' ') {
            self.out.pop();
        }
        let feeds = self.out.len() - self.out.trim_end_matches('\n').len();
        if !self.out.is_empty() {
            (feeds..2).for_each(|_| self.out.push('\n'));
        }
    }

    fn line(&mut self) {
        while self.out.ends_with(' ') {
            self.out.pop();
        }
        if !self.out.is_empty() && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
    }

    fn begin(&mut self, element: &Element) {
        let name = element.name();
        if HIDDEN.contains(&name) {
            self.hidden += 1;
        }
        if self.hidden > 0 {
            return;
        }
        let inside_list = !self.lists.is_empty() && (name == "ul" || name == "ol");
        if BLOCKS.contains(&name) && !inside_list && self.verbatim == 0 {
            self.paragraph();
        }
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.paragraph();
                let level = usize::from(name.as_bytes()[1] - b'0');
                self.out.push_str(&"#".repeat(level));
                self.out.push(' ');
            }
            "ul" => self.lists.push(None),
            "ol" => {
                let start = element.attr("start").and_then(|start| start.parse().ok());
                self.lists.push(Some(start.unwrap_or(1)));
            }
            "li" => self.begin_item(),
            "pre" => {
                if self.verbatim == 0 {
                    self.out.push_str("```\n");
                }
                self.verbatim += 1;
            }
            "hr" => self.out.push_str("---\n\n"),
            "blockquote" => self.out.push_str("> "),
            "br" => self.out.push('\n'),
            "tr" => self.line(),
            "td" | "th" => self.out.push_str("| "),
            "img" => {
                let attribute = |name| element.attr(name).unwrap_or_default();
                let image = format!("![{}]({})", attribute("alt"), attribute("src"));
                self.out.push_str(&image);
            }
            "a" if element.attr("href").is_some() => self.out.push('['),
            _ => self.out.push_str(self.mark(name)),
        }
    }

    fn begin_item(&mut self) {
        self.line();
        let depth = self.lists.len().saturating_sub(1).min(DEEPEST_LIST);
        self.out.push_str(&"    ".repeat(depth));
        match self.lists.last_mut() {
            Some(Some(number)) => {
                let item = format!("{number}. ");
                *number = number.saturating_add(1);
                self.out.push_str(&item);
            }
            _ => self.out.push_str("* "),
        }
        self.item = self.out.len();
    }

    fn end(&mut self, element: &Element) {
        let name = element.name();
        if HIDDEN.contains(&name) {
            self.hidden = self.hidden.saturating_sub(1);
            return;
        }
        if self.hidden > 0 {
            return;
        }
        match name {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => self.paragraph(),
            "ul" | "ol" => {
                self.lists.pop();
                if self.lists.is_empty() {
                    self.paragraph();
                }
            }
            "pre" => {
                self.verbatim = self.verbatim.saturating_sub(1);
                if self.verbatim == 0 {
                    if !self.out.ends_with('\n') {
                        self.out.push('\n');
                    }
                    self.out.push_str("```\n\n");
                }
            }
            "td" | "th" => self.out.push(' '),
            "tr" => self.out.push_str("|\n"),
            "a" => {
                if let Some(href) = element.attr("href") {
                    self.out.push_str(&format!("]({href})"));
                }
            }
            "hr" | "br" | "img" | "li" => {}
            _ if BLOCKS.contains(&name) => self.paragraph(),
            _ => self.out.push_str(self.mark(name)),
        }
    }

    /// What stands on both sides of an emphasis, outside code blocks.
    fn mark(&self, name: &str) -> &'static str {
        match name {
            _ if self.verbatim > 0 => "",
            "strong" | "b" => "**",
            "em" | "i" => "*",
            "code" => "`",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_become_their_marks() {
        for (html, expected) in [
            ("<p>a <b>b</b></p><p>c</p>", "a **b**\n\nc"),
            ("<h2>x</h2>y", "## x\n\ny"),
            (
                "<ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul>z",
                "* a\n* b\n    1. c\n    2. d\n\nz",
            ),
            ("<pre><code>if a:\n    b &lt; c\n</code></pre>d", "```\nif a:\n    b < c\n```\n\nd"),
            ("<ul><li><p>a</p></li><li><p>b</p></li></ul>", "* a\n\n* b"),
            ("see <a href=\"u\">it</a> and <code>x</code>", "see [it](u) and `x`"),
            ("a   b\tc\nd", "a b c\nd"),
            ("a<br>b<script>x</script>", "a\nb"),
            ("<table><tr><td>a</td><td>b</td></tr></table>", "| a | b |"),
            ("1 < 2 & 3", "1 < 2 & 3"),
        ] {
            assert_eq!(markdown(html).trim(), expected, "{html}");
        }
    }

    #[test]
    fn a_page_may_be_nested_deep() {
        let html = "<b>".repeat(20_000) + "x";
        assert!(markdown(&html).contains('x'));
    }
}
