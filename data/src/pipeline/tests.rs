#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::layout::stats_folder;
use super::*;
use crate::document::{Document, Split, list_documents};
use crate::json_file::write_json;
use crate::source::{TextFormat, TextSource, WikipediaSource};
use crate::step::WikitextOptions;

/// A folder of raw text in three formats.
fn raw(folder: &Path) -> Vec<SourceConfig> {
    let raw = folder.join("raw");
    fs::create_dir_all(&raw).unwrap();
    for number in 0..12 {
        let text = format!("Speech {number}.\r\n") + &"Fellow citizens. ".repeat(20 + number);
        fs::write(raw.join(format!("{number:02}.txt")), text).unwrap();
    }
    fs::write(raw.join("12.txt"), b"not ~{VPNDWVJ}~}").unwrap();
    fs::write(raw.join("13.txt"), b" \n").unwrap();

    let mut lines = String::new();
    for number in 0..40 {
        lines += &format!("{{\"id\": \"n{number}\", \"text\": \"Note {number} line\\nend\"}}\n");
    }
    lines += "\n{\"text\": 7}\n[1]\nbroken\n{\"text\": \"without id\"}";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(lines.as_bytes()).unwrap();
    fs::write(raw.join("notes.jsonl.gz"), gzip.finish().unwrap()).unwrap();

    let chapters: Vec<String> = (0..9).map(|n| format!("Chapter {n}\nCall me.")).collect();
    fs::write(raw.join("book.md"), chapters.join("\n***\n")).unwrap();

    let source = SourceConfig::of_text;
    vec![
        source("speeches", TextSource::files(vec![raw.join("*.txt")])),
        source(
            "notes",
            TextSource {
                format: Some(TextFormat::Jsonl),
                ..TextSource::files(vec![raw.join("notes.jsonl.gz")])
            },
        ),
        source(
            "book",
            TextSource {
                document_separator: Some("***".into()),
                ..TextSource::files(vec![raw.join("book.md")])
            },
        ),
    ]
}

fn holdout(bytes: u64) -> HoldoutConfig {
    HoldoutConfig { bytes_per_source: Some(bytes), ..HoldoutConfig::default() }
}

fn hidden() -> RunOptions {
    RunOptions { progress: ProgressMode::Hidden, ..RunOptions::default() }
}

fn documents(output: &Path, source: &str, split: Option<Split>) -> Vec<Document> {
    list_documents(&documents_folder(output, source), split)
        .unwrap()
        .iter()
        .flat_map(|file| file.reader().unwrap())
        .map(|document| document.unwrap())
        .collect()
}

/// The bytes of every file below `folder` except the counters, which hold processor times.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    walkdir::WalkDir::new(folder)
        .into_iter()
        .filter_entry(|entry| entry.file_name() != "stats")
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| (entry.path().to_owned(), fs::read(entry.path()).unwrap()))
        .collect()
}

#[test]
fn every_record_is_a_document_or_counted() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    let done = run(&output, &sources, &holdout(30), &hidden()).unwrap();
    let rows: BTreeMap<_, _> =
        done.waterfall.iter().flat_map(|w| &w.rows).map(|row| (row.source.as_str(), row)).collect();

    let speeches = &rows["speeches"].total();
    assert_eq!((speeches.docs_in, speeches.docs_out), (14, 12));
    assert_eq!(speeches.errors, BTreeMap::from([("undecodable_encoding".to_owned(), 1)]));
    assert_eq!(speeches.dropped_docs, BTreeMap::from([("empty".to_owned(), 1)]));
    assert_eq!(speeches.dropped_bytes["undecodable_encoding"], 16);
    let notes = &rows["notes"].total();
    assert_eq!((notes.docs_in, notes.docs_out), (44, 41));
    assert_eq!((notes.errors["bad_json"], notes.errors["missing_text"]), (2, 1));
    assert_eq!(rows["book"].total().docs_out, 9);
    for row in rows.values() {
        assert!(row.validation_documents >= 1 && row.validation_bytes >= 30);
        assert!(row.validation_bytes < 30 + 800, "{row:?}");
        assert_eq!(row.train_documents + row.validation_documents, row.total().docs_out);
    }

    let mut all = documents(&output, "speeches", None);
    all.sort_by(|a, b| a.id.cmp(&b.id));
    let ids: Vec<_> = all.iter().map(|document| document.id.clone()).collect();
    assert_eq!(ids, (0..12).map(|n| format!("{n:02}.txt")).collect::<Vec<_>>());
    assert!(all[3].text.starts_with("Speech 3.\nFellow"));
    let notes = documents(&output, "notes", None);
    assert!(notes.iter().any(|d| d.id == "n7" && d.text == "Note 7 line\nend"));
    assert!(notes.iter().any(|d| d.id == "notes.jsonl.gz/00000044" && d.text == "without id"));
    let book = documents(&output, "book", None);
    assert!(book.iter().any(|d| d.id == "book.md/00000008" && d.text == "Chapter 8\nCall me."));
    assert!(book.iter().all(|d| !d.text.contains("***")));
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let made: Vec<_> = [1, 2, 7]
        .map(|threads| {
            let output = folder.path().join("out");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            // Small tasks: several files per source.
            pool.install(|| run_in_tasks(&output, &sources, &holdout(30), &hidden(), 1000))
                .unwrap();
            let made = contents(&output);
            fs::remove_dir_all(&output).unwrap();
            made
        })
        .into();
    assert!(made[0].len() > 10);
    assert!(made[0] == made[1] && made[0] == made[2]);
}

#[test]
fn the_same_bytes_for_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let alone = folder.path().join("alone");
    let done = run_in_tasks(&alone, &sources, &holdout(30), &hidden(), 1000).unwrap();
    assert_eq!(done.manifests.len(), 3);

    let shared = folder.path().join("shared");
    let all_ranks = || {
        for rank in [2, 0, 1] {
            let options = RunOptions { rank: Rank::new(rank, 3).unwrap(), ..hidden() };
            let done = run_in_tasks(&shared, &sources, &holdout(30), &options, 1000).unwrap();
            assert_eq!((done.waiting.len(), done.waterfall), (3, None));
        }
    };
    let merge = || merge_in_tasks(&shared, &sources, &holdout(30), &hidden(), 1000);
    let early = merge().unwrap_err().to_string();
    assert!(early.contains("for every rank first"), "{early}");
    all_ranks();
    // The cut between training and validation is a decision over all documents.
    assert_eq!(merge().unwrap().waiting, ["speeches", "notes", "book"]);
    all_ranks();
    let merged = merge().unwrap();
    assert_eq!(merged.manifests, done.manifests);
    assert!(merged.waiting.is_empty() && merged.waterfall.is_some());
    let files = |output: &Path| -> Vec<_> {
        contents(output)
            .into_iter()
            .map(|(path, bytes)| (path.strip_prefix(output).unwrap().to_owned(), bytes))
            .collect()
    };
    assert_eq!(files(&alone.join("documents")), files(&shared.join("documents")));
    assert_eq!(files(&alone.join("dropped")), files(&shared.join("dropped")));
}

/// A source whose documents share lines and texts, with two decisions over all documents.
fn shared_lines(folder: &Path) -> SourceConfig {
    let raw = folder.join("pages");
    fs::create_dir_all(&raw).unwrap();
    for number in 0..30u8 {
        // Digits count as equal, so what is particular to a page is letters.
        let page = char::from(b'a' + number % 25);
        let own: String = ('p'..'v').map(|line| format!("Line {line} of page {page}.\n")).collect();
        let text = format!("Home\n{own}All rights reserved.\n");
        fs::write(raw.join(format!("{number:02}.txt")), text).unwrap();
    }
    let steps =
        "[{dedup_documents: {key: text}}, {ccnet_hash: {}}, {dedup_paragraphs: {mode: global}}]";
    SourceConfig {
        steps: serde_yaml::from_str(steps).unwrap(),
        ..SourceConfig::of_text("pages", TextSource::files(vec![raw.join("*.txt")]))
    }
}

#[test]
fn decisions_over_all_documents_are_the_same_for_threads_ranks_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [shared_lines(folder.path())];
    let run_with = |name: &str, threads: usize, memory_bytes: u64| {
        let output = folder.path().join(name);
        let options = RunOptions { memory_bytes, ..hidden() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let run = || run_in_tasks(&output, &sources, &holdout(200), &options, 400);
        pool.install(run).unwrap()
    };
    let alone = run_with("alone", 1, 1 << 30);
    for (name, threads, memory) in [("two", 2, 1 << 30), ("seven", 7, 8 << 20)] {
        assert_eq!(run_with(name, threads, memory).manifests, alone.manifests, "{name}");
    }
    let shared = folder.path().join("ranks");
    for _ in 0..4 {
        for rank in 0..3 {
            let options = RunOptions { rank: Rank::new(rank, 3).unwrap(), ..hidden() };
            run_in_tasks(&shared, &sources, &holdout(200), &options, 400).unwrap();
        }
        let merged = merge_in_tasks(&shared, &sources, &holdout(200), &hidden(), 400).unwrap();
        if merged.waiting.is_empty() {
            assert_eq!(merged.manifests, alone.manifests);
        }
    }
    assert!(shared.join("documents/pages/manifest.json").exists());

    let row = &alone.waterfall.unwrap().rows[0];
    let names: Vec<_> = row.steps.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(names, ["text", "dedup_documents", "ccnet_hash", "dedup_paragraphs"]);
    assert_eq!(row.steps[1].stats.dropped(), 5);
    assert_eq!(row.total().docs_out, 25);
    // What its signatures took counts for the step too.
    let stats = stats_folder(&folder.path().join("alone")).join("pages/stage0-00000.json");
    let first: StageRecord = serde_json::from_slice(&fs::read(stats).unwrap()).unwrap();
    assert!(first.signature_cpu_seconds > 0.0);
    assert!(row.steps[1].stats.cpu_seconds > first.signature_cpu_seconds);
    let kept = documents(&folder.path().join("alone"), "pages", None);
    assert!(kept.iter().all(|document| !document.text.contains("rights")));
    assert!(kept.iter().all(|document| document.text.contains("Line q of")));
    assert!(kept[0].metadata().contains_key("hashes"));
}

#[test]
fn a_changed_step_redoes_what_comes_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = [shared_lines(folder.path())];
    let output = folder.path().join("out");
    let run = |sources: &[SourceConfig]| {
        run_in_tasks(&output, sources, &HoldoutConfig::default(), &hidden(), 400).unwrap()
    };
    let first = run(&sources);
    assert_eq!(first.tasks_skipped, 0);
    assert_eq!(run(&sources).tasks_done, 0);
    sources[0].steps[2] = serde_yaml::from_str("{dedup_paragraphs: {mode: keep_first}}").unwrap();
    let changed = run(&sources);
    assert_eq!(changed.tasks_done, first.tasks_done / 3, "the last stage of three");
    assert_eq!(changed.tasks_skipped, first.tasks_done - changed.tasks_done);
    let kept = documents(&output, "pages", None);
    assert_eq!(kept.iter().filter(|document| document.text.contains("rights")).count(), 1);
}

#[test]
fn every_document_can_be_explained() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    run(&output, &sources, &holdout(30), &hidden()).unwrap();
    match explain(&output, "n7", None).unwrap() {
        Explanation::Kept { document, .. } => assert_eq!(document.text, "Note 7 line\nend"),
        other => panic!("{other:?}"),
    }
    let dropped = explain(&output, "12.txt@0", Some("speeches")).unwrap();
    let Explanation::Dropped { source, dropped: record, .. } = &dropped else {
        panic!("{dropped:?}");
    };
    assert_eq!((source.as_str(), record.reason.as_str()), ("speeches", "undecodable_encoding"));
    assert!(dropped.to_string().contains("undecodable_encoding"));
    let error = explain(&output, "nobody", None).unwrap_err();
    assert!(matches!(error, DataError::NoDocument { .. }), "{error}");
}

#[test]
fn a_rerun_does_only_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    let config = HoldoutConfig { fraction: Some(0.3), ..HoldoutConfig::default() };
    let run = || run_in_tasks(&output, &sources, &config, &hidden(), 1000).unwrap();
    let first = run();
    assert_eq!(first.tasks_skipped, 0);
    let before = contents(&output);
    let again = run();
    assert_eq!((again.tasks_done, again.tasks_skipped), (0, first.tasks_done));
    assert_eq!(contents(&output), before);

    // A crash in the middle: an output is gone, and an unfinished file lies around.
    let lost = documents_folder(&output, "speeches").join("train-00000.parquet");
    fs::remove_file(&lost).unwrap();
    let leftover = documents_folder(&output, "speeches").join(".train-00000.parquet.tmp.1");
    fs::write(&leftover, "half").unwrap();
    assert_eq!(run().tasks_done, 1);
    assert_eq!(contents(&output), before);

    // Inputs that go away take their documents with them.
    for number in 6..14 {
        let input = folder.path().join(format!("raw/{number:02}.txt"));
        fs::remove_file(input).unwrap();
    }
    run();
    assert_eq!(documents(&output, "speeches", None).len(), 6);
}

#[test]
fn the_holdout_does_not_move_when_documents_come() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    let config = HoldoutConfig { fraction: Some(0.4), ..HoldoutConfig::default() };
    let held = || -> Vec<String> {
        run(&output, &sources[..1], &config, &hidden()).unwrap();
        let held = documents(&output, "speeches", Some(Split::Validation));
        held.into_iter().map(|document| document.id).collect()
    };
    let before = held();
    fs::write(folder.path().join("raw/new.txt"), "A new speech.").unwrap();
    let after = held();
    assert!(before.iter().all(|id| after.contains(id)), "{before:?} {after:?}");
}

#[test]
fn holdouts_that_leave_nothing_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    let error = run(&output, &sources, &holdout(1 << 30), &hidden()).unwrap_err();
    assert!(matches!(error, DataError::Holdout { .. }), "{error}");
    let both = HoldoutConfig { fraction: Some(0.1), ..holdout(10) };
    assert!(matches!(run(&output, &sources, &both, &hidden()), Err(DataError::Config { .. })));
}

#[test]
fn a_truncated_archive_stops_the_run_and_leaves_no_document() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    let archive = folder.path().join("raw/notes.jsonl.gz");
    let bytes = fs::read(&archive).unwrap();
    fs::write(&archive, &bytes[..bytes.len() - 4]).unwrap();
    let error = run(&output, &sources, &HoldoutConfig::default(), &hidden()).unwrap_err();
    assert!(matches!(error, DataError::Archive { .. }), "{error}");
    let made = contents(&output);
    assert!(made.keys().all(|path| !path.to_string_lossy().contains("notes")), "{made:?}");
}

#[test]
fn counters_that_were_tampered_with_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    run(&output, &sources, &HoldoutConfig::default(), &hidden()).unwrap();
    let shown = report(&output).unwrap().to_string();
    assert!(shown.contains("undecodable_encoding"), "{shown}");
    let path = stats_folder(&output).join("speeches/stage0-00000.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"docs_in\": 14", "\"docs_in\": 15")).unwrap();
    let error = report(&output).unwrap_err();
    assert!(matches!(&error, DataError::Altered { path: named, .. } if *named == path), "{error}");
    assert!(matches!(report(&output.join("nothing")), Err(DataError::NotMade { .. })));
    // Counters with a checksum of their own, that do not add up.
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    record.as_object_mut().unwrap().remove("checksum");
    record["steps"][0]["stats"]["docs_in"] = 15.into();
    write_json(&path, &record).unwrap();
    assert!(matches!(report(&output), Err(DataError::Counters { .. })));
}

/// Every file below `folder`.
fn all_files(folder: &Path) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().map(|e| e.unwrap());
    files.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path()).collect()
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_not_as_it_was_written_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [shared_lines(folder.path())];
    let output = folder.path().join("out");
    let run = || run_in_tasks(&output, &sources, &holdout(200), &hidden(), 3000).unwrap();
    let first = run();
    let before = contents(&output);
    assert_eq!(run().tasks_done, 0);
    let files = all_files(&output);
    let of = |kind: &str| files.iter().filter(|f| f.to_str().unwrap().contains(kind)).count();
    // Two tasks, four stages of which three end with a decision.
    for (kind, count) in
        [("stats", 8), ("dropped", 8), (".notes", 6), (".decisions", 6), ("resolved", 3)]
    {
        assert_eq!(of(kind), count, "{kind}: {files:?}");
    }
    type Harm = fn(&Path);
    let harms: [Harm; 2] = [flip, |path| fs::remove_file(path).unwrap()];
    for path in &files {
        for harm in harms {
            harm(path);
            let again = run();
            assert_eq!(again.manifests, first.manifests, "{path:?}");
            assert!(contents(&output) == before, "{path:?}");
            assert!(again.tasks_done <= 1, "{path:?}: {again:?}");
            report(&output).unwrap();
        }
    }
}

#[test]
fn the_report_names_what_is_not_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [shared_lines(folder.path())];
    let output = folder.path().join("out");
    run_in_tasks(&output, &sources, &holdout(200), &hidden(), 3000).unwrap();
    let files = all_files(&output);
    let looked_at = |path: &&PathBuf| {
        ["documents", "stats"]
            .iter()
            .any(|part| path.strip_prefix(&output).unwrap().starts_with(part))
    };
    for path in files.iter().filter(looked_at) {
        let whole = fs::read(path).unwrap();
        flip(path);
        let error = report(&output).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        fs::remove_file(path).unwrap();
        let error = report(&output).unwrap_err().to_string();
        let name =
            if path.ends_with("manifest.json") { "not finished" } else { path.to_str().unwrap() };
        assert!(error.contains(name), "{path:?}: {error}");
        fs::write(path, whole).unwrap();
    }
    let stats = |task: usize| stats_folder(&output).join(format!("pages/stage3-{task:05}.json"));
    let (first, second) = (fs::read(stats(0)).unwrap(), fs::read(stats(1)).unwrap());
    fs::write(stats(0), &second).unwrap();
    fs::write(stats(1), &first).unwrap();
    let error = report(&output).unwrap_err().to_string();
    assert!(error.contains("swapped"), "{error}");
    fs::write(stats(0), first).unwrap();
    fs::write(stats(1), second).unwrap();
    report(&output).unwrap();
    // The log of what was dropped is read by what explains it.
    let log = output.join("dropped/pages/stage1-00000.jsonl.zst");
    flip(&log);
    let error = explain(&output, "nobody", None).unwrap_err().to_string();
    assert!(error.contains(log.to_str().unwrap()), "{error}");
}

#[test]
fn a_run_that_fails_leaves_no_source_that_looks_finished() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let output = folder.path().join("out");
    run(&output, &sources, &HoldoutConfig::default(), &hidden()).unwrap();
    let archive = folder.path().join("raw/notes.jsonl.gz");
    let whole = fs::read(&archive).unwrap();
    fs::write(&archive, &whole[..whole.len() - 4]).unwrap();
    run(&output, &sources, &HoldoutConfig::default(), &hidden()).unwrap_err();
    // The documents of the first run are still there.
    assert!(documents_folder(&output, "notes").join("train-00000.parquet").exists());
    for error in [
        report(&output).unwrap_err(),
        list_documents(&documents_folder(&output, "notes"), None).unwrap_err(),
        list_documents(&output, None).unwrap_err(),
    ] {
        assert!(matches!(error, DataError::Unfinished { .. }), "{error}");
    }
    // The other sources can be used.
    assert_eq!(documents(&output, "speeches", None).len(), 12);
    fs::write(&archive, whole).unwrap();
    run(&output, &sources, &HoldoutConfig::default(), &hidden()).unwrap();
    report(&output).unwrap();
}

#[test]
fn source_names_cannot_leave_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["", "..", "a/b", ".hidden", "a b"] {
        let mut sources = raw(folder.path());
        sources[0].name = name.into();
        let result =
            run(&folder.path().join("out"), &sources, &HoldoutConfig::default(), &hidden());
        assert!(matches!(result, Err(DataError::Config { .. })), "{name:?}");
    }
}

#[test]
fn parquet_documents_can_be_a_source_again() {
    let folder = tempfile::tempdir().unwrap();
    let sources = raw(folder.path());
    let first = folder.path().join("first");
    run(&first, &sources, &HoldoutConfig::default(), &hidden()).unwrap();
    let again = SourceConfig::of_text(
        "again",
        TextSource {
            format: Some(TextFormat::Parquet),
            ..TextSource::files(vec![first.join("documents/notes/*.parquet")])
        },
    );
    let second = folder.path().join("second");
    run(&second, std::slice::from_ref(&again), &HoldoutConfig::default(), &hidden()).unwrap();
    let of = |output: &Path, source: &str| -> Vec<(String, String)> {
        let all = documents(output, source, None);
        all.into_iter().map(|document| (document.id, document.text)).collect()
    };
    assert_eq!(of(&first, "notes"), of(&second, "again"));
}

/// Two dumps: pages in the first, the templates they call in the second.
fn dumps(folder: &Path, template: &str) -> Vec<SourceConfig> {
    let dump = |pages: &str| {
        format!(
            "<mediawiki><siteinfo><dbname>dewiki</dbname><namespaces><namespace key=\"10\">Vorlage\
             </namespace></namespaces></siteinfo>\n{pages}</mediawiki>\n"
        )
    };
    let page = |title: &str, namespace: u32, id: u32, text: &str| {
        format!(
            "<page><title>{title}</title><ns>{namespace}</ns><id>{id}</id><revision><id>1</id>\
             <timestamp>2012-01-01T00:00:00Z</timestamp><text>{text}</text></revision></page>\n"
        )
    };
    let pages: String = (1..30)
        .map(|id| {
            page(&format!("Ort {id}"), 0, id, &format!("Hier leben {{{{Volk|{id}}}}} Leute."))
        })
        .collect();
    fs::write(folder.join("a.xml"), dump(&pages)).unwrap();
    fs::write(folder.join("b.xml"), dump(&page("Vorlage:Volk", 10, 99, template))).unwrap();
    let step = WikitextOptions { min_words: 0, ..WikitextOptions::default() };
    vec![SourceConfig {
        name: "wiki".into(),
        wikipedia: Some(WikipediaSource::dumps(vec![folder.join("*.xml")])),
        steps: vec![StepConfig { wikitext: Some(step), ..StepConfig::default() }],
        ..SourceConfig::default()
    }]
}

#[test]
fn templates_of_one_dump_are_words_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let sources = dumps(folder.path(), "{{formatnum:{{#expr:1000*{{{1}}}}}}}");
    let none = HoldoutConfig::default();
    let options = RunOptions { progress: ProgressMode::Hidden, ..RunOptions::default() };
    let run_below = |name: &str, sources: &[SourceConfig]| {
        let output = folder.path().join(name);
        let report = run_in_tasks(&output, sources, &none, &options, 1).unwrap();
        (output, report)
    };
    let (output, report) = run_below("alone", &sources);
    assert_eq!(report.tasks_done, 2);
    let texts: Vec<String> =
        documents(&output, "wiki", None).into_iter().map(|document| document.text).collect();
    assert_eq!(texts[6], "Ort 7\n\nHier leben 7.000 Leute.");
    let steps = report.waterfall.as_ref().unwrap().rows[0].total();
    assert_eq!(steps.docs_out, 29);
    // Nothing is done twice, and the index is not either.
    let index = output.join("work/wiki/templates-00001.bin");
    let written = fs::metadata(&index).unwrap().modified().unwrap();
    let (_, again) = run_below("alone", &sources);
    assert_eq!((again.tasks_done, again.tasks_skipped), (0, 2));
    assert_eq!(fs::metadata(&index).unwrap().modified().unwrap(), written);
    // Ranks in either order write the same bytes, each with an index or the other's.
    let ranks = folder.path().join("ranks");
    for rank in [1, 0] {
        let options = RunOptions { rank: Rank::new(rank, 2).unwrap(), ..options.clone() };
        run_in_tasks(&ranks, &sources, &none, &options, 1).unwrap();
    }
    merge_in_tasks(&ranks, &sources, &none, &options, 1).unwrap();
    let without_folder = |output: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
        let files = contents(output).into_iter();
        let named = |path: PathBuf| path.strip_prefix(output).unwrap().to_owned();
        files.map(|(path, bytes)| (named(path), bytes)).collect()
    };
    assert!(without_folder(&ranks) == without_folder(&output));
    // An index that is not as it was written is made anew; a task that is to be done again reads it.
    fs::write(&index, "damaged").unwrap();
    fs::remove_file(stats_folder(&output).join("wiki/stage0-00000.json")).unwrap();
    let (_, repaired) = run_below("alone", &sources);
    assert_eq!(repaired.tasks_done, 1);
    assert!(without_folder(&ranks) == without_folder(&output));
    // Another template makes the pages of the other dump anew, and so does the option.
    let sources = dumps(folder.path(), "viele");
    let (_, changed) = run_below("alone", &sources);
    assert_eq!(changed.tasks_done, 2);
    assert!(documents(&output, "wiki", None)[0].text.ends_with("Hier leben viele Leute."));
    let mut off = sources.clone();
    off[0].steps[0].wikitext.as_mut().unwrap().expand_templates = false;
    let (_, changed) = run_below("alone", &off);
    assert_eq!(changed.tasks_done, 2);
    assert!(documents(&output, "wiki", None)[0].text.ends_with("Hier leben Leute."));
    assert!(!index.exists());
    let report = changed.waterfall.unwrap().lost_templates(10);
    assert!(report.contains("volk") && report.contains("29"), "{report}");
}
