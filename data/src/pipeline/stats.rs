//! Counters of a step. They merge by plain addition.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::document::Reason;
use crate::error::{DataError, Result};

/// What went into a step, what came out and what was dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepStats {
    /// Documents that entered.
    pub docs_in: u64,
    /// Documents that left.
    pub docs_out: u64,
    /// Bytes of the records that entered.
    pub bytes_in: u64,
    /// Bytes of text that left.
    pub bytes_out: u64,
    /// Characters (code points) of text that left.
    pub chars_out: u64,
    /// Documents not wanted, by reason.
    pub dropped_docs: BTreeMap<String, u64>,
    /// Broken records, by kind. Each costs one document.
    pub errors: BTreeMap<String, u64>,
}

impl StepStats {
    /// Counts a document that leaves as `text`, `bytes_in` long when it came.
    pub fn keep(&mut self, bytes_in: u64, text: &str) {
        self.docs_in += 1;
        self.docs_out += 1;
        self.bytes_in += bytes_in;
        self.bytes_out += text.len() as u64;
        self.chars_out += text.chars().count() as u64;
    }

    /// Counts a record that does not leave.
    pub fn reject(&mut self, reason: Reason, bytes_in: u64) {
        self.docs_in += 1;
        self.bytes_in += bytes_in;
        let counts = if reason.is_error() { &mut self.errors } else { &mut self.dropped_docs };
        *counts.entry(reason.name().to_owned()).or_default() += 1;
    }

    /// Adds the counts of another part of the same step.
    pub fn merge(&mut self, other: &Self) {
        // The counts may come from a file, so they may be anything.
        let add = |to: &mut u64, count: u64| *to = to.saturating_add(count);
        add(&mut self.docs_in, other.docs_in);
        add(&mut self.docs_out, other.docs_out);
        add(&mut self.bytes_in, other.bytes_in);
        add(&mut self.bytes_out, other.bytes_out);
        add(&mut self.chars_out, other.chars_out);
        for (name, count) in &other.dropped_docs {
            add(self.dropped_docs.entry(name.clone()).or_default(), *count);
        }
        for (name, count) in &other.errors {
            add(self.errors.entry(name.clone()).or_default(), *count);
        }
    }

    /// Documents that did not leave.
    pub fn dropped(&self) -> u64 {
        let counts = self.dropped_docs.values().chain(self.errors.values());
        counts.fold(0, |sum: u64, &count| sum.saturating_add(count))
    }

    /// Checks in = out + dropped.
    ///
    /// # Errors
    /// [`DataError::Counters`] naming `path`.
    pub fn check(&self, path: &Path) -> Result<()> {
        let sum = self
            .dropped_docs
            .values()
            .chain(self.errors.values())
            .try_fold(self.docs_out, |sum, &count| sum.checked_add(count));
        if sum == Some(self.docs_in) {
            return Ok(());
        }
        Err(DataError::Counters {
            path: path.to_owned(),
            documents_in: self.docs_in,
            documents_out: self.docs_out,
            dropped: sum.map_or(u64::MAX, |sum| sum - self.docs_out),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn counts_merge_and_add_up() {
        let mut first = StepStats::default();
        first.keep(4, "höh");
        first.reject(Reason::BAD_UTF8, 7);
        let mut second = StepStats::default();
        second.reject(Reason::EMPTY, 1);
        second.reject(Reason::BAD_UTF8, 2);
        first.merge(&second);
        assert_eq!((first.docs_in, first.docs_out, first.dropped()), (4, 1, 3));
        assert_eq!((first.bytes_in, first.bytes_out, first.chars_out), (14, 4, 3));
        assert_eq!(first.errors["bad_utf8"], 2);
        first.check(Path::new("stats.json")).unwrap();
    }

    #[test]
    fn counts_that_do_not_add_up_are_an_error() {
        let mut stats = StepStats::default();
        stats.keep(1, "a");
        stats.docs_in += 1;
        assert!(matches!(stats.check(Path::new("x")), Err(DataError::Counters { .. })));
        stats.errors.insert("bad_utf8".into(), u64::MAX);
        assert!(matches!(stats.check(Path::new("x")), Err(DataError::Counters { .. })));
    }
}
