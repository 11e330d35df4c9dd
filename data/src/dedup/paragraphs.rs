//! Removes paragraphs that several documents have, as CCNet does.
//!
//! A paragraph is a line. Two are the same when their hashes are: the first 8 bytes of the SHA-1
//! of the normal form (`text::ccnet`). A line that only one document has, however often, is
//! not a duplicate: that document keeps the first one. (facebookresearch/cc_net, `dedup.py`.)

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::documents::owner;
use super::duplicates::Duplicates;
use super::find::{Keeper, find_duplicates};
use super::lines::{LineReasons, kept_lines, lines_of};
use super::signatures::SignatureWriter;
use super::{
    Filter, GlobalDecision, GlobalStep, GlobalStepOptions, Resources, Signatures, TaskFiles,
};
use crate::checksum::FileDigest;
use crate::document::{Document, metadata_text};
use crate::error::{DataError, Result};
use crate::step::{StepCounts, Verdict};
use crate::text::ccnet::{EMPTY_PARAGRAPH, ParagraphHasher};

/// Largest table of hashes that is kept from one document to the next.
const KEPT_HASHES: usize = 1 << 16;

/// Who keeps a paragraph that several documents have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParagraphMode {
    /// Nobody, but only documents of the same `files_per_group` consecutive files are compared:
    /// what the CCNet paper did with 50 shards of 1600.
    #[default]
    Ccnet,
    /// Nobody, with all documents of the source compared.
    Global,
    /// The document with the smallest hash of its id, with all documents of the source compared.
    /// Lines of which the normal form leaves nothing are removed from all of them.
    KeepFirst,
}

/// Removes paragraphs that several documents have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupParagraphsOptions {
    /// `ccnet`, `global` or `keep_first` (string, default `ccnet`): who keeps a paragraph that
    /// several documents have.
    pub mode: ParagraphMode,
    /// For `ccnet`: consecutive input files whose documents are compared (integer, default 50).
    pub files_per_group: u32,
    /// Documents of which fewer characters are left are dropped (integer, default 0: only those
    /// of which no line is left).
    pub min_chars: usize,
}

impl Default for DedupParagraphsOptions {
    fn default() -> Self {
        Self { mode: ParagraphMode::default(), files_per_group: 50, min_chars: 0 }
    }
}

impl GlobalStepOptions for DedupParagraphsOptions {
    fn version(&self) -> u32 {
        1
    }

    fn validate(&self, key: &str) -> Result<()> {
        if self.files_per_group == 0 {
            return Err(DataError::config(format!("{key}.files_per_group"), 0, "1 or more"));
        }
        Ok(())
    }

    fn build(&self) -> Box<dyn GlobalStep> {
        Box::new(self.clone())
    }
}

impl GlobalDecision for DedupParagraphsOptions {
    fn signatures(&self, file: &Path) -> Result<Box<dyn Signatures>> {
        Ok(Box::new(ParagraphSignatures {
            signatures: SignatureWriter::create(file)?,
            without_empty: self.mode == ParagraphMode::KeepFirst,
            hasher: ParagraphHasher::default(),
            seen: HashSet::new(),
            keys: Vec::new(),
        }))
    }

    fn decide(&self, tasks: &[TaskFiles], resources: &Resources<'_>) -> Result<Vec<FileDigest>> {
        match self.mode {
            ParagraphMode::Ccnet => {
                let keeper = Keeper::Nobody { scope: Some(self.files_per_group) };
                find_duplicates::<1, 2>(tasks, keeper, resources)
            }
            ParagraphMode::Global => {
                find_duplicates::<1, 2>(tasks, Keeper::Nobody { scope: None }, resources)
            }
            ParagraphMode::KeepFirst => {
                find_duplicates::<1, 3>(tasks, Keeper::SmallestOwner, resources)
            }
        }
    }
}

impl GlobalStep for DedupParagraphsOptions {
    fn filter(&self, decisions: &Path) -> Result<Box<dyn Filter>> {
        let decisions = Duplicates::open(decisions)?;
        Ok(Box::new(ParagraphFilter { decisions, min_chars: self.min_chars }))
    }
}

struct ParagraphSignatures {
    signatures: SignatureWriter<1>,
    without_empty: bool,
    hasher: ParagraphHasher,
    seen: HashSet<u64>,
    keys: Vec<[u64; 1]>,
}

impl Signatures for ParagraphSignatures {
    fn add(&mut self, document: &Document, input: u32) -> Result<()> {
        self.keys.clear();
        if self.seen.capacity() > KEPT_HASHES {
            self.seen = HashSet::new();
        }
        self.seen.clear();
        if self.without_empty {
            self.seen.insert(EMPTY_PARAGRAPH);
        }
        for line in lines_of(&document.text) {
            let hash = self.hasher.hash(line);
            // Zero: not compared. As in CCNet, a paragraph that hashes to zero never is.
            self.keys.push([if self.seen.insert(hash) { hash } else { 0 }]);
        }
        self.signatures.add_document(input, owner(document), &self.keys)
    }

    fn finish(self: Box<Self>) -> Result<FileDigest> {
        self.signatures.finish()
    }
}

const REASONS: LineReasons = LineReasons {
    duplicate: "duplicate_paragraph",
    repeated: "repeated_in_document",
    empty: Some("empty_paragraph"),
};

struct ParagraphFilter {
    decisions: Duplicates,
    min_chars: usize,
}

impl Filter for ParagraphFilter {
    fn apply(&mut self, document: &mut Document, counts: &mut StepCounts) -> Result<Verdict> {
        let kept = kept_lines(&mut self.decisions, document, owner(document), REASONS)?;
        if kept.ids.is_empty() {
            return Ok(Verdict::unwanted("all_duplicates", format!("{} lines", kept.lines)));
        }
        let chars = kept.text.chars().count();
        if chars < self.min_chars {
            let detail = format!("{chars} characters left, min_chars is {}", self.min_chars);
            return Ok(Verdict::unwanted("too_short", detail));
        }
        kept.count(counts);

        let mut metadata = document.metadata();
        let number = |metadata: &serde_json::Map<String, Value>, key: &str| {
            metadata.get(key).filter(|value| value.is_u64()).cloned()
        };
        let original_lines = number(&metadata, "original_nlines")
            .or_else(|| number(&metadata, "nlines"))
            .unwrap_or_else(|| kept.lines.into());
        let original_length = number(&metadata, "original_length")
            .or_else(|| number(&metadata, "length"))
            .unwrap_or_else(|| document.text.chars().count().into());
        // The numbers of an earlier step count the lines of its input, and so do those kept here.
        let earlier = match metadata.get("line_ids") {
            Some(Value::Array(ids)) if ids.len() == kept.lines => Some(ids),
            _ => None,
        };
        let line_ids: Vec<Value> = kept
            .ids
            .iter()
            .map(|&id| earlier.map_or_else(|| id.into(), |ids| ids[id].clone()))
            .collect();
        metadata.insert("original_nlines".into(), original_lines);
        metadata.insert("original_length".into(), original_length);
        metadata.insert("nlines".into(), line_ids.len().into());
        metadata.insert("length".into(), chars.into());
        metadata.insert("line_ids".into(), line_ids.into());
        document.metadata = Some(metadata_text(metadata));
        document.text = kept.text;
        Ok(Verdict::Keep)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.decisions.finish()
    }
}
