//! Training the classifier of reference-like pages on documents.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Calibration, RANDOM_LABEL, REFERENCE_LABEL, ReferenceClassifier};
use crate::atomic_file::remove_durably;
use crate::document::{Document, DocumentFile, list_documents};
use crate::error::{DataError, Result};
use crate::fasttext_model::{self, Examples, TrainingOptions, report_path, write_report};
use crate::progress::{Progress, ProgressMode, Work};

/// What `altiplano data train-classifier` needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainClassifierOptions {
    /// Documents of pages that Wikipedia cites: files of `altiplano data run`, or folders of
    /// them (list of paths).
    pub references: Vec<PathBuf>,
    /// Documents of random pages: files or folders (list of paths). As many as there are
    /// references are taken, evenly spread.
    pub random: Vec<PathBuf>,
    /// The model to write, a `.bin` file (path). The report is written beside it, as `.json`.
    pub output: PathBuf,
    /// Shortest reference in characters (integer, default 1000). Random pages have no minimum.
    #[serde(default = "default_min_chars")]
    pub min_chars: usize,
    /// Most references, the first ones of the sorted files (integer, default 300000).
    #[serde(default = "default_max_references")]
    pub max_references: usize,
    /// Perplexity buckets that references come from (list of strings, default `head` and
    /// `middle`). References without a bucket are taken too.
    #[serde(default = "default_buckets")]
    pub reference_buckets: Vec<String>,
    /// Share of the documents that is held out to measure on (number, default 0.1).
    #[serde(default = "default_held_out")]
    pub held_out: f64,
    /// fastText's arguments (map, default fastText's own).
    #[serde(default)]
    pub training: TrainingOptions,
}

fn default_min_chars() -> usize {
    1000
}
fn default_max_references() -> usize {
    300_000
}
fn default_buckets() -> Vec<String> {
    vec!["head".into(), "middle".into()]
}
fn default_held_out() -> f64 {
    0.1
}

impl TrainClassifierOptions {
    /// All but the files at its default.
    pub fn new(references: Vec<PathBuf>, random: Vec<PathBuf>, output: PathBuf) -> Self {
        Self {
            references,
            random,
            output,
            min_chars: default_min_chars(),
            max_references: default_max_references(),
            reference_buckets: default_buckets(),
            held_out: default_held_out(),
            training: TrainingOptions::default(),
        }
    }

    fn validate(&self) -> Result<()> {
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return Err(DataError::config("held_out", self.held_out, "above 0 and below 1"));
        }
        if self.max_references == 0 {
            return Err(DataError::config("max_references", 0, "1 or more"));
        }
        self.training.validate("training")
    }
}

/// What was trained on, and how well it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainClassifierReport {
    /// The model.
    pub model: PathBuf,
    /// Its blake3 hash.
    pub blake3: String,
    /// The pages that Wikipedia cites.
    pub references: ClassReport,
    /// The random pages.
    pub random: ClassReport,
    /// Held-out documents without a word the model knows; they are in no other figure.
    pub unknown: u64,
    /// Precision, recall and calibration on the held-out documents.
    pub calibration: Calibration,
}

/// The documents of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Documents looked at.
    pub documents: u64,
    /// Those shorter than `min_chars`.
    pub too_short: u64,
    /// Those of another perplexity bucket.
    pub other_bucket: u64,
    /// Those with the words of another one, of either class.
    pub repeated: u64,
    /// Trained on.
    pub trained: u64,
    /// Held out.
    pub held_out: u64,
}

/// Trains the classifier and measures it on documents it has not seen. The same documents and
/// options give the same bytes.
///
/// # Errors
/// [`DataError::NoInput`], [`DataError::Io`], [`DataError::Config`], and [`DataError::BadFile`]
/// for a damaged document file or when a class has too few documents for both sides.
pub fn train(
    options: &TrainClassifierOptions,
    progress: ProgressMode,
) -> Result<TrainClassifierReport> {
    options.validate()?;
    let reference_files = list("references", &options.references)?;
    let random_files = list("random", &options.random)?;
    let mut examples = Examples::new(&options.output, options.training.seed)?;
    let mut references = ClassReport::default();
    let mut random = ClassReport::default();

    let files = || reference_files.iter().chain(&random_files);
    let bytes = files().map(|file| file.text_bytes).fold(0, u64::saturating_add);
    let work = Work::bytes(bytes).of(files().count() as u64, "files");
    let reading = Progress::new(progress, "examples", work);
    'files: for file in &reference_files {
        for document in file.reader()? {
            if examples.len() == options.max_references {
                break 'files;
            }
            let document = document?;
            reading.add(document.text.len() as u64);
            references.documents += 1;
            if document.text.chars().nth(options.min_chars.saturating_sub(1)).is_none() {
                references.too_short += 1;
            } else if !in_buckets(&document, &options.reference_buckets) {
                references.other_bucket += 1;
            } else if !examples.add(0, &document.text)? {
                references.repeated += 1;
            }
        }
        reading.item_done();
    }

    let wanted = examples.len() as u64;
    let available: u64 = random_files.iter().map(|file| file.documents).sum();
    let mut index = 0;
    for file in &random_files {
        for document in file.reader()? {
            let document = document?;
            reading.add(document.text.len() as u64);
            if spread(index, available, wanted) {
                random.documents += 1;
                random.repeated += u64::from(!examples.add(1, &document.text)?);
            }
            index += 1;
        }
        reading.item_done();
    }
    reading.finish(&format!("{} documents", examples.len()));

    let labels = [REFERENCE_LABEL.to_owned(), RANDOM_LABEL.to_owned()];
    let split = examples.split(&labels, options.held_out)?;
    split.held_out.each(|label, _| {
        let class = if label == 0 { &mut references } else { &mut random };
        class.held_out += 1;
    })?;
    (references.trained, random.trained) = (split.trained[0], split.trained[1]);
    for (class, files) in [(&references, &options.references), (&random, &options.random)] {
        if class.trained == 0 || class.held_out == 0 {
            return Err(DataError::bad_file(
                files.first().map_or(Path::new(""), PathBuf::as_path),
                format!(
                    "{} documents to train on and {} to measure on, of {}; expected both: give \
                     more documents, or lower `min_chars`",
                    class.trained, class.held_out, class.documents
                ),
            ));
        }
    }
    // A crash must not leave a new model with the report of the old one.
    remove_durably(&report_path(&options.output))?;
    let training = Progress::new(progress, "training", Work::bytes(0));
    let written =
        fasttext_model::train(&split.train, &options.output, &options.training, &training)?;

    let classifier = ReferenceClassifier::load(&options.output)?;
    let mut scored = Vec::new();
    let mut unknown = 0;
    split.held_out.each(|label, line| match classifier.probability(line) {
        Some(probability) => scored.push((probability, label == 0)),
        None => unknown += 1,
    })?;
    training.finish("trained and measured");
    let report = TrainClassifierReport {
        model: options.output.clone(),
        blake3: written.blake3,
        references,
        random,
        unknown,
        calibration: Calibration::new(&scored),
    };
    write_report(&options.output, &report)?;
    Ok(report)
}

fn list(key: &str, paths: &[PathBuf]) -> Result<Vec<DocumentFile>> {
    let mut files = Vec::new();
    for path in paths {
        files.extend(list_documents(path, None)?);
    }
    if files.is_empty() {
        return Err(DataError::config(
            key,
            "an empty list",
            "files of documents, or folders of them",
        ));
    }
    Ok(files)
}

fn in_buckets(document: &Document, buckets: &[String]) -> bool {
    match document.metadata().get("bucket").and_then(|bucket| bucket.as_str()) {
        Some(bucket) => buckets.iter().any(|wanted| wanted == bucket),
        None => true,
    }
}

/// Whether document `index` of `available` is among `wanted` evenly spread ones.
fn spread(index: u64, available: u64, wanted: u64) -> bool {
    if wanted >= available {
        return true;
    }
    let steps = |index: u64| u128::from(index) * u128::from(wanted) / u128::from(available);
    steps(index + 1) > steps(index)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::document::DocumentWriter;

    #[test]
    fn documents_are_spread_evenly() {
        for (available, wanted) in [(10, 3), (1000, 999), (7, 7), (5, 9), (100, 1), (4, 0)] {
            let taken: Vec<u64> =
                (0..available).filter(|&index| spread(index, available, wanted)).collect();
            assert_eq!(taken.len() as u64, wanted.min(available));
            let gaps: Vec<u64> = taken.windows(2).map(|pair| pair[1] - pair[0]).collect();
            if let (Some(least), Some(most)) = (gaps.iter().min(), gaps.iter().max()) {
                assert!(most - least <= 1, "{available} {wanted}: {taken:?}");
            }
        }
    }

    /// Writes `count` documents made of `words`, one of them twice, one short, one of the tail.
    fn write_documents(path: &Path, words: &[&str], count: usize) {
        let mut writer = DocumentWriter::create(path).unwrap();
        let text = |n: usize| -> String {
            (0..300)
                .map(|k| words[(n * 31 + k * k + n * k) % words.len()])
                .collect::<Vec<_>>()
                .join(" ")
                + &format!("\nnumber {n}.")
        };
        for n in 0..count {
            let metadata = (n == 3).then(|| "{\"bucket\":\"tail\"}".to_owned());
            let text = if n == 1 { text(0) } else { text(n) };
            writer
                .write(&Document { id: format!("{n}"), text, metadata, ..Document::default() })
                .unwrap();
        }
        writer
            .write(&Document { id: "s".into(), text: "short".into(), ..Document::default() })
            .unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn two_kinds_of_pages_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let references = folder.path().join("train-r.parquet");
        let random = folder.path().join("train-c.parquet");
        write_documents(&references, &["study", "journal", "history", "century", "the", "and"], 60);
        write_documents(&random, &["buy", "cheap", "login", "cart", "the", "and"], 240);
        let output = folder.path().join("model.bin");
        let mut options =
            TrainClassifierOptions::new(vec![references], vec![random], output.clone());
        options.held_out = 0.25;
        // Few documents: more passes.
        options.training.epochs = 50;
        let report = train(&options, ProgressMode::Hidden).unwrap();
        // 61 documents: one short, one of the tail, one repeated.
        let ClassReport { documents, too_short, other_bucket, repeated, trained, held_out } =
            report.references;
        assert_eq!((documents, too_short, other_bucket, repeated), (61, 1, 1, 1));
        assert_eq!(trained + held_out, 58);
        assert_eq!(report.random.documents, 58);
        let half = report.calibration.thresholds.iter().find(|at| at.threshold == 0.5).unwrap();
        assert!(half.precision > 0.9 && half.recall > 0.9, "{report:?}");
        let blake3 = report.blake3.clone();
        let json = std::fs::read(output.with_extension("json")).unwrap();
        assert_eq!(serde_json::from_slice::<TrainClassifierReport>(&json).unwrap(), report);
        assert_eq!(train(&options, ProgressMode::Hidden).unwrap().blake3, blake3);

        let classifier = ReferenceClassifier::load(&output).unwrap();
        assert!(classifier.probability("history study journal\ncentury study").unwrap() > 0.5);
        assert!(classifier.probability("buy cheap login\ncart buy").unwrap() < 0.5);
    }

    #[test]
    fn too_few_documents_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("train-r.parquet");
        write_documents(&file, &["a", "b"], 2);
        let options = TrainClassifierOptions::new(
            vec![file.clone()],
            vec![file],
            folder.path().join("model.bin"),
        );
        let error = train(&options, ProgressMode::Hidden).unwrap_err().to_string();
        assert!(error.contains("min_chars"), "{error}");
    }
}
