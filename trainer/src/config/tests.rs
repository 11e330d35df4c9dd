//! What a user gets for a configuration with a mistake in it.

use std::fs;
use std::path::{Path, PathBuf};

use altiplano_model::config::{LlamaConfig, Precision};

use super::*;
use crate::error::TrainerError;

/// A folder with `train/run.yaml` and `model/small.yaml`.
struct Files {
    dir: tempfile::TempDir,
}

const MODEL: &str = "\
dim: 64
n_layers: 2
n_heads: 4
vocab_size: 512
max_seq_len: 128
";

const RUN: &str = "\
name: run
output: ../runs
model: ../model/small.yaml
tokenizer: ../tokenizer.model
data:
  sources:
    - path: ../tokens/a
      weight: 1
    - path: /abs/b
      weight: 0.5
batch:
  micro_batch: 4
  seq_len: 128
steps: 100
optimizer:
  lr: 1e-3
  warmup_steps: 10
";

impl Files {
    fn new(run: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("train")).unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/small.yaml"), MODEL).unwrap();
        fs::write(dir.path().join("train/run.yaml"), run).unwrap();
        Self { dir }
    }

    fn run_file(&self) -> PathBuf {
        self.dir.path().join("train/run.yaml")
    }

    fn load(&self, overrides: &[&str]) -> Result<TrainConfig, TrainerError> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        load(&self.run_file(), &overrides)
    }

    /// The message with the folder's own path cut off.
    fn message(&self, overrides: &[&str]) -> String {
        let error = self.load(overrides).unwrap_err();
        assert!(error.is_usage(), "{error}");
        error.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn message(run: &str) -> String {
    Files::new(run).message(&[])
}

fn message_with(overrides: &[&str]) -> String {
    Files::new(RUN).message(overrides)
}

#[test]
fn a_whole_configuration_is_read() {
    let files = Files::new(RUN);
    let config = files.load(&[]).unwrap();
    let dir = files.dir.path();
    assert_eq!(config.model.dim, 64);
    assert_eq!(config.precision, Precision::Bf16);
    assert_eq!(config.run_dir(), dir.join("runs/run"));
    assert_eq!(config.tokenizer, Some(dir.join("tokenizer.model")));
    let sources = &config.data.sources;
    assert_eq!(sources[0].path, dir.join("tokens/a"));
    assert_eq!(sources[1].path, Path::new("/abs/b"));
    assert_eq!(config.tokens_per_step(), 512);
    let recipe = &config.optimizer;
    assert_eq!((recipe.lr, recipe.beta2, recipe.weight_decay), (1e-3, 0.95, 0.1));
}

#[test]
fn an_unknown_key_gives_its_place_and_the_nearest() {
    let text = message(&RUN.replace("  lr:", "  lrr:"));
    assert!(text.starts_with("train/run.yaml:16:3: unknown key \"lrr\" in optimizer"), "{text}");
    assert!(text.contains("did you mean \"lr\"? known keys: lr, min_lr_ratio"), "{text}");

    let text = message(&RUN.replace("steps: 100", "stepz: 100"));
    assert!(text.starts_with("train/run.yaml:14:1: unknown key \"stepz\""), "{text}");
    assert!(text.contains("did you mean \"steps\"?"), "{text}");

    let text = message(&RUN.replace("      weight: 0.5", "      wieght: 0.5"));
    assert!(
        text.starts_with("train/run.yaml:10:7: unknown key \"wieght\" in data.sources.1"),
        "{text}"
    );
    assert!(text.contains("did you mean \"weight\"?"), "{text}");
}

#[test]
fn a_mistake_in_an_included_file_is_found_there() {
    let files = Files::new(RUN);
    let model = MODEL.replace("n_heads", "num_heads");
    fs::write(files.dir.path().join("model/small.yaml"), model).unwrap();
    let text = files.message(&[]);
    assert!(text.starts_with("model/small.yaml:3:1: unknown key \"num_heads\" in model"), "{text}");
    assert!(text.contains("did you mean \"n_heads\"?"), "{text}");

    fs::write(files.dir.path().join("model/small.yaml"), MODEL.replace("4", "5")).unwrap();
    let text = files.message(&[]);
    assert!(text.starts_with("model/small.yaml:1:1: model.dim: found 65"), "{text}");

    let text = message(&RUN.replace("small.yaml", "smal.yaml"));
    assert!(text.starts_with("train/run.yaml:3:8: model: model/smal.yaml: No such file"), "{text}");
}

#[test]
fn a_value_of_another_type_gives_its_place() {
    let text = message(&RUN.replace("1e-3", "fast"));
    assert!(
        text.starts_with("train/run.yaml:16:7: optimizer.lr: invalid type: string \"fast\""),
        "{text}"
    );
    let text = message(&RUN.replace("steps: 100", "steps: -1"));
    assert!(text.starts_with("train/run.yaml:14:8: steps: invalid value"), "{text}");
    let text = message(&format!("{RUN}precision: fp16\n"));
    assert!(text.starts_with("train/run.yaml:18:12: precision: unknown value \"fp16\""), "{text}");
    assert!(text.contains("known values: f32, bf16"), "{text}");
    let text = message(&RUN.replace("data:\n", "data: some\nx:\n"));
    assert!(text.contains("train/run.yaml:5:7: data: invalid value: string \"some\""), "{text}");
}

#[test]
fn a_missing_key_is_named() {
    let text = message(&RUN.replace("  seq_len: 128\n", ""));
    assert!(
        text.starts_with("train/run.yaml:11:1: the key \"seq_len\" is missing in batch"),
        "{text}"
    );
    let text = message(&RUN.replace("name: run\n", ""));
    assert_eq!(text, "train/run.yaml: the key \"name\" is missing");
    let text = message("");
    assert!(text.contains("is missing"), "{text}");
}

#[test]
fn a_key_given_twice_is_an_error() {
    let text = message(&format!("{RUN}  lr: 2e-3\n"));
    assert_eq!(text, "train/run.yaml:18:3: optimizer: duplicate key \"lr\"; keep one of the two");
}

#[test]
fn what_is_no_yaml_mapping_is_an_error() {
    assert!(message("- a\n- b\n").contains("expected a mapping"));
    let text = message("name: [1, 2\nx: y\n");
    assert!(text.starts_with("train/run.yaml:"), "{text}");
    let missing = load::<TrainConfig>(Path::new("/nowhere/x.yaml"), &[]).unwrap_err();
    assert!(missing.is_usage() && missing.to_string().contains("/nowhere/x.yaml"), "{missing}");
}

#[test]
fn a_text_nested_too_deep_is_an_error_at_once() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = message(&format!("name: {}1{}\n", open.repeat(400_000), close.repeat(400_000)));
        assert!(text.contains("brackets are open"), "{text}");
    }
    // Blocks are the parser's own to bound.
    let text = message(&format!("name:\n{}x\n", "- ".repeat(200_000)));
    assert!(text.contains("recursion limit"), "{text}");
    let files = Files::new(RUN);
    let deep = format!("sample={}", "[".repeat(400_000));
    assert!(files.load(&[&deep]).unwrap_err().to_string().contains("brackets are open"));
    let text = message(&format!("# {}\n{RUN}", "x".repeat(17 << 20)));
    assert!(text.contains("more than"), "{text}");
}

#[test]
fn contradictions_are_found_at_their_key() {
    for (from, to, expected) in [
        ("steps: 100", "steps: 100\ntokens: 5", "train/run.yaml:15:1: tokens: given together with"),
        ("steps: 100", "", "train/run.yaml: steps: the length of the run is missing"),
        (
            "steps: 100",
            "steps: 5",
            "train/run.yaml:17:3: optimizer.warmup_steps: the warm-up of 10",
        ),
        (
            "seq_len: 128",
            "seq_len: 129",
            "train/run.yaml:13:3: batch.seq_len: found 129, expected at most model.max_seq_len, which is 128",
        ),
        ("seq_len: 128", "seq_len: 128\n  grad_accum_steps: 0", "batch.grad_accum_steps: found 0"),
        ("weight: 0.5", "weight: 0", "train/run.yaml:10:7: data.sources.1.weight: found 0"),
        ("path: /abs/b", "path: ../tokens/a", "tokens/a is the path of source 0 too"),
        ("lr: 1e-3", "lr: .nan", "optimizer.lr: found NaN"),
        (
            "lr: 1e-3",
            "lr: 1e-3\n  beta2: 1",
            "optimizer.beta2: found 1, expected at least 0 and below 1",
        ),
        ("name: run", "name: ../x", "name: found \"../x\""),
        ("tokenizer: ../tokenizer.model\n", "", "tokenizer: missing"),
        (
            "warmup_steps: 10",
            "warmup_steps: 10\n  decay_steps: 5",
            "the warm-up of 10 steps is longer than optimizer.decay_steps, which is 5",
        ),
        ("lr: 1e-3", "lr: 1e-3\n  schedule: constant\n  decay_steps: 5", "decay_steps=null"),
        ("lr: 1e-3", "lr: 1e-3\n  cooldown_steps: 5", "optimizer.cooldown_steps: found 5, but"),
        (
            "lr: 1e-3",
            "lr: 1e-3\n  schedule: wsd\n  cooldown_steps: 91",
            "optimizer.cooldown_steps: found 91, expected at most 90",
        ),
        ("lr: 1e-3", "lr: 1e-3\n  schedule: linear", "known values: cosine, wsd, constant"),
        (
            "steps: 100",
            "steps: 100\nvalidate: {every: 0}\ncheckpoint: {keep_best: true}",
            "checkpoint.keep_best: found true",
        ),
        ("steps: 100", "steps: 100\nsample: {every: 5}", "sample.prompts: empty"),
        ("steps: 100", "steps: 100\nthreads: 0", "threads: found 0"),
        ("steps: 100", "steps: 100\nthreads: 1025", "threads: found 1025, expected 1 to 1024"),
        ("steps: 100", "steps: 100\nreaders: 99999", "readers: found 99999"),
    ] {
        let text = message(&RUN.replacen(from, to, 1));
        assert!(text.contains(expected), "{to}: {text}");
    }
}

#[test]
fn overrides_replace_values() {
    let files = Files::new(RUN);
    let config = files
        .load(&[
            "optimizer.lr=5e-4",
            "model.dim=128",
            "data.sources.1.weight=3",
            "sample={every: 2, prompts: [\"a: b\"]}",
            "skip_outliers=4",
        ])
        .unwrap();
    assert_eq!(config.optimizer.lr, 5e-4);
    assert_eq!(config.optimizer.warmup_steps, 10);
    assert_eq!((config.model.dim, config.model.n_layers), (128, 2));
    let sources = &config.data.sources;
    assert_eq!(sources[1].weight, 3.0);
    assert_eq!(config.sample.prompts, ["a: b"]);
    assert_eq!(config.skip_outliers, Some(4.0));

    let random = files.load(&["data=random", "tokenizer=null"]).unwrap();
    assert_eq!((random.data.random, random.tokenizer), (true, None));
    // One length replaces the other.
    let tokens = files.load(&["tokens=1e6"]).unwrap();
    assert_eq!((tokens.steps, tokens.tokens, tokens.total_steps()), (None, Some(1_000_000), 1954));
    // The last of two wins.
    assert_eq!(files.load(&["steps=20", "steps=30"]).unwrap().steps, Some(30));
}

#[test]
fn a_wrong_override_is_named() {
    let deep = format!("{}=1", vec!["a"; 5000].join("."));
    for (given, expected) in [
        (
            "optimizer.lrr=1",
            "override `optimizer.lrr=1`: unknown key \"lrr\" in optimizer; did you mean \"lr\"?",
        ),
        (
            "optimiser.lr=1",
            "override `optimiser.lr=1`: unknown key \"optimiser\"; did you mean \"optimizer\"?",
        ),
        ("optimizer.lr=fast", "override `optimizer.lr=fast`: optimizer.lr: invalid type"),
        ("steps", "override `steps`: expected key=value"),
        ("steps=[1", "override `steps=[1`: the value is not YAML"),
        ("optimizer..lr=1", "the key has an empty part"),
        (deep.as_str(), "the key has 5000 parts"),
        ("data.sources.7.weight=1", "\"7\" is no index of the list: expected 0 to 1"),
        ("steps.x=1", "below a single value"),
        (
            "model.dim=66",
            "override `model.dim=66`: model.dim: found 66, expected a multiple of n_heads",
        ),
        ("batch.seq_len=512", "override `batch.seq_len=512`: batch.seq_len: found 512"),
        ("precision=fp8", "override `precision=fp8`: precision: unknown value \"fp8\""),
    ] {
        let text = message_with(&[given]);
        assert!(text.contains(expected), "{given}: {text}");
    }
    let text = message_with(&["steps=1", "tokens=1"]);
    assert!(text.contains("override `tokens=1`: tokens: given together with steps"), "{text}");
}

#[test]
fn an_overridden_path_is_relative_to_the_current_directory() {
    let config = Files::new(RUN).load(&["output=elsewhere/runs"]).unwrap();
    assert_eq!(config.run_dir(), Path::new("elsewhere/runs/run"));
}

#[test]
fn a_resolved_configuration_moves_with_its_run() {
    let files = Files::new(RUN);
    let config = files.load(&["model.rope_theta=5e5", "optimizer.eps=1.5e-9"]).unwrap();
    fs::create_dir_all(config.run_dir()).unwrap();
    let yaml = config.resolved_yaml(&config.run_dir()).unwrap();
    assert!(yaml.contains("path: ../../tokens/a"), "{yaml}");
    let written = config.run_dir().join("config.yaml");
    fs::write(&written, &yaml).unwrap();
    let again: TrainConfig = load(&written, &[]).unwrap();
    assert_eq!(again, config);

    let moved = tempfile::tempdir().unwrap();
    let new_run = moved.path().join("runs/run");
    fs::create_dir_all(&new_run).unwrap();
    fs::write(new_run.join("config.yaml"), &yaml).unwrap();
    let config: TrainConfig = load(&new_run.join("config.yaml"), &[]).unwrap();
    assert_eq!(config.run_dir(), new_run);
    assert_eq!(config.tokenizer, Some(moved.path().join("tokenizer.model")));
}

#[test]
fn a_run_goes_on_where_it_lies_now() {
    let files = Files::new(RUN);
    let config = files.load(&[]).unwrap();
    let run = config.run_dir();
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("config.yaml"), config.resolved_yaml(&run).unwrap()).unwrap();
    assert_eq!(TrainConfig::load_run(&run, &[]).unwrap(), config);

    let renamed = run.with_file_name("another name");
    fs::rename(&run, &renamed).unwrap();
    let config = TrainConfig::load_run(&renamed, &["threads=3".into()]).unwrap();
    assert_eq!((config.run_dir(), config.threads), (renamed.clone(), Some(3)));

    let nothing = TrainConfig::load_run(&run, &[]).unwrap_err();
    assert!(matches!(nothing, TrainerError::NoRun { .. }), "{nothing}");
}

/// A run that moves to another disk and leaves a link behind is resumed by that link.
#[cfg(unix)]
#[test]
fn a_run_that_left_a_link_finds_its_data() {
    let files = Files::new(RUN);
    let config = files.load(&[]).unwrap();
    let run = config.run_dir();
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("config.yaml"), config.resolved_yaml(&run).unwrap()).unwrap();
    for path in [&config.data.sources[0].path, config.tokenizer.as_ref().unwrap()] {
        fs::create_dir_all(path).unwrap();
    }
    let disk = tempfile::tempdir().unwrap();
    let moved = disk.path().canonicalize().unwrap().join("moved");
    fs::rename(&run, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &run).unwrap();
    let found = TrainConfig::load_run(&run, &[]).unwrap();
    assert_eq!(found.run_dir().canonicalize().unwrap(), moved);
    assert_eq!(found.tokenizer, config.tokenizer);
    assert_eq!(found.data.sources[0].path, config.data.sources[0].path);
    // What is nowhere keeps the place it should have.
    fs::remove_dir_all(&config.data.sources[0].path).unwrap();
    let found = TrainConfig::load_run(&run, &[]).unwrap();
    assert!(found.data.sources[0].path.starts_with(&run));
}

#[test]
fn anchors_and_tags_do_no_harm() {
    let shared = RUN.replace("weight: 1\n", "weight: &w 1\n").replace("weight: 0.5", "weight: *w");
    Files::new(&shared).load(&[]).unwrap();
    let text = message(&RUN.replace("steps: 100", "steps: !x 100"));
    assert!(text.starts_with("train/run.yaml:14:"), "{text}");
    // Nine lists, each of nine of the one before: never laid out in memory.
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let items = vec![format!("*a{}", i - 1); 9].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{items}]\n"));
    }
    let text = message(&bomb);
    assert!(text.contains("run.yaml"), "{text}");
}

#[test]
fn a_model_file_is_a_configuration_of_its_own() {
    let files = Files::new(RUN);
    let path = files.dir.path().join("model/small.yaml");
    let model: LlamaConfig = load(&path, &["n_kv_heads=2".into()]).unwrap();
    assert_eq!(model.kv_heads(), 2);
    let error = load::<LlamaConfig>(&path, &["n_kv_heads=3".into()]).unwrap_err().to_string();
    assert!(error.starts_with("override `n_kv_heads=3`: n_kv_heads: found 3"), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(100))]

    #[test]
    fn no_override_and_no_change_of_a_file_ends_in_a_panic(
        key in "[a-z0-9.*_]{0,24}",
        value in "\\PC{0,12}",
        at in 0usize..400,
        inserted in "[-:#&*!|>'\"{}\\[\\], \n\t%@`a0]{0,6}",
    ) {
        let files = Files::new(RUN);
        let _ = files.load(&[&format!("{key}={value}")]);
        let mut text = RUN.to_string();
        text.insert_str(at.min(text.len()), &inserted);
        if let Err(error) = Files::new(&text).load(&[]) {
            proptest::prop_assert!(error.is_usage());
            proptest::prop_assert!(error.to_string().contains(".yaml"));
        }
    }
}
