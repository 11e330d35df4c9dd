//! Which documents are held out for validation.
//!
//! A document's side depends on the hash of its id and the seed alone, so it does not move when
//! other documents come or go. The documents with the smallest hashes are held out, up to a cut:
//! for a fraction the cut is known; for a number of bytes it is decided, as in a step over all
//! documents, from signatures of all that reach the end.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::dedup::{GlobalDecision, Resources, Signatures, TaskFiles};
use crate::document::{Document, RUN_AGAIN, Split};
use crate::error::{DataError, Result};
use crate::json_file::{read_json, write_json};

/// Into so many documents a source is advised to be cut when it has too few.
const PARTS: u64 = 100;

/// Which documents are held out. With neither field none are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoldoutConfig {
    /// Bytes of text to hold out of every source, rounded up to whole documents (integer, default
    /// none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_source: Option<u64>,
    /// Share of the documents to hold out, above 0 and below 1 (number, default none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Another seed holds out other documents (integer, default 1).
    pub seed: u64,
}

impl Default for HoldoutConfig {
    fn default() -> Self {
        Self { bytes_per_source: None, fraction: None, seed: 1 }
    }
}

impl HoldoutConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`DataError::Config`].
    pub fn validate(&self) -> Result<()> {
        if self.bytes_per_source.is_some() && self.fraction.is_some() {
            return Err(DataError::config(
                "holdout",
                "both `bytes_per_source` and `fraction`",
                "one of them",
            ));
        }
        if self.bytes_per_source == Some(0) {
            return Err(DataError::config("holdout.bytes_per_source", 0, "1 or more"));
        }
        match self.fraction {
            Some(fraction) if !(fraction > 0.0 && fraction < 1.0) => {
                Err(DataError::config("holdout.fraction", fraction, "above 0 and below 1"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn is_some(&self) -> bool {
        self.bytes_per_source.is_some() || self.fraction.is_some()
    }

    /// The cut, where it does not depend on the documents.
    pub(super) fn known_cut(&self) -> Cut {
        let below = self.fraction.map_or(0, |fraction| (fraction * u64::MAX as f64) as u64);
        Cut { seed: self.seed, below }
    }

    /// The error when one side gets none of the `documents` of source `name`, which have `bytes`
    /// in all. `held` is how many would be held out.
    pub(super) fn impossible(
        &self,
        name: &str,
        documents: u64,
        bytes: u64,
        held: u64,
    ) -> DataError {
        let wanted = match (self.bytes_per_source, self.fraction) {
            (Some(bytes), _) => format!("{bytes} bytes"),
            (_, Some(fraction)) => format!("a share of {fraction}"),
            _ => "nothing".into(),
        };
        let part = (bytes / PARTS).max(1);
        let cut = format!(
            "cut the files into more documents, with `document_bytes: {part}` in the `text` of \
             the source for example, or with `document_separator`"
        );
        let advice = match (self.fraction, held) {
            _ if documents < 2 => cut,
            (Some(fraction), 0) => format!(
                "set `holdout.bytes_per_source: {}` instead of `fraction`, which holds out whole \
                 documents up to that size, set a larger `fraction`, or {cut}",
                ((fraction * bytes as f64) as u64).max(1)
            ),
            (Some(_), _) => format!("set a smaller `holdout.fraction`, or {cut}"),
            (None, _) => format!("set a smaller `holdout.bytes_per_source`, or {cut}"),
        };
        DataError::Holdout { name: name.to_owned(), wanted, documents, bytes, advice }
    }
}

/// Where one source is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cut {
    seed: u64,
    /// Documents whose hash is below are held out.
    below: u64,
}

impl Cut {
    pub fn split(self, document: &Document) -> Split {
        if self.hash(&document.id) < self.below { Split::Validation } else { Split::Train }
    }

    fn hash(self, id: &str) -> u64 {
        // The largest value stays free, so that "below" can include every hash.
        xxh3_64_with_seed(id.as_bytes(), self.seed).min(u64::MAX - 1)
    }

    /// The cut that [`Holdout`] decided on.
    pub fn read(path: &Path) -> Result<Self> {
        read_json(path, RUN_AGAIN)
    }
}

/// Decides where to cut one source so that a number of bytes is held out.
pub(super) struct Holdout {
    config: HoldoutConfig,
    /// Name of the source and the folder of its documents, for messages.
    source: String,
    output: PathBuf,
}

impl Holdout {
    pub fn new(config: &HoldoutConfig, source: &str, output: &Path) -> Self {
        Self { config: config.clone(), source: source.to_owned(), output: output.to_owned() }
    }
}

impl GlobalDecision for Holdout {
    fn signatures(&self, file: &Path) -> Result<Box<dyn Signatures>> {
        Ok(Box::new(HoldoutSignatures {
            file: AtomicFile::create(file)?,
            path: file.to_owned(),
            probe: Cut { seed: self.config.seed, below: 0 },
        }))
    }

    /// Writes the same [`Cut`] for every task.
    fn decide(&self, tasks: &[TaskFiles], resources: &Resources<'_>) -> Result<Vec<FileDigest>> {
        let mut smallest = Smallest::new(self.config.bytes_per_source.unwrap_or(0));
        resources.progress.begin(tasks.len() as u64);
        for TaskFiles { signatures: path, .. } in tasks {
            let signatures = std::fs::read(path).map_err(DataError::io(path))?;
            let (numbers, rest) = signatures.as_chunks::<8>();
            if !rest.is_empty() || numbers.len() % 2 != 0 {
                return Err(DataError::bad_file(path, "cut short; delete it and run again"));
            }
            for pair in numbers.chunks_exact(2) {
                smallest.add(u64::from_le_bytes(pair[0]), u64::from_le_bytes(pair[1]));
            }
            resources.progress.add(1);
        }
        if smallest.documents == 0 {
            let (name, path) = (self.source.clone(), self.output.clone());
            return Err(DataError::NothingLeft { name, path });
        }
        let below = smallest.cut().ok_or_else(|| {
            self.config.impossible(&self.source, smallest.documents, smallest.bytes, 0)
        })?;
        let cut = Cut { seed: self.config.seed, below };
        tasks.iter().map(|files| Ok(write_json(&files.decisions, &cut)?.file)).collect()
    }
}

/// Writes the hash and length of every document: 16 bytes each.
struct HoldoutSignatures {
    file: AtomicFile,
    path: PathBuf,
    probe: Cut,
}

impl Signatures for HoldoutSignatures {
    fn add(&mut self, document: &Document, _input: u32) -> Result<()> {
        let numbers = [self.probe.hash(&document.id), document.text.len() as u64];
        numbers
            .iter()
            .try_for_each(|number| self.file.write_all(&number.to_le_bytes()))
            .map_err(DataError::io(&self.path))
    }

    fn finish(self: Box<Self>) -> Result<FileDigest> {
        self.file.commit()
    }
}

/// The documents with the smallest hashes, as many as reach `target` bytes.
struct Smallest {
    target: u64,
    /// Hash and bytes; more than needed between two prunings.
    kept: Vec<(u64, u64)>,
    prune_at: usize,
    documents: u64,
    bytes: u64,
}

impl Smallest {
    fn new(target: u64) -> Self {
        Self { target, kept: Vec::new(), prune_at: 1024, documents: 0, bytes: 0 }
    }

    fn add(&mut self, hash: u64, bytes: u64) {
        self.documents += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.kept.push((hash, bytes));
        if self.kept.len() >= self.prune_at {
            self.prune();
            self.prune_at = (self.kept.len() * 2).max(1024);
        }
    }

    fn prune(&mut self) {
        self.kept.sort_unstable();
        let mut sum = 0u64;
        let enough = self.kept.iter().position(|(_, bytes)| {
            sum = sum.saturating_add(*bytes);
            sum >= self.target
        });
        if let Some(last) = enough {
            self.kept.truncate(last + 1);
        }
    }

    /// The hash below which documents are held out; none if that would be all documents or if
    /// the target cannot be reached.
    fn cut(&mut self) -> Option<u64> {
        self.prune();
        let bytes = self.kept.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let all = self.kept.len() as u64 == self.documents;
        match self.kept.last() {
            Some(&(hash, _)) if bytes >= self.target && !all => Some(hash + 1),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_hashes_reach_the_target_in_any_order() {
        let documents: Vec<(u64, u64)> = (0..5000u64)
            .map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15), 10 + index % 7))
            .collect();
        let cut = |documents: &mut dyn Iterator<Item = &(u64, u64)>| {
            let mut all = Smallest::new(1000);
            documents.for_each(|&(hash, bytes)| all.add(hash, bytes));
            all.cut().unwrap()
        };
        let below = cut(&mut documents.iter());
        assert_eq!(below, cut(&mut documents.iter().rev()));
        let held: u64 = documents.iter().filter(|d| d.0 < below).map(|d| d.1).sum();
        assert!((1000..1020).contains(&held), "{held}");
    }

    #[test]
    fn both_sides_need_a_document() {
        let mut one = Smallest::new(5);
        one.add(7, 100);
        assert_eq!(one.cut(), None);
        one.add(9, 100);
        assert_eq!(one.cut(), Some(8));
        let mut small = Smallest::new(500);
        small.add(1, 100);
        small.add(2, 100);
        assert_eq!(small.cut(), None);
    }
}
