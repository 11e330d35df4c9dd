//! What happened to one document.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::drop_log::{DroppedDocument, find_dropped};
use super::layout::{Layout, stats_folder};
use super::record::StageRecord;
use crate::document::{Document, Split, list_documents};
use crate::error::{DataError, Result};

/// What happened to one document.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Explanation {
    /// A step dropped it.
    Dropped {
        /// Name of the source.
        source: String,
        /// Stage of the source's steps in which it happened, from 0.
        stage: usize,
        /// The step, the reason and the figures behind it.
        #[serde(flatten)]
        dropped: DroppedDocument,
    },
    /// It is in the corpus.
    Kept {
        /// The file it is in.
        file: PathBuf,
        /// The side of the holdout.
        split: Split,
        /// The document with its metadata.
        document: Box<Document>,
    },
}

/// Finds out what happened to the document `id` in the data folder `output`; `source` narrows
/// the search.
///
/// # Errors
/// [`DataError::NoDocument`] when no step has seen it, [`DataError::NotMade`] when the folder
/// holds no finished run.
pub fn explain(output: &Path, id: &str, source: Option<&str>) -> Result<Explanation> {
    let wanted = |path: &Path| {
        let folder = path.parent().and_then(Path::file_name);
        source.is_none_or(|source| folder.is_some_and(|name| name == source))
    };
    let records = walkdir::WalkDir::new(stats_folder(output)).sort_by_file_name();
    for entry in records.into_iter().flatten() {
        let path = entry.path();
        let is_record = path.extension().is_some_and(|extension| extension == "json");
        if !is_record || !wanted(path) {
            continue;
        }
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
        let layout = Layout::new(output, &folder.to_string_lossy());
        let StageRecord { source, stage, task, dropped, .. } = StageRecord::read(&layout, path)?;
        if let Some(dropped) = find_dropped(&layout.dropped_file(stage, task), &dropped, id)? {
            return Ok(Explanation::Dropped { source, stage, dropped });
        }
    }
    for split in Split::ALL {
        let files = match list_documents(&output.join("documents"), Some(split)) {
            Err(DataError::NotMade { .. }) if split == Split::Validation => continue,
            files => files?,
        };
        for file in files.into_iter().filter(|file| wanted(&file.path)) {
            for document in file.reader()? {
                let document = document?;
                if document.id == id {
                    return Ok(Explanation::Kept {
                        file: file.path,
                        split,
                        document: Box::new(document),
                    });
                }
            }
        }
    }
    Err(DataError::NoDocument { id: id.to_owned(), path: output.to_owned() })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dropped { source, stage, dropped } => {
                writeln!(f, "{}: dropped", dropped.id)?;
                writeln!(f, "  source   {source}, stage {stage}")?;
                writeln!(f, "  step     {}", dropped.step)?;
                writeln!(f, "  reason   {}", dropped.reason)?;
                if !dropped.detail.is_empty() {
                    writeln!(f, "  detail   {}", dropped.detail)?;
                }
                if let Some(last) = dropped.last_offset {
                    let records = dropped.records;
                    writeln!(f, "  records  {records} in a row, the last at byte {last}")?;
                }
                writeln!(f, "  bytes    {} when it entered the step", dropped.bytes)?;
                if let Some(sample) = &dropped.sample {
                    writeln!(f, "  text     {sample}")?;
                }
                Ok(())
            }
            Self::Kept { file, split, document } => {
                writeln!(f, "{}: kept", document.id)?;
                writeln!(f, "  file     {}", file.display())?;
                writeln!(f, "  side     {}", split.name())?;
                if let Some(url) = &document.url {
                    writeln!(f, "  url      {url}")?;
                }
                if let Some(language) = &document.language {
                    let score = document.language_score.map(|score| format!(" ({score:.2})"));
                    writeln!(f, "  language {language}{}", score.unwrap_or_default())?;
                }
                for (key, value) in document.metadata() {
                    writeln!(f, "  {key:<8} {value}")?;
                }
                writeln!(f, "  bytes    {}", document.text.len())
            }
        }
    }
}
