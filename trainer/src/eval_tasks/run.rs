//! A task from its files to its figures, some examples at a time: what is done is kept, and a run that
//! was ended goes on behind it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use altiplano_data::eval_tasks::{Example, ExampleKind, Rules, Task, TaskExamples};
use altiplano_data::progress::{Progress, ProgressMode, Work};
use serde_json::{Value, json};

use super::generations::{Sampling, generate_examples};
use super::likelihoods::score_examples;
use super::results::{TaskResult, short_name, summarize};
use super::sample::{Sample, SampleFile};
use super::scoring::EvalModel;
use crate::error::{Result, TrainerError};
use crate::text_model::TextModel;

/// Examples that are computed together, and lost when a run is killed.
const AT_A_TIME: usize = 64;

/// Texts that are generated together.
const TEXTS_AT_A_TIME: usize = 256;

/// How tasks are run.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// The folder with the files of the tasks.
    pub data: PathBuf,
    /// Whose rules.
    pub rules: Rules,
    /// Shots before each question; those of the rules by default.
    pub shots: Option<usize>,
    /// Most examples of a task.
    pub limit: Option<usize>,
    /// How texts are generated.
    pub sampling: Sampling,
    /// The folder with the samples.
    pub output: Option<PathBuf>,
    /// Whether progress is shown.
    pub progress: ProgressMode,
}

/// The examples of a task, and how many shots go before each.
#[derive(Debug)]
pub struct OpenTask {
    task: &'static Task,
    read: TaskExamples,
    shots: usize,
}

impl OpenTask {
    /// Reads the files of a task.
    ///
    /// # Errors
    /// When files are missing, damaged or of another task.
    pub fn open(task: &'static Task, options: &EvalOptions) -> Result<Self> {
        let shots = options.shots.unwrap_or_else(|| task.default_shots(options.rules));
        let read = task.read(&options.data, options.rules, shots)?;
        Ok(Self { task, read, shots })
    }

    /// The task.
    pub fn task(&self) -> &'static Task {
        self.task
    }

    /// The names of its scores by the rules, as [`TaskResult::scores`] has them.
    pub fn score_names(&self, rules: Rules) -> Vec<String> {
        let of_task = |measure: &str| format!("{}/{measure}", self.task.name);
        let first = self.read.examples.first().map(|example| &example.kind);
        match first {
            Some(ExampleKind::Generation(answer)) => {
                let judged = answer.judge("", rules).into_iter();
                let measures = judged.map(|judged| format!("exact_match,{}", judged.filter));
                measures.map(|measure| of_task(short_name(&measure))).collect()
            }
            _ => self.task.measures(rules).iter().map(|measure| of_task(measure)).collect(),
        }
    }

    /// A hash of the content of its files.
    ///
    /// # Errors
    /// When one cannot be read any more.
    pub fn hash_of_files(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for path in &self.read.files {
            let bytes = fs::read(path).map_err(TrainerError::io(path))?;
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The examples that are to be scored but those that are `done`, with their numbers and the text before
    /// their question.
    ///
    /// # Errors
    /// When there are fewer shots than asked for.
    pub(super) fn left(
        &self,
        options: &EvalOptions,
        done: &HashSet<usize>,
    ) -> Result<Vec<(usize, &Example, String)>> {
        let examples = self.read.examples.iter().take(self.count(options)).enumerate();
        let left = examples.filter(|(n, _)| !done.contains(n));
        left.map(|(n, example)| {
            Ok((n, example, self.task.prefix(example, &self.read.shots, self.shots)?))
        })
        .collect()
    }

    /// How many examples are computed together.
    pub(super) fn at_a_time(&self, options: &EvalOptions) -> usize {
        match self.task.generation {
            None => AT_A_TIME,
            Some(_) => (TEXTS_AT_A_TIME / options.sampling.samples).clamp(1, AT_A_TIME),
        }
    }

    /// The figures of samples, which are those of all examples.
    pub(super) fn summarize(&self, mut samples: Vec<Sample>) -> TaskResult {
        samples.sort_by_key(|sample| sample.doc_id);
        let original = self.read.examples.len();
        summarize(self.task, self.shots, original, &self.read.left_out, &samples)
    }

    /// Examples that are to be scored.
    pub(super) fn count(&self, options: &EvalOptions) -> usize {
        self.read.examples.len().min(options.limit.unwrap_or(usize::MAX))
    }

    /// Scores the examples and sums them up. With a folder for samples, those that are there already
    /// are not computed again.
    ///
    /// # Errors
    /// When the model fails, or samples cannot be written.
    pub fn run(&self, model: &TextModel, options: &EvalOptions) -> Result<TaskResult> {
        let count = self.count(options);
        let (mut file, mut samples) = match &options.output {
            None => (None, Vec::new()),
            Some(folder) => {
                let settings = self.settings(model, options)?;
                let (file, samples) = SampleFile::open(folder, self.task.name, &settings)?;
                (Some(file), samples)
            }
        };
        samples.retain(|sample| sample.doc_id < count);
        let done: HashSet<usize> = samples.iter().map(|sample| sample.doc_id).collect();
        let left = self.left(options, &done)?;
        let work = Work::count(count as u64, "examples");
        let progress = Progress::new(options.progress, self.task.name, work);
        progress.set_done(samples.len() as u64);
        for examples in left.chunks(self.at_a_time(options)) {
            let new = self.score(model.into(), options, examples)?;
            if let Some(file) = &mut file {
                file.append(&new)?;
            }
            samples.extend(new);
            progress.add(examples.len() as u64);
        }
        progress.finish(&format!("{count} examples"));
        Ok(self.summarize(samples))
    }

    /// Scores some examples.
    pub(super) fn score(
        &self,
        model: EvalModel<'_>,
        options: &EvalOptions,
        examples: &[(usize, &Example, String)],
    ) -> Result<Vec<Sample>> {
        match self.task.generation {
            None => score_examples(model, self.task, options.rules, examples),
            Some(_) => {
                generate_examples(model, self.task, options.rules, &options.sampling, examples)
            }
        }
    }

    /// What the samples depend on.
    fn settings(&self, model: &TextModel, options: &EvalOptions) -> Result<Value> {
        let mut settings = json!({
            "task": self.task.name,
            "rules": options.rules,
            "shots": self.shots,
            "data": self.hash_of_files()?,
            "model": weights_of(&model.path)?,
            "tokenizer": model.tokenizer.fingerprint(),
        });
        if self.task.generation.is_some() {
            let sampling = &options.sampling;
            settings["samples"] = json!(sampling.samples);
            settings["temperature"] = json!(sampling.temperature);
            settings["top_p"] = json!(sampling.top_p);
            settings["seed"] = json!(sampling.seed);
            settings["execution"] = json!(sampling.execution.is_some());
        }
        Ok(settings)
    }
}

/// Names, lengths and times of the files with the weights: their content is not read for this.
fn weights_of(path: &Path) -> Result<Value> {
    let files = match path.is_dir() {
        false => vec![path.to_owned()],
        true => {
            let mut files = Vec::new();
            for entry in fs::read_dir(path).map_err(TrainerError::io(path))? {
                let file = entry.map_err(TrainerError::io(path))?.path();
                let ending = file.extension().and_then(|ending| ending.to_str());
                if matches!(ending, Some("safetensors" | "gguf")) {
                    files.push(file);
                }
            }
            files.sort();
            files
        }
    };
    let mut found = Vec::new();
    for file in files {
        let metadata = fs::metadata(&file).map_err(TrainerError::io(&file))?;
        let changed = metadata.modified().ok();
        let since = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
        let seconds = since.map_or(0.0, |since| since.as_secs_f64());
        found.push(json!([name, metadata.len(), seconds]));
    }
    Ok(json!({ "path": path, "files": found }))
}
