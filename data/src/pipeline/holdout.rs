//! Which documents are held out for validation.
//!
//! A document's side depends on the hash of its id and the seed alone, so it does not move when
//! other documents come or go. The documents with the smallest hashes are held out, up to a cut:
//! for a fraction the cut is known; for a number of bytes a first pass over the source finds it.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::group::Group;
use super::write_json;
use crate::document::{Document, Split};
use crate::error::{DataError, Result};
use crate::progress::{Progress, ProgressMode};
use crate::source::Record;

/// Which documents are held out. With neither field none are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldoutConfig {
    /// Bytes of text to hold out of every source, rounded up to whole documents (integer, default
    /// none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_source: Option<u64>,
    /// Share of the documents to hold out, above 0 and below 1 (number, default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Another seed holds out other documents (integer, default 1).
    #[serde(default = "default_seed")]
    pub seed: u64,
}

fn default_seed() -> u64 {
    1
}

impl Default for HoldoutConfig {
    fn default() -> Self {
        Self { bytes_per_source: None, fraction: None, seed: default_seed() }
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

    pub(super) fn describe(&self) -> String {
        match (self.bytes_per_source, self.fraction) {
            (Some(bytes), _) => format!("{bytes} bytes"),
            (_, Some(fraction)) => format!("a share of {fraction}"),
            _ => "nothing".into(),
        }
    }
}

/// The decision for one source.
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
}

/// The cut of every source, by name.
pub(super) fn cuts(
    output: &Path,
    config: &HoldoutConfig,
    groups: &[Group<'_>],
    progress: ProgressMode,
) -> Result<BTreeMap<String, Cut>> {
    let mut cuts = BTreeMap::new();
    let names: Vec<&str> = groups.iter().map(|group| group.source.name.as_str()).collect();
    for (first, name) in names.iter().enumerate() {
        if names[..first].contains(name) {
            continue;
        }
        let below = match (config.bytes_per_source, config.fraction) {
            (Some(target), _) => {
                let groups: Vec<_> =
                    groups.iter().filter(|group| group.source.name == *name).collect();
                bytes_cut(output, name, target, config, &groups, progress)?
            }
            (None, Some(fraction)) => (fraction * u64::MAX as f64) as u64,
            (None, None) => 0,
        };
        let cut = Cut { seed: config.seed, below };
        cuts.insert((*name).to_owned(), cut);
    }
    Ok(cuts)
}

/// A finished first pass, so that a rerun does not repeat it.
#[derive(Serialize, Deserialize)]
struct Remembered {
    key: String,
    below: u64,
}

/// The first pass over a source: where to cut so that `target` bytes are held out.
fn bytes_cut(
    output: &Path,
    name: &str,
    target: u64,
    config: &HoldoutConfig,
    groups: &[&Group<'_>],
    progress: ProgressMode,
) -> Result<u64> {
    let path = output.join("stats").join("holdout").join(format!("{name}.json"));
    let mut key = blake3::Hasher::new();
    key.update(&target.to_le_bytes());
    key.update(&config.seed.to_le_bytes());
    for group in groups {
        key.update(group.inputs_key().as_bytes());
    }
    let key = key.finalize().to_hex().to_string();
    let remembered = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
    if let Some(remembered) = remembered.filter(|remembered| remembered.key == key) {
        return Ok(remembered.below);
    }

    let total = groups.iter().map(|group| group.bytes()).sum();
    let progress = Progress::new(progress, "holdout", total, groups.len() as u64);
    let probe = Cut { seed: config.seed, below: 0 };
    let parts: Vec<Smallest> = groups
        .par_iter()
        .map(|group| {
            let mut smallest = Smallest::new(target);
            for input in &group.inputs {
                group.source.read(input, &|bytes| progress.add_bytes(bytes), &mut |record| {
                    if let Record::Document(document) = record {
                        smallest.add(probe.hash(&document.id), document.text.len() as u64);
                    }
                    Ok(())
                })?;
            }
            Ok(smallest)
        })
        .collect::<Result<_>>()?;
    let mut smallest = Smallest::new(target);
    for part in parts {
        smallest.merge(part);
    }
    progress.finish(&format!("{name}: cut found"));
    let below = smallest.cut().ok_or_else(|| DataError::Holdout {
        name: name.to_owned(),
        wanted: config.describe(),
        documents: smallest.documents,
        bytes: smallest.bytes,
    })?;
    write_json(&path, &Remembered { key, below })?;
    Ok(below)
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
        self.bytes += bytes;
        self.kept.push((hash, bytes));
        if self.kept.len() >= self.prune_at {
            self.prune();
            self.prune_at = (self.kept.len() * 2).max(1024);
        }
    }

    fn merge(&mut self, other: Self) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.kept.extend(other.kept);
        self.prune();
    }

    fn prune(&mut self) {
        self.kept.sort_unstable();
        let mut sum = 0;
        let enough = self.kept.iter().position(|(_, bytes)| {
            sum += bytes;
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
        let bytes: u64 = self.kept.iter().map(|(_, bytes)| bytes).sum();
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
        let cut = |parts: usize| {
            let mut all = Smallest::new(1000);
            for part in documents.chunks(documents.len().div_ceil(parts)) {
                let mut smallest = Smallest::new(1000);
                for &(hash, bytes) in part {
                    smallest.add(hash, bytes);
                }
                all.merge(smallest);
            }
            all.cut().unwrap()
        };
        assert_eq!(cut(1), cut(7));
        let below = cut(1);
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
