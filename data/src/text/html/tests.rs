//! What pages and posts become, against hand-made expectations and against html5ever.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn page(html: &str) -> Page {
    web_page(html, &HtmlOptions::default())
}

fn text(html: &str) -> String {
    page(html).text
}

#[test]
fn blocks_become_lines() {
    let found = page(
        "<!DOCTYPE html><html><head><title>A &amp; B\n page</title><style>p { x: '<p>' }</style>\
         <script>if (a<b) document.write('</p>');</script></head><body><h1>Head</h1>\n\n<p>One\n  \
         two <b>three</b>, four.<p>Five<br>six<!-- <p>no</p> --><div>sev<i>en</i></div>eight</body>",
    );
    assert_eq!(found.title.as_deref(), Some("A & B page"));
    assert_eq!(found.text, "Head\nOne two three, four.\nFive\nsix\nseven\neight");
}

#[test]
fn what_is_not_shown_is_left_out() {
    assert_eq!(
        text(
            "a<noscript><p>no</p></noscript><template><p>no<template>no</template>no</p></template>\
             <iframe>no</iframe><svg><text>no</text></svg><svg/>b<textarea>no</textarea>\
             <video>no</video><select><option>c<option>d</select>"
        ),
        "ab\nc\nd"
    );
    // An svg that never ends ends at the next block.
    assert_eq!(text("<svg><g>no<p>yes"), "yes");
    // A pre that never ends ends with what it is in.
    assert_eq!(text("<div><pre>a  b</div>c  d"), "a  b\nc d");
    let nav = "<nav><ul><li>Home</li></ul></nav><p>Text";
    assert_eq!(text(nav), "Home\nText");
    let skip = HtmlOptions { skip_navigation: true, list_marker: "- ".into() };
    assert_eq!(web_page(nav, &skip).text, "Text");
    assert_eq!(web_page("<ul><li>x<li><p>y</ul>z", &skip).text, "- x\n- y\nz");
}

#[test]
fn scripts_end_where_the_standard_ends_them() {
    let cases = [
        ("<script>a</script>b", "b"),
        ("<script>'</scripty>'</SCRIPT\n>b", "b"),
        ("<script><!-- <script> </script> --></script>b", "b"),
        ("<script><!--</script>b", "b"),
        ("<script><!-- <script> </script>b", ""),
        ("<script><!--><script></script>b", "b"),
        ("<style></styl></style >b", "b"),
        ("<script>never ends <p>x", ""),
    ];
    for (html, expected) in cases {
        assert_eq!(text(html), expected, "{html}");
    }
}

#[test]
fn tags_and_comments_end_where_the_standard_ends_them() {
    let cases = [
        ("a<p title='>' x=\">\" y=a\">b", "a\nb"),
        ("a<p x=>b", "a\nb"),
        ("a<p/x/=\"'>b", "a\nb"),
        ("1 < 2 <3 </ 4> <5", "1 < 2 <3 <5"),
        ("a<!--->b<!-->c<!-- -- > --!>d<!-- - -->e", "abcde"),
        ("a<? php ?>b<!ELEMENT x>c</>d", "abcd"),
        ("a<b", "a"),
        ("a</b", "a"),
        ("a<![CDATA[b]]>c", "ac"),
        ("a&lt;b&gt;&copy&nbsp;&#x2014;&#128;&unknown; &amp", "a<b>©\u{a0}—€&unknown; &"),
        ("a\0b", "ab"),
        ("<xmp><b>&lt;</xmp>x", "<b>&lt;\nx"),
        ("<plaintext><b>&lt;", "<b>&lt;"),
        ("<custom-element>a</custom-element>b", "ab"),
        ("<P>a</P><UL><LI>b", "a\nb"),
    ];
    for (html, expected) in cases {
        assert_eq!(text(html), expected, "{html}");
    }
}

#[test]
fn tables_and_code_keep_their_shape() {
    assert_eq!(
        text(
            "<table>\n<tr>\n<th>Name</th> <th>Age</th>\n</tr>\n<tr><td>Al <b>B</b></td>\
             <td>3</td></tr></table>after"
        ),
        "Name\tAge\nAl B\t3\nafter"
    );
    assert_eq!(text("x<pre>\n  a\r\n\n    b &lt;\n</pre>y  z"), "x\n  a\n\n    b <\ny z");
}

#[test]
fn posts_are_paragraphs_lists_and_code() {
    let html = "<p>See <a href=\"http://x\">the docs</a> <img src=\"i.png\" alt=\"no\"> for\nit:</p>\n\n\
                <ul>\n<li>one</li>\n<li><p>two</p>\n<ul><li>nested</li></ul></li>\n</ul>\n\n\n\n\
                <pre class=\"lang-py\"><code>def f():\n    if x &lt; 1:\n        return &quot;a&quot;\n\n\n\
                # end\n</code></pre>\n<p>Line<br>break<br><br>blank<hr><code>a  b</code></p>\n";
    assert_eq!(
        stack_exchange(html),
        "See the docs for it:\n\n* one\n* two\n* nested\n\ndef f():\n    if x < 1:\n        return \
         \"a\"\n\n\n# end\n\nLine\nbreak\n\nblank\n\na b"
    );
    assert_eq!(stack_exchange("<pre><code>    indented\n</code></pre>"), "    indented");
    assert_eq!(
        stack_exchange("<ol><li></li><li><pre><code>  x\n</code></pre></li></ol>y"),
        "2.\n  x\n\ny"
    );
    assert_eq!(stack_exchange("plain &amp; simple"), "plain & simple");
    assert_eq!(
        stack_exchange("<p>a</p>\n\n\n<p></p>\n<p> </p><blockquote><p>b</p></blockquote>"),
        "a\n\nb"
    );
}

#[test]
fn numbers_keep_their_digits() {
    for (html, expected) in [
        ("6.022&times;10<sup>23</sup> and 10<sup>&minus;3</sup>", "6.022×10^23 and 10^−3"),
        ("2<sup><i>n</i></sup> bytes, 2<sup>10</sup>", "2^n bytes, 2^10"),
        ("H<sub>2</sub>O and C<sub>6</sub>H<sub>12</sub>O<sub>6</sub>", "H2O and C6H12O6"),
        ("the 21<sup>st</sup> of the 1<sup>er</sup>", "the 21st of the 1er"),
        ("5 km<sup>2</sup>, <b>x</b><sup>2</sup>", "5 km^2, x^2"),
        ("1<sup>1</sup>/<sub>2</sub> and <sup>3</sup>&frasl;<sub>4</sub>", "1 1/2 and 3⁄4"),
        ("log<sub>2</sub>8 = 3, 101<sub>2</sub>", "log2 8 = 3, 101_2"),
        ("10 <sup>23</sup>", "10 23"),
        ("a<sup>1</sup><p>2", "a^1\n2"),
        ("hyphen&shy;ation and co\u{ad}operation", "hyphenation and cooperation"),
    ] {
        assert_eq!(text(html), expected, "{html}");
        assert_eq!(stack_exchange(html).replace("\n\n", "\n"), expected, "{html}");
    }
}

#[test]
fn lists_with_numbers_keep_them() {
    for (html, expected) in [
        ("<ol><li>a<li>b</ol>", "1. a\n2. b"),
        ("<ol start=3><li>a<li value='7'>b<li>c</ol>d", "3. a\n7. b\n8. c\nd"),
        ("<ol class=\"start=5\" START = \"9\" reversed><li>a<li>b</ol>", "9. a\n8. b"),
        ("<ol><li>a<ul><li>x</ul><li>b<ol><li>y</ol><li>c</ol>", "1. a\nx\n2. b\n1. y\n3. c"),
        ("<ol start=x><li>a</ol><ol start=99999999999><li>b</ol>", "1. a\n1. b"),
        ("<ol =><li =>>a</ol>", "1. >a"),
    ] {
        assert_eq!(text(html), expected, "{html}");
    }
    assert_eq!(stack_exchange("<ol>\n<li>a</li>\n<li><p>b</p></li>\n</ol><p>c"), "1. a\n2. b\n\nc");
}

#[test]
fn declared_character_sets_are_found() {
    let found = |html: &str| declared_charset(html.as_bytes());
    let some = |label: &str| Some(label.to_owned());
    assert_eq!(found("<html><meta charset=\"Shift_JIS\">"), some("shift_jis"));
    assert_eq!(
        found("<META http-equiv=Content-Type content='text/html; charset = koi8-r'>"),
        some("koi8-r")
    );
    assert_eq!(found("<?xml version='1.0' encoding='iso-8859-2'?><html>"), some("iso-8859-2"));
    assert_eq!(
        found("<!-- <meta charset=big5> --><meta name=charset><meta charset=gbk>"),
        some("gbk")
    );
    assert_eq!(found("<meta charset=utf-16>"), None);
    assert_eq!(found("<p>charset=no"), None);
    assert_eq!(found("<meta charset="), None);
}

#[test]
fn hostile_nesting_is_bounded() {
    for (open, close) in [("<div>", "</div>"), ("<ul><li>", "</ul>"), ("<td>", "</table>")] {
        let html = format!("{}x{}y", open.repeat(200_000), close.repeat(200_000));
        let found = text(&html);
        assert!(found.starts_with('x') && found.ends_with('y'), "{open}");
    }
    assert_eq!(text(&"<".repeat(100_000)).len(), 100_000);
    assert_eq!(text(&"<!--".repeat(100_000)), "");
    assert_eq!(text(&"<a '".repeat(100_000)), "");
    assert_eq!(text(&"<script><!--<script>".repeat(50_000)), "");
    assert_eq!(text(&"&".repeat(100_000)).len(), 100_000);
    assert_eq!(text(&"<svg>".repeat(100_000)), "");
}

/// The text in html5ever's tree without white space and without what is not shown.
fn letters_of_the_tree(html: &str) -> String {
    fn collect(node: &scraper::ElementRef<'_>, text: &mut String) {
        const HIDDEN: [&str; 8] =
            ["script", "style", "noscript", "template", "title", "textarea", "iframe", "svg"];
        if HIDDEN.contains(&node.value().name()) {
            return;
        }
        for child in node.children() {
            if let Some(words) = child.value().as_text() {
                text.push_str(words);
            } else if let Some(element) = scraper::ElementRef::wrap(child) {
                collect(&element, text);
            }
        }
    }
    let tree = scraper::Html::parse_document(html);
    let mut text = String::new();
    collect(&tree.root_element(), &mut text);
    text.retain(|c| !c.is_whitespace());
    text
}

fn letters(html: &str) -> String {
    let mut text = text(html);
    text.retain(|c| !c.is_whitespace());
    text
}

#[test]
fn the_text_agrees_with_html5ever() {
    let html = "<!doctype html><html lang=en><head><title>no <b></title><meta charset=utf-8>\
        <style>no { }</style><script>no('<p>' + \"</div>\") <!-- <script>no</script> --></script>\
        </head><body class='a>b' data-x=\"<p>\"><h1>T&eacute;st &notit; &copy2;</h1><p>one &lt;two\
        &gt; <a href=x?a=1&b=2>three</a>&#150;four<!-- no --><ul><li>five<li>six</ul><!no><?no?>\
        <pre>\n seven  </pre><svg><text>no</text></svg><textarea>no</textarea> a < b </bogus\n x> \
        <img alt='>'> <input value=\"no\"/><br/><table><tr><td>eight<td>nine</table>ten</body>";
    assert_eq!(letters(html), letters_of_the_tree(html));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Against html5ever on soup of markup without tables (whose text a tree moves).
    #[test]
    fn soup_agrees_with_html5ever(parts in proptest::collection::vec(
        prop_oneof![
            "[a-z]{1,4}", Just(" ".to_owned()), Just("<p>".to_owned()), Just("</p>".to_owned()),
            Just("<b x='>'>".to_owned()), Just("</b>".to_owned()), Just("<!-- c -->".to_owned()),
            Just("<!-".to_owned()), Just("--".to_owned()), Just(">".to_owned()),
            Just("<".to_owned()), Just("/".to_owned()), Just("=".to_owned()), Just("&amp".to_owned()),
            Just("&lt;".to_owned()), Just("<script>".to_owned()), Just("</script>".to_owned()),
            Just("<!--".to_owned()), Just("-->".to_owned()), Just("!".to_owned()),
            Just("\"".to_owned()), Just("'".to_owned()), Just("<style>".to_owned()),
            Just("</style>".to_owned()), Just("<li a=b>".to_owned()), Just("é".to_owned()),
        ],
        0..40,
    )) {
        let html = format!("<!doctype html><body>{}", parts.concat());
        prop_assert_eq!(letters(&html), letters_of_the_tree(&html));
    }

    #[test]
    fn nothing_panics(html in "(<|>|/|!|-|&|#|x|'|\"|=| |\n|é|pre|li|svg|title|</|<!--){0,60}") {
        let found = web_page(&html, &HtmlOptions { skip_navigation: true, list_marker: "- ".into() });
        prop_assert!(found.text.len() <= 2 * html.len() + 8);
        prop_assert!(!stack_exchange(&html).starts_with('\n'));
    }
}
