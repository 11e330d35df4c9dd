//! One source of a data configuration: what is read, and the steps its documents go through.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::step_config::StepConfig;
use super::unique_ids::DuplicateIds;
use crate::error::{DataError, Result};
use crate::source::{
    ArxivSource, BooksSource, GithubSource, SharegptSource, SourceOptions, StackExchangeSource,
    TextSource, WebArchiveSource, WikipediaSource,
};

/// Declares the kinds of source once: the field, its type and its meaning.
macro_rules! source_kinds {
    ($($(#[$doc:meta])+ $kind:ident: $options:ty,)+) => {
        /// One source of a data configuration: a name, exactly one kind, and steps.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct SourceConfig {
            /// Name of the source (string). Names the folders of its documents and tokens:
            /// letters, digits, `-`, `_` and `.` only.
            pub name: String,
            $(
                $(#[$doc])+
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $kind: Option<$options>,
            )+
            /// What becomes of a record with the id of one before it: `suffix` (it gets `#2`) or
            /// `drop` (string, default `suffix`).
            #[serde(default, skip_serializing_if = "DuplicateIds::is_default")]
            pub duplicate_ids: DuplicateIds,
            /// What the documents go through, in this order (list of maps with one key each,
            /// default none).
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub steps: Vec<StepConfig>,
        }

        impl SourceConfig {
            /// Names of the kinds.
            pub const KINDS: &'static [&'static str] = &[$(stringify!($kind)),+];

            /// The kinds that are set, with their names.
            fn kinds(&self) -> Vec<(&'static str, &dyn SourceOptions)> {
                let mut kinds: Vec<(&'static str, &dyn SourceOptions)> = Vec::new();
                $(if let Some(options) = &self.$kind {
                    kinds.push((stringify!($kind), options));
                })+
                kinds
            }

            /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
            pub fn make_paths_absolute(&mut self, base: &Path) {
                $(if let Some(options) = &mut self.$kind {
                    options.make_paths_absolute(base);
                })+
                for step in &mut self.steps {
                    step.make_paths_absolute(base);
                }
            }
        }
    };
}

source_kinds! {
    /// Plain text: files, JSON lines or Parquet.
    text: TextSource,
    /// Web archives of CommonCrawl: WET and WARC.
    web_archive: WebArchiveSource,
    /// Source code: BigQuery exports and archives of repositories.
    github: GithubSource,
    /// Dumps of Wikipedia.
    wikipedia: WikipediaSource,
    /// Books: Project Gutenberg, PG-19, collections of one's own.
    books: BooksSource,
    /// LaTeX sources of papers.
    arxiv: ArxivSource,
    /// Dumps of StackExchange sites.
    stack_exchange: StackExchangeSource,
    /// Conversations in the format of ShareGPT.
    sharegpt: SharegptSource,
}

impl SourceConfig {
    /// A source of plain text without steps.
    pub fn of_text(name: &str, text: TextSource) -> Self {
        Self { name: name.to_owned(), text: Some(text), ..Self::default() }
    }

    /// The kind of the source and its options.
    ///
    /// # Errors
    /// [`DataError::Config`] unless there is exactly one.
    pub fn kind(&self) -> Result<(&'static str, &dyn SourceOptions)> {
        match self.kinds()[..] {
            [kind] => Ok(kind),
            ref kinds => Err(DataError::config(
                self.key(),
                match kinds {
                    [] => "no kind".to_owned(),
                    _ => format!("{} kinds", kinds.len()),
                },
                format!("exactly one kind of source: {}", Self::KINDS.join(", ")),
            )),
        }
    }

    /// Dotted path of the source.
    pub(super) fn key(&self) -> String {
        format!("sources.{}", self.name)
    }

    /// Dotted path of the source's kind.
    pub(super) fn kind_key(&self, kind: &str) -> String {
        format!("{}.{kind}", self.key())
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    pub fn validate(&self) -> Result<()> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(allowed) {
            return Err(DataError::config(
                "sources.name",
                format!("{:?}", self.name),
                "a folder name of letters, digits, `-`, `_` and `.`, not starting with `.`",
            ));
        }
        let (kind, options) = self.kind()?;
        options.validate(&self.kind_key(kind))?;
        for (index, step) in self.steps.iter().enumerate() {
            step.validate(&format!("{}.steps.{index}", self.key()))?;
        }
        Ok(())
    }
}

/// Checks each of the `sources`, and that no two have the same name.
///
/// # Errors
/// [`DataError::Config`] naming the key.
pub fn validate_sources(sources: &[SourceConfig]) -> Result<()> {
    for (index, source) in sources.iter().enumerate() {
        source.validate()?;
        if sources[..index].iter().any(|other| other.name == source.name) {
            return Err(DataError::config(
                format!("sources.{index}.name"),
                format!("{:?} twice", source.name),
                "each name once",
            ));
        }
    }
    Ok(())
}
