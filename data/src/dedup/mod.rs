//! What can only be decided with all documents of a source in view.
//!
//! A global step runs in three parts. A [`Collector`] per group of input files writes what the
//! decision needs ([`GlobalStep::collector`]); one [`GlobalStep::resolve`] reads the notes of all
//! groups and writes a decision file per group, within a memory cap; an [`Applier`] per group
//! sees the same documents in the same order again and applies the decisions. Groups and their
//! order depend on the input files alone, so the result is the same for any number of threads
//! and ranks.

mod books;
mod documents;
mod lines;
mod page_lines;
mod paragraphs;
mod plan;
mod spill;
#[cfg(test)]
mod tests;
mod unit_decisions;
mod unit_notes;
mod units;
mod workers;

pub use books::DedupBooks;
pub use documents::{DedupDocuments, DocumentKey, normalize_url};
pub use page_lines::DedupLines;
pub use paragraphs::{DedupParagraphs, ParagraphMode};
pub use plan::{Estimate, MIN_MEMORY, estimate};

use std::path::{Path, PathBuf};

use crate::checksum::FileDigest;
use crate::document::Document;
use crate::error::Result;
use crate::progress::Progress;
use crate::step::{StepCounts, Verdict};

/// A step that needs to see all documents of a source.
pub trait GlobalStep: Send + Sync {
    /// Starts the notes of one group, written to `notes` (atomically, when finished).
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    fn collector(&self, notes: &Path) -> Result<Box<dyn Collector>>;

    /// Reads the notes of all groups, in order, and writes one decision file per group,
    /// atomically. Gives what was written, group by group. At most `resources.memory_bytes` are held in memory; what does not fit goes to
    /// `resources.spill`.
    ///
    /// # Errors
    /// [`crate::DataError::Io`], or [`crate::DataError::BadFile`] for damaged notes.
    fn resolve(&self, groups: &[GroupFiles], resources: &Resources<'_>) -> Result<Vec<FileDigest>>;

    /// Opens the decisions of one group.
    ///
    /// # Errors
    /// [`crate::DataError::Io`] or [`crate::DataError::BadFile`].
    fn applier(&self, decisions: &Path) -> Result<Box<dyn Applier>>;
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

/// Notes what the decision needs about the documents of one group.
pub trait Collector: Send {
    /// Looks at the next document. `input` is the number of its input file in the source's
    /// sorted list of files.
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    fn add(&mut self, document: &Document, input: u32) -> Result<()>;

    /// Ends the notes and makes the file appear. Gives what was written.
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    fn finish(self: Box<Self>) -> Result<FileDigest>;
}

/// Applies the decisions of one group.
pub trait Applier: Send {
    /// Changes the next document or says why it is dropped. Documents come in the order in which
    /// the collector saw them.
    ///
    /// # Errors
    /// [`crate::DataError::BadFile`] when the decisions are of other documents.
    fn apply(&mut self, document: &mut Document, counts: &mut StepCounts) -> Result<Verdict>;

    /// Checks that all decisions were used.
    ///
    /// # Errors
    /// [`crate::DataError::BadFile`] when documents are missing.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// The files of one group in [`GlobalStep::resolve`].
#[derive(Clone, Debug)]
pub struct GroupFiles {
    /// What the collector wrote.
    pub notes: PathBuf,
    /// What the applier will read.
    pub decisions: PathBuf,
}

/// What [`GlobalStep::resolve`] may use.
#[derive(Clone, Debug)]
pub struct Resources<'a> {
    /// Most memory to hold, in bytes.
    pub memory_bytes: u64,
    /// A folder for temporary files; exists and is empty.
    pub spill: PathBuf,
    /// Hears how far the decision is.
    pub progress: &'a Progress,
}
