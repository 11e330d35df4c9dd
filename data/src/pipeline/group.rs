//! A group of consecutive input files: the unit of work, of skipping and of output files.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::holdout::Cut;
use super::stats::StepStats;
use super::{documents_folder, stats_folder, write_json};
use crate::document::{DocumentFileSummary, DocumentWriter, Split};
use crate::error::{DataError, Result};
use crate::progress::Progress;
use crate::source::{Input, Record, Rejection, SourceConfig};

/// Rejected records of one kind that are logged per input file.
const LOGGED_PER_REASON: u64 = 3;

/// Consecutive input files of a source.
pub(super) struct Group<'a> {
    pub source: &'a SourceConfig,
    pub inputs: Vec<Input>,
    output: PathBuf,
    number: usize,
}

/// The files a group was written to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// Documents to train on.
    pub train: Option<DocumentFileSummary>,
    /// Documents held out.
    pub validation: Option<DocumentFileSummary>,
}

impl Outputs {
    /// The file of one side of the holdout, if it has documents.
    pub fn of(&self, split: Split) -> Option<&DocumentFileSummary> {
        match split {
            Split::Train => self.train.as_ref(),
            Split::Validation => self.validation.as_ref(),
        }
    }

    /// The files there are.
    pub fn files(&self) -> impl Iterator<Item = &DocumentFileSummary> {
        self.train.iter().chain(&self.validation)
    }
}

/// The statistics file of a group. It is written last: a group without it is not finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Name of the source.
    pub source: String,
    /// Name of the step.
    pub step: String,
    /// Version of the step.
    pub version: u32,
    /// Hash of the step, its configuration and its inputs.
    pub key: String,
    /// Names of the input files.
    pub inputs: Vec<String>,
    /// The counters.
    pub stats: StepStats,
    /// The files written.
    pub outputs: Outputs,
}

/// What became of a group.
pub(super) struct GroupResult {
    pub record: GroupRecord,
    pub skipped: bool,
}

impl<'a> Group<'a> {
    /// Groups `inputs` in order, closing a group when it reaches `bytes`.
    pub fn split(
        output: &Path,
        source: &'a SourceConfig,
        inputs: Vec<Input>,
        bytes: u64,
    ) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut open = 0;
        for input in inputs {
            if groups.is_empty() || open >= bytes {
                groups.push(Self {
                    source,
                    inputs: Vec::new(),
                    output: output.to_owned(),
                    number: groups.len(),
                });
                open = 0;
            }
            open += input.bytes;
            if let Some(group) = groups.last_mut() {
                group.inputs.push(input);
            }
        }
        groups
    }

    /// Size of the input files.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|input| input.bytes).sum()
    }

    /// Hash of the step's version, the source's configuration and the inputs.
    pub fn inputs_key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let (step, version) = self.source.step();
        add(step.as_bytes());
        add(&version.to_le_bytes());
        // Serializing plain structs of strings and numbers does not fail.
        add(&serde_json::to_vec(self.source).unwrap_or_default());
        for input in &self.inputs {
            add(input.name.as_bytes());
            add(&input.bytes.to_le_bytes());
            add(&input.modified_nanos.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Reads the inputs and writes the documents, unless that is already done.
    pub fn run(&self, cut: Cut, progress: &Progress) -> Result<GroupResult> {
        let key = self.key(cut);
        if let Some(record) = self.finished(&key) {
            progress.add_bytes(self.bytes());
            self.inputs.iter().for_each(|_| progress.file_done());
            return Ok(GroupResult { record, skipped: true });
        }
        let mut stats = StepStats::default();
        let mut writers = [None, None];
        for input in &self.inputs {
            let (records, kept) = (stats.docs_in, stats.docs_out);
            let mut log = RejectionLog::new(input);
            self.source.read(
                input,
                &|bytes| progress.add_bytes(bytes),
                &mut |record| match record {
                    Record::Rejected(rejection) => {
                        log.add(&rejection);
                        stats.reject(rejection.reason, rejection.bytes);
                        Ok(())
                    }
                    Record::Document(document) => {
                        stats.keep(document.text.len() as u64, &document.text);
                        let split = cut.split(&document);
                        let writer = &mut writers[split as usize];
                        match writer {
                            Some(writer) => writer,
                            None => writer.insert(DocumentWriter::create(&self.file(split))?),
                        }
                        .write(&document)
                    }
                },
            )?;
            progress.add_records(stats.docs_in - records, stats.docs_out - kept);
            progress.file_done();
        }
        let [train, validation] = writers;
        let finish =
            |writer: Option<DocumentWriter>| writer.map(DocumentWriter::finish).transpose();
        let record = GroupRecord {
            source: self.source.name.clone(),
            step: self.source.step().0.to_owned(),
            version: self.source.step().1,
            key,
            inputs: self.inputs.iter().map(|input| input.name.clone()).collect(),
            stats,
            outputs: Outputs { train: finish(train)?, validation: finish(validation)? },
        };
        let path = self.stats_file();
        record.stats.check(&path)?;
        let written: u64 = record.outputs.files().map(|file| file.documents).sum();
        if written != record.stats.docs_out {
            return Err(DataError::Counters {
                path,
                documents_in: record.stats.docs_in,
                documents_out: written,
                dropped: record.stats.dropped(),
            });
        }
        write_json(&path, &record)?;
        Ok(GroupResult { record, skipped: false })
    }

    fn key(&self, cut: Cut) -> String {
        let cut = serde_json::to_vec(&cut).unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.inputs_key().as_bytes());
        hasher.update(&cut);
        hasher.finalize().to_hex().to_string()
    }

    fn file(&self, split: Split) -> PathBuf {
        let name = format!("{}-{:05}.parquet", split.name(), self.number);
        documents_folder(&self.output, &self.source.name).join(name)
    }

    fn stats_file(&self) -> PathBuf {
        let name = format!("{}-{:05}.json", self.source.name, self.number);
        stats_folder(&self.output).join(name)
    }

    /// The record of an earlier run, if it did the same work and its files are still there.
    fn finished(&self, key: &str) -> Option<GroupRecord> {
        let bytes = std::fs::read(self.stats_file()).ok()?;
        let record: GroupRecord = serde_json::from_slice(&bytes).ok()?;
        let folder = documents_folder(&self.output, &self.source.name);
        let whole = record.outputs.files().all(|file| {
            std::fs::metadata(folder.join(&file.file))
                .is_ok_and(|metadata| metadata.len() == file.file_bytes)
        });
        (record.key == key && whole).then_some(record)
    }
}

/// Logs the first few rejected records of each kind of one input file.
struct RejectionLog<'a> {
    input: &'a Input,
    logged: std::collections::BTreeMap<String, u64>,
}

impl<'a> RejectionLog<'a> {
    fn new(input: &'a Input) -> Self {
        Self { input, logged: Default::default() }
    }

    fn add(&mut self, rejection: &Rejection) {
        let count = self.logged.entry(rejection.reason.name().to_owned()).or_default();
        *count += 1;
        if *count <= LOGGED_PER_REASON {
            tracing::warn!(
                file = %self.input.path.display(),
                offset = rejection.offset,
                bytes = rejection.bytes,
                reason = rejection.reason.name(),
                "record skipped: {}",
                rejection.detail
            );
        }
    }
}
