//! `altiplano eval judge` against stand-ins of servers.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::api_stand_in::{ApiStandIn, Reply, Request};
use crate::harness::{Finished, altiplano, repository};
use crate::storage_server::authority;

fn chat(text: &str) -> Reply {
    Reply::ok(json!({"choices": [{"message": {"content": text}}]}))
}

/// What the newest message of a request says.
fn asked(request: &Request) -> &str {
    let messages = request.body["messages"].as_array().unwrap();
    messages.last().unwrap()["content"].as_str().unwrap()
}

/// A model whose answers are `name` and the number of its turn.
fn model(name: &'static str) -> ApiStandIn {
    ApiStandIn::start(move |_, request| {
        assert_eq!(request.path, "/v1/chat/completions");
        let key = request.headers.contains("authorization: bearer secret");
        assert_eq!(key, name == "long answer", "{}", request.headers);
        let turn = request.body["messages"].as_array().unwrap().len().div_ceil(2);
        chat(&format!("{name} in turn {turn}"))
    })
}

struct Evaluation {
    dir: tempfile::TempDir,
}

impl Evaluation {
    fn new(one: &str, other: &str, judge: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixtures = repository("tests/fixtures/judge");
        let config = format!(
            "output: out\n\
             questions: {:?}\n\
             prompts: {:?}\n\
             models:\n\
             - {{ name: long, endpoint: {{ url: {one:?}, model: m1, key_env: JUDGE_TEST_KEY }} }}\n\
             - {{ name: short, endpoint: {{ url: {other:?} }} }}\n\
             judge: {{ url: {judge:?}, model: j, concurrency: 2 }}\n",
            fixtures.join("questions.jsonl"),
            fixtures.join("prompts.jsonl"),
        );
        fs::write(dir.path().join("judge.yaml"), config).unwrap();
        Self { dir }
    }

    fn run(&self, overrides: &[&str]) -> Finished {
        self.command(overrides).output().unwrap().into()
    }

    fn command(&self, overrides: &[&str]) -> Command {
        let mut command = altiplano();
        command.args(["eval", "judge", "judge.yaml", "--json"]).args(overrides);
        command.env("JUDGE_TEST_KEY", "secret").current_dir(self.dir.path());
        command
    }

    fn log(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("out").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The judge's verdict by what it is shown.
fn verdict(prompt: &str) -> &'static str {
    let first_is_long = prompt.contains("A: long");
    match prompt {
        // Always the first place: a tie.
        _ if prompt.contains("sentence about the sea") => "Hm. [[A]]",
        // The long one in both orders.
        _ if prompt.contains("one about the land") && first_is_long => "[[B]]? No: \n[[A]]",
        _ if prompt.contains("one about the land") => "[[B]]",
        // No verdict in one of the orders.
        _ if prompt.contains("2 + 3") && first_is_long => "I cannot say.",
        _ => "[[C]]",
    }
}

#[test]
fn a_win_needs_both_orders_and_nothing_is_asked_twice() {
    let (one, other) = (model("long answer"), model("short"));
    let judge = ApiStandIn::start(|_, request| chat(verdict(asked(request))));
    let evaluation = Evaluation::new(&one.url, &other.url, &judge.url);
    let report = evaluation.run(&[]).ok();
    for words in ["win rate", "left out, for want of a verdict: 1", "  writing"] {
        assert!(report.stdout.contains(words), "{words}: {}", report.stdout);
    }
    let json = report.json();
    let tally = |at: usize| {
        let score = &json["comparisons"][at];
        ["wins", "losses", "ties"].map(|name| score[name].as_u64().unwrap())
    };
    // Four turns of three questions: one won, two ties, one left out.
    assert_eq!((tally(0), tally(1)), ([1, 0, 2], [0, 1, 2]));
    assert_eq!(json["left_out"], 1);
    let share = |value: &Value, expected: f64| {
        assert!((value.as_f64().unwrap() - expected).abs() < 1e-9, "{value}");
    };
    share(&json["flipped"], 1.0 / 3.0);
    share(&json["comparisons"][0]["win_rate"], 1.0 / 3.0);
    share(&json["comparisons"][0]["adjusted_win_rate"], 2.0 / 3.0);
    assert_eq!(json["winner_chars"], "long answer in turn 2".len() as f64);

    // What was asked: the model's name, the temperature of the kind, the turns so far.
    let bodies = one.bodies();
    assert_eq!(bodies.len(), 4);
    let math = bodies.iter().find(|body| body.to_string().contains("2 + 3")).unwrap();
    assert_eq!((&math["model"], &math["temperature"]), (&json!("m1"), &json!(0.0)));
    assert_eq!(math["max_tokens"], 1024);
    let second = bodies.iter().find(|body| body["messages"][2].is_object()).unwrap();
    assert_eq!(second["messages"][1]["content"], "long answer in turn 1");
    assert_eq!(second["temperature"], 0.7);
    let judged = judge.bodies();
    assert_eq!(judged.len(), 8);
    let with_reference = judged.iter().filter(|body| body.to_string().contains("Right: 5"));
    assert_eq!(with_reference.count(), 2);
    assert!(judged.iter().all(|body| body["messages"][0]["role"] == "system"));

    // Once more: from the files, of which a kill has cut a line short.
    let path = evaluation.dir.path().join("out/judgments.jsonl");
    assert_eq!(evaluation.log("judgments.jsonl").len(), 8);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 20]).unwrap();
    assert_eq!(evaluation.run(&[]).ok().json(), json);
    assert_eq!((one.bodies().len(), judge.bodies().len()), (4, 9));
    assert_eq!(evaluation.log("judgments.jsonl").len(), 8);
    // Another seed is another question to models that sample, and their answers are judged as new.
    evaluation.run(&["seed=2"]).ok();
    assert_eq!(one.bodies().len(), 7);
}

#[test]
fn answers_are_rated_one_by_one() {
    let (one, other) = (model("long answer"), model("short"));
    let judge = ApiStandIn::start(|_, request| {
        let prompt = asked(request);
        chat(match prompt {
            _ if prompt.contains("What is a whale") && prompt.contains("short") => "no number",
            _ if prompt.contains("short") => "Rating: [[4]]",
            _ if prompt.contains("land") => "Rating: [[10]]",
            _ => "[8]",
        })
    });
    let evaluation = Evaluation::new(&one.url, &other.url, &judge.url);
    let json = evaluation.run(&["mode=single"]).ok().json();
    let ratings = json["ratings"].as_array().unwrap();
    assert_eq!((&ratings[0]["mean"], &ratings[0]["rated"]), (&json!(8.5), &json!(4)));
    assert_eq!(ratings[0]["turns"], json!([8.0, 10.0]));
    assert_eq!(ratings[0]["categories"]["writing"], 9.0);
    assert_eq!((&ratings[1]["mean"], &ratings[1]["left_out"]), (&json!(4.0), &json!(1)));
}

#[test]
fn an_endpoint_that_is_busy_is_asked_again_and_one_that_refuses_is_named() {
    let (one, other) = (model("long answer"), model("short"));
    let judge = ApiStandIn::start(|number, _| match number {
        0 | 1 => Reply {
            status: 503,
            headers: "Retry-After: 0\r\n",
            body: json!({"error": {"message": "busy"}}),
        },
        _ => chat("[[C]]"),
    });
    let evaluation = Evaluation::new(&one.url, &other.url, &judge.url);
    let busy = evaluation.run(&[]).ok();
    assert!(busy.stderr.contains("busy; asking again"), "{}", busy.stderr);
    assert_eq!(busy.json()["comparisons"][0]["ties"], 4);
    assert_eq!(judge.bodies().len(), 10);

    let refusing = ApiStandIn::start(|number, _| match number {
        0 => chat("[[C]]"),
        _ => Reply { status: 400, headers: "", body: json!({"error": {"message": "too long"}}) },
    });
    let evaluation = Evaluation::new(&one.url, &other.url, &refusing.url);
    evaluation.run(&["judge.concurrency=1"]).fails(1, &["/chat/completions: 400", "too long"]);
    // What was answered before is kept.
    assert_eq!(evaluation.log("judgments.jsonl").len(), 1);
}

#[test]
fn what_is_wrong_is_named() {
    let (one, other) = (model("long answer"), model("short"));
    let evaluation = Evaluation::new(&one.url, &other.url, "ftp://127.0.0.1:1/v1");
    evaluation.run(&[]).fails(2, &["ftp://127.0.0.1:1/v1", "https://HOST/v1"]);
    let judge = ApiStandIn::start(|_, _| Reply::ok(json!({"choices": []})));
    let evaluation = Evaluation::new(&one.url, &other.url, &judge.url);
    evaluation.run(&[]).fails(1, &["choices.0.message.content"]);
    for (settings, words) in [
        (&["judge={}"][..], &["judge", "url", "checkpoint"][..]),
        (&["judge.key_env=NO_SUCH_KEY_HERE"], &["NO_SUCH_KEY_HERE"]),
        (&["judge.concurrency=0"], &["judge.concurrency"]),
        (&["models.1.name=long"], &["models.1.name", "another model"]),
        (&["models.1.name=../x"], &["models.1.name", "letters"]),
        (&["mode=triple"], &["mode", "pairwise"]),
        (&["jugde=1"], &["jugde", "judge"]),
    ] {
        evaluation.run(settings).fails(2, words);
    }
    let write = |name: &str, text: &str| {
        let path = evaluation.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let set = |key: &str, path: &Path| format!("{key}={}", path.display());
    for (text, words) in [
        ("", &["is empty"][..]),
        ("[1]\n", &[":1", "expected an object"]),
        (
            "{\"question_id\": 1, \"turns\": [\"a\"]}\n{\"question_id\": 1, \"turns\": [\"a\"]}\n",
            &[":2", "question_id"],
        ),
        ("{\"question_id\": 1, \"turns\": []}\n", &["turns", "1 to"]),
        ("{\"turns\": [\"a\"]}\n", &["question_id"]),
        (
            "{\"question_id\": 7, \"category\": \"coding\", \"turns\": [\"a\"]}\n",
            &["question 7", "right answers", "references"],
        ),
    ] {
        let path = write("questions.jsonl", text);
        evaluation.run(&[&set("questions", &path)]).fails(1, words);
    }
    let path = write(
        "prompts.jsonl",
        "{\"type\": \"pairwise\", \"prompt_template\": \"{question} {answer_c}\"}\n",
    );
    evaluation.run(&[&set("prompts", &path)]).fails(1, &["{answer_c}", "answer_a"]);
    let answers = write("answers.jsonl", "{\"question_id\": 1, \"text\": \"only one\"}\n");
    let given = format!("models.0={{name: long, answers: {:?}}}", answers.display().to_string());
    evaluation.run(&[&given]).fails(1, &["question 1", "2 turns"]);
}

#[test]
fn an_endpoint_may_have_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (roots, config) = authority(folder.path());
    let judge = ApiStandIn::start_with_tls(config, |_, request| chat(verdict(asked(request))));
    assert!(judge.url.starts_with("https://"));
    let (one, other) = (model("long answer"), model("short"));
    let evaluation = Evaluation::new(&one.url, &other.url, &judge.url);
    let mut trusting = evaluation.command(&[]);
    Finished::from(trusting.env("SSL_CERT_FILE", &roots).output().unwrap()).ok();
    assert!(!judge.bodies().is_empty());
    // A file without certificates, and the roots of the system, do not know it.
    let mut wrong = evaluation.command(&["output=other"]);
    wrong.env("SSL_CERT_FILE", folder.path().join("missing.pem"));
    Finished::from(wrong.output().unwrap()).fails(2, &["SSL_CERT_FILE", "missing.pem"]);
}
