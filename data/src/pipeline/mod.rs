//! Raw text to documents: sources in parallel, output order = input order, every record counted.
//!
//! ```text
//! <output>/documents/<source>/{train,validation}-00000.parquet   and manifest.json
//! <output>/stats/text/<source>-00000.json                        counters, written last
//! ```
//!
//! The unit of work is a group of consecutive input files. Its statistics file carries a key made
//! from the step's version, the configuration and the inputs' names, sizes and times; a rerun
//! skips a group whose key and outputs are unchanged. A crash leaves only temporary files, which
//! the next run deletes.

mod group;
mod holdout;
mod report;
mod stats;

pub use group::{GroupRecord, Outputs};
pub use holdout::HoldoutConfig;
pub use report::{Waterfall, WaterfallRow, report};
pub use stats::StepStats;

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::atomic_file::{remove_unfinished, write_atomically};
use crate::document::{DocumentFileSummary, Split};
use crate::error::{DataError, Result};
use crate::progress::{Progress, ProgressMode};
use crate::source::SourceConfig;
use group::{Group, GroupResult};

/// Bytes of input after which a group of files is closed.
const GROUP_BYTES: u64 = 64 << 20;

/// How a run behaves, as opposed to what it makes.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Only this source.
    pub only: Option<String>,
    /// Whether progress is shown.
    pub progress: ProgressMode,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// Groups of input files that were read.
    pub groups_done: usize,
    /// Groups that were already finished.
    pub groups_skipped: usize,
    /// In = out + reasons, per source.
    pub waterfall: Waterfall,
}

/// The list of what a source's folder holds, with checksums: `manifest.json`.
#[derive(Debug, Serialize)]
struct Manifest<'a> {
    source: &'a str,
    step: &'static str,
    version: u32,
    files: Vec<&'a DocumentFileSummary>,
    inputs: Vec<&'a str>,
}

/// Turns raw text into documents below `output`.
///
/// # Errors
/// Configuration errors before anything is read; then the first error in input order.
pub fn run(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
) -> Result<RunReport> {
    run_in_groups(output, sources, holdout, options, GROUP_BYTES)
}

fn run_in_groups(
    output: &Path,
    sources: &[SourceConfig],
    holdout: &HoldoutConfig,
    options: &RunOptions,
    group_bytes: u64,
) -> Result<RunReport> {
    holdout.validate()?;
    let sources = chosen(sources, options.only.as_deref())?;
    let mut groups = Vec::new();
    for source in &sources {
        let inputs = source.inputs()?;
        remove_unfinished(&documents_folder(output, &source.name))?;
        groups.extend(Group::split(output, source, inputs, group_bytes));
    }
    remove_unfinished(&stats_folder(output))?;

    let cuts = holdout::cuts(output, holdout, &groups, options.progress)?;
    let total_bytes = groups.iter().map(Group::bytes).sum();
    let files = groups.iter().map(|group| group.inputs.len() as u64).sum();
    let progress = Progress::new(options.progress, "documents", total_bytes, files);
    let results: Vec<GroupResult> = groups
        .par_iter()
        .map(|group| {
            // Every source has a cut.
            let cut = cuts.get(&group.source.name).copied().unwrap_or_default();
            group.run(cut, &progress)
        })
        .collect::<Result<_>>()?;
    let skipped = results.iter().filter(|result| result.skipped).count();
    progress.finish(&format!(
        "{} groups of files read, {skipped} already finished",
        results.len() - skipped
    ));

    for source in &sources {
        let records: Vec<&GroupRecord> = groups
            .iter()
            .zip(&results)
            .filter(|(group, _)| group.source.name == source.name)
            .map(|(_, result)| &result.record)
            .collect();
        finish_source(output, source, holdout, &records)?;
    }
    Ok(RunReport {
        groups_done: results.len() - skipped,
        groups_skipped: skipped,
        waterfall: report(output)?,
    })
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
            format!("one of {names:?}"),
        ));
    }
    Ok(chosen)
}

/// Checks the holdout, deletes files of groups that are no more, writes the manifest.
fn finish_source(
    output: &Path,
    source: &SourceConfig,
    holdout: &HoldoutConfig,
    records: &[&GroupRecord],
) -> Result<()> {
    let folder = documents_folder(output, &source.name);
    let files: Vec<&DocumentFileSummary> =
        records.iter().flat_map(|record| record.outputs.files()).collect();
    let documents = |split: Split| -> u64 {
        let outputs = records.iter().filter_map(|record| record.outputs.of(split));
        outputs.map(|file| file.documents).fold(0, u64::saturating_add)
    };
    let (train, validation) = (documents(Split::Train), documents(Split::Validation));
    if train == 0 || (holdout.is_some() && validation == 0) {
        return Err(DataError::Holdout {
            name: source.name.clone(),
            wanted: holdout.describe(),
            documents: train + validation,
            bytes: files.iter().map(|file| file.text_bytes).fold(0, u64::saturating_add),
        });
    }
    remove_stale(&folder, |name| {
        name.ends_with(".parquet") && !files.iter().any(|file| file.file == name)
    })?;
    let prefix = format!("{}-", source.name);
    let last = records.len();
    remove_stale(&stats_folder(output), |name| {
        let number = name
            .strip_prefix(&prefix)
            .and_then(|rest| rest.strip_suffix(".json"))
            .filter(|rest| rest.len() >= 5 && rest.bytes().all(|byte| byte.is_ascii_digit()));
        number.is_some_and(|number| number.parse::<usize>().is_ok_and(|number| number >= last))
    })?;
    let (step, version) = source.step();
    let manifest = Manifest {
        source: &source.name,
        step,
        version,
        files,
        inputs: records
            .iter()
            .flat_map(|record| record.inputs.iter().map(String::as_str))
            .collect(),
    };
    write_json(&folder.join("manifest.json"), &manifest)
}

fn remove_stale(folder: &Path, stale: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        if stale(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(DataError::io(entry.path()))?;
        }
    }
    Ok(())
}

/// Writes `value` as indented JSON, atomically.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|error| DataError::bad_file(path, error))?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// The folder of a source's documents.
pub fn documents_folder(output: &Path, source: &str) -> PathBuf {
    output.join("documents").join(source)
}

fn stats_folder(output: &Path) -> PathBuf {
    output.join("stats").join("text")
}

#[cfg(test)]
mod tests;
