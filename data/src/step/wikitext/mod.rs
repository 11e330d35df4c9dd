//! Wikitext to text.
//!
//! The order of things follows the behaviour that pipelines of Wikipedia dumps agree on:
//! comments, templates, tables, links, magic words, character references, tags, quotes,
//! headings, lists, white space. Of templates those that stand for words of their sentence print
//! them, by rules of each language; others are taken out, and counted when they stood in a line. Markup that does not close stays as text and is noted, never guessed at for long:
//! time and memory are linear in the page.

mod inline;
mod markup;
mod parts;
mod quotes;
mod sections;
mod tags;
mod templates;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::markup::{Settings, unmark};
use self::sections::assemble;
use self::templates::Rules;
use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, Reason};
use crate::error::Result;
use crate::text::python;
use crate::text::wikipedia::{WikiNames, languages};

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
            templates: Vec::new(),
        }
    }
}

impl StepOptions for WikitextOptions {
    /// Version 1 knew few templates and let the digits of superscripts run into those before them.
    fn version(&self) -> u32 {
        2
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
        let mut own = HashMap::new();
        if !self.templates.is_empty() {
            for language in languages().map(Some).chain([None]) {
                let rules = Rules::of(language).with_files(&self.templates)?;
                own.insert(language.map(str::to_owned), rules);
            }
        }
        Ok(Box::new(Wikitext { options: self.clone(), own }))
    }
}

/// The step with the rules of users' files, by language.
struct Wikitext {
    options: WikitextOptions,
    own: HashMap<Option<String>, Rules>,
}

impl Wikitext {
    fn rules(&self, language: Option<&str>) -> &Rules {
        let own = self.own.get(&language.map(str::to_owned)).or_else(|| self.own.get(&None));
        own.unwrap_or_else(|| Rules::of(language))
    }
}

impl Step for Wikitext {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        let options = &self.options;
        let language = document.language.as_deref();
        let names = WikiNames::of(language);
        if names.is_redirect(&document.text) {
            return Verdict::unwanted("redirect", "");
        }
        let mut page = unmark(
            &document.text,
            Settings {
                names,
                rules: self.rules(language),
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
