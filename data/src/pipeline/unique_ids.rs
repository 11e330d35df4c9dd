//! Ids are unique inside a source: what becomes of a second record of an id.
//!
//! Inside a task, which is a group of files, every record is held against those before it. Over tasks
//! the ids are compared when the source is finished.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::document::{Document, GIVEN_ID, Reason};
use crate::error::{DataError, Result};

/// A record with the id of one before it was dropped.
const DUPLICATE_ID: Reason = Reason::unwanted("duplicate_id");

/// What becomes of a record with the id of one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DuplicateIds {
    /// It gets a suffix: `#2` for the second record of an id.
    #[default]
    Suffix,
    /// It is dropped as `duplicate_id`.
    Drop,
}

impl DuplicateIds {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The ids of a task so far.
pub(super) struct Ids {
    rule: DuplicateIds,
    /// The hash of every id, and how many records came with it.
    seen: HashMap<u128, u64>,
}

impl Ids {
    pub fn new(rule: DuplicateIds) -> Self {
        Self { rule, seen: HashMap::new() }
    }

    /// Makes the id of `document` one of its own. Otherwise the reason and its detail; the id is that
    /// of its own all the same, so that it can be asked for.
    pub fn make_unique(&mut self, document: &mut Document) -> Option<(Reason, String)> {
        let records = self.seen.entry(xxh3_128(document.id.as_bytes())).or_insert(0);
        *records += 1;
        if *records == 1 {
            return None;
        }
        let mut number = *records;
        let id = loop {
            let id = format!("{}#{number}", document.id);
            if let Entry::Vacant(free) = self.seen.entry(xxh3_128(id.as_bytes())) {
                free.insert(1);
                break id;
            }
            number += 1;
        };
        // The next record does not try the numbers that are taken.
        self.seen.insert(xxh3_128(document.id.as_bytes()), number);
        let given = std::mem::replace(&mut document.id, id);
        match self.rule {
            DuplicateIds::Suffix => {
                document.set_metadata(GIVEN_ID, given);
                None
            }
            DuplicateIds::Drop => {
                Some((DUPLICATE_ID, format!("record {number} with the id {given:?}")))
            }
        }
    }

    /// Whether `document` has a suffix.
    pub fn is_suffixed(document: &Document) -> bool {
        document.has_metadata(GIVEN_ID)
    }

    /// Writes the hashes of the ids, sorted, for the comparison with other tasks.
    pub fn write(self, path: &Path) -> Result<FileDigest> {
        let mut seen: Vec<u128> = self.seen.into_keys().collect();
        seen.sort_unstable();
        let mut file = AtomicFile::create(path)?;
        for hash in seen {
            file.write_all(&hash.to_le_bytes()).map_err(DataError::io(path))?;
        }
        file.commit()
    }
}

/// How many ids are in several of the `files` that [`Ids::write`] wrote. Files that are gone are left
/// out: a task that was done before is not done again for them.
pub(super) fn ids_in_several(files: &[std::path::PathBuf]) -> Result<u64> {
    let mut all: Vec<u128> = Vec::new();
    for path in files {
        match std::fs::read(path) {
            Ok(bytes) => {
                let (hashes, _) = bytes.as_chunks::<16>();
                all.extend(hashes.iter().map(|bytes| u128::from_le_bytes(*bytes)));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(DataError::io(path)(error)),
        }
    }
    all.sort_unstable();
    Ok(all.chunk_by(|a, b| a == b).filter(|equal| equal.len() > 1).count() as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn document(id: &str) -> Document {
        Document { id: id.into(), ..Document::default() }
    }

    #[test]
    fn a_second_record_gets_a_suffix_or_a_reason() {
        let mut ids = Ids::new(DuplicateIds::Suffix);
        let mut id = |given: &str| {
            let mut document = document(given);
            assert_eq!(ids.make_unique(&mut document), None);
            (document.id.clone(), Ids::is_suffixed(&document))
        };
        assert_eq!(id("a"), ("a".into(), false));
        assert_eq!(id("a"), ("a#2".into(), true));
        assert_eq!(id("a#2"), ("a#2#2".into(), true));
        assert_eq!(id("a"), ("a#3".into(), true));
        let mut ids = Ids::new(DuplicateIds::Drop);
        assert_eq!(ids.make_unique(&mut document("a")), None);
        let mut second = document("a");
        let (reason, detail) = ids.make_unique(&mut second).unwrap();
        assert_eq!((reason.name(), second.id.as_str()), ("duplicate_id", "a#2"));
        assert!(detail.contains("record 2") && detail.contains("\"a\""), "{detail}");
    }

    #[test]
    fn ids_of_several_tasks_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..3).map(|n| folder.path().join(format!("{n}"))).collect();
        for (path, given) in paths.iter().zip([["a", "b"], ["c", "a"]]) {
            let mut ids = Ids::new(DuplicateIds::Suffix);
            for id in given {
                ids.make_unique(&mut document(id));
            }
            ids.write(path).unwrap();
        }
        assert_eq!(ids_in_several(&paths).unwrap(), 1);
        assert_eq!(ids_in_several(&paths[1..]).unwrap(), 0);
    }
}
