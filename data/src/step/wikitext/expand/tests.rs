#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::source::{Input, ReadContext, TemplateIndex, WikipediaSource};

/// The templates of a dump with these pages of the namespace of templates.
fn definitions(language: &str, templates: &[(&str, &str)]) -> Definitions {
    static PAGES: AtomicU64 = AtomicU64::new(1);
    let folder = tempfile::tempdir().unwrap();
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let pages = templates.iter().map(|(name, text)| {
        let id = PAGES.fetch_add(1, Ordering::Relaxed);
        let redirect = text
            .strip_prefix("#REDIRECT ")
            .map_or(String::new(), |target| format!("<redirect title=\"{}\" />", escaped(target)));
        format!(
            "<page><title>Template:{}</title><ns>10</ns><id>{id}</id>{redirect}<revision><id>1</id>\
             <text>{}</text></revision></page>\n",
            escaped(name),
            escaped(text)
        )
    });
    let dump = format!(
        "<mediawiki><siteinfo><dbname>{language}wiki</dbname><namespaces>\
         <namespace key=\"10\">Vorlage</namespace></namespaces></siteinfo>\n{}</mediawiki>",
        pages.collect::<String>()
    );
    let path = folder.path().join("a.xml");
    std::fs::write(&path, &dump).unwrap();
    let source = WikipediaSource::dumps(Vec::new());
    let bytes = dump.len() as u64;
    let input = Input { path, name: "a.xml".into(), bytes, modified_nanos: 0, etag: None };
    let context = ReadContext {
        source: "w",
        input: &input,
        scratch: Path::new(""),
        memory_bytes: 1 << 20,
        bytes_read: &|_| {},
    };
    let index = folder.path().join("index");
    let file = source.index_templates(&context, &index).unwrap();
    Definitions::new(Arc::new(TemplateIndex::open(&[(index, file)]).unwrap()))
}

fn expand_in(language: &str, templates: &[(&str, &str)], page: &str) -> Expanded {
    let definitions = definitions(language, templates);
    let environment = Environment {
        rules: Rules::of(Some(language)),
        names: WikiNames::of(Some(language)),
        definitions: Some(&definitions),
        language,
        title: "The Page",
        stamp: Some("2012-03-04T05:06:07Z"),
    };
    expand(page, environment).unwrap()
}

fn check(templates: &[(&str, &str)], cases: &[(&str, &str)]) {
    for (page, expected) in cases {
        assert_eq!(expand_in("en", templates, page).text, *expected, "{page}");
    }
}

/// Cases without templates: functions and magic words on the page itself.
fn check_functions(cases: &[(&str, &str)]) {
    check(&[("B", "b"), ("Empty", ""), ("Blank thing", " ")], cases);
}

#[test]
fn arguments_have_mediawikis_rules_of_white_space() {
    let templates = [
        ("T1", "[{{{1}}}]"),
        ("Def", "({{{1|none}}}|{{{x|}}})"),
        ("Named", "<{{{x}}}>"),
        ("Second", "{{{2}}}"),
        ("Name of", "{{{{{{1}}}}}}"),
    ];
    check(
        &templates,
        &[
            ("a {{t1|b}} c", "a [b] c"),
            ("{{T1| b }}", "[ b ]"),
            ("{{t1\n|1= b \n}}", "[b]"),
            ("{{T1|1=a|b}}", "[b]"),
            ("{{T1|b|1=a}}", "[a]"),
            ("{{T1|1=a|1=}}", "[]"),
            ("{{T1}}", "[{{{1}}}]"),
            ("{{T1|x=y}}", "[{{{1}}}]"),
            ("{{T1|a{{=}}b}}", "[a=b]"),
            ("{{T1|1=a=b}}", "[a=b]"),
            ("{{def}} {{def|}} {{def|a|x=b}}", "(none|) (|) (a|b)"),
            ("{{Named|x = a b }}", "<a b>"),
            ("{{Named| x =a}}", "<a>"),
            ("{{Second|x=1|a|b}}", "b"),
            ("{{Second|a|2=b}}", "b"),
            ("{{T1|[[x|y]]}}", "[[[x|y]]]"),
            ("{{T1|a<!-- c -->b}}", "[a<!-- c -->b]"),
            ("{{T1|<nowiki>|</nowiki>}}", "[<nowiki>|</nowiki>]"),
            ("{{ T1 |b}} {{template:T1|b}} {{Vorlage:t1|b}} {{T1#x|b}}", "[b] [b] [b] [b]"),
            ("{{subst:T1|b}} {{msg:T1|b}}", "[b] [b]"),
        ],
    );
}

#[test]
fn definitions_are_those_parts_that_are_for_pages() {
    let templates = [
        ("A", "<noinclude>doc {{A}}</noinclude>text<includeonly> in</includeonly>"),
        ("O", "x<onlyinclude>only</onlyinclude>y"),
        ("C", "a<!-- {{{1}}} -->b\n<!-- line -->\nc"),
        ("Re", "#REDIRECT Template:A"),
        ("RR", "#REDIRECT Vorlage:re"),
        ("L1", "#REDIRECT Template:L2"),
        ("L2", "#REDIRECT Template:L1"),
    ];
    check(
        &templates,
        &[
            ("{{a}}", "text in"),
            ("{{O}}", "only"),
            ("{{C}}", "ab\nc"),
            ("{{Re}} {{RR}}", "text in text in"),
            ("{{L1}}", "{{L1}}"),
        ],
    );
}

#[test]
fn templates_call_templates() {
    let templates = [
        ("Outer", "<{{Inner|{{{1}}}|y={{{y|none}}}}}>"),
        ("Inner", "{{{1}}}/{{{y}}}"),
        ("Loop", "a{{Loop}}b"),
        ("Ping", "{{Pong}}"),
        ("Pong", "{{Ping}}"),
        ("By name", "{{{{{1}}}|x}}"),
        ("Lost", "a {{No such template|{{{1}}}}} b"),
        ("Lua", "{{#invoke:Mod|fn|{{{1}}}}}"),
        ("Uses lua", "before {{Lua|{{{1}}}}} after"),
        ("If lua", "{{#if:{{Lua|a}}|yes|no}}"),
        ("Phrase it", "the {{lang|fr|{{{1}}}}}{{citation needed}}."),
    ];
    check(
        &templates,
        &[
            ("{{outer|a}} {{Outer|a|y=b}}", "<a/none> <a/b>"),
            // A loop stays a call, and is lost by its name.
            ("{{Loop}}", "a{{Loop}}b"),
            ("x {{Ping}}", "x {{Ping}}"),
            ("{{By name|Inner}}", "x/{{{y}}}"),
            // What a template without a definition would have said is counted under its own name.
            ("{{Lost|q}}", "a {{No such template|q}} b"),
            ("{{Lua|q}}", "{{Lua|q}}"),
            ("{{Uses lua|q}}", "before {{Lua|q}} after"),
            // But what depends on it is not known.
            ("{{If lua}}", "{{If lua}}"),
            ("{{Phrase it|mot}}", "the {{lang|fr|mot}}."),
        ],
    );
}

#[test]
fn rules_count_more_than_definitions() {
    let templates = [("Lang", "WRONG"), ("Nihongo", "{{{1}}} is {{{9|Japanese}}}"), ("B", "b|c=d")];
    check(
        &templates,
        &[
            ("{{lang|fr|mot}} {{Lang|fr|{{uc:mot}}}}", "{{lang|fr|mot}} {{Lang|fr|MOT}}"),
            // The rule needs a first argument and there is none.
            ("{{lang|fr}}", "WRONG"),
            ("{{lang|fr|{{b}}}}", "{{lang|1=fr|2=b&#124;c=d}}"),
        ],
    );
}

#[test]
fn conditions() {
    check_functions(&[
        ("{{#if: x | yes | no }}", "yes"),
        ("{{#if:  | yes | no }}", "no"),
        ("{{#if:\n\n|yes}}", "{{}}"),
        ("{{#if:{{Empty}}|yes|no}}", "no"),
        ("{{#if:{{Blank thing}}|yes|no}}", "no"),
        ("{{#if:x|a=b}}", "a=b"),
        ("{{#if:|a|{{#if:x|nested}}}}", "nested"),
        ("{{#ifeq: 01 | 1 | equal | not }}", "equal"),
        ("{{#ifeq: 0 | -0 | equal | not }}", "equal"),
        ("{{#ifeq: 1e3 | 1000 | equal | not }}", "equal"),
        ("{{#ifeq: a | A | equal | not }}", "not"),
        ("{{#ifeq: 01a | 1a | equal | not }}", "not"),
        ("{{#ifeq:|  |equal|not}}", "equal"),
        ("{{#ifexpr: 1 > 0 | yes | no }}", "yes"),
        ("{{#ifexpr: | yes | no }}", "no"),
        ("{{#iferror: {{#expr: 1/0}} | bad | good }}", "bad"),
        ("{{#iferror: {{#expr: 1+1}} | bad | good }}", "good"),
        ("{{#iferror: {{#expr: 1+1}} | bad }}", "2"),
        ("{{#iferror: <strong class=\"error\">x</strong> | bad }}", "bad"),
        ("{{#ifexist: The Page | yes | no }}", "yes"),
        ("{{#ifexist: Other | yes | no }}", "no"),
        ("{{#ifexist: Template:B | yes | no }}", "yes"),
        ("{{#ifexist: B | yes | no }}", "no"),
        // An error is no text.
        ("{{#expr: 1/0}}", "{{#expr: 1/0}}"),
    ]);
}

#[test]
fn switch() {
    check_functions(&[
        ("{{#switch: b | a = 1 | b = 2 | 3 }}", "2"),
        ("{{#switch: c | a = 1 | b = 2 | 3 }}", "3"),
        ("{{#switch: c | a = 1 | #default = 9 | b = 2 }}", "9"),
        ("{{#switch: a | a | b = both | other }}", "both"),
        ("{{#switch: b | a | b = both | other }}", "both"),
        ("{{#switch: x | a = 1 | b = 2 }}y", "{{}}y"),
        ("{{#switch: 1.0 | 1 = one | 2 = two }}", "one"),
        ("{{#switch: | = empty | other }}", "empty"),
        ("{{#switch: q | a = 1 | #default | b = 2 }}", "2"),
        ("{{#switch: a | a }}", "a"),
        ("{{#switch: {{B}} | b = {{uc:x}} }}", "X"),
        ("{{#switch: x | x = a=b }}", "a=b"),
    ]);
}

#[test]
fn texts_and_numbers() {
    check_functions(&[
        ("{{lc:ABC}}{{uc:abc}}", "abcABC"),
        ("{{lcfirst:ABC}}{{ucfirst:éa}}", "aBCÉa"),
        ("{{formatnum:1234567.5}}", "1,234,567.5"),
        ("{{formatnum:1,234.5|R}}", "1234.5"),
        ("{{formatnum:1234|NOSEP}}", "1234"),
        ("{{padleft:7|3}} {{padleft:7|3|xy}} {{padright:7|3|}}", "007 xy7 7"),
        ("{{padright:a|4|xyz}}", "axyz"),
        ("{{plural:1|day|days}} {{plural:2|day|days}} {{plural:0|day}}", "day days day"),
        ("{{plural:12|day|days|12=a dozen}}", "a dozen"),
        ("{{#expr: 7 round 0}} {{#expr:}}x", "7 {{}}x"),
        ("{{#titleparts: a/b/c | 2}}", "A/b"),
        ("{{#titleparts: a/b/c | 1 | 2}}", "b"),
        ("{{#titleparts: a/b/c | | -1}}", "c"),
        ("{{#titleparts: a/b/c | -1}}", "A/b"),
        ("{{#titleparts: a/b/c | 9 | 9}}x", "{{}}x"),
        (
            "{{urlencode:a b/é}} {{urlencode:a b|PATH}} {{urlencode:a b|WIKI}}",
            "a+b%2F%C3%A9 a%20b a_b",
        ),
        ("{{#tag:nowiki|x}}", "<nowiki>x</nowiki>"),
        ("{{grammar:genitive|Word}}", "Word"),
        ("{{DEFAULTSORT:x}}y", "{{}}y"),
        (
            "{{#unknown:x}} {{#invoke:m|f}} {{#property:P1}}",
            "{{#unknown:x}} {{#invoke:m|f}} {{#property:P1}}",
        ),
    ]);
    assert_eq!(expand_in("de", &[], "{{formatnum:1234.5}}").text, "1.234,5");
    assert_eq!(expand_in("ru", &[], "{{plural:5|день|дня|дней}}").text, "дней");
}

#[test]
fn dates_and_magic_words() {
    check_functions(&[
        ("{{#time: j F Y | 2010-05-03 }}", "3 May 2010"),
        ("{{#time:Y}} {{CURRENTYEAR}}-{{CURRENTMONTH}}-{{LOCALDAY}}", "2012 2012-03-4"),
        ("{{CURRENTMONTHNAME}}", "March"),
        ("{{#iferror:{{#time:Y|no date}}|bad}}", "bad"),
        ("{{#time:Y|next Monday}}", "{{#time:Y|next Monday}}"),
        ("{{PAGENAME}} {{FULLPAGENAME}} {{PAGENAMEE}}", "The Page The Page The_Page"),
        ("{{PAGENAME:Other}} x{{NAMESPACE}}{{NAMESPACENUMBER}}", "Other x{{}}0"),
        ("{{SITENAME}} {{CONTENTLANGUAGE}} a{{!}}b", "Wikipedia en a|b"),
    ]);
    assert_eq!(expand_in("fr", &[], "{{#time:j F Y|2010-05-03}}").text, "3 mai 2010");
    assert_eq!(
        expand_in("fr", &[], "{{#time:j F|2010-05-03|en}} {{NOMPAGE}}").text,
        "3 May The Page"
    );
    assert_eq!(expand_in("de", &[], "{{#wenn:x|ja}} {{SEITENNAME}}").text, "ja The Page");
}

#[test]
fn boxes_do_not_come_into_the_text() {
    let templates = [
        ("Box", "{| class=\"infobox\"\n| a\n|}"),
        ("Div", "<div class=\"navbox\">links</div>"),
        ("Table", "<table><tr><td>x</td></tr></table>"),
        ("Infobox town", "the town"),
        ("Hat line", ":''See [[x]].''"),
        ("Item", "* item"),
        ("Key", "<span style=\"display:none\">0001</span>one"),
        ("Wanted", "<sup class=\"noprint\">[source?]</sup>"),
        ("Start", "{| class=\"wikitable\""),
        ("End", "|}"),
        ("Sentence", "It has {{formatnum:{{{1}}}}} people."),
    ];
    check(
        &templates,
        &[
            ("a {{Box}} b", "a {{}} b"),
            ("{{Div}}\n{{table}}", "{{}}\n{{}}"),
            ("{{Infobox town|x=1}}", "{{Infobox town|x=1}}"),
            ("{{Hat line}}\nText", "{{}}\nText"),
            ("a {{Item}}", "a \n* item"),
            ("a {{Key}} b{{Wanted}}.", "a one b{{}}."),
            ("{{Start}}\n| a\n{{End}}\nb", "{| class=\"wikitable\"\n| a\n|}\nb"),
            // A table whose end does not come must not take the rest away.
            ("{{Start}}\n| a\n\nb", "{{}}\n| a\n\nb"),
            ("{{Sentence|12345}}", "It has 12,345 people."),
        ],
    );
    let page = expand_in("en", &templates, "{{Box}} {{Sentence|1}} {{No such}} {{lang|fr|a}}");
    assert_eq!((page.templates, page.boxes), (2, 1));
}

#[test]
fn unclosed_elements_are_looked_for_once() {
    for markup in ["<ref>", "<nowiki>", "<!--", "[[", "{{", "{{{", "<span style=\"display:none\">"]
    {
        let page = format!("{{{{PAGENAME}}}} {}", markup.repeat(200_000));
        let expanded = expand_in("en", &[], &page).text;
        assert!(expanded.starts_with("The Page "), "{markup}");
        assert_eq!(expanded.len(), page.len() - "{{PAGENAME}}".len() + "The Page".len());
    }
}

#[test]
fn work_is_bounded() {
    let doubled = "{{{1}}}{{{1}}}".to_owned();
    let mut names: Vec<(String, String)> = (0..60)
        .map(|level| (format!("D{level}"), format!("{{{{D{}|{doubled}}}}}", level + 1)))
        .collect();
    names.push(("Deep".into(), "{{#if:x|".repeat(60) + "y" + &"}}".repeat(60)));
    names.push(("Wide".into(), "{{Wide2}}".repeat(1000)));
    names.push(("Wide2".into(), "{{Wide3}}".repeat(1000)));
    names.push(("Wide3".into(), "x".into()));
    let templates: Vec<(&str, &str)> =
        names.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let stays = |page: &str| {
        let expanded = expand_in("en", &templates, page).text;
        assert_eq!(expanded, page);
    };
    stays("{{D0|aaaaaaaaaaaaaaaa}}");
    stays("{{Wide}}");
    // Many calls of one page have a bound together.
    let page = expand_in("en", &templates, &"{{Wide2}} ".repeat(3000)).text;
    assert!(page.starts_with("xxx") && page.ends_with("{{Wide2}} "));
    assert!(page.len() < PAGE_BYTES);
    assert_eq!(expand_in("en", &templates, "{{Deep}}").text, "y");
    let nested = "{{#if:x|".repeat(500) + "y" + &"}}".repeat(500);
    let _ = expand_in("en", &templates, &nested);
    let nested = "{{lc:".repeat(2000) + "y" + &"}}".repeat(2000);
    let _ = expand_in("en", &templates, &nested);
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_wikitext_is_expanded_in_bounds(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "{{", "}}", "{{{", "}}}", "|", "=", "[[", "]]", "{|", "|}", "\n", "<!--", "-->",
                    "<nowiki>", "</nowiki>", "<noinclude>", "</noinclude>", "#if:", "#switch:",
                    "#expr:", "#time:", "Y-m-d", "lc:", "padleft:", "a", "T", "1", " ", "é", "&",
                    "<span style=\"display:none\">", "</span>", "plural:", "#titleparts:", "-1", "/",
                ]),
                0..60,
            ),
            body in prop::collection::vec(
                prop::sample::select(vec![
                    "{{{1}}}", "{{{1|", "}}}", "{{T|", "{{a|", "}}", "|", "=", "x", "{{#if:", "{{#switch:",
                    "<onlyinclude>", "</onlyinclude>", "<includeonly>", "<!--", "-->", "{{lang|fr|", "é",
                ]),
                0..40,
            ),
        ) {
            let (page, body) = (parts.concat(), body.concat());
            let templates = [("T", body.as_str()), ("A", "{{{1|}}}{{T|{{{1|}}}}}")];
            let once = expand_in("en", &templates, &page).text;
            prop_assert_eq!(&once, &expand_in("en", &templates, &page).text);
            prop_assert!(once.len() <= PAGE_BYTES + page.len());
        }
    }
}
