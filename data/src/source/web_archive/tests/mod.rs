//! Archives as crawlers write them, and as they should not be.

#![allow(clippy::unwrap_used)]

mod damage;

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::document::Document;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A record with `headers` and their `Content-Length`.
fn record(kind: &str, headers: &str, block: &[u8]) -> Vec<u8> {
    let length = block.len();
    let head =
        format!("WARC/1.0\r\nWARC-Type: {kind}\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), block, b"\r\n\r\n"].concat()
}

/// A page of a WET file, in the layout before 2020.
fn wet(number: usize, block: &[u8]) -> Vec<u8> {
    let headers = format!(
        "WARC-Target-URI: http://www.example{number}.org/a?b\r\nWARC-Date: 2019-02-15T18:40:25Z\r\n\
         WARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Refers-To: <urn:uuid:x>\r\n\
         WARC-Block-Digest: sha1:DIGEST{number}\r\nContent-Type: text/plain\r\n"
    );
    record("conversion", &headers, block)
}

fn page(number: usize) -> Vec<u8> {
    // Enough different text that damage in the middle is in the middle of the compressed bytes.
    let words: Vec<String> =
        (0..400u64).map(|n| format!("w{}", n.wrapping_mul(n + number as u64 + 7) % 9973)).collect();
    format!("Title {number}\n  Text of page {number}. \n{}\n", words.join(" ")).into_bytes()
}

fn info() -> Vec<u8> {
    record("warcinfo", "Content-Type: application/warc-fields\r\n", b"Software-Info: x\r\n")
}

fn read_with(source: &WebArchiveSource, bytes: &[u8]) -> Result<Vec<Record>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("CC-MAIN-1.warc.wet.gz");
    std::fs::write(&path, bytes).unwrap();
    let input = list_inputs("paths", &[path]).unwrap().remove(0);
    let total = std::cell::Cell::new(0);
    let context = ReadContext {
        source: "cc",
        input: &input,
        scratch: Path::new(""),
        memory_bytes: 0,
        bytes_read: &|read| total.set(total.get() + read),
    };
    let mut records = Vec::new();
    source.read(&context, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    assert_eq!(total.get(), bytes.len() as u64);
    Ok(records)
}

fn read(bytes: &[u8]) -> Vec<Record> {
    read_with(&WebArchiveSource::files(Vec::new()), bytes).unwrap()
}

fn documents(records: &[Record]) -> Vec<&Document> {
    let found = records.iter().filter_map(|record| match record {
        Record::Document(document) => Some(document),
        Record::Rejected(_) => None,
    });
    found.collect()
}

/// Names of the reasons why records are not documents, `record_warcinfo` left out.
fn reasons(records: &[Record]) -> Vec<&str> {
    let names = records.iter().filter_map(|record| match record {
        Record::Rejected(rejection) => Some(rejection.reason.name()),
        Record::Document(_) => None,
    });
    names.filter(|name| *name != "record_warcinfo").collect()
}

/// `Title n` of each document.
fn titles(records: &[Record]) -> Vec<String> {
    let title = |document: &&Document| document.metadata()["title"].as_str().unwrap().to_owned();
    documents(records).iter().map(title).collect()
}

#[test]
fn both_header_layouts_are_read_by_name() {
    let newer = record(
        "conversion",
        "WARC-Target-URI: <https://user@news.example.org:8080/x>\r\n\
         WARC-Date: 2023-01-26T22:06:23Z\r\nwarc-block-digest:\r\n sha1:ABC\r\n\
         WARC-Identified-Content-Language: eng,fra\r\nContent-Type: text/plain\r\n",
        "Ünïcode\n a \u{a0}\n\nb\r\nc\rd".as_bytes(),
    );
    let block = "The title\nFirst line\n\t second  \n\nlast\n";
    let file = [gzip(&info()), gzip(&wet(1, block.as_bytes())), gzip(&newer)].concat();
    let records = read(&file);
    assert_eq!(records.len(), 3);
    assert!(
        matches!(&records[0], Record::Rejected(info) if info.reason.name() == "record_warcinfo"
        && !info.reason.is_error() && info.bytes == 18)
    );
    let found = documents(&records);
    assert_eq!(found[0].id, format!("CC-MAIN-1.warc.wet.gz/{:012}", gzip(&info()).len()));
    assert_eq!(found[0].text, "First line\nsecond\n\nlast");
    assert_eq!(found[0].url.as_deref(), Some("http://www.example1.org/a?b"));
    assert_eq!(found[0].created.as_deref(), Some("2019-02-15T18:40:25Z"));
    assert_eq!(
        serde_json::Value::Object(found[0].metadata()),
        serde_json::json!({
            "title": "The title", "digest": "sha1:DIGEST1", "length": 23, "nlines": 4,
            "date_download": "2019-02-15T18:40:25Z", "source_domain": "www.example1.org",
            "cc_segment": "CC-MAIN-1.warc.wet.gz",
        })
    );
    assert_eq!(found[1].text, "a\n\nb\nc\nd");
    assert_eq!(found[1].url.as_deref(), Some("https://user@news.example.org:8080/x"));
    let metadata = found[1].metadata();
    assert_eq!(metadata["title"], "Ünïcode");
    assert_eq!(metadata["digest"], "sha1:ABC");
    assert_eq!(metadata["source_domain"], "user@news.example.org:8080");
}

#[test]
fn members_and_compressions_make_no_difference() {
    let parts = [info(), wet(1, &page(1)), wet(2, &page(2)), wet(3, &page(3))];
    let whole = parts.concat();
    let expected = read(&parts.iter().flat_map(|part| gzip(part)).collect::<Vec<_>>());
    assert_eq!(titles(&expected), ["Title 1", "Title 2", "Title 3"]);
    let same = |bytes: &[u8], what: &str| {
        let found = read(bytes);
        let without_ids = |records: &[Record]| -> Vec<Document> {
            let document = |document: &Document| Document { id: String::new(), ..document.clone() };
            documents(records).into_iter().map(document).collect()
        };
        assert_eq!(without_ids(&found), without_ids(&expected), "{what}");
        assert_eq!(reasons(&found), [""; 0], "{what}");
    };
    same(&whole, "plain");
    same(&["\u{feff}".as_bytes(), &whole].concat(), "a byte order mark");
    same(&gzip(&whole), "one member");
    let third = whole.len() / 3;
    let three: Vec<u8> = whole.chunks(third + 1).flat_map(gzip).collect();
    same(&three, "three members cut anywhere");
    let frames: Vec<u8> =
        parts.iter().flat_map(|part| zstd::encode_all(&part[..], 3).unwrap()).collect();
    same(&frames, "Zstandard");
    let skippable = [&[0x5d, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], &frames[..]].concat();
    same(&skippable, "Zstandard with a skippable frame");
    same(&[gzip(&whole), vec![0; 1000]].concat(), "zeros at the end");
    let named: Vec<u8> = parts
        .iter()
        .flat_map(|part| {
            let mut encoder = flate2::GzBuilder::new()
                .filename("a.warc")
                .comment("c")
                .extra(vec![1; 20])
                .write(Vec::new(), Compression::fast());
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap()
        })
        .collect();
    same(&named, "members with names");
    let unix = String::from_utf8(whole).unwrap().replace("\r\n", "\n");
    same(unix.as_bytes(), "line feeds only");
}

#[test]
fn a_page_may_hold_the_line_warc() {
    let inner = wet(9, b"Fake\nnot a record\n");
    let block = [b"Real\nbefore\n\nWARC/1.0\r\n\r\n\r\n".as_slice(), &inner, b"after\n"].concat();
    for file in [
        [gzip(&wet(1, &block)), gzip(&wet(2, &page(2)))].concat(),
        [wet(1, &block), wet(2, &page(2))].concat(),
    ] {
        let records = read(&file);
        assert_eq!(titles(&records), ["Real", "Title 2"]);
        let text = &documents(&records)[0].text;
        assert!(text.contains("\nWARC/1.0\n") && text.ends_with("\nafter"), "{text}");
    }
}

#[test]
fn awkward_text_is_counted_or_kept() {
    let long = [b"Long\n".as_slice(), &b"word ".repeat(1_000_000)].concat();
    let file: Vec<u8> = [
        wet(0, "\u{feff}Mark\ntext".as_bytes()),
        wet(1, b"Nul\nte\0xt\0"),
        wet(2, &long),
        wet(3, b"Latin\ncaf\xe9"),
        wet(4, b"Only a title\n"),
        wet(5, b""),
        record("conversion", "", b"No address\ntext"),
        record("revisit", "", b"x"),
        record("request", "", b"x"),
        record("new-kind", "", b"x"),
        record("response", "Content-Type: text/dns\r\n", b"x"),
        wet(6, &page(6)),
    ]
    .iter()
    .flat_map(|part| gzip(part))
    .collect();
    let records = read(&file);
    assert_eq!(records.len(), 12);
    assert_eq!(titles(&records), ["Mark", "Nul", "Long", "Latin", "No address", "Title 6"]);
    let found = documents(&records);
    assert_eq!(found[0].text, "text");
    assert_eq!((found[1].text.as_str(), &found[1].metadata()["nul_bytes"]), ("text", &2.into()));
    assert_eq!(found[2].text.len(), 5 * 1_000_000 - 1);
    assert_eq!(found[3].text, "caf\u{fffd}");
    assert!(found[3].has_metadata("repaired_encoding") && !found[2].has_metadata("repaired"));
    assert_eq!(
        reasons(&records),
        ["empty", "empty", "record_revisit", "record_request", "record_other", "record_response"]
    );
    let small = WebArchiveSource { max_record_bytes: 10_000, ..WebArchiveSource::files(vec![]) };
    let records = read_with(&small, &file).unwrap();
    assert_eq!(records.len(), 12);
    assert_eq!(reasons(&records)[0], "too_long");
    assert_eq!(titles(&records).last().unwrap(), "Title 6");
}

fn response(headers: &str, body: &[u8]) -> Vec<u8> {
    let block = [format!("HTTP/1.1 200 OK\r\n{headers}\r\n").as_bytes(), body].concat();
    let headers = "WARC-Target-URI: http://example.org/\r\nWARC-Payload-Digest: sha1:P\r\n\
        WARC-Date: 2023-01-26T22:06:23Z\r\nContent-Type: application/http; msgtype=response\r\n";
    record("response", headers, &block)
}

#[test]
fn served_pages_become_text() {
    let html = "<html><head><title>Tïtle</title></head><body><p>Öne</p><p>Two</body></html>";
    let latin: Vec<u8> = html.chars().map(|c| c as u8).collect();
    let meta = html.replace("<head>", "<head><meta charset=windows-1252>");
    let meta: Vec<u8> = meta.chars().map(|c| c as u8).collect();
    let chunked = format!(
        "{:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        20,
        &html[..20],
        html.len() - 20,
        &html[20..]
    );
    let parts = [
        response("Content-Type: text/html; charset=utf-8\r\n", html.as_bytes()),
        response("Content-Type: TEXT/HTML;charset=ISO-8859-1\r\n", &latin),
        response("Content-Type: text/html\r\n", &meta),
        response(
            "content-type: application/xhtml+xml\r\ncontent-encoding: gzip\r\n",
            &gzip(html.as_bytes()),
        ),
        response("Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n", chunked.as_bytes()),
        response("", format!("<!DOCTYPE html>{html}").as_bytes()),
        record(
            "resource",
            "Content-Type: text/html\r\nWARC-Target-URI: file:///a\r\n",
            html.as_bytes(),
        ),
    ];
    let records = read(&parts.iter().flat_map(|part| gzip(part)).collect::<Vec<_>>());
    assert_eq!(reasons(&records), [""; 0]);
    for document in documents(&records) {
        assert_eq!(document.text, "Öne\nTwo");
        assert_eq!(document.metadata()["title"], "Tïtle");
    }
    assert_eq!(documents(&records).len(), 7);
    let metadata = documents(&records)[1].metadata();
    assert_eq!(
        (&metadata["digest"], &metadata["charset"]),
        (&"sha1:P".into(), &"windows-1252".into())
    );

    let mut torn =
        response("Content-Type: text/html\r\n", "<p>Ein Wörterbuch für Ärzte.".as_bytes());
    let end = torn.len() - 4;
    torn.splice(end..end, *b"\xff").for_each(drop);
    let length = |record: &[u8]| memchr::memmem::find(record, b"HTTP/1.1").unwrap();
    let (head, block) = torn.split_at(length(&torn));
    let claimed = block.len() - 5;
    let head = String::from_utf8(head.to_vec()).unwrap();
    let head = head.replace(
        &format!("Content-Length: {claimed}"),
        &format!("Content-Length: {}", claimed + 1),
    );
    let records = read(&[head.as_bytes(), block].concat());
    assert_eq!(documents(&records)[0].text, "Ein Wörterbuch für Ärzte.\u{fffd}");
    let gzipped = gzip(html.repeat(40).as_bytes());
    let binary = [
        response("Content-Type: text/html\r\n", b"%PDF-1.4 text"),
        response("Content-Type: text/plain\r\n", b"\x89PNG\r\n\x1a\nIHDR"),
        record(
            "response",
            "Content-Type: application/http\r\nWARC-Identified-Payload-Type: application/pdf\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>No text.",
        ),
        response(
            "Content-Type: text/html\r\nContent-Encoding: gzip\r\n",
            &gzipped[..gzipped.len() - 12],
        ),
    ];
    let records = read(&binary.concat());
    assert_eq!(reasons(&records), ["binary"; 3]);
    assert!(documents(&records)[0].text.starts_with("Öne\nTwo"));
    assert!(documents(&records)[0].has_metadata("cut_body"));

    let not_found = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>x";
    let others = [
        response("Content-Type: image/png\r\n", b"\x89PNG"),
        response("Content-Type: text/html\r\n", b"<script>x</script>"),
        record("response", "Content-Type: application/http\r\n", not_found),
        record("response", "Content-Type: application/http\r\n", b"garbage"),
        response("Content-Type: text/plain\r\n", b"plain\r\ntext"),
        wet(1, &page(1)),
    ]
    .concat();
    let records = read(&others);
    assert_eq!(reasons(&records), ["content_type", "empty", "http_status", "bad_http"]);
    assert_eq!(documents(&records)[0].text, "plain\ntext");

    for (format, expected) in [(WebArchiveFormat::Wet, 1), (WebArchiveFormat::Warc, 1)] {
        let source = WebArchiveSource { format, ..WebArchiveSource::files(vec![]) };
        assert_eq!(documents(&read_with(&source, &others).unwrap()).len(), expected);
    }
}

#[test]
fn arc_files_are_read() {
    let page = |n: usize| {
        format!("HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<title>T{n}</title><p>Page {n}")
    };
    let record = |address: &str, kind: &str, block: &str, length: usize| {
        format!("{address} 10.1.2.3 20080430204825 {kind} {length}\n{block}\n").into_bytes()
    };
    let version = "1 0 Example\nURL IP-address Archive-date Content-type Archive-length\n";
    let served = |n: usize, more: isize| {
        let length = page(n).len().checked_add_signed(more).unwrap();
        record(&format!("http://e.org/{n}"), "text/html", &page(n), length)
    };
    let parts = |more: isize| {
        [
            record("filedesc://a.arc", "text/plain", version, version.len()),
            record("dns:e.org", "text/dns", "20080430204825\ne.org. 1 IN A 10.1.2.3", 37),
            served(1, 0),
            served(2, more),
            served(3, 0),
        ]
    };
    for (more, compress) in
        [(0, true), (0, false), (-5, true), (-5, false), (40, true), (40, false)]
    {
        let parts = parts(more);
        let file = match compress {
            true => parts.iter().flat_map(|part| gzip(part)).collect(),
            false => parts.concat(),
        };
        let records = read(&file);
        assert_eq!(titles(&records), ["T1", "T2", "T3"], "{more} {compress}");
        assert_eq!(reasons(&records), ["record_response"], "{more} {compress}");
        let first = documents(&records)[0];
        assert_eq!(first.text, "Page 1");
        assert_eq!(first.url.as_deref(), Some("http://e.org/1"));
        assert_eq!(first.created.as_deref(), Some("2008-04-30T20:48:25Z"));
    }
}

/// The fixtures were written by warcio 1.8 and, for Zstandard, by FastWARC 2.0.
#[test]
fn archives_of_other_writers_are_read() {
    let served: [&[u8]; 2] = [
        include_bytes!("../../../../fixtures/web_archive/warcio.warc.gz"),
        include_bytes!("../../../../fixtures/web_archive/fastwarc.warc.zst"),
    ];
    for file in served {
        let records = read(file);
        assert_eq!(titles(&records), ["First", "Second", "Third", "Fourth"]);
        let texts: Vec<_> = documents(&records).iter().map(|page| page.text.as_str()).collect();
        assert_eq!(texts, ["Café\none\ntwo", "a\nb", "x\n  y", "Straße"]);
        let others = ["record_request"; 4].into_iter().chain(["record_revisit"]);
        assert_eq!(reasons(&records), others.collect::<Vec<_>>());
        let first = documents(&records)[0];
        assert_eq!(first.url.as_deref(), Some("http://example.org/plain"));
        assert_eq!(first.created.as_deref(), Some("2023-01-26T22:06:23Z"));
        let digest = first.metadata()["digest"].to_string();
        assert!(digest.starts_with("\"sha1:"), "{digest}");
    }
    let records = read(include_bytes!("../../../../fixtures/web_archive/warcio.warc.wet.gz"));
    assert_eq!(titles(&records), ["Title", "Zweiter"]);
    let texts: Vec<_> = documents(&records).iter().map(|page| page.text.as_str()).collect();
    assert_eq!(texts, ["WARC/1.0\n\ntext", "Grüße"]);
}

#[test]
fn lists_name_files_below_a_root() {
    let folder = tempfile::tempdir().unwrap();
    // A folder with such a name is not a pattern.
    let base = folder.path().join("g[1]");
    let at = |name: &str| base.join(name);
    for name in ["data/crawl-data/a.wet.gz", "data/crawl-data/b[1].wet.gz", "more/c.wet.gz"] {
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        std::fs::write(at(name), gzip(&wet(1, &page(1)))).unwrap();
    }
    let mut source: WebArchiveSource = serde_yaml::from_str(
        "{list: wet.paths.gz, root: data, paths: ['more/*.gz'], format: wet, html: {list_marker: '- '}}",
    )
    .unwrap();
    source.make_paths_absolute(&base);
    source.validate("sources.cc.web_archive").unwrap();
    let with_list = |text: &str| {
        std::fs::write(at("wet.paths.gz"), gzip(text.as_bytes())).unwrap();
        source.inputs("sources.cc.web_archive")
    };
    let inputs = with_list(
        "https://data.example.org/crawl-data/b[1].wet.gz?x\n\n# comment\r\ncrawl-data/a.wet.gz\n",
    )
    .unwrap();
    let names: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["c.wet.gz", "crawl-data/a.wet.gz", "crawl-data/b[1].wet.gz"]);
    let error = with_list("crawl-data/a.wet.gz\ncrawl-data/z.wet.gz").unwrap_err().to_string();
    assert!(error.contains("1 of 2") && error.contains("crawl-data/z.wet.gz"), "{error}");
    for outside in ["../more/c.wet.gz", "https://example.org", "s3://b/../../more/c.wet.gz"] {
        assert!(with_list(outside).is_err(), "{outside}");
    }
    assert!(with_list("# nothing\n").is_err());
    let absolute = with_list(&at("data/crawl-data/a.wet.gz").display().to_string()).unwrap();
    assert_eq!(absolute[1].name, "crawl-data/a.wet.gz");

    let nothing: WebArchiveSource = serde_yaml::from_str("{}").unwrap();
    assert!(nothing.validate("x").unwrap_err().to_string().contains("x.paths"));
    assert!(serde_yaml::from_str::<WebArchiveSource>("{paths: [a], formt: wet}").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn hostile_bytes_do_not_panic(
        parts in proptest::collection::vec(prop_oneof![
            Just(b"WARC/1.0\r\n".to_vec()), Just(b"Content-Length: 5\r\n".to_vec()),
            Just(b"Content-Length: 99999999999\r\n".to_vec()), Just(b"\r\n".to_vec()),
            Just(b"WARC-Type: conversion\r\n".to_vec()), Just(b"WARC-Type: response\r\n".to_vec()),
            Just(b"HTTP/1.1 200 OK\r\n\r\n<p>".to_vec()), Just(vec![0x1f, 0x8b, 8, 0]),
            Just(vec![0x28, 0xb5, 0x2f, 0xfd]), proptest::collection::vec(any::<u8>(), 0..20),
        ], 1..30),
        compress in any::<bool>(),
    ) {
        let bytes = parts.concat();
        let file = if compress { [gzip(&bytes), bytes].concat() } else { bytes };
        if !file.is_empty() {
            let _ = read_with(&WebArchiveSource::files(vec![]), &file);
        }
    }
}
