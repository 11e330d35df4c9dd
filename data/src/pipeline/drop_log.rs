//! What was dropped, document by document: JSON lines, zstd.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::document::{RUN_AGAIN, Reason};
use crate::error::{DataError, Result};

/// Characters of text kept in a sample.
const SAMPLE_CHARS: usize = 2000;
/// Bytes kept of a detail: what it quotes of the input may have any length.
const DETAIL_BYTES: usize = 1000;

/// A document that was dropped, or a record that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedDocument {
    /// Its id; for a record that never became a document, its file and byte offset.
    pub id: String,
    /// The step that dropped it.
    pub step: String,
    /// Why.
    pub reason: String,
    /// Figures behind the reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Its text in bytes when it entered the step.
    pub bytes: u64,
    /// How many records this line stands for: one, or a row of short ones that could not be read.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub records: u64,
    /// Byte offset of the last record of a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_offset: Option<u64>,
    /// For the first few of a reason: its text as the step left it, cut at 2000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

fn one() -> u64 {
    1
}

fn is_one(records: &u64) -> bool {
    *records == 1
}

impl DroppedDocument {
    /// A document dropped by `step`; `text` becomes the sample when the log keeps one.
    /// A long `detail` is cut.
    pub fn new(id: String, step: &str, reason: &Reason, mut detail: String, bytes: u64) -> Self {
        if detail.len() > DETAIL_BYTES {
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES));
            detail.push('…');
        }
        Self {
            id,
            step: step.into(),
            reason: reason.name().into(),
            detail,
            bytes,
            records: 1,
            last_offset: None,
            sample: None,
        }
    }

    /// The first of a row of records, at `offset`.
    pub(super) fn into_row(self, offset: u64) -> Self {
        Self { detail: String::new(), last_offset: Some(offset), ..self }
    }

    /// Adds the next record of the row.
    pub(super) fn extend(&mut self, next: &Self, offset: u64) {
        self.records += 1;
        self.bytes = self.bytes.saturating_add(next.bytes);
        self.last_offset = Some(offset);
    }

    /// Whether `file@offset` is in this row.
    fn has(&self, file: &str, offset: u64) -> bool {
        let first = self.id.strip_prefix(file).and_then(|rest| rest.strip_prefix('@'));
        let first = first.and_then(|first| first.parse::<u64>().ok());
        first.zip(self.last_offset).is_some_and(|(first, last)| (first..=last).contains(&offset))
    }
}

/// Writes the dropped documents of one stage of one task.
pub(super) struct DropLog {
    path: PathBuf,
    writer: zstd::stream::write::Encoder<'static, AtomicFile>,
    samples_per_reason: u64,
    samples: BTreeMap<(String, String), u64>,
}

impl DropLog {
    pub fn create(path: &Path, samples_per_reason: u64) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        let writer = zstd::stream::write::Encoder::new(file, 3).map_err(DataError::io(path))?;
        Ok(Self { path: path.to_owned(), writer, samples_per_reason, samples: BTreeMap::new() })
    }

    pub fn add(&mut self, mut dropped: DroppedDocument, text: &str) -> Result<()> {
        let key = (dropped.step.clone(), dropped.reason.clone());
        let samples = self.samples.entry(key).or_default();
        if *samples < self.samples_per_reason && !text.is_empty() {
            *samples += 1;
            let end = text.char_indices().nth(SAMPLE_CHARS).map_or(text.len(), |(at, _)| at);
            dropped.sample = Some(text[..end].to_owned());
        }
        serde_json::to_writer(&mut self.writer, &dropped)
            .map_err(std::io::Error::from)
            .and_then(|()| self.writer.write_all(b"\n"))
            .map_err(DataError::io(&self.path))
    }

    pub fn finish(self) -> Result<FileDigest> {
        self.writer.finish().map_err(DataError::io(&self.path))?.commit()
    }
}

/// Looks for `id` in the drop log `path`, which must be as it was written.
pub(super) fn find_dropped(
    path: &Path,
    written: &FileDigest,
    id: &str,
) -> Result<Option<DroppedDocument>> {
    written.verify(path, RUN_AGAIN)?;
    let file = std::fs::File::open(path).map_err(DataError::io(path))?;
    let decoder = zstd::stream::read::Decoder::new(file).map_err(DataError::io(path))?;
    // The id comes first in a line, so most lines need not be parsed.
    let beginning = |id: &str| -> Result<String> {
        let id = serde_json::to_string(id).map_err(|error| DataError::bad_file(path, error))?;
        Ok(format!("{{\"id\":{id}"))
    };
    let wanted = beginning(id)? + ",";
    let record = id.rsplit_once('@').and_then(|(file, at)| Some((file, at.parse().ok()?)));
    let rows = match record {
        Some((file, _)) => beginning(&format!("{file}@"))?,
        None => String::new(),
    };
    let rows = rows.trim_end_matches('"');
    for line in BufReader::new(decoder).lines() {
        let line = line.map_err(DataError::io(path))?;
        if line.starts_with(&wanted) {
            return serde_json::from_str(&line)
                .map(Some)
                .map_err(|error| DataError::bad_file(path, error));
        }
        if let Some((file, offset)) = record
            && line.starts_with(rows)
            && line.contains("\"last_offset\":")
        {
            let row: DroppedDocument =
                serde_json::from_str(&line).map_err(|error| DataError::bad_file(path, error))?;
            if row.has(file, offset) {
                return Ok(Some(row));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_details_are_cut() {
        let of = |detail: &str| {
            let reason = Reason::broken("bad_row");
            DroppedDocument::new("a".into(), "read", &reason, detail.to_owned(), 1).detail
        };
        assert_eq!(of("short"), "short");
        let long = "é".repeat(1 << 20);
        assert_eq!(of(&long), format!("{}…", "é".repeat(500)));
        assert_eq!(of(&format!("a{long}")), format!("a{}…", "é".repeat(499)));
    }
}
