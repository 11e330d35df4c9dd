//! What bad input gets: what is wrong, where, what to do; the right exit status; no panic.

use std::fs;
use std::path::Path;

use crate::harness::{SmallRun, copy_dir, corpus, data_config, repository, run};

fn flip_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, bytes: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// A small run that reads its own copy of the corpus.
fn run_with_own_corpus() -> (SmallRun, std::path::PathBuf) {
    let run = SmallRun::new();
    let own = run.dir.path().join("corpus");
    copy_dir(corpus(), &own);
    let config = fs::read_to_string(run.config()).unwrap();
    let config = config.replace(corpus().to_str().unwrap(), own.to_str().unwrap());
    fs::write(run.config(), config).unwrap();
    (run, own)
}

#[test]
fn configuration_mistakes() {
    let run = SmallRun::new();
    run.train(&["optimizer.lrr=1"]).fails(2, &["optimizer.lrr=1", "did you mean", "lr"]);
    run.train(&["steps=abc"]).fails(2, &["steps=abc"]);
    run.train(&["batch.seq_len=65"]).fails(2, &["batch.seq_len", "65", "64"]);
    run.train(&["model.n_heads=5"]).fails(2, &["dim", "n_heads"]);
    run.train(&["device=gpu"]).fails(2, &["gpu", "cpu"]);
    assert!(!run.run_dir("small").exists(), "nothing may be written");

    let text = fs::read_to_string(run.config()).unwrap();
    fs::write(run.config(), text.replace("warmup_steps", "warmup_step")).unwrap();
    let line = 1 + text.lines().position(|line| line.contains("warmup_steps")).unwrap();
    run.train(&[]).fails(2, &[&format!("train.yaml:{line}:"), "warmup_step", "\"warmup_steps\""]);
    fs::write(run.config(), format!("{text}tokens: 100000\n")).unwrap();
    run.train(&[]).fails(2, &["train.yaml:", "steps", "tokens"]);
    fs::write(run.config(), format!("{text}seed: 1\nseed: 2\n")).unwrap();
    run.train(&[]).fails(2, &["train.yaml", "seed"]);
    crate::harness::run(["train", "no/such.yaml"]).fails(2, &["no/such.yaml"]);
    crate::harness::run(["trian"]).fails(2, &["train"]);
}

#[test]
fn a_corpus_too_small() {
    let run = SmallRun::new();
    run.train(&["batch.micro_batch=100000"]).fails(1, &["tokens", "needs", "6400001"]);
}

#[test]
fn damaged_shards() {
    let (run, own) = run_with_own_corpus();
    let shard = own.join("tokens/books/train-00000.arrow");
    let whole = fs::read(&shard).unwrap();
    for damage in [
        |path: &Path, length: usize| truncate(path, length as u64 / 2),
        |path: &Path, length: usize| flip_byte(path, length / 2),
        |path: &Path, length: usize| flip_byte(path, length - 3),
        |path: &Path, _: usize| flip_byte(path, 0),
        |path: &Path, _: usize| truncate(path, 0),
    ] {
        damage(&shard, whole.len());
        run.train(&[]).fails(1, &["train-00000.arrow"]);
        fs::write(&shard, &whole).unwrap();
    }
    fs::remove_file(&shard).unwrap();
    run.train(&[]).fails(1, &["books"]);
    assert!(!run.run_dir("small").join("config.yaml").exists(), "nothing may be written");
}

#[test]
fn shards_of_another_tokenizer() {
    let (run, own) = run_with_own_corpus();
    let other = own.join("other");
    fs::create_dir(&other).unwrap();
    let config = other.join("data.yaml");
    fs::write(&config, data_config(380, "19[0-4]*.txt")).unwrap();
    crate::harness::run(["data", "run", config.to_str().unwrap()]).ok();
    crate::harness::run(["tokenizer", "train", config.to_str().unwrap()]).ok();
    let tokenizer = format!("tokenizer={}", other.join("tokenizer.model").display());
    run.train(&[&tokenizer]).fails(1, &["tokenizer", "tokens"]);
    run.train(&["model.vocab_size=399"]).fails(1, &["400", "399"]);
}

#[test]
fn damaged_checkpoints() {
    let run = SmallRun::new();
    run.train(&["steps=4", "checkpoint.every=2"]).ok();
    let newest = run.checkpoint("small", 4);
    let generate = |dir: &Path| {
        crate::harness::run([
            "generate",
            "--checkpoint",
            dir.to_str().unwrap(),
            "--prompt",
            "The",
            "--max-tokens",
            "4",
        ])
    };
    generate(&newest).ok();
    for (file, damage) in [
        ("model.safetensors", true),
        ("optimizer.safetensors", true),
        ("state.json", true),
        ("tokenizer.model", true),
        ("model.safetensors", false),
        ("DONE", false),
    ] {
        let path = newest.join(file);
        let whole = fs::read(&path).unwrap();
        if damage {
            flip_byte(&path, whole.len() / 2)
        } else {
            truncate(&path, 10)
        }
        let damaged = fs::read(&path).unwrap();
        run.resume("small", &[]).fails(1, &["step_00000004", "--checkpoint step_00000002"]);
        if file != "optimizer.safetensors" {
            generate(&newest).fails(1, &["step_00000004"]);
        }
        assert_eq!(fs::read(&path).unwrap(), damaged, "{file} was overwritten");
        fs::write(&path, whole).unwrap();
    }
    let state = fs::read_to_string(newest.join("state.json")).unwrap();
    let newer = state.replace("\"format_version\": 2", "\"format_version\": 99");
    assert_ne!(state, newer);
    fs::write(newest.join("state.json"), &newer).unwrap();
    run.resume("small", &[]).fails(1, &["state.json"]);
    fs::write(newest.join("state.json"), state).unwrap();

    run.train(&["steps=4"]).fails(1, &["--resume"]);
    run.resume("small", &["seed=7"]).fails(2, &["seed=7", "1 -> 7", "new run", "init_from"]);
    run.resume("nothing", &[]).fails(1, &["nothing"]);
}

#[test]
fn prompts_and_options_of_generate() {
    let run = SmallRun::new();
    run.train(&["steps=2"]).ok();
    let checkpoint = run.checkpoint("small", 2);
    let generate = |arguments: &[&str]| {
        let common = ["generate", "--checkpoint", checkpoint.to_str().unwrap()];
        crate::harness::run([&common[..], arguments].concat())
    };
    let long = "whale ".repeat(200);
    generate(&["--prompt", &long]).fails(1, &["tokens", "64"]);
    generate(&["--prompt", "a", "--top-p", "1.5"]).fails(2, &["--top-p"]);
    generate(&["--prompt", "a", "--temperature", "-1"]).fails(2, &["--temperature"]);
    generate(&["--prompt", "a", "--min-p", "-0.1"]).fails(2, &["--min-p", "-0.1", "0 to 1"]);
    generate(&["--prompt", "a", "--repetition-penalty", "0"])
        .fails(2, &["--repetition-penalty", "above 0"]);
    generate(&["--prompt", "a", "--presence-penalty", "nan"])
        .fails(2, &["--presence-penalty", "nan"]);
    generate(&["--prompt", "a", "--logit-bias", "5"]).fails(2, &["--logit-bias", "13=-2.5"]);
    generate(&["--prompt", "a", "--logit-bias", "99999=1"])
        .fails(2, &["--logit-bias", "99999", "expected an id below"]);
    generate(&["--prompt", "a", "--n", "0"]).fails(2, &["--n", "0", "1"]);
    generate(&["--prompt", "a", "--logprobs", "2"]).fails(2, &["--json"]);
    generate(&["--prompt", "a", "--prompts", "-"]).fails(2, &["--prompt", "--prompts"]);
    generate(&["--prompt-file", "/nonexistent"]).fails(1, &["/nonexistent"]);
    let prompts = run.dir.path().join("prompts.jsonl");
    fs::write(&prompts, "{\"prompt\": \"a\"}\n{\"text\": 1}\n").unwrap();
    generate(&["--prompts", prompts.to_str().unwrap()]).fails(1, &["prompts.jsonl:2", "`prompt`"]);
    generate(&[]).fails(2, &["--prompt"]);
    crate::harness::run(["generate", "--checkpoint", "/nonexistent", "--prompt", "a"])
        .fails(1, &["/nonexistent"]);
}

/// A full disk: the run stops, the checkpoint before is whole.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let run = SmallRun::new();
    run.train(&["steps=4", "checkpoint.every=2"]).ok();
    // The limit on the size of a file stands for the end of the disk: the weights still fit,
    // the moments do not.
    let weights = fs::metadata(run.checkpoint("small", 4).join("model.safetensors")).unwrap();
    let limit = weights.len() / 1024 + 20;
    let train = run.train_command(&["name=full", "steps=4", "checkpoint.every=2"]);
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .arg(train.get_program())
        .args(train.get_args())
        .output()
        .unwrap();
    crate::harness::Finished::from(output).fails(1, &["step 2", "not saved"]);
    let left: Vec<_> = fs::read_dir(run.run_dir("full").join("checkpoints"))
        .map(|entries| entries.map(|e| e.unwrap().file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn records_that_are_not_utf8_are_counted_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = br#"{"id":"a","text":"one good document"}"#.to_vec();
    lines.extend(b"\n{\"id\":\"b\",\"text\":\"bad \xff\xfe\"}\n");
    lines.extend(br#"{"id":"c","text":"another good document"}"#);
    fs::write(dir.path().join("x.jsonl"), lines).unwrap();
    let config = dir.path().join("data.yaml");
    fs::write(
        &config,
        "output: out\nsources:\n- name: x\n  text: { paths: [x.jsonl], format: jsonl }\n",
    )
    .unwrap();
    let finished = run(["data", "run", config.to_str().unwrap(), "--json"]).ok();
    assert!(finished.stderr.contains("x.jsonl"), "{}", finished.stderr);
    let out = dir.path().join("out");
    let report = run(["data", "report", out.to_str().unwrap()]).ok();
    assert!(report.stdout.contains("utf8"), "{}", report.stdout);
    let kept = run(["data", "cat", out.to_str().unwrap(), "--format", "jsonl"]).ok();
    assert_eq!(kept.stdout.lines().count(), 2, "{}", kept.stdout);
}

#[test]
fn shipped_files_are_named_where_they_are() {
    // A configuration with a path that leads nowhere names the key and the pattern.
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("data.yaml");
    fs::write(&config, "output: out\nsources:\n- name: x\n  text: { paths: [\"*.nothing\"] }\n")
        .unwrap();
    run(["data", "run", config.to_str().unwrap()]).fails(1, &["*.nothing"]);
    assert!(repository("configs/data/quickstart.yaml").exists());
}
