//! The configuration of a run that is resumed: which keys may change, and which did.
//!
//! Runs of pretraining and of fine-tuning have tables of their own and one way to compare.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::document::split;
use super::load::load;
use super::path::beside_links;
use super::train::{LrSchedule, TrainConfig};
use crate::error::{Result, TrainerError};

/// What a resumed run may do with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnResume {
    /// The numbers of the run do not depend on the key: it may change at any time.
    Free,
    /// The key decides the numbers of the steps to come: it may change, and the change is recorded.
    Recorded,
    /// What was done so far depends on the key: only a new run can have another value.
    Fixed,
}

use OnResume::{Fixed, Free, Recorded};

/// The rule for every key. A rule holds for the keys below its own too, unless one of them has a
/// rule itself; `*` stands for an index. Without a rule a key is [`Fixed`].
pub const ON_RESUME: &[(&str, OnResume)] = &[
    ("name", Free),
    ("output", Free),
    ("seed", Fixed),
    ("init_from", Fixed),
    ("device", Recorded),
    ("precision", Recorded),
    ("activation_checkpointing", Free),
    ("document_mask", Fixed),
    ("threads", Free),
    ("readers", Free),
    ("model", Fixed),
    // The tokens themselves are guarded by the loader, which knows the checksums of the shards and
    // the tokenizer they were made with.
    ("tokenizer", Free),
    ("data", Fixed),
    ("data.sources.*.path", Free),
    ("data.verify_checksums", Free),
    ("data.max_epochs", Free),
    ("data.token_budget", Free),
    ("batch", Fixed),
    ("parallel", Free),
    ("steps", Recorded),
    ("tokens", Recorded),
    ("optimizer", Recorded),
    ("validate", Free),
    ("eval", Free),
    ("checkpoint", Free),
    ("sample", Free),
    ("metrics", Free),
    ("skip_outliers", Recorded),
    ("log_every", Free),
];

/// The same for fine-tuning.
pub const ON_RESUME_SFT: &[(&str, OnResume)] = &[
    ("name", Free),
    ("output", Free),
    ("seed", Fixed),
    // Read when the run starts. Its checkpoints have the model, the tokenizer and the template; those of
    // adapters name the model they go on over.
    ("base", Free),
    ("device", Recorded),
    ("precision", Recorded),
    ("activation_checkpointing", Free),
    ("threads", Free),
    ("template", Fixed),
    // The examples themselves are guarded by the loader, which knows the hash of their tokens.
    ("data", Fixed),
    ("data.*.path", Free),
    ("max_length", Fixed),
    ("train_on", Fixed),
    ("packing", Fixed),
    ("drop_duplicates", Fixed),
    ("epochs", Recorded),
    ("steps", Recorded),
    ("batch", Fixed),
    ("batch.micro_batch", Recorded),
    ("optimizer", Recorded),
    ("lora", Fixed),
    ("validate", Fixed),
    ("validate.every", Free),
    ("checkpoint", Free),
    ("metrics", Free),
    ("skip_outliers", Recorded),
    ("log_every", Free),
];

/// The rule that holds for `key`.
fn rule(table: &[(&str, OnResume)], key: &str) -> OnResume {
    let key = split(key);
    let holds = |pattern: &str| {
        let pattern = split(pattern);
        let same = pattern.iter().zip(&key).all(|(p, k)| p == "*" || p == k);
        (same && pattern.len() <= key.len()).then_some(pattern.len())
    };
    let longest = table.iter().filter_map(|&(pattern, rule)| Some((holds(pattern)?, rule)));
    longest.max_by_key(|&(length, _)| length).map_or(Fixed, |(_, rule)| rule)
}

/// The keys of a table with a rule, as a list in words.
pub fn keys_with(table: &[(&str, OnResume)], rule: OnResume) -> String {
    let keys = table.iter().filter(|row| row.1 == rule).map(|&(key, _)| key);
    keys.collect::<Vec<_>>().join(", ")
}

/// A key that has another value than before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The dotted key, such as `optimizer.lr`.
    pub key: String,
    /// The value until now; null when there was none.
    pub from: Value,
    /// The value from now on; null when there is none.
    pub to: Value,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.from, self.to)
    }
}

/// Refuses a run of another kind, which is told by `key` in its configuration, and names the `command` that
/// goes on with it. A file that cannot be read is left to the error that says so.
pub(super) fn refuse_other_kind(
    run_dir: &Path,
    file: &Path,
    key: &str,
    kind: &str,
    command: &str,
) -> Result<()> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    match serde_yaml::from_str::<serde_yaml::Value>(&text) {
        Ok(config) if config.get(key).is_some() => Err(TrainerError::Usage {
            message: format!(
                "{} is {kind}; go on with it by `{command} {}`",
                run_dir.display(),
                run_dir.display()
            ),
        }),
        _ => Ok(()),
    }
}

impl TrainConfig {
    /// Reads the configuration of a run from the `config.yaml` in its directory and puts
    /// `overrides` in their places. The directory may have been moved or renamed since: the run
    /// goes on where it lies now.
    ///
    /// # Errors
    /// As [`load()`]; [`TrainerError::NoRun`] when there is no `config.yaml`.
    pub fn load_run(run_dir: &Path, overrides: &[String]) -> Result<Self> {
        let file = run_dir.join("config.yaml");
        if !file.exists() {
            return Err(TrainerError::NoRun { path: run_dir.to_path_buf() });
        }
        refuse_other_kind(run_dir, &file, "base", "a fine-tuning", "altiplano sft --resume")?;
        let mut config: Self = load(&file, overrides)?;
        let dir = run_dir.canonicalize().map_err(TrainerError::io(run_dir))?;
        if config.run_dir().canonicalize().ok().as_ref() != Some(&dir)
            && let (Some(parent), Some(name)) = (dir.parent(), dir.file_name())
        {
            config.output = parent.to_path_buf();
            config.name = name.to_string_lossy().into_owned();
        }
        // A run that was moved and left a link in its place still finds what lies around the link.
        let shards = config.data.sources.iter_mut().map(|source| &mut source.path);
        let files = config.tokenizer.as_mut().into_iter().chain(config.eval.data.as_mut());
        for path in shards.chain(files).filter(|path| !path.exists()) {
            let around = beside_links(path);
            if around.exists() {
                *path = around;
            }
        }
        Ok(config)
    }

    /// Holds the configuration of a resumed run to `saved`, the [`resolved`](Self::resolved) one
    /// its checkpoint was written with, and gives the recorded keys that changed.
    ///
    /// A run whose length changes keeps the end of its decay where it was, so that no step gets
    /// another learning rate than was planned for it: a `decay_steps` that followed the length
    /// becomes the number it stood for. `decay_steps=null` among the `overrides` makes it the new
    /// length.
    ///
    /// # Errors
    /// [`TrainerError::Config`] names every fixed key that changed, and says which may.
    pub fn resumed_from(
        &mut self,
        saved: &Self,
        run_dir: &Path,
        overrides: &[String],
    ) -> Result<Vec<Change>> {
        let same_schedule = self.optimizer.schedule == saved.optimizer.schedule;
        if self.total_steps() != saved.total_steps()
            && same_schedule
            && self.optimizer.schedule != LrSchedule::Constant
            && self.optimizer.decay_steps.is_none()
            && saved.optimizer.decay_steps.is_none()
        {
            let asked = overrides.iter().any(|o| sets(o, "optimizer.decay_steps"));
            let length = if asked { self.total_steps() } else { saved.total_steps() };
            self.optimizer.decay_steps = Some(length);
        }
        recorded_changes(ON_RESUME, saved, &self.resolved(run_dir)?, run_dir, overrides)
    }
}

/// The recorded keys of `table` in which the settings `now` of a resumed run differ from the `saved` ones.
///
/// # Errors
/// [`TrainerError::Config`] names every fixed key that changed, and says which may.
pub(crate) fn recorded_changes<T: Serialize>(
    table: &[(&str, OnResume)],
    saved: &T,
    now: &T,
    run_dir: &Path,
    overrides: &[String],
) -> Result<Vec<Change>> {
    let changes = differences(saved, now);
    let refused: Vec<&Change> = changes.iter().filter(|c| rule(table, &c.key) == Fixed).collect();
    if !refused.is_empty() {
        return Err(refusal(table, &refused, run_dir, overrides));
    }
    Ok(changes.into_iter().filter(|change| rule(table, &change.key) == Recorded).collect())
}

/// Whether an override gives `key` a value, by its own name or by that of a key above it.
pub(super) fn sets(written: &str, key: &str) -> bool {
    let given = split(written.split('=').next().unwrap_or_default().trim());
    split(key).starts_with(&given)
}

fn refusal(
    table: &[(&str, OnResume)],
    refused: &[&Change],
    run_dir: &Path,
    overrides: &[String],
) -> TrainerError {
    // Pretraining starts from weights by a key of its own; fine-tuning always does.
    let starts_from =
        if table.iter().any(|(key, _)| *key == "base") { "base" } else { "init_from" };
    let makes = |written: &&String| {
        let given = written.split('=').next().unwrap_or_default().trim();
        refused.iter().any(|change| sets(written, &change.key) || given.starts_with(&change.key))
    };
    let makers: Vec<String> =
        overrides.iter().filter(makes).map(|written| format!("override `{written}`")).collect();
    let list: Vec<String> = refused.iter().map(ToString::to_string).collect();
    TrainerError::Config {
        place: if makers.is_empty() {
            run_dir.join("config.yaml").display().to_string()
        } else {
            makers.join(", ")
        },
        message: format!(
            "{}: cannot change in a run that has a checkpoint. May change, and is recorded: {}. \
             May change freely: {}. For anything else start a new run; {starts_from} starts it \
             from the weights of this one",
            list.join(", "),
            keys_with(table, Recorded),
            keys_with(table, Free),
        ),
    }
}

/// The keys whose values differ, each the deepest that does.
fn differences<T: Serialize>(from: &T, to: &T) -> Vec<Change> {
    // A configuration is plain data: it always has a JSON form.
    let value = |config: &T| serde_json::to_value(config).unwrap_or_default();
    collect_differences(&value(from), &value(to))
}

/// The same of settings in their JSON form.
pub(crate) fn collect_differences(from: &Value, to: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    collect(from, to, &mut Vec::new(), &mut found);
    found
}

fn collect(from: &Value, to: &Value, key: &mut Vec<String>, found: &mut Vec<Change>) {
    let mut below = |part: String, from: &Value, to: &Value| {
        key.push(part);
        collect(from, to, key, found);
        key.pop();
    };
    match (from, to) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let missing = &Value::Null;
                let (a, b) = (a.get(name).unwrap_or(missing), b.get(name).unwrap_or(missing));
                below(name.clone(), a, b);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                below(index.to_string(), a, b);
            }
        }
        _ if from == to => {}
        _ => found.push(Change { key: key.join("."), from: from.clone(), to: to.clone() }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config() -> TrainConfig {
        serde_json::from_value(serde_json::json!({
            "name": "run",
            "output": "/runs",
            "tokenizer": "/tokenizer.model",
            "model": {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512, "max_seq_len": 64},
            "data": {"sources": [{"path": "/a", "weight": 1.0}, {"path": "/b", "weight": 0.5}]},
            "batch": {"micro_batch": 4, "seq_len": 64},
            "steps": 100,
            "optimizer": {"lr": 1e-3, "warmup_steps": 10},
        }))
        .unwrap()
    }

    /// The changes that `edit` makes, with the refusal as text.
    fn resumed(
        edit: impl FnOnce(&mut TrainConfig),
        overrides: &[&str],
    ) -> std::result::Result<(TrainConfig, Vec<String>), String> {
        let run = Path::new("/runs/run");
        let saved = config().resolved(run).unwrap();
        let mut changed = config();
        edit(&mut changed);
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        let changes =
            changed.resumed_from(&saved, run, &overrides).map_err(|error| error.to_string())?;
        Ok((changed, changes.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn every_key_has_a_rule() {
        let mut config = config();
        config.init_from = Some("/w".into());
        config.threads = Some(1);
        config.tokens = Some(1);
        config.skip_outliers = Some(4.0);
        config.data.token_budget = Some(1);
        let value = serde_json::to_value(&config).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        for &key in &keys {
            assert!(ON_RESUME.iter().any(|(name, _)| name == key), "{key} has no rule");
        }
        for (name, _) in ON_RESUME {
            assert!(keys.iter().any(|key| **key == split(name)[0]), "{name} is no key");
        }
    }

    #[test]
    fn the_page_about_runs_has_every_key() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runs.md");
        let text = std::fs::read_to_string(page).unwrap();
        let lists = ["from the next step on.", "without an effect", "refused by name"];
        let list = |start: &str| {
            let from = text.find(start).unwrap();
            let line = text[..from].rfind('\n').unwrap();
            text[line + 1..].lines().next().unwrap()
        };
        for (key, rule) in ON_RESUME {
            let start = match rule {
                Recorded => lists[0],
                Free => lists[1],
                Fixed => lists[2],
            };
            assert!(list(start).contains(&format!("`{key}`")), "{key}");
        }
    }

    #[test]
    fn the_deepest_rule_holds() {
        for (key, expected) in [
            ("data.sources.1.path", Free),
            ("data.sources.1.weight", Fixed),
            ("data.sources", Fixed),
            ("data.random", Fixed),
            ("optimizer.lr", Recorded),
            ("checkpoint.every", Free),
            ("unheard_of", Fixed),
        ] {
            assert_eq!(rule(ON_RESUME, key), expected, "{key}");
        }
    }

    #[test]
    fn what_changes_is_listed_or_refused() {
        assert_eq!(resumed(|_| {}, &[]).unwrap().1, [""; 0]);
        let free = |c: &mut TrainConfig| {
            c.threads = Some(3);
            c.checkpoint.every = 7;
            c.data.sources[0].path = "/elsewhere".into();
        };
        assert_eq!(resumed(free, &[]).unwrap().1, [""; 0]);
        let lr = |c: &mut TrainConfig| c.optimizer.lr = 2e-3;
        assert_eq!(resumed(lr, &[]).unwrap().1, ["optimizer.lr: 0.001 -> 0.002"]);

        let error = resumed(|c| c.model.dim = 128, &["model.dim=128", "threads=2"]).unwrap_err();
        assert!(error.starts_with("override `model.dim=128`: model.dim: 64 -> 128"), "{error}");
        assert!(error.contains("is recorded: device, precision, steps, tokens"), "{error}");
        assert!(error.contains("init_from"), "{error}");
        // Edited by hand.
        let error = resumed(|c| c.data.sources[1].weight = 2.0, &[]).unwrap_err();
        let expected = "/runs/run/config.yaml: data.sources.1.weight: 0.5 -> 2.0";
        assert!(error.starts_with(expected), "{error}");
        let error = resumed(|c| c.data.sources.truncate(1), &[]).unwrap_err();
        assert!(error.contains("data.sources: ["), "{error}");
    }

    #[test]
    fn the_decay_stays_where_it_was_when_the_length_changes() {
        let longer = |c: &mut TrainConfig| c.steps = Some(200);
        let (config, changes) = resumed(longer, &["steps=200"]).unwrap();
        assert_eq!(config.decay_steps(), 100);
        assert_eq!(changes, ["optimizer.decay_steps: null -> 100", "steps: 100 -> 200"]);
        let (config, _) = resumed(longer, &["steps=200", "optimizer.decay_steps=null"]).unwrap();
        assert_eq!(config.decay_steps(), 200);
        let chosen = |c: &mut TrainConfig| {
            longer(c);
            c.optimizer.decay_steps = Some(150);
        };
        assert_eq!(resumed(chosen, &[]).unwrap().0.decay_steps(), 150);
        let constant = |c: &mut TrainConfig| {
            longer(c);
            c.optimizer.schedule = LrSchedule::Constant;
        };
        assert_eq!(resumed(constant, &[]).unwrap().0.optimizer.decay_steps, None);
        // The same length in other words.
        let tokens = |c: &mut TrainConfig| (c.steps, c.tokens) = (None, Some(100 * 256));
        let (config, changes) = resumed(tokens, &[]).unwrap();
        assert_eq!(config.optimizer.decay_steps, None);
        assert_eq!(changes, ["steps: 100 -> null", "tokens: null -> 25600"]);
    }
}
