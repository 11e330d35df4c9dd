//! The sources behind CommonCrawl: mistakes of earlier pipelines that must not return, and
//! archives that mean harm.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Project, expected, gzip, ids, metadata, reasons, row, texts};

/// A row of `Posts.xml`.
fn post(id: u32, attributes: &str, body: &str) -> String {
    let body = body.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let body = body.replace('\n', "&#xA;");
    format!("  <row Id=\"{id}\" {attributes} Body=\"{body}\" />\r\n")
}

fn answer(id: u32, parent: u32, score: i32, body: &str) -> String {
    post(id, &format!("PostTypeId=\"2\" ParentId=\"{parent}\" Score=\"{score}\""), body)
}

fn question(id: u32, title: &str, body: &str) -> String {
    post(id, &format!("PostTypeId=\"1\" Score=\"5\" Title=\"{title}\""), body)
}

#[test]
fn answers_are_sorted_by_score_as_a_number() {
    let project =
        Project::new("- {name: se, stack_exchange: {paths: [raw/dba.example.com/Posts.xml]}}\n");
    let rows = [
        // Before its question; as text, "9" and "-1" would stand before "10" and "100".
        answer(2, 1, 9, "<p>Nine.</p>"),
        answer(3, 1, 100, "<p>A hundred.</p>"),
        question(1, "How?", "<p>Why <b>so</b>?</p>"),
        answer(4, 1, -1, "<p>Minus one.</p>"),
        answer(5, 1, 10, "<p>Ten &lt; eleven.</p><pre><code>a\n  b</code></pre>"),
        post(6, "PostTypeId=\"5\" Score=\"0\"", "a tag"),
        answer(7, 99, 3, "<p>Of no question.</p>"),
        "  <row Id=\"x\" PostTypeId=\"2\" />\r\n".into(),
    ];
    let head = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\r\n<posts>\r\n";
    let file = format!("{head}{}</posts>", rows.concat());
    project.write("raw/dba.example.com/Posts.xml", &file);
    let report = project.run(&[]);
    let documents = project.documents("se");
    assert_eq!(ids(&documents), ["dba.example.com/1"]);
    let text = documents[0]["text"].as_str().unwrap();
    let places: Vec<_> = ["How?", "Why so?", "A hundred.", "Ten < eleven.", "Nine.", "Minus one."]
        .map(|part| text.find(part).unwrap_or_else(|| panic!("{part}: {text}")))
        .into();
    assert!(places.is_sorted(), "{text}");
    assert!(text.contains("a\n  b"), "{text}");
    let counted = expected(&[("bad_row", 1), ("orphan_answer", 1), ("post_tag_wiki", 1)]);
    assert_eq!(reasons(row(&report, "se")), counted);
    // Offsets are bytes of the file.
    let offset = file.find("<row Id=\"7\"").unwrap();
    let found = project.explain(&format!("Posts.xml@{offset}"), "se");
    assert_eq!(found["reason"], "orphan_answer");
}

#[test]
fn entity_bombs_are_refused_by_name() {
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;\">]>";
    let posts = format!("{bomb}<posts>{}</posts>", question(1, "T", "&b;"));
    let project =
        Project::new("- {name: se, stack_exchange: {paths: [raw/dba.example.com/Posts.xml]}}\n");
    project.write("raw/dba.example.com/Posts.xml", posts);
    project.try_run(&[]).fails(1, &["Posts.xml"]);
    let dump = format!(
        "{bomb}<mediawiki xml:lang=\"en\"><page><title>A</title><ns>0</ns><id>1</id><revision>\
         <text>&b;</text></revision></page></mediawiki>"
    );
    project.configure("- {name: wiki, wikipedia: {paths: [raw/enwiki-x.xml]}}\n");
    project.write("raw/enwiki-x.xml", dump);
    project.try_run(&[]).fails(1, &["enwiki-x.xml"]);
}

/// `count` words that stand nowhere else.
fn words(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}{number}")).collect()
}

#[test]
fn books_go_by_what_they_share_not_by_what_they_are_like() {
    let project = Project::new(
        "- {name: books, text: {paths: [books.jsonl], format: jsonl}, \
         steps: [dedup_books: {threshold: 0.9}]}\n",
    );
    // 1012 words are 1000 runs of 13. Of one book 901 runs are in the omnibus, of one 900, and of
    // one 899; none of them is like it as a whole.
    let book = |name: &str| words(name, 1012);
    let mut omnibus = words("omnibus", 5000);
    for (name, runs) in [("more", 901), ("equal", 900), ("less", 899)] {
        omnibus.extend(book(name)[..runs + 12].iter().cloned());
        omnibus.extend(words(&format!("after{name}"), 50));
    }
    // The same words in another order: the same bag of words, no run in common.
    let mut turned = book("turned");
    turned.reverse();
    let books = [
        ("less", book("less")),
        ("more", book("more")),
        ("equal", book("equal")),
        ("turned", book("turned")),
        ("back", turned),
        ("omnibus", omnibus),
    ];
    let line = |(name, words): &(&str, Vec<String>)| {
        format!("{}\n", json!({"id": name, "text": words.join(" ")}))
    };
    for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 0, 4, 1, 3]] {
        project.write("books.jsonl", order.map(|at| line(&books[at])).concat());
        let report = project.run(&[]);
        let documents = project.documents("books");
        let kept: BTreeSet<_> = ids(&documents).into_iter().collect();
        assert_eq!(kept, ["back", "equal", "less", "omnibus", "turned"].into(), "{order:?}");
        assert_eq!(reasons(row(&report, "books")).values().sum::<u64>(), 1);
        let found = project.explain("more", "books");
        assert_eq!(found["step"], "dedup_books");
        assert!(found["detail"].as_str().unwrap().contains("omnibus"), "{found}");
    }
}

/// Who keeps what several have is found by hash, never by order.
#[test]
fn the_order_of_files_does_not_choose() {
    let steps = "[dedup_documents: {key: text}, dedup_lines: {min_sentences: 1}]";
    let project = Project::new(&format!(
        "- {{name: x, text: {{paths: [\"*.jsonl\"], format: jsonl}}, steps: {steps}}}\n"
    ));
    let line = |number: usize| {
        let own = format!("This is the own sentence of page {}.", number % 20);
        let text = format!("{own}\nThis line is one that all the pages have.");
        format!("{}\n", json!({"id": format!("n{number}"), "text": text}))
    };
    let lines: Vec<String> = (0..40).map(line).collect();
    let mut outcomes = BTreeSet::new();
    for turn in [0, 13, 31] {
        let mut turned = lines.clone();
        turned.rotate_left(turn);
        project.write("a.jsonl", turned[..11].concat());
        project.write("b.jsonl", turned[11..].concat());
        project.run(&[]);
        let documents = project.documents("x");
        let mut kept: Vec<_> = ids(&documents).into_iter().zip(texts(&documents)).collect();
        kept.sort_unstable();
        assert_eq!(kept.len(), 20);
        let shared = kept.iter().filter(|(_, text)| text.contains("all the pages")).count();
        assert_eq!(shared, 1, "one owner keeps the line");
        outcomes.insert(format!("{kept:?}"));
    }
    assert_eq!(outcomes.len(), 1);
}

/// A tar archive of `members`; their paths may be any.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in members {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_300_000_000);
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

const MIT: &str = "MIT License\n\nPermission is hereby granted, free of charge, to any person \
    obtaining a copy of this software and associated documentation files (the \"Software\"), to \
    deal in the Software without restriction, subject to the following conditions:\n\nThe above \
    copyright notice and this permission notice shall be included in all copies.\n";

#[test]
fn repositories_do_not_leave_their_folder() {
    let project = Project::new(
        "- name: gh\n  github: {paths: [\"raw/*.tar.gz\"], format: repositories, \
         max_expanded_bytes: 3000000}\n  steps: [github_filter: {}]\n",
    );
    let code = "package main\n\nfunc main() { println(\"hello\") }\n";
    let repository = tar(&[
        ("tool-1/main.go", code.as_bytes()),
        ("../../outside.go", code.as_bytes()),
        ("/etc/absolute.go", code.as_bytes()),
        ("tool-1/picture.go", b"\x89PNG\0\0\0 not text"),
        ("tool-1/other/COPYING", b"GNU GENERAL PUBLIC LICENSE\nVersion 2, June 1991\n"),
        ("tool-1/other/copyleft.go", code.as_bytes()),
        ("tool-1/LICENSE", MIT.as_bytes()),
    ]);
    project.write("raw/tool.tar.gz", gzip(&repository));
    // 16 MB of zeros in 16 kB.
    let zeros = vec![0; 16 << 20];
    project.write("raw/zeros.tar.gz", gzip(&tar(&[("zeros-1/a.go", &zeros)])));
    let report = project.run(&[]);
    let documents = project.documents("gh");
    let paths: Vec<_> =
        documents.iter().map(|d| metadata(d)["path"].as_str().unwrap().to_owned()).collect();
    assert!(paths == ["main.go"], "{paths:?}");
    let counted = reasons(row(&report, "gh"));
    assert!(counted["unsafe_path"] >= 1, "{counted:?}");
    assert_eq!((counted["expands_too_far"], counted["binary"]), (1, 1), "{counted:?}");
    assert!(counted["license:gpl-2.0"] >= 1, "{counted:?}");
    let outside = project.path("out").parent().unwrap().parent().unwrap().join("outside.go");
    assert!(!outside.exists());
    assert_eq!(project.explain("zeros.tar.gz@0", "gh")["reason"], "expands_too_far");
}

#[test]
fn papers_of_both_kinds_are_joined_and_cut() {
    let project = Project::new(
        "- name: arxiv\n  arxiv: {paths: [raw/arXiv_src_0704_001.tar], max_record_bytes: 1000000, \
         max_expanded_bytes: 2000000}\n  steps: [latex: {min_chars: 50}]\n",
    );
    let text = "The text of a paper goes on for some words. ".repeat(4);
    let single = format!(
        "\\documentclass{{article}}\n\\begin{{document}}\nAbstract.\n\\section{{One}}\n{text}\n\
         \\end{{document}}\n"
    );
    let root = "\\documentclass{article}\n\\newcommand{\\vect}[1]{\\mathbf{#1}}\n\
                \\begin{document}\n\\input{body}\n% \\input{missing}\n\\end{document}\n";
    let body = format!("\\section{{Two}}\n$\\vect{{x}}$ caf\u{e9} {text}\n");
    // In Latin-1, as many old papers.
    let body: Vec<u8> = body.chars().map(|c| c as u32 as u8).collect();
    let folder = tar(&[
        ("main.tex", root.as_bytes()),
        ("body.tex", &body),
        ("../../escape.tex", b"\\section{Escaped}"),
        ("figure.pdf", b"%PDF-1.4"),
    ]);
    let bomb = tar(&[("figure.eps", &vec![0; 8 << 20])]);
    let members: [(&str, Vec<u8>); 6] = [
        ("0704/0704.0001.gz", gzip(single.as_bytes())),
        ("0704/0704.0002.gz", gzip(&folder)),
        ("0704/0704.0003.pdf", b"%PDF-1.4".to_vec()),
        ("0704/0704.0004.gz", gzip(&bomb)),
        ("0704/0704.0005.gz", gzip(single.as_bytes())[..60].to_vec()),
        ("../0704.0006.gz", gzip(single.as_bytes())),
    ];
    let members: Vec<(&str, &[u8])> = members.iter().map(|(path, b)| (*path, &b[..])).collect();
    project.write("raw/arXiv_src_0704_001.tar", tar(&members));
    let report = project.run(&[]);
    let documents = project.documents("arxiv");
    assert_eq!(ids(&documents), ["0704.0001", "0704.0002"]);
    let found = texts(&documents);
    assert_eq!(found[0].trim(), format!("\\section{{One}}\n{}", text.trim()));
    assert!(found[1].starts_with("\\section{Two}\n$\\mathbf{x}$ café The text"), "{}", found[1]);
    assert!(!found[1].contains("Escaped"));
    let counted = expected(&[
        ("bad_archive", 1),
        ("expands_too_far", 1),
        ("pdf_only", 1),
        ("unsafe_path", 1),
    ]);
    assert_eq!(reasons(row(&report, "arxiv")), counted);
}

#[test]
fn characters_are_counted_and_bytes_located() {
    let source = |bytes: usize| {
        format!(
            "- name: x\n  text: {{paths: [x.jsonl], format: jsonl, max_record_bytes: {bytes}}}\n  \
             steps: [min_length: {{chars: 3000}}]\n"
        )
    };
    let project = Project::new(&source(20_000));
    // 2999 and 3000 characters, of 3 bytes each.
    let text = |chars: usize| "日本語のテキスト".chars().cycle().take(chars).collect::<String>();
    let line = |id: &str, text: &str| format!("{}\n", json!({"id": id, "text": text}));
    project.write("x.jsonl", line("less", &text(2999)) + &line("enough", &text(3000)));
    let report = project.run(&[]);
    assert_eq!(ids(&project.documents("x")), ["enough"]);
    let stats = &row(&report, "x")["steps"][1]["stats"];
    let of = |key: &str| stats[key].as_u64().unwrap();
    assert_eq!((of("bytes_in"), of("bytes_out"), of("chars_out")), (17997, 9000, 3000));
    let found = project.explain("less", "x");
    assert_eq!(found["bytes"], 8997);
    assert!(found["detail"].as_str().unwrap().contains("2999 characters"), "{found}");
    // What is kept of a dropped text is cut between characters.
    assert_eq!(found["sample"].as_str().unwrap(), text(2000));
    project.configure(&source(30_000));
    project.run(&["--sample-dropped", "0"]);
    assert_eq!(project.explain("less", "x").get("sample"), None::<&Value>);
}

/// Characters of patterns in the name of the folder that a configuration lies in.
#[test]
fn the_folder_of_a_configuration_is_not_a_pattern() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a[1]", "{b,c}", "d*e?"] {
        let project = Project::at(folder.path().join(name));
        project.configure("- {name: x, text: {paths: [\"raw/*.txt\", more/y.txt]}}\n");
        project.write("raw/x.txt", "Call me Ishmael.");
        project.write("more/y.txt", "Some years ago.");
        project.run(&[]);
        assert_eq!(ids(&project.documents("x")), ["x.txt", "y.txt"], "{name}");
    }
}
