//! The rules of a language: which template prints what.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;

use super::print::Format;
use crate::error::{DataError, Result};

/// Longest name of a template that has a rule, in bytes.
const LONGEST_NAME: usize = 80;

/// Files of rules: the one of all languages, then those of each.
const COMMON: &str = include_str!("common.yaml");
const LANGUAGES: [(&str, &str); 20] = [
    ("bg", include_str!("bg.yaml")),
    ("ca", include_str!("ca.yaml")),
    ("cs", include_str!("cs.yaml")),
    ("da", include_str!("da.yaml")),
    ("de", include_str!("de.yaml")),
    ("en", include_str!("en.yaml")),
    ("es", include_str!("es.yaml")),
    ("fr", include_str!("fr.yaml")),
    ("hr", include_str!("hr.yaml")),
    ("hu", include_str!("hu.yaml")),
    ("it", include_str!("it.yaml")),
    ("nl", include_str!("nl.yaml")),
    ("pl", include_str!("pl.yaml")),
    ("pt", include_str!("pt.yaml")),
    ("ro", include_str!("ro.yaml")),
    ("ru", include_str!("ru.yaml")),
    ("sl", include_str!("sl.yaml")),
    ("sr", include_str!("sr.yaml")),
    ("sv", include_str!("sv.yaml")),
    ("uk", include_str!("uk.yaml")),
];

/// A file of rules, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenRules {
    /// Names of the months, as they stand in a date.
    months: Vec<String>,
    /// What is printed, and the templates that print it.
    print: BTreeMap<String, Vec<String>>,
}

/// A file of rules, read and checked.
#[derive(Clone, Debug, Default)]
struct RuleFile {
    months: Vec<String>,
    /// What is printed, and the names, in lower case, of the templates that print it.
    print: Vec<(Format, Vec<String>)>,
}

impl RuleFile {
    /// Reads a file of rules.
    ///
    /// # Errors
    /// What is wrong with it.
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let written: WrittenRules = serde_yaml::from_str(text)
            .map_err(|error| format!("not a file of template rules: {error}"))?;
        if !matches!(written.months.len(), 0 | 12) {
            return Err(format!("{} months, expected 12", written.months.len()));
        }
        let mut file = Self { months: written.months, print: Vec::new() };
        let mut seen = HashSet::new();
        for (text, names) in written.print {
            let format = Format::parse(&text).map_err(|error| format!("{text:?}: {error}"))?;
            let names: Vec<String> = names.iter().map(|name| normalized(name)).collect();
            for name in &names {
                if !seen.insert(name.clone()) {
                    return Err(format!(
                        "the template {name:?} is in two rules; it prints one thing"
                    ));
                }
            }
            file.print.push((format, names));
        }
        Ok(file)
    }
}

/// Which template prints what.
#[derive(Clone, Debug, Default)]
pub(in crate::step::wikitext) struct Rules {
    formats: Vec<Format>,
    /// Index of the format, by name.
    exact: HashMap<String, usize>,
    /// Beginnings and endings of names, longest first.
    prefixes: Vec<(String, usize)>,
    suffixes: Vec<(String, usize)>,
    months: Vec<String>,
}

/// The rules of every language.
#[derive(Clone, Debug)]
pub(in crate::step::wikitext) struct RuleSet {
    of_languages: BTreeMap<&'static str, Rules>,
    /// For languages without a file: what all agree on.
    others: Rules,
    /// For pages whose language is not known: what all agree on, and English.
    without_language: Rules,
}

impl RuleSet {
    /// The rules that come with the program.
    pub fn built_in() -> &'static Self {
        static BUILT_IN: LazyLock<RuleSet> = LazyLock::new(|| {
            // A test reads all of these files.
            let rules_with = |rules: &Rules, text: &str| {
                let mut rules = rules.clone();
                rules.add(&RuleFile::parse(text).unwrap_or_default());
                rules
            };
            let others = rules_with(&Rules::default(), COMMON);
            let of_language = |&(language, text)| (language, rules_with(&others, text));
            let of_languages: BTreeMap<_, _> = LANGUAGES.iter().map(of_language).collect();
            let without_language = of_languages.get("en").cloned().unwrap_or_default();
            RuleSet { of_languages, others, without_language }
        });
        &BUILT_IN
    }

    /// These rules and those of the users' `files`, which count more.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::BadFile`] when a file is none of rules.
    pub fn with_files(&self, files: &[impl AsRef<Path>]) -> Result<Self> {
        let mut set = self.clone();
        for path in files {
            let path = path.as_ref();
            let text = std::fs::read_to_string(path).map_err(DataError::io(path))?;
            let file =
                RuleFile::parse(&text).map_err(|reason| DataError::bad_file(path, reason))?;
            let all = [&mut set.others, &mut set.without_language].into_iter();
            all.chain(set.of_languages.values_mut()).for_each(|rules| rules.add(&file));
        }
        Ok(set)
    }

    /// The rules of `language`.
    pub fn of(&self, language: Option<&str>) -> &Rules {
        match language {
            Some(language) => self.of_languages.get(language).unwrap_or(&self.others),
            None => &self.without_language,
        }
    }
}

impl Rules {
    /// The rules that come with the program, for `language`.
    pub fn of(language: Option<&str>) -> &'static Self {
        RuleSet::built_in().of(language)
    }

    /// Adds the rules of `file`, which count more than those so far.
    fn add(&mut self, file: &RuleFile) {
        if !file.months.is_empty() {
            self.months.clone_from(&file.months);
        }
        for (format, names) in &file.print {
            let index = self.formats.len();
            self.formats.push(format.clone());
            for name in names {
                match (name.strip_prefix('*'), name.strip_suffix('*')) {
                    (Some(ending), _) if !ending.is_empty() => {
                        self.suffixes.insert(0, (ending.to_owned(), index));
                    }
                    (_, Some(beginning)) if !beginning.is_empty() => {
                        self.prefixes.insert(0, (beginning.to_owned(), index));
                    }
                    _ => _ = self.exact.insert(name.clone(), index),
                }
            }
        }
        self.sort();
    }

    fn sort(&mut self) {
        for wild in [&mut self.prefixes, &mut self.suffixes] {
            // Those added last stay before those of the same length.
            wild.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        }
    }

    /// Names of the months.
    pub fn months(&self) -> &[String] {
        &self.months
    }

    /// What template `name` prints, and what a `*` in its rule stands for.
    pub fn find<'n>(&self, name: &'n str) -> Option<(&Format, &'n str)> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains(['\n', '{', '}', '<']) {
            return None;
        }
        let plain = normalized(name);
        if let Some(&index) = self.exact.get(&plain) {
            return Some((&self.formats[index], ""));
        }
        let beginning = self.prefixes.iter().find(|(text, _)| plain.starts_with(text.as_str()));
        if let Some((text, index)) = beginning {
            // Lower case may have another length.
            let rest = name.get(text.len()..).unwrap_or_default();
            return Some((&self.formats[*index], rest));
        }
        let ending = self.suffixes.iter().find(|(text, _)| plain.ends_with(text.as_str()));
        ending.map(|(_, index)| (&self.formats[*index], ""))
    }
}

/// A name in lower case with single spaces.
fn normalized(name: &str) -> String {
    let lower = name.trim().to_lowercase();
    match lower.contains(['_', '\u{a0}']) || lower.contains("  ") {
        true => {
            lower.replace(['_', '\u{a0}'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
        }
        false => lower,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_right() {
        for (language, text) in LANGUAGES.into_iter().chain([("all", COMMON)]) {
            let file = RuleFile::parse(text).unwrap_or_else(|e| panic!("{language}: {e}"));
            assert!(language == "all" || file.months.len() == 12, "{language}");
            let mut rules = Rules::default();
            rules.add(&file);
            assert!(rules.exact.keys().all(|name| name.len() <= LONGEST_NAME));
        }
    }

    #[test]
    fn users_rules_count_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.yaml");
        std::fs::write(&path, "print:\n  '<{1}>': [nowrap, own thing, 'own-*']\n").unwrap();
        let set = RuleSet::built_in().with_files(&[&path]).unwrap();
        for language in [Some("en"), Some("ru"), Some("xx"), None] {
            for name in ["nowrap", "Own_thing", "own-x"] {
                assert!(!set.of(language).find(name).unwrap().0.is_nothing(), "{name}");
            }
            assert!(set.of(language).find("never heard of").is_none());
        }
        for (text, says) in [
            ("prints: {}", "prints"),
            ("months: [a, b]", "2 months"),
            ("print: {'{1': [a]}", "{1"),
            ("print: {'[x': [a]}", "[x"),
            ("print: {x: [a, b], y: [B]}", "\"b\" is in two rules"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = RuleSet::built_in().with_files(&[&path]).unwrap_err().to_string();
            assert!(error.contains("own.yaml") && error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_language_without_a_file_has_no_english_rules() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.yaml");
        std::fs::write(&path, "print: {'<{1}>': [own thing]}").unwrap();
        let own = RuleSet::built_in().with_files(&[&path]).unwrap();
        for set in [RuleSet::built_in(), &own] {
            assert!(set.of(Some("en")).find("HMS").is_some());
            assert!(set.of(None).find("HMS").is_some());
            assert!(set.of(Some("ja")).find("HMS").is_none());
            assert!(set.of(Some("ja")).find("nowrap").is_some());
            assert!(set.of(Some("ja")).months().is_empty());
        }
    }
}
