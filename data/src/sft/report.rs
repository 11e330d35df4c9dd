//! What was read, and what became of it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::conversation::Dropped;

/// The account of all examples: in = used + held out + dropped by reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SftReport {
    /// Records read.
    pub examples: u64,
    /// Of them trained on.
    pub used: u64,
    /// Of them held out.
    pub held_out: u64,
    /// Of them dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Messages taken off: an assistant's at the beginning of a conversation, a user's at the end.
    pub removed_messages: u64,
    /// Keys of records that are not read, and how many records had each.
    pub ignored_keys: BTreeMap<String, u64>,
    /// Tokens of the examples used and held out.
    pub tokens: u64,
    /// Of them trained.
    pub trained_tokens: u64,
    /// Examples that were cut at `max_length`.
    pub cut_examples: u64,
    /// Tokens cut off them.
    pub cut_tokens: u64,
    /// Tokens that begin before a response and end in it; they are not trained.
    pub straddling: u64,
    /// Lengths of the examples used and held out.
    pub lengths: Lengths,
    /// Rows of the first epoch, empty ones included.
    pub rows: u64,
    /// Share of the places in those rows that are padding, 0 to 1.
    pub padding: f64,
    /// Optimizer steps of the run.
    pub steps: u64,
}

/// Percentiles of the lengths of examples, in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// A tenth is not longer.
    pub p10: usize,
    /// Half is not longer.
    pub p50: usize,
    /// Nine tenths are not longer.
    pub p90: usize,
    /// 99 of 100 are not longer.
    pub p99: usize,
    /// The longest.
    pub max: usize,
}

impl Lengths {
    /// The percentiles of these lengths: nearest rank.
    pub fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let at = |percent: usize| {
            let rank = (lengths.len() * percent).div_ceil(100).max(1) - 1;
            lengths.get(rank).copied().unwrap_or(0)
        };
        Self { p10: at(10), p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

impl SftReport {
    pub(super) fn drop(&mut self, reason: Dropped) {
        *self.dropped.entry(reason.name()).or_insert(0) += 1;
    }

    /// `; dropped: 3 too_short, 1 no_user`, or nothing.
    pub(super) fn dropped_in_words(&self) -> String {
        if self.dropped.is_empty() {
            return String::new();
        }
        let each = self.dropped.iter().map(|(reason, count)| format!("{count} {reason}"));
        format!("; dropped: {}", each.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for SftReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dropped: u64 = self.dropped.values().sum();
        writeln!(
            f,
            "examples    {} read = {} used + {} held out + {dropped} dropped{}",
            self.examples,
            self.used,
            self.held_out,
            self.dropped_in_words().replace("; dropped:", ":"),
        )?;
        if self.removed_messages > 0 {
            writeln!(
                f,
                "messages    {} taken off: an assistant's at the beginning, a user's at the end",
                self.removed_messages
            )?;
        }
        if !self.ignored_keys.is_empty() {
            let keys = self.ignored_keys.iter().map(|(key, count)| format!("{key} ({count})"));
            writeln!(f, "not read    {}", keys.collect::<Vec<_>>().join(", "))?;
        }
        let share = 100.0 * self.trained_tokens as f64 / self.tokens.max(1) as f64;
        writeln!(
            f,
            "tokens      {}, of them trained {} ({share:.1}%); {} examples cut by {} tokens; {} \
             straddling",
            self.tokens, self.trained_tokens, self.cut_examples, self.cut_tokens, self.straddling,
        )?;
        let Lengths { p10, p50, p90, p99, max } = &self.lengths;
        writeln!(
            f,
            "lengths     10% {p10}, 50% {p50}, 90% {p90}, 99% {p99}, longest {max} tokens"
        )?;
        write!(
            f,
            "rows        {} an epoch, {:.1}% padding; {} steps",
            self.rows,
            100.0 * self.padding,
            self.steps
        )
    }
}
