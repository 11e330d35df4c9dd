//! Removes lines that several pages have, as C4 does: one page keeps a line.
//!
//! Lines are compared by a hash (XXH3, 128 bits) of what is left of them stripped and in lower case. The page
//! whose address has the smallest MD5 keeps the line, which no order of pages changes; lines a
//! page repeats are removed too. (tensorflow/datasets, `text/c4_utils.py`, `remove_duplicate_text`; its
//! counters give the reasons their names.)

use std::path::Path;

use md5::{Digest, Md5};
use rustc_hash::FxHashSet;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::documents::normalize_url;
use super::duplicates::Duplicates;
use super::find::{Keeper, find_duplicates};
use super::lines::{LineReasons, kept_lines, lines_of};
use super::signatures::SignatureWriter;
use super::{
    Filter, GlobalDecision, GlobalStep, GlobalStepOptions, Resources, Signatures, TaskFiles,
};
use crate::checksum::FileDigest;
use crate::document::Document;
use crate::error::Result;
use crate::step::{StepCounts, Verdict};
use crate::text::python;
use crate::text::sentences::count_sentences;

/// Removes lines that several pages have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupLinesOptions {
    /// Pages with fewer sentences left are dropped (integer, default 3; 0 keeps all that are not
    /// empty).
    pub min_sentences: usize,
}

impl Default for DedupLinesOptions {
    fn default() -> Self {
        Self { min_sentences: 3 }
    }
}

impl GlobalStepOptions for DedupLinesOptions {
    fn version(&self) -> u32 {
        2
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self) -> Box<dyn GlobalStep> {
        Box::new(self.clone())
    }
}

impl GlobalDecision for DedupLinesOptions {
    fn signatures(&self, file: &Path) -> Result<Box<dyn Signatures>> {
        Ok(Box::new(LineSignatures {
            signatures: SignatureWriter::create(file)?,
            seen: FxHashSet::default(),
            keys: Vec::new(),
            lower: Vec::new(),
        }))
    }

    fn decide(&self, tasks: &[TaskFiles], resources: &Resources<'_>) -> Result<Vec<FileDigest>> {
        find_duplicates::<2, 4>(tasks, Keeper::SmallestOwner, resources)
    }
}

impl GlobalStep for DedupLinesOptions {
    fn filter(&self, decisions: &Path) -> Result<Box<dyn Filter>> {
        let decisions = Duplicates::open(decisions)?;
        Ok(Box::new(LineFilter { decisions, min_sentences: self.min_sentences }))
    }
}

struct LineSignatures {
    signatures: SignatureWriter<2>,
    seen: FxHashSet<[u64; 2]>,
    keys: Vec<[u64; 2]>,
    lower: Vec<u8>,
}

impl Signatures for LineSignatures {
    fn add(&mut self, document: &Document, input: u32) -> Result<()> {
        self.keys.clear();
        if self.seen.capacity() > 1 << 16 {
            self.seen = FxHashSet::default();
        }
        self.seen.clear();
        for line in lines_of(&document.text) {
            let line = python::strip(line);
            self.lower.clear();
            if line.is_ascii() {
                self.lower.extend(line.bytes().map(|byte| byte.to_ascii_lowercase()));
            } else {
                self.lower.extend(line.to_lowercase().as_bytes());
            }
            let hash = xxh3_128(&self.lower);
            let key = [(hash >> 64) as u64, hash as u64];
            self.keys.push(if self.seen.insert(key) { key } else { [0; 2] });
        }
        self.signatures.add_document(input, owner(document), &self.keys)
    }

    fn finish(self: Box<Self>) -> Result<FileDigest> {
        self.signatures.finish()
    }
}

/// The first half of the MD5 of the page's address, in the order of its hexadecimal digits.
fn owner(document: &Document) -> u64 {
    match &document.url {
        Some(url) => md5(normalize_url(url).as_bytes()),
        None => md5(document.id.as_bytes()),
    }
}

/// The first half of the MD5 of `bytes`.
fn md5(bytes: &[u8]) -> u64 {
    let digest: [u8; 16] = Md5::digest(bytes).into();
    (u128::from_be_bytes(digest) >> 64) as u64
}

const REASONS: LineReasons = LineReasons {
    duplicate: "filtered-lines-global_duplicate",
    repeated: "filtered-lines-local_duplicate",
    empty: None,
};

struct LineFilter {
    decisions: Duplicates,
    min_sentences: usize,
}

impl Filter for LineFilter {
    fn apply(&mut self, document: &mut Document, counts: &mut StepCounts) -> Result<Verdict> {
        let kept = kept_lines(&mut self.decisions, document, owner(document), REASONS)?;
        if kept.text.is_empty() {
            let detail = format!("{} lines", kept.lines);
            return Ok(Verdict::unwanted("filtered-deduped_page-empty", detail));
        }
        if self.min_sentences > 0 {
            let sentences = count_sentences(&kept.text);
            if sentences < self.min_sentences {
                let detail =
                    format!("{sentences} sentences left, min_sentences is {}", self.min_sentences);
                return Ok(Verdict::unwanted("filtered-deduped_page-toofewsentences", detail));
            }
        }
        kept.count(counts);
        document.text = kept.text;
        Ok(Verdict::Keep)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.decisions.finish()
    }
}
