//! The waterfall of a data folder: in = out + reasons.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::group::GroupRecord;
use super::stats::StepStats;
use super::{documents_folder, stats_folder};
use crate::document::{DocumentFile, Split};
use crate::error::{DataError, Result};

/// In = out + reasons, per source.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Waterfall {
    /// One row per source, sorted by name.
    pub rows: Vec<WaterfallRow>,
}

/// One source of a [`Waterfall`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WaterfallRow {
    /// Name of the source.
    pub source: String,
    /// Counters of the step that read it.
    pub stats: StepStats,
    /// Documents to train on.
    pub train_documents: u64,
    /// Bytes of their text.
    pub train_bytes: u64,
    /// Documents held out.
    pub validation_documents: u64,
    /// Bytes of their text.
    pub validation_bytes: u64,
}

/// Reads the counters of the data folder `output` and holds them against the document files.
///
/// # Errors
/// [`DataError::Counters`] when in ≠ out + reasons, or when the files hold another number of
/// documents than the counters say; [`DataError::NoInput`] when there are no statistics.
pub fn report(output: &Path) -> Result<Waterfall> {
    let folder = stats_folder(output);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .map_err(|_| DataError::NoInput {
            key: "statistics".into(),
            pattern: folder.display().to_string(),
        })?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .map_err(DataError::io(&folder))?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut rows: BTreeMap<String, WaterfallRow> = BTreeMap::new();
    for path in files {
        let bytes = std::fs::read(&path).map_err(DataError::io(&path))?;
        let record: GroupRecord = serde_json::from_slice(&bytes)
            .map_err(|error| DataError::bad_file(&path, format!("no statistics: {error}")))?;
        record.stats.check(&path)?;
        let row = rows.entry(record.source.clone()).or_insert_with(|| WaterfallRow {
            source: record.source.clone(),
            stats: StepStats::default(),
            train_documents: 0,
            train_bytes: 0,
            validation_documents: 0,
            validation_bytes: 0,
        });
        row.stats.merge(&record.stats);
        for split in Split::ALL {
            let Some(summary) = record.outputs.of(split) else {
                continue;
            };
            let name = Path::new(&summary.file).file_name().unwrap_or_default();
            let file = documents_folder(output, &record.source).join(name);
            let counted = DocumentFile::open(&file)?;
            if (counted.documents, counted.text_bytes) != (summary.documents, summary.text_bytes) {
                return Err(DataError::Counters {
                    path: file,
                    documents_in: summary.documents,
                    documents_out: counted.documents,
                    dropped: 0,
                });
            }
            let (documents, bytes) = match split {
                Split::Train => (&mut row.train_documents, &mut row.train_bytes),
                Split::Validation => (&mut row.validation_documents, &mut row.validation_bytes),
            };
            *documents = documents.saturating_add(counted.documents);
            *bytes = bytes.saturating_add(counted.text_bytes);
        }
    }
    for row in rows.values() {
        let out = row.train_documents.saturating_add(row.validation_documents);
        if out != row.stats.docs_out {
            return Err(DataError::Counters {
                path: documents_folder(output, &row.source),
                documents_in: row.stats.docs_in,
                documents_out: out,
                dropped: row.stats.dropped(),
            });
        }
    }
    Ok(Waterfall { rows: rows.into_values().collect() })
}

impl fmt::Display for Waterfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            let stats = &row.stats;
            writeln!(f, "{}", row.source)?;
            line(f, "read", stats.docs_in, Some(stats.bytes_in))?;
            for (reason, count) in stats.dropped_docs.iter().chain(&stats.errors) {
                line(f, &format!("- {reason}"), *count, None)?;
            }
            line(f, "= kept", stats.docs_out, Some(stats.bytes_out))?;
            line(f, "  train", row.train_documents, Some(row.train_bytes))?;
            line(f, "  validation", row.validation_documents, Some(row.validation_bytes))?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, documents: u64, bytes: Option<u64>) -> fmt::Result {
    write!(f, "  {name:<24} {documents:>12} documents")?;
    if let Some(bytes) = bytes {
        write!(f, " {:>12.3} MB", bytes as f64 / 1e6)?;
    }
    writeln!(f)
}
