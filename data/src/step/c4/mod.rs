//! The heuristics of C4 (Raffel et al. 2020): lines that read like sentences stay, pages with
//! too few of them, or with signs of placeholder text or code, are dropped.
//!
//! Two published families of constants exist and are presets: `c4-tfds`, the code the data set
//! was made with (`tensorflow_datasets/text/c4_utils.py`), and `c4-datatrove` (datatrove 0.10,
//! `c4_filters.py`; dolma's are close to it). The names of the counts are those of TFDS when C4 was
//! made (2020); it has renamed them since.

mod clean;
mod phrases;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Step, StepOptions};
use crate::error::{DataError, Result};
use clean::C4Step;
use phrases::{Boundary, Phrases};

/// Published constants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum C4Preset {
    /// The code C4 was made with: 5 words a line, 3 sentences a page.
    #[default]
    #[serde(rename = "c4-tfds")]
    Tfds,
    /// datatrove's: 3 words a line, counted before citations are taken out; 5 sentences a page;
    /// a line may end in `'`; no longest page.
    #[serde(rename = "c4-datatrove")]
    Datatrove,
}

/// The rules of C4 over the lines of a page. A rule whose number is 0 or whose list is empty is
/// off. Fields left out are the preset's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct C4Options {
    /// `c4-tfds` or `c4-datatrove` (string, default `c4-tfds`).
    pub preset: C4Preset,
    /// Longest page in characters (integer, `c4-tfds` 190000, `c4-datatrove` 0: any).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_page_chars: Option<usize>,
    /// Longest word of a line in characters (integer, 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_word_chars: Option<usize>,
    /// Take `[1]`, `[]`, `[edit]` and `[citation needed]` out of lines (bool, true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_citations: Option<bool>,
    /// What a line must end in (list of strings, `. ? ! "`; `c4-datatrove` also `'`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_marks: Option<Vec<String>>,
    /// What a line must not end in all the same (string, `...`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ellipsis: Option<String>,
    /// Fewest words of a line (integer, `c4-tfds` 5, `c4-datatrove` 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_words_per_line: Option<usize>,
    /// Count the words before citations are taken out (bool, `c4-tfds` false, `c4-datatrove`
    /// true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words_before_citations: Option<bool>,
    /// A line with one of these in any case drops the page (list of strings, `lorem ipsum`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placeholder_phrases: Option<Vec<String>>,
    /// A line with one of these in any case is dropped (list of strings, `javascript`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub javascript_phrases: Option<Vec<String>>,
    /// A line with one of these drops the page (list of strings, `{`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_marks: Option<Vec<String>>,
    /// A line with one of these in any case is dropped (list of strings, `terms of use`,
    /// `privacy policy`, `cookie policy`, `uses cookies`, `use of cookies`, `use cookies`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_phrases: Option<Vec<String>>,
    /// Words that drop the page, in any case: a file with one word or phrase per line, the
    /// LDNOOBW list for example, which is not part of altiplano (path, none: the rule is off).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_words: Option<PathBuf>,
    /// Fewest sentences of a page (integer, `c4-tfds` 3, `c4-datatrove` 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_sentences: Option<usize>,
    /// Fewest paragraphs of a page, as in mC4: lines of `min_paragraph_chars` that stay (integer,
    /// 0: off; mC4 has 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_paragraphs: Option<usize>,
    /// Shortest line that is a paragraph, in characters (integer, 200).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_paragraph_chars: Option<usize>,
}

/// [`C4Options`] with the preset's values filled in.
#[derive(Debug)]
struct Rules {
    max_page_chars: usize,
    max_word_chars: usize,
    remove_citations: bool,
    end_marks: Vec<String>,
    ellipsis: String,
    min_words_per_line: usize,
    words_before_citations: bool,
    /// Placeholders, JavaScript and policies, in this order.
    phrases: Phrases<3>,
    code_marks: Vec<String>,
    bad_words: Option<Phrases<1>>,
    min_sentences: usize,
    min_paragraphs: usize,
    min_paragraph_chars: usize,
}

const POLICY_PHRASES: [&str; 6] = [
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
];

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

impl C4Options {
    /// All of the preset.
    pub fn preset(preset: C4Preset) -> Self {
        Self { preset, ..Self::default() }
    }

    fn rules(&self, key: &str) -> Result<Rules> {
        let tfds = self.preset == C4Preset::Tfds;
        let list = |given: &Option<Vec<String>>, preset: &[&str]| {
            given.clone().unwrap_or_else(|| strings(preset))
        };
        let marks: &[&str] =
            if tfds { &[".", "?", "!", "\""] } else { &[".", "?", "!", "\"", "'"] };
        let phrases = [
            list(&self.placeholder_phrases, &["lorem ipsum"]),
            list(&self.javascript_phrases, &["javascript"]),
            list(&self.policy_phrases, &POLICY_PHRASES),
        ];
        let boundary = if tfds { Boundary::NotAToZ } else { Boundary::NotWord };
        let bad_words = match &self.bad_words {
            Some(path) => Some(phrases::read_bad_words(path, boundary)?),
            None => None,
        };
        Ok(Rules {
            max_page_chars: self.max_page_chars.unwrap_or(if tfds { 190_000 } else { 0 }),
            max_word_chars: self.max_word_chars.unwrap_or(1000),
            remove_citations: self.remove_citations.unwrap_or(true),
            end_marks: list(&self.end_marks, marks),
            ellipsis: self.ellipsis.clone().unwrap_or_else(|| "...".into()),
            min_words_per_line: self.min_words_per_line.unwrap_or(if tfds { 5 } else { 3 }),
            words_before_citations: self.words_before_citations.unwrap_or(!tfds),
            phrases: Phrases::new(phrases, Boundary::Anywhere)
                .map_err(|reason| DataError::config(key, reason, "shorter lists of phrases"))?,
            code_marks: list(&self.code_marks, &["{"]),
            bad_words,
            min_sentences: self.min_sentences.unwrap_or(if tfds { 3 } else { 5 }),
            min_paragraphs: self.min_paragraphs.unwrap_or(0),
            min_paragraph_chars: self.min_paragraph_chars.unwrap_or(200),
        })
    }
}

impl StepOptions for C4Options {
    fn version(&self) -> u32 {
        1
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        if let Some(path) = &mut self.bad_words {
            *path = base.join(&*path);
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.bad_words.iter().cloned().collect()
    }

    fn validate(&self, key: &str) -> Result<()> {
        let lists = [
            ("end_marks", &self.end_marks),
            ("placeholder_phrases", &self.placeholder_phrases),
            ("javascript_phrases", &self.javascript_phrases),
            ("code_marks", &self.code_marks),
            ("policy_phrases", &self.policy_phrases),
        ];
        for (name, list) in lists {
            if list.iter().flatten().any(String::is_empty) {
                return Err(DataError::config(
                    format!("{key}.{name}"),
                    "an empty string",
                    "strings of a character or more; an empty list turns the rule off",
                ));
            }
        }
        Ok(())
    }

    fn build(&self, key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(C4Step::new(self.rules(key)?)))
    }
}

#[cfg(test)]
mod tests;
