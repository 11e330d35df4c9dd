//! Finds documents that hold text of evaluation sets, by runs of words they share.
//!
//! The words of the evaluation texts (letters, numbers and underscores in lower case; what stands
//! between them does not count) are cut into runs of `ngram` words; a shorter text is one run.
//! A document with `min_hits` or more of these runs is dropped or marked. 13 words are what GPT-3
//! compared (arXiv 2005.14165, appendix C).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::Document;
use crate::error::{DataError, Result};
use crate::source::InputReader;
use crate::text::word_ngrams::Words;

/// Longest line of a file of evaluation texts, and longest `.txt` file, in bytes.
const MAX_TEXT_BYTES: usize = 256 << 20;

/// What is done with a document that holds evaluation text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecontaminateMode {
    /// It is dropped.
    #[default]
    Drop,
    /// It stays; `contamination` of its metadata says what was found.
    Mark,
}

/// Drops or marks documents that hold text of evaluation sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecontaminateOptions {
    /// Files of evaluation texts (list of strings), relative to the configuration. A `.jsonl` or
    /// `.json` file has an object a line, whose `fields` are a text each; any other file is one
    /// text. Both may end in `.gz` or `.zst`.
    pub files: Vec<PathBuf>,
    /// For JSON lines: fields with text, strings or lists of strings (list of strings, default
    /// `[text]`). A record may lack some of them but not all.
    #[serde(default = "default_fields")]
    pub fields: Vec<String>,
    /// Words in a run (integer, default 13).
    #[serde(default = "default_ngram")]
    pub ngram: usize,
    /// Evaluation texts of fewer words are ignored, because many documents hold such by chance
    /// (integer, default 5).
    #[serde(default = "default_min_words")]
    pub min_words: usize,
    /// `drop` or `mark` (string, default `drop`).
    #[serde(default)]
    pub mode: DecontaminateMode,
    /// Runs that must be found (integer, default 1).
    #[serde(default = "default_min_hits")]
    pub min_hits: usize,
}

fn default_fields() -> Vec<String> {
    vec!["text".into()]
}
fn default_ngram() -> usize {
    13
}
fn default_min_words() -> usize {
    5
}
fn default_min_hits() -> usize {
    1
}

impl StepOptions for DecontaminateOptions {
    fn version(&self) -> u32 {
        1
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        for file in &mut self.files {
            *file = base.join(&*file);
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn validate(&self, key: &str) -> Result<()> {
        let check = |fits: bool, field: &str, found: &dyn ToString, expected: &str| {
            let key = format!("{key}.{field}");
            if fits { Ok(()) } else { Err(DataError::config(key, found.to_string(), expected)) }
        };
        let list = "an empty list".to_owned();
        check(!self.files.is_empty(), "files", &list, "at least one file of evaluation texts")?;
        check(self.files.len() <= 1 << 16, "files", &self.files.len(), "65536 files or fewer")?;
        check(!self.fields.is_empty(), "fields", &list, "at least one field")?;
        check((2..=100).contains(&self.ngram), "ngram", &self.ngram, "2 to 100")?;
        let words = format!("1 to {}, which is `ngram`", self.ngram);
        check((1..=self.ngram).contains(&self.min_words), "min_words", &self.min_words, &words)?;
        check(self.min_hits > 0, "min_hits", &0, "1 or more")
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        let mut runs = Runs::default();
        let mut ignored = 0u64;
        for (number, path) in (0..=u16::MAX).zip(&self.files) {
            let before = runs.texts;
            let mut add = |text: &str| {
                let words = Words::of(text);
                if words.len() < self.min_words {
                    ignored += 1;
                } else {
                    runs.add(&words, self.ngram, number);
                }
            };
            self.read(path, &mut add)?;
            if runs.texts == before {
                let reason = format!("holds no text of {} words or more", self.min_words);
                return Err(DataError::bad_file(path, reason));
            }
        }
        runs.finish();
        if ignored > 0 {
            tracing::warn!(ignored, min_words = self.min_words, "evaluation texts too short");
        }
        tracing::info!(texts = runs.texts, runs = runs.len(), "evaluation texts read");
        let names = self
            .files
            .iter()
            .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        Ok(Box::new(Decontaminator {
            names: names.collect(),
            runs,
            mode: self.mode,
            min_hits: self.min_hits,
        }))
    }
}

impl DecontaminateOptions {
    /// Hands every text of an evaluation file to `add`.
    fn read(&self, path: &Path, add: &mut dyn FnMut(&str)) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = InputReader::uncompressed_name(&name);
        let lines = name.ends_with(".jsonl") || name.ends_with(".json");
        let mut reader = InputReader::open(path)?;
        let mut text = Vec::new();
        let mut number = 0u64;
        loop {
            let bytes = reader.fill()?;
            let end = bytes.is_empty();
            let feed = if lines { memchr::memchr(b'\n', bytes) } else { None };
            let taken = feed.map_or(bytes.len(), |at| at + 1);
            text.extend_from_slice(&bytes[..taken]);
            reader.consume(taken);
            if text.len() > MAX_TEXT_BYTES {
                let reason = format!("a text of more than {MAX_TEXT_BYTES} bytes");
                return Err(DataError::bad_file(path, reason));
            }
            if feed.is_none() && !end {
                continue;
            }
            number += 1;
            let whole = simdutf8::basic::from_utf8(&text)
                .map_err(|_| DataError::bad_file(path, format!("line {number} is not UTF-8")))?;
            let whole = whole.trim_start_matches('\u{feff}');
            if !lines {
                add(whole);
            } else if !whole.trim().is_empty() {
                self.record(path, number, whole, add)?;
            }
            text.clear();
            if end {
                return Ok(());
            }
        }
    }

    fn record(
        &self,
        path: &Path,
        number: u64,
        line: &str,
        add: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let record: serde_json::Map<String, Value> = serde_json::from_str(line)
            .map_err(|error| DataError::bad_file(path, format!("line {number}: {error}")))?;
        let mut found = false;
        for value in self.fields.iter().filter_map(|field| record.get(field)) {
            match value {
                Value::String(text) => add(text),
                Value::Array(texts) => texts.iter().filter_map(Value::as_str).for_each(&mut *add),
                _ => continue,
            }
            found = true;
        }
        if found {
            return Ok(());
        }
        let reason =
            format!("line {number}: no string in any of the fields {}", self.fields.join(", "));
        Err(DataError::bad_file(path, reason))
    }
}

/// The runs of words of the evaluation texts.
#[derive(Default)]
struct Runs {
    /// By words in a run: from the hash to the number of the first file that has it.
    by_words: BTreeMap<usize, HashMap<u64, u16>>,
    /// A bit for what the upper bits of a hash may be: most words of most documents end here.
    filter: Vec<u64>,
    shift: u32,
    texts: u64,
}

impl Runs {
    fn add(&mut self, words: &Words, ngram: usize, file: u16) {
        let count = ngram.min(words.len());
        let runs = self.by_words.entry(count).or_default();
        for hash in words.ngrams(count) {
            runs.entry(hash).or_insert(file);
        }
        self.texts += 1;
    }

    fn len(&self) -> usize {
        self.by_words.values().map(HashMap::len).sum()
    }

    fn finish(&mut self) {
        // Sixteen bits a run, so that one hash in sixteen of other texts passes.
        let bits = (self.len() * 16).next_power_of_two().max(64);
        self.shift = 64 - bits.ilog2();
        self.filter = vec![0; bits / 64];
        for hash in self.by_words.values().flat_map(HashMap::keys) {
            let bit = (hash >> self.shift) as usize;
            self.filter[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// The file that has a run with this hash.
    fn file(&self, runs: &HashMap<u64, u16>, hash: u64) -> Option<u16> {
        let bit = (hash >> self.shift) as usize;
        if self.filter[bit / 64] >> (bit % 64) & 1 == 0 {
            return None;
        }
        runs.get(&hash).copied()
    }
}

struct Decontaminator {
    names: Vec<String>,
    runs: Runs,
    mode: DecontaminateMode,
    min_hits: usize,
}

impl Step for Decontaminator {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let words = Words::of(&document.text);
        let mut hits = 0;
        let mut files = BTreeSet::new();
        let mut first = None;
        for (&count, runs) in &self.runs.by_words {
            for (at, hash) in words.ngrams(count).enumerate() {
                if let Some(file) = self.runs.file(runs, hash) {
                    hits += 1;
                    files.insert(file);
                    first.get_or_insert((at, count));
                }
            }
        }
        let Some((at, count)) = first.filter(|_| hits >= self.min_hits) else {
            return Verdict::Keep;
        };
        let files: Vec<&str> =
            files.iter().map(|&file| self.names[usize::from(file)].as_str()).collect();
        let example = words.run(at, count);
        counts.note("contaminated");
        match self.mode {
            DecontaminateMode::Drop => {
                let detail =
                    format!("{hits} runs of {}, {example:?} one of them", files.join(", "));
                Verdict::unwanted("contaminated", detail)
            }
            DecontaminateMode::Mark => {
                document.set_metadata(
                    "contamination",
                    json!({ "hits": hits, "files": files, "example": example }),
                );
                Verdict::Keep
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: &str = "What is the name of the river that flows through the old town of Prague?";

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let lines = format!(
                "{}\n\n{}\n",
                json!({"question": LONG, "choices": ["the Vltava flows there, you see", "Elbe"]}),
                json!({"question": "Which is the largest of lakes?"}),
            );
            std::fs::write(folder.path().join("quiz.jsonl"), lines).unwrap();
            let mut text: Vec<_> = (0..30).map(|word| format!("w{word}")).collect();
            text.insert(10, "\n".into());
            std::fs::write(folder.path().join("wiki.test.txt"), text.join(" ")).unwrap();
            Self(folder)
        }

        fn options(&self, more: &str) -> DecontaminateOptions {
            let yaml =
                format!("files: [quiz.jsonl, wiki.test.txt]\nfields: [question, choices]\n{more}");
            let mut options: DecontaminateOptions = serde_yaml::from_str(&yaml).unwrap();
            options.make_paths_absolute(self.0.path());
            options.validate("steps.0").unwrap();
            options
        }

        fn apply(&self, more: &str, text: &str) -> (Verdict, Document) {
            let step = self.options(more).build("steps.0").unwrap();
            let mut document = Document { id: "1".into(), text: text.into(), ..Default::default() };
            (step.apply(&mut document, &mut StepCounts::default()), document)
        }
    }

    #[test]
    fn long_runs_and_whole_short_texts_are_found() {
        let files = Files::new();
        let dropped = |text: &str| files.apply("", text).0 != Verdict::Keep;
        assert!(dropped(&format!("Once: {}!", LONG.to_uppercase())));
        // Thirteen of the fifteen words, then twelve.
        assert!(dropped("is the name; of the river that flows through the old town of… Paris"));
        assert!(!dropped("is the name; of the river that flows through the old town, Paris"));
        assert!(dropped("Well, which is — the largest — of lakes, you ask."));
        assert!(!dropped("which is the largest of all lakes"));
        assert!(dropped("the vltava flows there\nyou see"));
        // Fewer than five words.
        assert!(!dropped("Elbe"));
        let run: Vec<_> = (4..17).map(|word| format!("W{word}")).collect();
        assert!(dropped(&run.join("-")));
        assert!(!dropped(&run[1..].join("-")));
        assert!(!dropped(""));
    }

    #[test]
    fn marks_say_what_was_found() {
        let files = Files::new();
        let (verdict, document) = files.apply("mode: mark", LONG);
        assert_eq!(verdict, Verdict::Keep);
        let found = &document.metadata()["contamination"];
        assert_eq!(found["hits"], 3);
        assert_eq!(found["files"], json!(["quiz.jsonl"]));
        let example = found["example"].as_str().unwrap();
        assert_eq!(example, "what is the name of the river that flows through the old town");
        let (_, document) = files.apply("mode: mark\nmin_hits: 4", LONG);
        assert_eq!(document.metadata, None);
        let Verdict::Drop { reason, detail } = files.apply("min_hits: 3", LONG).0 else { panic!() };
        assert_eq!(reason.name(), "contaminated");
        assert!(detail.contains("3 runs of quiz.jsonl"), "{detail}");
    }

    #[test]
    fn unusable_files_are_refused() {
        let files = Files::new();
        let folder = files.0.path();
        for (text, message) in [
            ("{\"question\": 1}\n", "line 1: no string"),
            ("{\"question\": \"too short\"}\n", "holds no text"),
            ("\n{", "line 2"),
        ] {
            std::fs::write(folder.join("quiz.jsonl"), text).unwrap();
            let error = files.options("").build("steps.0").err().unwrap().to_string();
            assert!(error.contains("quiz.jsonl") && error.contains(message), "{error}");
        }
        std::fs::write(folder.join("quiz.jsonl"), b"\xff\xfe\n").unwrap();
        assert!(files.options("").build("steps.0").is_err());
        std::fs::remove_file(folder.join("quiz.jsonl")).unwrap();
        assert!(matches!(files.options("").build("steps.0"), Err(DataError::Io { .. })));
        let mut options = files.options("");
        options.ngram = 4;
        assert!(options.validate("steps.3").unwrap_err().to_string().contains("min_words"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..Default::default() })]
        #[test]
        fn agrees_with_comparing_all_runs(
            evaluation in "([abc]{1,2}[ ,]){3,40}",
            text in "([abc]{1,2}[ .]){0,60}",
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("eval.txt");
            std::fs::write(&path, &evaluation).unwrap();
            let options = DecontaminateOptions {
                files: vec![path],
                fields: default_fields(),
                ngram: 4,
                min_words: 1,
                mode: DecontaminateMode::Mark,
                min_hits: 1,
            };
            let step = options.build("steps.0").unwrap();
            let mut document = Document { text: text.clone(), ..Default::default() };
            step.apply(&mut document, &mut StepCounts::default());
            let words = |text: &str| -> Vec<String> {
                text.split([' ', ',', '.']).filter(|w| !w.is_empty()).map(str::to_owned).collect()
            };
            let (evaluation, text) = (words(&evaluation), words(&text));
            let size = evaluation.len().min(4);
            let hits = text
                .windows(size)
                .filter(|run| evaluation.windows(size).any(|other| other == *run))
                .count();
            let found = document.metadata().get("contamination").map(|found| found["hits"].clone());
            prop_assert_eq!(found, (hits > 0).then(|| json!(hits)));
        }
    }
}
