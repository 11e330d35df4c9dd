//! Fine-tuning through the binary: what is trained, that it is learnt, and that it resumes.

use std::fs;
use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_data::chat::{ChatTemplate, Message};
use altiplano_data::sft::{ExampleEncoder, TrainOn, for_each_example};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::harness::{Finished, Running, SmallRun, altiplano, copy_dir, repository, run};

/// A base of one step with room for a chat template, and a fine-tuning configuration on it.
struct Sft {
    small: SmallRun,
}

impl Sft {
    fn new(template: &str, data: &str, settings: &str) -> Self {
        let small = SmallRun::new();
        let shape = ["model.max_seq_len=512", "model.dim=64", "model.hidden_dim=128"];
        let base = ["name=base", "steps=1", "validate.every=0"];
        small.train(&[&base[..], &shape].concat()).ok();
        let dir = small.dir.path();
        fs::write(dir.join("data.jsonl"), data).unwrap();
        let config = format!(
            "name: taught\noutput: runs\nbase: runs/base\nprecision: f32\ntemplate: {template}\n\
             data: [{{path: data.jsonl}}]\nmax_length: 256\nlog_every: 1\n{settings}"
        );
        fs::write(dir.join("sft.yaml"), config).unwrap();
        Self { small }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.small.dir.path().join(name)
    }

    fn sft(&self, arguments: &[&str]) -> Finished {
        self.sft_command(arguments).output().unwrap().into()
    }

    fn sft_command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = altiplano();
        command.arg("sft").arg(self.path("sft.yaml")).args(arguments);
        command
    }

    fn resume(&self, name: &str, arguments: &[&str]) -> Finished {
        let mut command = altiplano();
        command.arg("sft").arg("--resume").arg(self.small.run_dir(name)).args(arguments);
        command.output().unwrap().into()
    }
}

fn record(instruction: &str, output: &str) -> String {
    format!("{{\"instruction\": \"{instruction}\", \"output\": \"{output}\"}}\n")
}

/// Questions with answers of different lengths.
fn records(count: usize) -> String {
    let words = ["whale", "ship", "sea", "captain", "harpoon", "sail", "mast", "oar"];
    let answer = |n: usize| vec![words[n % words.len()]; n % 5 + 1].join(" ");
    (0..count).map(|n| record(&format!("Say number {n}."), &answer(n))).collect()
}

/// Eight answers are learnt by heart: the loss goes to nothing, each answer is given word for word, and the
/// model stops by itself.
#[test]
fn a_model_learns_its_answers_and_stops() {
    let answers: Vec<(String, String)> = [
        "The sea.",
        "A whale, sir!",
        "No.",
        "Seven oars",
        "x 12 y",
        "a\nb",
        "ja",
        "We sail at dawn.",
    ]
    .iter()
    .enumerate()
    .map(|(n, answer)| {
        (format!("Question {n}: {}?", ["who", "what", "why", "how"][n % 4]), (*answer).to_owned())
    })
    .collect();
    let data: String = answers.iter().map(|(q, a)| record(q, &a.replace('\n', "\\n"))).collect();
    let sft = Sft::new(
        "alpaca",
        &data,
        "steps: 300\nbatch: {examples: 8, micro_batch: 4}\nvalidate: {examples: 0}\n\
         optimizer: {lr: 5.0e-3, warmup_ratio: 0.05, beta2: 0.99}\n",
    );
    sft.sft(&[]).ok();
    let metrics = sft.small.metrics("taught");
    let loss = metrics.last().unwrap()["loss"].as_f64().unwrap();
    assert!(loss < 0.01, "{loss}");
    // Each kind of run names the command that goes on with it.
    let taught = sft.small.run_dir("taught");
    let resumed = ["train", "--resume", taught.to_str().unwrap()];
    run(resumed).fails(2, &["a fine-tuning", "altiplano sft --resume"]);
    let checkpoint = sft.small.run_dir("taught");
    for (question, answer) in &answers {
        let prompt = format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{question}\n\n### Response:"
        );
        let arguments = ["--prompt", &prompt, "--temperature", "0", "--json"];
        let generated = altiplano()
            .args(["generate", "--checkpoint"])
            .arg(&checkpoint)
            .args(arguments)
            .output()
            .unwrap();
        let json = Finished::from(generated).ok().json();
        assert_eq!(
            (json["text"].as_str(), json["finish_reason"].as_str()),
            (Some(answer.as_str()), Some("stop")),
            "{question}"
        );
    }
}

/// Answers come line by line; the oldest messages go when the context is full, and that is said once.
#[test]
fn a_conversation_comes_and_goes_by_the_line() {
    let sft = Sft::new(
        "vicuna_v1.1",
        &record("Hello?", "Ahoy there!"),
        "steps: 100\nbatch: {examples: 1, micro_batch: 1}\nvalidate: {examples: 0}\n\
         optimizer: {lr: 1.0e-2, warmup_ratio: 0.05}\n",
    );
    sft.sft(&[]).ok();
    let chat = |arguments: &[&str], input: &str| -> Finished {
        fs::write(sft.path("input"), input).unwrap();
        let mut command = altiplano();
        command.args(["generate", "--chat", "--temperature", "0", "--max-tokens", "12"]);
        command.arg("--checkpoint").arg(sft.small.run_dir("taught")).args(arguments);
        command.stdin(fs::File::open(sft.path("input")).unwrap()).output().unwrap().into()
    };
    let answers = chat(&[], "Hello?\n\nHello?").ok();
    let lines: Vec<&str> = answers.stdout.lines().collect();
    assert_eq!(lines[0], "Ahoy there!", "{answers:?}");
    assert!(lines.len() >= 2, "{answers:?}");
    assert!(!answers.stderr.contains("left out"), "{answers:?}");
    let many = chat(&["--json"], &"Hello?\n".repeat(30)).ok();
    assert_eq!(many.stdout.lines().count(), 30);
    let first: Value = serde_json::from_str(many.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(
        (first["text"].as_str(), first["finish_reason"].as_str()),
        (Some("Ahoy there!"), Some("stop"))
    );
    assert_eq!(many.stderr.matches("left out").count(), 1, "{}", many.stderr);
    chat(&[], &"long ".repeat(600)).fails(2, &["too long", "512"]);
    chat(&["--template", "alpaca", "--system", "Be brief."], "Hello?").ok();
    chat(&["--prompt", "x"], "").fails(2, &["--prompt", "--chat"]);
    let base = altiplano()
        .args(["generate", "--chat", "--checkpoint"])
        .arg(sft.small.run_dir("base"))
        .output()
        .unwrap();
    Finished::from(base).fails(1, &["tokenizer_config.json", "no chat_template", "--template"]);
}

/// Conversations of the fixtures: the loss on answers that were held out falls by half, and what comes of it
/// carries its template, exported too.
#[test]
fn held_out_answers_become_likelier_and_the_template_goes_along() {
    let data = fs::read_to_string(repository("tests/fixtures/sft/sentences.json")).unwrap();
    let sft = Sft::new(
        "vicuna_v1.1",
        &data,
        "steps: 60\nbatch: {examples: 8, micro_batch: 4}\nvalidate: {examples: 0.1, every: 60}\n\
         optimizer: {lr: 5.0e-3, warmup_ratio: 0.1}\n",
    );
    sft.sft(&["max_length=512"]).ok();
    let lines = sft.small.metrics_lines("taught");
    let val = |line: &Value| line["val_loss"].as_f64().unwrap();
    let (before, after) = (val(&lines[0]), val(lines.last().unwrap()));
    assert!(after < before / 2.0, "{before} {after}");
    let checkpoint = sft.small.checkpoint("taught", 60);
    let hf = sft.path("hf");
    let export = ["export", "--format", "hf", "--checkpoint"];
    let exported = altiplano().args(export).arg(&checkpoint).arg("--output").arg(&hf).output();
    Finished::from(exported.unwrap()).ok();
    for dir in [checkpoint, hf] {
        let text = fs::read_to_string(dir.join("tokenizer_config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let template = config["chat_template"].as_str().unwrap();
        assert!(template.contains("ASSISTANT:"), "{template}");
        // Its marks are ids in other programs too.
        assert_eq!(config["split_special_tokens"], false);
    }
}

/// The same step in packed rows, in rows of their own, and in passes of other sizes: one loss, one gradient.
#[test]
fn the_split_of_a_step_does_not_matter() {
    let settings = "steps: 2\nbatch: {examples: 12, micro_batch: 3}\nvalidate: {examples: 3, every: 1}\n\
                    optimizer: {lr: 1.0e-3}\n";
    let sft = Sft::new("alpaca", &records(40), settings);
    let numbers = |name: &str, overrides: &[&str]| {
        let name_override = format!("name={name}");
        let overrides: Vec<&str> = [&[name_override.as_str()], overrides].concat();
        sft.sft(&overrides).ok();
        let keys = ["loss", "grad_norm", "val_loss"];
        let of = |line: Value| keys.map(|key| line[key].as_f64().unwrap());
        sft.small.metrics(name).into_iter().map(of).collect::<Vec<_>>()
    };
    let packed = numbers("packed", &[]);
    for (name, overrides) in [
        ("single", vec!["packing=false"]),
        ("wide", vec!["batch.micro_batch=12"]),
        ("narrow", vec!["batch.micro_batch=1"]),
        ("full", vec!["activation_checkpointing=full", "packing=false", "batch.micro_batch=5"]),
    ] {
        let other = numbers(name, &overrides);
        // What a step computes, and what its update makes of the held-out loss.
        for (key, tolerance) in [(0, 1e-5), (1, 1e-5), (2, 1e-4)] {
            let (x, y) = (packed[0][key], other[0][key]);
            assert!((x - y).abs() <= tolerance * x.abs(), "{name}: {x} {y}");
        }
    }
}

/// Adapters are learnt, saved as PEFT's, go on bit for bit, answer as they are and merged.
#[test]
fn adapters_learn_resume_and_merge() {
    let settings = "steps: 120\nbatch: {examples: 2, micro_batch: 2}\nvalidate: {examples: 0}\n\
                    checkpoint: {every: 60}\noptimizer: {lr: 1.0e-2, warmup_ratio: 0.05, beta2: 0.99}\n";
    // A model that answers otherwise.
    let before = record("Question?", "A whale.") + &record("Where?", "The sea.");
    let sft = Sft::new("alpaca", &before, settings);
    sft.sft(&["name=before"]).ok();
    let base_file = sft.small.checkpoint("before", 120).join("model.safetensors");
    let base = fs::read(&base_file).unwrap();
    fs::write(sft.path("data.jsonl"), record("Question?", "The sea.")).unwrap();
    let base_override = format!("base={}", sft.small.run_dir("before").display());
    let lora =
        "lora={r: 8, alpha: 32, targets: [v_proj, o_proj, gate_proj, up_proj, down_proj, q_proj]}";
    sft.sft(&[&base_override, lora]).ok();
    let (half, whole) = (sft.small.checkpoint("taught", 60), sft.small.checkpoint("taught", 120));
    let adapters = |dir: &Path| fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let finished = adapters(&whole);
    assert!(!whole.join("model.safetensors").exists() && finished.len() < base.len());
    assert_ne!(adapters(&half), finished);
    fs::remove_dir_all(&whole).unwrap();
    sft.resume("taught", &[]).ok();
    assert!(adapters(&whole) == finished);
    let text = fs::read_to_string(whole.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(8), Some(32.0)));
    assert_eq!(config["target_modules"][0], "q_proj");
    let merged = sft.path("merged");
    let export = |arguments: &[&str]| -> Finished {
        let mut command = altiplano();
        command.args(["export", "--format", "hf", "--checkpoint"]).arg(&whole);
        command.arg("--output").arg(&merged).args(arguments).output().unwrap().into()
    };
    export(&[]).fails(1, &["adapters", "--merge"]);
    export(&["--merge"]).ok();
    let answer = |dir: &Path| {
        fs::write(sft.path("input"), "Question?\n").unwrap();
        let mut command = altiplano();
        command.args(["generate", "--chat", "--temperature", "0", "--checkpoint"]).arg(dir);
        command.stdin(fs::File::open(sft.path("input")).unwrap());
        Finished::from(command.output().unwrap()).ok().stdout
    };
    assert_eq!(answer(&whole), "The sea.\n");
    assert_eq!(answer(&merged), "The sea.\n");
    // The model itself is as it was.
    assert!(fs::read(&base_file).unwrap() == base);
    sft.sft(&["name=x", "lora.r=0"]).fails(2, &["lora.r"]);
    sft.sft(&["name=x", "lora.targets=[lm_head]"]).fails(2, &["lora.targets", "lm_head"]);
}

/// A model with one matrix as embedding and output head, and a tokenizer that is a `tokenizer.json` alone, is
/// taught as any other, all of it or by adapters of every matrix, which can be merged.
#[test]
fn a_tied_model_with_a_tokenizer_json_is_taught() {
    let settings = "steps: 200\nbatch: {examples: 1, micro_batch: 1}\nvalidate: {examples: 0}\n\
                    optimizer: {lr: 1.0e-2, warmup_ratio: 0.05, beta2: 0.99}\n";
    let sft = Sft::new("alpaca", &record("Question?", "The sea."), settings);
    let base = sft.path("tied");
    copy_dir(&repository("tests/golden/llama_kinds/smollm"), &base);
    copy_dir(&repository("tests/golden/byte_level_bpe"), &base);
    let json_of = |path: PathBuf| -> Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let mut config = json_of(base.join("config.json"));
    assert_eq!(config["tie_word_embeddings"], true);
    config["max_position_embeddings"] = 512.into();
    fs::write(base.join("config.json"), config.to_string()).unwrap();
    let base_override = format!("base={}", base.display());
    let lora = "lora={r: 8, alpha: 32, targets: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, \
                down_proj]}";
    sft.sft(&["name=all", &base_override]).ok();
    sft.sft(&["name=adapted", &base_override, lora]).ok();
    let (all, adapted) = (sft.small.checkpoint("all", 200), sft.small.checkpoint("adapted", 200));
    let merged = sft.path("merged");
    let mut export = altiplano();
    export.args(["export", "--merge", "--format", "hf", "--checkpoint"]).arg(&adapted);
    Finished::from(export.arg("--output").arg(&merged).output().unwrap()).ok();
    let chat = |dir: &Path, arguments: &[&str]| {
        fs::write(sft.path("input"), "Question?\n").unwrap();
        let mut command = altiplano();
        command.args(["generate", "--chat", "--temperature", "0", "--checkpoint"]).arg(dir);
        command.args(arguments).stdin(fs::File::open(sft.path("input")).unwrap());
        Finished::from(command.output().unwrap()).ok().stdout
    };
    let tokenizer = |dir: &Path| fs::read(dir.join("tokenizer.json")).unwrap();
    for dir in [&all, &adapted, &merged] {
        assert!(tokenizer(dir) == tokenizer(&base) && !dir.join("tokenizer.model").exists());
        let template = json_of(dir.join("tokenizer_config.json"))["chat_template"].clone();
        assert!(template.as_str().unwrap().contains("### Response:"), "{template}");
        assert_eq!(chat(dir, &[]), "The sea.\n", "{}", dir.display());
    }
    // PEFT writes adapters without a tokenizer: it is that of their model.
    let bare = sft.path("bare");
    fs::create_dir(&bare).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(adapted.join(name), bare.join(name)).unwrap();
    }
    assert_eq!(chat(&bare, &["--template", "alpaca"]), "The sea.\n");
    let weights = fs::read(merged.join("model.safetensors")).unwrap();
    let names = SafeTensors::deserialize(&weights).unwrap();
    assert!(!names.names().iter().any(|name| name.contains("lm_head")));
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let settings = "steps: 12\nbatch: {examples: 6, micro_batch: 2}\nvalidate: {examples: 4, every: 6}\n\
                    checkpoint: {every: 4}\noptimizer: {lr: 1.0e-3}\n";
    let sft = Sft::new("alpaca", &records(30), settings);
    sft.sft(&["name=whole"]).ok();
    let mut killed = Running::start(&mut sft.sft_command(&["name=killed"]));
    killed.wait_until(|stderr| stderr.contains("step  6/12"));
    killed.signal("KILL");
    killed.finish();
    // The base is not needed any more.
    fs::rename(sft.small.run_dir("base"), sft.path("away")).unwrap();
    sft.resume("killed", &[]).ok();
    assert_eq!(sft.small.numbers("killed"), sft.small.numbers("whole"));
    assert!(sft.small.tensors("killed", 12) == sft.small.tensors("whole", 12));

    sft.resume("killed", &["max_length=128"])
        .fails(2, &["max_length: 256 -> 128", "base starts it"]);
    let data = records(30).replacen("whale", "whales", 1);
    fs::write(sft.path("data.jsonl"), data).unwrap();
    sft.resume("killed", &["--checkpoint", "step_8"]).fails(1, &["the examples", "expected"]);
}

/// A finished run goes on for more epochs or steps, bit for bit as one that was planned for that length with
/// the same end of its decay.
#[test]
fn a_finished_run_is_extended() {
    // 26 examples: two epochs are 8 steps of 6, three are 13.
    let settings = "epochs: 2\nbatch: {examples: 6, micro_batch: 3}\nvalidate: {examples: 4, every: 4}\n\
                    checkpoint: {every: 4}\noptimizer: {lr: 1.0e-3, warmup_ratio: 0.3, min_lr_ratio: 0.1}\n";
    let sft = Sft::new("alpaca", &records(30), settings);
    sft.sft(&["name=planned", "epochs=3", "optimizer.decay_steps=8"]).ok();
    sft.sft(&["name=longer"]).ok();
    let done = sft.resume("longer", &[]).ok();
    assert!(done.stderr.contains("a larger `epochs` or `steps` extends"), "{}", done.stderr);
    let said = sft.resume("longer", &["epochs=3"]).ok().stderr;
    for part in ["from step 9 on, epochs: 2.0 -> 3.0", "optimizer.decay_steps: null -> 8"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains("optimizer.decay_steps=13"), "{said}");
    assert_eq!(sft.small.numbers("longer"), sft.small.numbers("planned"));
    assert!(sft.small.tensors("longer", 13) == sft.small.tensors("planned", 13));
    // By steps too, with a decay that goes on until the new end.
    sft.resume("longer", &["steps=14", "optimizer.decay_steps=14"]).ok();
    let last = sft.small.metrics("longer").last().unwrap()["lr"].as_f64().unwrap();
    assert!((last - 1e-4).abs() < 1e-12, "{last}");
    let changes = fs::read_to_string(sft.small.run_dir("longer").join("changes.jsonl")).unwrap();
    assert_eq!(changes.lines().count(), 5, "{changes}");
    sft.resume("longer", &["steps=9"]).fails(2, &["steps", "14", "--checkpoint"]);
}

#[test]
fn examples_are_shown_and_accounted_for_without_training() {
    let data = records(20) + &record("empty", " ") + &record("Say number 0.", "whale");
    let settings = "epochs: 2.5\nbatch: {examples: 4, micro_batch: 2}\nvalidate: {examples: 2}\n";
    let sft = Sft::new("vicuna_v1.1", &data, settings);
    let report = sft.sft(&["--dry-run", "--json", "drop_duplicates=true"]).ok();
    let json = report.json();
    let numbers = ["examples", "used", "held_out", "steps", "straddling"];
    assert_eq!(numbers.map(|key| json[key].as_u64().unwrap()), [22, 18, 2, 11, 0]);
    assert_eq!(json["dropped"], serde_json::json!({"duplicate": 1, "empty_response": 1}));
    assert!(
        report.stdout.contains("22 read = 18 used + 2 held out + 2 dropped"),
        "{}",
        report.stdout
    );
    let shown = sft.sft(&["--show", "1", "validate.examples=0"]).ok().stdout;
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with("data.jsonl record 0: "), "{shown}");
    assert!(lines[1].starts_with("           <s>|") && !lines[1].ends_with('|'), "{shown}");
    assert!(lines[2].starts_with("  trained  ") && lines[2].ends_with("|</s>"), "{shown}");
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(!sft.small.run_dir("taught").exists());
}

#[test]
fn what_does_not_fit_is_said_before_anything_is_trained() {
    let settings = "steps: 2\nbatch: {examples: 4, micro_batch: 2}\nvalidate: {examples: 0}\n";
    let sft = Sft::new("alpaca", &records(6), settings);
    fs::write(sft.path("not_a_prefix.jinja"), "{{ messages | length }}").unwrap();
    fs::write(sft.path("roles.jsonl"), "{\"messages\": [{\"role\": \"tool\", \"content\": \"\"}]}")
        .unwrap();
    let roles = format!("data=[{{path: {:?}}}]", sft.path("roles.jsonl"));
    let broken = format!("template={}", sft.path("not_a_prefix.jinja").display());
    for (arguments, code, words) in [
        (vec!["template=vicuna_v0"], 1, vec!["### Human:", "vicuna_v1.1"]),
        (vec!["template=nothing.jinja"], 1, vec!["nothing.jinja"]),
        (vec![broken.as_str()], 1, vec!["data.jsonl", "record 0", "cannot be told"]),
        (vec!["max_length=1024"], 2, vec!["max_length", "1024", "512"]),
        (vec!["max_length=8"], 2, vec!["no example to train on", "6 nothing_to_train"]),
        (vec!["base=nowhere"], 1, vec!["nowhere"]),
        (vec!["validate.examples=6"], 2, vec!["validate.examples", "6 to hold out of 6"]),
        (vec!["validate.examples=1.5"], 2, vec!["validate.examples", "1.5"]),
        (vec!["epochs=0.1"], 2, vec!["batch.examples", "do not make a step"]),
        (vec!["epochs=-1"], 2, vec!["epochs"]),
        (vec!["optimizer.warmup_ratio=2"], 2, vec!["warmup_ratio"]),
        (vec!["data=[]"], 2, vec!["data", "empty"]),
        (vec!["train_on=questions"], 2, vec!["train_on", "questions"]),
        (vec!["packed=true"], 2, vec!["packed", "packing"]),
        (
            vec![roles.as_str()],
            1,
            vec!["roles.jsonl", "record 0", "\"tool\"", "system, user, assistant"],
        ),
    ] {
        sft.sft(&arguments).fails(code, &words);
    }
    assert!(!sft.small.run_dir("taught").join("checkpoints").exists());
    run(["sft", "--resume", "nowhere"]).fails(1, &["nowhere"]);
}

/// Ids and trained tokens are those of FastChat's own code for Vicuna, and of Alpaca's.
#[test]
fn masks_are_those_of_the_references() {
    let golden = repository("tests/golden");
    let tokenizer = Tokenizer::open(&golden.join("tokenizer/tokenizer.model")).unwrap();
    let text = fs::read_to_string(golden.join("sft/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for (name, template) in [("vicuna", "vicuna_v1.1"), ("alpaca", "alpaca")] {
        let cases = expected[name].as_array().unwrap();
        assert_eq!(cases.len(), 30);
        let template = ChatTemplate::open(template).unwrap();
        let encoder = ExampleEncoder::new(&tokenizer, &template, 2048, TrainOn::Responses);
        let records = cases.iter().map(|case| match case.get("record") {
            Some(record) => record.to_string() + "\n",
            None => serde_json::json!({"conversations": case["conversations"]}).to_string() + "\n",
        });
        fs::write(file.path(), records.collect::<String>()).unwrap();
        for_each_example(file.path(), None, &|_| {}, |record, conversation| {
            let messages: Vec<Message> = conversation.tidy().unwrap().messages;
            let example = encoder.encode(&messages)?;
            let case = &cases[record as usize];
            let numbers = |key: &str| -> Vec<u64> {
                case[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
            };
            let ids: Vec<u64> = example.ids.iter().map(|id| u64::from(*id)).collect();
            assert_eq!(ids, numbers("ids"), "{name} {record}");
            let trained = example.trained.iter().flat_map(|range| range.clone());
            let trained: Vec<u64> = trained.map(|place| place as u64).collect();
            assert_eq!(trained, numbers("trained"), "{name} {record}: {messages:?}");
            Ok(())
        })
        .unwrap();
    }
}

/// The published Alpaca has a token more: its rows are the means of all others, and a run goes on with it.
#[test]
fn a_pad_token_is_added_once() {
    let settings = "steps: 2\nadd_pad_token: true\nbatch: {examples: 1, micro_batch: 1}\nvalidate: {examples: 0}\n\
                    checkpoint: {every: 1}\n";
    let sft = Sft::new("alpaca", &record("Question?", "The sea."), settings);
    let said = sft.sft(&[]).ok();
    assert!(said.stderr.contains("[PAD], 400"), "{}", said.stderr);
    let rows = |dir: &Path, name: &str| -> Vec<Vec<f32>> {
        let bytes = fs::read(dir.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let table = tensors.tensor(name).unwrap();
        let values: Vec<f32> = table
            .data()
            .chunks(4)
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
            .collect();
        values.chunks(table.shape()[1]).map(<[f32]>::to_vec).collect()
    };
    let (base, taught) = (sft.small.checkpoint("base", 1), sft.small.checkpoint("taught", 1));
    let (before, after) =
        (rows(&base, "model.embed_tokens.weight"), rows(&taught, "model.embed_tokens.weight"));
    assert_eq!((before.len(), after.len()), (400, 401));
    assert_eq!(rows(&taught, "lm_head.weight").len(), 401);
    // Nothing trains the row of a token that is never read.
    for (channel, found) in after[400].iter().enumerate() {
        let mean = before.iter().map(|row| f64::from(row[channel])).sum::<f64>() / 400.0;
        assert!((f64::from(*found) - mean).abs() < 1e-6, "{channel}: {found} for {mean}");
    }
    let json = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(taught.join(name)).unwrap()).unwrap()
    };
    assert_eq!(json("config.json")["vocab_size"], 401);
    assert_eq!(json("added_tokens.json")["[PAD]"], 400);
    let config = json("tokenizer_config.json");
    assert_eq!(config["pad_token"], "[PAD]");
    assert_eq!(config["added_tokens_decoder"]["400"]["content"], "[PAD]");
    let finished = rows(&sft.small.checkpoint("taught", 2), "model.embed_tokens.weight");
    fs::remove_dir_all(sft.small.checkpoint("taught", 2)).unwrap();
    sft.resume("taught", &[]).ok();
    let taught = sft.small.checkpoint("taught", 2);
    assert!(rows(&taught, "model.embed_tokens.weight") == finished);
    // From a model that has the token none is added.
    let base = format!("base={}", taught.display());
    let again = sft.sft(&["name=again", &base]).ok();
    assert!(!again.stderr.contains("[PAD]"), "{}", again.stderr);
    let again = sft.small.checkpoint("again", 2);
    assert_eq!(rows(&again, "model.embed_tokens.weight").len(), 401);
    let mut generate = altiplano();
    generate.args(["generate", "--prompt", "The", "--max-tokens", "3", "--checkpoint"]).arg(&again);
    Finished::from(generate.output().unwrap()).ok();
    sft.sft(&["name=x", "lora.r=2"]).fails(2, &["add_pad_token", "lora"]);
}
