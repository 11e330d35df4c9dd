//! What came of an example: a line of a file, from which a run goes on and results are made.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::write_atomically;
use altiplano_data::eval_tasks::Example;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Result, TrainerError};
use crate::json_log::JsonLog;

/// A measure of one example.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Measured {
    /// A value, of which the mean counts.
    Value(f64),
    /// A log-likelihood and what it is divided by, both summed over the examples.
    Weighted([f64; 2]),
}

/// An example with its answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Its place in the task, counted from 0.
    pub doc_id: usize,
    /// What the files call it.
    pub id: String,
    /// Parts of the task it counts in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What the model was given: context and continuation of each choice, or the prompt.
    pub arguments: Vec<Vec<String>>,
    /// The answer: the number of the right choice, or the text.
    pub target: Value,
    /// What the model gave: log-likelihood and whether it is greedy of each choice, or texts.
    pub resps: Vec<Value>,
    /// The answers found in texts, by filter.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filtered_resps: BTreeMap<String, Vec<String>>,
    /// Contexts that were cut from the left.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut_contexts: usize,
    /// Why it could not be scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_scored: Option<String>,
    /// By `measure,filter`.
    pub metrics: BTreeMap<String, Measured>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Sample {
    /// The sample of an example of which nothing has come yet.
    pub fn of(doc_id: usize, example: &Example) -> Self {
        Self {
            doc_id,
            id: example.id.clone(),
            groups: example.groups.clone(),
            arguments: Vec::new(),
            target: Value::Null,
            resps: Vec::new(),
            filtered_resps: BTreeMap::new(),
            cut_contexts: 0,
            not_scored: None,
            metrics: BTreeMap::new(),
        }
    }
}

/// The samples of one task in a folder, and what they depend on beside them.
#[derive(Debug)]
pub struct SampleFile {
    log: JsonLog,
}

impl SampleFile {
    /// Opens the samples of a task in `folder` and reads those that are there. A last line that was
    /// torn by a kill is dropped.
    ///
    /// # Errors
    /// When the samples there were made with other settings, saying which.
    pub fn open(folder: &Path, task: &str, settings: &Value) -> Result<(Self, Vec<Sample>)> {
        let path = samples_path(folder, task);
        let settings_path = settings_path(folder, task);
        let (log, samples) = JsonLog::open::<Sample>(&path)?;
        // What a refused command left is nothing to go on from.
        if !samples.is_empty() {
            let found = read_json(&settings_path)?;
            if let Some(difference) = difference(&found, settings) {
                let reason = format!(
                    "made with other settings: {difference}; choose another --output, or delete the \
                     folder to begin anew"
                );
                return Err(TrainerError::RunFile { path, reason });
            }
        } else {
            let json = serde_json::to_vec_pretty(settings)
                .map_err(|error| TrainerError::Output(error.into()))?;
            write_atomically(&settings_path, &json)?;
        }
        Ok((Self { log }, samples))
    }

    /// Appends samples.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn append(&mut self, samples: &[Sample]) -> Result<()> {
        samples.iter().try_for_each(|sample| self.log.append(sample))
    }
}

/// The file with the samples of a task.
pub fn samples_path(folder: &Path, task: &str) -> PathBuf {
    folder.join(format!("samples_{task}.jsonl"))
}

/// The file with the settings that the samples of a task were made with.
pub fn settings_path(folder: &Path, task: &str) -> PathBuf {
    samples_path(folder, task).with_extension("settings.json")
}

/// The samples in a file, up to a last line that is not whole.
///
/// # Errors
/// When another line is damaged.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    let text = fs::read_to_string(path).map_err(TrainerError::io(path))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |(n, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| TrainerError::RunFile {
            path: path.to_owned(),
            reason: format!("line {}: not a sample: {error}; delete the file", n + 1),
        })
    };
    whole.lines().enumerate().map(parse).collect()
}

/// A JSON file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(TrainerError::io(path))?;
    serde_json::from_slice(&text).map_err(|error| TrainerError::RunFile {
        path: path.to_owned(),
        reason: format!("not JSON: {error}"),
    })
}

/// The first setting that differs.
fn difference(found: &Value, wanted: &Value) -> Option<String> {
    let wanted = wanted.as_object()?;
    wanted.iter().find_map(|(key, value)| {
        let other = found.get(key).unwrap_or(&Value::Null);
        (other != value).then(|| format!("{key} was {other} and is {value}"))
    })
}
