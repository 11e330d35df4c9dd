//! The waterfall of a data folder: in = out + reasons, step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::layout::{Layout, stats_folder};
use super::stage::StageRecord;
use super::stats::StepStats;
use crate::document::{DocumentFile, Split};
use crate::error::{DataError, Result};

/// In = out + reasons, per source.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Waterfall {
    /// One row per source, sorted by name.
    pub rows: Vec<WaterfallRow>,
}

/// One source of a [`Waterfall`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WaterfallRow {
    /// Name of the source.
    pub source: String,
    /// The reader first, then the steps in order.
    pub steps: Vec<StepRow>,
    /// Documents to train on.
    pub train_documents: u64,
    /// Bytes of their text.
    pub train_bytes: u64,
    /// Documents held out.
    pub validation_documents: u64,
    /// Bytes of their text.
    pub validation_bytes: u64,
}

/// One step of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepRow {
    /// Name of the step.
    pub step: String,
    /// Its counters over all groups.
    pub stats: StepStats,
}

impl WaterfallRow {
    /// Counters of the whole source: what the reader saw, what the last step let through, and all
    /// reasons in between.
    pub fn total(&self) -> StepStats {
        let mut total = StepStats::default();
        for row in &self.steps {
            let (docs_in, bytes_in) = (total.docs_in, total.bytes_in);
            total.merge(&row.stats);
            // What a step got, the one before had let through.
            if docs_in > 0 || bytes_in > 0 {
                (total.docs_in, total.bytes_in) = (docs_in, bytes_in);
            }
            total.docs_out = row.stats.docs_out;
            total.bytes_out = row.stats.bytes_out;
            total.chars_out = row.stats.chars_out;
        }
        total
    }
}

/// Reads the counters of the data folder `output` and holds them against the document files.
///
/// # Errors
/// [`DataError::Counters`] when in ≠ out + reasons, when a step got something else than the one
/// before let through, or when the files hold something else than the counters say;
/// [`DataError::NoInput`] when there are no statistics.
pub fn report(output: &Path) -> Result<Waterfall> {
    let folder = stats_folder(output);
    let mut sources: BTreeMap<String, BTreeMap<usize, Vec<StepRow>>> = BTreeMap::new();
    let mut rows: BTreeMap<String, WaterfallRow> = BTreeMap::new();
    for entry in walkdir::WalkDir::new(&folder).sort_by_file_name() {
        let nothing = |_| DataError::NoInput {
            key: "statistics".into(),
            pattern: folder.display().to_string(),
        };
        let entry = entry.map_err(nothing)?;
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        let record: StageRecord = serde_json::from_slice(&bytes)
            .map_err(|error| DataError::bad_file(path, format!("no statistics: {error}")))?;
        record.check(path)?;
        let steps =
            sources.entry(record.source.clone()).or_default().entry(record.stage).or_default();
        steps.resize_with(record.steps.len().max(steps.len()), StepRow::default);
        for (row, step) in steps.iter_mut().zip(&record.steps) {
            row.step.clone_from(&step.step);
            row.stats.merge(&step.stats);
        }
        let row = rows.entry(record.source.clone()).or_default();
        row.source.clone_from(&record.source);
        count_documents(&Layout::new(output, &record.source), &record, row)?;
    }
    for (source, stages) in sources {
        if let Some(row) = rows.get_mut(&source) {
            row.steps = stages.into_values().flatten().collect();
            check_row(output, row)?;
        }
    }
    if rows.is_empty() {
        return Err(DataError::NoInput {
            key: "statistics".into(),
            pattern: folder.display().to_string(),
        });
    }
    Ok(Waterfall { rows: rows.into_values().collect() })
}

/// Counts the finished documents of a record, from the files themselves.
fn count_documents(layout: &Layout, record: &StageRecord, row: &mut WaterfallRow) -> Result<()> {
    for split in Split::ALL {
        let Some(summary) = record.outputs.of(split) else {
            continue;
        };
        let name = Path::new(&summary.file).file_name().unwrap_or_default();
        let file = layout.documents().join(name);
        let counted = DocumentFile::open(&file)?;
        if (counted.documents, counted.text_bytes) != (summary.documents, summary.text_bytes) {
            return Err(DataError::Counters {
                path: file,
                unit: "documents",
                counted_in: summary.documents,
                counted_out: counted.documents,
                rest: 0,
            });
        }
        let (documents, bytes) = match split {
            Split::Train => (&mut row.train_documents, &mut row.train_bytes),
            Split::Validation => (&mut row.validation_documents, &mut row.validation_bytes),
        };
        *documents = documents.saturating_add(counted.documents);
        *bytes = bytes.saturating_add(counted.text_bytes);
    }
    Ok(())
}

/// Documents and bytes in = out + reasons, over all steps, and out = what the files hold.
fn check_row(output: &Path, row: &WaterfallRow) -> Result<()> {
    let layout = Layout::new(output, &row.source);
    let path = layout.documents();
    // The manifest is written last.
    if !layout.manifest().exists() {
        let source_name = row.source.clone();
        return Err(DataError::Unfinished { path: output.to_owned(), source_name });
    }
    for pair in row.steps.windows(2) {
        let (before, after) = (&pair[0].stats, &pair[1].stats);
        if (before.docs_out, before.bytes_out) != (after.docs_in, after.bytes_in) {
            return Err(DataError::Counters {
                path,
                unit: "documents",
                counted_in: before.docs_out,
                counted_out: after.docs_in,
                rest: 0,
            });
        }
    }
    let total = row.total();
    total.check(&path)?;
    let documents = row.train_documents.saturating_add(row.validation_documents);
    let bytes = row.train_bytes.saturating_add(row.validation_bytes);
    if (documents, bytes) != (total.docs_out, total.bytes_out) {
        return Err(DataError::Counters {
            path,
            unit: "documents",
            counted_in: total.docs_out,
            counted_out: documents,
            rest: 0,
        });
    }
    Ok(())
}

impl fmt::Display for Waterfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            writeln!(f, "{}", row.source)?;
            for (index, step) in row.steps.iter().enumerate() {
                let stats = &step.stats;
                if index == 0 {
                    line(f, "read", Some(stats.docs_in), Some(stats.bytes_in as i64))?;
                } else {
                    // Speed is of one core: bytes in by processor time.
                    let speed = stats.bytes_in as f64 / 1e6 / stats.cpu_seconds.max(1e-9);
                    writeln!(f, "  {:<34} {speed:>39.1} MB/s", step.step)?;
                }
                for (reason, count) in stats.dropped_docs.iter().chain(&stats.errors) {
                    let bytes = stats.dropped_bytes.get(reason).map(|&bytes| bytes as i64);
                    line(f, &format!("- {reason}"), Some(*count), bytes)?;
                }
                for (reason, removed) in &stats.removed {
                    line(f, &format!("- {reason} (parts)"), None, Some(removed.bytes as i64))?;
                }
                if stats.rewritten_bytes != 0 {
                    line(f, "- rewritten", None, Some(stats.rewritten_bytes))?;
                }
            }
            let total = row.total();
            line(f, "= kept", Some(total.docs_out), Some(total.bytes_out as i64))?;
            line(f, "  train", Some(row.train_documents), Some(row.train_bytes as i64))?;
            let held = (row.validation_documents, row.validation_bytes as i64);
            line(f, "  validation", Some(held.0), Some(held.1))?;
        }
        Ok(())
    }
}

fn line(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    documents: Option<u64>,
    bytes: Option<i64>,
) -> fmt::Result {
    write!(f, "  {name:<34}")?;
    match documents {
        Some(documents) => write!(f, " {documents:>12} documents")?,
        None => write!(f, " {:>22}", "")?,
    }
    if let Some(bytes) = bytes {
        write!(f, " {:>12.3} MB", bytes as f64 / 1e6)?;
    }
    writeln!(f)
}
