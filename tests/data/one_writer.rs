//! One writer of an output at a time, what crashes leave, and sources too small to hold out of.

use std::fs;
use std::path::Path;

use altiplano_data::atomic_file::temporary_path;
use altiplano_data::lock::{lock, lock_share};

use super::{Project, ids, texts};
use crate::harness::{Finished, altiplano};

const SOURCE: &str = "- {name: x, text: {paths: [x.jsonl], format: jsonl}}\n";

/// A project with enough text for a tokenizer.
fn project() -> Project {
    let project = Project::new("");
    let tail = "tokenizer: {vocab_size: 300}\n";
    project.write("data.yaml", format!("output: out\nsources:\n{SOURCE}{tail}"));
    let line =
        |n: usize| format!("{{\"text\": \"The whale number {n} swims in the wide sea.\"}}\n");
    project.write("x.jsonl", (0..500).map(line).collect::<String>());
    project
}

fn top_level(project: &Project, command: &[&str]) -> Finished {
    altiplano().args(command).arg(project.path("data.yaml")).output().unwrap().into()
}

#[test]
fn the_second_process_on_an_output_is_told_of_the_first() {
    let project = project();
    let out = project.path("out");
    // This test is the first process.
    let first = lock(&out).unwrap();
    let pid = std::process::id().to_string();
    let words = ["out", "another altiplano process", pid.as_str()];
    project.try_run(&[]).fails(1, &words);
    project.try_run(&["--rank", "0", "--world-size", "2"]).fails(1, &words);
    let merge = project.command("merge", &[]).output().unwrap();
    Finished::from(merge).fails(1, &words);
    top_level(&project, &["tokenizer", "train"]).fails(1, &words);
    top_level(&project, &["tokenize"]).fails(1, &words);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "nothing but the lock");
    drop(first);
    project.run(&[]);
    top_level(&project, &["tokenizer", "train"]).ok();
    top_level(&project, &["tokenize"]).ok();
    assert!(!out.join(".lock").exists());

    // Ranks of one run side by side, others not.
    let first = lock_share(&out, 0, 2).unwrap();
    project.try_run(&["--rank", "1", "--world-size", "2"]).ok();
    project.try_run(&["--rank", "0", "--world-size", "2"]).fails(1, &words);
    project.try_run(&["--rank", "0", "--world-size", "3"]).fails(1, &words);
    project.try_run(&[]).fails(1, &words);
    drop(first);
    project.run(&[]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_crashes_leave_is_gone_after_the_next_start() {
    let project = project();
    project.run(&[]);
    top_level(&project, &["tokenizer", "train"]).ok();
    top_level(&project, &["tokenize"]).ok();
    let folders = ["", "documents/x", "stats/x", "dropped/x", "work/x", "tokens/x"]
        .map(|name| project.path("out").join(name));
    folders.iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    let clean: Vec<_> = folders.iter().map(|folder| names(folder)).collect();
    // Of a file and of a folder, by processes of another machine, of which nobody knows whether
    // they run, and one by a process that does: this one.
    let leave = || {
        for folder in &folders {
            fs::write(folder.join(".a.parquet.tmp.77.0123abcd.1f"), "x").unwrap();
            let scratch = folder.join(".scratch.tmp.77.0123abcd.1f.aB3xyz");
            fs::create_dir_all(&scratch).unwrap();
            fs::write(scratch.join("run-0"), "x").unwrap();
            fs::write(temporary_path(&folder.join("b.parquet")), "x").unwrap();
        }
    };
    leave();
    // Beside other ranks only what nobody writes is deleted: here nothing.
    project.try_run(&["--rank", "1", "--world-size", "2"]).ok();
    for (folder, clean) in folders.iter().zip(&clean) {
        assert_eq!(names(folder).len(), clean.len() + 3, "{}", folder.display());
    }
    project.run(&[]);
    top_level(&project, &["tokenize"]).ok();
    for (folder, clean) in folders.iter().zip(&clean) {
        assert_eq!(&names(folder), clean, "{}", folder.display());
    }
}

#[test]
fn a_holdout_of_nothing_is_an_error_that_says_what_to_set() {
    let project = Project::new("");
    let configure = |text: &str, holdout: &str| {
        project.write(
            "data.yaml",
            format!(
                "output: out\nsources:\n- {{name: x, text: {{paths: [\"*.txt\"]{text}}}}}\n\
                 holdout: {{{holdout}}}\n"
            ),
        );
    };
    let verse = |n: usize| format!("This is the verse with number {n}.\n\n");
    let text: String = (0..1000).map(verse).collect();
    project.write("input.txt", &text);
    // A single document is never held out, nor kept out of nothing.
    for holdout in ["fraction: 0.1", "bytes_per_source: 100", "fraction: 0.999999"] {
        configure("", holdout);
        project.try_run(&[]).fails(1, &["\"x\"", "1 documents", "`document_bytes: "]);
    }
    configure(", document_bytes: 500", "fraction: 0.1");
    let report = project.run(&[]);
    let row = super::row(&report, "x");
    let held = row["validation_documents"].as_u64().unwrap();
    assert!((3..15).contains(&held), "{held}");
    let documents = project.documents("x");
    assert_eq!(
        ids(&documents).iter().filter(|id| id.starts_with("input.txt/")).count(),
        documents.len()
    );
    // Documents in the order of the file are the file; held-out ones are apart.
    let mut parts: Vec<_> = ids(&documents).into_iter().zip(texts(&documents)).collect();
    parts.sort_unstable();
    assert_eq!(parts.into_iter().map(|(_, text)| text).collect::<String>(), text);

    // A few documents.
    fs::remove_file(project.path("input.txt")).unwrap();
    for name in ["a.txt", "b.txt", "c.txt"] {
        project.write(name, verse(1));
    }
    configure("", "fraction: 0.000001");
    let words = ["3 documents", "`holdout.bytes_per_source: 1`", "`document_bytes: "];
    project.try_run(&[]).fails(1, &words);
    assert!(!project.path("out/documents/x/manifest.json").exists());
    configure("", "bytes_per_source: 1");
    project.run(&[]);
    configure(", document_bytes: 5", "fraction: 0.1");
    project.try_run(&[]).fails(2, &["document_bytes", "100 to"]);
    configure(", format: jsonl, document_bytes: 500", "fraction: 0.1");
    project.try_run(&[]).fails(2, &["document_bytes", "`jsonl`"]);
}
