//! Dumps as they are, and as they should not be. The archives in `fixtures/stack_exchange` were
//! written by py7zr 1.x from `Posts.xml` beside them, behind a `Badges.xml` in one solid block.

#![allow(clippy::unwrap_used)]

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::document::Document;

const POSTS: &str = include_str!("../../../fixtures/stack_exchange/Posts.xml");
const LZMA2: &[u8] = include_bytes!("../../../fixtures/stack_exchange/lzma2.7z");
const BZIP2: &[u8] = include_bytes!("../../../fixtures/stack_exchange/bzip2.7z");
const PPMD: &[u8] = include_bytes!("../../../fixtures/stack_exchange/ppmd.7z");

fn options() -> StackExchangeSource {
    StackExchangeSource::files(Vec::new())
}

fn read_file(
    source: &StackExchangeSource,
    name: &str,
    bytes: &[u8],
    memory_bytes: u64,
) -> Result<Vec<Record>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let input = list_inputs("paths", &[path]).unwrap().remove(0);
    let read = std::cell::Cell::new(0);
    let context = ReadContext {
        source: "stackexchange",
        input: &input,
        scratch: &scratch,
        memory_bytes,
        bytes_read: &|count| read.set(read.get() + count),
    };
    let mut records = Vec::new();
    source.read(&context, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    assert!(read.get() > 0);
    Ok(records)
}

fn read(source: &StackExchangeSource, xml: &str) -> Vec<Record> {
    read_file(source, "dba.stackexchange.com.xml", xml.as_bytes(), 1 << 30).unwrap()
}

fn documents(records: &[Record]) -> Vec<&Document> {
    let found = records.iter().filter_map(|record| match record {
        Record::Document(document) => Some(document),
        Record::Rejected(_) => None,
    });
    found.collect()
}

fn reasons(records: &[Record]) -> Vec<&str> {
    let names = records.iter().filter_map(|record| match record {
        Record::Rejected(rejection) => Some(rejection.reason.name()),
        Record::Document(_) => None,
    });
    names.collect()
}

const FIRST: &str = "Q: Sorting & more <3 How do I sort?\n\nfor x in y:\n    print(x < 1)\nA: Ten, linked.\
    \n\n* one\n* two\nA: Accepted nine.\nA: Nine.";

#[test]
fn threads_are_joined_and_sorted_by_number() {
    let records = read(&options(), POSTS);
    let found = documents(&records);
    let ids: Vec<_> = found.iter().map(|document| document.id.as_str()).collect();
    assert_eq!(
        ids,
        ["dba.stackexchange.com/1", "dba.stackexchange.com/7", "dba.stackexchange.com/10"]
    );
    // 10 before 9 (as text it would be after), the accepted of the equal ones first.
    assert_eq!(found[0].text, FIRST);
    assert_eq!(found[1].text, "Q: Second Ünïcode?\nA: Too early.");
    assert_eq!(found[2].text, "Q: Third Nobody knows.");
    assert_eq!(found[0].url.as_deref(), Some("https://dba.stackexchange.com/questions/1"));
    assert_eq!(found[0].created.as_deref(), Some("2010-07-19T19:12:12.510Z"));
    assert_eq!(
        serde_json::Value::Object(found[0].metadata()),
        serde_json::json!({
            "question_score": 27, "answer_scores": [10, 9, 9], "answer_ids": [3, 4, 2],
            "answers_left_out": 0, "tags": ["python", "sorting"], "accepted": 4,
            "creation_date": "2010-07-19T19:12:12.510", "license": "CC BY-SA 2.5",
        })
    );
    assert_eq!(found[1].metadata()["tags"], serde_json::json!(["c#", ".net"]));
    assert_eq!(found[1].metadata()["closed_date"], "2011-01-01T00:00:00.000");
    assert_eq!(reasons(&records), ["post_tag_wiki", "orphan_answer"]);
    for record in &records {
        if let Record::Rejected(rejection) = record {
            assert!(POSTS[rejection.offset as usize..].starts_with("<row Id="), "{rejection:?}");
        }
    }
}

#[test]
fn options_choose_answers_and_layout() {
    let eleuther = StackExchangeSource {
        layout: ThreadLayout::Eleuther,
        min_answer_score: Some(3),
        max_answers: Some(2),
        keep_unanswered: false,
        ..options()
    };
    let records = read(&eleuther, POSTS);
    let found = documents(&records);
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].text,
        "Q:\n\nSorting & more <3\n\nHow do I sort?\n\nfor x in y:\n    print(x < 1)\n\nA:\n\nTen, \
         linked.\n\n* one\n* two\n\nA:\n\nAccepted nine."
    );
    assert_eq!(found[0].metadata()["answers_left_out"], 1);
    assert_eq!(reasons(&records), ["post_tag_wiki", "orphan_answer", "unanswered", "unanswered"]);
    let yaml = "{paths: [a], layout: redpajama, sites: [largest_28], min_answer_score: -1}";
    let parsed: StackExchangeSource = serde_yaml::from_str(yaml).unwrap();
    parsed.validate("x").unwrap();
    assert_eq!(parsed.layout, ThreadLayout::RedPajama);
    for bad in
        ["{paths: []}", "{paths: [a], max_answers: 0}", "{paths: [a], max_expanded_bytes: 0}"]
    {
        let parsed: StackExchangeSource = serde_yaml::from_str(bad).unwrap();
        assert!(parsed.validate("x").is_err(), "{bad}");
    }
}

#[test]
fn every_container_and_memory_cap_gives_the_same() {
    let expected = read(&options(), POSTS);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(POSTS.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(POSTS.as_bytes(), 3).unwrap();
    for (name, bytes) in [
        ("dba.stackexchange.com-Posts.xml.gz", &gzip[..]),
        ("dba.stackexchange.com.Posts.xml.zst", &zstd),
        ("dba.stackexchange.com.7z", LZMA2),
        ("dba.stackexchange.com-Posts.7z", BZIP2),
        ("dba.stackexchange.com.7z", PPMD),
    ] {
        assert_eq!(read_file(&options(), name, bytes, 1 << 30).unwrap(), expected, "{name}");
        assert_eq!(read_file(&options(), name, bytes, 0).unwrap(), expected, "{name}");
    }
    let unix = POSTS.replace("\r\n", "\n").replace('\u{feff}', "");
    assert_eq!(documents(&read(&options(), &unix)), documents(&expected));

    let mut many = String::from("<posts>");
    for id in 1..3000 {
        let (kind, parent) = if id % 3 == 1 { (1, 0) } else { (2, id - (id - 1) % 3) };
        many += &format!(
            "<row Id=\"{id}\" PostTypeId=\"{kind}\" ParentId=\"{parent}\" Score=\"{}\" Body=\"{}\"/>",
            id % 11,
            "text ".repeat(id % 50)
        );
    }
    many += "</posts>";
    let name = "dba.stackexchange.com.xml";
    let whole = read_file(&options(), name, many.as_bytes(), 1 << 30).unwrap();
    assert_eq!(documents(&whole).len(), 1000 - reasons(&whole).len());
    assert_eq!(read_file(&options(), name, many.as_bytes(), 1).unwrap(), whole);
}

#[test]
fn damaged_archives_are_errors_not_short_files() {
    let name = "dba.stackexchange.com.7z";
    for archive in [LZMA2, BZIP2, PPMD] {
        for length in (0..archive.len()).step_by(13) {
            assert!(read_file(&options(), name, &archive[..length], 1 << 30).is_err(), "{length}");
        }
        let mut damaged = archive.to_vec();
        // In the packed data, which begins behind the 32 bytes of the signature header.
        damaged[200] ^= 0x55;
        let error = read_file(&options(), name, &damaged, 1 << 30).unwrap_err();
        assert!(matches!(error, DataError::Archive { .. } | DataError::BadFile { .. }), "{error}");
    }
    let name = "dba.stackexchange.com.xml";
    let end = POSTS.len() - "</posts>".len();
    for length in [0, 2, 30, 60, end / 2, end - 3, end, end + 7] {
        let cut = &POSTS.as_bytes()[..length];
        assert!(read_file(&options(), name, cut, 1 << 30).is_err(), "{length}");
    }
    // Damage shows before the first document is handed on.
    let mut handed = 0;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, &POSTS.as_bytes()[..end]).unwrap();
    let input = list_inputs("paths", &[path]).unwrap().remove(0);
    let context = ReadContext {
        source: "s",
        input: &input,
        scratch: folder.path(),
        memory_bytes: 1 << 30,
        bytes_read: &|_| {},
    };
    let result = options().read(&context, &mut |record| {
        handed += usize::from(matches!(record, Record::Document(_)));
        Ok(())
    });
    assert!(result.is_err() && handed == 0);
}

#[test]
fn what_expands_or_declares_too_much_is_refused_by_name() {
    let small = StackExchangeSource { max_expanded_bytes: 500, ..options() };
    for (name, bytes) in [("a.com.7z", LZMA2), ("a.com.xml", POSTS.as_bytes())] {
        let error = read_file(&small, name, bytes, 1 << 30).unwrap_err().to_string();
        assert!(error.contains("max_expanded_bytes"), "{error}");
    }
    let bomb = "<?xml version=\"1.0\"?><!DOCTYPE posts [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]>\
                <posts><row Id=\"1\" PostTypeId=\"1\" Body=\"&b;\"/></posts>";
    let error = read_file(&options(), "a.com.xml", bomb.as_bytes(), 1 << 30).unwrap_err();
    assert!(error.to_string().contains("document type"), "{error}");
    let undeclared = "<posts><row Id=\"1\" PostTypeId=\"1\" Body=\"&b;\"/></posts>";
    assert_eq!(reasons(&read(&options(), undeclared)), ["bad_row"]);
    for (xml, why) in [("<badges></badges>", "<badges>"), ("", "no <posts>"), ("<html", "before")] {
        let error = read_file(&options(), "a.com.xml", format!(" {xml}").as_bytes(), 1 << 30)
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
    let error = read_file(&options(), "a.com.7z", b"no archive at all", 1 << 30).unwrap_err();
    assert!(error.to_string().contains("no 7z archive"), "{error}");
}

#[test]
fn bad_rows_cost_only_themselves() {
    let row =
        |id: u32| format!("<row Id=\"{id}\" PostTypeId=\"1\" Title=\"t\" Body=\"b{id}\" />\n");
    let latin = b"<row Id=\"9\" PostTypeId=\"1\" Body=\"caf\xe9\" />";
    let xml = [
        b"<posts>\n<!-- <row> -->".as_slice(),
        row(1).as_bytes(),
        b"<row Id=\"2\" PostTypeId=\"1\" Body=\"never ends\n",
        row(3).as_bytes(),
        b"<row Id=\"4\" PostTypeId=\"1\" Body=\"a > b\"></row> garbage ",
        b"<other/>",
        latin,
        format!("<row Id=\"5\" PostTypeId=\"1\" Body=\"{}\"/>", "x".repeat(2000)).as_bytes(),
        b"<row Id='6' PostTypeId='1' Score='nine'/>",
        row(3).as_bytes(),
        b"<row Id=\"7\" PostTypeId=\"1\"/>",
        row(8).as_bytes(),
        b"</posts>\n",
    ]
    .concat();
    let source = StackExchangeSource { max_record_bytes: 1000, ..options() };
    let records = read_file(&source, "a.com.xml", &xml, 1 << 30).unwrap();
    let ids: Vec<_> = documents(&records).iter().map(|document| document.id.as_str()).collect();
    assert_eq!(ids, ["a.com/1", "a.com/3", "a.com/4", "a.com/8"]);
    assert_eq!(
        reasons(&records),
        [
            "bad_xml",
            "bad_xml",
            "bad_xml",
            "bad_utf8",
            "too_long",
            "bad_row",
            "duplicate_id",
            "empty"
        ]
    );
}

#[test]
fn sites_are_found_chosen_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("dba.stackexchange.com.7z", LZMA2);
    write("stackoverflow.com-Posts.7z", PPMD);
    write("stackoverflow.com-Users.7z", b"not looked at");
    write("beer.stackexchange.com/Posts.xml", POSTS.as_bytes());
    write("beer.stackexchange.com/Users.xml", b"");
    let mut source = StackExchangeSource::files(vec!["**/*.{7z,xml}".into()]);
    source.make_paths_absolute(folder.path());
    let names = |source: &StackExchangeSource| -> Result<Vec<String>> {
        Ok(source.inputs("k")?.into_iter().map(|input| input.name).collect())
    };
    assert_eq!(
        names(&source).unwrap(),
        [
            "beer.stackexchange.com/Posts.xml",
            "dba.stackexchange.com.7z",
            "stackoverflow.com-Posts.7z"
        ]
    );
    for input in source.inputs("k").unwrap() {
        let counts = source.count(&input, &|_| {}).unwrap();
        assert_eq!((counts.questions, counts.answers, counts.other, counts.broken), (3, 5, 1, 0));
        assert_eq!(counts.posts(), 8);
        assert!(input.name.starts_with(&counts.site));
    }
    source.sites = vec![LARGEST.into()];
    assert_eq!(names(&source).unwrap(), ["dba.stackexchange.com.7z", "stackoverflow.com-Posts.7z"]);
    source.sites = vec!["beer.stackexchange.com".into()];
    assert_eq!(names(&source).unwrap(), ["beer.stackexchange.com/Posts.xml"]);
    source.sites = vec!["wine.stackexchange.com".into()];
    assert!(matches!(names(&source), Err(DataError::NoInput { .. })));
    write("beer.stackexchange.com.7z", LZMA2);
    source.sites.clear();
    assert!(names(&source).unwrap_err().to_string().contains("one file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn hostile_xml_does_not_panic(parts in proptest::collection::vec(prop_oneof![
        Just("<posts>"), Just("</posts>"), Just("<row "), Just("/>"), Just(">"), Just("<"),
        Just("Id=\"1\" "), Just("Id='2' "), Just("PostTypeId=\"1\" "), Just("PostTypeId=\"2\" "),
        Just("ParentId=\"1\" "), Just("Body=\"&lt;p&gt;&#xA;"), Just("\""), Just("'"), Just("&"),
        Just("<!--"), Just("-->"), Just("<?"), Just("?>"), Just("<!"), Just("é"), Just("\u{feff}"),
        Just("Score=\"9\" "), Just("/"), Just("=\""),
    ], 0..40)) {
        let xml = format!("<posts>{}</posts>", parts.concat());
        let _ = read_file(&options(), "a.com.xml", xml.as_bytes(), 1);
    }

    #[test]
    fn hostile_archives_do_not_panic(at in 0usize..2000, bits in 1u8.., which in 0usize..3) {
        let mut archive = [LZMA2, BZIP2, PPMD][which].to_vec();
        let at = at % archive.len();
        archive[at] ^= bits;
        let source = StackExchangeSource { max_expanded_bytes: 1 << 20, ..options() };
        let _ = read_file(&source, "a.com.7z", &archive, 1 << 30);
    }
}
