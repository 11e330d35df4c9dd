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

/// A file of rules.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RuleFile {
    /// Names of the months, as they stand in a date.
    months: Vec<String>,
    /// What is printed, and the templates that print it.
    print: BTreeMap<String, Vec<String>>,
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

static OF_LANGUAGES: LazyLock<BTreeMap<&'static str, Rules>> = LazyLock::new(|| {
    let all = LANGUAGES.iter().map(|&(language, text)| {
        let mut rules = OTHERS.clone();
        // A test reads all of them.
        if let Ok(file) = serde_yaml::from_str(text) {
            let _ = rules.add(file);
        }
        rules.sort();
        (language, rules)
    });
    all.collect()
});

/// For pages whose language is not known: what all agree on, and English.
static WITHOUT_LANGUAGE: LazyLock<Rules> =
    LazyLock::new(|| OF_LANGUAGES.get("en").cloned().unwrap_or_default());

/// For languages without a file.
static OTHERS: LazyLock<Rules> = LazyLock::new(|| {
    let mut rules = Rules::default();
    if let Ok(file) = serde_yaml::from_str(COMMON) {
        let _ = rules.add(file);
    }
    rules.sort();
    rules
});

impl Rules {
    /// The rules that come with the program, for `language`.
    pub fn of(language: Option<&str>) -> &'static Self {
        match language {
            Some(language) => OF_LANGUAGES.get(language).unwrap_or(&OTHERS),
            None => &WITHOUT_LANGUAGE,
        }
    }

    /// These rules and those of the users' `files`, which count more.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::BadFile`] when a file is none of rules.
    pub fn with_files(&self, files: &[impl AsRef<Path>]) -> Result<Self> {
        let mut rules = self.clone();
        for path in files {
            let path = path.as_ref();
            let text = std::fs::read_to_string(path).map_err(DataError::io(path))?;
            let file: RuleFile = serde_yaml::from_str(&text).map_err(|error| {
                DataError::bad_file(path, format!("not a file of template rules: {error}"))
            })?;
            rules.add(file).map_err(|reason| DataError::bad_file(path, reason))?;
        }
        rules.sort();
        Ok(rules)
    }

    fn add(&mut self, file: RuleFile) -> std::result::Result<(), String> {
        if !file.months.is_empty() {
            if file.months.len() != 12 {
                return Err(format!("{} months, expected 12", file.months.len()));
            }
            self.months = file.months;
        }
        let mut seen = HashSet::new();
        for (text, names) in file.print {
            let format = Format::parse(&text).map_err(|error| format!("{text:?}: {error}"))?;
            let index = self.formats.len();
            self.formats.push(format);
            for name in names {
                let name = normalized(&name);
                if !seen.insert(name.clone()) {
                    return Err(format!(
                        "the template {name:?} is in two rules; it prints one thing"
                    ));
                }
                match (name.strip_prefix('*'), name.strip_suffix('*')) {
                    (Some(ending), _) if !ending.is_empty() => {
                        self.suffixes.insert(0, (ending.to_owned(), index));
                    }
                    (_, Some(beginning)) if !beginning.is_empty() => {
                        self.prefixes.insert(0, (beginning.to_owned(), index));
                    }
                    _ => _ = self.exact.insert(name, index),
                }
            }
        }
        Ok(())
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
            let file: RuleFile =
                serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{language}: {e}"));
            assert!(language == "all" || file.months.len() == 12, "{language}");
            let mut rules = Rules::default();
            rules.add(file).unwrap_or_else(|e| panic!("{language}: {e}"));
            assert!(rules.exact.keys().all(|name| name.len() <= LONGEST_NAME));
        }
    }

    #[test]
    fn users_rules_count_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.yaml");
        std::fs::write(&path, "print:\n  '<{1}>': [nowrap, own thing, 'own-*']\n").unwrap();
        let rules = Rules::of(Some("en")).with_files(&[&path]).unwrap();
        for name in ["nowrap", "Own_thing", "own-x"] {
            assert!(!rules.find(name).unwrap().0.is_nothing(), "{name}");
        }
        assert!(rules.find("never heard of").is_none());
        for (text, says) in [
            ("prints: {}", "prints"),
            ("months: [a, b]", "2 months"),
            ("print: {'{1': [a]}", "{1"),
            ("print: {'[x': [a]}", "[x"),
            ("print: {x: [a, b], y: [B]}", "\"b\" is in two rules"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Rules::of(None).with_files(&[&path]).unwrap_err().to_string();
            assert!(error.contains("own.yaml") && error.contains(says), "{error}");
        }
    }
}
