//! Why a record or document is not used.

use std::borrow::Cow;

/// Why a record or document is not used: a name for the statistics, and whether the input was
/// broken rather than merely unwanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    name: Cow<'static, str>,
    error: bool,
}

impl Reason {
    /// The text is empty or white space only.
    pub const EMPTY: Self = Self::unwanted("empty");
    /// The bytes are not UTF-8.
    pub const BAD_UTF8: Self = Self::broken("bad_utf8");
    /// The line is not a JSON object.
    pub const BAD_JSON: Self = Self::broken("bad_json");
    /// The record has no text, or it is not a string.
    pub const MISSING_TEXT: Self = Self::broken("missing_text");
    /// The record is longer than `max_record_bytes`.
    pub const TOO_LONG: Self = Self::broken("too_long");

    /// A document that is whole but not wanted.
    pub const fn unwanted(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), error: false }
    }

    /// A record that is broken.
    pub const fn broken(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), error: true }
    }

    /// A document that is not wanted, for a reason that is only known at run time, a license's
    /// name for example. There must be few different ones: each becomes a line of the report.
    pub fn unwanted_for(name: String) -> Self {
        Self { name: Cow::Owned(name), error: false }
    }

    /// The name in statistics: snake case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the record is broken (an error of the input) rather than merely unwanted.
    pub fn is_error(&self) -> bool {
        self.error
    }
}
