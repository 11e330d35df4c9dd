//! One step of a source: a map with exactly one key, the step's name.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dedup::{
    DedupBooksOptions, DedupDocumentsOptions, DedupLinesOptions, DedupParagraphsOptions,
    GlobalStep, GlobalStepOptions,
};
use crate::error::{DataError, Result};
use crate::fingerprint::modified_nanos;
use crate::step::{
    C4Options, CcnetHashOptions, CcnetNormalizeOptions, DecontaminateOptions, GithubFilterOptions,
    GithubHeaderOptions, GutenbergOptions, LanguageOptions, LatexOptions, MinLengthOptions,
    PerplexityOptions, ReferenceClassifierOptions, SharegptCleanOptions, SharegptFilterOptions,
    SharegptSplitOptions, StackExchangeHtmlOptions, Step, StepOptions, WikitextOptions,
};
use crate::text::html::HtmlOptions;

/// How the files of a step stand in its identity: version 1 wrote their times in another form.
const FILES_VERSION: &str = " files 2";

/// A step over single documents or over all documents.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Document(&'a dyn StepOptions),
    Global(&'a dyn GlobalStepOptions),
}

/// A step, ready to run.
pub(super) enum BuiltStep {
    Document(Box<dyn Step>),
    Global(Box<dyn GlobalStep>),
}

/// Declares the steps once: the key, the type of its options and its meaning.
macro_rules! steps {
    (
        documents { $($(#[$doc:meta])+ $step:ident: $options:ty,)* }
        global { $($(#[$global_doc:meta])+ $global:ident: $global_options:ty,)* }
    ) => {
        /// One step: exactly one of these keys.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct StepConfig {
            $(
                $(#[$doc])+
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $step: Option<$options>,
            )*
            $(
                $(#[$global_doc])+
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $global: Option<$global_options>,
            )*
        }

        impl StepConfig {
            /// Names of the steps over single documents.
            pub const DOCUMENT_STEPS: &'static [&'static str] = &[$(stringify!($step)),*];
            /// Names of the steps over all documents of a source.
            pub const GLOBAL_STEPS: &'static [&'static str] = &[$(stringify!($global)),*];

            fn kinds(&self) -> Vec<(&'static str, Kind<'_>)> {
                let mut kinds = Vec::new();
                $(if let Some(options) = &self.$step {
                    kinds.push((stringify!($step), Kind::Document(options as &dyn StepOptions)));
                })*
                $(if let Some(options) = &self.$global {
                    let options = options as &dyn GlobalStepOptions;
                    kinds.push((stringify!($global), Kind::Global(options)));
                })*
                kinds
            }

            /// Makes the paths absolute: they are relative to `base`, the configuration's folder.
            pub fn make_paths_absolute(&mut self, base: &Path) {
                $(if let Some(options) = &mut self.$step {
                    options.make_paths_absolute(base);
                })*
            }
        }
    };
}

steps! {
    documents {
        /// HTML to text.
        html: HtmlOptions,
        /// HTML of StackExchange posts to text, code blocks as they are.
        stack_exchange_html: StackExchangeHtmlOptions,
        /// Drops short documents.
        min_length: MinLengthOptions,
        /// The rules of C4 over lines and pages.
        c4: C4Options,
        /// Which language a document is in, and which ones stay.
        language: LanguageOptions,
        /// How usual a document is to an n-gram language model.
        perplexity: PerplexityOptions,
        /// Keeps pages like those that Wikipedia cites.
        reference_classifier: ReferenceClassifierOptions,
        /// License notices at the top of source code.
        github_header: GithubHeaderOptions,
        /// Licenses, extensions, line lengths and shares of letters of source code.
        github_filter: GithubFilterOptions,
        /// Wiki markup to plain text.
        wikitext: WikitextOptions,
        /// Books without the headers and footers of Project Gutenberg.
        gutenberg: GutenbergOptions,
        /// LaTeX without comments, macros, preamble and bibliography.
        latex: LatexOptions,
        /// CCNet's normal form of every line.
        ccnet_normalize: CcnetNormalizeOptions,
        /// CCNet's hash of every line, into the metadata.
        ccnet_hash: CcnetHashOptions,
        /// Word n-grams shared with evaluation files drop or mark a document.
        decontaminate: DecontaminateOptions,
        /// Conversations of ShareGPT: HTML to Markdown, rounds of two speakers, blocked words.
        sharegpt_clean: SharegptCleanOptions,
        /// Long conversations become several.
        sharegpt_split: SharegptSplitOptions,
        /// Conversations with wrong lists or repeated digits.
        sharegpt_filter: SharegptFilterOptions,
    }
    global {
        /// Lines that several documents have, as in cc_net.
        dedup_paragraphs: DedupParagraphsOptions,
        /// Documents that are equal in one respect.
        dedup_documents: DedupDocumentsOptions,
        /// Lines that several pages have, as in C4: the owner keeps it.
        dedup_lines: DedupLinesOptions,
        /// Books that are almost wholly in longer ones.
        dedup_books: DedupBooksOptions,
    }
}

impl StepConfig {
    fn kind(&self, key: &str) -> Result<(&'static str, Kind<'_>)> {
        match self.kinds()[..] {
            [kind] => Ok(kind),
            ref kinds => Err(DataError::config(
                key,
                format!("{} steps", kinds.len()),
                format!(
                    "exactly one of {}",
                    [Self::DOCUMENT_STEPS, Self::GLOBAL_STEPS].concat().join(", ")
                ),
            )),
        }
    }

    /// Checks what the types cannot. `key` is the dotted path of the list item.
    ///
    /// # Errors
    /// [`DataError::Config`].
    pub fn validate(&self, key: &str) -> Result<()> {
        let (name, kind) = self.kind(key)?;
        let key = format!("{key}.{name}");
        match kind {
            Kind::Document(options) => options.validate(&key),
            Kind::Global(options) => options.validate(&key),
        }
    }

    /// Name and version of the step.
    pub(super) fn name(&self) -> Result<(&'static str, u32)> {
        let (name, kind) = self.kind("steps")?;
        let version = match kind {
            Kind::Document(options) => options.version(),
            Kind::Global(options) => options.version(),
        };
        Ok((name, version))
    }

    /// All that the step's result depends on besides the documents: its name, version, options and
    /// the files it reads, by length and time. Work of a step with another identity is done again.
    pub(super) fn identity(&self) -> Result<String> {
        let (name, kind) = self.kind("steps")?;
        let (version, files) = match kind {
            Kind::Document(options) => (options.version(), options.files()),
            Kind::Global(options) => (options.version(), Vec::new()),
        };
        // Serializing plain structs of strings and numbers does not fail.
        let options = serde_json::to_string(self).unwrap_or_default();
        let mut identity = format!("{name} {version} {options}");
        if !files.is_empty() {
            identity += FILES_VERSION;
        }
        for file in &files {
            let metadata = std::fs::metadata(file).map_err(DataError::io(file))?;
            identity += &format!(" {} {}", metadata.len(), modified_nanos(&metadata));
        }
        Ok(identity)
    }

    /// Makes the step, reading its files.
    pub(super) fn build(&self, key: &str) -> Result<BuiltStep> {
        let (name, kind) = self.kind(key)?;
        Ok(match kind {
            Kind::Document(options) => {
                BuiltStep::Document(options.build(&format!("{key}.{name}"))?)
            }
            Kind::Global(options) => BuiltStep::Global(options.build()),
        })
    }

    /// Makes the step over single documents that this is.
    ///
    /// # Errors
    /// [`DataError::Config`] for a step over all documents, and whatever is wrong with its files.
    pub fn build_document_step(&self, key: &str) -> Result<Box<dyn Step>> {
        self.validate(key)?;
        match self.build(key)? {
            BuiltStep::Document(step) => Ok(step),
            BuiltStep::Global(_) => Err(DataError::config(
                key,
                "a step over all documents of a source",
                format!("a step over single documents: {}", Self::DOCUMENT_STEPS.join(", ")),
            )),
        }
    }
}
