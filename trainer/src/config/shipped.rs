//! Every configuration in `configs/` is read and checked, and its comments are complete.

use std::path::{Path, PathBuf};

use altiplano_data::MixtureConfig;
use altiplano_data::classifier::TrainClassifierOptions;
use altiplano_data::language::TrainLanguageOptions;
use altiplano_model::config::{ActivationCheckpointing, LlamaConfig};
use serde_yaml::Value;

use super::*;

fn configs(kind: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(kind);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no YAML in {}", dir.display());
    files
}

fn shipped<T: ConfigFile>(kind: &str, name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(kind).join(name);
    load(&path, &[]).unwrap()
}

#[test]
fn every_shipped_model_is_valid() {
    for path in configs("model") {
        load::<LlamaConfig>(&path, &[]).unwrap();
    }
}

#[test]
fn every_shipped_run_is_valid() {
    for path in configs("train") {
        let config: TrainConfig = load(&path, &[]).unwrap();
        assert_eq!(config.name, path.file_stem().unwrap().to_str().unwrap());
    }
}

/// Alpaca's and Vicuna's recipes as published.
#[test]
fn every_shipped_fine_tuning_is_valid() {
    for path in configs("sft") {
        let config: SftConfig = load(&path, &[]).unwrap();
        assert!(path.ends_with("quickstart.yaml") || path.file_stem().unwrap() == &*config.name);
    }
    for (name, lr, epochs, max_length, warmup) in [
        ("alpaca_7b", 2e-5, 3.0, 512, 0.03),
        ("alpaca_13b", 1e-5, 5.0, 512, 0.03),
        ("vicuna_7b", 2e-5, 3.0, 2048, 0.04),
        ("vicuna_13b", 2e-5, 3.0, 2048, 0.04),
    ] {
        let config: SftConfig = shipped("sft", &format!("{name}.yaml"));
        let expected = SftOptimizerConfig { lr, warmup_ratio: warmup, ..Default::default() };
        assert_eq!(config.optimizer, expected, "{name}");
        assert_eq!((config.epochs, config.max_length), (Some(epochs), max_length), "{name}");
        assert_eq!(config.batch.examples, 128, "{name}");
    }
}

#[test]
fn every_shipped_configuration_of_requests_is_valid() {
    for path in configs("judge") {
        load::<JudgeConfig>(&path, &[]).unwrap();
    }
    for path in configs("identity") {
        let rounds = load::<IdentityConfig>(&path, &["name='{name} X'".into()]).unwrap().rounds();
        let questions: std::collections::BTreeSet<_> = rounds.iter().map(|[q, _]| q).collect();
        // As many as FastChat's.
        assert_eq!((questions.len(), rounds.len()), (87, 937));
        let answers = rounds.iter().filter(|[_, answer]| answer.contains("{name} X"));
        assert!(answers.count() > 400);
        assert!(rounds.iter().all(|[q, a]| !q.contains("{o") && !a.contains("{o")));
    }
    for path in configs("self_instruct") {
        load::<SelfInstructConfig>(&path, &[]).unwrap();
    }
}

#[test]
fn every_shipped_data_configuration_is_valid() {
    for path in configs("data") {
        if path.ends_with("llama1_mixture.yaml") {
            load::<MixtureConfig>(&path, &[]).unwrap();
        } else {
            load::<DataConfig>(&path, &[]).unwrap();
        }
    }
}

#[test]
fn every_shipped_model_of_the_data_side_is_valid() {
    let file = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/data/models").join(name)
    };
    let language: TrainLanguageOptions = load(&file("language.yaml"), &[]).unwrap();
    assert!(language.output.ends_with("runs/llama/models/language.bin"));
    load::<TrainClassifierOptions>(&file("classifier.yaml"), &[]).unwrap();
}

#[test]
fn the_quickstart_trains_on_what_its_data_configuration_makes() {
    let data: DataConfig = shipped("data", "quickstart.yaml");
    let run: TrainConfig = shipped("train", "quickstart.yaml");
    assert_eq!(run.tokenizer, Some(data.tokenizer_model()));
    assert_eq!(run.model.vocab_size, data.tokenizer.vocab_size);
    let mut found: Vec<_> = run.data.sources.iter().map(|s| s.path.clone()).collect();
    let folder = |name: &str| altiplano_data::shard::tokens_folder(&data.output, name);
    let mut made: Vec<_> = data.sources.iter().map(|s| folder(&s.name)).collect();
    found.sort();
    made.sort();
    assert_eq!(found, made);
}

/// The five lines that README shows make what this file trains on.
#[test]
fn one_text_file_has_its_training_configuration() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let block = readme.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input.yaml");
    std::fs::write(&file, block).unwrap();
    let data: DataConfig = load(&file, &[]).unwrap();
    let run: TrainConfig = shipped("train", "input.yaml");
    assert_eq!(run.model.vocab_size, data.tokenizer.vocab_size);
    let below = |path: &Path| path.ends_with("runs/input/data/tokens/input");
    assert!(below(&altiplano_data::shard::tokens_folder(&data.output, &data.sources[0].name)));
    assert!(below(&run.data.sources[0].path));
    assert!(run.tokenizer.unwrap().ends_with("runs/input/data/tokenizer.model"));
}

#[test]
fn the_models_have_the_parameters_their_names_say() {
    for (name, millions) in [
        ("15m", 15.0),
        ("60m", 58.0),
        ("110m", 112.0),
        ("1b1", 1100.0),
        // arXiv 2302.13971, table 2.
        ("7b", 6700.0),
        ("13b", 13000.0),
        ("33b", 32500.0),
        ("65b", 65200.0),
    ] {
        let model: LlamaConfig = shipped("model", &format!("{name}.yaml"));
        let found = model.parameter_count() as f64 / 1e6;
        assert!((found / millions - 1.0).abs() < 0.011, "{name}: {found} million");
    }
}

#[test]
fn the_recipes_are_those_of_the_paper() {
    for (name, lr, tokens) in [
        ("7b", 3e-4, 1_000_000_000_000),
        ("13b", 3e-4, 1_000_000_000_000),
        ("33b", 1.5e-4, 1_400_000_000_000),
        ("65b", 1.5e-4, 1_400_000_000_000),
    ] {
        let config: TrainConfig = shipped("train", &format!("llama_{name}.yaml"));
        assert_eq!(config.model, shipped("model", &format!("{name}.yaml")));
        assert_eq!(config.tokens_per_step(), 4 << 20, "{name}");
        assert_eq!(config.tokens, Some(tokens), "{name}");
        let expected = OptimizerConfig { lr, ..Default::default() };
        assert_eq!(config.optimizer, expected, "{name}");
        assert_eq!(config.batch.seq_len, 2048);
        assert_eq!(config.activation_checkpointing, ActivationCheckpointing::Selective);
        let sources = &config.data.sources;
        let total: f64 = sources.iter().map(|source| source.weight).sum();
        assert!((total - 1.0).abs() < 1e-9 && sources.len() == 7, "{name}: {total}");
    }
}

#[test]
fn every_shipped_key_has_a_comment() {
    for path in ["train", "model", "sft", "judge", "self_instruct"].into_iter().flat_map(configs) {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut commented = std::collections::BTreeSet::new();
        let mut above = "";
        for line in text.lines() {
            let has_comment = line.contains('#') || above.trim_start().starts_with('#');
            let key = line.trim_start().trim_start_matches("- ").split(':').next().unwrap_or("");
            above = line;
            // `sources` is explained with `data`; later sources repeat the keys of the first.
            if line.trim_start().starts_with('#') || key.is_empty() || key == "sources" {
                continue;
            }
            assert!(has_comment || commented.contains(key), "{}: {line}", path.display());
            commented.insert(key);
        }
    }
}

/// The key of a line `key: value` or `- step: {key: value}` with a comment above that says what the
/// default is, and the text of the file without that key.
struct DocumentedDefault {
    line: String,
    without: String,
    /// As the comment has it: a number, a word, `none`, `all`, or `these` for the value of the file.
    default: String,
}

/// What a comment says behind its last `Default:`, if that is one word or number.
fn said_default(comment: &str) -> Option<&str> {
    let word = comment.rsplit_once("Default: ")?.1.lines().next()?;
    let word = word.split(' ').next()?;
    let plain = word.trim_end_matches(['.', ',', ';']);
    (plain.len() < word.len()).then_some(plain)
}

fn documented_defaults(text: &str) -> Vec<DocumentedDefault> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let (mut comment, mut column) = (String::new(), 0);
    let indent = |line: &str| line.len() - line.trim_start().len();
    for (number, line) in lines.iter().enumerate() {
        if let Some(text) = line.trim_start().strip_prefix('#') {
            column = indent(line);
            comment = comment + text + "\n";
            // A key that is commented out has the comment so far.
            let key = text.split_once(": ").map_or("", |(key, _)| key.trim());
            if !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                comment.clear();
            }
            continue;
        }
        let mut comment = std::mem::take(&mut comment);
        // A comment to the right of the key is one on what is above.
        if column != indent(line) + if line.trim_start().starts_with("- ") { 2 } else { 0 } {
            comment.clear();
        }
        let (Some(default), Some((key, value))) = (said_default(&comment), line.split_once(": "))
        else {
            continue;
        };
        // A step with one option in braces loses the option, any other line goes whole.
        let braces = value.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
        if braces.is_some_and(|inner| inner.is_empty() || inner.contains([',', '{']))
            || key.contains('"')
        {
            continue;
        }
        let kept = braces.map(|_| format!("{key}: {{}}"));
        let more =
            lines[number + 1..].iter().take_while(|next| indent(next) > indent(line)).count();
        let more = if braces.is_some() { 0 } else { more };
        let before = lines[..number].iter().copied().chain(kept.as_deref());
        let without: Vec<&str> = before.chain(lines[number + 1 + more..].iter().copied()).collect();
        found.push(DocumentedDefault {
            line: line.trim().to_owned(),
            without: without.join("\n"),
            default: default.to_owned(),
        });
    }
    found
}

/// Where `all` has a key that `fewer` lacks.
fn missing_key(all: &Value, fewer: &Value) -> Option<Vec<Value>> {
    match (all, fewer) {
        (Value::Mapping(all), Value::Mapping(fewer)) => {
            all.iter().find_map(|(key, value)| match fewer.get(key) {
                None => Some(vec![key.clone()]),
                Some(other) => {
                    let below = missing_key(value, other)?;
                    Some([vec![key.clone()], below].concat())
                }
            })
        }
        (Value::Sequence(all), Value::Sequence(fewer)) => {
            (0..).zip(all.iter().zip(fewer)).find_map(|(index, (value, other))| {
                let below = missing_key(value, other)?;
                Some([vec![Value::from(index)], below].concat())
            })
        }
        _ => None,
    }
}

/// What is at `key` of a map or list.
fn at<'a>(value: &'a Value, key: &Value) -> Option<&'a Value> {
    match key {
        Value::Number(index) => value.get(usize::try_from(index.as_u64()?).ok()?),
        key => value.get(key),
    }
}

/// Holds the defaults that the comments of `path` name against those of the type, and counts them.
fn check_defaults<T: serde::Serialize + serde::de::DeserializeOwned>(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    let all: Value = serde_yaml::from_str(&text).unwrap();
    let documented = documented_defaults(&text);
    for DocumentedDefault { line, without, default } in &documented {
        let place = format!("{}: {line}", path.display());
        let fewer: Value = serde_yaml::from_str(without).unwrap_or_else(|e| panic!("{place}: {e}"));
        let key =
            missing_key(&all, &fewer).unwrap_or_else(|| panic!("{place}: nothing is left out"));
        let config: T = serde_yaml::from_str(without).unwrap_or_else(|e| panic!("{place}: {e}"));
        let config = serde_yaml::to_value(&config).unwrap();
        let found = key.iter().try_fold(&config, at);
        let written = key.iter().try_fold(&all, at);
        match (found, default.as_str()) {
            (found, "these") => assert_eq!(found, written, "{place}"),
            (None | Some(Value::Null), "none" | "all") => {}
            (Some(Value::Sequence(list)), "none" | "all") if list.is_empty() => {}
            (Some(Value::Number(number)), said) => {
                assert_eq!(number.as_f64(), said.parse().ok(), "{place}");
            }
            (Some(found), said) => {
                assert_eq!(Some(found), serde_yaml::from_str(said).ok().as_ref(), "{place}");
            }
            // What is left out of `c4` is the preset's, which the step fills in.
            (None, _) if key.contains(&Value::from("c4")) => {}
            (None, said) => panic!("{place}: the default is nothing, the comment says {said}"),
        }
    }
    documented.len()
}

#[test]
fn the_defaults_that_comments_name_are_the_defaults() {
    let mut count = 0;
    for path in configs("data") {
        count += match path.file_stem().and_then(|name| name.to_str()) {
            Some("llama1_mixture") => check_defaults::<MixtureConfig>(&path),
            _ => check_defaults::<DataConfig>(&path),
        };
    }
    for path in configs("data/models") {
        count += match path.file_stem().and_then(|name| name.to_str()) {
            Some("language") => check_defaults::<TrainLanguageOptions>(&path),
            Some("classifier") => check_defaults::<TrainClassifierOptions>(&path),
            _ => 0,
        };
    }
    assert!(count > 60, "{count} defaults found");
}
