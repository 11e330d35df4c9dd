//! Raw text to documents: output order = input order, every record counted.
//!
//! ```text
//! <output>/documents/<source>/{train,validation}-00000.parquet   and manifest.json
//! <output>/stats/<source>/stage0-00000.json                      counters, written last
//! <output>/dropped/<source>/stage0-00000.jsonl.zst               what was dropped, and why
//! <output>/work/<source>/                                        what passes between stages
//! ```
//!
//! A source's steps are cut into stages at the steps that need all documents, and its input files
//! into tasks, groups of consecutive files. The unit of work is one stage of one task. Its
//! statistics file carries a key made from everything its result depends on; a rerun skips what has
//! the same key and whole outputs. A crash leaves only temporary files, which the next run deletes.
//! A run holds the [lock] of the output folder, ranks of one run a share of it each.
//!
//! On several machines every rank does its tasks ([`RunOptions::rank`]) up to the next decision,
//! and one [`merge`] makes the decision. The files are the same for any number of ranks.
//!
//! To follow a document, read `plan` (what there is to do), `stage` (one stage of all tasks), `read`
//! (where its documents come from), `batch` (its steps) and `sink` (where they go).

mod apply;
mod batch;
mod chain;
mod clock;
mod drop_log;
mod explain;
mod finish;
mod holdout;
mod layout;
mod plan;
mod rank;
mod read;
mod record;
mod rejections;
mod report;
mod sink;
mod source_config;
mod stage;
mod stage_options;
mod stats;
mod step_config;
mod templates;
mod unique_ids;

pub use apply::{Applied, apply_step, measure_step, unreadable};
pub use drop_log::DroppedDocument;
pub use explain::{Explanation, explain};
pub use holdout::HoldoutConfig;
pub use layout::documents_folder;
pub use rank::Rank;
pub use record::{Outputs, StageRecord, StepRecord};
pub use report::{StepRow, Waterfall, WaterfallRow, report};
pub use source_config::{SourceConfig, validate_sources};
pub use stats::StepStats;
pub use step_config::StepConfig;
pub use unique_ids::DuplicateIds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::atomic_file::{remove_abandoned, remove_unfinished};
use crate::error::{DataError, Result};
use crate::lock::lock;
use crate::progress::ProgressMode;
use plan::SourcePlan;
use stage::run_stage;

/// Bytes of input after which a task is closed.
const TASK_BYTES: u64 = 64 << 20;

/// How a run behaves, as opposed to what it makes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Only this source.
    pub only: Option<String>,
    /// Whether progress is shown.
    pub progress: ProgressMode,
    /// Which share of the tasks is done here.
    pub rank: Rank,
    /// Most memory that a decision over all documents may hold, in bytes.
    pub memory_bytes: u64,
    /// Dropped documents whose text is kept in the drop log, per reason and task.
    pub dropped_samples: u64,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            only: None,
            progress: ProgressMode::default(),
            rank: Rank::default(),
            memory_bytes: 2 << 30,
            dropped_samples: 20,
        }
    }
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunReport {
    /// Stages of tasks that were done.
    #[serde(rename = "groups_done")]
    pub tasks_done: usize,
    /// Stages of tasks that were already finished.
    #[serde(rename = "groups_skipped")]
    pub tasks_skipped: usize,
    /// Sources whose next step needs `altiplano data merge`.
    pub waiting: Vec<String>,
    /// Hash of the manifest of every finished source.
    pub manifests: BTreeMap<String, String>,
    /// In = out + reasons, per source; none while a source is waiting.
    pub waterfall: Option<Waterfall>,
}

/// Turns raw text into documents below `output`.
///
/// # Errors
/// [`DataError::InUse`] when another process writes there, configuration errors before anything is
/// read, then the first error in input order.
pub fn run(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
) -> Result<RunReport> {
    run_in_tasks(output, sources, holdout, options, TASK_BYTES)
}

/// Makes the decisions over all documents for which every rank has done its part, and finishes
/// the sources that need no other.
///
/// # Errors
/// As [`run`]; [`DataError::BadFile`] when a rank has not done its part.
pub fn merge(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
) -> Result<RunReport> {
    merge_in_tasks(output, sources, holdout, options, TASK_BYTES)
}

fn plans<'a>(
    output: &Path,
    sources: &'a [SourceConfig],
    holdout: &'a HoldoutConfig,
    options: &RunOptions,
    task_bytes: u64,
) -> Result<Vec<SourcePlan<'a>>> {
    holdout.validate()?;
    chosen(sources, options.only.as_deref())?
        .into_iter()
        .map(|source| SourcePlan::new(output, source, holdout, task_bytes))
        .collect()
}

fn run_in_tasks(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
    task_bytes: u64,
) -> Result<RunReport> {
    let _lock = options.rank.lock(output)?;
    let alone = options.rank.is_alone();
    remove_leftovers(output, alone)?;
    let plans = plans(output, sources, holdout, options, task_bytes)?;
    let (mut done, mut skipped) = (0, 0);
    let stages = plans.iter().map(|plan| plan.chain.stages.len()).max().unwrap_or(0);
    for stage in 0..stages {
        let open = |plan: &&SourcePlan<'_>| stage < plan.chain.stages.len();
        if alone {
            for plan in plans.iter().filter(open) {
                if !plan.is_decided(stage, options.rank) {
                    plan.decide(stage, options)?;
                }
            }
        }
        let ready: Vec<_> =
            plans.iter().filter(open).filter(|plan| plan.is_decided(stage, options.rank)).collect();
        let counts = run_stage(&ready, stage, stages, options)?;
        done += counts.done;
        skipped += counts.skipped;
    }
    let mut report = RunReport { tasks_done: done, tasks_skipped: skipped, ..RunReport::default() };
    if alone {
        finish_sources(output, &plans, &mut report)?;
    } else {
        report.waiting = plans.iter().map(|plan| plan.config.name.clone()).collect();
    }
    Ok(report)
}

fn merge_in_tasks(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
    task_bytes: u64,
) -> Result<RunReport> {
    let _lock = lock(output)?;
    remove_leftovers(output, true)?;
    let plans = plans(output, sources, holdout, options, task_bytes)?;
    let mut report = RunReport::default();
    for plan in &plans {
        // The first decision that is not made yet, or the end.
        let all = Rank::default();
        let stage = (1..plan.chain.stages.len()).find(|&stage| !plan.is_decided(stage, all));
        let before = stage.map_or(plan.last_stage(), |stage| stage - 1);
        let unfinished = |task: &&plan::Task| plan.recorded(before, task.number).is_none();
        if let Some(task) = plan.tasks.iter().find(unfinished) {
            return Err(plan.unfinished(before, task.number));
        }
        if let Some(stage) = stage {
            plan.decide(stage, options)?;
            report.waiting.push(plan.config.name.clone());
        }
    }
    if report.waiting.is_empty() {
        finish_sources(output, &plans, &mut report)?;
    }
    Ok(report)
}

/// Deletes what crashes have left in `output`: all of it for the process that holds the folder
/// alone, otherwise what no living process can be writing.
fn remove_leftovers(output: &Path, alone: bool) -> Result<()> {
    let remove = if alone { remove_unfinished } else { remove_abandoned };
    remove(output)?;
    for kind in layout::folders(output) {
        for folder in subfolders(&kind)? {
            remove(&folder)?;
        }
    }
    Ok(())
}

/// The folders in `folder`; none when it is missing.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(DataError::io(folder))?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(DataError::io(folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn finish_sources(output: &Path, plans: &[SourcePlan<'_>], report: &mut RunReport) -> Result<()> {
    for plan in plans {
        let hash = finish::finish_source(plan)?;
        report.manifests.insert(plan.config.name.clone(), hash);
    }
    // What was skipped was read above, and what was written now has its digest.
    let names: Vec<&str> = plans.iter().map(|plan| plan.config.name.as_str()).collect();
    report.waterfall = Some(report::report_of(output, &names)?);
    Ok(())
}

/// The sources of a run: all of them, or the one called `only`.
fn chosen<'a>(sources: &'a [SourceConfig], only: Option<&str>) -> Result<Vec<&'a SourceConfig>> {
    validate_sources(sources)?;
    let chosen: Vec<_> =
        sources.iter().filter(|source| only.is_none_or(|name| name == source.name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = sources.iter().map(|source| source.name.as_str()).collect();
        return Err(DataError::config(
            "sources",
            only.map_or("an empty list".into(), |name| format!("{name:?}")),
            format!("one of {}", names.join(", ")),
        ));
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests;
