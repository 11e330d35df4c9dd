//! The work of a source: its tasks (groups of input files) times its stages, each with a key.
//!
//! A key is a hash of everything the result depends on: the steps' versions and options, the
//! files they read, and the inputs' names, sizes and times. Keys follow from the configuration
//! and the list of inputs alone, so every rank computes the same ones.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::RunOptions;
use super::chain::{Chain, Stage};
use super::clock::Clock;
use super::holdout::HoldoutConfig;
use super::layout::Layout;
use super::rank::Rank;
use super::record::StageRecord;
use super::source_config::SourceConfig;
use crate::atomic_file::{remove_durably, scratch_folder};
use crate::checksum::FileDigest;
use crate::dedup::{Resources, TaskFiles};
use crate::document::{DocumentFile, RUN_AGAIN, Split};
use crate::error::{DataError, Result};
use crate::fingerprint::Fingerprint;
use crate::json_file::{read_json, write_json};
use crate::progress::{Progress, Work};
use crate::source::{Input, SourceOptions};

/// Consecutive input files of a source: the unit of work and of output files.
pub(super) struct Task {
    pub number: usize,
    /// Number of its first input in the source's list.
    pub first_input: u32,
    pub inputs: Vec<Input>,
}

impl Task {
    /// Cuts `inputs` into tasks, in order, closing a task when it reaches `bytes`.
    fn split(inputs: Vec<Input>, bytes: u64) -> Vec<Self> {
        let mut tasks: Vec<Self> = Vec::new();
        let mut open = 0;
        for (index, input) in (0u32..).zip(inputs) {
            if tasks.is_empty() || open >= bytes {
                let number = tasks.len();
                tasks.push(Self { number, first_input: index, inputs: Vec::new() });
                open = 0;
            }
            open += input.bytes;
            if let Some(task) = tasks.last_mut() {
                task.inputs.push(input);
            }
        }
        tasks
    }

    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|input| input.bytes).sum()
    }
}

/// Most bytes of raw files of a source whose stages hand documents over uncompressed.
const PLAIN_WORK_BYTES: u64 = 1 << 30;

/// A source, its steps, its tasks and their keys.
pub(super) struct SourcePlan<'a> {
    pub config: &'a SourceConfig,
    pub kind: &'static str,
    pub reader: &'a dyn SourceOptions,
    pub holdout: &'a HoldoutConfig,
    pub chain: Chain,
    pub tasks: Vec<Task>,
    pub layout: Layout,
    /// By stage, then by task.
    keys: Vec<Vec<String>>,
    /// By stage: the key of the decision before it; empty for the first.
    decision_keys: Vec<String>,
    /// By stage: the time of the decision before it, once it is made.
    decision_seconds: Vec<OnceLock<f64>>,
    /// By stage, then by task.
    known: Vec<Vec<Mutex<Option<Known>>>>,
    /// By stage: set once the decisions before it were read and are as they were written.
    decided: Vec<OnceLock<()>>,
}

/// What is known of a stage of a task that was done.
struct Known {
    record: StageRecord,
    /// Every byte of its files was read here and is as it was written.
    verified: bool,
}

/// Written when a decision is made.
#[derive(Serialize, Deserialize)]
struct Decided {
    key: String,
    /// The decision files, by task.
    decisions: Vec<FileDigest>,
}

impl<'a> SourcePlan<'a> {
    pub fn new(
        output: &Path,
        config: &'a SourceConfig,
        holdout: &'a HoldoutConfig,
        task_bytes: u64,
    ) -> Result<Self> {
        let (kind, reader) = config.kind()?;
        let tasks = Task::split(reader.inputs(&config.kind_key(kind))?, task_bytes);
        let chain = Chain::build(config, holdout, output)?;
        // Any dump of the source may define what a page of another calls.
        let mut every_input = Fingerprint::default();
        for input in tasks.iter().flat_map(|task| &task.inputs) {
            add_input(&mut every_input, input);
        }
        let mut keys: Vec<Vec<String>> = Vec::new();
        let mut decision_keys = Vec::new();
        for stage in &chain.stages {
            let decision = keys.last().map_or(String::new(), |before| decision_key(stage, before));
            let templates = config.wikipedia.is_some() && stage.wants_templates();
            let of_task = |(number, task): (usize, &Task)| {
                let mut key = match keys.last() {
                    None => first_key(stage, task),
                    Some(before) => later_key(stage, &decision, &before[number]),
                };
                if templates {
                    key.nested(&every_input);
                }
                key.hex()
            };
            let of_stage = tasks.iter().enumerate().map(of_task).collect();
            keys.push(of_stage);
            decision_keys.push(decision);
        }
        let layout = Layout::new(output, &config.name);
        let decision_seconds = vec![OnceLock::new(); chain.stages.len()];
        let unknown = || tasks.iter().map(|_| Mutex::new(None)).collect();
        let known = chain.stages.iter().map(|_| unknown()).collect();
        let decided = vec![OnceLock::new(); chain.stages.len()];
        Ok(Self {
            config,
            kind,
            reader,
            holdout,
            chain,
            tasks,
            layout,
            keys,
            decision_keys,
            decision_seconds,
            known,
            decided,
        })
    }

    pub fn key(&self, stage: usize, task: usize) -> &str {
        &self.keys[stage][task]
    }

    /// Whether a step uses the templates that the dumps of the source define.
    pub fn uses_templates(&self) -> bool {
        self.config.wikipedia.is_some() && self.chain.stages.iter().any(Stage::wants_templates)
    }

    /// Whether what passes between stages is compressed. It is for a large source, which would fill
    /// the disk; for a small one that would be much of the work.
    pub fn compresses_work_files(&self) -> bool {
        let bytes = self.tasks.iter().map(Task::bytes).fold(0, u64::saturating_add);
        bytes > PLAIN_WORK_BYTES
    }

    pub fn last_stage(&self) -> usize {
        self.chain.stages.len() - 1
    }

    /// The record of a stage of a task, if the same work was done and its files are there with
    /// the lengths they were written with. What is altered is said.
    pub fn recorded(&self, stage: usize, task: usize) -> Option<StageRecord> {
        let known = || lock(&self.known[stage][task]);
        if let Some(known) = &*known() {
            return Some(known.record.clone());
        }
        match self.read_record(stage, task) {
            Ok(record) => {
                let record = record?;
                *known() = Some(Known { record: record.clone(), verified: false });
                Some(record)
            }
            Err(error) => {
                say_redo(&error, MADE_AGAIN);
                None
            }
        }
    }

    fn read_record(&self, stage: usize, task: usize) -> Result<Option<StageRecord>> {
        let path = self.layout.stats_file(stage, task);
        let record = match StageRecord::read(&self.layout, &path) {
            Err(missing) if missing.is_not_found() => return Ok(None),
            record => record?,
        };
        if record.key != self.key(stage, task) {
            return Ok(None);
        }
        for (path, written) in self.files_of(&record) {
            written.verify_length(&path, RUN_AGAIN)?;
        }
        Ok(Some(record))
    }

    /// The files that a record names and what was written to them.
    fn files_of(&self, record: &StageRecord) -> Vec<(PathBuf, FileDigest)> {
        let (layout, stage, task) = (&self.layout, record.stage, record.task);
        let mut files = vec![(layout.dropped_file(stage, task), record.dropped.clone())];
        files.extend(Split::ALL.iter().filter_map(|&split| {
            let file = record.outputs.of(split)?;
            Some((layout.document_file(split, task), file.digest()))
        }));
        let stage_file = record.stage_file.iter();
        files.extend(stage_file.map(|file| (layout.stage_file(stage, task), file.digest())));
        files.extend(record.ids.iter().map(|ids| (layout.ids_file(task), ids.clone())));
        if let Some(signatures) = &record.signatures {
            files.push((layout.global_files(stage, task).signatures, signatures.clone()));
        }
        files
    }

    /// Whether the same work was done and every byte that it left is as it was written. What is
    /// altered is said. A file is read once in the life of a plan.
    pub fn is_finished(&self, stage: usize, task: usize) -> bool {
        let Some(record) = self.recorded(stage, task) else {
            return false;
        };
        if self.is_verified(stage, task) {
            return true;
        }
        let files = self.files_of(&record);
        let verified = files.iter().try_for_each(|(path, digest)| digest.verify(path, RUN_AGAIN));
        if let Err(error) = &verified {
            say_redo(error, MADE_AGAIN);
        }
        let known = Known { record, verified: true };
        *lock(&self.known[stage][task]) = verified.is_ok().then_some(known);
        verified.is_ok()
    }

    fn is_verified(&self, stage: usize, task: usize) -> bool {
        lock(&self.known[stage][task]).as_ref().is_some_and(|known| known.verified)
    }

    /// The documents that left a stage that is not the last, held against what was written unless
    /// [`SourcePlan::is_finished`] did so.
    pub fn stage_documents(&self, stage: usize, record: &StageRecord) -> Result<DocumentFile> {
        let path = self.layout.stage_file(stage, record.task);
        match &record.stage_file {
            Some(summary) if !self.is_verified(stage, record.task) => {
                DocumentFile::of_summary(&path, summary)
            }
            _ => DocumentFile::open(&path),
        }
    }

    /// Takes back that a stage of a task is finished, and that the source is: called before the
    /// first of its files is replaced, so that a crash does not leave new files with the word of
    /// old ones.
    pub fn invalidate(&self, stage: usize, task: usize) -> Result<()> {
        *lock(&self.known[stage][task]) = None;
        remove_durably(&self.layout.manifest())?;
        remove_durably(&self.layout.stats_file(stage, task))
    }

    /// Whether the decision before `stage` is made and is as it was written, for the tasks of
    /// `rank`. What is altered is said.
    pub fn is_decided(&self, stage: usize, rank: Rank) -> bool {
        if stage == 0 || self.decided[stage].get().is_some() {
            return true;
        }
        match self.read_decided(stage, rank) {
            Ok(decided) => {
                if decided {
                    let _ = self.decided[stage].set(());
                }
                decided
            }
            Err(error) => {
                say_redo(&error, "the decision is made again");
                false
            }
        }
    }

    fn read_decided(&self, stage: usize, rank: Rank) -> Result<bool> {
        let decided: Decided = match read_json(&self.layout.decided_file(stage - 1), RUN_AGAIN) {
            Err(missing) if missing.is_not_found() => return Ok(false),
            decided => decided?,
        };
        if decided.key != self.decision_keys[stage] || decided.decisions.len() != self.tasks.len() {
            return Ok(false);
        }
        let own = self.tasks.par_iter().zip(&decided.decisions);
        own.filter(|(task, _)| rank.does(task.number)).try_for_each(|(task, digest)| {
            let files = self.layout.global_files(stage - 1, task.number);
            digest.verify(&files.decisions, RUN_AGAIN)
        })?;
        Ok(true)
    }

    /// Time the processor spent on the decision before `stage`, if it was made by this process;
    /// it counts for the first task.
    pub fn decision_seconds(&self, stage: usize, task: usize) -> f64 {
        let seconds = self.decision_seconds[stage].get().filter(|_| task == 0);
        seconds.copied().unwrap_or(0.0)
    }

    /// Makes the decision before `stage`, for which the stage before it must be finished.
    pub fn decide(&self, stage: usize, options: &RunOptions) -> Result<()> {
        let Some(opening) = &self.chain.stages[stage].opening else {
            return Ok(());
        };
        let files: Vec<TaskFiles> = self
            .tasks
            .par_iter()
            .map(|task| {
                let before = self.recorded(stage - 1, task.number);
                let before = before.ok_or_else(|| self.unfinished(stage - 1, task.number))?;
                let files = self.layout.global_files(stage - 1, task.number);
                if let Some(signatures) = &before.signatures
                    && !self.is_verified(stage - 1, task.number)
                {
                    signatures.verify(&files.signatures, RUN_AGAIN)?;
                }
                Ok(files)
            })
            .collect::<Result<_>>()?;
        // A crash must not leave new decisions with the word of old ones.
        let decided_file = self.layout.decided_file(stage - 1);
        remove_durably(&decided_file)?;
        // The time of all threads counts: this process does nothing else meanwhile.
        let clock = Clock::start_of_process();
        let spill = scratch_folder(&self.layout.work())?;
        let progress = Progress::new(options.progress, opening.name(), Work::count(0, "keys"));
        let resources = Resources {
            memory_bytes: options.memory_bytes,
            spill: spill.path().to_owned(),
            progress: &progress,
        };
        let decisions = opening.decision().decide(&files, &resources)?;
        progress.finish(&format!("decided for source {}", self.config.name));
        let mut seconds = 0.0;
        clock.stop(&mut seconds);
        let _ = self.decision_seconds[stage].set(seconds);
        let decided = Decided { key: self.decision_keys[stage].clone(), decisions };
        write_json(&decided_file, &decided).map(drop)
    }

    /// The error for work that another rank has not done.
    pub fn unfinished(&self, stage: usize, task: usize) -> DataError {
        DataError::bad_file(
            self.layout.stats_file(stage, task),
            format!(
                "stage {stage} of group {task} of source {:?} is not finished; run `altiplano data \
                 run` for every rank first",
                self.config.name
            ),
        )
    }
}

/// What is done about a file of a group that is not as it was written.
const MADE_AGAIN: &str = "the files of this group are made again";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that something is not as it was written and what is done about it.
fn say_redo(error: &DataError, consequence: &str) {
    tracing::warn!("{}; {consequence}", error.without_remedy());
}

/// Key of the decision before a stage: it reads the signatures of all tasks.
fn decision_key(stage: &Stage, before: &[String]) -> String {
    let mut key = Fingerprint::default();
    key.nested(&stage.identity);
    for task in before {
        key.part(task);
    }
    key.hex()
}

/// Key of the first stage of a task, which reads the input files.
fn first_key(stage: &Stage, task: &Task) -> Fingerprint {
    let mut inputs = Fingerprint::default();
    for input in &task.inputs {
        add_input(&mut inputs, input);
    }
    inputs.number(task.first_input.to_le_bytes());
    let mut key = Fingerprint::default();
    key.nested(&stage.identity).nested(&inputs);
    key
}

/// Adds what is to be known of an input: its name, length and time, and the tag of its content where it has one.
fn add_input(key: &mut Fingerprint, input: &Input) {
    key.part(&input.name);
    key.number(input.bytes.to_le_bytes()).number(input.modified_nanos.to_le_bytes());
    if let Some(etag) = &input.etag {
        key.part(etag);
    }
}

/// Key of a later stage of a task, which reads what the stage before it wrote.
fn later_key(stage: &Stage, decision: &str, before: &str) -> Fingerprint {
    let mut key = Fingerprint::default();
    key.nested(&stage.identity).part(decision).part(before);
    key
}
