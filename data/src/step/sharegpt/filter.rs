//! Conversations with marks of a broken model.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::error::Result;
use crate::sharegpt::{self, BAD_CONVERSATION};
use crate::step::{Step, StepCounts, StepOptions, Verdict};

/// Equal digits in a row that are a repetition.
const REPEATED_DIGITS: usize = 9;

/// Drops conversations with a message that no model should learn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharegptFilterOptions {
    /// Drop conversations with a list that is counted 1., 1. (bool, default true; reason `wrong_list`).
    pub wrong_lists: bool,
    /// Drop conversations with a digit nine times in a row (bool, default false; reason `repetition`).
    pub repeated_digits: bool,
}

impl Default for SharegptFilterOptions {
    fn default() -> Self {
        Self { wrong_lists: true, repeated_digits: false }
    }
}

impl StepOptions for SharegptFilterOptions {
    fn version(&self) -> u32 {
        1
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(self.clone()))
    }
}

impl Step for SharegptFilterOptions {
    fn apply(&self, document: &mut Document, _counts: &mut StepCounts) -> Verdict {
        let turns = match sharegpt::turns(&document.text) {
            Ok(turns) => turns,
            Err(error) => return Verdict::broken(BAD_CONVERSATION, error.to_string()),
        };
        for (number, turn) in turns.iter().enumerate() {
            let in_message = || format!("message {number}");
            if self.repeated_digits && has_repeated_digit(&turn.value) {
                return Verdict::unwanted("repetition", in_message());
            }
            if self.wrong_lists && is_counted_wrong(&turn.value) {
                return Verdict::unwanted("wrong_list", in_message());
            }
        }
        Verdict::Keep
    }
}

fn is_counted_wrong(text: &str) -> bool {
    // A constant pattern; a test has it find something.
    static LIST: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\n1\. [^2]*\n1\. ").ok());
    LIST.as_ref().is_some_and(|list| list.is_match(text))
}

fn has_repeated_digit(text: &str) -> bool {
    text.as_bytes()
        .windows(REPEATED_DIGITS)
        .any(|digits| digits[0].is_ascii_digit() && digits.iter().all(|byte| *byte == digits[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_digits_are_seen() {
        assert!(is_counted_wrong("a:\n1. x\n1. y"));
        assert!(!is_counted_wrong("a:\n1. x\n2. y\n\nb:\n1. z"));
        assert!(has_repeated_digit("it is 777777777."));
        assert!(!has_repeated_digit("it is 77777777 or 123456789."));
    }
}
