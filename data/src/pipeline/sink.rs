//! Where the documents of a stage go: through its steps, then to the next stage or to the finished
//! documents. What does not arrive is counted and logged.

use super::batch::Batch;
use super::chain::Global;
use super::clock::Clock;
use super::drop_log::{DropLog, DroppedDocument};
use super::holdout::Cut;
use super::plan::{SourcePlan, Task};
use super::record::{Outputs, StageRecord, StepRecord};
use super::rejections::Rejections;
use super::stage_options::StageOptions;
use super::stats::StepStats;
use crate::checksum::FileDigest;
use crate::dedup::Signatures;
use crate::document::{Document, DocumentWriter, Reason};
use crate::error::Result;
use crate::source::{Input, Rejection};

/// Takes the documents of one stage of one task.
pub(super) struct Sink<'a> {
    plan: &'a SourcePlan<'a>,
    stage: usize,
    task: &'a Task,
    options: &'a StageOptions<'a>,
    destination: Destination,
    dropped: DropLog,
    /// The reader or the filter before the stage first, then the steps.
    steps: Vec<StepRecord>,
    input_documents: Vec<u64>,
    ids: Option<FileDigest>,
}

/// Where the documents that the steps keep are written.
enum Destination {
    /// To the next stage, with signatures for the decision in between.
    NextStage {
        writer: Box<DocumentWriter>,
        signatures: Box<dyn Signatures>,
        signature_cpu_seconds: f64,
    },
    /// To the finished documents.
    Documents { cut: Cut, writers: Box<[Option<DocumentWriter>; 2]> },
}

/// The writer, with a thread of its own where there are more threads than tasks.
fn spread(writer: DocumentWriter, options: &StageOptions<'_>) -> Result<DocumentWriter> {
    if options.parallel { writer.on_a_thread() } else { Ok(writer) }
}

impl<'a> Sink<'a> {
    pub fn create(
        plan: &'a SourcePlan<'a>,
        stage: usize,
        task: &'a Task,
        options: &'a StageOptions<'a>,
    ) -> Result<Self> {
        let opening = &plan.chain.stages[stage].opening;
        let destination = match plan.chain.closing(stage) {
            None => {
                let cut = if let Some(Global::Holdout(_)) = opening {
                    Cut::read(&plan.layout.global_files(stage - 1, task.number).decisions)?
                } else {
                    plan.holdout.known_cut()
                };
                Destination::Documents { cut, writers: Box::new([None, None]) }
            }
            Some(closing) => {
                let file = plan.layout.stage_file(stage, task.number);
                let files = plan.layout.global_files(stage, task.number);
                let compressed = plan.compresses_work_files();
                let writer = DocumentWriter::create_intermediate(&file, compressed)?;
                Destination::NextStage {
                    writer: Box::new(spread(writer, options)?),
                    signatures: closing.decision().signatures(&files.signatures)?,
                    signature_cpu_seconds: 0.0,
                }
            }
        };
        let record = |step: &str, version| StepRecord {
            step: step.to_owned(),
            version,
            stats: StepStats::default(),
        };
        let mut steps = Vec::new();
        match opening {
            None => steps.push(record(plan.kind, plan.reader.version())),
            Some(Global::Step { name, version, .. }) => steps.push(record(name, *version)),
            // A holdout drops nothing, so there is nothing to count.
            Some(Global::Holdout(_)) => {}
        }
        let chain = &plan.chain.stages[stage].steps;
        steps.extend(chain.iter().map(|step| record(step.name, step.version)));
        let log = plan.layout.dropped_file(stage, task.number);
        Ok(Self {
            plan,
            stage,
            task,
            options,
            destination,
            dropped: DropLog::create(&log, options.samples_per_reason)?,
            steps,
            input_documents: vec![0; task.inputs.len()],
            ids: None,
        })
    }

    /// Counters of what the stage begins with: the reader, or the filter of the step before it.
    pub fn opening_stats(&mut self) -> &mut StepStats {
        &mut self.steps[0].stats
    }

    /// What the reader wrote of the ids.
    pub fn set_ids(&mut self, ids: FileDigest) {
        self.ids = Some(ids);
    }

    /// Counts and logs a record of `input` that did not become a document.
    pub fn reject(
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

    /// Logs the row of short rejected records that is still open, since something else follows.
    pub fn end_rejections(&mut self, rejections: &mut Rejections) -> Result<()> {
        rejections.end_row(&mut self.dropped)
    }

    /// Logs a document of `bytes` bytes that the filter before the stage dropped. The filter's
    /// counters have it already.
    pub fn drop_at_opening(
        &mut self,
        document: Document,
        reason: &Reason,
        detail: String,
        bytes: u64,
    ) -> Result<()> {
        let step = &self.steps[0].step;
        let dropped = DroppedDocument::new(document.id, step, reason, detail, bytes);
        self.options.progress.add_records(1, 0);
        self.dropped.add(dropped, &document.text)
    }

    /// Sends a batch through the steps and writes what is left, in order.
    pub fn process(&mut self, batch: &mut Batch) -> Result<()> {
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
                self.write(&item.document, self.task.first_input + item.input as u32)?;
            }
        }
        self.options.progress.add_records(total, kept);
        Ok(())
    }

    /// Writes a document that all steps kept. `input` is the number of its input file.
    fn write(&mut self, document: &Document, input: u32) -> Result<()> {
        match &mut self.destination {
            Destination::NextStage { writer, signatures, signature_cpu_seconds } => {
                let clock = Clock::start();
                signatures.add(document, input)?;
                clock.stop(signature_cpu_seconds);
                writer.write(document)
            }
            Destination::Documents { cut, writers } => {
                let split = cut.split(document);
                let writer = match &mut writers[split as usize] {
                    Some(writer) => writer,
                    none => {
                        let file = self.plan.layout.document_file(split, self.task.number);
                        none.insert(spread(DocumentWriter::create(&file)?, self.options)?)
                    }
                };
                writer.write(document)
            }
        }
    }

    /// Ends the files and writes the record, by which the stage is finished.
    pub fn finish(self) -> Result<()> {
        let dropped = self.dropped.finish()?;
        let mut record = StageRecord {
            source: self.plan.config.name.clone(),
            stage: self.stage,
            task: self.task.number,
            key: self.plan.key(self.stage, self.task.number).to_owned(),
            inputs: self.task.inputs.iter().map(|input| input.name.clone()).collect(),
            input_documents: self.input_documents,
            steps: self.steps,
            signature_cpu_seconds: 0.0,
            stage_file: None,
            signatures: None,
            ids: self.ids,
            outputs: Outputs::default(),
            dropped,
        };
        match self.destination {
            Destination::NextStage { writer, signatures, signature_cpu_seconds } => {
                let clock = Clock::start();
                record.signatures = Some(signatures.finish()?);
                record.signature_cpu_seconds = signature_cpu_seconds;
                clock.stop(&mut record.signature_cpu_seconds);
                record.stage_file = Some(writer.finish()?);
            }
            Destination::Documents { writers, .. } => {
                let [train, validation] = *writers;
                record.outputs.train = train.map(DocumentWriter::finish).transpose()?;
                record.outputs.validation = validation.map(DocumentWriter::finish).transpose()?;
            }
        }
        record.write(&self.plan.layout)
    }
}
