//! Files that are cut short, damaged or strange: each is counted or named, and nothing is lost.

use std::fs;

use serde_json::json;

use super::{
    Project, assert_adds_up, cut, expected, fixture, gzip, ids, metadata, page_block, reasons, row,
    texts, warc_info, warc_record, wet_page,
};

/// A source that reads one WET file named after it.
fn wet_source(name: &str, more: &str) -> String {
    format!("- {{name: {name}, web_archive: {{paths: [{name}.warc.wet.gz], format: wet{more}}}}}\n")
}

/// `Title n` of each document.
fn titles(project: &Project, source: &str) -> Vec<String> {
    let documents = project.documents(source);
    documents.iter().map(|d| metadata(d)["title"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn whole_strange_wet_files_lose_nothing() {
    let names = ["members", "nul", "line", "order_mark", "version_line", "layouts"];
    let mut sources: String = names.iter().map(|name| wet_source(name, "")).collect();
    // The same line again: longer than allowed, and too long a word for a sentence.
    sources += "- {name: line_too_long, web_archive: {paths: [line.warc.wet.gz], \
                max_record_bytes: 4000000}}\n\
                - name: line_dropped\n  web_archive: {paths: [line.warc.wet.gz]}\n  \
                steps: [c4: {min_sentences: 1}]\n";
    let project = Project::new(&sources);
    let file = |name: &str, bytes: Vec<u8>| project.write(&format!("{name}.warc.wet.gz"), bytes);
    let page = |number: usize| wet_page(number, page_block(number));

    // Three members; the middle record begins in the first and ends in the last.
    let whole = [warc_info(), page(0), page(1), page(2)].concat();
    let (first, rest) = whole.split_at(warc_info().len() + page(0).len() + 700);
    let (second, third) = rest.split_at(400);
    file("members", [gzip(first), gzip(second), gzip(third)].concat());
    file("nul", gzip(&[wet_page(1, "Title 1\nA\0 text with\0\0 zeros.\n"), page(2)].concat()));
    let long = format!("Title 1\n{}\n", "0123456789".repeat(500_000));
    let good = "Title 2\nThis is a sentence to keep.\n";
    file("line", [gzip(&wet_page(1, &long)), gzip(&wet_page(2, good))].concat());
    let marked = [wet_page(1, "\u{feff}Title 1\nText one.\n"), page(2)].concat();
    file("order_mark", gzip(&["\u{feff}".as_bytes(), &marked].concat()));
    let quoted = "Title 1\nHow a record begins:\nWARC/1.0\nWARC-Type: conversion\n\
                  Content-Length: 5\n\nTitle 9\nWARC/1.0\nThe end.\n";
    file("version_line", [gzip(&wet_page(1, quoted)), gzip(&page(2))].concat());
    let newer = warc_record(
        "WARC-Type: conversion\r\nWARC-Target-URI: http://example.org/\r\n\
         WARC-Date: 2023-01-26T22:06:23Z\r\nWARC-Block-Digest: sha1:X\r\n\
         WARC-Identified-Content-Language: eng\r\nContent-Type: text/plain\r\n",
        page_block(2).as_bytes(),
    );
    file("layouts", [gzip(&page(1)), gzip(&newer)].concat());

    let report = project.run(&[]);
    let none = expected(&[]);
    for name in ["nul", "line", "order_mark", "version_line", "layouts"] {
        assert_eq!(reasons(row(&report, name)), none, "{name}");
        assert_eq!(titles(&project, name), ["Title 1", "Title 2"], "{name}");
        for id in ids(&project.documents(name)) {
            assert_eq!(project.explain(id, name)["outcome"], "kept", "{name}");
        }
    }
    assert_eq!(reasons(row(&report, "members")), expected(&[("record_warcinfo", 1)]));
    assert_eq!(titles(&project, "members"), ["Title 0", "Title 1", "Title 2"]);
    let text = |name: &str| project.documents(name)[0]["text"].as_str().unwrap().to_owned();
    assert_eq!(text("nul"), "A text with zeros.");
    assert_eq!(metadata(&project.documents("nul")[0])["nul_bytes"], 3);
    assert_eq!(text("line").len(), 5_000_000);
    assert_eq!(text("order_mark"), "Text one.");
    assert_eq!(format!("Title 1\n{}\n", text("version_line")), quoted);

    assert_eq!(reasons(row(&report, "line_too_long")), expected(&[("too_long", 1)]));
    let found = project.explain("line.warc.wet.gz@0", "line_too_long");
    assert_eq!((&found["reason"], &found["bytes"]), (&json!("too_long"), &json!(long.len())));
    let counted = reasons(row(&report, "line_dropped"));
    assert_eq!(counted.values().sum::<u64>(), 1);
    let found = project.explain("line.warc.wet.gz/000000000000", "line_dropped");
    assert_eq!((&found["outcome"], &found["step"]), (&json!("dropped"), &json!("c4")));
    assert_eq!(found["bytes"], 5_000_000);
    // What is shown of it is bounded.
    assert!(found.to_string().len() < 10_000);
}

#[test]
fn damaged_wet_files_are_counted_where_they_are_damaged() {
    let project = Project::new(
        &["tail", "middle", "bytes", "length"].map(|name| wet_source(name, "")).concat(),
    );
    let file = |name: &str, bytes: Vec<u8>| project.write(&format!("{name}.warc.wet.gz"), bytes);
    let member = |number: usize| gzip(&wet_page(number, page_block(number)));
    let half = |member: Vec<u8>| member[..member.len() / 2].to_vec();
    let at = |count: usize| (0..count).map(|number| member(number).len()).sum::<usize>();

    file("tail", [member(0), member(1), half(member(2))].concat());
    file("middle", [member(0), half(member(1)), member(2), member(3)].concat());
    // é in Latin-1, behind an é in UTF-8.
    let latin = b"Title 1\nCaf\xc3\xa9 caf\xe9.\n";
    file("bytes", [member(0), gzip(&wet_page(1, latin)), member(2)].concat());
    let record = String::from_utf8(wet_page(1, page_block(1))).unwrap();
    let length = page_block(1).len();
    let wrong = record.replace(&format!("Length: {length}"), &format!("Length: {}", length + 1000));
    assert_ne!(wrong, record);
    file("length", [member(0), gzip(wrong.as_bytes()), member(2)].concat());

    let finished = project.try_run(&["--json"]).ok();
    let report = finished.json();
    super::rows(&report).iter().for_each(assert_adds_up);
    for (name, kept, reason, offset) in [
        ("tail", &["Title 0", "Title 1"][..], "damaged_member", at(2)),
        ("middle", &["Title 0", "Title 2", "Title 3"], "damaged_member", at(1)),
    ] {
        assert_eq!(titles(&project, name), kept, "{name}");
        assert_eq!(reasons(row(&report, name)), expected(&[(reason, 1)]), "{name}");
        let errors = &row(&report, name)["steps"][0]["stats"]["errors"];
        assert_eq!(errors[reason], 1, "damage is an error, not a choice: {name}");
        let found = project.explain(&format!("{name}.warc.wet.gz@{offset}"), name);
        assert_eq!((&found["outcome"], &found["reason"]), (&json!("dropped"), &json!(reason)));
        let detail = found["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("byte {offset}")), "{detail}");
        // The log says it too.
        let warned = |line: &str| line.contains(name) && line.contains(reason);
        assert!(finished.stderr.lines().any(warned), "{name}: {}", finished.stderr);
    }
    // What can be mended stays, is marked and counted.
    for (name, key) in [("bytes", "repaired_encoding"), ("length", "bad_content_length")] {
        assert_eq!(titles(&project, name), ["Title 0", "Title 1", "Title 2"], "{name}");
        assert_eq!(reasons(row(&report, name)), expected(&[]), "{name}");
        assert_eq!(row(&report, name)["steps"][0]["stats"]["noted"][key], 1, "{name}");
        let documents = project.documents(name);
        let marked: Vec<bool> =
            documents.iter().map(|document| !metadata(document)[key].is_null()).collect();
        assert_eq!(marked, [false, true, false], "{name}");
    }
    assert_eq!(project.documents("bytes")[1]["text"], "Café caf\u{fffd}.");
    let table = project.try_run(&[]).ok().stdout;
    assert!(table.contains("~ repaired_encoding") && table.contains(" kB"), "{table}");
}

#[test]
fn a_second_record_of_an_id_gets_a_suffix_or_a_reason() {
    let source = |rule: &str| format!("- {{name: x, text: {{paths: [\"*.jsonl\"]}}{rule}}}\n");
    let project = Project::new(&source(""));
    project.write(
        "a.jsonl",
        "{\"id\": \"1\", \"text\": \"one\"}\n{\"id\": \"1\", \"text\": \"two\"}\n",
    );
    project.write("b.jsonl", "{\"id\": \"1\", \"text\": \"three\"}\n");
    let report = project.run(&[]);
    assert_eq!(ids(&project.documents("x")), ["1", "1#2", "1#3"]);
    assert_eq!(metadata(&project.documents("x")[1])["given_id"], "1");
    assert_eq!(row(&report, "x")["steps"][0]["stats"]["noted"]["duplicate_id"], 2);
    assert_eq!(project.explain("1#3", "x")["document"]["text"], "three");
    project.configure(&source(", duplicate_ids: drop"));
    let report = project.run(&[]);
    assert_eq!(texts(&project.documents("x")), ["one"]);
    assert_eq!(reasons(row(&report, "x")), expected(&[("duplicate_id", 2)]));
    let found = project.explain("1#2", "x");
    assert_eq!((&found["outcome"], &found["reason"]), (&json!("dropped"), &json!("duplicate_id")));
    assert!(found["detail"].as_str().unwrap().contains("\"1\""), "{found}");
}

#[test]
fn of_several_patterns_one_may_match_nothing() {
    let source = |paths: &str| format!("- {{name: x, text: {{paths: [{paths}]}}}}\n");
    let project = Project::new(&source("\"a*.txt\", \"b*.txt\""));
    project.write("a1.txt", "Something.");
    let finished = project.try_run(&[]).ok();
    assert!(finished.stderr.contains("b*.txt"), "{}", finished.stderr);
    project.configure(&source("\"b*.txt\", \"c*.txt\""));
    project.try_run(&[]).fails(1, &["sources.x.text.paths", "b*.txt"]);
    project.configure(&source("\"a*.txt\", \"b.txt\""));
    project.try_run(&[]).fails(1, &["sources.x.text.paths", "b.txt"]);
    project.configure(
        "- {name: x, text: {paths: [\"a*.txt\"]}, steps: [wikitext: {templates: [none.yaml]}]}\n",
    );
    project.try_run(&[]).fails(1, &["sources.x.steps.0.wikitext", "none.yaml"]);
    project
        .configure("- {name: x, text: {paths: [\"a*.txt\"]}, steps: [language: {keep: [xx]}]}\n");
    project.try_run(&[]).fails(2, &["language.keep", "\"xx\"", "en"]);
}

#[test]
fn files_with_nothing_in_them_are_named() {
    let project = Project::new(&wet_source("x", ""));
    for (nothing, words) in [
        (Vec::new(), ["x.warc.wet.gz", "empty"]),
        (gzip(b""), ["x.warc.wet.gz", "empty"]),
        (b"<html>no archive</html>".to_vec(), ["\"x\"", "no document is left"]),
    ] {
        project.write("x.warc.wet.gz", &nothing);
        project.try_run(&[]).fails(1, &words);
        assert!(!project.path("out/documents/x/manifest.json").exists());
    }
    project.configure("- {name: x, text: {paths: [x.jsonl], format: jsonl}}\n");
    project.write("x.jsonl", "");
    project.try_run(&[]).fails(1, &["\"x\"", "no document"]);
    // One empty file among others is no harm where a file is a document.
    project.configure("- {name: x, text: {paths: [\"*.txt\"]}}\n");
    project.write("a.txt", "");
    project.write("b.txt", "Something.");
    project.write("c.txt", " \n\t\n");
    let report = project.run(&[]);
    assert_eq!(reasons(row(&report, "x")), expected(&[("empty", 2)]));
    assert_eq!(texts(&project.documents("x")), ["Something."]);
}

/// Compressed files that end early are never read as complete, whatever the format.
#[test]
fn truncated_archives_are_not_read_as_complete() {
    // The last of the tar archive is padding.
    let cases = [
        ("c4/c4-train.00000-of-00002.json.gz", "text: {paths: [FILE], format: jsonl}", 0.999),
        ("github/github_000000000000.gz", "github: {paths: [FILE]}", 0.999),
        ("arxiv/arXiv_src_1103_001.tar", "arxiv: {paths: [FILE]}", 0.9),
        ("stack_exchange/python.example.com.7z", "stack_exchange: {paths: [FILE]}", 0.999),
        (
            "wikipedia/enwiki-20120101-pages-articles-multistream.xml.bz2",
            "wikipedia: {paths: [FILE]}",
            0.999,
        ),
    ];
    for (path, kind, most) in cases {
        let (name, path) = (path.split('/').next().unwrap(), fixture(path));
        let file = path.file_name().unwrap().to_str().unwrap();
        let source = kind.replace("FILE", &format!("raw/{file}"));
        let project = Project::new(&format!("- {{name: {name}, {source}}}\n"));
        for share in [0.2, 0.7, most] {
            project.write(&format!("raw/{file}"), cut(&path, share));
            let finished = project.try_run(&[]).fails(1, &[file]);
            let documents = project.path("out/documents").join(name);
            let left: Vec<_> = fs::read_dir(&documents)
                .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
                .unwrap_or_default();
            assert!(left.is_empty(), "{name} {share}: {left:?}, {}", finished.stderr);
        }
        // The whole file, put in its place, is all that was missing.
        fs::copy(&path, project.path(&format!("raw/{file}"))).unwrap();
        let report = project.run(&[]);
        assert!(!project.documents(name).is_empty(), "{report}");
    }
}

/// An archive cut between two members looks whole, but for its end marker.
#[test]
fn an_archive_cut_between_members_is_not_complete() {
    let path = fixture("arxiv/arXiv_src_1103_001.tar");
    let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
    let ends = |entry: std::io::Result<tar::Entry<'_, fs::File>>| {
        let entry = entry.unwrap();
        entry.raw_file_position() + entry.size().next_multiple_of(512)
    };
    let ends: Vec<u64> = archive.entries().unwrap().map(ends).collect();
    let whole = fs::read(&path).unwrap();
    let project = Project::new("- {name: a, arxiv: {paths: [raw/a.tar]}}\n");
    for end in [ends[0], ends[ends.len() / 2], ends[ends.len() - 1]] {
        project.write("raw/a.tar", &whole[..end as usize]);
        project.try_run(&[]).fails(1, &["a.tar", "end marker"]);
    }
    // The two empty blocks of the marker are enough.
    project.write("raw/a.tar", &whole[..ends[ends.len() - 1] as usize + 1024]);
    project.run(&[]);
    // A page file cut between two members of gzip has no marker to miss; in one whose member
    // holds all pages, those before the cut stay.
    let project = Project::new(&wet_source("x", ""));
    let pages = [wet_page(0, page_block(0)), wet_page(1, page_block(1))].concat();
    let member = gzip(&pages);
    project.write("x.warc.wet.gz", &member[..member.len() - 9]);
    let report = project.run(&[]);
    assert_eq!(reasons(row(&report, "x")), expected(&[("damaged_member", 1)]));
    assert!(project.explain("x.warc.wet.gz@0", "x")["detail"].as_str().unwrap().contains("cut"));
}

/// Damage inside a file is noticed by the checksums of its format.
#[test]
fn flipped_bits_do_not_pass() {
    let path = fixture("github/github_000000000000.gz");
    let project = Project::new("- {name: g, github: {paths: [g.jsonl.gz]}}\n");
    let whole = fs::read(&path).unwrap();
    for at in [whole.len() / 3, whole.len() - 6] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        project.write("g.jsonl.gz", damaged);
        project.try_run(&[]).fails(1, &["g.jsonl.gz"]);
        assert!(!project.path("out/documents/g/manifest.json").exists());
    }
}

#[test]
fn lines_that_are_no_records_are_counted_with_their_offsets() {
    let project = Project::new(
        "- {name: x, text: {paths: [x.jsonl], format: jsonl, max_record_bytes: 1000}}\n",
    );
    let good =
        |id: &str| format!("{{\"id\": \"{id}\", \"text\": \"Ä good line.\"}}\n").into_bytes();
    let lines: Vec<Vec<u8>> = vec![
        [&b"\xef\xbb\xbf"[..], &good("a")].concat(),
        b"{\"id\": \"cut\", \"text\": \"no end\n".to_vec(),
        b"{\"id\": \"bytes\", \"text\": \"\xff\"}\n".to_vec(),
        b"{\"id\": \"none\"}\n".to_vec(),
        format!("{{\"id\": \"long\", \"text\": \"{}\"}}\n", "x".repeat(1000)).into_bytes(),
        b"{\"id\": \"nul\", \"text\": \"a\\u0000b\"}\n".to_vec(),
        b"\n".to_vec(),
        good("z"),
    ];
    project.write("x.jsonl", lines.concat());
    let report = project.run(&[]);
    let counted =
        expected(&[("bad_json", 1), ("bad_utf8", 1), ("missing_text", 1), ("too_long", 1)]);
    assert_eq!(reasons(row(&report, "x")), counted);
    assert_eq!(ids(&project.documents("x")), ["a", "nul", "z"]);
    let offset = |line: usize| lines[..line].iter().map(Vec::len).sum::<usize>();
    // Offsets are bytes of the file; the byte that is not UTF-8 is pointed at.
    let bad_byte = offset(2) + lines[2].iter().position(|byte| *byte == 0xff).unwrap();
    for (at, reason) in [
        (offset(1), "bad_json"),
        (bad_byte, "bad_utf8"),
        (offset(3), "missing_text"),
        (offset(4), "too_long"),
    ] {
        assert_eq!(project.explain(&format!("x.jsonl@{at}"), "x")["reason"], reason);
    }
    let nobody = project.path("out");
    let finished = crate::harness::run(["data", "explain", "nobody", nobody.to_str().unwrap()]);
    finished.fails(1, &["nobody"]);
}
