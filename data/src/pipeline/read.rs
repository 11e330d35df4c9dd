//! Where the documents of a stage come from: raw files, or the stage before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::batch::Batch;
use super::chain::Global;
use super::clock::Clock;
use super::plan::{SourcePlan, Task};
use super::rejections::Rejections;
use super::sink::Sink;
use super::stage_options::StageOptions;
use super::stats::run_filter;
use super::unique_ids::Ids;
use crate::atomic_file::scratch_folder;
use crate::document::RUN_AGAIN;
use crate::error::{DataError, Result};
use crate::source::{Input, ReadContext, Record, Rejection};
use crate::step::Verdict;
use crate::text::charset::{FIXED_MOJIBAKE, REPAIRED_ENCODING};

/// Keys of the metadata by which a reader says that it mended a document: counted under the same
/// names.
const NOTED: [&str; 4] = [REPAIRED_ENCODING, FIXED_MOJIBAKE, "bad_content_length", "cut_body"];
/// Rejected records of one kind that are logged per input file.
const LOGGED_PER_REASON: u64 = 3;

/// Reads the raw files of `task` for the first stage.
pub(super) fn read_inputs(
    plan: &SourcePlan<'_>,
    task: &Task,
    options: &StageOptions<'_>,
    batch: &mut Batch,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let mut ids = Ids::new(plan.config.duplicate_ids);
    for (position, input) in task.inputs.iter().enumerate() {
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
        // The reader's time is what passes between two calls of the closure.
        let mut clock = Clock::start();
        let read = plan.reader.read(&context, &mut |record| {
            let read = sink.opening_stats();
            clock.stop(&mut read.cpu_seconds);
            match record {
                Record::Rejected(rejection) => {
                    log.add(&rejection);
                    sink.reject(input, rejection, &mut rejections)?;
                }
                Record::Document(mut document) => {
                    let bytes = document.text.len() as u64;
                    if let Some((reason, detail)) = ids.make_unique(&mut document) {
                        read.reject(&reason, bytes, 0);
                        sink.end_rejections(&mut rejections)?;
                        sink.drop_at_opening(document, &reason, detail, bytes)?;
                        clock = Clock::start();
                        return Ok(());
                    }
                    if Ids::is_suffixed(&document) {
                        read.note("duplicate_id");
                    }
                    read.keep(bytes, 0, &document.text);
                    for name in NOTED {
                        if document.has_metadata(name) {
                            read.note(name);
                        }
                    }
                    sink.end_rejections(&mut rejections)?;
                    batch.push(document, position);
                    if batch.is_full() {
                        sink.process(batch)?;
                    }
                }
            }
            clock = Clock::start();
            Ok(())
        });
        read.map_err(|error| error.at_key(&plan.config.kind_key(plan.kind)))?;
        clock.stop(&mut sink.opening_stats().cpu_seconds);
        sink.end_rejections(&mut rejections)?;
        // A reader that does not say how far it is has read the whole file now.
        let rest = input.bytes.saturating_sub(consumed.load(Ordering::Relaxed));
        options.progress.add(rest);
        options.progress.item_done();
    }
    if plan.tasks.len() > 1 {
        sink.set_ids(ids.write(&plan.layout.ids_file(task.number))?);
    }
    Ok(())
}

/// Reads the documents of `task` that the stage before `stage` has written, and sends them through
/// the filter of the step in between.
pub(super) fn read_previous_stage(
    plan: &SourcePlan<'_>,
    stage: usize,
    task: &Task,
    options: &StageOptions<'_>,
    batch: &mut Batch,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let before = plan
        .recorded(stage - 1, task.number)
        .ok_or_else(|| plan.unfinished(stage - 1, task.number))?;
    let mut filter = match &plan.chain.stages[stage].opening {
        Some(Global::Step { step, .. }) => {
            sink.opening_stats().cpu_seconds +=
                before.signature_cpu_seconds + plan.decision_seconds(stage, task.number);
            let files = plan.layout.global_files(stage - 1, task.number);
            Some(step.filter(&files.decisions)?)
        }
        // The sink parts the documents of a holdout.
        Some(Global::Holdout(_)) | None => None,
    };
    let file = plan.stage_documents(stage - 1, &before)?;
    let mut documents = file.reader()?;
    for (position, &count) in before.input_documents.iter().enumerate() {
        for _ in 0..count {
            let mut document = documents.next().ok_or_else(|| {
                DataError::altered(&file.path, "documents are missing", RUN_AGAIN)
            })??;
            let bytes = document.text.len() as u64;
            options.progress.add(bytes);
            if let Some(filter) = &mut filter {
                let stats = sink.opening_stats();
                let clock = Clock::start();
                let verdict = run_filter(&mut **filter, &mut document, stats)?;
                clock.stop(&mut stats.cpu_seconds);
                if let Verdict::Drop { reason, detail } = verdict {
                    sink.drop_at_opening(document, &reason, detail, bytes)?;
                    continue;
                }
            }
            batch.push(document, position);
            if batch.is_full() {
                sink.process(batch)?;
            }
        }
        options.progress.item_done();
    }
    filter.map_or(Ok(()), |filter| filter.finish())
}

/// Logs the first few rejected records of each kind of one input file.
struct RejectionLog<'a> {
    input: &'a Input,
    logged: BTreeMap<String, u64>,
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
