//! All examples of a run: read, encoded, held out.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::conversation::{Dropped, Tidied};
use super::encode::{EncodedExample, ExampleEncoder, TrainOn};
use super::formats::{ExampleFormat, for_each_example};
use super::report::{Lengths, SftReport};
use crate::chat::{ChatTemplate, Message};
use crate::error::{DataError, Result};
use crate::mixture::Permutation;
use crate::progress::{Progress, ProgressMode, Work};
use crate::tokenizer::Tokenizer;

/// Conversations that are encoded at once, on all threads.
const BLOCK_EXAMPLES: usize = 1024;
/// Text of such a block in bytes, beyond which it takes no more.
const BLOCK_BYTES: usize = 8 << 20;

/// A file of examples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOfExamples {
    /// The file: a JSON list or JSON lines, also with `.gz` or `.zst`.
    pub path: PathBuf,
    /// How its records are written. Default: seen from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ExampleFormat>,
}

/// What is made of files of examples.
#[derive(Clone, Debug)]
pub struct ExamplesOptions {
    /// The files, in order.
    pub files: Vec<FileOfExamples>,
    /// Most tokens of an example.
    pub max_length: usize,
    /// Which tokens are trained.
    pub train_on: TrainOn,
    /// Whether an example with the messages of an earlier one is left out.
    pub drop_duplicates: bool,
    /// Examples held out: a share below 1, or a number.
    pub held_out: f64,
    /// Another seed holds out other examples.
    pub seed: u64,
    /// Whether the progress of reading is shown.
    pub progress: ProgressMode,
}

/// Where an example comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExampleOrigin {
    /// Number of the file.
    pub file: usize,
    /// Number of the record in it, from 0.
    pub record: u64,
}

/// Encoded examples, laid end to end.
#[derive(Debug)]
pub struct Examples {
    ids: Vec<u32>,
    /// Places of trained tokens within their example.
    trained: Vec<Range<u32>>,
    rows: Vec<Row>,
    files: Vec<String>,
    train: Vec<u32>,
    held_out: Vec<u32>,
    report: SftReport,
    fingerprint: String,
}

/// One example in the lists of [`Examples`].
#[derive(Debug)]
struct Row {
    ids: Range<usize>,
    trained: Range<usize>,
    trained_bytes: u64,
    origin: ExampleOrigin,
}

/// A conversation that waits to be encoded.
struct Waiting {
    messages: Vec<Message>,
    origin: ExampleOrigin,
}

impl Examples {
    /// Reads and encodes all files.
    ///
    /// # Errors
    /// As [`for_each_example`] and [`ExampleEncoder::encode`]; [`DataError::Config`] when no example is left to
    /// train on or more are to be held out than there are.
    pub fn load(
        options: &ExamplesOptions,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
    ) -> Result<Self> {
        let encoder =
            ExampleEncoder::new(tokenizer, template, options.max_length, options.train_on);
        let mut examples = Self::empty(&options.files);
        let mut seen = HashSet::new();
        let size = |file: &FileOfExamples| file.path.metadata().map_or(0, |file| file.len());
        let total = options.files.iter().map(size).sum();
        let progress = Progress::new(options.progress, "examples", Work::bytes(total));
        for (number, file) in options.files.iter().enumerate() {
            let mut block: Vec<Waiting> = Vec::new();
            let mut bytes = 0;
            let read = |count| progress.add(count);
            let ignored =
                for_each_example(&file.path, file.format, &read, |record, conversation| {
                    examples.report.examples += 1;
                    let Tidied { messages, removed_messages } = match conversation.tidy() {
                        Ok(tidied) => tidied,
                        Err(reason) => {
                            examples.report.drop(reason);
                            return Ok(());
                        }
                    };
                    examples.report.removed_messages += removed_messages;
                    if options.drop_duplicates && !seen.insert(hash(&messages)) {
                        examples.report.drop(Dropped::Duplicate);
                        return Ok(());
                    }
                    bytes += messages.iter().map(|message| message.content().len()).sum::<usize>();
                    block
                        .push(Waiting { messages, origin: ExampleOrigin { file: number, record } });
                    if block.len() >= BLOCK_EXAMPLES || bytes >= BLOCK_BYTES {
                        bytes = 0;
                        examples.encode_block(&encoder, std::mem::take(&mut block))?;
                    }
                    Ok(())
                })?;
            examples.encode_block(&encoder, block)?;
            for (key, count) in ignored {
                *examples.report.ignored_keys.entry(key).or_insert(0) += count;
            }
        }
        let count = examples.report.examples;
        progress.finish(&format!("{count} read, {} tokens", examples.report.tokens));
        examples.finish(options)
    }

    fn empty(files: &[FileOfExamples]) -> Self {
        let name = |file: &FileOfExamples| {
            let name = file.path.file_name().unwrap_or(file.path.as_os_str());
            name.to_string_lossy().into_owned()
        };
        Self {
            ids: Vec::new(),
            trained: Vec::new(),
            rows: Vec::new(),
            files: files.iter().map(name).collect(),
            train: Vec::new(),
            held_out: Vec::new(),
            report: SftReport::default(),
            fingerprint: String::new(),
        }
    }

    fn encode_block(&mut self, encoder: &ExampleEncoder<'_>, block: Vec<Waiting>) -> Result<()> {
        let encoded: Vec<Result<EncodedExample>> =
            block.par_iter().map(|waiting| encoder.encode(&waiting.messages)).collect();
        for (waiting, example) in block.iter().zip(encoded) {
            let ExampleOrigin { file, record } = waiting.origin;
            let example = example.map_err(|error| {
                DataError::bad_file(&self.files[file], format!("record {record}: {error}"))
            })?;
            self.add(waiting.origin, &example);
        }
        Ok(())
    }

    fn add(&mut self, origin: ExampleOrigin, example: &EncodedExample) {
        let report = &mut self.report;
        report.straddling += example.straddling;
        // The first token is predicted by nothing.
        if !example.trained.iter().any(|range| range.end > 1) {
            return report.drop(Dropped::NothingToTrain);
        }
        report.tokens += example.ids.len() as u64;
        report.trained_tokens += example.trained_tokens() as u64;
        report.cut_tokens += example.cut;
        report.cut_examples += u64::from(example.cut > 0);
        let (ids, trained) = (self.ids.len(), self.trained.len());
        self.ids.extend_from_slice(&example.ids);
        // An example is at most `max_length` tokens long, far below 2^32.
        self.trained.extend(example.trained.iter().map(|r| r.start as u32..r.end as u32));
        self.rows.push(Row {
            ids: ids..self.ids.len(),
            trained: trained..self.trained.len(),
            trained_bytes: example.trained_bytes,
            origin,
        });
    }

    fn finish(mut self, options: &ExamplesOptions) -> Result<Self> {
        let count = self.rows.len();
        let held_out = match options.held_out {
            share if share < 1.0 => (share * count as f64).ceil() as usize,
            number => number as usize,
        };
        if count == 0 || held_out >= count {
            let dropped = self.report.dropped_in_words();
            return Err(match count {
                0 => DataError::config(
                    "data",
                    format!("no example to train on ({} read{dropped})", self.report.examples),
                    "at least one",
                ),
                _ => DataError::config(
                    "validate.examples",
                    format!("{held_out} to hold out of {count}{dropped}"),
                    "fewer than there are",
                ),
            });
        }
        let order = Permutation::new(count as u64, options.seed, "held out", 0);
        let mut is_held_out = vec![false; count];
        for n in 0..held_out {
            is_held_out[order.apply(n as u64) as usize] = true;
        }
        for (n, held_out) in is_held_out.into_iter().enumerate() {
            let list = if held_out { &mut self.held_out } else { &mut self.train };
            list.push(n as u32);
        }
        self.report.used = self.train.len() as u64;
        self.report.held_out = held_out as u64;
        self.report.lengths = Lengths::of(self.rows.iter().map(|row| row.ids.len()).collect());
        self.fingerprint = self.hash_all();
        Ok(self)
    }

    /// The hash of all that is trained on.
    fn hash_all(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("altiplano examples v1");
        let mut number = |value: u64| {
            hasher.update(&value.to_le_bytes());
        };
        number(self.rows.len() as u64);
        for row in &self.rows {
            number(row.ids.len() as u64);
            self.ids[row.ids.clone()].iter().for_each(|id| number(u64::from(*id)));
            number(row.trained.len() as u64);
            for range in &self.trained[row.trained.clone()] {
                number(u64::from(range.start) << 32 | u64::from(range.end));
            }
        }
        self.held_out.iter().for_each(|n| number(u64::from(*n)));
        hasher.finalize().to_hex().to_string()
    }

    /// What was read, and what became of it.
    pub fn report(&self) -> &SftReport {
        &self.report
    }

    /// The examples that are trained on, by number.
    pub fn train(&self) -> &[u32] {
        &self.train
    }

    /// The examples that are held out, by number.
    pub fn held_out(&self) -> &[u32] {
        &self.held_out
    }

    /// Hash of the ids of all examples, of what of them is trained and of which are held out.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The ids of an example.
    pub fn ids(&self, example: u32) -> &[u32] {
        &self.ids[self.rows[example as usize].ids.clone()]
    }

    /// Places in [`Examples::ids`] of the tokens that are trained.
    pub fn trained(&self, example: u32) -> impl Iterator<Item = Range<usize>> + '_ {
        let ranges = &self.trained[self.rows[example as usize].trained.clone()];
        ranges.iter().map(|range| range.start as usize..range.end as usize)
    }

    /// Bytes of text that the trained tokens of an example stand for.
    pub fn trained_bytes(&self, example: u32) -> u64 {
        self.rows[example as usize].trained_bytes
    }

    /// Where an example comes from, in words: `alpaca.json record 17`.
    pub fn origin(&self, example: u32) -> String {
        let ExampleOrigin { file, record } = self.rows[example as usize].origin;
        format!("{} record {record}", self.files[file])
    }
}

/// A hash of all messages, lengths in front.
fn hash(messages: &[Message]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for message in messages {
        for (key, value) in &message.0 {
            let value = value.as_str().unwrap_or_default();
            for text in [key.as_str(), value] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
    }
    hasher.digest128()
}
