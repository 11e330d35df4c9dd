//! Drops short documents.

use serde::{Deserialize, Serialize};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::Document;
use crate::error::{DataError, Result};

/// Drops documents with fewer characters (reason `short`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MinLengthOptions {
    /// Fewest code points of the text (integer, default 300 as in cc_net).
    pub chars: usize,
}

impl Default for MinLengthOptions {
    fn default() -> Self {
        Self { chars: 300 }
    }
}

impl StepOptions for MinLengthOptions {
    fn version(&self) -> u32 {
        1
    }

    fn validate(&self, key: &str) -> Result<()> {
        if self.chars == 0 {
            return Err(DataError::config(format!("{key}.chars"), 0, "at least 1"));
        }
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(*self))
    }
}

impl Step for MinLengthOptions {
    fn apply(&self, document: &mut Document, _counts: &mut StepCounts) -> Verdict {
        // A code point has 1 to 4 bytes, so most lengths need no count.
        let bytes = document.text.len();
        if bytes / 4 >= self.chars {
            return Verdict::Keep;
        }
        let chars = document.text.chars().count();
        if chars >= self.chars {
            return Verdict::Keep;
        }
        Verdict::unwanted("short", format!("{chars} characters, at least {}", self.chars))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn characters_count_not_bytes() {
        let step = MinLengthOptions::default().build("min_length").unwrap();
        for (text, kept) in [
            ("é".repeat(299), false),
            ("é".repeat(300), true),
            ("a".repeat(299), false),
            ("a".repeat(300), true),
            ("𝒳".repeat(300), true),
            ("𝒳".repeat(299), false),
            (String::new(), false),
        ] {
            let mut document = Document { text: text.clone(), ..Document::default() };
            let verdict = step.apply(&mut document, &mut StepCounts::default());
            assert_eq!(verdict == Verdict::Keep, kept, "{} bytes", text.len());
            assert_eq!(document.text, text);
        }
    }
}
