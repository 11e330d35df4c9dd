//! Long conversations become several, cut between rounds.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::error::{DataError, Result};
use crate::sharegpt::{self, BAD_CONVERSATION, Turn};
use crate::step::{Step, StepCounts, StepOptions, Verdict};
use crate::tokenizer::Tokenizer;

/// Tokens of a message beside those of its text: the begin token, and 6 for its role, as in FastChat.
const TOKENS_AROUND: usize = 1 + 6;

/// Cuts conversations into pieces of at most `max_length` tokens.
///
/// A round, a message and its answer, stays whole: one that does not fit begins a new piece, and one that is
/// too long alone is a piece of its own. The id of a piece is that of the conversation with `_` and the
/// number of its first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharegptSplitOptions {
    /// The tokenizer by which tokens are counted: `.model` or `tokenizer.json` (path, required).
    pub tokenizer: PathBuf,
    /// Most tokens of a piece (integer, default 2048).
    #[serde(default = "default_max_length")]
    pub max_length: usize,
}

fn default_max_length() -> usize {
    2048
}

impl StepOptions for SharegptSplitOptions {
    fn version(&self) -> u32 {
        2
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        self.tokenizer = base.join(&self.tokenizer);
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.tokenizer.clone()]
    }

    fn validate(&self, key: &str) -> Result<()> {
        if self.max_length == 0 {
            return Err(DataError::config(format!("{key}.max_length"), 0, "at least 1"));
        }
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        let tokenizer = Tokenizer::open(&self.tokenizer)?;
        Ok(Box::new(SplitStep { tokenizer, max_length: self.max_length }))
    }
}

struct SplitStep {
    tokenizer: Tokenizer,
    max_length: usize,
}

impl Step for SplitStep {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let turns = match sharegpt::turns(&document.text) {
            Ok(turns) if !turns.is_empty() => turns,
            Ok(_) => return Verdict::unwanted("too_short", "0 messages"),
            Err(error) => return Verdict::broken(BAD_CONVERSATION, error.to_string()),
        };
        let length = |turn: &Turn| Ok(self.tokenizer.encode(&turn.value)?.len() + TOKENS_AROUND);
        let lengths: Vec<usize> = match turns.iter().map(length).collect::<Result<_>>() {
            Ok(lengths) => lengths,
            Err(error) => return Verdict::broken("not_encoded", error.to_string()),
        };
        let starts = piece_starts(&lengths, self.max_length);
        if starts.len() > 1 {
            counts.note("conversations split");
        }
        // The pieces have texts of their own.
        document.text = String::new();
        let ends = starts.iter().skip(1).copied().chain([turns.len()]);
        let piece = |(&start, end): (&usize, usize)| Document {
            id: format!("{}_{start}", document.id),
            text: sharegpt::text(&turns[start..end]),
            ..document.clone()
        };
        Verdict::Split(starts.iter().zip(ends).map(piece).collect())
    }
}

/// The first messages of the pieces into which messages of `lengths` are cut.
fn piece_starts(lengths: &[usize], max_length: usize) -> Vec<usize> {
    let (mut starts, mut filled) = (vec![0], 0);
    for (round, lengths) in lengths.chunks(2).enumerate() {
        let length: usize = lengths.iter().sum();
        if round > 0 && filled + length > max_length {
            starts.push(2 * round);
            filled = 0;
        }
        filled += length;
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_is_in_one_piece() {
        for (lengths, starts) in [
            (&[40, 40, 10, 20][..], &[0, 2][..]),
            (&[40, 40, 10, 10], &[0]),
            // A round that is too long alone, and what follows it.
            (&[60, 60, 10, 10], &[0, 2]),
            (&[10, 10, 60, 60, 10, 10], &[0, 2, 4]),
            (&[60, 60, 60, 60], &[0, 2]),
            (&[50, 50], &[0]),
            (&[10, 10, 10, 10, 80], &[0, 4]),
        ] {
            assert_eq!(piece_starts(lengths, 100), starts, "{lengths:?}");
        }
    }
}
