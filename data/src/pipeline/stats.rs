//! Counters of a step, which merge by addition, and the one place where a document goes through a
//! step and is counted.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dedup::Filter;
use crate::document::{Document, Reason};
use crate::error::{DataError, Result};
use crate::step::{LostTemplate, Removed, Step, StepCounts, Verdict};

/// What went into a step, what came out, and what became of the rest, by reason.
///
/// `docs_in = docs_out + dropped_docs + errors` and
/// `bytes_in = bytes_out + dropped_bytes + removed bytes + rewritten_bytes`.
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
    /// Bytes of the documents in `dropped_docs` and `errors`, by reason.
    pub dropped_bytes: BTreeMap<String, u64>,
    /// Parts taken out of documents that stay, by reason.
    pub removed: BTreeMap<String, Removed>,
    /// Bytes by which documents that stay became shorter (negative: longer) for other reasons
    /// than parts taken out: decoded entities, expanded macros.
    pub rewritten_bytes: i64,
    /// Other counts: histogram bins, documents of a language.
    pub noted: BTreeMap<String, u64>,
    /// Templates of wikitext that were taken out of sentences, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost_templates: BTreeMap<String, LostTemplate>,
    /// Time the processor spent on the step.
    pub cpu_seconds: f64,
}

/// Different templates that are counted by name; those that come later are in the sum alone.
const MOST_TEMPLATES: usize = 10_000;

impl StepStats {
    /// Counts a document that leaves as `text`, `bytes_in` long when it came, of which
    /// `removed_bytes` were counted as taken out.
    pub fn keep(&mut self, bytes_in: u64, removed_bytes: u64, text: &str) {
        self.docs_in += 1;
        self.docs_out += 1;
        self.bytes_in += bytes_in;
        self.bytes_out += text.len() as u64;
        self.chars_out += count_chars(text);
        self.rewritten_bytes += bytes_in as i64 - removed_bytes as i64 - text.len() as i64;
    }

    /// Counts a record that does not leave. `bytes_in` is what entered, `removed_bytes` what was
    /// counted as taken out before it was dropped.
    pub fn reject(&mut self, reason: &Reason, bytes_in: u64, removed_bytes: u64) {
        self.docs_in += 1;
        self.bytes_in += bytes_in;
        let counts = if reason.is_error() { &mut self.errors } else { &mut self.dropped_docs };
        add_to(counts, reason.name(), 1);
        let left = bytes_in.saturating_sub(removed_bytes);
        self.rewritten_bytes += bytes_in as i64 - removed_bytes as i64 - left as i64;
        add_to(&mut self.dropped_bytes, reason.name(), left);
    }

    /// Adds one to the count `name`.
    pub fn note(&mut self, name: &str) {
        add_to(&mut self.noted, name, 1);
    }

    /// Adds what the step itself counted.
    fn add_counts(&mut self, counts: &StepCounts) {
        for (name, removed) in counts.removed() {
            add_removed(&mut self.removed, name, removed);
        }
        for (name, count) in &counts.noted {
            add_to(&mut self.noted, name, *count);
        }
        self.add_templates(counts.lost_templates());
    }

    fn add_templates(&mut self, lost: &BTreeMap<String, LostTemplate>) {
        for (name, lost) in lost {
            let room = self.lost_templates.len() < MOST_TEMPLATES;
            match self.lost_templates.get_mut(name) {
                Some(known) => known.count = known.count.saturating_add(lost.count),
                None if room => {
                    self.lost_templates.insert(name.clone(), lost.clone());
                }
                None => {}
            }
        }
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
        for (to, from) in [
            (&mut self.dropped_docs, &other.dropped_docs),
            (&mut self.errors, &other.errors),
            (&mut self.dropped_bytes, &other.dropped_bytes),
            (&mut self.noted, &other.noted),
        ] {
            for (name, count) in from {
                add_to(to, name, *count);
            }
        }
        for (name, removed) in &other.removed {
            add_removed(&mut self.removed, name, removed);
        }
        self.add_templates(&other.lost_templates);
        self.rewritten_bytes = self.rewritten_bytes.saturating_add(other.rewritten_bytes);
        self.cpu_seconds += other.cpu_seconds;
    }

    /// Documents that did not leave.
    pub fn dropped(&self) -> u64 {
        let counts = self.dropped_docs.values().chain(self.errors.values());
        counts.fold(0, |sum: u64, &count| sum.saturating_add(count))
    }

    /// Checks that documents and bytes in = out + what became of the rest.
    ///
    /// # Errors
    /// [`DataError::Counters`] naming `path`.
    pub fn check(&self, path: &Path) -> Result<()> {
        let documents = self
            .dropped_docs
            .values()
            .chain(self.errors.values())
            .try_fold(self.docs_out, |sum, &count| sum.checked_add(count));
        if documents != Some(self.docs_in) {
            return Err(DataError::Counters {
                path: path.to_owned(),
                unit: "documents",
                counted_in: self.docs_in,
                counted_out: self.docs_out,
                rest: documents.map_or(u64::MAX, |sum| sum - self.docs_out),
            });
        }
        let gone: i128 = self.dropped_bytes.values().map(|&bytes| i128::from(bytes)).sum::<i128>()
            + self.removed.values().map(|removed| i128::from(removed.bytes)).sum::<i128>()
            + i128::from(self.rewritten_bytes);
        if i128::from(self.bytes_out) + gone != i128::from(self.bytes_in) {
            return Err(DataError::Counters {
                path: path.to_owned(),
                unit: "bytes",
                counted_in: self.bytes_in,
                counted_out: self.bytes_out,
                rest: u64::try_from(gone).unwrap_or(0),
            });
        }
        Ok(())
    }
}

/// Sends `document` through `step` and counts in `stats` what became of it.
pub(super) fn run_step(step: &dyn Step, document: &mut Document, stats: &mut StepStats) -> Verdict {
    let apply = |document: &mut Document, counts: &mut StepCounts| {
        Ok::<_, Infallible>(step.apply(document, counts))
    };
    let Ok(verdict) = counted(apply, document, stats);
    verdict
}

/// Sends `document` through the filter of a step over all documents and counts in `stats` what
/// became of it.
pub(super) fn run_filter(
    filter: &mut dyn Filter,
    document: &mut Document,
    stats: &mut StepStats,
) -> Result<Verdict> {
    counted(|document, counts| filter.apply(document, counts), document, stats)
}

/// Applies a step to `document` and counts its verdict and what it took out of the text.
fn counted<E>(
    apply: impl FnOnce(&mut Document, &mut StepCounts) -> std::result::Result<Verdict, E>,
    document: &mut Document,
    stats: &mut StepStats,
) -> std::result::Result<Verdict, E> {
    let bytes_in = document.text.len() as u64;
    let mut counts = StepCounts::default();
    let verdict = apply(document, &mut counts)?;
    match &verdict {
        Verdict::Keep => stats.keep(bytes_in, counts.removed_bytes(), &document.text),
        Verdict::Drop { reason, .. } => stats.reject(reason, bytes_in, counts.removed_bytes()),
    }
    stats.add_counts(&counts);
    Ok(verdict)
}

fn add_to(counts: &mut BTreeMap<String, u64>, name: &str, count: u64) {
    match counts.get_mut(name) {
        Some(known) => *known = known.saturating_add(count),
        None => {
            counts.insert(name.to_owned(), count);
        }
    }
}

fn add_removed(counts: &mut BTreeMap<String, Removed>, name: &str, removed: &Removed) {
    let known = counts.entry(name.to_owned()).or_default();
    known.parts = known.parts.saturating_add(removed.parts);
    known.bytes = known.bytes.saturating_add(removed.bytes);
}

/// Code points of `text`: bytes that do not continue one.
fn count_chars(text: &str) -> u64 {
    text.bytes().filter(|&byte| byte & 0xc0 != 0x80).count() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn counts_merge_and_add_up() {
        let mut first = StepStats::default();
        let mut counts = StepCounts::default();
        counts.remove("lines", 3);
        first.add_counts(&counts);
        first.keep(9, 3, "höh");
        first.reject(&Reason::BAD_UTF8, 7, 0);
        let mut second = StepStats::default();
        second.reject(&Reason::EMPTY, 1, 0);
        second.reject(&Reason::BAD_UTF8, 2, 0);
        second.keep(1, 0, "longer");
        first.merge(&second);
        assert_eq!((first.docs_in, first.docs_out, first.dropped()), (5, 2, 3));
        assert_eq!((first.bytes_in, first.bytes_out, first.chars_out), (20, 10, 9));
        assert_eq!((first.errors["bad_utf8"], first.dropped_bytes["bad_utf8"]), (2, 9));
        assert_eq!((first.removed["lines"].bytes, first.rewritten_bytes), (3, 2 - 5));
        first.check(Path::new("stats.json")).unwrap();
    }

    #[test]
    fn counts_that_do_not_add_up_are_an_error() {
        let mut stats = StepStats::default();
        stats.keep(1, 0, "a");
        stats.docs_in += 1;
        assert!(matches!(stats.check(Path::new("x")), Err(DataError::Counters { .. })));
        stats.docs_in -= 1;
        stats.bytes_out += 1;
        assert!(matches!(stats.check(Path::new("x")), Err(DataError::Counters { .. })));
        stats.errors.insert("bad_utf8".into(), u64::MAX);
        assert!(matches!(stats.check(Path::new("x")), Err(DataError::Counters { .. })));
    }
}
