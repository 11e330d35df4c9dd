//! The seven sources in miniature: the same bytes for any number of threads and ranks, after
//! `kill -9`, and only what changed done again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{Project, assert_adds_up, count, fixture, ids, json_lines, reasons, row, rows};
use crate::harness::{Finished, copy_dir, repository, run};

/// Bytes at which a group of input files is closed.
const GROUP_BYTES: u64 = 64 << 20;
/// Web archives, a group each, and stages of their steps.
const ARCHIVES: usize = 4;
const STAGES: usize = 4;

/// The quickstart's configuration on raw files of our own.
struct Miniature {
    project: Project,
    /// The report of a run with one thread.
    alone: Value,
}

/// Made once. The sources are the quickstart's, but of the web archives there are four, half of
/// them copies of the others, and each is a group by itself: zeros behind the last member, which
/// gzip ignores and which take no space on the disk, make them large.
fn miniature() -> &'static Miniature {
    static MINIATURE: OnceLock<Miniature> = OnceLock::new();
    MINIATURE.get_or_init(|| {
        let project = Project::at(Path::new(env!("CARGO_TARGET_TMPDIR")).join("seven_sources"));
        let archives = fs::read_dir(fixture("common_crawl")).unwrap().map(|e| e.unwrap().path());
        let mut archives: Vec<PathBuf> = archives.collect();
        archives.sort();
        assert_eq!(archives.len(), 2);
        for number in 0..ARCHIVES {
            project.write(&format!("raw/{number}.warc.wet.gz"), "");
            let path = project.path(&format!("raw/{number}.warc.wet.gz"));
            fs::copy(&archives[number % 2], &path).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_len(GROUP_BYTES).unwrap();
        }
        let config = fs::read_to_string(repository("configs/data/quickstart.yaml")).unwrap();
        let fixtures = fixture("");
        let config = config
            .replace("../../tests/fixtures/common_crawl/*", "raw/*")
            .replace("../../tests/fixtures/", fixtures.to_str().unwrap())
            .replace("../../runs/quickstart/data", "out");
        assert!(!config.contains("../") && config.contains("raw/*.warc.wet.gz"));
        project.write("data.yaml", config);
        let alone = project.run(&["--threads", "1"]);
        Miniature { project, alone }
    })
}

impl Miniature {
    /// An empty output folder for one test, and the override that names it.
    fn output(&self, name: &str) -> (PathBuf, String) {
        let output = self.project.path(name);
        let _ = fs::remove_dir_all(&output);
        let key = format!("output={}", output.display());
        (output, key)
    }

    fn groups(&self) -> u64 {
        self.alone["groups_done"].as_u64().unwrap()
    }
}

/// The documents, the manifests and what was dropped, byte for byte. The counters hold processor
/// times.
fn contents(output: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for kind in ["documents", "dropped"] {
        for source in fs::read_dir(output.join(kind)).unwrap() {
            for file in fs::read_dir(source.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                let name = path.strip_prefix(output).unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

#[track_caller]
fn assert_same(output: &Path, miniature: &Miniature) {
    let (found, alone) = (contents(output), contents(&miniature.project.path("out")));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&alone));
    let different: Vec<_> = found.keys().filter(|name| found[*name] != alone[*name]).collect();
    assert!(different.is_empty(), "{different:?}");
}

/// Where the members of a gzip file begin. Zeros may follow the last one.
fn member_offsets(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = Vec::new();
    let mut rest = bytes;
    while rest.starts_with(&[0x1f, 0x8b]) {
        offsets.push(bytes.len() - rest.len());
        let mut member = flate2::bufread::GzDecoder::new(rest);
        std::io::copy(&mut member, &mut std::io::sink()).unwrap();
        rest = member.into_inner();
    }
    offsets
}

#[test]
fn the_report_adds_up_and_every_document_is_explained() {
    let Miniature { project, alone } = miniature();
    let sources: Vec<_> = rows(alone).iter().map(|row| row["source"].as_str().unwrap()).collect();
    assert_eq!(
        sources,
        ["arxiv", "books", "c4", "common_crawl", "github", "stack_exchange", "wikipedia"]
    );
    rows(alone).iter().for_each(assert_adds_up);
    let out = project.path("out");
    let out = out.to_str().unwrap();
    let report = run(["data", "report", out, "--json"]).ok().json();
    assert_eq!(report["rows"], alone["waterfall"]["rows"]);
    let table = run(["data", "report", out]).ok().stdout;

    let web = row(alone, "common_crawl");
    let steps: Vec<_> = web["steps"].as_array().unwrap().iter().map(|s| &s["step"]).collect();
    let chain = ["web_archive", "min_length", "dedup_documents", "dedup_paragraphs", "language"];
    assert_eq!(steps, chain);
    let counted = reasons(web);
    for reason in counted.keys() {
        assert!(table.contains(&format!("- {reason} ")), "{reason}: {table}");
    }
    // Whatever is in an archive and not in the corpus was dropped, and says by what.
    let documents = project.documents("common_crawl");
    let kept = ids(&documents);
    let read = count(&web["steps"][0]["stats"]["docs_in"]) as u64;
    assert_eq!(kept.len() as u64 + counted.values().sum::<u64>(), read);
    let mut dropped = Vec::new();
    for archive in 0..ARCHIVES {
        let name = format!("{archive}.warc.wet.gz");
        let bytes = fs::read(project.path(&format!("raw/{name}"))).unwrap();
        // The first record says what the others are.
        for offset in member_offsets(&bytes).into_iter().skip(1) {
            let id = format!("{name}/{offset:012}");
            if !kept.contains(&id.as_str()) {
                dropped.push(id);
            }
        }
    }
    assert!(dropped.len() > 100, "half of the pages are copies: {}", dropped.len());
    let mut found = BTreeMap::new();
    for id in dropped.iter().step_by(dropped.len() / 12) {
        let why = project.explain(id, "common_crawl");
        assert_eq!((&why["outcome"], &why["id"]), (&json!("dropped"), &json!(id)), "{why}");
        let (step, reason) = (why["step"].as_str().unwrap(), why["reason"].as_str().unwrap());
        assert!(chain.contains(&step) && counted.contains_key(reason), "{why}");
        *found.entry(step.to_owned()).or_insert(0) += 1;
    }
    assert!(found.contains_key("dedup_documents"), "{found:?}");
    for document in [&documents[0], &documents[documents.len() - 1]] {
        let id = document["id"].as_str().unwrap();
        let why = project.explain(id, "common_crawl");
        assert_eq!((&why["outcome"], &why["document"]), (&json!("kept"), document));
        let file = PathBuf::from(why["file"].as_str().unwrap());
        assert!(file.exists());
        let shown = run(["data", "explain", id, out]).ok().stdout;
        assert!(shown.contains("kept") && shown.contains(file.to_str().unwrap()), "{shown}");
    }
    let sides: Vec<_> = ["train", "validation"]
        .map(|side| {
            let cat = ["data", "cat", "--format", "jsonl", "--split", side];
            json_lines(&run([&cat[..], &[&format!("{out}/documents")]].concat()).ok().stdout)
        })
        .into();
    for row in rows(alone) {
        let of = |side: &Vec<Value>| side.iter().filter(|d| d["source"] == row["source"]).count();
        assert_eq!(of(&sides[0]) as i128, count(&row["train_documents"]));
        assert_eq!(of(&sides[1]) as i128, count(&row["validation_documents"]));
        assert!(count(&row["validation_bytes"]) >= 30_000, "{row}");
    }
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let miniature = miniature();
    for threads in ["2", "7"] {
        let (output, key) = miniature.output(&format!("threads{threads}"));
        // Little memory for the decisions, too.
        let memory = if threads == "7" { "4M" } else { "2G" };
        let report = miniature.project.run(&[&key, "--threads", threads, "--mem", memory]);
        assert_eq!(report["manifests"], miniature.alone["manifests"], "{threads} threads");
        assert_same(&output, miniature);
        // After one rank there is nothing to merge, and no harm in it.
        let merged = miniature.project.command("merge", &[&key, "--json"]).output().unwrap();
        let merged = Finished::from(merged).ok().json();
        assert_eq!((&merged["waiting"], &merged["groups_done"]), (&json!([]), &json!(0)));
        assert_eq!(merged["manifests"], miniature.alone["manifests"]);
    }
}

#[test]
fn the_same_bytes_for_three_ranks() {
    let miniature = miniature();
    let (output, key) = miniature.output("ranks");
    let merge = || -> Finished {
        miniature.project.command("merge", &[&key, "--json"]).output().unwrap().into()
    };
    merge().fails(1, &["run", "for every rank"]);
    let mut groups = 0;
    for round in 0.. {
        // A job array gives the ranks, with ids that begin anywhere, or the command line does.
        let rank = |rank: usize| -> Command {
            let number = rank.to_string();
            let by_hand = ["--rank", &number, "--world-size", "3"];
            let flags = if round % 2 == 0 { &by_hand[..] } else { &[] };
            let common = [&key, "--json", "--threads", "1"];
            let mut command = miniature.project.command("run", &[&common[..], flags].concat());
            if round % 2 == 1 {
                command.env("SLURM_ARRAY_TASK_ID", (rank + 5).to_string());
                command.env("SLURM_ARRAY_TASK_MIN", "5").env("SLURM_ARRAY_TASK_COUNT", "3");
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        if round == 1 {
            // One rank alone is not enough to go on.
            rank(0).output().map(Finished::from).unwrap().ok();
            merge().fails(1, &["for every rank"]);
        }
        // All at once, as on a cluster.
        let ranks: Vec<Child> = [2, 0, 1].map(|number| rank(number).spawn().unwrap()).into();
        for child in ranks {
            let report = Finished::from(child.wait_with_output().unwrap()).ok().json();
            groups += report["groups_done"].as_u64().unwrap();
            assert_eq!(report["waiting"].as_array().unwrap().len(), 7, "{report}");
        }
        let report = merge().ok().json();
        if report["waiting"].as_array().unwrap().is_empty() {
            assert_eq!(report["manifests"], miniature.alone["manifests"]);
            rows(&report).iter().for_each(assert_adds_up);
            assert_eq!(round + 1, STAGES);
            break;
        }
        assert!(round < STAGES, "{report}");
    }
    assert!(groups <= miniature.groups(), "no group may be done twice: {groups}");
    assert_same(&output, miniature);
    let finished: Finished = miniature
        .project
        .command("run", &["--rank", "3", "--world-size", "3"])
        .output()
        .unwrap()
        .into();
    finished.fails(2, &["3 of world size 3"]);
    let finished: Finished =
        miniature.project.command("run", &["--rank", "0"]).output().unwrap().into();
    finished.fails(2, &["--world-size"]);
}

/// Numbers of statistics files: a stage of a group has one when it is done.
fn stages_done(output: &Path) -> u64 {
    let folders = fs::read_dir(output.join("stats")).into_iter().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "json"))
        .count() as u64
}

#[test]
fn the_same_bytes_after_kill_9() {
    let miniature = miniature();
    let (output, key) = miniature.output("killed");
    // Killed when the first group is done, when the second decision is made, and when the first
    // documents are there, wherever the other groups are then.
    for sign in [
        "stats/common_crawl/stage0-00000.json",
        "work/common_crawl/stage1-resolved.json",
        "documents/common_crawl/train-00000.parquet",
    ] {
        let mut command = miniature.project.command("run", &[&key, "--threads", "1"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !output.join(sign).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // Child::kill is SIGKILL. A run that is through already is no harm to what follows.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Whatever the moments were, a scratch folder with a file may be left.
    let scratch = output.join("work/stack_exchange/.tmp.killed");
    fs::create_dir_all(&scratch).unwrap();
    fs::write(scratch.join("posts-0-1"), "half a li").unwrap();
    let done = stages_done(&output);
    assert!(done > 0);
    let report = miniature.project.run(&[&key, "--threads", "2"]);
    assert_eq!(report["groups_skipped"], done, "what was done is not done again");
    assert_eq!(report["groups_done"], miniature.groups() - done);
    assert_eq!(report["manifests"], miniature.alone["manifests"]);
    assert_same(&output, miniature);
    let leftovers: Vec<_> = ["documents", "stats", "dropped", "work"]
        .iter()
        .flat_map(|kind| fs::read_dir(output.join(kind)).unwrap())
        .flat_map(|source| fs::read_dir(source.unwrap().path()).unwrap())
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("tmp"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

#[test]
fn only_what_changed_is_done_again() {
    let miniature = miniature();
    let Miniature { project, alone } = miniature;
    let (output, key) = miniature.output("again");
    copy_dir(&project.path("out"), &output);
    let stamps = |kind: &str| -> BTreeMap<PathBuf, std::time::SystemTime> {
        let sources = fs::read_dir(output.join(kind)).unwrap();
        let files = sources.flat_map(|source| fs::read_dir(source.unwrap().path()).unwrap());
        files
            .map(|file| file.unwrap().path())
            .map(|path| (path.clone(), fs::metadata(path).unwrap().modified().unwrap()))
            .collect()
    };
    let before = (stamps("stats"), stamps("dropped"), stamps("work"));
    let report = project.run(&[&key]);
    assert_eq!(
        (&report["groups_done"], &report["groups_skipped"]),
        (&json!(0), &json!(miniature.groups()))
    );
    assert_eq!(report["manifests"], alone["manifests"]);
    assert_eq!((stamps("stats"), stamps("dropped"), stamps("work")), before);

    // One more step behind the last deduplication: that stage of every archive and the one behind
    // it are done again, and no other source.
    let config = fs::read_to_string(project.path("data.yaml")).unwrap();
    let last = "- language: {keep: [en], threshold: 0.5}";
    let changed = config.replace(last, &format!("{last}\n      - min_length: {{chars: 3000}}"));
    assert_ne!(config, changed);
    project.write("changed.yaml", &changed);
    let changed = project.path("changed.yaml");
    let data_run =
        |config: &Path| run(["data", "run", config.to_str().unwrap(), &key, "--json"]).ok().json();
    let report = data_run(&changed);
    let redone = (2 * ARCHIVES) as u64;
    assert_eq!(report["groups_done"], redone);
    assert_eq!(report["groups_skipped"], miniature.groups() - redone);
    for (source, hash) in alone["manifests"].as_object().unwrap() {
        assert_eq!(report["manifests"][source] == *hash, source != "common_crawl", "{source}");
    }
    let kept = |report: &Value| count(&row(report, "common_crawl")["train_documents"]);
    assert!(kept(&report) < kept(alone));
    // And back.
    let report = data_run(&project.path("data.yaml"));
    assert_eq!(report["groups_done"], redone);
    assert_eq!(report["manifests"], alone["manifests"]);
    assert_same(&output, miniature);

    // A lost output is made again, a count that was altered is noticed.
    fs::remove_file(output.join("documents/books/train-00000.parquet")).unwrap();
    let report = data_run(&project.path("data.yaml"));
    assert_eq!(report["groups_done"], 1);
    assert_eq!(report["manifests"], alone["manifests"]);
    let stats = output.join("stats/books/stage0-00000.json");
    let text = fs::read_to_string(&stats).unwrap();
    let (at, _) = text.match_indices("\"docs_in\": ").next().unwrap();
    fs::write(&stats, format!("{}\"docs_in\": 9{}", &text[..at], &text[at + 11..])).unwrap();
    run(["data", "report", output.to_str().unwrap()]).fails(1, &["stage0-00000.json", "altered"]);
}
