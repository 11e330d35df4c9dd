//! `data apply`: one step over JSON lines, with what a user gets for right and wrong input.

use altiplano_data::pipeline::{SourceConfig, StepConfig};
use serde_json::{Value, json};

use super::{Project, fixture, gzip, json_lines, run_with_input, texts};
use crate::harness::{Finished, repository};

/// What a step left and what it dropped.
pub(super) struct Applied {
    pub kept: Vec<Value>,
    pub dropped: Vec<Value>,
}

/// Runs `objects` through a step whose options are `options` in YAML; empty: the defaults.
#[track_caller]
pub(super) fn apply(step: &str, options: &str, objects: &[Value]) -> Applied {
    let lines: String = objects.iter().map(|object| format!("{object}\n")).collect();
    let finished = apply_lines(step, options, lines.as_bytes()).ok();
    let dropped = finished.stderr.lines().filter(|line| line.starts_with('{'));
    Applied {
        kept: json_lines(&finished.stdout),
        dropped: json_lines(&dropped.map(|line| format!("{line}\n")).collect::<String>()),
    }
}

pub(super) fn apply_lines(step: &str, options: &str, lines: &[u8]) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("options.yaml");
    std::fs::write(&file, options).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let mut arguments = vec!["data", "apply", step];
    if !options.is_empty() {
        arguments.extend(["--config", &file]);
    }
    run_with_input(&arguments, lines)
}

/// The text that a step makes of `text`, or the reason it drops it for.
#[track_caller]
pub(super) fn one(step: &str, options: &str, text: &str) -> Result<String, String> {
    let applied = apply(step, options, &[json!({"id": "a", "text": text})]);
    match (&applied.kept[..], &applied.dropped[..]) {
        ([kept], []) => Ok(kept["text"].as_str().unwrap().to_owned()),
        ([], [dropped]) => {
            assert_eq!((&dropped["id"], &dropped["step"]), (&json!("a"), &json!(step)));
            Err(dropped["reason"].as_str().unwrap().to_owned())
        }
        other => panic!("{other:?}"),
    }
}

/// CCNet's paragraph hashes: the line, its normal form, and the first 8 bytes of its SHA-1 in
/// hexadecimal and as a little-endian number.
const GOLDEN: [(&str, &str, &str, u64); 8] = [
    ("", "", "da39a3ee5e6b4b0d", 957977401221134810),
    ("_Hello", "_hello", "205a0b60fa951c0a", 728622142312897056),
    ("Read More…", "read more", "59a5c610074c286a", 7649447560318723417),
    ("Call 555-1234 now!", "call 000-0000 now!", "0f648458195ee12e", 3378084658456847375),
    ("  Tabs\tand\u{b}VT  ", "tabsandvt", "11110909e5543959", 6429263285723926801),
    ("１２３", "000", "8aefb06c426e07a0", 11531306602475876234),
    ("“Quoted” – text", "quoted  text", "8091a190cd552cad", 12478443008919966080),
    (
        "Copyright © 2019 Acme. All rights reserved.",
        "copyright © 0000 acme. all rights reserved.",
        "e8b1a49504874f09",
        670903323261710824,
    ),
];

#[test]
fn paragraph_hashes_are_those_of_cc_net() {
    let page = GOLDEN.map(|(line, ..)| line).join("\n");
    let mut objects: Vec<_> = GOLDEN.iter().map(|(line, ..)| json!({"text": line})).collect();
    objects.push(json!({"text": page}));
    let hashed = apply("ccnet_hash", "", &objects).kept;
    let normal = apply("ccnet_normalize", "", &objects).kept;
    for (at, (line, normalised, hex, number)) in GOLDEN.into_iter().enumerate() {
        let metadata = &hashed[at]["metadata"];
        assert_eq!(metadata["hashes"], json!([number]), "{line}");
        assert_eq!(metadata["hashes_hex"], json!([hex]), "{line}");
        assert_eq!((&hashed[at]["text"], &normal[at]["text"]), (&json!(line), &json!(normalised)));
        // Lines of one page are hashed one by one.
        assert_eq!(hashed[8]["metadata"]["hashes"][at], number);
    }
    assert_eq!(normal[8]["text"], GOLDEN.map(|(_, normalised, ..)| normalised).join("\n"));
}

#[test]
fn other_fields_stay_and_every_dropped_line_is_told() {
    let long = "x".repeat(10);
    let lines = [
        json!({"id": "a", "text": long, "score": 0.25, "tags": ["x", {"y": null}], "url": "http://u/"})
            .to_string(),
        "not json".into(),
        json!({"id": "short", "text": "ééééééééé"}).to_string(),
        "[1, 2]".into(),
        json!({"id": 7, "text": long, "metadata": {"k": "v"}}).to_string(),
        json!({"id": "none"}).to_string(),
        String::new(),
        json!({"text": long}).to_string(),
        json!({"id": "number", "text": 5}).to_string(),
        "{\"id\": \"cut\", \"text\": \"xxxxxxxxxxxxx".into(),
    ];
    let mut input = lines.join("\n").into_bytes();
    input.extend_from_slice(b"\n{\"id\": \"bytes\", \"text\": \"\xff\xfe and more text\"}\n");
    // More lines than go through the step together, the last without a line end.
    for number in 0..1000 {
        input.extend(json!({"id": format!("n{number}"), "text": long}).to_string().into_bytes());
        input.push(b'\n');
    }
    input.pop();
    let finished = apply_lines("min_length", "chars: 10\n", &input).ok();
    let kept = json_lines(&finished.stdout);
    assert_eq!(
        kept[..3],
        [
            json!({"id": "a", "text": long, "score": 0.25, "tags": ["x", {"y": null}],
                "url": "http://u/"}),
            json!({"id": 7, "text": long, "metadata": {"k": "v"}}),
            json!({"id": "line 8", "text": long}),
        ]
    );
    let rest: Vec<_> = kept[3..].iter().map(|object| object["id"].as_str().unwrap()).collect();
    assert_eq!(rest, (0..1000).map(|number| format!("n{number}")).collect::<Vec<_>>());

    let dropped = json_lines(&finished.stderr);
    let reasons: Vec<_> = dropped.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons.len(), 7, "{}", finished.stderr);
    assert_eq!((&dropped[0]["id"], reasons[0]), (&json!("line 2"), "bad_json"));
    // 9 characters of 2 bytes each are too few.
    assert_eq!((&dropped[1]["id"], reasons[1]), (&json!("short"), "short"));
    assert_eq!(dropped[1]["bytes"], 18);
    assert!(dropped[1]["detail"].as_str().unwrap().contains("9 characters"));
    assert_eq!((&dropped[2]["id"], reasons[2]), (&json!("line 4"), "bad_json"));
    for (at, line) in [(3, "none"), (4, "number")] {
        assert!(dropped[at].to_string().contains(line), "{}", dropped[at]);
        assert!(dropped[at]["detail"].as_str().unwrap().contains("\"text\""), "{}", dropped[at]);
    }
    assert_eq!((&dropped[5]["id"], reasons[5]), (&json!("line 10"), "bad_json"));
    assert_eq!((&dropped[6]["id"], reasons[6]), (&json!("line 11"), "bad_json"));
}

#[test]
fn mistakes_of_usage_name_the_nearest() {
    apply_lines("min_lenght", "", b"").fails(2, &["min_lenght", "did you mean \"min_length\"?"]);
    apply_lines("cc_net_hash", "", b"").fails(2, &["did you mean \"ccnet_hash\"?"]);
    // The name of a key before it was spelled as SPDX does.
    apply_lines("github_filter", "licences: [mit]\n", b"")
        .fails(2, &["options.yaml:1:1", "licences", "did you mean \"licenses\"?"]);
    apply_lines("zzz", "", b"").fails(2, &["zzz", "ccnet_normalize", "c4"]);
    // A step over all documents cannot run over one.
    apply_lines("dedup_lines", "", b"").fails(2, &["dedup_lines", "single documents"]);
    let options = |step: &str, options: &str| apply_lines(step, options, b"");
    options("min_length", "char: 5\n").fails(2, &["options.yaml:1:1", "\"char\"", "\"chars\""]);
    options("c4", "min_sentences: 3\nmin_word_per_line: 5\n")
        .fails(2, &["options.yaml:2:1", "did you mean \"min_words_per_line\"?"]);
    options("c4", "preset: c4-tdfs\n").fails(2, &["options.yaml:1:", "c4-tdfs", "c4-tfds"]);
    options("min_length", "chars: many\n").fails(2, &["options.yaml:1:8", "chars"]);
    options("min_length", "chars: 0\n").fails(2, &["chars", "at least 1"]);
    options("language", "threshold: 1.5\n").fails(2, &["threshold", "1.5", "0 to 1"]);
    options("min_length", "chars: [\n").fails(2, &["options.yaml"]);
    run_with_input(&["data", "apply", "c4", "--config", "no/such.yaml"], b"")
        .fails(2, &["no/such.yaml"]);
    // What a step cannot do without.
    apply_lines("decontaminate", "", b"").fails(2, &["files"]);
    apply_lines("reference_classifier", "", b"").fails(2, &["model"]);
    options("decontaminate", "files: [none.txt]\n").fails(1, &["none.txt"]);
    options("language", "model: none.bin\n").fails(1, &["none.bin"]);
    run_with_input(&["data", "apply"], b"").fails(2, &["STEP"]);
}

/// The options may also stand as in a data configuration, below the step's name.
/// The page about data has a line for every step and every kind of source, in the program's order.
#[test]
fn the_page_about_data_lists_every_step_and_kind() {
    let page = std::fs::read_to_string(repository("docs/data.md")).unwrap();
    let rows = |head: &str| -> Vec<&str> {
        let table = page.lines().skip_while(|line| !line.starts_with(head)).skip(2);
        let row = |line: &'_ str| -> Option<usize> { line.strip_prefix("| `")?.find('`') };
        table.map_while(|line| row(line).map(|end| &line[3..3 + end])).collect()
    };
    assert_eq!(rows("| step |"), [StepConfig::DOCUMENT_STEPS, StepConfig::GLOBAL_STEPS].concat());
    assert_eq!(rows("| kind |"), SourceConfig::KINDS);
}

#[test]
fn options_may_stand_below_the_steps_name() {
    for options in ["chars: 4\n", "min_length: {chars: 4}\n"] {
        assert_eq!(one("min_length", options, "four"), Ok("four".into()));
        assert_eq!(one("min_length", options, "two"), Err("short".into()));
    }
}

const SENTENCES: &str = "This is the first sentence of it.\nHere comes the second sentence now.\n\
                         And this here is the third one.";

#[test]
fn rules_of_c4() {
    let page =
        format!("Home | News\n{SENTENCES}\nOnly four words here.\nA claim[12] is made here.");
    assert_eq!(one("c4", "", &page), Ok(format!("{SENTENCES}\nA claim is made here.")));
    let reason = |options: &str, text: &str| {
        one("c4", options, &format!("{SENTENCES}\n{text}")).unwrap_err()
    };
    assert_eq!(reason("", "Here is lorem ipsum dolor sit."), "filtered-page-loremipsum");
    assert_eq!(reason("", "Here a { opens in the line."), "filtered-page-squigglybracket");
    assert!(one("c4", "", "Two sentences are here. No more of them.").is_err());
    assert!(one("c4", "preset: c4-datatrove\n", SENTENCES).is_err(), "5 sentences");
    assert_eq!(one("c4", "min_sentences: 1\n", "One sentence is enough here."), {
        Ok("One sentence is enough here.".into())
    });
}

#[test]
fn html_becomes_text() {
    let page = "<html><head><title>A &amp; B</title><style>p {}</style></head><body><h1>Head</h1>\
                <p>one <b>two</b><br>three</p><script>no()</script></body></html>";
    let applied = apply("html", "", &[json!({"id": "a", "text": page})]);
    assert_eq!(applied.kept[0]["metadata"]["title"], "A & B");
    assert_eq!(applied.kept[0]["text"], "Head\none two\nthree");
    assert_eq!(one("html", "", "<script>only()</script>"), Err("empty".into()));
    let post =
        "<p>How?</p>\n\n<pre><code>for x in y:\n    if x &lt; 1:\n        z()\n</code></pre>\n";
    let text = one("stack_exchange_html", "", post).unwrap();
    assert_eq!(text, "How?\n\nfor x in y:\n    if x < 1:\n        z()");
}

#[test]
fn languages_are_told_apart_without_a_model() {
    let english = "The government of the United States has laid before the Congress a full \
                   account of what was done during the year that has now come to its end.";
    let german = "Die Regierung hat dem Parlament einen vollständigen Bericht über alles \
                  vorgelegt, was in dem nun zu Ende gegangenen Jahr getan worden ist.";
    let objects = [
        json!({"id": "en", "text": english}),
        json!({"id": "de", "text": german}),
        json!({"id": "none", "text": "123 456"}),
    ];
    let applied = apply("language", "keep: [en]\n", &objects);
    assert_eq!(applied.kept.len(), 1);
    assert_eq!(
        (&applied.kept[0]["id"], &applied.kept[0]["language"]),
        (&json!("en"), &json!("en"))
    );
    let score = applied.kept[0]["language_score"].as_f64().unwrap();
    assert!((0.5..=1.0).contains(&score) && (score * 100.0).round() / 100.0 == score, "{score}");
    let dropped: Vec<_> =
        applied.dropped.iter().map(|line| (&line["id"], &line["reason"])).collect();
    assert_eq!(
        dropped,
        [
            (&json!("de"), &json!("language_not_kept")),
            (&json!("none"), &json!("language_below_threshold")),
        ]
    );
}

#[test]
fn evaluation_texts_are_found_by_runs_of_words() {
    let project = Project::new("");
    let question =
        "Which of the seven wise men of ancient Greece is said to have fallen into a well?";
    project.write("eval.jsonl.gz", gzip(json!({"q": question, "a": "x"}).to_string().as_bytes()));
    let file = project.path("eval.jsonl.gz");
    let options = |more: &str| {
        format!("files: [{file:?}]\nfields: [q]\n{more}", file = file.to_str().unwrap())
    };
    // Case and punctuation do not count; accents before the run do not shift what is shown.
    let held =
        "Ünïcödé befòre. which of the SEVEN wise men of ancient Greece, is said to have, then";
    let twelve = "of the seven wise men of ancient Greece is said to have been the first";
    let objects = [json!({"id": "held", "text": held}), json!({"id": "free", "text": twelve})];
    let applied = apply("decontaminate", &options(""), &objects);
    assert_eq!(texts(&applied.kept), [twelve]);
    assert_eq!(applied.dropped[0]["id"], "held");
    assert_eq!(applied.dropped[0]["reason"], "contaminated");
    let marked = apply("decontaminate", &options("mode: mark\n"), &objects).kept;
    assert_eq!(marked[0]["text"], held);
    let found = &marked[0]["metadata"]["contamination"];
    assert_eq!(found["files"], json!(["eval.jsonl.gz"]));
    let example = found["example"].as_str().unwrap().to_lowercase();
    assert!(example.starts_with("which of the seven") && example.ends_with("to have"), "{example}");
    assert_eq!(marked[1].get("metadata"), None);
    let fewer = apply("decontaminate", &options("ngram: 12\n"), &objects);
    assert!(fewer.kept.is_empty());
}

/// What a step does to the fixture by itself is what it does in a run.
#[test]
fn a_step_alone_is_the_step_of_a_run() {
    let archive = fixture("c4/c4-train.00001-of-00002.json.gz");
    let project = Project::new(&format!(
        "- name: c4\n  text: {{paths: [{:?}], format: jsonl, created_field: timestamp}}\n  \
         steps: [c4: {{preset: c4-datatrove}}]\n",
        archive.to_str().unwrap()
    ));
    let report = project.run(&[]);
    let step = &super::row(&report, "c4")["steps"][1]["stats"];
    let mut raw = String::new();
    let file = std::fs::File::open(&archive).unwrap();
    std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(file), &mut raw).unwrap();
    let finished = apply_lines("c4", "preset: c4-datatrove\n", raw.as_bytes()).ok();
    let kept = json_lines(&finished.stdout);
    assert_eq!(texts(&kept), texts(&project.documents("c4")));
    let dropped = json_lines(&finished.stderr).len() as u64;
    assert_eq!(step["docs_in"].as_u64().unwrap(), kept.len() as u64 + dropped);
    assert!(dropped > 0 && kept.len() > 50, "{dropped} dropped, {} kept", kept.len());
}

/// Texts of kinds that other tools were reported to break: what is there after a step, and what is
/// not. `{BODY}` stands for 200 lines of a book, `{LICENSE}` for as many of a license.
#[test]
fn steps_leave_what_they_should_of_texts_that_others_broke() {
    let line = |n: usize| {
        format!(
            "It was a fine day number {n} and the captain looked out over the water for a long while."
        )
    };
    let body = (0..200).map(line).collect::<Vec<_>>().join("\n");
    let clause = |n: usize| format!("1.E.{n}. Licence paragraph number {n} of many words.\n");
    let license: String = (0..60).map(clause).collect();
    let fill = |text: &str| text.replace("{BODY}", &body).replace("{LICENSE}", &license);
    let cases = json_lines(&std::fs::read_to_string(fixture("step_cases.jsonl")).unwrap());
    assert!(cases.len() >= 37);
    let mut wrong = Vec::new();
    for step in ["wikitext", "github_header", "latex", "gutenberg"] {
        let of_step: Vec<&Value> = cases.iter().filter(|case| case["step"] == step).collect();
        let options = of_step[0]["options"].as_str().unwrap_or_default();
        let inputs: Vec<Value> = of_step
            .iter()
            .map(|case| {
                let mut input = case["input"].clone();
                if let Some(text) = case["input"]["text"].as_str() {
                    input["text"] = fill(text).into();
                }
                input["id"] = case["name"].clone();
                input
            })
            .collect();
        let applied = apply(step, options, &inputs);
        for case in of_step {
            let Some(kept) = applied.kept.iter().find(|kept| kept["id"] == case["name"]) else {
                wrong.push(format!("{}: dropped", case["name"]));
                continue;
            };
            let text = kept["text"].as_str().unwrap();
            let words = |key: &str| {
                let list = case[key].as_array().cloned().unwrap_or_default();
                list.into_iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
            };
            let right = words("has").iter().all(|word| text.contains(word))
                && !words("not").iter().any(|word| text.contains(word))
                && case["text"].as_str().is_none_or(|whole| text.trim() == fill(whole).trim());
            if !right {
                wrong.push(format!("{}: {:.400}", case["name"], text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
