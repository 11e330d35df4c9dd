//! CommonCrawl: what is read of WET and WARC files, and by which names.

use serde_json::json;

use super::{
    Project, expected, gzip, ids, metadata, page_block, reasons, row, texts, warc_info,
    warc_record, wet_page,
};

#[test]
fn headers_are_read_by_name_in_every_layout() {
    let project =
        Project::new("- {name: cc, web_archive: {paths: [x.warc.wet.gz], format: wet}}\n");
    // Since 2020 a language stands before the type. Names in other cases and orders, values that
    // go on in the next line and addresses in brackets are allowed.
    let newer = warc_record(
        "WARC-Type: conversion\r\nWARC-Target-URI: http://new.example.org/a\r\n\
         WARC-Date: 2023-01-26T22:06:23Z\r\nWARC-Record-ID: <urn:uuid:1>\r\n\
         WARC-Refers-To: <urn:uuid:2>\r\nWARC-Block-Digest: sha1:NEWER\r\n\
         WARC-Identified-Content-Language: eng,fra\r\nContent-Type: text/plain\r\n",
        b"Newer title\nNewer text.",
    );
    let shuffled = warc_record(
        "content-type: text/plain\r\nX-Length: 3\r\nwarc-block-digest:\r\n sha1:SHUFFLED\r\n\
         WARC-DATE: 2020-01-02T03:04:05Z\r\nwarc-target-uri: <http://shuffled.example.org/>\r\n\
         warc-type: conversion\r\n",
        b"Shuffled title\nShuffled text.",
    );
    let older = wet_page(7, "Older title\n  Older text. \n");
    let file: Vec<u8> =
        [warc_info(), older, newer, shuffled].iter().flat_map(|record| gzip(record)).collect();
    project.write("x.warc.wet.gz", file);
    let report = project.run(&[]);
    assert_eq!(reasons(row(&report, "cc")), expected(&[("record_warcinfo", 1)]));
    let documents = project.documents("cc");
    assert_eq!(texts(&documents), ["Older text.", "Newer text.", "Shuffled text."]);
    let found: Vec<_> = documents
        .iter()
        .map(|document| {
            let metadata = metadata(document);
            let of = |key: &str| metadata[key].as_str().unwrap().to_owned();
            (
                document["url"].as_str().unwrap().to_owned(),
                document["created"].as_str().unwrap().to_owned(),
                of("title"),
                of("digest"),
            )
        })
        .collect();
    let row = |url: &str, date: &str, title: &str, digest: &str| {
        (url.to_owned(), date.to_owned(), title.to_owned(), digest.to_owned())
    };
    assert_eq!(
        found,
        [
            row("http://www.example7.org/", "2019-02-15T18:40:25Z", "Older title", "sha1:DIGEST7"),
            row("http://new.example.org/a", "2023-01-26T22:06:23Z", "Newer title", "sha1:NEWER"),
            row(
                "http://shuffled.example.org/",
                "2020-01-02T03:04:05Z",
                "Shuffled title",
                "sha1:SHUFFLED"
            ),
        ]
    );
}

#[test]
fn pages_as_served_become_text_of_their_charset() {
    let project = Project::new("- {name: cc, web_archive: {paths: [x.warc.gz], format: warc}}\n");
    let response = |number: usize, http: &str, body: &[u8]| {
        let headers = format!(
            "WARC-Type: response\r\nWARC-Target-URI: http://page{number}.example.org/\r\n\
             WARC-Date: 2020-01-02T03:04:05Z\r\n\
             Content-Type: application/http; msgtype=response\r\n"
        );
        gzip(&warc_record(&headers, &[http.as_bytes(), b"\r\n\r\n", body].concat()))
    };
    let latin = b"<html><head><title>Caf\xe9</title><script>var x = '<p>no</p>';</script></head>\
        <body><p>Cr\xe8me br\xfbl\xe9e &amp; th\xe9</p><p>Second</p></body></html>";
    let greek =
        "<html><head><meta charset=\"iso-8859-7\"></head><body><p>\u{3b1}</p></body></html>";
    // Alpha is 0xe1 in ISO 8859-7.
    let greek: Vec<u8> =
        greek.chars().map(|c| if c == '\u{3b1}' { 0xe1 } else { c as u32 as u8 }).collect();
    let request = warc_record("WARC-Type: request\r\nContent-Type: application/http\r\n", b"GET /");
    let file = [
        gzip(&warc_info()),
        gzip(&request),
        response(1, "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=ISO-8859-1", latin),
        response(2, "HTTP/1.1 200 OK\r\nContent-Type: text/html", &greek),
        response(3, "HTTP/1.1 404 Not Found\r\nContent-Type: text/html", b"<p>gone</p>"),
        response(4, "HTTP/1.1 200 OK\r\nContent-Type: image/png", b"\x89PNG"),
    ];
    project.write("x.warc.gz", file.concat());
    let report = project.run(&[]);
    let counted = [("content_type", 1), ("http_status", 1), ("record_request", 1)];
    let counted = [&counted[..], &[("record_warcinfo", 1)]].concat();
    assert_eq!(reasons(row(&report, "cc")), expected(&counted));
    let documents = project.documents("cc");
    assert_eq!(texts(&documents), ["Crème brûlée & thé\nSecond", "α"]);
    assert_eq!(metadata(&documents[0])["title"], "Café");
    assert_eq!(metadata(&documents[1])["charset"], "ISO-8859-7");
    // The offsets of the compressed members are what the counted records are asked by.
    let offsets: Vec<usize> = file
        .iter()
        .scan(0, |end, part| {
            let start = *end;
            *end += part.len();
            Some(start)
        })
        .collect();
    for (member, reason, detail) in [
        (1, "record_request", "request"),
        (4, "http_status", "404"),
        (5, "content_type", "image/png"),
    ] {
        let found = project.explain(&format!("x.warc.gz@{}", offsets[member]), "cc");
        assert_eq!((&found["reason"], &found["detail"]), (&json!(reason), &json!(detail)));
    }
}

#[test]
fn lists_name_files_that_must_be_there() {
    let project = Project::new("- {name: cc, web_archive: {list: wet.paths.gz}}\n");
    let list = "crawl-data/CC-MAIN-2019-09/segments/1/wet/a.warc.wet.gz\n\
                https://data.commoncrawl.org/crawl-data/CC-MAIN-2019-09/segments/2/wet/b.warc.wet.gz\n";
    project.write("wet.paths.gz", gzip(list.as_bytes()));
    let a = "crawl-data/CC-MAIN-2019-09/segments/1/wet/a.warc.wet.gz";
    let b = "crawl-data/CC-MAIN-2019-09/segments/2/wet/b.warc.wet.gz";
    project.write(a, gzip(&wet_page(1, page_block(1))));
    project.try_run(&[]).fails(1, &["wet.paths.gz", "1 of 2", b]);
    assert!(!project.path("out/documents").exists(), "nothing may be written");
    project.write(b, gzip(&wet_page(2, page_block(2))));
    project.run(&[]);
    assert_eq!(
        ids(&project.documents("cc")),
        [format!("{a}/000000000000"), format!("{b}/000000000000")]
    );
    project.write("wet.paths.gz", gzip(b"../../etc/passwd\n"));
    project.try_run(&[]).fails(1, &["wet.paths.gz", "line 1"]);
}

#[test]
fn paragraphs_that_pages_share_go_as_in_cc_net() {
    let project = Project::new(
        "- name: cc\n  web_archive: {paths: [\"*.warc.wet.gz\"], format: wet}\n  steps:\n  \
         - dedup_documents: {key: digest}\n  \
         - dedup_paragraphs: {mode: ccnet, files_per_group: 50}\n",
    );
    // Case, digits and the marks of cc_net do not count; a line twice in one page stays once.
    let first = "A\nHome page — 1999\nOnly here, first.\nTwice in one page.\nTwice in one page.\n";
    let second = "B\nHOME PAGE — 2024…\nOnly here, second.\n";
    let nothing_left = "C\nhome page  0000\n";
    project.write("a.warc.wet.gz", gzip(&wet_page(1, first)));
    // The same digest as the first of the other file: one of them goes whole.
    let same = wet_page(1, first);
    let file = [wet_page(2, second), wet_page(3, nothing_left), same].map(|page| gzip(&page));
    let offsets = [0, file[0].len(), file[0].len() + file[1].len()];
    project.write("b.warc.wet.gz", file.concat());
    let report = project.run(&[]);
    let row = row(&report, "cc");
    let counted = reasons(row);
    assert_eq!(counted.values().sum::<u64>(), 2, "{counted:?}");
    let documents = project.documents("cc");
    let mut left = texts(&documents);
    left.sort_unstable();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&"Only here, second."), "{left:?}");
    assert!(left.contains(&"Only here, first.\nTwice in one page."), "{left:?}");
    let emptied = project.explain(&format!("b.warc.wet.gz/{:012}", offsets[1]), "cc");
    assert_eq!(emptied["outcome"], "dropped");
    assert_eq!(emptied["step"], "dedup_paragraphs");
    let twins =
        ["a.warc.wet.gz/000000000000".to_owned(), format!("b.warc.wet.gz/{:012}", offsets[2])];
    let steps = twins.map(|id| project.explain(&id, "cc")["step"].clone());
    assert!(steps.contains(&json!("dedup_documents")), "{steps:?}");
}
