//! Checkpoints as other tools open them, and directories of other tools as checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::harness::{Finished, SmallRun, altiplano, corpus, repository, run};

fn generate(checkpoint: &Path) -> Finished {
    let checkpoint = checkpoint.to_str().unwrap();
    let greedy = ["--prompt", "The whale", "--temperature", "0", "--max-tokens", "12", "--json"];
    run([&["generate", "--checkpoint", checkpoint][..], &greedy].concat())
}

fn eval(checkpoint: &Path, documents: &[&Path], more: &[&str]) -> Finished {
    let mut arguments = vec!["eval", "--json", "--checkpoint", checkpoint.to_str().unwrap()];
    arguments.push("--documents");
    arguments.extend(documents.iter().map(|path| path.to_str().unwrap()));
    run([&arguments[..], more].concat())
}

/// A run stands for its newest checkpoint; what is none says what was expected.
#[test]
fn checkpoints_are_found_in_their_run() {
    let small = SmallRun::new();
    small.train(&["steps=20", "checkpoint.every=10", "validate.every=0"]).ok();
    let newest = generate(&small.checkpoint("small", 20)).ok().json();
    let older = generate(&small.checkpoint("small", 10)).ok().json();
    assert_ne!(newest, older, "the test shows nothing");
    for path in [small.run_dir("small"), small.run_dir("small").join("checkpoints")] {
        assert_eq!(generate(&path).ok().json(), newest);
    }
    #[cfg(unix)]
    {
        let link = small.dir.path().join("latest");
        std::os::unix::fs::symlink(small.run_dir("small"), &link).unwrap();
        assert_eq!(generate(&link).ok().json(), newest);
    }
    let expected = ["altiplano train", "Hugging Face directory"];
    for (path, found) in [
        (small.dir.path().join("none"), "does not exist"),
        (small.dir.path().to_path_buf(), "no config.json and no checkpoints"),
        (small.config(), "is a file"),
    ] {
        generate(&path).fails(1, &[&expected[..], &[path.to_str().unwrap(), found]].concat());
    }
    fs::remove_file(small.checkpoint("small", 20).join("tokenizer.model")).unwrap();
    generate(&small.run_dir("small")).fails(1, &["tokenizer.model", "missing"]);
}

/// The weights of a model may be in several files.
#[test]
fn a_sharded_model_is_read() {
    let small = SmallRun::new();
    small.train(&["steps=2", "validate.every=0"]).ok();
    let whole = small.checkpoint("small", 2);
    let dir = small.dir.path().join("sharded");
    fs::create_dir(&dir).unwrap();
    for file in ["config.json", "tokenizer.model"] {
        fs::copy(whole.join(file), dir.join(file)).unwrap();
    }
    let bytes = fs::read(whole.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort();
    let mut weight_map = BTreeMap::new();
    for (number, part) in names.chunks(8).enumerate() {
        let file = format!("model-{number:05}.safetensors");
        let views = part.iter().map(|name| (*name, tensors.tensor(name).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join(&file)).unwrap();
        weight_map.extend(part.iter().map(|name| (name.to_string(), file.clone())));
    }
    let index = |map: &BTreeMap<String, String>| {
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    index(&weight_map);
    assert_eq!(generate(&dir).ok().json(), generate(&whole).ok().json());

    let mut elsewhere = weight_map.clone();
    elsewhere.insert("lm_head.weight".into(), "../model.safetensors".into());
    index(&elsewhere);
    generate(&dir).fails(1, &["index.json", "lm_head.weight", "same directory"]);
    let mut short = weight_map.clone();
    short.remove("lm_head.weight");
    index(&short);
    generate(&dir).fails(1, &["index.json", "lm_head.weight", "no such tensor"]);
    index(&weight_map);
    fs::remove_file(dir.join("model-00001.safetensors")).unwrap();
    generate(&dir).fails(1, &["model-00001.safetensors", "no such file", "index.json"]);
}

/// Files are as readable as the umask lets them be.
#[cfg(unix)]
#[test]
fn files_of_a_run_follow_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    // A tokenizer that nobody else may read does not make the checkpoint's private.
    let small = SmallRun::new();
    let private = small.dir.path().join("private.model");
    fs::copy(corpus().join("tokenizer.model"), &private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    for (umask, file_mode) in [("022", 0o644), ("027", 0o640), ("002", 0o664)] {
        let name = format!("name=umask{umask}");
        let tokenizer = format!("tokenizer={}", private.display());
        let train = small.train_command(&[&name, "steps=1", &tokenizer, "validate.every=0"]);
        let output = std::process::Command::new("bash")
            .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
            .arg(train.get_program())
            .args(train.get_args())
            .output()
            .unwrap();
        Finished::from(output).ok();
        let dir = small.run_dir(&format!("umask{umask}"));
        let mut seen = Vec::new();
        for folder in [dir.clone(), dir.join("checkpoints/step_00000001")] {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                if metadata.is_file() {
                    let mode = metadata.permissions().mode() & 0o777;
                    assert_eq!(mode, file_mode, "{umask}: {:?} {mode:o}", entry.path());
                    seen.push(entry.file_name().into_string().unwrap());
                }
            }
        }
        for file in ["model.safetensors", "optimizer.safetensors", "tokenizer.model", "config.yaml"]
        {
            assert!(seen.iter().any(|name| name == file), "{seen:?}");
        }
    }
}

/// A folder with a project in it: `project/{train.yaml,tokens,tokenizer.model}`, nothing outside.
#[cfg(unix)]
fn project() -> (SmallRun, PathBuf) {
    let small = SmallRun::new();
    let project = small.dir.path().canonicalize().unwrap().join("project");
    crate::harness::copy_dir(&corpus().join("tokens"), &project.join("data/tokens"));
    fs::copy(corpus().join("tokenizer.model"), project.join("data/tokenizer.model")).unwrap();
    let text = fs::read_to_string(small.config()).unwrap();
    let text = text.replace(corpus().to_str().unwrap(), "../data");
    let text = text.replace("output: runs", "output: ../runs");
    fs::create_dir(project.join("configs")).unwrap();
    fs::write(project.join("configs/train.yaml"), text).unwrap();
    (small, project)
}

#[cfg(unix)]
fn train_in(dir: &Path, arguments: &[&str]) -> Finished {
    let mut command = altiplano();
    command.arg("train").args(arguments).args(["validate.every=0"]).current_dir(dir);
    command.output().unwrap().into()
}

/// Runs, data and configurations reached by symbolic links, moved, and resumed from inside.
#[cfg(unix)]
#[test]
fn paths_lead_through_links() {
    use std::os::unix::fs::symlink;
    let (small, project) = project();
    let elsewhere = small.dir.path().canonicalize().unwrap().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let steps = |run: &Path| -> Vec<u64> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        text.lines().filter_map(|text| line(text)["step"].as_u64()).filter(|n| *n > 0).collect()
    };
    // A crash after step 2 of 4, as far as the directory is concerned.
    let cut_back = |run: &Path| {
        fs::remove_dir_all(run.join("checkpoints/step_00000004")).unwrap();
    };
    let all: Vec<u64> = (1..=4).collect();
    let start = ["steps=4", "checkpoint.every=2"];

    // Through a link to the configuration, from another directory; `runs` leads to another disk.
    fs::create_dir(elsewhere.join("runs")).unwrap();
    symlink(elsewhere.join("runs"), project.join("runs")).unwrap();
    symlink(project.join("configs"), elsewhere.join("configs")).unwrap();
    symlink(project.join("configs/train.yaml"), elsewhere.join("my.yaml")).unwrap();
    train_in(&elsewhere, &[&["configs/train.yaml", "name=a"], &start[..]].concat()).ok();
    train_in(&elsewhere, &[&["my.yaml", "name=b"], &start[..]].concat()).ok();
    let (a, b) = (elsewhere.join("runs/a"), elsewhere.join("runs/b"));
    assert_eq!((steps(&a), steps(&b)), (all.clone(), all.clone()));

    // From inside, by `.`, by a link, and by a link from inside the link.
    symlink(&a, project.join("latest")).unwrap();
    for (dir, name) in [
        (a.clone(), "."),
        (project.clone(), "latest"),
        (project.join("latest"), "."),
        (project.clone(), "runs/a"),
        (project.join("runs/a/checkpoints"), ".."),
    ] {
        cut_back(&a);
        train_in(&dir, &["--resume", name]).ok();
        assert_eq!(steps(&a), all, "{name} from {}", dir.display());
        let text = fs::read_to_string(a.join("config.yaml")).unwrap();
        assert!(text.contains("name: a\n") && text.contains("output: ..\n"), "{text}");
    }
    let left: Vec<_> = fs::read_dir(&elsewhere).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");

    // The data become a link; everything moves, links and all.
    fs::rename(project.join("data"), project.join("moved data")).unwrap();
    symlink("moved data", project.join("data")).unwrap();
    fs::remove_file(project.join("runs")).unwrap();
    fs::rename(elsewhere.join("runs"), project.join("runs")).unwrap();
    let run = project.join("runs/c");
    train_in(&project, &[&["configs/train.yaml", "name=c"], &start[..]].concat()).ok();
    let text = fs::read_to_string(run.join("config.yaml")).unwrap();
    assert!(text.contains("path: ../../data/tokens/books\n"), "{text}");
    let moved = elsewhere.join("project");
    fs::rename(&project, &moved).unwrap();
    cut_back(&moved.join("runs/c"));
    train_in(&moved.join("runs/c"), &["--resume", "."]).ok();
    assert_eq!(steps(&moved.join("runs/c")), all);

    // A run that is moved alone says what it misses, and takes it from where it is told.
    let alone = elsewhere.join("alone");
    fs::rename(moved.join("runs/c"), &alone).unwrap();
    cut_back(&alone);
    train_in(&elsewhere, &["--resume", "alone"]).fails(1, &["tokenizer.model"]);
    let tokenizer = "tokenizer=project/data/tokenizer.model";
    train_in(&elsewhere, &["--resume", "alone", tokenizer])
        .fails(1, &["token shards", "altiplano tokenize"]);
    let paths = [
        "data.sources.0.path=project/data/tokens/speeches",
        "data.sources.1.path=project/data/tokens/books",
    ];
    train_in(&elsewhere, &[&["--resume", "alone", tokenizer], &paths[..]].concat()).ok();
    assert_eq!(steps(&alone), all);
}

/// Floats of `config.yaml` have a dot and a signed exponent, and words are quoted, so that YAML 1.1
/// readers see the same.
#[test]
fn the_configuration_of_a_run_is_yaml_1_1() {
    let small = SmallRun::new();
    let overrides = ["name=2026-11-29", "steps=1", "validate.every=0", "optimizer.eps=1e-9"];
    small.train(&overrides).ok();
    let text = fs::read_to_string(small.run_dir("2026-11-29").join("config.yaml")).unwrap();
    for line in ["  eps: 1.0e-9\n", "  norm_eps: 1.0e-6\n", "name: \"2026-11-29\"\n"] {
        assert!(text.contains(line), "{text}");
    }
    small.resume("2026-11-29", &[]).ok();
}

/// Text, JSON lines, Parquet and data directories are scored; what was scored is said.
#[test]
fn eval_reads_what_there_is() {
    let small = SmallRun::new();
    small.train(&["steps=2", "validate.every=0"]).ok();
    let model = small.run_dir("small");
    let dir = small.dir.path();
    let number = |json: &Value, key: &str| json[key].as_u64().unwrap();

    // A data directory, its documents, one source, one file: held-out documents by default.
    let data = eval(&model, &[corpus()], &[]).ok();
    for words in ["held-out documents of", "step_00000002", "end mark"] {
        assert!(data.stdout.contains(words), "no {words:?} in: {}", data.stdout);
    }
    let data = data.json();
    assert_eq!(
        (&data["end_mark"], &data["scored"][0]["content"]),
        (&json!(true), &json!("held_out"))
    );
    assert_eq!(eval(&model, &[&corpus().join("documents")], &[]).ok().json()["loss"], data["loss"]);
    let early = corpus().join("documents/early");
    let held_out = eval(&model, &[&early], &[]).ok().json();
    let file = early.join("validation-00000.parquet");
    let file = eval(&model, &[&file], &[]).ok().json();
    assert_eq!(file["sources"]["early"], held_out["sources"]["early"]);
    assert_eq!(file["sources"]["early"], data["sources"]["early"]);
    let all = eval(&model, &[&early], &["--split", "all"]).ok().json();
    let train = eval(&model, &[&early], &["--split", "train"]).ok().json();
    assert_eq!(number(&all, "bytes"), number(&train, "bytes") + number(&held_out, "bytes"));

    // The same documents as JSON lines; a text; both in a folder.
    let folder = dir.join("texts");
    fs::create_dir(&folder).unwrap();
    let held_out_file = early.join("validation-00000.parquet");
    let lines =
        run(["data", "cat", "--format", "jsonl", held_out_file.to_str().unwrap()]).ok().stdout;
    fs::write(folder.join("lines.jsonl"), format!("{lines}not JSON\n")).unwrap();
    fs::write(folder.join("ignored.arrow"), "no text").unwrap();
    let jsonl = eval(&model, &[&folder], &[]).ok();
    assert!(jsonl.stdout.contains("records left out: 1 bad_json"), "{}", jsonl.stdout);
    assert_eq!(jsonl.json()["sources"]["early"], held_out["sources"]["early"]);
    let text = folder.join("a.txt");
    fs::write(&text, "Call me Ishmael.").unwrap();
    let whole = eval(&model, &[&text], &[]).ok().json();
    assert_eq!((number(&whole, "documents"), number(&whole, "bytes")), (1, 16));
    assert!(whole["sources"]["a"].is_object(), "{whole}");
    let unmarked = eval(&model, &[&text], &["--no-end-mark"]).ok().json();
    assert_eq!(number(&unmarked, "tokens") + 1, number(&whole, "tokens"));
    let both = eval(&model, &[&folder], &[]).ok().json();
    assert_eq!(number(&both, "documents"), number(&held_out, "documents") + 1);

    // What is not there says what was expected and what makes it.
    let nothing = dir.join("nothing");
    eval(&model, &[&nothing], &[]).fails(1, &["nothing", "altiplano data run", "JSON lines"]);
    fs::create_dir_all(nothing.join("documents")).unwrap();
    eval(&model, &[&nothing], &[]).fails(1, &["nothing", "altiplano data run"]);
    fs::write(dir.join("empty.txt"), " \n").unwrap();
    eval(&model, &[&dir.join("empty.txt")], &[]).fails(2, &["empty.txt", "1 empty"]);
}

/// On a source whose held-out side is one short document, validation and eval are the same number,
/// end mark included; the loss of the mixture is the mean by its shares.
#[test]
fn validation_and_eval_agree() {
    let small = SmallRun::new();
    let dir = small.dir.path();
    let documents: String = (0..400)
        .map(|n| {
            json!({ "id": format!("d{n}"), "text": format!("Day {n}: calm sea.") }).to_string()
        })
        .map(|line| line + "\n")
        .collect();
    fs::write(dir.join("short.jsonl"), documents).unwrap();
    let model = corpus().join("tokenizer.model");
    let config = format!(
        "output: short\nsources:\n- name: short\n  text: {{ paths: [short.jsonl], format: jsonl }}\n\
         holdout: {{ bytes_per_source: 10 }}\ntokenizer: {{ model: {model:?} }}\n"
    );
    fs::write(dir.join("data.yaml"), config).unwrap();
    let data = dir.join("data.yaml");
    run(["data", "run", data.to_str().unwrap()]).ok();
    run(["tokenize", data.to_str().unwrap()]).ok();
    let source = format!("data.sources.1.path={}", dir.join("short/tokens/short").display());
    small.train(&["steps=20", "precision=f32", &source]).ok();

    let metrics = small.metrics("small");
    let validation = &metrics.last().unwrap();
    let of = |source: &str| validation["val_loss_per_source"][source].as_f64().unwrap();
    let scored = eval(&small.run_dir("small"), &[&dir.join("short")], &[]).ok().json();
    assert_eq!(scored["documents"], 1);
    let (eval_loss, val_loss) = (scored["loss"].as_f64().unwrap(), of("short"));
    assert!((eval_loss - val_loss).abs() < 1e-5 * val_loss, "{eval_loss} and {val_loss}");
    let bits = validation["bits_per_byte_per_source"]["short"].as_f64().unwrap();
    let eval_bits = scored["bits_per_byte"].as_f64().unwrap();
    assert!((eval_bits - bits).abs() < 1e-5 * bits, "{eval_bits} and {bits}");

    let mixture = 0.7 * of("speeches") + 0.3 * of("short");
    let val_loss = validation["val_loss"].as_f64().unwrap();
    assert!((val_loss - mixture).abs() < 1e-6, "{val_loss} and {mixture}");
}

/// Golden ids of transformers' `AutoTokenizer` on the files as they are written here, for texts that
/// are easily got wrong: `scripts/golden/make_tokenizer.py`.
#[test]
fn tokenizer_json_gives_the_ids_of_the_model() {
    let golden = repository("tests/golden/tokenizer");
    let tokenizer = Tokenizer::open(&golden.join("tokenizer.model")).unwrap();
    let expected = fs::read_to_string(golden.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.tokenizer_json().unwrap(), expected);
    let cases: Vec<Value> =
        serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
    assert!(cases.len() > 80);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        // SentencePiece itself has it that `▁` comes back as a space.
        assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace('\u{2581}', " "), "{text:?}");
    }

    // A checkpoint has these files.
    let small = SmallRun::new();
    small.train(&["steps=1", "validate.every=0"]).ok();
    let dir = small.checkpoint("small", 1);
    let written = Tokenizer::open(&corpus().join("tokenizer.model")).unwrap();
    let json = fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    assert_eq!(written.tokenizer_json().unwrap(), json);
    let read = |dir: &Path, file: &str| -> Value {
        serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap()
    };
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let (mut ours, mut golden) = (read(&dir, file), read(&golden, file));
        for config in [&mut ours, &mut golden] {
            config.as_object_mut().unwrap().remove("model_max_length");
        }
        assert_eq!(ours, golden, "{file}");
    }
}
