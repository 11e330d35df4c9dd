//! The waterfall of a data folder: in = out + reasons, step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::layout::{Layout, documents_folder, stats_folder};
use super::record::StageRecord;
use super::stats::StepStats;
use crate::document::{DocumentManifest, RUN_AGAIN, SourceDocuments, Split};
use crate::error::{DataError, Result};

/// What steps and readers mended in documents that stay, or lost from them: counts beside the sum.
const COUNTS: &[&str] = &[
    "repaired_encoding",
    "fixed_mojibake",
    "bad_content_length",
    "cut_body",
    "duplicate_id",
    "unbalanced",
    "lost_templates",
    "macros_left",
    "macros_unsupported",
    "macros_recursive",
    "macros_too_deep",
    "macros_overflow",
    "no_start_marker",
    "no_end_marker",
    "suspicious_header",
    "suspicious_footer",
];

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
    /// Its counters over all tasks.
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

impl Waterfall {
    /// The templates of wikitext that were taken out of sentences: of each source the `most` common
    /// ones, with an example.
    pub fn lost_templates(&self, most: usize) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let total = row.total();
            if total.lost_templates.is_empty() {
                continue;
            }
            let mut lost: Vec<_> = total.lost_templates.iter().collect();
            lost.sort_by_key(|(name, lost)| (std::cmp::Reverse(lost.count), name.as_str()));
            let all = total.noted.get("lost_templates").copied().unwrap_or_default();
            out += &format!("{}: {all} templates taken out of sentences\n", row.source);
            for (name, lost) in lost.into_iter().take(most) {
                out += &format!("  {:>9}  {name:<32} {}\n", lost.count, lost.example);
            }
        }
        if out.is_empty() { "no template was taken out of a sentence\n".to_owned() } else { out }
    }
}

/// Reads the counters of the data folder `output` and holds them against the manifests, and every
/// byte of the documents too.
///
/// # Errors
/// [`DataError::Counters`] when in ≠ out + reasons, when a step got something else than the one
/// before let through, or when the files hold something else than the counters say;
/// [`DataError::Altered`] naming the file that is not as it was written;
/// [`DataError::NotMade`] when there are no statistics.
pub fn report(output: &Path) -> Result<Waterfall> {
    let folder = stats_folder(output);
    let nothing = || DataError::NotMade {
        path: folder.clone(),
        expected: "statistics of sources",
        command: "data run CONFIG",
    };
    let mut sources = Vec::new();
    for entry in walkdir::WalkDir::new(&folder).min_depth(1).max_depth(1).sort_by_file_name() {
        let entry = entry.map_err(|_| nothing())?;
        if entry.file_type().is_dir() {
            sources.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    if sources.is_empty() {
        return Err(nothing());
    }
    let names: Vec<&str> = sources.iter().map(String::as_str).collect();
    let waterfall = report_of(output, &names)?;
    for source in names {
        SourceDocuments::open(&documents_folder(output, source))?.verify()?;
    }
    Ok(waterfall)
}

/// As [`report`], of these sources alone, and without reading the documents.
pub(super) fn report_of(output: &Path, sources: &[&str]) -> Result<Waterfall> {
    let mut rows = sources
        .iter()
        .map(|source| read_source(&Layout::new(output, source)))
        .collect::<Result<Vec<_>>>()?;
    rows.sort_by(|a, b| a.source.cmp(&b.source));
    Ok(Waterfall { rows })
}

fn read_source(layout: &Layout) -> Result<WaterfallRow> {
    let documents = SourceDocuments::open(&layout.documents()).map_err(|error| match error {
        // Nothing of it was finished yet.
        DataError::NotMade { .. } => DataError::Unfinished {
            path: layout.output().to_owned(),
            source_name: layout.source().to_owned(),
        },
        error => error,
    })?;
    let records = read_records(layout, &documents.manifest)?;
    let mut row = WaterfallRow { source: layout.source().to_owned(), ..WaterfallRow::default() };
    for tasks in &records {
        let mut steps: Vec<StepRow> = Vec::new();
        for record in tasks {
            steps.resize_with(record.steps.len().max(steps.len()), StepRow::default);
            for (row, step) in steps.iter_mut().zip(&record.steps) {
                row.step.clone_from(&step.step);
                row.stats.merge(&step.stats);
            }
        }
        row.steps.append(&mut steps);
    }
    let counted: Vec<_> =
        records.iter().flatten().flat_map(|record| record.outputs.files()).collect();
    for file in &documents.manifest.files {
        if !counted.contains(&file) {
            let difference = "other counters than the statistics have of it";
            return Err(DataError::altered(
                layout.documents().join(&file.file),
                difference,
                RUN_AGAIN,
            ));
        }
    }
    for file in documents.files(Some(Split::Train)) {
        row.train_documents = row.train_documents.saturating_add(file.documents);
        row.train_bytes = row.train_bytes.saturating_add(file.text_bytes);
    }
    for file in documents.files(Some(Split::Validation)) {
        row.validation_documents = row.validation_documents.saturating_add(file.documents);
        row.validation_bytes = row.validation_bytes.saturating_add(file.text_bytes);
    }
    check_row(&layout.documents(), &row)?;
    Ok(row)
}

/// The records of a source, by stage, then by task: all that its manifest asks for.
fn read_records(layout: &Layout, manifest: &DocumentManifest) -> Result<Vec<Vec<StageRecord>>> {
    let folder = layout.stats();
    let mut found: BTreeMap<(usize, usize), StageRecord> = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).map_err(DataError::io(&folder))? {
        let path = entry.map_err(DataError::io(&folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "json") {
            let record = StageRecord::read(layout, &path)?;
            found.insert((record.stage, record.task), record);
        }
    }
    let missing = |stage, task| {
        let path = layout.stats_file(stage, task);
        Err(DataError::altered(path, "missing, the manifest asks for it", RUN_AGAIN))
    };
    let stages = found.keys().map(|&(stage, _)| stage + 1).max().unwrap_or(1);
    let mut records: Vec<Vec<StageRecord>> = Vec::new();
    for stage in 0..stages {
        // Tasks are consecutive input files, so the manifest's list of them tells how many.
        let mut tasks: Vec<StageRecord> = Vec::new();
        let mut inputs = 0;
        while inputs < manifest.inputs.len() {
            let Some(record) = found.remove(&(stage, tasks.len())) else {
                return missing(stage, tasks.len());
            };
            let names = manifest.inputs[inputs..].iter().map(|input| &input.name);
            if record.inputs.is_empty() || !record.inputs.iter().eq(names.take(record.inputs.len()))
            {
                let path = layout.stats_file(stage, tasks.len());
                let difference = "its input files are not those of the manifest";
                return Err(DataError::altered(path, difference, RUN_AGAIN));
            }
            inputs += record.inputs.len();
            tasks.push(record);
        }
        records.push(tasks);
    }
    match found.keys().next() {
        Some(&(stage, task)) => Err(DataError::altered(
            layout.stats_file(stage, task),
            "of a group that the manifest does not have",
            RUN_AGAIN,
        )),
        None => Ok(records),
    }
}

/// Documents and bytes in = out + reasons, over all steps, and out = what the files hold.
fn check_row(path: &Path, row: &WaterfallRow) -> Result<()> {
    for pair in row.steps.windows(2) {
        let (before, after) = (&pair[0].stats, &pair[1].stats);
        if (before.docs_out, before.bytes_out) != (after.docs_in, after.bytes_in) {
            return Err(DataError::Counters {
                path: path.to_owned(),
                unit: "documents",
                counted_in: before.docs_out,
                counted_out: after.docs_in,
                rest: 0,
            });
        }
    }
    let total = row.total();
    total.check(path)?;
    let documents = row.train_documents.saturating_add(row.validation_documents);
    let bytes = row.train_bytes.saturating_add(row.validation_bytes);
    if (documents, bytes) != (total.docs_out, total.bytes_out) {
        return Err(DataError::Counters {
            path: path.to_owned(),
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
                for name in COUNTS {
                    if let Some(count) = stats.noted.get(*name) {
                        writeln!(f, "  {:<34} {count:>12}", format!("~ {name}"))?;
                    }
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
        match bytes.unsigned_abs() < 100_000 {
            true => write!(f, " {:>12.3} kB", bytes as f64 / 1e3)?,
            false => write!(f, " {:>12.3} MB", bytes as f64 / 1e6)?,
        }
    }
    writeln!(f)
}
