//! The steps of GitHub, Wikipedia, books and ArXiv, each alone on text of its kind.

use serde_json::json;

use super::apply::{apply, one};
use super::texts;

#[test]
fn license_headers_go_and_code_stays() {
    let include = "#include <stdio.h>\n#define N 1\nint main(void) { return N; }\n";
    let header = "/* Copyright 2009 The Authors.\n * All rights reserved. */\n";
    let c = |text: &str| json!({"id": "c", "text": text, "metadata": {"path": "a/main.c"}});
    let objects =
        [c(&format!("{header}{include}")), c(include), json!({"id": "d", "text": include})];
    let kept = apply("github_header", "", &objects).kept;
    assert_eq!(texts(&kept), [include; 3], "no line of code may go");
    let script =
        "#!/bin/sh\n# Copyright 2009 The Authors.\n# Licensed under the MIT licence.\n\necho hi\n";
    let kept = apply(
        "github_header",
        "",
        &[json!({"id": "s", "text": script, "metadata": {"path": "run.sh"}})],
    );
    let left = kept.kept[0]["text"].as_str().unwrap();
    assert!(left.starts_with("#!/bin/sh\n") && left.ends_with("echo hi\n"), "{left:?}");
    assert!(!left.contains("Copyright"), "{left:?}");
}

#[test]
fn source_files_are_judged_by_code_points() {
    let file = |id: &str, text: String, path: &str, license: &str| json!({"id": id, "text": text, "metadata": {"path": path, "license": license}});
    let code = "fn main() { let value = compute(); }\n".repeat(20);
    // 1000 characters a line are allowed, and are 2000 bytes here; 20 lines that make the mean.
    let wide = format!("{}\n{code}", "ü".repeat(1000));
    let objects = [
        file("good", code.clone(), "a.rs", "mit"),
        file("gpl", code.clone(), "a.rs", "gpl-2.0"),
        file("unknown", code.clone(), "a.rs", "something"),
        file("wide", wide.clone(), "a.rs", "apache-2.0"),
        file("wider", format!("ü{wide}"), "a.rs", "mit"),
        file("data", "{}[]();:,./\n".repeat(50), "a.js", "mit"),
        file("object", code, "a.xyz", "mit"),
    ];
    let applied = apply("github_filter", "", &objects);
    let kept: Vec<_> = applied.kept.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(kept, ["good", "wide"]);
    assert_eq!(applied.kept[1]["metadata"]["max_line_length"], 1000);
    let reasons: Vec<_> = applied
        .dropped
        .iter()
        .map(|line| (line["id"].as_str().unwrap(), line["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(reasons[0], ("gpl", "license:gpl-2.0"));
    assert!(reasons[1].0 == "unknown" && reasons[1].1.starts_with("license:"), "{reasons:?}");
    assert_eq!(
        reasons[2..],
        [("wider", "max_line_length"), ("data", "alnum"), ("object", "extension")]
    );
}

#[test]
fn papers_lose_their_comments_and_macros() {
    let body = "Enough words of a body. ".repeat(60);
    let paper = |section: &str| {
        format!(
            "\\documentclass{{article}}\n\\newcommand{{\\pair}}[2]{{\\langle #1, #2\\rangle}}\n\
             \\def\\R{{\\mathbb{{R}}}}\n\\newcommand{{\\half}}{{50\\%}}\n\\begin{{document}}\n\
             Preamble text.\n{section}\nA rate of 10\\% stays. % this goes\nIt is \\half of \
             $\\pair{{a}}{{b}}$ in $\\R$.\nLine\\\\% gone\nnext {body}\n\
             \\begin{{thebibliography}}{{9}}\\bibitem{{x}} Gone.\\end{{thebibliography}}\n\
             \\end{{document}}\nAfter the end.\n"
        )
    };
    // The alternation of the section pattern, all of it.
    for section in [
        "\\section{One}",
        "\\section*{One}",
        "\\chapter{One}",
        "\\chapter*{One}",
        "\\subsection{One}",
    ] {
        let text = one("latex", "", &paper(section)).unwrap();
        assert!(text.starts_with(section), "{section}: {text}");
        assert!(text.contains("A rate of 10\\% stays."), "{text}");
        assert!(
            text.contains("It is 50\\% of $\\langle a, b\\rangle$ in $\\mathbb{R}$."),
            "{text}"
        );
        assert!(text.contains("Line\\\\") && text.contains("next Enough"), "{text}");
        for gone in ["this goes", "gone", "Gone", "Preamble", "\\pair", "\\R$", "After the end"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
    }
    assert_eq!(one("latex", "", "No TeX at all."), Err("not_latex".into()));
    assert_eq!(one("latex", "", "\\section{A} short"), Err("too_short".into()));
}

#[test]
fn wikitext_becomes_text() {
    let page = "{{Infobox town|name=X|{{nested|a}}}}'''Ada''' is a [[town (place)|town]] in \
        [[Ohio]],<ref name=\"a\">{{cite|x}}</ref> with 5,952 people &amp; {{convert|5|km|mi}} of \
        road.<!-- gone -->\n\n[[File:X.jpg|thumb|A [[link]] in a caption]]\n\n== History ==\n\
        {| class=\"wikitable\"\n|-\n| cell || other\n|}\nIt was ''founded'' in 1853.\n\
        * one\n* two\n\n== References ==\n{{reflist}}\n[[Category:Towns]]\n";
    let object = json!({"id": "1", "text": page, "language": "en", "metadata": {"title": "Ada"}});
    let applied = apply("wikitext", "min_words: 5\n", &[object]);
    let text = applied.kept[0]["text"].as_str().unwrap();
    assert!(text.starts_with("Ada\n\nAda is a town in Ohio, with 5,952 people &"), "{text}");
    for kept in ["of road.", "History", "It was founded in 1853.", "one", "two"] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    let markup = ["{{", "}}", "[[", "]]", "''", "<", "|"];
    for gone in markup.into_iter().chain(["nested", "gone", "cell", "Category", "cite"]) {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    assert_eq!(one("wikitext", "", "#REDIRECT [[Ohio]]"), Err("redirect".into()));
    assert_eq!(one("wikitext", "", "A few words only."), Err("stub".into()));
    // Markup made to be slow is bounded; it stays as text or goes.
    for hostile in ["{{", "[[", "{|\n", "<ref>", "''", "-{", "{{{"] {
        let text = format!("{} {}", "word ".repeat(60), hostile.repeat(100_000));
        assert!(one("wikitext", "", &text).is_ok(), "{hostile}");
    }
}

#[test]
fn gutenberg_headers_and_footers_go() {
    let body = "CHAPTER I.\n\nCall me Ishmael. Some years ago, never mind how long precisely.\n\n\
                [Illustration: A whale]\n\nIt is a way I have of driving off the spleen.";
    let body = [body, &"There is nothing surprising in this.\n".repeat(200)].join("\n");
    let modern = format!(
        "\u{feff}The Project Gutenberg eBook of Moby Dick\r\n\r\nTitle: Moby Dick\r\n\r\nAuthor: \
         Herman Melville\r\n\r\nLanguage: English\r\n\r\n*** START OF THE PROJECT GUTENBERG EBOOK \
         MOBY DICK ***\r\n\r\n{body}\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK MOBY DICK \
         ***\r\n\r\nUpdated editions will replace the previous one.\r\n"
    );
    let object = json!({"id": "pg:15", "text": modern});
    let kept = &apply("gutenberg", "", &[object]).kept[0];
    let text = kept["text"].as_str().unwrap();
    assert!(text.starts_with("CHAPTER I.\n\nCall me Ishmael."), "{}", &text[..80]);
    assert!(text.ends_with("There is nothing surprising in this."), "{}", &text[text.len() - 80..]);
    for gone in ["GUTENBERG", "Gutenberg", "Title:", "Updated", "Illustration", "\r", "\u{feff}"] {
        assert!(!text.contains(gone), "{gone}");
    }
    assert_eq!(kept["metadata"]["title"], "Moby Dick");
    assert_eq!(kept["metadata"]["author"], "Herman Melville");
    assert_eq!(kept["language"], "en");
    // A book without markers is whole.
    assert_eq!(one("gutenberg", "drop_illustrations: false\n", &body), Ok(body.trim().to_owned()));
}
