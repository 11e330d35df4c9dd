//! What a task is: its files, where they are published, its prompts and its measures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::example::{Example, Normalization, Rules};
use super::rows::{Row, RowFault, RowResult, read_rows, read_text};
use crate::error::{DataError, Result};
use crate::source::list_inputs;

/// A task: its files become examples, and its measures say how answers count.
pub struct Task {
    /// Its name, under which lm-evaluation-harness knows it too.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// Where its files are published.
    pub published: &'static str,
    /// Their licence.
    pub licence: &'static str,
    /// The task's folder, where it is not its name.
    pub(super) folder: Option<&'static str>,
    /// Patterns of the files with the examples, below the task's folder: the first that matches files.
    pub(super) files: &'static [&'static str],
    /// Patterns of the files with the shots; none where the task has no shots.
    pub(super) shot_files: &'static [&'static str],
    /// Shots by the rules of the paper and of lm-evaluation-harness.
    pub(super) shots: [usize; 2],
    /// Which rows are examples, where one file has both.
    pub(super) test_rows: fn(&Row) -> bool,
    /// Which rows are shots, where one file has both.
    pub(super) shot_rows: fn(&Row) -> bool,
    /// How choices are compared by the rules of the paper.
    pub paper_normalization: Normalization,
    /// What is measured by the rules of the paper and of lm-evaluation-harness; nothing for generated
    /// texts, whose measures follow from the answer.
    pub(super) measures: [&'static [&'static str]; 2],
    /// What separates a shot from what follows it.
    pub(super) shot_separator: &'static str,
    /// What stands between question and answer of a shot.
    pub(super) answer_delimiter: &'static str,
    /// How texts are generated; none for tasks of likelihoods.
    pub generation: Option<Generation>,
    /// Whether the texts are programs, which are run.
    pub runs_programs: bool,
    /// Reads a file.
    pub(super) read: fn(&Path) -> Result<Vec<Row>>,
    /// What a row becomes: RACE has several questions in one.
    pub(super) examples: fn(&Row, Rules) -> RowResult<Vec<Example>>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How texts are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// A text ends before any of these.
    pub stop: [&'static [&'static str]; 2],
    /// Most tokens of a text.
    pub max_tokens: [usize; 2],
}

/// The share of right answers.
pub const ACC: &str = "acc";
/// The same, likelihoods being compared over characters.
pub const ACC_NORM: &str = "acc_norm";
/// How often the stereotype is likelier; half of the time is best.
pub const PCT_STEREOTYPE: &str = "pct_stereotype";
/// The distance of the two likelihoods.
pub const LIKELIHOOD_DIFF: &str = "likelihood_diff";
/// exp of the loss of a word.
pub const WORD_PERPLEXITY: &str = "word_perplexity";
/// exp of the loss of a byte.
pub const BYTE_PERPLEXITY: &str = "byte_perplexity";
/// The loss of a byte in bits.
pub const BITS_PER_BYTE: &str = "bits_per_byte";

/// The examples of a task.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskExamples {
    /// Those that can be scored, in the order of the files.
    pub examples: Vec<Example>,
    /// Rows that cannot, by reason.
    pub left_out: BTreeMap<&'static str, u64>,
    /// Examples from which shots are taken.
    pub shots: Vec<Example>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

/// Whether more of a measure, `acc` for example, is better.
pub fn higher_is_better(measure: &str) -> bool {
    ["acc", "exact_match", "maj", "pass"].iter().any(|better| measure.starts_with(better))
}

const fn at(rules: Rules) -> usize {
    match rules {
        Rules::Paper => 0,
        Rules::Harness => 1,
    }
}

impl Task {
    /// Shots that the rules ask for.
    pub fn default_shots(&self, rules: Rules) -> usize {
        self.shots[at(rules)]
    }

    /// Patterns of the files with the examples.
    pub fn file_patterns(&self) -> &'static [&'static str] {
        self.files
    }

    /// What is measured of likelihoods.
    pub fn measures(&self, rules: Rules) -> &'static [&'static str] {
        self.measures[at(rules)]
    }

    /// Most tokens of a text of the task.
    pub fn max_tokens(&self, rules: Rules) -> usize {
        self.generation.map_or(0, |generation| generation.max_tokens[at(rules)])
    }

    /// The strings before which a text of the task ends.
    pub fn stop(&self, rules: Rules) -> &'static [&'static str] {
        self.generation.map_or(&[], |generation| generation.stop[at(rules)])
    }

    /// Reads the examples of a task, and its shots where there are to be any, from its folder below
    /// `data`, or from `data` itself.
    ///
    /// # Errors
    /// [`DataError::BadFile`] when a file is missing, naming where it is published, and when one is
    /// damaged or of another task.
    pub fn read(&self, data: &Path, rules: Rules, shots: usize) -> Result<TaskExamples> {
        let mut read = TaskExamples::default();
        let files = self.find(data, self.files, "examples")?;
        for path in &files {
            let (examples, left_out) = self.examples_of(path, self.test_rows, rules)?;
            read.examples.extend(examples);
            for reason in left_out {
                *read.left_out.entry(reason).or_default() += 1;
            }
        }
        read.files = files;
        if read.examples.is_empty() {
            let reasons: Vec<String> = read
                .left_out
                .iter()
                .map(|(reason, count)| format!("{count} times {reason}"))
                .collect();
            let reason = format!(
                "no example of {} can be scored here: {}",
                self.name,
                if reasons.is_empty() { "there are no rows".into() } else { reasons.join(", ") }
            );
            return Err(DataError::bad_file(&read.files[0], reason));
        }
        if shots == 0 {
            return Ok(read);
        }
        if self.shot_files.is_empty() {
            return Err(DataError::config(
                "--shots",
                shots.to_string(),
                format!("0 for {}, which has no examples to show", self.name),
            ));
        }
        for path in self.find(data, self.shot_files, "shots")? {
            read.shots.extend(self.examples_of(&path, self.shot_rows, rules)?.0);
            read.files.push(path);
        }
        Ok(read)
    }

    /// The examples of the `wanted` rows of a file, and why others of these are left out.
    fn examples_of(
        &self,
        path: &Path,
        wanted: fn(&Row) -> bool,
        rules: Rules,
    ) -> Result<(Vec<Example>, Vec<&'static str>)> {
        let (mut found, mut left_out) = (Vec::new(), Vec::new());
        for row in (self.read)(path)?.iter().filter(|row| wanted(row)) {
            match (self.examples)(row, rules) {
                Ok(examples) => found.extend(examples),
                Err(RowFault::File(error)) => return Err(error),
                Err(RowFault::LeftOut(reason)) => left_out.push(reason),
            }
        }
        Ok((found, left_out))
    }

    /// The files of the first pattern that matches any.
    fn find(&self, data: &Path, patterns: &[&str], of: &str) -> Result<Vec<PathBuf>> {
        let folder = self.folder.unwrap_or(self.name);
        for base in [data.join(folder), data.to_owned()] {
            for pattern in patterns {
                match list_inputs("--data", &[base.join(pattern)]) {
                    Ok(inputs) => return Ok(inputs.into_iter().map(|input| input.path).collect()),
                    Err(DataError::NoInput { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let reason = format!(
            "no file with the {of} of {}: expected {}; they are published at {} ({})",
            self.name,
            patterns.join(" or "),
            self.published,
            self.licence
        );
        Err(DataError::bad_file(data.join(folder), reason))
    }

    /// The text before the question of an example: description and the first `count` shots.
    ///
    /// # Errors
    /// [`DataError::Config`] when there are fewer shots.
    pub fn prefix(&self, example: &Example, shots: &[Example], count: usize) -> Result<String> {
        let mut prefix = example.description.clone();
        let fitting = || shots.iter().filter(|shot| shot.shot_key == example.shot_key);
        let mut found = 0;
        for shot in fitting().take(count) {
            prefix.push_str(&shot.question);
            prefix.push_str(self.answer_delimiter);
            prefix.push_str(&shot.answer);
            prefix.push_str(self.shot_separator);
            found += 1;
        }
        match found < count {
            false => Ok(prefix),
            true => Err(DataError::config(
                "--shots",
                count.to_string(),
                format!("at most {found}, of which there are examples of {}", self.name),
            )),
        }
    }
}

/// A task of likelihoods without shots, by the harness's measures of accuracy; what differs is set in
/// its place.
pub(super) const LIKELIHOODS: Task = Task {
    name: "",
    title: "",
    published: "",
    licence: "",
    folder: None,
    files: &[],
    shot_files: &[],
    shots: [0, 0],
    test_rows: |_| true,
    shot_rows: |_| true,
    paper_normalization: Normalization::PerCharacter,
    measures: [&[ACC], &[ACC, ACC_NORM]],
    shot_separator: "\n\n",
    answer_delimiter: " ",
    generation: None,
    runs_programs: false,
    read: read_plain,
    examples: |row, _| Err(row.unlike("a task")),
};

/// Rows whose file has the names of its columns.
pub(super) fn read_plain(path: &Path) -> Result<Vec<Row>> {
    read_rows(path, None)
}

/// Rows whose labels lie in a file of their own, a label a line: `NAME-labels.lst` beside `NAME.jsonl`.
pub(super) fn read_with_labels(path: &Path) -> Result<Vec<Row>> {
    let mut rows = read_rows(path, None)?;
    if rows.iter().all(|row| row.get("label").is_some()) {
        return Ok(rows);
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let labels_path = path.with_file_name(format!("{stem}-labels.lst"));
    if !labels_path.exists() {
        let reason = "is missing; the labels of the examples beside it are published in it";
        return Err(DataError::bad_file(&labels_path, reason));
    }
    let labels = read_text(&labels_path)?;
    let labels: Vec<&str> = labels.lines().collect();
    if labels.len() != rows.len() {
        let reason =
            format!("{} labels, expected one for each of {} examples", labels.len(), rows.len());
        return Err(DataError::bad_file(&labels_path, reason));
    }
    for (row, label) in rows.iter_mut().zip(labels) {
        row.set("label", label.trim().into());
    }
    Ok(rows)
}

/// Why a row is left out: a choice without text.
pub(super) const EMPTY_CHOICE: &str = "a choice is empty";
/// Why a row is left out: its answer is none of the choices.
pub(super) const NO_SUCH_CHOICE: &str = "the answer is none of the choices";
