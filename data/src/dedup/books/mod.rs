//! Removes books of which more than a share is in a longer book.
//!
//! Overlap is containment of shingles: |A ∩ B| / min(|A|, |B|) of the sets of runs of 13 words.
//! It finds a book inside an omnibus, which a similarity of whole books (Jaccard, SimHash) does
//! not. LLaMA (arXiv 2302.13971, section 2.1) removes "books with more than 90% content overlap"
//! and leaves the method open.
//!
//! Books are taken from the longest to the shortest (of equals, the smallest id first); one is
//! dropped if more than `threshold` of it is in a book that stays. So no two books that stay overlap
//! by more, each dropped book does so with one that stays, and the order of the input does not
//! matter.

mod containment;
mod signatures;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Filter, GlobalDecision, GlobalStep, GlobalStepOptions, Resources, Signatures, TaskFiles,
};
use crate::checksum::FileDigest;
use crate::document::Document;
use crate::error::{DataError, Result};
use crate::step::{StepCounts, Verdict};
use crate::text::word_ngrams::Words;
use signatures::BookSignatureWriter;

/// Removes books of which more than a share is in a longer book.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupBooksOptions {
    /// Share of a book's shingles, from 0.5 to below 1; a book is dropped if more than that are in a
    /// longer one (number, default 0.9).
    pub threshold: f64,
    /// Words in a shingle (integer, default 13).
    pub shingle_words: usize,
}

impl Default for DedupBooksOptions {
    fn default() -> Self {
        Self { threshold: 0.9, shingle_words: 13 }
    }
}

impl GlobalStepOptions for DedupBooksOptions {
    fn version(&self) -> u32 {
        1
    }

    fn validate(&self, key: &str) -> Result<()> {
        if !(0.5..1.0).contains(&self.threshold) {
            return Err(DataError::config(
                format!("{key}.threshold"),
                self.threshold,
                "0.5 or more and below 1",
            ));
        }
        if !(1..=1000).contains(&self.shingle_words) {
            return Err(DataError::config(
                format!("{key}.shingle_words"),
                self.shingle_words,
                "1 to 1000",
            ));
        }
        Ok(())
    }

    fn build(&self) -> Box<dyn GlobalStep> {
        Box::new(self.clone())
    }
}

impl GlobalDecision for DedupBooksOptions {
    fn signatures(&self, file: &Path) -> Result<Box<dyn Signatures>> {
        Ok(Box::new(BookSignatures {
            signatures: BookSignatureWriter::create(file)?,
            shingle_words: self.shingle_words,
            words: Words::default(),
        }))
    }

    fn decide(&self, tasks: &[TaskFiles], resources: &Resources<'_>) -> Result<Vec<FileDigest>> {
        containment::find_duplicates(tasks, self.threshold, resources)
    }
}

impl GlobalStep for DedupBooksOptions {
    fn filter(&self, decisions: &Path) -> Result<Box<dyn Filter>> {
        let file = File::open(decisions).map_err(DataError::io(decisions))?;
        Ok(Box::new(BookFilter { path: decisions.to_owned(), reader: BufReader::new(file) }))
    }
}

/// What becomes of a book: a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BookDecision {
    /// Id of the book.
    id: String,
    /// The book that has most of it, if it is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duplicate_of: Option<String>,
    /// Shingles of the book.
    shingles: u64,
    /// Shingles both books have.
    shared: u64,
}

struct BookSignatures {
    signatures: BookSignatureWriter,
    shingle_words: usize,
    words: Words,
}

impl Signatures for BookSignatures {
    fn add(&mut self, document: &Document, _input: u32) -> Result<()> {
        self.words.read(&document.text);
        // A text of fewer words is one shingle.
        let words = self.shingle_words.min(self.words.len());
        let mut shingles: Vec<u64> = self.words.ngrams(words).collect();
        shingles.sort_unstable();
        shingles.dedup();
        self.signatures.book(&document.id, &shingles)
    }

    fn finish(self: Box<Self>) -> Result<FileDigest> {
        self.signatures.finish()
    }
}

struct BookFilter {
    path: PathBuf,
    reader: BufReader<File>,
}

impl BookFilter {
    fn next(&mut self) -> Result<Option<BookDecision>> {
        let mut line = String::new();
        self.reader.read_line(&mut line).map_err(DataError::io(&self.path))?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&line).map_err(|error| DataError::bad_file(&self.path, error))
    }

    fn of_other_documents(&self, found: &str) -> DataError {
        DataError::bad_file(
            &self.path,
            format!(
                "the decisions are of other documents: {found}; delete the file and run the step \
                 again"
            ),
        )
    }
}

impl Filter for BookFilter {
    fn apply(&mut self, document: &mut Document, _counts: &mut StepCounts) -> Result<Verdict> {
        let decision = match self.next()? {
            Some(decision) if decision.id == document.id => decision,
            Some(other) => {
                let found = format!("{:?} in place of {:?}", other.id, document.id);
                return Err(self.of_other_documents(&found));
            }
            None => return Err(self.of_other_documents(&format!("none for {:?}", document.id))),
        };
        let Some(other) = decision.duplicate_of else {
            return Ok(Verdict::Keep);
        };
        let share = decision.shared as f64 / decision.shingles.max(1) as f64;
        let detail = format!("dup_of {other}: it has {:.2}% of this book", 100.0 * share);
        Ok(Verdict::unwanted("contained_in_other_book", detail))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        match self.next()? {
            Some(left) => Err(self.of_other_documents(&format!("{:?} did not come", left.id))),
            None => Ok(()),
        }
    }
}
