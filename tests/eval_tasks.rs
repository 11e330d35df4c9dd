//! `altiplano eval tasks` and `eval compare` on fixtures in every official format.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use altiplano_data::eval_tasks::{Answer, Example, ExampleKind, Gold, Rules, TASKS, Task};
use serde_json::Value;

use crate::harness::{Finished, SmallRun, altiplano, copy_dir, repository, run};

const LIKELIHOODS: &str = "boolq,piqa,social_iqa,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa,\
                           race_middle,race_high,mmlu,crows_pairs,winogender,truthfulqa_mc1,\
                           truthfulqa_mc2,wikitext";

fn fixtures() -> PathBuf {
    repository("tests/fixtures/eval_tasks")
}

/// A checkpoint of a model with a context of 64 tokens, made once.
fn checkpoint() -> &'static Path {
    static RUN: OnceLock<(SmallRun, PathBuf)> = OnceLock::new();
    let (_, path) = RUN.get_or_init(|| {
        let run = SmallRun::new();
        run.train(&["steps=4", "checkpoint.every=0", "validate.every=0"]).ok();
        let path = run.checkpoint("small", 4);
        (run, path)
    });
    path
}

/// `eval tasks` on the fixtures.
fn eval(tasks: &str, arguments: &[&str]) -> Finished {
    eval_of(checkpoint(), &fixtures(), tasks, arguments)
}

fn eval_of(checkpoint: &Path, data: &Path, tasks: &str, arguments: &[&str]) -> Finished {
    let mut command = altiplano();
    command.args(["eval", "tasks", "--tasks", tasks, "--checkpoint"]).arg(checkpoint);
    command.arg("--data").arg(data).args(arguments);
    command.output().unwrap().into()
}

fn task(name: &str) -> &'static Task {
    TASKS.iter().find(|task| task.name == name).unwrap()
}

fn examples(name: &str, rules: Rules, shots: usize) -> Vec<Example> {
    task(name).read(&fixtures(), rules, shots).unwrap().examples
}

/// Every task has a fixture, and every example of it something that is right.
#[test]
fn every_task_reads_its_official_format() {
    for task in TASKS {
        for rules in [Rules::Paper, Rules::Harness] {
            let shots = task.default_shots(rules);
            let read = task.read(&fixtures(), rules, shots).unwrap();
            assert!(!read.examples.is_empty() && read.left_out.is_empty(), "{read:?}");
            for example in &read.examples {
                task.prefix(example, &read.shots, shots).unwrap();
                match &example.kind {
                    ExampleKind::Choices { choices, gold } => {
                        assert!(choices.len() > 1, "{example:?}");
                        if let Gold::Index(gold) = gold {
                            assert!(*gold < choices.len(), "{example:?}");
                        }
                    }
                    ExampleKind::Text { words, bytes, .. } => assert!(words < bytes, "{example:?}"),
                    ExampleKind::Generation(_) => assert!(task.generation.is_some()),
                }
            }
        }
    }
}

#[test]
fn prompts_are_those_of_the_rules() {
    let first = |name, rules| examples(name, rules, 0).remove(0);
    for (name, rules, question) in [
        (
            "boolq",
            Rules::Paper,
            "The whale is not a fish. It breathes air and nurses its young.\n\
             Question: is the whale a fish?\nAnswer:",
        ),
        ("social_iqa", Rules::Paper, "Q: Ann lent her boat to Tom. How does Tom feel?\nA:"),
        ("hellaswag", Rules::Harness, "Cleaning a deck: A sailor kneels on the deck. He"),
        ("openbookqa", Rules::Paper, "A compass points"),
        ("nq_open", Rules::Harness, "Q: who hunts the white whale?\nA:"),
        ("triviaqa", Rules::Paper, "Q: Who hunts the white whale?\nA:"),
        ("triviaqa", Rules::Harness, "Question: Who hunts the white whale??\nAnswer:"),
        ("math", Rules::Paper, "Problem:\nIf $x + 1 = 3$, what is $x$?\n\nSolution:"),
        (
            "winogender",
            Rules::Paper,
            "The engineer told the client that he would build the bridge. ‘He’ refers to the",
        ),
        (
            "mmlu",
            Rules::Paper,
            "How many hands has a man?\nA. One\nB. Two\nC. Five\nD. Nine\nAnswer:",
        ),
    ] {
        assert_eq!(first(name, rules).question, question);
    }
    let marks = examples("hellaswag", Rules::Paper, 0).remove(1);
    let expected = "How to light a fire: How to light a fire. Gather dry wood. Look under trees.";
    assert_eq!(marks.question, expected);
    // The last question of an article behind the others by the harness, each alone by the paper.
    let harness = first("race_high", Rules::Harness);
    assert!(harness.question.ends_with(
        "\n\nQuestion: What had the captain lost?\nAnswer: a leg\nThe crew hunted whales\nHow long were \
         they away?"
    ));
    assert_eq!(examples("race_high", Rules::Paper, 0).len(), 5);
    assert_eq!(examples("race_high", Rules::Harness, 0).len(), 2);
    // Shots: description, questions with answers.
    let mmlu = task("mmlu");
    let read = mmlu.read(&fixtures(), Rules::Paper, 2).unwrap();
    let prefix = mmlu.prefix(&read.examples[4], &read.shots, 2).unwrap();
    assert_eq!(
        prefix,
        "The following are multiple choice questions (with answers) about us foreign policy.\n\n\
         Which letter of 0?\nA. this\nB. that\nC. those\nD. none\nAnswer: A\n\n\
         Which letter of 1?\nA. this\nB. that\nC. those\nD. none\nAnswer: B\n\n"
    );
    let error = mmlu.prefix(&read.examples[4], &read.shots, 9).unwrap_err().to_string();
    assert!(error.contains("--shots") && error.contains("at most 5"), "{error}");
    // The answers of TruthfulQA stay in their order.
    let truthful = examples("truthfulqa_mc2", Rules::Paper, 0).remove(0);
    let ExampleKind::Choices { choices, gold } = truthful.kind else { panic!() };
    assert_eq!(choices[0].label, "It falls off the world");
    assert_eq!(gold, Gold::True(vec![false, true, true, false]));
    let ExampleKind::Text { text, words, .. } = first("wikitext", Rules::Harness).kind else {
        panic!()
    };
    assert!(text.contains("the sea, and") && text.contains("30.5 metres long; others"), "{text}");
    assert!(text.contains("\"whale\" is old (very old). It was the sailors' word."), "{text}");
    assert_eq!(words, 58);
    let humaneval = first("humaneval", Rules::Paper);
    let ExampleKind::Generation(Answer::Program(program)) = humaneval.kind else { panic!() };
    assert!(program.after.ends_with("\ncheck(double)"));
    let groups = &examples("winogender", Rules::Paper, 0)[5].groups;
    assert_eq!(groups, &["winogender_female"]);
    let groups = &examples("winogender", Rules::Paper, 0)[3].groups;
    assert_eq!(groups, &["winogender_female", "winogender_gotcha", "winogender_gotcha_female"]);
}

/// The figures of all tasks of likelihoods, in the harness's layout.
#[test]
fn likelihood_tasks_give_tables_and_results() {
    for (rules, measure) in [("paper", "acc,none"), ("harness", "acc_norm,none")] {
        let finished = eval(LIKELIHOODS, &["--rules", rules, "--shots", "0", "--json"]).ok();
        let results = finished.json();
        for name in LIKELIHOODS.split(',') {
            let of_task = &results["results"][name];
            assert_eq!(of_task["alias"], name);
            assert_eq!(results["n-shot"][name], 0);
            let counts = &results["n-samples"][name];
            assert_eq!(counts["original"], counts["effective"], "{name}");
            assert!(
                finished.stdout.lines().any(|line| line.starts_with(name)),
                "{}",
                finished.stdout
            );
            let share = match name {
                "wikitext" => &of_task["word_perplexity,none"],
                "crows_pairs" => &of_task["pct_stereotype,none"],
                _ => &of_task["acc,none"],
            };
            let share = share.as_f64().unwrap();
            assert!(if name == "wikitext" { share > 1.0 } else { (0.0..=1.0).contains(&share) });
        }
        assert!(results["results"]["piqa"][measure].is_f64(), "{results}");
        assert!(results["results"]["mmlu_anatomy"]["acc,none"].is_f64());
        assert!(results["results"]["mmlu_stem"]["acc,none"].is_f64());
        assert_eq!(results["n-samples"]["mmlu_social_sciences"]["effective"], 3);
        assert_eq!(results["higher_is_better"]["boolq"]["acc"], true);
        // A context of 64 tokens is less than the primer has.
        assert_eq!(results["cut_contexts"]["truthfulqa_mc1"], 2);
        assert!(finished.stdout.contains("cut from the left"));
    }
}

/// A run that is ended and goes on gives the samples of one that was not, whatever is computed together.
#[test]
fn a_run_goes_on_where_it_was_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let samples = |name: &str| {
        fs::read_to_string(dir.path().join(name).join("samples_arc_easy.jsonl")).unwrap()
    };
    eval("arc_easy", &["--output", &path("whole")]).ok();
    eval("arc_easy", &["--output", &path("parts"), "--limit", "2"]).ok();
    assert_eq!(samples("parts").lines().count(), 2);
    // Torn in its last line by a kill.
    let torn = samples("parts");
    fs::write(dir.path().join("parts/samples_arc_easy.jsonl"), &torn[..torn.len() - 9]).unwrap();
    let results = eval("arc_easy", &["--output", &path("parts"), "--json"]).ok().json();
    assert_eq!(samples("parts"), samples("whole"));
    let whole: Value =
        serde_json::from_slice(&fs::read(dir.path().join("whole/results.json")).unwrap()).unwrap();
    assert_eq!(results["results"], whole["results"]);
    eval("arc_easy", &["--output", &path("parts"), "--rules", "harness"]).fails(
        1,
        &["samples_arc_easy.jsonl", "rules was \"paper\" and is \"harness\"", "--output"],
    );

    let compared = run(["eval", "compare", &path("whole"), &path("parts"), "--json"]).ok();
    let runs = &compared.json()["comparisons"][0]["runs"];
    assert_eq!(runs[0]["value"], runs[1]["value"]);
    assert_eq!(runs[1]["difference"]["paired"], true);
    assert_eq!(runs[1]["difference"]["interval"], serde_json::json!([0.0, 0.0]));
    run(["eval", "compare", dir.path().to_str().unwrap()])
        .fails(1, &["no samples here", "eval tasks --output"]);
}

#[test]
fn wrong_files_and_rows_are_named_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy_dir(&fixtures(), &data);
    let eval = |tasks: &str, arguments: &[&str]| eval_of(checkpoint(), &data, tasks, arguments);

    fs::copy(data.join("piqa/valid.jsonl"), data.join("boolq/dev.jsonl")).unwrap();
    eval("boolq", &[])
        .fails(1, &["dev.jsonl", "row 1", "`passage`", "goal, sol1, sol2", "another task"]);
    fs::remove_file(data.join("piqa/valid-labels.lst")).unwrap();
    eval("piqa", &[]).fails(1, &["valid-labels.lst", "is missing", "labels"]);
    fs::remove_dir_all(data.join("hellaswag")).unwrap();
    eval("hellaswag", &[]).fails(
        1,
        &[
            "hellaswag_val.jsonl",
            "https://github.com/rowanz/hellaswag",
            "MIT",
            "no file with the examples",
        ],
    );
    fs::write(data.join("arc_challenge/test-00000-of-00001.parquet"), "PAR1").unwrap();
    eval("arc_challenge", &[]).fails(1, &["test-00000-of-00001.parquet"]);
    fs::write(data.join("mmlu/test/anatomy_test.csv"), "a,b,c\n").unwrap();
    eval("mmlu", &[]).fails(1, &["anatomy_test.csv", "row 1", "3 cells", "expected 6"]);
    fs::write(data.join("gsm8k/test.jsonl"), "{\"question\": \"a\"").unwrap();
    eval("gsm8k", &[]).fails(1, &["test.jsonl", "row 1", "not JSON"]);

    // Rows that cannot be used are counted, the others scored.
    let row = |text: &str, key: &str| {
        format!(
            "{{\"id\": \"a\", \"question\": {{\"stem\": \"b\", \"choices\": [{{\"text\": {text:?}, \
             \"label\": \"A\"}}, {{\"text\": \"d\", \"label\": \"B\"}}]}}, \"answerKey\": {key:?}}}\n"
        )
    };
    let rows = row("c", "A") + &row(" ", "A") + &row("c", "E") + &row("c", "B");
    fs::write(data.join("openbookqa/test.jsonl"), rows).unwrap();
    let results = eval("openbookqa", &["--json"]).ok().json();
    let reasons = &results["not_scored"]["openbookqa"];
    assert_eq!(reasons["a choice is empty"], 1);
    assert_eq!(reasons["the answer is none of the choices"], 1);
    assert_eq!(results["n-samples"]["openbookqa"]["effective"], 2);
    fs::write(data.join("openbookqa/test.jsonl"), row("c", "E")).unwrap();
    eval("openbookqa", &[]).fails(1, &["test.jsonl", "no example", "none of the choices"]);

    // ARC and OpenBookQA have one form; ids tell them apart, and names ARC's two sets.
    let with_id = |id: &str| row("c", "A").replace("\"id\": \"a\"", &format!("\"id\": {id:?}"));
    fs::write(data.join("openbookqa/test.jsonl"), with_id("Mercury_7175875")).unwrap();
    eval("openbookqa", &[]).fails(1, &["test.jsonl", "row 1", "Mercury_7175875", "another task"]);
    fs::write(data.join("arc_easy/ARC-Easy-Test.jsonl"), with_id("7-980")).unwrap();
    eval("arc_easy", &[]).fails(1, &["ARC-Easy-Test.jsonl", "row 1", "OpenBookQA, 7-980"]);
    let parquet = "arc_challenge/test-00000-of-00001.parquet";
    for (folder, code, said) in [
        ("ARC-Challenge", Some(1), "ARC's challenge set, expected the easy set"),
        ("elsewhere", Some(0), "neither the file nor its folder says"),
        ("ARC-Easy", Some(0), ""),
    ] {
        let there = dir.path().join(folder);
        fs::create_dir(&there).unwrap();
        fs::copy(fixtures().join(parquet), there.join("test-0.parquet")).unwrap();
        let finished = eval_of(checkpoint(), &there, "arc_easy", &[]);
        assert_eq!(finished.code, code, "{folder}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{folder}: {}", finished.stderr);
        assert_eq!(finished.stderr.contains("neither the file"), folder == "elsewhere");
    }

    eval("winogrand", &[]).fails(2, &["winogrand", "did you mean \"winogrande\"?"]);
    eval("wikitext", &["--shots", "1"]).fails(2, &["--shots", "wikitext"]);
    eval("gsm8k", &["--samples", "2", "--temperature", "0"]).fails(2, &["--temperature 0"]);
    eval("gsm8k", &["--samples", "0"]).fails(2, &["--samples", "1..=1024"]);
    eval("gsm8k", &["--samples", "1000000000"]).fails(2, &["--samples", "1..=1024"]);
    let list = run(["eval", "tasks", "--list", "--json"]).ok();
    assert_eq!(list.json()["tasks"].as_array().unwrap().len(), TASKS.len());
    run(["eval"]).fails(2, &["--checkpoint", "--documents"]);
}

/// Logits that are not numbers are counted by their reason, and nothing is scored by them.
#[test]
fn logits_that_are_not_numbers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("hf");
    let export = ["export", "--format", "hf", "--output", model.to_str().unwrap(), "--checkpoint"];
    run(export.iter().copied().chain([checkpoint().to_str().unwrap()])).ok();
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offsets = &header["model.norm.weight"]["data_offsets"];
    let place = |n: usize| 8 + length + offsets[n].as_u64().unwrap() as usize;
    // All bits set is not a number in every format.
    bytes[place(0)..place(1)].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    let finished = eval_of(&model, &fixtures(), "piqa", &["--json"]).ok();
    let results = finished.json();
    assert_eq!(results["n-samples"]["piqa"]["effective"], 0);
    let reasons = results["not_scored"]["piqa"].as_object().unwrap();
    assert_eq!(reasons.values().next().unwrap(), 4, "{reasons:?}");
    assert!(finished.stdout.contains("4 not scored"), "{}", finished.stdout);
}

#[test]
fn answers_are_generated_and_programs_run_only_when_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let output = output.to_str().unwrap();
    let asked = "nq_open,triviaqa,gsm8k,math,humaneval,mbpp";
    let arguments =
        ["--samples", "2", "--shots", "0", "--json", "--output", output, "--temperature", "0.5"];
    let finished = eval(asked, &arguments).ok();
    let results = finished.json();
    for task in ["nq_open", "triviaqa", "gsm8k", "math"] {
        assert!(results["results"][task]["exact_match,none"].is_f64(), "{results}");
        assert!(results["results"][task]["maj@2,none"].is_f64(), "{results}");
    }
    assert!(results["results"]["humaneval"]["pass@1,none"].is_null());
    assert!(finished.stdout.contains("--allow-code-execution"), "{}", finished.stdout);
    let text = fs::read_to_string(dir.path().join("out/samples_humaneval.jsonl")).unwrap();
    let sample: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(sample["resps"].as_array().unwrap().len(), 2);

    let executed = eval("humaneval", &["--allow-code-execution", "--json"]);
    if executed.stderr.contains("cannot be run without a network") {
        eprintln!("skipped: programs cannot be kept apart here: {}", executed.stderr);
        return;
    }
    let results = executed.ok().json();
    // A model of four steps writes no program.
    assert_eq!(results["results"]["humaneval"]["pass@1,none"], 0.0);
    assert_eq!(results["n-samples"]["humaneval"]["effective"], 2);
}
