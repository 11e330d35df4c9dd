//! Steps that need all documents of a source in view: removal of duplicates.
//!
//! Such a step runs in three parts, with a file for each task (a group of consecutive input files)
//! between one part and the next:
//!
//! 1. Signatures. A [`Signatures`] writer per task writes what the documents are compared by, such
//!    as a hash of every line ([`GlobalDecision::signatures`]).
//! 2. Finding the duplicates. [`GlobalDecision::decide`] reads the signatures of all tasks, within
//!    a memory cap, and writes for each task which of its documents or lines are duplicates.
//! 3. Filtering. A [`Filter`] per task sees the same documents in the same order again and takes
//!    the duplicates out ([`GlobalStep::filter`]).
//!
//! Tasks and their order depend on the input files alone, so the result is the same for any number
//! of threads and ranks.

mod books;
mod budget;
mod documents;
mod duplicates;
mod find;
mod lines;
mod page_lines;
mod paragraphs;
mod signatures;
mod spill;
#[cfg(test)]
mod tests;
mod workers;

pub use books::DedupBooksOptions;
pub use budget::{Estimate, MIN_MEMORY, estimate};
pub use documents::{DedupDocumentsOptions, DocumentKey, normalize_url};
pub use page_lines::DedupLinesOptions;
pub use paragraphs::{DedupParagraphsOptions, ParagraphMode};

use std::path::{Path, PathBuf};

use crate::checksum::FileDigest;
use crate::document::Document;
use crate::error::Result;
use crate::progress::Progress;
use crate::step::{StepCounts, Verdict};

/// What can only be decided when all documents of a source have been seen.
pub trait GlobalDecision: Send + Sync {
    /// Starts the signatures of one task, written to `file`, which appears when it is finished.
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    fn signatures(&self, file: &Path) -> Result<Box<dyn Signatures>>;

    /// Reads the signatures of all tasks, in order, and writes one file of decisions per task,
    /// which appears whole: the duplicates among its documents, for a step that removes them.
    /// Returns the digest of each file. Holds at most `resources.memory_bytes` in memory and puts
    /// what does not fit into `resources.spill`.
    ///
    /// # Errors
    /// [`crate::DataError::Io`], or [`crate::DataError::BadFile`] for damaged signatures.
    fn decide(&self, tasks: &[TaskFiles], resources: &Resources<'_>) -> Result<Vec<FileDigest>>;
}

/// A step over all documents of a source, which keeps, changes or drops each.
pub trait GlobalStep: GlobalDecision {
    /// Opens the decisions of one task.
    ///
    /// # Errors
    /// [`crate::DataError::Io`] or [`crate::DataError::BadFile`].
    fn filter(&self, decisions: &Path) -> Result<Box<dyn Filter>>;
}

/// The configuration of a global step, as [`crate::step::StepOptions`] is for the others.
pub trait GlobalStepOptions {
    /// Version of the step. A new one redoes finished work.
    fn version(&self) -> u32;

    /// Checks what the types cannot. `key` is the dotted path of the step.
    ///
    /// # Errors
    /// [`crate::DataError::Config`] naming the key.
    fn validate(&self, key: &str) -> Result<()>;

    /// Makes the step.
    fn build(&self) -> Box<dyn GlobalStep>;
}

/// Writes the signatures of the documents of one task.
pub trait Signatures: Send {
    /// Writes the signature of the next document. `input` is the number of its input file in the
    /// source's sorted list of files.
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    fn add(&mut self, document: &Document, input: u32) -> Result<()>;

    /// Ends the file, makes it appear and returns its digest.
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    fn finish(self: Box<Self>) -> Result<FileDigest>;
}

/// Takes the duplicates out of the documents of one task.
pub trait Filter: Send {
    /// Changes the next document or says why it is dropped. Documents come in the order in which
    /// their signatures were written.
    ///
    /// # Errors
    /// [`crate::DataError::BadFile`] when the decisions are those of other documents.
    fn apply(&mut self, document: &mut Document, counts: &mut StepCounts) -> Result<Verdict>;

    /// Checks that all decisions were used.
    ///
    /// # Errors
    /// [`crate::DataError::BadFile`] when documents are missing.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// The files of one task that a decision over all documents reads and writes.
#[derive(Clone, Debug)]
pub struct TaskFiles {
    /// Written by [`Signatures`], read by [`GlobalDecision::decide`].
    pub signatures: PathBuf,
    /// Written by [`GlobalDecision::decide`], read by [`Filter`].
    pub decisions: PathBuf,
}

/// What [`GlobalDecision::decide`] may use.
#[derive(Clone, Debug)]
pub struct Resources<'a> {
    /// Most memory to hold, in bytes.
    pub memory_bytes: u64,
    /// A folder for temporary files; exists and is empty.
    pub spill: PathBuf,
    /// Hears how far the decision is.
    pub progress: &'a Progress,
}
