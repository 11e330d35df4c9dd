#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::markup::{Settings, Unmarked, unmark};
use super::templates::Rules;
use super::*;

fn settings(language: &str) -> Settings<'static> {
    Settings {
        names: WikiNames::of(Some(language)),
        rules: Rules::of(Some(language)),
        formulas: true,
        disambiguation: true,
        converter: CONVERTED_LANGUAGES.contains(&language),
    }
}

fn clean_in(language: &str, wikitext: &str) -> String {
    let mut page = unmark(wikitext, settings(language));
    assemble(&page.text, WikiNames::of(Some(language)), true, &mut page.removals)
}

fn clean(wikitext: &str) -> String {
    clean_in("en", wikitext)
}

fn check(cases: &[(&str, &str)]) {
    for (wikitext, text) in cases {
        assert_eq!(clean(wikitext), *text, "{wikitext}");
    }
}

fn apply(step: &WikitextOptions, document: &mut Document) -> (Verdict, StepCounts) {
    let mut counts = StepCounts::default();
    let verdict = step.build("").unwrap().apply(document, &mut counts);
    (verdict, counts)
}

#[test]
fn numbers_keep_their_digits() {
    check(&[
        (
            "6.022 × 10<sup>23</sup> and 10<sup>−3</sup> is small; E<sub>k</sub>.",
            "6.022 × 10^23 and 10^−3 is small; Ek.",
        ),
        ("H<sub>2</sub>O, the 21<sup>st</sup>, ''x''<sup>2</sup>", "H2O, the 21st, x^2"),
        ("1<sup>1</sup>/<sub>2</sub> and log<sub>2</sub>8", "1 1/2 and log2 8"),
        ("10{{sup|6}} and 5{{e|7}}", "10^6 and 5×10^7"),
        ("soft&shy;ly co\u{ad}operative", "softly cooperative"),
    ]);
}

#[test]
fn code_in_a_sentence_stays() {
    check(&[
        (
            "The keyword <syntaxhighlight lang=\"python\" inline>yield</syntaxhighlight> makes one.",
            "The keyword yield makes one.",
        ),
        ("Use <source lang=c enclose=none>a[0]</source> here.", "Use a[0] here."),
        ("Text.\n<syntaxhighlight lang=c>\nint x;\n</syntaxhighlight>\nMore.", "Text.\nMore."),
    ]);
}

#[test]
fn templates_of_many_languages_print_their_words() {
    for (language, wikitext, expected) in [
        (
            "ru",
            "Роман {{нп5|Капитан|капитана|en|Captain}} и {{нп5|Порт}}.",
            "Роман капитана и Порт.",
        ),
        ("ru", "Это {{дробь|1|2}} пути.", "Это 1/2 пути."),
        ("uk", "Роман {{нп|Капітан|капітана|en|Captain}}.", "Роман капітана."),
        ("fr", "Un {{lien|baleinier|langue=en|trad=Whaler}} passe.", "Un baleinier passe."),
        (
            "fr",
            "Au {{s-|XIX|e}}, au {{s|XX|e}}, au {{-s|II|e}}.",
            "Au XIXe, au XXe siècle, au IIe siècle av. J.-C..",
        ),
        ("fr", "Les {{s2|XIX|e|XX|e}}.", "Les XIXe et XXe siècles."),
        ("fr", "Il a {{unité|5|m|2}} à {{unité|100|km||h|-1}}.", "Il a 5 m^2 à 100 km·h^-1."),
        ("fr", "Le {{date-|1 mai 1900}}.", "Le 1 mai 1900."),
        ("de", "Der Berg ist {{Höhe|1234|DE-NN}} hoch.", "Der Berg ist 1234 m hoch."),
        ("it", "Lungo {{M|15|u=km}} e {{M|3|m}}.", "Lungo 15 km e 3 m."),
        ("it", "{{citazione necessaria|La nave affondò}}.", "La nave affondò."),
        ("pt", "Tem {{fmtn|12345|km}}.", "Tem 12345 km."),
        ("en", "{{citation needed span|It sank|date=May}} {{nobold|there}}.", "It sank there."),
        ("en", "Press {{keypress|Ctrl|C}}.", "Press Ctrl+C."),
        ("en", "See {{interlanguage link|Foo|fr|Bar|lt=shown}}.", "See shown."),
    ] {
        assert_eq!(clean_in(language, wikitext), expected, "{language}: {wikitext}");
    }
    // {{convertir}} has the form of {{convert}}.
    let spanish = clean_in("es", "Son {{convertir|12|km|mi}}.");
    assert!(spanish.starts_with("Son 12 km"), "{spanish}");
}

#[test]
fn templates_in_a_sentence_that_nothing_knows_are_counted() {
    let text = "{{Infobox thing\n|a=b}}\nA town of {{strange thing|5}} people, {{citation needed}} \
                near {{Strange_thing|6}}.\n{{Navbox}}\n* {{odd flag}}: text";
    let step = WikitextOptions { min_words: 0, ..WikitextOptions::default() };
    let mut document =
        Document { text: text.into(), language: Some("en".into()), ..Document::default() };
    let (_, counts) = apply(&step, &mut document);
    assert_eq!(counts.noted["lost_templates"], 3);
    let lost = counts.lost_templates();
    assert_eq!(lost.keys().collect::<Vec<_>>(), ["odd flag", "strange thing"]);
    assert_eq!(lost["strange thing"].count, 2);
    assert!(lost["strange thing"].example.contains("town of {{strange thing|5}} people"));
}

#[test]
fn templates_of_the_dump_are_expanded_before_the_markup_goes() {
    let text =
        "The town has {{#if:x|[[people|5 people]]}} and {{#invoke:x|y}}.\n{{PAGENAME}} lies there.";
    let mut document = Document {
        text: text.into(),
        language: Some("en".into()),
        metadata: Some(r#"{"title": "Ham"}"#.into()),
        ..Document::default()
    };
    let mut off = document.clone();
    let step = WikitextOptions { min_words: 0, ..WikitextOptions::default() };
    let (verdict, counts) = apply(&step, &mut document);
    assert_eq!(verdict, Verdict::Keep);
    assert_eq!(document.text, "Ham\n\nThe town has 5 people and.\nHam lies there.");
    assert_eq!(counts.lost_templates().len(), 1);
    let step = WikitextOptions { expand_templates: false, ..step };
    assert!(!step.build("").unwrap().wants_templates());
    let (_, counts) = apply(&step, &mut off);
    assert_eq!(off.text, "Ham\n\nThe town has and.\nlies there.");
    assert!(counts.lost_templates().len() >= 2);
}

#[test]
fn comments() {
    check(&[
        ("a<!-- x -->b", "ab"),
        ("a\n<!-- x -->\nb", "a\nb"),
        ("a <!-- {{ [[ --> b", "a b"),
        ("a <!-- to the end", "a"),
        ("<!-- x -->{|\n|c\n|}\na", "a"),
    ]);
}

#[test]
fn templates() {
    check(&[
        ("a {{x|{{y|z}}|[[w|{{v}}]]}} b", "a b"),
        ("{{Infobox\n| name = {{nowrap|x}}\n| y = {{{1|d}}}\n}}\n'''A''' is.", "A is."),
        ("a {{{{{x}}}}} b {{{{x}}|y}} c {{{p}}} d", "a b c d"),
        ("a {{#if: {{{1|}}} | {{x}} }} b", "a b"),
        ("{{convert|5|km|mi}} {{lang|fr|''bon''}} {{lang-de|Wort}}", "5 km bon Wort"),
        ("1914{{ndash}}1918, {{nowrap|a {{nowrap|b}}}}", "1914–1918, a b"),
        ("x (from {{lang|el|α}}, {{IPA|b}}; c) and ({{IPA|b}}) d", "x (from α; c) and d"),
        ("{{nowrap|[[a|b]] c}} {{nowrap|1=d|2=e}}", "b c d"),
        ("{{quote|text=To be.|sign=H}}", "To be."),
        ("f() { return {a: 1}; }", "f() { return {a: 1}; }"),
    ]);
}

#[test]
fn tables() {
    check(&[
        ("a\n{|\n| x || {{y}}\n|-\n! z\n{|\n| nested\n|}\n| w\n|}\nb", "a\nb"),
        (":{| class=x\n| y\n |}\nb", "b"),
        ("{{box|\n{|\n| x\n|}}}\nb", "b"),
        ("{{box\n| x\n|}}\nb", "b"),
        ("a\n{|\n| {{unclosed\n|}\nb", "a\nb"),
        ("a\n{|\n| x\n== H ==\nb", "a\n\nH\nb"),
        ("a\n<table><tr><td>x<table><td>y</table></td></tr></table>b", "a\nb"),
        ("a {| b |} c", "a {| b |} c"),
    ]);
}

#[test]
fn links() {
    check(&[
        (
            "[[bus]]es, [[a|b c]]d, [[a#b|c]], [[:de:x]], [[:Category:X|y]]",
            "buses, b cd, c, de:x, y",
        ),
        ("[[File:a.jpg|thumb|x [[y]] {{z}} [http://w v]]]b", "b"),
        ("[[Image: a.jpg ]][[image_:a]][[Category:X|*]][[de:Y]]b", "b"),
        ("[[Star Trek: Voyager]], [[a|]], [[|b]]", "Star Trek: Voyager, a, b"),
        ("[http://x.org a b] [http://x.org] [//x.org c] [mailto:x d]", "a b c d"),
        (
            "http://x.org stays, [sic] too, a[b[0]] and [[not\na link]]",
            "http://x.org stays, [sic] too, a[b[0]] and not\na link",
        ),
        ("[[File:a.jpg|thumb|a\nb\n\nc]]d", "d"),
        ("x [http://y z\nw] v", "x http://y z\nw] v"),
        ("[[[http://x y]]]", "y"),
        ("[[a|''b'' '''c''']]", "b c"),
    ]);
    assert_eq!(clean_in("de", "[[Datei:a.jpg|mini|x]][[Kategorie:Y]]b"), "b");
    assert_eq!(clean_in("ru", "[[Файл:a.jpg|мини]][[КАТЕГОРИЯ:Y]]б [[Москва|Москве]]"), "б Москве");
    assert_eq!(clean_in("fr", "L'''Odyssée'' [[fichier:x]]"), "L'Odyssée");
}

#[test]
fn elements_and_references() {
    check(&[
        ("a<ref>x {{y}} [[z]]</ref>, b<ref name=\"q\" />.", "a, b."),
        ("a <REF>x</ReF >b<references>\n<ref>z</ref></references>", "a b"),
        ("a<ref>unclosed b", "aunclosed b"),
        ("H<sub>2</sub>O x<sup>2</sup> <span style=\"x\">y</span> <b>z</b>", "H2O x^2 y z"),
        ("a<br />b<br>c", "a\nb\nc"),
        ("a <small>x {{y}} <ref>z</ref></small> b", "a b"),
        ("<gallery>\nFile:a|b\n</gallery>a<source lang=x>{{</source>b<pre>'''</pre>", "ab"),
        ("<nowiki>[[x]] '''y''' {{z}} &lt;</nowiki>", "[[x]] '''y''' {{z}} <"),
        ("#include <stdio.h> and 1 < 2 > 0 <unknown>", "include <stdio.h> and 1 < 2 > 0 <unknown>"),
        ("{{x|<nowiki>}}</nowiki>}}a", "a"),
    ]);
}

#[test]
fn formulas() {
    check(&[
        ("where <math>f''(x) &lt; \\frac{{a}}{b}</math>.", "where $f''(x) < \\frac{{a}}{b}$."),
        ("a <math display=block>\n x\n+ y </math> b <math/> c", "a $x + y$ b c"),
    ]);
    let without = Settings { formulas: false, ..settings("en") };
    assert_eq!(unmark("a<math>x</math>", without).text.trim_end_matches(markup::GAP), "a");
}

#[test]
fn references_to_characters_and_magic_words() {
    check(&[
        (
            "a&nbsp;b &amp; c&mdash;d &#913;&#x3b2; &lt;b&gt; &unknown; &",
            "a b & c—d Αβ <b> &unknown; &",
        ),
        ("&amp;nbsp; AT&T; x&;", "&nbsp; AT&T; x&;"),
        ("__NOTOC__ a __init__ b ____ __FORCETOC__", "a __init__ b ____"),
        ("&#91;&#91;a&#93;&#93; &#39;&#39;b&#39;&#39;", "[[a]] ''b''"),
        ("&#42; a", "* a"),
    ]);
    assert_eq!(clean_in("de", "__OHNE_INHALT__ __KEIN_INHALTSVERZEICHNIS__a"), "a");
    assert_eq!(clean_in("sr", "-{Windows}- и -{ {{x}} }-а"), "Windows и а");
    assert_eq!(clean("-{Windows}-"), "-{Windows}-");
}

#[test]
fn the_step_counts_titles_and_drops() {
    let step = WikitextOptions { min_words: 5, ..WikitextOptions::default() };
    let text =
        "{{a|{{b}}}}'''One''' two three<ref>r</ref> four five [[File:x]].\n==See also==\n* x";
    let mut document = Document {
        text: text.into(),
        language: Some("en".into()),
        metadata: Some("{\"title\":\"Title\"}".into()),
        ..Document::default()
    };
    let (verdict, counts) = apply(&step, &mut document);
    assert_eq!(verdict, Verdict::Keep);
    assert_eq!(document.text, "Title\n\nOne two three four five.");
    let removed = |name| (counts.removed()[name].parts, counts.removed()[name].bytes);
    assert_eq!(removed("templates"), (2, 11));
    assert_eq!(removed("references"), (1, 12));
    assert_eq!(removed("files"), (1, 10));
    assert_eq!(removed("tail_sections").0, 1);
    assert!(counts.noted.is_empty());

    let reason = |text: &str, step: &WikitextOptions| {
        let mut document = Document { text: text.into(), ..Document::default() };
        match apply(step, &mut document) {
            (Verdict::Drop { reason, .. }, counts) => {
                assert_eq!(counts, StepCounts::default());
                reason.name().to_owned()
            }
            (Verdict::Keep | Verdict::Split(_), counts) => {
                format!("{} {:?}", document.text, counts.noted)
            }
        }
    };
    assert_eq!(reason("one two three four", &step), "stub");
    assert_eq!(reason("{{only}}", &step), "empty");
    assert_eq!(reason("#REDIRECT [[x]]", &step), "redirect");
    assert_eq!(
        reason("one two three four five {{", &step),
        "one two three four five {\"unbalanced\": 1}"
    );
    let disambiguation = WikitextOptions { drop_disambiguation: true, min_words: 0, ..step };
    assert_eq!(reason("x may be {{Disambig}}", &disambiguation), "disambiguation");
    assert_eq!(reason("x may be {{Begriffsklärung}}", &disambiguation), "disambiguation");
}

/// Looks at hostile pages: the work must grow with the page, not faster.
#[test]
fn hostile_markup_takes_linear_work() {
    let units = [
        "[[",
        "{{",
        "{|\n",
        "]]",
        "}}",
        "\n|}",
        "{",
        "[",
        "}",
        "]",
        "'",
        "''",
        "'''a",
        "<",
        "<b",
        "<!--",
        "<ref>",
        "<ref",
        "</ref>",
        "<small>",
        "</small>",
        "<td>",
        "<math>",
        "[http://",
        "[http://a ",
        "&",
        "&a",
        "&#",
        "_",
        "__",
        "__A",
        "|",
        "{{a|",
        "[[a|",
        "[[File:a|",
        "=",
        "\n==",
        "\n=a=\n",
        "\n*",
        "\n:",
        ":",
        "{{lang|a|",
        "{{{",
        "{{quote|",
        "-{",
        "}-",
        "\n{|{{[[<small>",
        "(\u{fdd1}",
        "\u{fdd0}",
        "é",
        "\n",
        " ",
        "{{a}}",
        "[[a]]",
        "[[a|b]]",
        "{{{a}}}{",
        "[[{{",
        "{{[[",
        "<table><tr><td>",
        "<nowiki>",
        "</",
        "<ref/>",
        "{{#if:",
        "[[a|{{b|",
        "{|\n|{{a\n|}",
    ];
    for language in ["en", "sr"] {
        for first in units {
            for second in ["", "]]", "}}", "\n|}\n", "</ref>", "a ", "[["] {
                let work = |count: usize| {
                    let page = format!("{0}{1}", first.repeat(count), second.repeat(count));
                    let Unmarked { text, work, .. } = unmark(&page, settings(language));
                    assert!(text.len() <= 3 * page.len() + 64, "{first:?} {second:?}");
                    (work, page.len())
                };
                let (small, _) = work(500);
                let (large, length) = work(4000);
                // Eight times the page: eight times the work, and a constant for the stack.
                assert!(large <= 9 * small + 64 * 1024, "{first:?} {second:?}: {small} {large}");
                assert!(large <= 70 * length + 4096, "{first:?} {second:?}: {large} for {length}");
            }
        }
    }
}

#[test]
fn nothing_is_counted_as_removed_twice() {
    for page in ["{{{{{{{{x}}a}}b}}c}}d", "{{{{{{x}}}}}} y", "{|\n{{a|{{{{b}}c}}}}\n|}\nz"] {
        let removed = unmark(page, settings("en")).removals.bytes();
        assert!(removed <= page.len(), "{removed} of {page:?}");
    }
}

/// What a template renders to is read again by the template around it.
#[test]
fn rendered_templates_take_linear_work() {
    for (run, runs) in [(100_000, 1), (1000, 64)] {
        let open = format!("{}{}", "{{".repeat(run), "formatnum:".repeat(run)).repeat(runs);
        let page = format!("{open}{}{}", "long ".repeat(50_000), "}}".repeat(run * runs));
        let Unmarked { work, .. } = unmark(&page, settings("en"));
        assert!(work <= 140 * page.len(), "{work} for {}", page.len());
    }
}

#[test]
fn a_million_of_anything_is_cleaned() {
    for unit in ["[[", "{{", "{|\n", "<ref>", "'''", "{{a|", "[[a|b", "\n==a=="] {
        let page = unit.repeat(1_000_000);
        let text = clean(&page);
        assert!(text.len() <= page.len(), "{unit}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_markup_is_cleaned(
        parts in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![
                    "[[", "]]", "{{", "}}", "{{{", "}}}", "{|", "|}", "\n", "|", "=", "==", "'''",
                    "''", "<ref>", "</ref>", "<small>", "</small>", "<!--", "-->", "<math>",
                    "</math>", "<nowiki>", "</nowiki>", "[http://x ", "]", "File:", "lang|fr|",
                    "convert|5|km", "&amp;", "&#x41;", "__NOTOC__", "*", "#", ":", " ", "-{", "}-",
                    "word", "é", "日本", "(", ")", ",", "<br>", "<table>", "</table>", "quote|",
                ]).prop_map(str::to_owned),
                "\\PC{0,5}",
            ],
            0..60,
        ),
        language in prop::sample::select(vec!["en", "sr", "de"]),
    ) {
        let page = parts.concat();
        let made = unmark(&page, settings(language));
        prop_assert!(made.work <= 70 * page.len() + 4096);
        let text = clean_in(language, &page);
        // Nothing that only serves the inside gets out, and lines are as promised.
        let inner = |text: &str| text.contains([markup::APOSTROPHE, markup::GAP]);
        prop_assert!(inner(&page) || !inner(&text));
        prop_assert!(!text.contains("\n\n\n"));
        prop_assert_eq!(text.trim(), text.as_str());
    }

    #[test]
    fn text_without_markup_stays(words in prop::collection::vec("[a-zA-Zéßд0-9]{1,8}", 1..40)) {
        let page = words.join(" ");
        prop_assert_eq!(clean(&page), page);
    }
}
