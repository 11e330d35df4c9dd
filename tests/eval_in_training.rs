//! `eval:` of a training configuration: tasks scored during a run, through the binary.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Running, SmallRun, altiplano, repository, run};

fn fixtures() -> PathBuf {
    repository("tests/fixtures/eval_tasks")
}

/// Overrides that score tasks of the fixtures.
fn scored(tasks: &str) -> Vec<String> {
    vec![format!("eval.tasks=[{tasks}]"), format!("eval.data={}", fixtures().display())]
}

/// `altiplano train` with the tasks and further overrides.
fn train(run: &SmallRun, tasks: &str, overrides: &[&str]) -> crate::harness::Finished {
    let eval = scored(tasks);
    let all: Vec<&str> = eval.iter().map(String::as_str).chain(overrides.iter().copied()).collect();
    run.train(&all)
}

/// Steps with scores, and the scores.
fn scores(run: &SmallRun, name: &str) -> Vec<(u64, Value)> {
    let lines = run.metrics(name).into_iter().filter(|line| !line["eval"].is_null());
    lines.map(|line| (line["step"].as_u64().unwrap(), line["eval"].clone())).collect()
}

/// Scores come at the steps asked for, into metrics and pictures; they are those of `eval tasks` on the
/// checkpoint of the step, and change nothing of the training.
#[test]
fn tasks_are_scored_during_a_run() {
    let run = SmallRun::new();
    let common = ["steps=10", "checkpoint.every=4", "checkpoint.keep_last=9", "validate.every=5"];
    run.train(&[&["name=plain"], &common[..]].concat()).ok();
    let tasks = "piqa,wikitext,nq_open";
    let eval = ["name=scored", "eval.every=4", "eval.steps=[6]", "eval.shots=0"];
    let finished = train(&run, tasks, &[&eval[..], &common].concat()).ok();
    for words in
        ["evaluates piqa (4 examples), wikitext", ", 4 times", "evaluation: nq_open/exact_match"]
    {
        assert!(finished.stderr.contains(words), "{words}: {}", finished.stderr);
    }
    assert_eq!(run.numbers("plain"), run.numbers("scored"));
    assert!(run.tensors("plain", 10) == run.tensors("scored", 10), "the weights differ");
    let found = scores(&run, "scored");
    let steps: Vec<u64> = found.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [4, 6, 8, 10]);
    assert!(run.metrics("scored")[3]["eval_seconds"].as_f64().unwrap() > 0.0);
    let svg = fs::read_to_string(run.run_dir("scored").join("eval.svg")).unwrap();
    assert!(svg.contains("scored: training loss") && svg.contains("bits_per_byte"));
    assert!(run.run_dir("scored").join("eval.png").exists());
    assert!(!run.run_dir("plain").join("eval.svg").exists());

    let mut command = altiplano();
    command.args([
        "eval",
        "tasks",
        "--json",
        "--precision",
        "bf16",
        "--shots",
        "0",
        "--tasks",
        tasks,
    ]);
    command.arg("--checkpoint").arg(run.checkpoint("scored", 8)).arg("--data").arg(fixtures());
    let results = crate::harness::Finished::from(command.output().unwrap()).ok().json();
    let of_step = &found[2].1;
    assert_eq!(of_step.as_object().unwrap().len(), 5, "{of_step}");
    for (score, value) in of_step.as_object().unwrap() {
        let (task, measure) = score.split_once('/').unwrap();
        assert_eq!(results["results"][task][format!("{measure},none")], *value, "{score}");
    }

    // What it costs is said before.
    let mut estimate = altiplano();
    estimate
        .arg("estimate")
        .arg(run.config())
        .args(scored("piqa"))
        .args(["eval.every=20", "--json"]);
    let estimate = crate::harness::Finished::from(estimate.output().unwrap()).ok();
    assert!(estimate.stdout.contains("evaluation of piqa 2 times"), "{}", estimate.stdout);
    let memory = &estimate.json()["evaluation"]["memory_bytes"];
    assert!(memory["matrices"].as_u64().unwrap() > 0 && memory["cache"].as_u64().unwrap() > 0);
}

/// An evaluation that a signal or a kill ended is done again: every score is there once, as in a run that
/// nobody touched.
#[test]
fn an_evaluation_that_was_ended_is_done_again() {
    let run = SmallRun::new();
    let tasks = "mmlu,truthfulqa_mc2,race_high,wikitext";
    let common =
        ["steps=9", "eval.every=1", "checkpoint.every=3", "validate.every=0", "eval.shots=0"];
    train(&run, tasks, &[&["name=whole"], &common[..]].concat()).ok();
    let numbers = |name: &str| (run.numbers(name), scores(&run, name));

    let eval = scored(tasks);
    let overrides = [&["name=ended"], &common[..]].concat();
    let overrides = eval.iter().map(String::as_str).chain(overrides).collect::<Vec<_>>();
    let mut running = Running::start(&mut run.train_command(&overrides));
    running.wait_until(|stderr| stderr.contains("evaluation:"));
    running.signal("TERM");
    let finished = running.finish();
    // Almost all of the time goes to evaluations. On a fast machine the run may be over.
    if finished.code == Some(0) {
        eprintln!("skipped: the run was done before the signal came");
    } else {
        finished.fails(143, &["SIGTERM"]);
        run.resume("ended", &[]).ok();
    }
    assert_eq!(numbers("ended"), numbers("whole"));

    // Killed after a checkpoint, before the scores of its step were written.
    let log = run.run_dir("whole").join("metrics.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    let before = numbers("whole");
    for kept in [8, 7, 6, 5] {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        fs::write(&log, lines[..kept].concat()).unwrap();
        let checkpoints = run.checkpoints("whole");
        for step in checkpoints.iter().filter(|step| **step > kept as u64 + 1) {
            fs::remove_dir_all(run.checkpoint("whole", *step)).unwrap();
        }
        run.resume("whole", &[]).ok();
        assert_eq!(numbers("whole"), before, "{kept} lines were kept");
    }
}

/// Ranks share the examples, or wait for the one that has the whole model; the scores are the same.
#[test]
fn several_ranks_score_alike() {
    let run = SmallRun::new();
    let common =
        ["steps=2", "eval.every=1", "validate.every=0", "parallel.shard=gradients", "threads=1"];
    for (name, layout) in [
        ("name=one", &[][..]),
        ("name=two", &["--ranks", "2"]),
        ("name=split", &["--ranks", "2", "parallel.tensor=2"]),
    ] {
        train(
            &run,
            "piqa,wikitext,gsm8k",
            &[&[name, "eval.shots=0"], &common[..], layout].concat(),
        )
        .ok();
    }
    let one = scores(&run, "one");
    assert_eq!(one.len(), 2);
    assert_eq!(one, scores(&run, "two"));
    // Split matrices round differently.
    let bits = |name: &str| scores(&run, name)[1].1["wikitext/bits_per_byte"].as_f64().unwrap();
    assert!((bits("one") - bits("split")).abs() < 1e-2, "{} and {}", bits("one"), bits("split"));
}

/// The checkpoint with the best score stays and has a name.
#[test]
fn the_best_checkpoint_by_a_score_is_kept() {
    let run = SmallRun::new();
    let common = [
        "checkpoint.every=0",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=true",
        "checkpoint.best_by=wikitext/bits_per_byte",
        "optimizer.schedule=constant",
        "validate.every=0",
        "eval.every=6",
        "eval.shots=0",
    ];
    let finished =
        train(&run, "piqa,wikitext", &[&["steps=12", "--json"], &common[..]].concat()).ok();
    assert!(finished.stdout.contains("best wikitext/bits_per_byte: "), "{}", finished.stdout);
    assert_eq!(run.checkpoints("small"), [12]);
    // A rate that spoils the model.
    let report = run.resume("small", &["steps=18", "optimizer.lr=0.5", "--json"]).ok().json();
    assert_eq!(run.checkpoints("small"), [12, 18]);
    assert!(report["best_checkpoint"].as_str().unwrap().ends_with("step_00000012"));
    assert_eq!(report["best_by"], "wikitext/bits_per_byte");
    let best = run.run_dir("small").join("best");
    assert_eq!(fs::read_link(&best).unwrap(), PathBuf::from("checkpoints/step_00000012"));
    let generate = |path: &PathBuf| {
        let path = path.to_str().unwrap();
        let arguments =
            ["generate", "--prompt", "The", "--max-tokens", "2", "--json", "--checkpoint", path];
        crate::harness::run(arguments).ok();
    };
    generate(&best);
    // Without the name a run is its newest checkpoint.
    generate(&run.run_dir("small"));
    let back = run.resume("small", &["--checkpoint", "best", "optimizer.lr=3e-3", "steps=14"]).ok();
    assert!(back.stderr.contains("resumes from step 12"), "{}", back.stderr);
}

#[test]
fn what_is_wrong_with_an_evaluation_is_named_before_the_first_step() {
    let small = SmallRun::new();
    let data = format!("eval.data={}", fixtures().display());
    for (overrides, code, words) in [
        (&["eval.tasks=[piq]"][..], 2, &["eval.tasks.0", "piq", "did you mean \"piqa\""][..]),
        (&["eval.tasks=[piqa,piqa]", &data], 2, &["eval.tasks.1", "twice"]),
        (&["eval.tasks=[humaneval]", &data], 2, &["eval.tasks.0", "not run during training"]),
        (&["eval.tasks=[piqa]"], 2, &["eval.data", "missing"]),
        (
            &["eval.tasks=[piqa]", "eval.data=/nonexistent"],
            1,
            &["/nonexistent/piqa", "yonatanbisk"],
        ),
        (&["eval.every=5"], 2, &["eval.tasks", "empty"]),
        (&["eval.tasks=[piqa]", &data, "eval.steps=[0]"], 2, &["eval.steps", "found 0"]),
        (&["eval.tasks=[piqa]", &data, "eval.limit=0"], 2, &["eval.limit"]),
        (&["eval.tasks=[piqa]", &data, "eval.at_end=false"], 2, &["eval.at_end"]),
        (&["eval.tasks=[wikitext]", &data, "eval.shots=1"], 2, &["eval.shots", "wikitext"]),
        (&["eval.tasks=[gsm8k]", &data, "eval.shots=99"], 2, &["eval.shots", "at most"]),
        (&["eval.rules=papers"], 2, &["eval.rules", "paper"]),
        (&["checkpoint.best_by=piqa/acc"], 2, &["checkpoint.best_by", "piqa/acc"]),
        (
            &["eval.tasks=[piqa]", &data, "checkpoint.best_by=piqa/f1"],
            2,
            &["checkpoint.best_by", "piqa/f1", "piqa/acc"],
        ),
    ] {
        small.train(&[&["steps=2"], overrides].concat()).fails(code, words);
        assert!(small.checkpoints("small").is_empty(), "{overrides:?}");
    }
    // A file of another task.
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("boolq")).unwrap();
    fs::copy(fixtures().join("piqa/valid.jsonl"), dir.path().join("boolq/dev.jsonl")).unwrap();
    let other = format!("eval.data={}", dir.path().display());
    small
        .train(&["steps=2", "eval.tasks=[boolq]", &other])
        .fails(1, &["dev.jsonl", "another task"]);
}

/// Several processes of a launcher would each score everything.
#[test]
fn a_launcher_is_refused_where_one_process_computes() {
    for (rank, said) in [("0", true), ("1", false)] {
        let mut command = altiplano();
        command.args(["eval", "tasks", "--list"]);
        command.env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", rank);
        let finished = crate::harness::Finished::from(command.output().unwrap());
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        assert_eq!(finished.stderr.contains("computes in one"), said, "{}", finished.stderr);
        assert!(finished.stdout.is_empty());
    }
    run(["eval", "tasks", "--list"]).ok();
}
