//! The data commands end to end: raw files in, documents and counts out.

mod apply;
mod bad_input;
mod bucket_output;
mod mixture;
mod models;
mod one_writer;
mod ranks;
mod sharegpt;
mod source_steps;
mod sources;
mod storage;
mod web;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Finished, altiplano};

/// A folder with raw files and a data configuration, whose output is `out` below it.
struct Project {
    folder: PathBuf,
    /// Deletes the folder in the end.
    _guard: Option<TempDir>,
}

impl Project {
    /// `sources` is the list of sources in YAML.
    fn new(sources: &str) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let project = Self { folder: guard.path().to_owned(), _guard: Some(guard) };
        project.configure(sources);
        project
    }

    /// An empty one at `folder`, which stays.
    fn at(folder: PathBuf) -> Self {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self { folder, _guard: None }
    }

    fn configure(&self, sources: &str) {
        self.write("data.yaml", format!("output: out\nsources:\n{sources}"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// `data COMMAND` on the configuration.
    fn command(&self, command: &str, arguments: &[&str]) -> std::process::Command {
        let mut line = altiplano();
        // A job array around the tests is not meant.
        for name in ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"] {
            line.env_remove(name);
        }
        line.args(["data", command]).arg(self.path("data.yaml")).args(arguments);
        line
    }

    /// `data run`, which may fail.
    fn try_run(&self, arguments: &[&str]) -> Finished {
        self.command("run", arguments).output().unwrap().into()
    }

    /// `data run --json`: the report, after its sums were checked.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Value {
        let report = self.try_run(&[arguments, &["--json"]].concat()).ok().json();
        for row in rows(&report) {
            assert_adds_up(row);
        }
        report
    }

    /// The documents of a source.
    fn documents(&self, source: &str) -> Vec<Value> {
        let mut line = altiplano();
        line.args(["data", "cat", "--format", "jsonl"])
            .arg(self.path("out/documents").join(source));
        json_lines(&Finished::from(line.output().unwrap()).ok().stdout)
    }

    /// What `data explain` says of `id`.
    #[track_caller]
    fn explain(&self, id: &str, source: &str) -> Value {
        let mut line = altiplano();
        line.args(["data", "explain", id]).arg(self.path("out"));
        line.args(["--source", source, "--json"]);
        Finished::from(line.output().unwrap()).ok().json()
    }
}

/// The rows of a report of `data run`.
fn rows(report: &Value) -> &Vec<Value> {
    report["waterfall"]["rows"].as_array().unwrap()
}

/// The row of one source.
#[track_caller]
fn row<'a>(report: &'a Value, source: &str) -> &'a Value {
    rows(report).iter().find(|row| row["source"] == source).unwrap()
}

fn count(value: &Value) -> i128 {
    value.as_i64().map_or(0, i128::from)
}

fn sum(map: &Value) -> i128 {
    map.as_object().into_iter().flat_map(|map| map.values()).map(count).sum()
}

/// Documents and bytes in = out + reasons, by sums of our own.
#[track_caller]
fn assert_adds_up(row: &Value) {
    let mut before: Option<(i128, i128)> = None;
    for step in row["steps"].as_array().unwrap() {
        let stats = &step["stats"];
        let (documents, bytes) = (count(&stats["docs_in"]), count(&stats["bytes_in"]));
        assert_eq!(before.unwrap_or((documents, bytes)), (documents, bytes), "{step}");
        let gone = sum(&stats["dropped_docs"]) + sum(&stats["errors"]);
        let split = stats.get("split_docs").map_or(0, count);
        assert_eq!(documents + split, count(&stats["docs_out"]) + gone, "{step}");
        let parts: i128 = stats["removed"]
            .as_object()
            .unwrap()
            .values()
            .map(|removed| count(&removed["bytes"]))
            .sum();
        let gone = sum(&stats["dropped_bytes"]) + parts + count(&stats["rewritten_bytes"]);
        assert_eq!(bytes, count(&stats["bytes_out"]) + gone, "{step}");
        before = Some((count(&stats["docs_out"]), count(&stats["bytes_out"])));
    }
    let sides = |unit: &str| {
        count(&row[format!("train_{unit}")]) + count(&row[format!("validation_{unit}")])
    };
    assert_eq!(before, Some((sides("documents"), sides("bytes"))), "{row}");
}

/// Reasons of all steps of a row with their counts.
fn reasons(row: &Value) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for step in row["steps"].as_array().unwrap() {
        for kind in ["dropped_docs", "errors"] {
            for (name, count) in step["stats"][kind].as_object().unwrap() {
                *reasons.entry(name.clone()).or_default() += count.as_u64().unwrap();
            }
        }
    }
    reasons
}

/// What [`reasons`] should be.
fn expected(reasons: &[(&str, u64)]) -> BTreeMap<String, u64> {
    reasons.iter().map(|&(name, count)| (name.to_owned(), count)).collect()
}

/// The metadata of a document, which `data cat` writes as a string.
#[track_caller]
fn metadata(document: &Value) -> Value {
    match &document["metadata"] {
        Value::String(text) => serde_json::from_str(text).unwrap(),
        object => object.clone(),
    }
}

fn texts(documents: &[Value]) -> Vec<&str> {
    documents.iter().map(|document| document["text"].as_str().unwrap()).collect()
}

fn ids(documents: &[Value]) -> Vec<&str> {
    documents.iter().map(|document| document["id"].as_str().unwrap()).collect()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `altiplano` with `input` on standard input.
fn run_with_input<S: AsRef<std::ffi::OsStr>>(arguments: &[S], input: &[u8]) -> Finished {
    let mut child = altiplano()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A command that finds its usage wrong does not read.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output().unwrap().into()
    })
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A record of a web archive with `headers` and its `Content-Length`.
pub(crate) fn warc_record(headers: &str, block: &[u8]) -> Vec<u8> {
    let length = block.len();
    let head = format!("WARC/1.0\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), block, b"\r\n\r\n"].concat()
}

/// A page of a WET file in the layout before 2020.
fn wet_page(number: usize, block: impl AsRef<[u8]>) -> Vec<u8> {
    let headers = format!(
        "WARC-Type: conversion\r\nWARC-Target-URI: http://www.example{number}.org/\r\n\
         WARC-Date: 2019-02-15T18:40:25Z\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n\
         WARC-Refers-To: <urn:uuid:x{number}>\r\nWARC-Block-Digest: sha1:DIGEST{number}\r\n\
         Content-Type: text/plain\r\n"
    );
    warc_record(&headers, block.as_ref())
}

/// The record a WET file begins with.
fn warc_info() -> Vec<u8> {
    warc_record("WARC-Type: warcinfo\r\nContent-Type: application/warc-fields\r\n", b"a: b\r\n")
}

/// Title and text of an ordinary page.
fn page_block(number: usize) -> String {
    // Words enough that half of the compressed page is not its end.
    let words: Vec<String> = (0..200).map(|n| format!("w{}", (n * 7919 + number) % 997)).collect();
    format!("Title {number}\nText of page {number}.\n{}\n", words.join(" "))
}

/// A file of a fixture folder.
fn fixture(path: &str) -> PathBuf {
    crate::harness::repository("tests/fixtures").join(path)
}

/// The first `share` of a file's bytes, as a broken download leaves them.
fn cut(path: &Path, share: f64) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let length = (bytes.len() as f64 * share) as usize;
    bytes[..length].to_vec()
}
