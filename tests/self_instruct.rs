//! `altiplano sft generate` against a stand-in of a server.

use std::fs;

use serde_json::{Value, json};

use crate::api_stand_in::{ApiStandIn, Reply};
use crate::harness::{Finished, altiplano, repository};

/// An answer of two instructions, the second cut short.
fn written(number: usize) -> String {
    let subject = ["rivers", "stones", "birds", "clouds", "towns", "letters", "clocks", "kings"];
    let verb = ["Compare", "Rank", "Praise", "Imagine", "Collect", "Question", "Translate", "Sing"];
    let (verb, subject) = (verb[number % 8], subject[number / 2 % 8]);
    format!(
        " {verb} number {number} of all {subject} quickly.\n3. Input:\n<noinput>\n3. Output:\nDone.\n\
         ###\n4. Instruction: Too few words\n4. Input:\n<noinput>\n4. Output:\nx\n\
         ###\n5. Instruction: This one is cut"
    )
}

fn config(url: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let seeds = repository("tests/fixtures/self_instruct/seed_tasks.jsonl");
    let text = format!(
        "output: out\nseed_tasks: {seeds:?}\nendpoint: {{ url: {url:?}, model: m }}\n\
         instructions: 6\nmax_requests: 10\nprompts_per_request: 2\ntasks_per_prompt: 2\n"
    );
    fs::write(dir.path().join("generate.yaml"), text).unwrap();
    dir
}

fn generate(dir: &tempfile::TempDir, overrides: &[&str]) -> Finished {
    let mut command = altiplano();
    command.args(["sft", "generate", "generate.yaml", "--json"]).args(overrides);
    command.current_dir(dir.path()).output().unwrap().into()
}

fn lines(dir: &tempfile::TempDir, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.path().join("out").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn server() -> ApiStandIn {
    // What is answered depends on the seed, which numbers the requests, and not on when it is asked.
    ApiStandIn::start(|_, request| {
        assert_eq!(request.path, "/v1/completions");
        let number = 2 * (request.body["seed"].as_u64().unwrap() as usize);
        let choice = |index: usize| json!({"index": index, "text": written(number + index), "finish_reason": "length"});
        // Not in order.
        Reply::ok(json!({"choices": [choice(1), choice(0)]}))
    })
}

#[test]
fn instructions_are_written_until_there_are_enough() {
    let server = server();
    let dir = config(&server.url);
    let report = generate(&dir, &[]).ok().json();
    let made = lines(&dir, "instructions.jsonl");
    assert!(made.len() >= 6, "{report}");
    let count = |name: &str| report["dropped"].get(name).and_then(Value::as_u64).unwrap_or(0);
    let requests = report["requests"].as_u64().unwrap();
    assert_eq!((count("too_short"), count("cut_short")), (2 * requests, 2 * requests));
    let kept = report["kept"].as_u64().unwrap();
    assert_eq!(kept, made.len() as u64);
    assert_eq!(
        report["written"],
        kept + count("too_short") + count("cut_short") + count("similar")
    );
    let first = &made[0];
    assert_eq!((&first["input"], &first["output"]), (&json!(""), &json!("Done.")));
    let similar = first["most_similar_instructions"].as_object().unwrap();
    // The four seed tasks are all there is before.
    assert_eq!(similar.len(), 4);
    let mean = similar.values().map(|score| score.as_f64().unwrap()).sum::<f64>() / 4.0;
    assert!((first["avg_similarity_score"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!(made[5]["most_similar_instructions"].as_object().unwrap().len() == 9);

    let body = &server.bodies()[0];
    assert_eq!((&body["model"], &body["stop"]), (&json!("m"), &json!(["\n20", "20."])));
    assert_eq!((&body["max_tokens"], &body["temperature"]), (&json!(3072), &json!(1.0)));
    let prompts = body["prompt"].as_array().unwrap();
    assert_eq!(prompts.len(), 2);
    for prompt in prompts.iter().map(|prompt| prompt.as_str().unwrap()) {
        assert!(prompt.ends_with("###\n3. Instruction:"), "{prompt}");
        assert!(prompt.contains("###\n1. Instruction: ") && prompt.contains("\n2. Output:\n"));
    }
    assert_ne!(prompts[0], prompts[1]);

    // Enough: nothing more is asked.
    let asked = server.bodies().len();
    assert_eq!(generate(&dir, &[]).ok().json(), report);
    assert_eq!(server.bodies().len(), asked);
}

/// Killed between the instructions of a request and its line: the same file comes out.
#[test]
fn a_killed_run_goes_on() {
    let whole = {
        let server = server();
        let dir = config(&server.url);
        generate(&dir, &[]).ok();
        fs::read_to_string(dir.path().join("out/instructions.jsonl")).unwrap()
    };
    let server = server();
    let dir = config(&server.url);
    generate(&dir, &["max_requests=2"]).ok();
    let path = dir.path().join("out/requests.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let (first, _) = text.split_once('\n').unwrap();
    fs::write(&path, format!("{first}\n{{\"request\": 1, \"ke")).unwrap();
    generate(&dir, &[]).ok();
    assert_eq!(fs::read_to_string(dir.path().join("out/instructions.jsonl")).unwrap(), whole);
    // With other settings it would be another run.
    generate(&dir, &["temperature=0.5"]).fails(1, &["requests.jsonl", "request 0", "output"]);
}

/// A server that has chat completions alone: every prompt is a conversation, and the answers are read as others.
#[test]
fn a_server_of_chats_writes_instructions() {
    let server = ApiStandIn::start(|_, request| {
        if request.path == "/v1/completions" {
            let error = json!({"error": {"message": "Not Found", "type": "NotFoundError"}});
            return Reply { status: 404, headers: "", body: error };
        }
        assert_eq!(request.path, "/v1/chat/completions");
        let number = request.body["seed"].as_u64().unwrap() as usize;
        // Some begin with the heading again.
        let heading = if number.is_multiple_of(2) { "Of course.\n\n3. Instruction:" } else { "" };
        let text = format!("{heading}{}", written(number));
        let message = json!({"role": "assistant", "content": text});
        Reply::ok(json!({"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}))
    });
    let dir = config(&server.url);
    generate(&dir, &[]).fails(1, &["404", "Not Found", "interface: chat"]);
    let chat = ["interface=chat"];
    let report = generate(&dir, &chat).ok().json();
    let requests = report["requests"].as_u64().unwrap();
    let made = lines(&dir, "instructions.jsonl");
    assert!(made.len() >= 6 && made.len() as u64 == report["kept"], "{report}");
    assert_eq!(report["dropped"]["cut_short"], 2 * requests);
    assert_eq!(made[0]["output"], "Done.");
    let asked: Vec<Value> =
        server.bodies().into_iter().filter(|body| body.get("messages").is_some()).collect();
    assert_eq!(asked.len() as u64, 2 * requests);
    for body in &asked {
        let [message] = &body["messages"].as_array().unwrap()[..] else { panic!("{body}") };
        assert_eq!(message["role"], "user");
        assert!(message["content"].as_str().unwrap().ends_with("###\n3. Instruction:"));
        assert_eq!((&body["stop"], &body["max_tokens"]), (&json!(["\n20", "20."]), &json!(3072)));
    }
    // Enough: nothing more is asked. The other interface would be another run.
    assert_eq!(generate(&dir, &chat).ok().json(), report);
    assert_eq!(server.bodies().len(), asked.len() + 1);
    generate(&dir, &["interface=completions"]).fails(1, &["request 0", "output"]);
}

#[test]
fn what_is_wrong_is_named() {
    let server = ApiStandIn::start(|_, _| Reply::ok(json!({"choices": [{"text": "x"}]})));
    let dir = config(&server.url);
    generate(&dir, &[]).fails(1, &["choices", "index"]);
    generate(&dir, &["endpoint.url=ftp://127.0.0.1/v1"]).fails(2, &["ftp", "https://HOST/v1"]);
    generate(&dir, &["top_p=2"]).fails(2, &["top_p", "0 to 1"]);
    generate(&dir, &["tasks_per_prompt=9"]).fails(1, &["4 tasks", "tasks_per_prompt"]);
    let path = dir.path().join("seeds.jsonl");
    for (text, words) in [
        ("{\"instruction\": \"a\"}\n", &[":1", "instances"][..]),
        ("{\"instruction\": \"a\", \"instances\": []}\n", &[":1", "instances", "empty"]),
        ("x\n", &[":1"]),
    ] {
        fs::write(&path, text).unwrap();
        generate(&dir, &[&format!("seed_tasks={}", path.display())]).fails(1, words);
    }
}
