//! What one stage of one task has made and counted: its statistics file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::stats::StepStats;
use crate::checksum::FileDigest;
use crate::document::{DocumentFileSummary, RUN_AGAIN, Split};
use crate::error::{DataError, Result};
use crate::json_file::{read_json, write_json};

/// The files of finished documents that a task made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// Documents to train on.
    pub train: Option<DocumentFileSummary>,
    /// Documents held out.
    pub validation: Option<DocumentFileSummary>,
}

impl Outputs {
    /// The file of one side of the holdout, if it has documents.
    pub fn of(&self, split: Split) -> Option<&DocumentFileSummary> {
        match split {
            Split::Train => self.train.as_ref(),
            Split::Validation => self.validation.as_ref(),
        }
    }

    /// The files there are.
    pub fn files(&self) -> impl Iterator<Item = &DocumentFileSummary> {
        self.train.iter().chain(&self.validation)
    }
}

/// The counters of one step in one stage of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Name of the step.
    pub step: String,
    /// Version of the step.
    pub version: u32,
    /// Its counters.
    pub stats: StepStats,
}

/// The statistics file of one stage of a task. It is written last: without it the stage is not
/// finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// Name of the source.
    pub source: String,
    /// Number of the stage.
    pub stage: usize,
    /// Number of the task, which is a group of input files.
    #[serde(rename = "group")]
    pub task: usize,
    /// Hash of everything the result depends on.
    pub key: String,
    /// Names of the input files.
    pub inputs: Vec<String>,
    /// Documents that left the stage, by input file.
    pub input_documents: Vec<u64>,
    /// Counters of the steps, in order.
    pub steps: Vec<StepRecord>,
    /// Time the processor spent on the signatures for the decision behind the stage; it counts for
    /// that step.
    #[serde(rename = "notes_cpu_seconds")]
    pub signature_cpu_seconds: f64,
    /// What the next stage reads; none after the last.
    pub stage_file: Option<DocumentFileSummary>,
    /// The signatures for the decision behind the stage; none after the last.
    #[serde(rename = "notes")]
    pub signatures: Option<FileDigest>,
    /// Hashes of the ids that the reader gave, for the comparison with other tasks; of the first
    /// stage, if there are several tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<FileDigest>,
    /// Finished documents; none before the last stage.
    pub outputs: Outputs,
    /// The log of what was dropped.
    pub dropped: FileDigest,
}

impl StageRecord {
    /// Reads the record `path`, which must be that of this source, stage and task.
    ///
    /// # Errors
    /// [`DataError::Io`], also when there is none; [`DataError::Altered`] or
    /// [`DataError::BadFile`] when it is not as it was written.
    pub(super) fn read(layout: &Layout, path: &Path) -> Result<Self> {
        let record: Self = read_json(path, RUN_AGAIN)?;
        let own = layout.stats_file(record.stage, record.task) == path;
        if record.source != layout.source() || !own {
            let difference = format!(
                "swapped: these are the counters of stage {} of group {} of source {:?}",
                record.stage, record.task, record.source
            );
            return Err(DataError::altered(path, difference, RUN_AGAIN));
        }
        record.check(path)?;
        Ok(record)
    }

    /// Checks the counters and writes the record below `layout`.
    ///
    /// # Errors
    /// As [`StageRecord::check`], and [`DataError::Io`].
    pub(super) fn write(&self, layout: &Layout) -> Result<()> {
        let path = layout.stats_file(self.stage, self.task);
        self.check(&path)?;
        write_json(&path, self).map(drop)
    }

    /// Checks every step's counters, that each step got what the one before let through, and that
    /// the files hold what the last let through.
    ///
    /// # Errors
    /// [`DataError::Counters`] naming `path`.
    pub fn check(&self, path: &Path) -> Result<()> {
        let unequal = |unit, counted_in, counted_out| DataError::Counters {
            path: path.to_owned(),
            unit,
            counted_in,
            counted_out,
            rest: 0,
        };
        for pair in self.steps.windows(2) {
            let (before, after) = (&pair[0].stats, &pair[1].stats);
            if before.docs_out != after.docs_in {
                return Err(unequal("documents", before.docs_out, after.docs_in));
            }
            if before.bytes_out != after.bytes_in {
                return Err(unequal("bytes", before.bytes_out, after.bytes_in));
            }
        }
        for step in &self.steps {
            step.stats.check(path)?;
        }
        let (documents, bytes) = self.written();
        if let Some(last) = self.steps.last() {
            if last.stats.docs_out != documents {
                return Err(unequal("documents", last.stats.docs_out, documents));
            }
            if last.stats.bytes_out != bytes {
                return Err(unequal("bytes", last.stats.bytes_out, bytes));
            }
        }
        Ok(())
    }

    /// Documents and bytes of text in the files of this stage.
    pub(super) fn written(&self) -> (u64, u64) {
        let files = self.outputs.files().chain(&self.stage_file);
        files.fold((0, 0), |(documents, bytes), file| {
            (
                u64::saturating_add(documents, file.documents),
                u64::saturating_add(bytes, file.text_bytes),
            )
        })
    }
}
