//! Conversations of ShareGPT: cleaned, split and filtered, alone and as a source.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::{Value, json};

use super::apply::{apply, apply_lines, one};
use super::{Project, expected, json_lines, reasons, row};
use crate::harness::{Finished, altiplano, corpus, repository};

fn turn(from: &str, value: &str) -> Value {
    json!({"from": from, "value": value})
}

fn pair(answer: &str) -> Vec<Value> {
    vec![turn("human", "A question here?"), turn("gpt", answer)]
}

/// The messages that `sharegpt_clean` leaves, or the reason it drops them for.
#[track_caller]
fn clean(options: &str, turns: Vec<Value>) -> Result<Vec<Value>, String> {
    let object = json!({"id": "a", "conversations": turns, "model": "x"});
    let applied = apply("sharegpt_clean", options, &[object]);
    match (&applied.kept[..], &applied.dropped[..]) {
        ([kept], []) => {
            let rest = (&kept["id"], &kept["model"], kept.get("text"));
            assert_eq!(rest, (&json!("a"), &json!("x"), None));
            Ok(kept["conversations"].as_array().unwrap().clone())
        }
        ([], [dropped]) => Err(dropped["reason"].as_str().unwrap().to_owned()),
        other => panic!("{other:?}"),
    }
}

/// Messages of web pages come out as Markdown without what the page added.
#[test]
fn messages_become_markdown() {
    for (html, markdown) in [
        ("<p>An <b>answer</b>.</p>", "An **answer**."),
        ("<div class=\"a\"><span>An answer</span></div>", "An answer"),
        // Code with its language, and the white space before its first line.
        (
            "<pre><div class=\"b\"><span>c</span><button>Copy code</button></div><code>  int x;\n</code></pre>",
            "```c\n  int x;\n```",
        ),
        // A plain block before one with the button stays as it is.
        (
            "<pre><code>plain\n</code></pre><p>and</p><pre><div>rust<button>Copy code</button></div><code>x\n</code></pre>",
            "```\nplain\n```\n\nand\n\n```rust\nx\n```",
        ),
        ("<p>Nothing:</p><pre>Copy code</pre><p>there.</p>", "Nothing:\n\nthere."),
        // The page's counter of answers, and a number that is none.
        ("2 / 3\n\n<p>An answer</p>", "An answer"),
        ("1 / 2 cup of flour", "1 / 2 cup of flour"),
        ("An answerCopy12 chars / 3 words", "An answer"),
        ("<ul><li>a</li><li>b</li></ul>", "* a\n* b"),
        ("<h2>Head</h2><p>snake_case</p>", "## Head\n\nsnake_case"),
        ("one<br><br><br>two", "one\ntwo"),
    ] {
        assert_eq!(clean("", pair(html)), Ok(pair(markdown)), "{html}");
    }
    assert_eq!(clean("html: false\n", pair(" <p>An answer</p> ")), Ok(pair("<p>An answer</p>")));
}

/// What is taken off a conversation, and what becomes of all of it.
#[test]
fn conversations_are_rounds() {
    let mut long = vec![turn("gpt", "Hello.")];
    long.extend(pair("An answer."));
    long.extend(pair("<div></div>"));
    long.push(turn("human", "One more?"));
    assert_eq!(clean("", long), Ok(pair("An answer.")));
    // A character that cannot be printed ends the conversation too.
    let mut broken = pair("An answer.");
    broken.extend(pair("\u{200b}hidden"));
    assert_eq!(clean("", broken), Ok(pair("An answer.")));
    for (turns, reason) in [
        (vec![], "too_short"),
        (vec![turn("human", "x")], "too_short"),
        (vec![turn("gpt", "x"), turn("human", "y")], "too_short"),
        (vec![turn("human", "a"), turn("gpt", "b")], "too_short"),
        (vec![turn("human", "a"), turn("human", "b"), turn("gpt", "c")], "wrong_format"),
        (vec![turn("human", "a"), turn("gemini", "b")], "unknown_speaker"),
        (vec![turn("user", "a"), turn("Human", "b"), turn("chatgpt", "c")], "wrong_format"),
        (vec![turn("user", "a"), turn("system", "b")], "wrong_format"),
        (pair("As OpenAI says, no."), "blocked_words"),
        (pair("<p>chat<b></b>GPT</p> CHATGPT"), "blocked_words"),
        (pair("Too many requests in 1 hour. Try again later."), "blocked_words"),
        (pair("!Too many requests in 1 hour. Try again later."), "blocked_words"),
    ] {
        assert_eq!(clean("", turns), Err(reason.to_owned()));
    }
    assert_eq!(
        clean("blocked_words: [question]\n", pair("An answer.")),
        Err("blocked_words".to_owned())
    );
    assert!(clean("blocked_words: []\n", pair("Of OpenAI.")).is_ok());
    apply_lines("sharegpt_clean", "blocked_words: ['']\n", b"").fails(2, &["blocked_words"]);
    assert_eq!(one("sharegpt_clean", "", "[1]"), Err("bad_conversation".to_owned()));
    let plugin = json!({"id": "p", "conversations": pair("An answer."), "plugins": ["browser"]});
    let applied = apply("sharegpt_clean", "", &[plugin]);
    assert_eq!(applied.dropped[0]["reason"], "plugin");
}

/// Collections call the two speakers by many names; the system's message goes, as all that is said before the
/// first question.
#[test]
fn speakers_have_many_names() {
    let expected = pair("An answer.");
    for (asks, answers) in [
        ("user", "chatgpt"),
        ("human", "bing"),
        ("human", "bard"),
        ("user", "assistant"),
        ("Human", "GPT"),
    ] {
        let turns = vec![turn(asks, "A question here?"), turn(answers, "An answer.")];
        assert_eq!(clean("", turns.clone()), Ok(expected.clone()), "{asks} {answers}");
        let with_system = [vec![turn("system", "Be brief.")], turns].concat();
        assert_eq!(clean("", with_system), Ok(expected.clone()), "{asks} {answers}");
    }
}

#[test]
fn broken_models_are_seen_by_their_messages() {
    let filter = |options: &str, answer: &str| {
        let object = json!({"id": "a", "conversations": pair(answer)});
        let applied = apply("sharegpt_filter", options, &[object]);
        applied.dropped.first().map(|dropped| dropped["reason"].as_str().unwrap().to_owned())
    };
    assert_eq!(filter("", "A list:\n1. a\n1. b").as_deref(), Some("wrong_list"));
    assert_eq!(filter("wrong_lists: false\n", "A list:\n1. a\n1. b"), None);
    assert_eq!(filter("", "A list:\n1. a\n2. b"), None);
    assert_eq!(filter("", "It is 777777777."), None);
    let digits = filter("repeated_digits: true\n", "It is 777777777.");
    assert_eq!(digits.as_deref(), Some("repetition"));
}

/// No message is lost where a conversation is cut, and pieces are as long as they may be.
#[test]
fn long_conversations_become_several() {
    let model = corpus().join("tokenizer.model").display().to_string();
    let words = |count: usize| vec!["the"; count].join(" ");
    let objects: Vec<Value> = (0..40)
        .map(|number| {
            let turns = (0..2 * (1 + number % 5)).map(|at| {
                let from = if at % 2 == 0 { "human" } else { "gpt" };
                turn(from, &words(1 + (number * 7 + at * at * 3) % 40))
            });
            json!({"id": format!("c{number}"), "conversations": turns.collect::<Vec<_>>(), "kept": number})
        })
        .collect();
    let options = format!("tokenizer: {model:?}\nmax_length: 100\n");
    let pieces = apply("sharegpt_split", &options, &objects).kept;
    assert!(pieces.len() > objects.len(), "{} pieces", pieces.len());
    let mut joined: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for piece in &pieces {
        let (id, first) = piece["id"].as_str().unwrap().rsplit_once('_').unwrap();
        let before = joined.entry(id.to_owned()).or_default();
        assert_eq!(before.len(), first.parse::<usize>().unwrap(), "{piece}");
        let turns = piece["conversations"].as_array().unwrap();
        assert!(!turns.is_empty() && turns.len() % 2 == 0, "{piece}");
        before.extend(turns.clone());
        assert_eq!(format!("c{}", piece["kept"]), id);
    }
    for object in &objects {
        let turns = &joined[object["id"].as_str().unwrap()];
        assert_eq!(turns, object["conversations"].as_array().unwrap());
    }
    apply_lines("sharegpt_split", "", b"").fails(2, &["tokenizer"]);
}

/// The shipped configuration: every conversation is accounted for, and what is left is an example.
#[test]
fn pages_of_chats_become_examples() {
    let project = Project::new("");
    let file = repository("tests/fixtures/sft/web_chats.jsonl");
    let text = std::fs::read_to_string(repository("configs/data/sharegpt.yaml")).unwrap();
    let model = corpus().join("tokenizer.model");
    let split = format!("- sharegpt_split: {{tokenizer: {model:?}, max_length: 60}}");
    let text = text
        .replace("../../runs/sharegpt", "out")
        .replace("../../tests/fixtures/sft/web_chats.jsonl", file.to_str().unwrap())
        .replace("# - sharegpt_split: {tokenizer: ../../runs/llama/data/tokenizer.model, max_length: 2048}", &split);
    project.write("data.yaml", text);
    let report = project.run(&[]);
    let counted = [
        ("blocked_words", 1),
        ("duplicate", 1),
        ("plugin", 1),
        ("too_short", 1),
        ("wrong_list", 1),
    ];
    assert_eq!(reasons(row(&report, "sharegpt")), expected(&counted));
    let steps = row(&report, "sharegpt")["steps"].as_array().unwrap();
    let split = steps.iter().find(|step| step["step"] == "sharegpt_split").unwrap();
    assert_eq!(split["stats"]["split_docs"], 1, "{split}");
    let mut cat = altiplano();
    cat.args(["data", "cat", "--format", "sharegpt"]).arg(project.path("out/documents"));
    let examples = json_lines(&Finished::from(cat.output().unwrap()).ok().stdout);
    let mut ids: Vec<&str> = examples.iter().map(|one| one["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids.len(), 3, "{ids:?}");
    let code = examples.iter().find(|one| one.to_string().contains("python")).unwrap();
    let code = code["conversations"].as_array().unwrap().last().unwrap()["value"].as_str();
    assert_eq!(
        code,
        Some("With a loop:\n\n```python\n    for whale in sea:\n        count += 1\n```")
    );
    // Documents of another kind are not conversations.
    let mut wrong = altiplano();
    wrong.args(["data", "cat", "--format", "sharegpt"]).arg(corpus().join("documents/early"));
    Finished::from(wrong.output().unwrap()).fails(1, &["not a conversation"]);
}

#[test]
fn the_language_is_that_of_the_messages() {
    let german = "Der Hafen liegt am Ende der langen Strasse, gleich hinter dem alten Markt.";
    let object = json!({"id": "a", "conversations": [turn("human", german), turn("gpt", german)]});
    let apply = |options: &str| apply("language", options, std::slice::from_ref(&object));
    let kept = apply("conversation: true\nthreshold: 0\nskip: [ko]\n").kept;
    assert_eq!(
        (&kept[0]["language"], &kept[0]["conversations"]),
        (&json!("de"), &object["conversations"])
    );
    let dropped = apply("conversation: true\nthreshold: 0\nskip: [de]\n").dropped;
    assert_eq!(dropped[0]["reason"], "language_skipped");
    apply_lines("language", "skip: [de]\nkeep: [en]\n", b"").fails(2, &["skip", "keep"]);
}

/// Messages in are messages out, messages taken off, and those of conversations that were dropped.
#[test]
fn every_message_is_accounted_for() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let values = [
        "<p>A whole sentence stands here.</p>",
        "<div></div>",
        "\u{200b}x",
        "ChatGPT says",
        "Yes.",
    ];
    let mut lines = String::new();
    let mut messages = BTreeMap::new();
    for number in 0..400 {
        let count = rng.random_range(0..9);
        let shift = usize::from(rng.random_range(0..6) == 0);
        let turns: Vec<Value> = (0..count)
            .map(|at| {
                // Mostly in turns.
                let human = ((at + shift) % 2 == 0) != (rng.random_range(0..12) == 0);
                let pick = rng.random_range(0..24usize);
                turn(if human { "human" } else { "gpt" }, values[pick.saturating_sub(19)])
            })
            .collect();
        let id = format!("c{number}");
        lines.push_str(&format!("{}\n", json!({"id": id, "conversations": turns})));
        messages.insert(id, count as u64);
    }
    let project = Project::new(
        "- {name: chats, sharegpt: {paths: [chats.jsonl]}, steps: [{sharegpt_clean: {}}]}\n",
    );
    project.write("chats.jsonl", lines);
    let report = project.run(&[]);
    let step = &row(&report, "chats")["steps"][1]["stats"];
    let mut parts = 0;
    for reason in ["before_first_question", "unanswered_question", "from_first_unreadable"] {
        let count = step["removed"][reason]["parts"].as_u64().unwrap();
        assert!(count > 0, "{reason}: {step}");
        parts += count;
    }
    for reason in ["too_short", "wrong_format", "blocked_words"] {
        assert!(step["dropped_docs"][reason].as_u64().unwrap() > 0, "{reason}: {step}");
    }
    let all: u64 = messages.values().sum();
    let documents = project.documents("chats");
    assert!(documents.len() > 50, "{} kept", documents.len());
    let mut out = 0;
    for document in &documents {
        let turns: Vec<Value> = serde_json::from_str(document["text"].as_str().unwrap()).unwrap();
        out += turns.len() as u64;
        // What is left in the end are those that were dropped.
        messages.remove(document["id"].as_str().unwrap()).unwrap();
    }
    assert_eq!(all, out + parts + messages.values().sum::<u64>());
}
