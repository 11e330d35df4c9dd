//! Where a source's files lie below the output folder.

use std::path::{Path, PathBuf};

use crate::dedup::TaskFiles;
use crate::document::{DocumentManifest, Split};

/// The files of one source.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    output: PathBuf,
    source: String,
}

impl Layout {
    pub fn new(output: &Path, source: &str) -> Self {
        Self { output: output.to_owned(), source: source.to_owned() }
    }

    /// The data folder.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Name of the source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Finished documents.
    pub fn documents(&self) -> PathBuf {
        documents_folder(&self.output, &self.source)
    }

    pub fn document_file(&self, split: Split, task: usize) -> PathBuf {
        self.documents().join(format!("{}-{task:05}.parquet", split.name()))
    }

    pub fn manifest(&self) -> PathBuf {
        DocumentManifest::path(&self.documents())
    }

    /// Counters of every stage.
    pub fn stats(&self) -> PathBuf {
        stats_folder(&self.output).join(&self.source)
    }

    pub fn stats_file(&self, stage: usize, task: usize) -> PathBuf {
        self.stats().join(format!("stage{stage}-{task:05}.json"))
    }

    /// What was dropped, document by document.
    pub fn dropped(&self) -> PathBuf {
        dropped_folder(&self.output).join(&self.source)
    }

    pub fn dropped_file(&self, stage: usize, task: usize) -> PathBuf {
        self.dropped().join(format!("stage{stage}-{task:05}.jsonl.zst"))
    }

    /// What passes from stage to stage.
    pub fn work(&self) -> PathBuf {
        self.output.join("work").join(&self.source)
    }

    /// Documents that left `stage`, which is not the last.
    pub fn stage_file(&self, stage: usize, task: usize) -> PathBuf {
        self.work().join(format!("stage{stage}-{task:05}.parquet"))
    }

    /// Hashes of the ids that the reader gave the documents of a task.
    pub fn ids_file(&self, task: usize) -> PathBuf {
        self.work().join(format!("ids-{task:05}"))
    }

    /// The templates that an input file of the source defines, and what is known of that file.
    pub fn template_files(&self, input: usize) -> [PathBuf; 2] {
        ["bin", "json"].map(|ending| self.work().join(format!("templates-{input:05}.{ending}")))
    }

    /// The signatures that `stage` writes for the decision behind it, and what is decided.
    pub fn global_files(&self, stage: usize, task: usize) -> TaskFiles {
        TaskFiles {
            signatures: self.work().join(format!("stage{stage}-{task:05}.notes")),
            decisions: self.work().join(format!("stage{stage}-{task:05}.decisions")),
        }
    }

    /// Written when the decision behind `stage` is made.
    pub fn decided_file(&self, stage: usize) -> PathBuf {
        self.work().join(format!("stage{stage}-resolved.json"))
    }
}

/// The folder of a source's documents.
pub fn documents_folder(output: &Path, source: &str) -> PathBuf {
    output.join("documents").join(source)
}

/// The folders below which each source has one.
pub(super) fn folders(output: &Path) -> [PathBuf; 4] {
    ["documents", "stats", "dropped", "work"].map(|name| output.join(name))
}

pub(super) fn stats_folder(output: &Path) -> PathBuf {
    output.join("stats")
}

pub(super) fn dropped_folder(output: &Path) -> PathBuf {
    output.join("dropped")
}
