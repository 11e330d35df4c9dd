//! Wikitext to text.
//!
//! The order of things follows the behaviour that pipelines of Wikipedia dumps agree on:
//! comments, templates, tables, links, magic words, character references, tags, quotes,
//! headings, lists, white space. Of templates those that stand for words of their sentence print
//! them, by rules of each language; others are expanded by their definitions in the dump ([`expand`]);
//! what is left is taken out, and counted when it stood in a line. Markup that does not close stays as text and is noted, never guessed at for long:
//! time and memory are linear in the page.

mod expand;
mod inline;
mod markup;
mod parts;
mod quotes;
mod sections;
mod tags;
mod templates;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use self::expand::{Definitions, Environment};
use self::markup::{Settings, unmark};
use self::sections::assemble;
use self::templates::RuleSet;
use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, Reason};
use crate::error::Result;
use crate::source::TemplateIndex;
use crate::text::python;
use crate::text::wikipedia::WikiNames;

/// Languages whose pages protect text from conversion between scripts by `-{…}-`.
const CONVERTED_LANGUAGES: [&str; 3] = ["sr", "zh", "kk"];

/// Takes the markup out of wikitext. The document's `language` says which names of files,
/// categories and sections are in use; without one, those of all 20 languages are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WikitextOptions {
    /// Put the page's title, from the metadata, before the text (bool, default true).
    pub title: bool,
    /// Keep formulas as `$…$` (bool, default true). Otherwise they are taken out.
    pub math: bool,
    /// Take out the sections of references, links and literature (bool, default true).
    pub drop_tail_sections: bool,
    /// Drop pages that only tell similar titles apart (bool, default false).
    pub drop_disambiguation: bool,
    /// Fewest words a page may have, its title not counted (integer, default 50).
    pub min_words: usize,
    /// Expand templates by their definitions in the dump, which a pass before the first page indexes, and
    /// functions of MediaWiki's parser (bool, default true).
    pub expand_templates: bool,
    /// Files that say what templates print, in the form of those that come with the program; they
    /// count more (list of paths, default none).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<PathBuf>,
}

impl Default for WikitextOptions {
    fn default() -> Self {
        Self {
            title: true,
            math: true,
            drop_tail_sections: true,
            drop_disambiguation: false,
            min_words: 50,
            expand_templates: true,
            templates: Vec::new(),
        }
    }
}

impl StepOptions for WikitextOptions {
    /// Version 1 knew few templates and let the digits of superscripts run into those before them.
    /// Version 2 did not expand the definitions of templates.
    fn version(&self) -> u32 {
        3
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        for path in &mut self.templates {
            *path = base.join(&*path);
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.templates.clone()
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        let rules = match self.templates.is_empty() {
            true => Cow::Borrowed(RuleSet::built_in()),
            false => Cow::Owned(RuleSet::built_in().with_files(&self.templates)?),
        };
        Ok(Box::new(Wikitext { options: self.clone(), rules, definitions: OnceLock::new() }))
    }
}

/// The step with the rules of users' files, and the templates of the dump once they are indexed.
struct Wikitext {
    options: WikitextOptions,
    rules: Cow<'static, RuleSet>,
    definitions: OnceLock<Definitions>,
}

impl Wikitext {
    /// The text of `document` with its templates expanded.
    fn expanded(&self, document: &Document) -> Result<expand::Expanded> {
        let metadata = document.metadata();
        let stamp = document.created.as_deref();
        let language = document.language.as_deref();
        let environment = Environment {
            rules: self.rules.of(language),
            names: WikiNames::of(language),
            definitions: self.definitions.get(),
            language: language.unwrap_or_default(),
            title: metadata.get("title").and_then(|title| title.as_str()).unwrap_or_default(),
            stamp: stamp.or_else(|| metadata.get("timestamp").and_then(|time| time.as_str())),
        };
        expand::expand(&document.text, environment)
    }
}

impl Step for Wikitext {
    fn wants_templates(&self) -> bool {
        self.options.expand_templates
    }

    fn set_templates(&self, index: &Arc<TemplateIndex>) {
        let _ = self.definitions.set(Definitions::new(Arc::clone(index)));
    }

    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let options = &self.options;
        let names = WikiNames::of(document.language.as_deref());
        if names.is_redirect(&document.text) {
            return Verdict::unwanted("redirect", "");
        }
        let mut text = Cow::Borrowed(&document.text);
        let (mut expanded, mut boxes) = (0, 0);
        if options.expand_templates && document.text.contains("{{") {
            match self.expanded(document) {
                Ok(page) => {
                    (expanded, boxes) = (page.templates, page.boxes);
                    text = Cow::Owned(page.text);
                }
                Err(error) => return Verdict::broken("unreadable_templates", error.to_string()),
            }
        }
        let language = document.language.as_deref();
        let mut page = unmark(
            &text,
            Settings {
                names,
                rules: self.rules.of(language),
                formulas: options.math,
                disambiguation: options.drop_disambiguation,
                converter: language.is_some_and(|code| CONVERTED_LANGUAGES.contains(&code)),
            },
        );
        if page.disambiguation {
            return Verdict::unwanted("disambiguation", "");
        }
        let body = assemble(&page.text, names, options.drop_tail_sections, &mut page.removals);
        if body.is_empty() {
            return Verdict::Drop { reason: Reason::EMPTY, detail: String::new() };
        }
        let words = python::split(&body).take(options.min_words).count();
        if words < options.min_words {
            let detail = format!("{words} words, min_words is {}", options.min_words);
            return Verdict::unwanted("stub", detail);
        }
        page.removals.add_to(counts);
        if page.unbalanced {
            counts.note("unbalanced");
        }
        counts.note_many("expanded_templates", expanded);
        counts.note_many("template_boxes", boxes);
        for (name, example) in page.lost {
            counts.note("lost_templates");
            counts.lose_template(name, example);
        }
        document.text = match options.page_title(document) {
            Some(title) => format!("{title}\n\n{body}"),
            None => body,
        };
        Verdict::Keep
    }
}

impl WikitextOptions {
    fn page_title(&self, document: &Document) -> Option<String> {
        if !self.title {
            return None;
        }
        match document.metadata().remove("title") {
            Some(serde_json::Value::String(title)) if !title.is_empty() => Some(title),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
