//! One stage of one group: documents in, documents out, everything else counted and logged.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::batch::{self, Batch};
use super::chain::Global;
use super::drop_log::{DropLog, DroppedDocument};
use super::holdout::{Cut, HoldoutNotes};
use super::layout::Layout;
use super::plan::{Group, SourcePlan};
use super::rejections::Rejections;
use super::stats::StepStats;
use crate::atomic_file::scratch_folder;
use crate::checksum::FileDigest;
use crate::dedup::Collector;
use crate::document::{Document, DocumentFileSummary, DocumentWriter, RUN_AGAIN, Split};
use crate::error::{DataError, Result};
use crate::json_file::{read_json, write_json};
use crate::progress::Progress;
use crate::source::{Input, ReadContext, Record, Rejection};
use crate::step::{StepCounts, Verdict};

/// Rejected records of one kind that are logged per input file.
const LOGGED_PER_REASON: u64 = 3;

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

/// The counters of one step in one stage of one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Name of the step.
    pub step: String,
    /// Version of the step.
    pub version: u32,
    /// Its counters.
    pub stats: StepStats,
}

/// The statistics file of one stage of a group. It is written last: without it the stage is not
/// finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Name of the source.
    pub source: String,
    /// Number of the stage.
    pub stage: usize,
    /// Number of the group of input files.
    pub group: usize,
    /// Hash of everything the result depends on.
    pub key: String,
    /// Names of the input files.
    pub inputs: Vec<String>,
    /// Documents that left the stage, by input file.
    pub input_documents: Vec<u64>,
    /// Counters of the steps, in order.
    pub steps: Vec<StepRecord>,
    /// Time the processor spent on the notes for the decision behind the stage; it counts for that
    /// step.
    pub notes_cpu_seconds: f64,
    /// What the next stage reads; none after the last.
    pub stage_file: Option<DocumentFileSummary>,
    /// The notes for the decision behind the stage; none after the last.
    pub notes: Option<FileDigest>,
    /// Finished documents; none before the last stage.
    pub outputs: Outputs,
    /// The log of what was dropped.
    pub dropped: FileDigest,
}

/// What a run gives to its stages.
pub(super) struct StageOptions<'a> {
    pub progress: &'a Progress,
    pub memory_bytes: u64,
    pub samples_per_reason: u64,
    /// Whether the documents of one group are spread over threads.
    pub parallel: bool,
}

/// Does one stage of one group.
pub(super) fn run(
    plan: &SourcePlan<'_>,
    stage: usize,
    group: &Group,
    options: &StageOptions<'_>,
) -> Result<StageRecord> {
    plan.invalidate(stage, group.number)?;
    let mut output = Output::create(plan, stage, group, options)?;
    let mut batch = Batch::default();
    if stage == 0 {
        read_inputs(plan, group, options, &mut batch, &mut output)?;
    } else {
        read_stage(plan, stage, group, options, &mut batch, &mut output)?;
    }
    output.process(&mut batch)?;
    output.finish()
}

/// The first stage: the raw files.
fn read_inputs(
    plan: &SourcePlan<'_>,
    group: &Group,
    options: &StageOptions<'_>,
    batch: &mut Batch,
    output: &mut Output<'_>,
) -> Result<()> {
    for (position, input) in group.inputs.iter().enumerate() {
        let scratch = scratch_folder(&plan.layout.work())?;
        let consumed = AtomicU64::new(0);
        let context = ReadContext {
            source: &plan.config.name,
            input,
            scratch: scratch.path(),
            memory_bytes: options.memory_bytes,
            bytes_read: &|bytes| {
                consumed.fetch_add(bytes, Ordering::Relaxed);
                options.progress.add(bytes);
            },
        };
        let mut log = RejectionLog::new(input);
        let mut rejections = Rejections::default();
        let mut clock = batch::Clock::start();
        plan.reader.read(&context, &mut |record| {
            let read = &mut output.steps[0].stats;
            clock.stop(&mut read.cpu_seconds);
            match record {
                Record::Rejected(rejection) => {
                    log.add(&rejection);
                    output.reject(input, rejection, &mut rejections)?;
                }
                Record::Document(document) => {
                    rejections.end_row(&mut output.dropped)?;
                    let bytes = document.text.len() as u64;
                    read.keep(bytes, 0, &document.text);
                    batch.push(document, position);
                    if batch.is_full() {
                        output.process(batch)?;
                    }
                }
            }
            clock = batch::Clock::start();
            Ok(())
        })?;
        clock.stop(&mut output.steps[0].stats.cpu_seconds);
        rejections.end_row(&mut output.dropped)?;
        // A reader that does not say how far it is has read the whole file now.
        let rest = input.bytes.saturating_sub(consumed.load(Ordering::Relaxed));
        options.progress.add(rest);
        options.progress.item_done();
    }
    Ok(())
}

/// A later stage: the documents of the one before, with the decision in between applied.
fn read_stage(
    plan: &SourcePlan<'_>,
    stage: usize,
    group: &Group,
    options: &StageOptions<'_>,
    batch: &mut Batch,
    output: &mut Output<'_>,
) -> Result<()> {
    let before = plan
        .recorded(stage - 1, group.number)
        .ok_or_else(|| plan.unfinished(stage - 1, group.number))?;
    let decisions = plan.layout.global_files(stage - 1, group.number).decisions;
    let mut applier = match &plan.chain.stages[stage].opening {
        Some(Global::Step { step, .. }) => {
            let spent = &mut output.steps[0].stats.cpu_seconds;
            *spent += before.notes_cpu_seconds + plan.decision_seconds(stage, group.number);
            Some(step.applier(&decisions)?)
        }
        _ => None,
    };
    let file = plan.stage_documents(stage - 1, &before)?;
    let mut documents = file.reader()?;
    for (position, &count) in before.input_documents.iter().enumerate() {
        for _ in 0..count {
            let mut document = documents.next().ok_or_else(|| {
                DataError::altered(&file.path, "documents are missing", RUN_AGAIN)
            })??;
            options.progress.add(document.text.len() as u64);
            if let Some(applier) = &mut applier {
                let clock = batch::Clock::start();
                let bytes = document.text.len() as u64;
                let mut counts = StepCounts::default();
                let verdict = applier.apply(&mut document, &mut counts)?;
                let step = &mut output.steps[0];
                step.stats.add_counts(&counts);
                clock.stop(&mut step.stats.cpu_seconds);
                match verdict {
                    Verdict::Keep => {
                        step.stats.keep(bytes, counts.removed_bytes(), &document.text);
                    }
                    Verdict::Drop { reason, detail } => {
                        step.stats.reject(&reason, bytes, counts.removed_bytes());
                        let name = step.step.clone();
                        let id = document.id.clone();
                        let dropped = DroppedDocument::new(id, &name, &reason, detail, bytes);
                        output.dropped.add(dropped, &document.text)?;
                        options.progress.add_records(1, 0);
                        continue;
                    }
                }
            }
            batch.push(document, position);
            if batch.is_full() {
                output.process(batch)?;
            }
        }
        options.progress.item_done();
    }
    applier.map_or(Ok(()), |applier| applier.finish())
}

/// Where the documents of a stage go.
enum Sink {
    /// To the next stage, with notes for the decision in between.
    Stage { writer: Box<DocumentWriter>, notes: Notes, notes_cpu_seconds: f64 },
    /// To the finished documents.
    Documents { cut: Cut, writers: Box<[Option<DocumentWriter>; 2]> },
}

/// Notes for the decision behind a stage.
enum Notes {
    Step(Box<dyn Collector>),
    Holdout(HoldoutNotes),
}

struct Output<'a> {
    plan: &'a SourcePlan<'a>,
    stage: usize,
    group: &'a Group,
    options: &'a StageOptions<'a>,
    sink: Sink,
    dropped: DropLog,
    /// The reader or the decision before the stage first, then the steps.
    steps: Vec<StepRecord>,
    input_documents: Vec<u64>,
}

impl<'a> Output<'a> {
    fn create(
        plan: &'a SourcePlan<'a>,
        stage: usize,
        group: &'a Group,
        options: &'a StageOptions<'a>,
    ) -> Result<Self> {
        let files = plan.layout.global_files(stage, group.number);
        let sink = match plan.chain.closing(stage) {
            None => {
                let decided = matches!(plan.chain.stages[stage].opening, Some(Global::Holdout));
                let cut = if decided {
                    Cut::read(&plan.layout.global_files(stage - 1, group.number).decisions)?
                } else {
                    plan.holdout.known_cut()
                };
                Sink::Documents { cut, writers: Box::new([None, None]) }
            }
            Some(closing) => Sink::Stage {
                writer: Box::new(DocumentWriter::create_intermediate(
                    &plan.layout.stage_file(stage, group.number),
                )?),
                notes: match closing {
                    Global::Step { step, .. } => Notes::Step(step.collector(&files.notes)?),
                    Global::Holdout => {
                        Notes::Holdout(HoldoutNotes::create(&files.notes, plan.holdout.seed)?)
                    }
                },
                notes_cpu_seconds: 0.0,
            },
        };
        let record = |step: &str, version| StepRecord {
            step: step.to_owned(),
            version,
            stats: StepStats::default(),
        };
        let mut steps = Vec::new();
        match &plan.chain.stages[stage].opening {
            None => steps.push(record(plan.kind, plan.reader.version())),
            Some(Global::Step { name, version, .. }) => steps.push(record(name, *version)),
            Some(Global::Holdout) => {}
        }
        let chain = &plan.chain.stages[stage].steps;
        steps.extend(chain.iter().map(|step| record(step.name, step.version)));
        let log = plan.layout.dropped_file(stage, group.number);
        Ok(Self {
            plan,
            stage,
            group,
            options,
            sink,
            dropped: DropLog::create(&log, options.samples_per_reason)?,
            steps,
            input_documents: vec![0; group.inputs.len()],
        })
    }

    fn reject(
        &mut self,
        input: &Input,
        rejection: Rejection,
        rejections: &mut Rejections,
    ) -> Result<()> {
        let read = &mut self.steps[0];
        read.stats.reject(&rejection.reason, rejection.bytes, 0);
        let id = format!("{}@{}", input.name, rejection.offset);
        let dropped = DroppedDocument::new(
            id,
            &read.step,
            &rejection.reason,
            rejection.detail,
            rejection.bytes,
        );
        self.options.progress.add_records(1, 0);
        rejections.add(dropped, rejection.offset, &mut self.dropped)
    }

    /// Sends a batch through the steps and writes what is left, in order.
    fn process(&mut self, batch: &mut Batch) -> Result<()> {
        let chain = &self.plan.chain.stages[self.stage].steps;
        let first = self.steps.len() - chain.len();
        let total = batch.len() as u64;
        let mut kept = 0;
        for part in batch.run(chain, self.options.parallel) {
            for (record, stats) in self.steps[first..].iter_mut().zip(&part.stats) {
                record.stats.merge(stats);
            }
            for item in part.items {
                if let Some((step, reason, detail, bytes)) = item.dropped {
                    let id = item.document.id;
                    let dropped =
                        DroppedDocument::new(id, chain[step].name, &reason, detail, bytes);
                    self.dropped.add(dropped, &item.document.text)?;
                    continue;
                }
                kept += 1;
                self.input_documents[item.input] += 1;
                let input = self.group.first_input + item.input as u32;
                write(self.plan, self.group, &mut self.sink, &item.document, input)?;
            }
        }
        self.options.progress.add_records(total, kept);
        Ok(())
    }

    fn finish(self) -> Result<StageRecord> {
        let dropped = self.dropped.finish()?;
        let mut outputs = Outputs::default();
        let (mut stage_file, mut noted) = (None, None);
        let mut notes_seconds = 0.0;
        match self.sink {
            Sink::Stage { writer, notes, notes_cpu_seconds } => {
                let clock = batch::Clock::start();
                noted = Some(match notes {
                    Notes::Step(collector) => collector.finish()?,
                    Notes::Holdout(notes) => notes.finish()?,
                });
                notes_seconds = notes_cpu_seconds;
                clock.stop(&mut notes_seconds);
                stage_file = Some(writer.finish()?);
            }
            Sink::Documents { writers, .. } => {
                let [train, validation] = *writers;
                outputs.train = train.map(DocumentWriter::finish).transpose()?;
                outputs.validation = validation.map(DocumentWriter::finish).transpose()?;
            }
        }
        let record = StageRecord {
            source: self.plan.config.name.clone(),
            stage: self.stage,
            group: self.group.number,
            key: self.plan.key(self.stage, self.group.number).to_owned(),
            inputs: self.group.inputs.iter().map(|input| input.name.clone()).collect(),
            input_documents: self.input_documents,
            steps: self.steps,
            notes_cpu_seconds: notes_seconds,
            stage_file,
            notes: noted,
            outputs,
            dropped,
        };
        let path = self.plan.layout.stats_file(self.stage, self.group.number);
        record.check(&path)?;
        write_json(&path, &record)?;
        Ok(record)
    }
}

fn write(
    plan: &SourcePlan<'_>,
    group: &Group,
    sink: &mut Sink,
    document: &Document,
    input: u32,
) -> Result<()> {
    match sink {
        Sink::Stage { writer, notes, notes_cpu_seconds } => {
            let clock = batch::Clock::start();
            match notes {
                Notes::Step(collector) => collector.add(document, input)?,
                Notes::Holdout(notes) => notes.add(document)?,
            }
            clock.stop(notes_cpu_seconds);
            writer.write(document)
        }
        Sink::Documents { cut, writers } => {
            let split = cut.split(document);
            let writer = &mut writers[split as usize];
            match writer {
                Some(writer) => writer,
                None => writer.insert(DocumentWriter::create(
                    &plan.layout.document_file(split, group.number),
                )?),
            }
            .write(document)
        }
    }
}

impl StageRecord {
    /// Reads the record `path`, which must be that of this source, stage and group.
    ///
    /// # Errors
    /// [`DataError::Io`], also when there is none; [`DataError::Altered`] or
    /// [`DataError::BadFile`] when it is not as it was written.
    pub(super) fn read(layout: &Layout, path: &Path) -> Result<Self> {
        let record: Self = read_json(path, RUN_AGAIN)?;
        let own = layout.stats_file(record.stage, record.group) == path;
        if record.source != layout.source() || !own {
            let difference = format!(
                "swapped: these are the counters of stage {} of group {} of source {:?}",
                record.stage, record.group, record.source
            );
            return Err(DataError::altered(path, difference, RUN_AGAIN));
        }
        record.check(path)?;
        Ok(record)
    }

    /// Checks every step's counters, that each step got what the one before let through, and that
    /// the files hold what the last let through.
    ///
    /// # Errors
    /// [`DataError::Counters`] naming `path`.
    pub fn check(&self, path: &Path) -> Result<()> {
        let unequal = |unit, counted_in, counted_out| DataError::Counters {
            path: path.to_owned(),
            unit,
            counted_in,
            counted_out,
            rest: 0,
        };
        for pair in self.steps.windows(2) {
            let (before, after) = (&pair[0].stats, &pair[1].stats);
            if before.docs_out != after.docs_in {
                return Err(unequal("documents", before.docs_out, after.docs_in));
            }
            if before.bytes_out != after.bytes_in {
                return Err(unequal("bytes", before.bytes_out, after.bytes_in));
            }
        }
        for step in &self.steps {
            step.stats.check(path)?;
        }
        let (documents, bytes) = self.written();
        if let Some(last) = self.steps.last() {
            if last.stats.docs_out != documents {
                return Err(unequal("documents", last.stats.docs_out, documents));
            }
            if last.stats.bytes_out != bytes {
                return Err(unequal("bytes", last.stats.bytes_out, bytes));
            }
        }
        Ok(())
    }

    /// Documents and bytes of text in the files of this stage.
    pub(super) fn written(&self) -> (u64, u64) {
        let files = self.outputs.files().chain(&self.stage_file);
        files.fold((0, 0), |(documents, bytes), file| {
            (
                u64::saturating_add(documents, file.documents),
                u64::saturating_add(bytes, file.text_bytes),
            )
        })
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
        if *count <= LOGGED_PER_REASON && rejection.reason.is_error() {
            tracing::warn!(
                file = %self.input.path.display(),
                offset = rejection.offset,
                bytes = rejection.bytes,
                reason = rejection.reason.name(),
                "record skipped: {:.300}",
                rejection.detail
            );
        }
    }
}
