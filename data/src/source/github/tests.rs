use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{BooleanArray, Int64Array, StringArray};
use parquet::arrow::ArrowWriter;

use super::*;
use crate::source::archive::tests::{gzip, tar_of};

const MIT: &[u8] = b"Permission is hereby granted, free of charge, to any person obtaining a copy \
    of this software. The above copyright notice and this permission notice shall be included.";
const GPL: &[u8] = b"GNU GENERAL PUBLIC LICENSE\n  Version 2, June 1991\n";

fn read(source: &GithubSource) -> (Vec<Record>, Result<()>) {
    let mut records = Vec::new();
    for input in source.inputs("github").unwrap() {
        let seen = std::cell::Cell::new(0);
        let context = ReadContext {
            source: "github",
            input: &input,
            scratch: Path::new(""),
            memory_bytes: 0,
            bytes_read: &|bytes| seen.set(seen.get() + bytes),
        };
        let result = source.read(&context, &mut |record| {
            records.push(record);
            Ok(())
        });
        assert!(seen.get() <= input.bytes, "{} of {} bytes", seen.get(), input.bytes);
        if result.is_err() {
            return (records, result);
        }
    }
    (records, Ok(()))
}

fn summary(records: &[Record]) -> Vec<String> {
    let line = |record: &Record| match record {
        Record::Document(document) => {
            format!("{} {}", document.id, document.metadata()["license"].as_str().unwrap())
        }
        Record::Rejected(rejection) => rejection.reason.name().to_owned(),
    };
    records.iter().map(line).collect()
}

#[test]
fn json_lines_of_bigquery_and_the_stack_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let lines = [
        r#"{"id":"1","size":"9","content":"int x;\n","binary":"false","copies":"3","repo_name":"a/b","ref":"refs/heads/master","path":"src/x.c","license":"MIT"}"#,
        r#"{"content":null,"binary":"true","repo_name":"a/b","path":"x.png","license":"mit"}"#,
        r#"{"content":"x = 1\n","lang":"Python","max_stars_repo_name":"c/d","max_stars_repo_path":"x.py","max_stars_repo_head_hexsha":"0f","max_stars_repo_licenses":["MIT","GPL-2.0"]}"#,
        r#"{"content":"no name"}"#,
        r#"{"content":" \n","path":"blank.c"}"#,
        r#"{"path":"x.c"}"#,
        "not json",
        "",
    ];
    let path = folder.path().join("dump.json.gz");
    std::fs::write(&path, gzip(lines.join("\n").as_bytes())).unwrap();
    let (records, result) = read(&GithubSource::new(vec![path], GithubFormat::Jsonl));
    result.unwrap();
    assert_eq!(
        summary(&records),
        [
            "a/b:src/x.c mit",
            "binary",
            "c/d@0f:x.py (gpl-2.0) and (mit)",
            // md5sum of `no name`
            "5e4b7a2ed0a3a7fd3ad16bb1a1ae2b16 unknown",
            "empty",
            "missing_text",
            "bad_json"
        ]
        .map(|line| if line.ends_with("unknown") {
            format!("{} unknown", content_md5("no name"))
        } else {
            line.to_owned()
        })
    );
    let Record::Document(first) = &records[0] else { panic!() };
    let metadata = first.metadata();
    assert_eq!(metadata["copies"], 3);
    assert_eq!((&metadata["ext"], &metadata["size"]), (&".c".into(), &7.into()));
    assert_eq!(metadata["content_md5"], content_md5("int x;\n"));
}

#[test]
fn the_hash_is_md5() {
    // From RFC 1321.
    assert_eq!(content_md5("abc"), "900150983cd24fb0d6963f7d28e17f72");
}

#[test]
fn parquet_is_read_with_and_without_its_optional_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let mut lists = ListBuilder::new(StringBuilder::new());
    lists.append_value([Some("BSD-3-Clause")]);
    lists.append_null();
    lists.append_value([Some("MIT")]);
    let batch = RecordBatch::try_from_iter([
        ("content", Arc::new(StringArray::from(vec![Some("a = 1\n"), Some("b = 2\n"), None])) as _),
        ("path", Arc::new(StringArray::from(vec![Some("a.py"), None, None])) as _),
        ("repo_name", Arc::new(StringArray::from(vec![Some("r/a"), None, None])) as _),
        ("licenses", Arc::new(lists.finish()) as _),
        ("copies", Arc::new(Int64Array::from(vec![2, 1, 1])) as _),
        ("binary", Arc::new(BooleanArray::from(vec![false, false, true])) as _),
    ])
    .unwrap();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let source = GithubSource::new(vec![path.clone()], GithubFormat::Parquet);
    let (records, result) = read(&source);
    result.unwrap();
    let hash = format!("{} unknown", content_md5("b = 2\n"));
    assert_eq!(summary(&records), ["r/a:a.py bsd-3-clause", &hash, "binary"]);

    let batch = batch.project(&[1]).unwrap();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert!(matches!(read(&source).1, Err(DataError::BadFile { .. })));
}

#[test]
fn repositories_are_read_with_their_licenses() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = tar_of(&[
        ("top/a.py", b"a = 1\n"),
        ("top/vendor/x/b.py", b"b = 1\n"),
        ("top/c.py", b"# SPDX-License-Identifier: Apache-2.0\nc = 1\n"),
        ("../evil.py", b"d = 1\n"),
        ("top/data.bin", b"\0\x01"),
        ("top/LICENSE", MIT),
        ("top/vendor/x/COPYING", GPL),
        ("top/y/d.js", b"d = 1\n"),
        ("top/y/package.json", b"{\n  \"license\": \"MIT OR GPL-2.0\"\n}\n"),
    ]);
    let owner = folder.path().join("owner");
    std::fs::create_dir(&owner).unwrap();
    std::fs::write(owner.join("name.tar.gz"), gzip(&bytes)).unwrap();
    let pattern = folder.path().join("*/*.tar.gz");
    let source = GithubSource::new(vec![pattern], GithubFormat::Repositories);
    let (records, result) = read(&source);
    result.unwrap();
    assert_eq!(
        summary(&records),
        [
            "owner/name:a.py mit",
            "owner/name:vendor/x/b.py gpl-2.0",
            "owner/name:c.py apache-2.0",
            "unsafe_path",
            "binary",
            "owner/name:LICENSE mit",
            "owner/name:vendor/x/COPYING gpl-2.0",
            "owner/name:y/d.js mit or gpl-2.0",
            "owner/name:y/package.json mit or gpl-2.0",
        ]
    );
}

#[test]
fn damaged_repositories_give_no_document() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.tar.gz");
    let bytes = gzip(&tar_of(&[("a.py", b"a = 1\n"), ("b.py", &b"b = 1\n".repeat(1000))]));
    let source = GithubSource::new(vec![path.clone()], GithubFormat::Repositories);
    for length in (1..bytes.len()).step_by(11) {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (records, result) = read(&source);
        assert!(matches!(result, Err(DataError::Archive { .. })), "{length}: {result:?}");
        assert!(records.is_empty());
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(read(&source).0.len(), 2);

    let zeros: &[u8] = &vec![0; 4 << 20];
    std::fs::write(&path, gzip(&tar_of(&[("a.py", b"a = 1\n"), ("zeros", zeros)]))).unwrap();
    let bounded = GithubSource { max_expanded_bytes: 1 << 20, ..source };
    let (records, result) = read(&bounded);
    result.unwrap();
    assert_eq!(summary(&records), ["expands_too_far"]);
}
