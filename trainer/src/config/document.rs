//! A YAML file with its overrides applied, which still knows where each value came from.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use altiplano_data::storage::is_remote;
use serde_yaml::{Mapping, Value};

use super::load::Problem;
use super::locate::{Part, Position, check_unique_keys, key_exists, position};
use super::path::{directory_of, normalize};
use crate::error::{Result, TrainerError};

/// Longest configuration file in bytes.
const LONGEST: u64 = 16 << 20;

/// Most parts of an override's key.
const DEEPEST: usize = 32;

/// A configuration before it is turned into a structure.
pub(super) struct Document {
    file: PathBuf,
    text: String,
    /// The mapping, with included files and overrides in place.
    pub value: Value,
    includes: Vec<Include>,
    overrides: Vec<Override>,
}

/// A mapping that was read from a file of its own.
struct Include {
    key: Vec<String>,
    file: PathBuf,
    text: String,
}

struct Override {
    key: Vec<String>,
    written: String,
    is_null: bool,
}

/// `a.b.0` as its parts.
pub(super) fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_string).collect()
}

impl Document {
    pub fn read(file: &Path) -> Result<Self> {
        let text = read_text(file)?;
        let value = parse_mapping(file, &text)?;
        let file = file.to_path_buf();
        Ok(Self { file, text, value, includes: Vec::new(), overrides: Vec::new() })
    }

    /// Replaces one value: `optimizer.lr=1e-3`, `data.sources.0.weight=2`, `sample=null`.
    pub fn apply(&mut self, written: &str, include_keys: &[&str]) -> Result<()> {
        let fail = |message: String| TrainerError::Config { place: place_of(written), message };
        let Some((key, yaml)) = written.split_once('=') else {
            return Err(fail("expected key=value, such as optimizer.lr=1e-3".into()));
        };
        let key = split(key.trim());
        if key.len() > DEEPEST {
            return Err(fail(format!(
                "the key has {} parts, expected at most {DEEPEST}",
                key.len()
            )));
        }
        if key.iter().any(String::is_empty) {
            return Err(fail("the key has an empty part".into()));
        }
        let value: Value = check_unique_keys(yaml)
            .and_then(|()| serde_yaml::from_str(yaml))
            .map_err(|error| fail(format!("the value is not YAML: {error}")))?;
        for include in include_keys {
            let include = split(include);
            if key.len() > include.len() && key.starts_with(&include) {
                self.include(&include)?;
            }
        }
        let is_null = value.is_null();
        set(&mut self.value, &key, value).map_err(fail)?;
        // What stood below the key is gone, and so is where it came from.
        self.includes.retain(|old| !old.key.starts_with(&key));
        self.overrides.retain(|old| !old.key.starts_with(&key));
        self.overrides.push(Override { key, written: written.to_string(), is_null });
        Ok(())
    }

    /// Of two keys that exclude each other, an override of one removes the other.
    pub fn drop_excluded(&mut self, pairs: &[(&str, &str)]) {
        let given = |key: &str| self.overrides.iter().any(|o| o.key == [key] && !o.is_null);
        let dropped: Vec<&str> = pairs
            .iter()
            .flat_map(|&(a, b)| [(a, b), (b, a)])
            .filter(|(kept, dropped)| given(kept) && !given(dropped))
            .map(|(_, dropped)| dropped)
            .collect();
        if let Value::Mapping(map) = &mut self.value {
            for key in dropped {
                map.shift_remove(key);
            }
        }
    }

    /// If the value at `key` is a path, puts the mapping of that file in its place.
    pub fn include(&mut self, key: &[String]) -> Result<()> {
        let Some(Value::String(written)) = get(&self.value, key) else {
            return Ok(());
        };
        // A word, `random` for example, is a value of its own.
        if !written.contains(['.', '/']) {
            return Ok(());
        }
        let file = normalize(&self.directory(key).join(written));
        let text = read_bounded(&file).map_err(|error| {
            self.fail(Problem {
                key: key.to_vec(),
                part: Part::Value,
                message: format!("{}: {}: {error}", key.join("."), file.display()),
            })
        })?;
        let value = parse_mapping(&file, &text)?;
        set(&mut self.value, key, value)
            .map_err(|message| TrainerError::Config { place: key.join("."), message })?;
        self.includes.push(Include { key: key.to_vec(), file, text });
        Ok(())
    }

    /// Refuses addresses where a path of this machine is expected: at those of `keys` that are not among
    /// `addresses`.
    pub fn refuse_addresses(&self, keys: &[&str], addresses: &[&str]) -> Result<()> {
        for key in keys.iter().filter(|key| !addresses.contains(key)) {
            for key in matching(&self.value, &split(key)) {
                let Some(Value::String(written)) = get(&self.value, &key) else { continue };
                if is_remote(written.as_ref()) {
                    let message = format!(
                        "{}: {written} is an address; expected a path of this machine",
                        key.join(".")
                    );
                    return Err(self.fail(Problem { key, part: Part::Value, message }));
                }
            }
        }
        Ok(())
    }

    /// Makes the paths at `keys` (`*` stands for any key or index) relative to the current
    /// directory, where they were relative to the file they are written in; values among `names` stay, and
    /// addresses in object storage do.
    /// `below` puts a path below the folder of that file.
    pub fn resolve_paths(
        &mut self,
        keys: &[&str],
        names: &[&str],
        below: impl Fn(&Path, &String) -> PathBuf,
    ) -> Result<()> {
        for key in keys {
            for key in matching(&self.value, &split(key)) {
                let Some(Value::String(written)) = get(&self.value, &key) else {
                    continue;
                };
                if names.contains(&written.as_str()) || is_remote(written.as_ref()) {
                    continue;
                }
                let path = normalize(&below(&self.directory(&key), written));
                let Some(path) = path.to_str() else {
                    let message = format!("{}: the path is not UTF-8", key.join("."));
                    return Err(self.fail(Problem { key, part: Part::Value, message }));
                };
                let path = Value::String(path.to_string());
                set(&mut self.value, &key, path)
                    .map_err(|message| TrainerError::Config { place: key.join("."), message })?;
            }
        }
        Ok(())
    }

    /// What the paths at `key` are relative to: the directory in which the file lies that the value is
    /// written in, the current directory for an override.
    fn directory(&self, key: &[String]) -> PathBuf {
        if self.overridden(key).is_some() {
            return PathBuf::new();
        }
        directory_of(self.included(key).map_or(&self.file, |include| &include.file))
    }

    fn overridden(&self, key: &[String]) -> Option<&Override> {
        self.overrides.iter().find(|o| key.starts_with(&o.key))
    }

    fn included(&self, key: &[String]) -> Option<&Include> {
        self.includes.iter().find(|i| key.len() > i.key.len() && key.starts_with(&i.key))
    }

    /// The problem as an error that says where it is.
    pub fn fail(&self, problem: Problem) -> TrainerError {
        let Problem { key, part, message } = problem;
        // A key that no file has was made by an override below it.
        let below = self.overrides.iter().find(|o| o.key.starts_with(&key));
        let maker = below.filter(|_| !key_exists(&self.text, &key));
        let place = if let Some(found) = self.overridden(&key).or(maker) {
            place_of(&found.written)
        } else if let Some(include) = self.included(&key) {
            let below = key.get(include.key.len()..).unwrap_or_default();
            locate(&include.file, &include.text, below, part)
        } else {
            locate(&self.file, &self.text, &key, part)
        };
        TrainerError::Config { place, message }
    }
}

fn place_of(written: &str) -> String {
    format!("override `{written}`")
}

fn locate(file: &Path, text: &str, key: &[String], part: Part) -> String {
    match position(text, key, part) {
        Some(at) => format!("{}:{}:{}", file.display(), at.line, at.column),
        None => file.display().to_string(),
    }
}

fn read_text(file: &Path) -> Result<String> {
    read_bounded(file).map_err(|error| TrainerError::Config {
        place: file.display().to_string(),
        message: format!("cannot read the configuration: {error}"),
    })
}

fn read_bounded(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let length = File::open(file)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if length as u64 > LONGEST {
        return Err(std::io::Error::other(format!("it has more than {LONGEST} bytes")));
    }
    Ok(text)
}

fn parse_mapping(file: &Path, text: &str) -> Result<Value> {
    let place = |at: Option<Position>| match at {
        Some(at) => format!("{}:{}:{}", file.display(), at.line, at.column),
        None => file.display().to_string(),
    };
    let value = check_unique_keys(text).and_then(|()| serde_yaml::from_str(text));
    match value {
        Ok(Value::Null) => Ok(Value::Mapping(Mapping::new())),
        Ok(value @ Value::Mapping(_)) => Ok(value),
        Ok(_) => Err(TrainerError::Config {
            place: place(None),
            message: "expected a mapping of keys to values".into(),
        }),
        Err(error) => {
            let mut message = error.to_string();
            // The position is said in front already.
            if let Some(cut) = message.rfind(" at line ") {
                message.truncate(cut);
            }
            Err(TrainerError::Config { place: place(Position::of(&error)), message })
        }
    }
}

fn get<'a>(value: &'a Value, key: &[String]) -> Option<&'a Value> {
    key.iter().try_fold(value, |value, part| match value {
        Value::Mapping(map) => map.get(part.as_str()),
        Value::Sequence(items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Puts `new` at `key`; mappings on the way are made when they are missing.
fn set(value: &mut Value, key: &[String], new: Value) -> std::result::Result<(), String> {
    let Some((part, rest)) = key.split_first() else {
        *value = new;
        return Ok(());
    };
    if value.is_null() {
        *value = Value::Mapping(Mapping::new());
    }
    match value {
        Value::Mapping(map) => {
            let entry = map.entry(Value::String(part.clone())).or_insert(Value::Null);
            set(entry, rest, new)
        }
        Value::Sequence(items) => {
            let count = items.len();
            let item = part.parse::<usize>().ok().and_then(|index| items.get_mut(index));
            let item = item.ok_or_else(|| match count {
                0 => format!("{part:?} is no index: the list is empty"),
                _ => format!("{part:?} is no index of the list: expected 0 to {}", count - 1),
            })?;
            set(item, rest, new)
        }
        _ => Err(format!("there are no keys such as {part:?} below a single value")),
    }
}

/// The keys that a pattern with `*` stands for.
fn matching(value: &Value, pattern: &[String]) -> Vec<Vec<String>> {
    let Some((part, rest)) = pattern.split_first() else {
        return vec![Vec::new()];
    };
    let children: Vec<(String, &Value)> = match value {
        Value::Mapping(map) => map
            .iter()
            .filter_map(|(key, child)| Some((key.as_str()?.to_string(), child)))
            .filter(|(key, _)| part == "*" || key == part)
            .collect(),
        Value::Sequence(items) if part == "*" => {
            items.iter().enumerate().map(|(index, child)| (index.to_string(), child)).collect()
        }
        _ => Vec::new(),
    };
    let below = |(key, child): (String, &Value)| {
        let tails = matching(child, rest).into_iter();
        tails.map(move |tail| [vec![key.clone()], tail].concat()).collect::<Vec<_>>()
    };
    children.into_iter().flat_map(below).collect()
}
