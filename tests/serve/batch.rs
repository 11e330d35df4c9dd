//! `altiplano batch run`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::server::checkpoint;
use crate::harness::{Finished, Running, altiplano};

/// The answers by id: texts, or what went wrong.
fn answers(path: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = lines.len();
    let said = |line: &Value| match line["error"].is_null() {
        true => json!([
            line["custom_id"],
            line["response"]["status_code"],
            line["response"]["body"]["choices"],
            line["response"]["body"]["error"]["param"],
        ]),
        false => json!([line["custom_id"], line["error"]["message"]]),
    };
    let by_id: BTreeMap<String, Value> =
        lines.iter().map(|line| (line["id"].as_str().unwrap().to_owned(), said(line))).collect();
    assert_eq!(by_id.len(), count, "an answer is there twice");
    by_id
}

fn batch(dir: &Path, output: &str) -> std::process::Command {
    let mut command = altiplano();
    command.args(["batch", "run", "--checkpoint"]).arg(checkpoint());
    command.args(["--input", "in.jsonl", "--output", output, "--json", "--threads", "1"]);
    command.args(["--max-num-seqs", "4"]).current_dir(dir);
    command
}

#[test]
fn a_batch_that_is_killed_goes_on_without_losing_or_repeating_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines: Vec<String> = (0..60)
        .map(|number| {
            let body = json!({"prompt": format!("The people {number}"), "max_tokens": 30, "ignore_eos": true});
            json!({"custom_id": format!("request-{number}"), "method": "POST", "url": "/v1/completions",
                   "body": body})
            .to_string()
        })
        .collect();
    lines[3] =
        json!({"custom_id": "bad", "url": "/v1/completions", "body": {"prompt": "a", "top_p": 7}})
            .to_string();
    lines[4] = "not JSON".into();
    lines[5] = json!({"custom_id": "other", "url": "/v1/embeddings", "body": {}}).to_string();
    fs::write(dir.path().join("in.jsonl"), lines.join("\n")).unwrap();
    let whole: Finished = batch(dir.path(), "whole.jsonl").output().unwrap().into();
    let whole = whole.fails(1, &["in.jsonl: 3 of 60 lines failed", "line 4: top_p", "whole.jsonl"]);
    assert_eq!(whole.json(), json!({"answered": 60, "failed": 3, "skipped": 0}));
    let expected = answers(&dir.path().join("whole.jsonl"));
    assert_eq!(expected["batch_req_4"], json!(["bad", 400, null, "top_p"]));
    assert!(expected["batch_req_5"][1].as_str().unwrap().contains("in.jsonl: line 5: is not JSON"));
    assert!(expected["batch_req_6"][1].as_str().unwrap().contains("/v1/embeddings"));

    let output = dir.path().join("killed.jsonl");
    let killed = Running::start(&mut batch(dir.path(), "killed.jsonl"));
    while fs::read_to_string(&output).unwrap_or_default().lines().count() < 8 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    killed.signal("KILL");
    killed.finish();
    // As if the kill had cut a line short.
    let torn = fs::read_to_string(&output).unwrap() + "{\"id\":\"batch_req_9";
    fs::write(&output, torn).unwrap();
    let resumed: Finished = batch(dir.path(), "killed.jsonl").output().unwrap().into();
    let report = resumed.fails(1, &["lines failed"]).json();
    assert!(report["skipped"].as_u64().unwrap() >= 5, "{report}");
    assert_eq!(answers(&output), expected);
    // Again: what failed is tried again, and a line that was mended is answered.
    lines[3] = lines[3].replace("7", "0.7");
    fs::write(dir.path().join("in.jsonl"), lines.join("\n")).unwrap();
    let again: Finished = batch(dir.path(), "killed.jsonl").output().unwrap().into();
    let again = again.fails(1, &["2 of 3 lines failed", "line 5"]);
    assert_eq!(again.json(), json!({"answered": 3, "failed": 2, "skipped": 57}));
    let mended = answers(&output);
    assert_eq!(mended["batch_req_4"][1], 200);
    assert_eq!(mended.len(), 60);
    assert_eq!(mended["batch_req_60"], expected["batch_req_60"]);
    // Nothing is left to do.
    (lines[4], lines[5]) = (lines[7].clone(), lines[8].clone());
    fs::write(dir.path().join("in.jsonl"), lines.join("\n")).unwrap();
    let last: Finished = batch(dir.path(), "killed.jsonl").output().unwrap().into();
    assert_eq!(last.ok().json(), json!({"answered": 2, "failed": 0, "skipped": 58}));
    let last: Finished = batch(dir.path(), "killed.jsonl").output().unwrap().into();
    assert_eq!(last.ok().json()["skipped"], 60);
    fs::write(dir.path().join("other.jsonl"), "{\"a\": 1}\n").unwrap();
    let other: Finished = batch(dir.path(), "other.jsonl").output().unwrap().into();
    other.fails(1, &["other.jsonl", "not an answer of a batch"]);
    // A file without a line break at its end is no answer that was cut short.
    let notes = dir.path().join("notes");
    fs::write(&notes, "my only notes").unwrap();
    let other: Finished = batch(dir.path(), "notes").output().unwrap().into();
    other.fails(1, &["notes", "not an answer of a batch"]);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "my only notes");
    let input: Finished = batch(dir.path(), "in.jsonl").output().unwrap().into();
    input.fails(1, &["in.jsonl", "is the input too"]);
    // Answers to other lines are not taken for those to these.
    lines[0] = lines[0].replace("request-0", "another");
    fs::write(dir.path().join("in.jsonl"), lines.join("\n")).unwrap();
    let other: Finished = batch(dir.path(), "killed.jsonl").output().unwrap().into();
    other.fails(1, &["killed.jsonl", "another", "request-0"]);
}
