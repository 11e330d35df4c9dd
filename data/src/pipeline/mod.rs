//! Raw text to documents: output order = input order, every record counted.
//!
//! ```text
//! <output>/documents/<source>/{train,validation}-00000.parquet   and manifest.json
//! <output>/stats/<source>/stage0-00000.json                      counters, written last
//! <output>/dropped/<source>/stage0-00000.jsonl.zst               what was dropped, and why
//! <output>/work/<source>/                                        what passes between stages
//! ```
//!
//! A source's steps are cut into stages at the steps that need all documents. The unit of work is
//! a stage of a group of consecutive input files. Its statistics file carries a key made from
//! everything its result depends on; a rerun skips what has the same key and whole outputs. A
//! crash leaves only temporary files, which the next run deletes. A run holds the [lock] of the
//! output folder, ranks of one run a share of it each.
//!
//! On several machines every rank does its groups ([`RunOptions::rank`]) up to the next decision,
//! and one [`merge`] makes the decision. The files are the same for any number of ranks.

mod apply;
mod batch;
mod chain;
mod drop_log;
mod explain;
mod finish;
mod holdout;
mod layout;
mod plan;
mod rank;
mod rejections;
mod report;
mod source_config;
mod stage;
mod stats;
mod step_config;

pub use apply::{Applied, apply_step, measure_step, unreadable};
pub use drop_log::DroppedDocument;
pub use explain::{Explanation, explain};
pub use holdout::HoldoutConfig;
pub use layout::documents_folder;
pub use rank::Rank;
pub use report::{StepRow, Waterfall, WaterfallRow, report};
pub use source_config::SourceConfig;
pub use stage::{Outputs, StageRecord, StepRecord};
pub use stats::StepStats;
pub use step_config::StepConfig;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::atomic_file::{remove_abandoned, remove_unfinished};
use crate::error::{DataError, Result};
use crate::lock::lock;
use crate::progress::{Progress, ProgressMode, Work};
use plan::SourcePlan;
use stage::StageOptions;

/// Bytes of input after which a group of files is closed.
const GROUP_BYTES: u64 = 64 << 20;

/// How a run behaves, as opposed to what it makes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Only this source.
    pub only: Option<String>,
    /// Whether progress is shown.
    pub progress: ProgressMode,
    /// Which share of the groups is done here.
    pub rank: Rank,
    /// Most memory that a decision over all documents may hold, in bytes.
    pub memory_bytes: u64,
    /// Dropped documents whose text is kept in the drop log, per reason and group.
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Stages of groups of input files that were done.
    pub groups_done: usize,
    /// Stages of groups that were already finished.
    pub groups_skipped: usize,
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
    run_in_groups(output, sources, holdout, options, GROUP_BYTES)
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
    merge_in_groups(output, sources, holdout, options, GROUP_BYTES)
}

fn plans<'a>(
    output: &Path,
    sources: &'a [SourceConfig],
    holdout: &'a HoldoutConfig,
    options: &RunOptions,
    group_bytes: u64,
) -> Result<Vec<SourcePlan<'a>>> {
    holdout.validate()?;
    chosen(sources, options.only.as_deref())?
        .into_iter()
        .map(|source| SourcePlan::new(output, source, holdout, group_bytes))
        .collect()
}

fn run_in_groups(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
    group_bytes: u64,
) -> Result<RunReport> {
    let _lock = options.rank.lock(output)?;
    let alone = options.rank.is_alone();
    remove_leftovers(output, alone)?;
    let plans = plans(output, sources, holdout, options, group_bytes)?;
    let (mut done, mut skipped) = (0, 0);
    let stages = plans.iter().map(|plan| plan.chain.stages.len()).max().unwrap_or(0);
    for stage in 0..stages {
        let open = |plan: &&SourcePlan<'_>| stage < plan.chain.stages.len();
        if alone {
            for plan in plans.iter().filter(open) {
                if !plan.is_resolved(stage, options.rank) {
                    plan.resolve(stage, options)?;
                }
            }
        }
        let ready: Vec<_> = plans
            .iter()
            .filter(open)
            .filter(|plan| plan.is_resolved(stage, options.rank))
            .collect();
        let (now_done, now_skipped) = run_stage(&ready, stage, stages, options)?;
        done += now_done;
        skipped += now_skipped;
    }
    let mut report = RunReport {
        groups_done: done,
        groups_skipped: skipped,
        waiting: Vec::new(),
        manifests: BTreeMap::new(),
        waterfall: None,
    };
    if alone {
        finish_sources(output, &plans, &mut report)?;
    } else {
        report.waiting = plans.iter().map(|plan| plan.config.name.clone()).collect();
    }
    Ok(report)
}

fn merge_in_groups(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
    group_bytes: u64,
) -> Result<RunReport> {
    let _lock = lock(output)?;
    remove_leftovers(output, true)?;
    let plans = plans(output, sources, holdout, options, group_bytes)?;
    let mut report = RunReport {
        groups_done: 0,
        groups_skipped: 0,
        waiting: Vec::new(),
        manifests: BTreeMap::new(),
        waterfall: None,
    };
    for plan in &plans {
        // The first decision that is not made yet, or the end.
        let all = Rank::default();
        let stage = (1..plan.chain.stages.len()).find(|&stage| !plan.is_resolved(stage, all));
        let before = stage.map_or(plan.last_stage(), |stage| stage - 1);
        let unfinished = |group: &&plan::Group| plan.recorded(before, group.number).is_none();
        if let Some(group) = plan.groups.iter().find(unfinished) {
            return Err(plan.unfinished(before, group.number));
        }
        if let Some(stage) = stage {
            plan.resolve(stage, options)?;
            report.waiting.push(plan.config.name.clone());
        }
    }
    if report.waiting.is_empty() {
        finish_sources(output, &plans, &mut report)?;
    }
    Ok(report)
}

/// Does one stage of all groups of this rank.
fn run_stage(
    plans: &[&SourcePlan<'_>],
    stage: usize,
    stages: usize,
    options: &RunOptions,
) -> Result<(usize, usize)> {
    let tasks: Vec<_> = plans
        .iter()
        .flat_map(|plan| plan.groups.iter().map(move |group| (*plan, group)))
        .filter(|(_, group)| options.rank.does(group.number))
        .collect();
    // In parallel: every file of what is finished is read and held against what was written.
    let all = tasks.len();
    let checksums = Work::count(all as u64, "groups of files");
    let checksums = Progress::new(options.progress, "checksums", checksums);
    let is_open = |(plan, group): &(&SourcePlan<'_>, &plan::Group)| {
        let open = !plan.is_finished(stage, group.number);
        checksums.add(1);
        open
    };
    let open: Vec<_> = tasks.into_par_iter().filter(is_open).collect();
    drop(checksums);
    let finished = all - open.len();
    let bytes = |(plan, group): &(&SourcePlan<'_>, &plan::Group)| match stage.checked_sub(1) {
        None => group.bytes(),
        Some(before) => {
            let record = plan.recorded(before, group.number);
            record.and_then(|record| record.stage_file).map_or(0, |file| file.text_bytes)
        }
    };
    let inputs = || open.iter().flat_map(|(_, group)| &group.inputs);
    // An input may be a folder: a paper, or a site.
    let name = if inputs().all(|input| input.path.is_file()) { "files" } else { "inputs" };
    let label = match stages {
        1 => "documents".to_owned(),
        _ => format!("stage {} of {stages}", stage + 1),
    };
    let work = Work::bytes(open.iter().map(bytes).sum()).of(inputs().count() as u64, name);
    let progress = Progress::new(options.progress, &label, work);
    let threads = rayon::current_num_threads();
    let stage_options = StageOptions {
        progress: &progress,
        memory_bytes: options.memory_bytes / threads as u64,
        samples_per_reason: options.dropped_samples,
        parallel: open.len() < threads,
    };
    open.par_iter()
        .map(|(plan, group)| stage::run(plan, stage, group, &stage_options).map(|_| ()))
        .collect::<Result<()>>()?;
    progress.finish(&format!("{} groups of files done, {finished} already finished", open.len()));
    Ok((open.len(), finished))
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

fn chosen<'a>(sources: &'a [SourceConfig], only: Option<&str>) -> Result<Vec<&'a SourceConfig>> {
    for (index, source) in sources.iter().enumerate() {
        source.validate()?;
        if sources[..index].iter().any(|other| other.name == source.name) {
            return Err(DataError::config(
                "sources.name",
                format!("{:?} twice", source.name),
                "each name once",
            ));
        }
    }
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
