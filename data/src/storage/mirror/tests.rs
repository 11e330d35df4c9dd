//! What is kept of the bucket, and in which order files come.

use super::*;

#[test]
fn what_says_that_files_are_whole_comes_last() {
    let mut names = [
        "documents/a/manifest.json",
        "stats/a/stage0-00000.json",
        "documents/a/train-00000.parquet",
    ];
    names.sort_by_key(|name| rank(name));
    assert_eq!(names[0], "documents/a/train-00000.parquet");
    assert_eq!(names[2], "documents/a/manifest.json");
}

#[test]
fn names_of_a_bucket_stay_below_the_folder() {
    for name in ["a", "a/b.json"] {
        assert!(is_safe(name), "{name}");
    }
    for name in ["", "../a", "a/../b", "a//b", "/a", ".stored.jsonl", "a/.lock", "a\\b"] {
        assert!(!is_safe(name), "{name}");
    }
}

#[test]
fn a_torn_line_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(STORED);
    let line = |name: &str, etag: &str| {
        format!("{{\"name\":\"{name}\",\"etag\":{etag},\"bytes\":1,\"modified_nanos\":2}}\n")
    };
    let lines = [line("a", "\"1\""), line("b", "\"2\""), line("a", "\"3\""), line("b", "null")];
    let head = "{\"address\":\"s3://bucket/x\"}\n".to_owned();
    fs::write(&path, head + &lines.concat() + "{\"name\":\"c\",\"et").unwrap();
    assert!(read_stored(&path, Path::new("s3://bucket/y")).unwrap().is_empty());
    let stored = read_stored(&path, Path::new("s3://bucket/x")).unwrap();
    assert_eq!(stored.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(stored["a"].etag.as_deref(), Some("3"));
}
