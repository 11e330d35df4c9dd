//! Training a language model on labelled text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::labelled::{self, LabelledFile, Skipped};
use crate::atomic_file::remove_durably;
use crate::error::{DataError, Result};
use crate::fasttext_model::{
    self, Examples, FastTextModel, Loss, TrainingOptions, report_path, write_report,
};
use crate::progress::{Progress, ProgressMode, Work};

/// What `altiplano data train-lid` needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainLanguageOptions {
    /// Labelled text (list of paths): a file holds a line `__label__xx text` per example; a
    /// folder holds a folder per language, named by its code, with plain text, a line an example.
    /// Files may end in `.gz`.
    pub inputs: Vec<PathBuf>,
    /// The model to write, a `.bin` file (path). The report is written beside it, as `.json`.
    pub output: PathBuf,
    /// Share of the lines that is held out to measure on (number, default 0.1).
    #[serde(default = "default_held_out")]
    pub held_out: f64,
    /// Shortest line in characters (integer, default 20).
    #[serde(default = "default_min_chars")]
    pub min_chars: usize,
    /// Most lines of a language, the first ones of the sorted files (integer, default 200000).
    /// A line takes 40 bytes of memory.
    #[serde(default = "default_max_examples")]
    pub max_examples: u64,
    /// fastText's arguments (map); the defaults here are those of the published `lid.176`: 16
    /// dimensions, n-grams of 2 to 4 characters, hierarchical softmax; and 500000 buckets, words
    /// seen 5 times, learning rate 0.5. In a map that is given, what is left out is fastText's
    /// default.
    #[serde(default = "default_training")]
    pub training: TrainingOptions,
}

fn default_held_out() -> f64 {
    0.1
}
fn default_min_chars() -> usize {
    20
}
fn default_max_examples() -> u64 {
    200_000
}
fn default_training() -> TrainingOptions {
    TrainingOptions {
        learning_rate: 0.5,
        dimensions: 16,
        min_count: 5,
        min_chars: 2,
        max_chars: 4,
        buckets: 500_000,
        loss: Loss::HierarchicalSoftmax,
        ..TrainingOptions::default()
    }
}

impl TrainLanguageOptions {
    /// Trains on `inputs` and writes `output`, all else at its default.
    pub fn new(inputs: Vec<PathBuf>, output: PathBuf) -> Self {
        Self {
            inputs,
            output,
            held_out: default_held_out(),
            min_chars: default_min_chars(),
            max_examples: default_max_examples(),
            training: default_training(),
        }
    }

    fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(DataError::config("held_out", self.held_out, "0 or more, below 1"));
        }
        self.training.validate("training")
    }
}

/// How well the languages are told apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainLanguageReport {
    /// The model.
    pub model: PathBuf,
    /// Its blake3 hash.
    pub blake3: String,
    /// Lines that are not UTF-8.
    pub not_utf8: u64,
    /// Lines of a file of labelled lines without a label.
    pub no_label: u64,
    /// Lines shorter than `min_chars`.
    pub too_short: u64,
    /// Lines that another one repeats.
    pub repeated: u64,
    /// Lines above `max_examples`.
    pub above_maximum: u64,
    /// Share of the held-out lines whose language is found.
    pub accuracy: f64,
    /// The languages, by code.
    pub languages: BTreeMap<String, LanguageReport>,
}

/// One language of [`TrainLanguageReport`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LanguageReport {
    /// Lines trained on.
    pub trained: u64,
    /// Lines held out.
    pub held_out: u64,
    /// Held-out lines found to be in this language that are.
    pub correct: u64,
    /// Held-out lines found to be in this language, rightly or not.
    pub found: u64,
    /// `correct` / `held_out`: the recall.
    pub accuracy: f64,
    /// `correct` / `found`.
    pub precision: f64,
}

/// Trains a language model and measures it on lines it has not seen. The same files and options
/// give the same bytes: training has one thread.
///
/// # Errors
/// [`DataError::NoInput`], [`DataError::Io`], [`DataError::Config`], and
/// [`DataError::BadFile`] when the text has fewer than two languages.
pub fn train(
    options: &TrainLanguageOptions,
    progress: ProgressMode,
) -> Result<TrainLanguageReport> {
    options.validate()?;
    let files = labelled::list(&options.inputs)?;
    let size = |file: &LabelledFile| std::fs::metadata(&file.path).map_or(0, |data| data.len());
    let work = Work::bytes(files.iter().map(size).sum()).of(files.len() as u64, "files");
    let reading = Progress::new(progress, "examples", work);
    let mut examples = Examples::new(&options.output, options.training.seed)?;
    let mut numbers = BTreeMap::new();
    let mut labels = Vec::new();
    let mut taken = Vec::new();
    let mut skipped = Skipped::default();
    let (mut too_short, mut repeated, mut above_maximum) = (0, 0, 0);
    for file in &files {
        file.each(&mut skipped, &reading, |language, text| {
            if text.trim().chars().count() < options.min_chars {
                too_short += 1;
                return Ok(());
            }
            let number = match numbers.get(language) {
                Some(&number) => number,
                None => {
                    check_name(language, &file.path)?;
                    let number = labels.len();
                    labels.push(language.to_owned());
                    taken.push(0);
                    numbers.insert(language.to_owned(), number);
                    number
                }
            };
            if taken[number] == options.max_examples {
                above_maximum += 1;
            } else if examples.add(number as u32, text)? {
                taken[number] += 1;
            } else {
                repeated += 1;
            }
            Ok(())
        })?;
        reading.item_done();
    }
    reading.finish(&format!("{} languages", labels.len()));
    if labels.len() < 2 {
        return Err(DataError::bad_file(
            &files[0].path,
            format!("text in {} languages, expected two or more", labels.len()),
        ));
    }
    let split = examples.split(&labels, options.held_out)?;
    // A crash must not leave a new model with the report of the old one.
    remove_durably(&report_path(&options.output))?;
    let training = Progress::new(progress, "training", Work::bytes(0));
    let written =
        fasttext_model::train(&split.train, &options.output, &options.training, &training)?;

    let model = FastTextModel::load(&options.output)?;
    let mut reports = vec![LanguageReport::default(); labels.len()];
    for (report, &trained) in reports.iter_mut().zip(&split.trained) {
        report.trained = trained;
    }
    split.held_out.each(|label, line| {
        let label = label as usize;
        reports[label].held_out += 1;
        let best = model.predict(line, 1);
        let found = best.first().and_then(|best| numbers.get(best.label).copied());
        if let Some(found) = found {
            reports[found].found += 1;
            reports[found].correct += u64::from(found == label);
        }
    })?;
    training.finish("trained and measured");
    for report in &mut reports {
        report.accuracy = share(report.correct, report.held_out);
        report.precision = share(report.correct, report.found);
    }
    let report = TrainLanguageReport {
        model: options.output.clone(),
        blake3: written.blake3,
        not_utf8: skipped.not_utf8,
        no_label: skipped.no_label,
        too_short,
        repeated,
        above_maximum,
        accuracy: share(
            reports.iter().map(|report| report.correct).sum(),
            reports.iter().map(|report| report.held_out).sum(),
        ),
        languages: labels.into_iter().zip(reports).collect(),
    };
    write_report(&options.output, &report)?;
    Ok(report)
}

fn check_name(language: &str, path: &Path) -> Result<()> {
    if language.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(DataError::bad_file(
            path,
            format!("the language {language:?} has white space in its name; expected a code"),
        ));
    }
    Ok(())
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::language::{LanguageIdentifier, Newlines};

    /// Sentences made of words that only one of two languages has.
    fn write_languages(folder: &Path) {
        let english = ["the", "house", "which", "stands", "there", "with", "windows", "shut"];
        let german = ["das", "haus", "welches", "dort", "steht", "mit", "fenstern", "zu"];
        for (language, words) in [("en", english), ("de", german)] {
            let lines: String = (0..400usize)
                .map(|n| {
                    let mut line: Vec<_> =
                        (0..6).map(|k| words[(n * 7 + k * k * (n % 5 + 1)) % 8]).collect();
                    let number = n.to_string();
                    line.push(&number);
                    line.join(" ") + "\n"
                })
                .collect();
            let file = folder.join(language);
            std::fs::create_dir_all(&file).unwrap();
            std::fs::write(file.join("text.txt"), lines).unwrap();
        }
    }

    #[test]
    fn two_languages_are_learnt_and_twice_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        write_languages(&text);
        let run = |name: &str| {
            let mut options =
                TrainLanguageOptions::new(vec![text.clone()], folder.path().join(name));
            options.training.buckets = 2000;
            train(&options, ProgressMode::Hidden).unwrap()
        };
        let report = run("a.bin");
        assert!(report.accuracy > 0.95, "{report:?}");
        assert_eq!(report.languages.len(), 2);
        let english = &report.languages["en"];
        assert!(english.held_out > 10 && english.trained + english.held_out <= 400);
        assert_eq!(report.blake3, run("b.bin").blake3);
        let saved = std::fs::read(folder.path().join("a.json")).unwrap();
        assert_eq!(serde_json::from_slice::<TrainLanguageReport>(&saved).unwrap(), report);

        let identifier = LanguageIdentifier::load(Some(&folder.path().join("a.bin"))).unwrap();
        let found = identifier.identify("the house\nwhich stands there", Newlines::Space).unwrap();
        assert_eq!(found.language, "en");
        assert!(found.score > 0.8);
    }

    #[test]
    fn a_model_that_was_altered_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        write_languages(&text);
        let model = folder.path().join("lid.bin");
        let mut options = TrainLanguageOptions::new(vec![text], model.clone());
        options.training.buckets = 2000;
        train(&options, ProgressMode::Hidden).unwrap();
        for name in ["lid.bin", "lid.json"] {
            let path = folder.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            let at = bytes.len() - 9;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let error = FastTextModel::load(&model).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            std::fs::write(&path, whole).unwrap();
        }
        // Another tool's file of that name is no report.
        std::fs::write(folder.path().join("lid.json"), "{\"labels\": 2}").unwrap();
        FastTextModel::load(&model).unwrap();
    }

    #[test]
    fn one_language_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lines");
        std::fs::write(&file, "__label__en a line of text that is long enough\n").unwrap();
        let options = TrainLanguageOptions::new(vec![file], folder.path().join("m.bin"));
        let error = train(&options, ProgressMode::Hidden).unwrap_err().to_string();
        assert!(error.contains("two or more"), "{error}");
        assert!(!folder.path().join("m.bin").exists());
    }
}
