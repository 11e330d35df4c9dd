//! What the Wikipedias call things: namespaces, redirects, tail sections, disambiguation.
//!
//! One table for the 20 languages of LLaMA (bg ca cs da de en es fr hr hu it nl pl pt ro ru sl sr
//! sv uk). Namespace names and redirect words are those of MediaWiki's message files and of the
//! `siteinfo` of the dumps; headings of tail sections and templates of disambiguation pages are
//! the customary ones of each edition. English names work in every edition, as in MediaWiki.

mod names;

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use names::{INTERLANGUAGE, LANGUAGES};

/// Longest name in any table, in bytes; nothing longer needs to be looked up.
const LONGEST_NAME: usize = 80;

/// Names of one edition, in lower case, with a `|` between those of one kind.
#[derive(Debug)]
struct LanguageNames {
    /// Language code.
    code: &'static str,
    /// Names of the file namespace.
    file: &'static str,
    /// Names of the category namespace.
    category: &'static str,
    /// Words of a redirect, with their `#`.
    redirect: &'static str,
    /// Headings of the sections at the end: references, links, literature.
    tail: &'static str,
    /// Templates of disambiguation pages.
    disambiguation: &'static str,
}

/// A namespace whose links are not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkNamespace {
    /// An image or another file, with a caption.
    File,
    /// A category of the page.
    Category,
    /// The same page in another language.
    Interlanguage,
}

/// Codes of the 20 languages.
pub fn languages() -> impl Iterator<Item = &'static str> {
    LANGUAGES.iter().map(|names| names.code)
}

/// The names one page may use: those of its language and the English ones, or those of all
/// languages when its language is not known.
#[derive(Debug)]
pub struct WikiNames {
    namespaces: HashMap<&'static str, LinkNamespace>,
    redirect: Vec<&'static str>,
    tail: HashSet<&'static str>,
    disambiguation: Vec<&'static str>,
}

impl WikiNames {
    /// The names of `language`; of all languages when it has no table.
    pub fn of(language: Option<&str>) -> &'static Self {
        static ALL: LazyLock<WikiNames> = LazyLock::new(|| WikiNames::collect(|_| true));
        static EACH: LazyLock<HashMap<&'static str, WikiNames>> = LazyLock::new(|| {
            let collect = |code| WikiNames::collect(|other| other == code || other == "en");
            languages().map(|code| (code, collect(code))).collect()
        });
        language.and_then(|code| EACH.get(code)).unwrap_or(&ALL)
    }

    fn collect(wanted: impl Fn(&str) -> bool) -> Self {
        let mut names = Self {
            namespaces: HashMap::new(),
            redirect: Vec::new(),
            tail: HashSet::new(),
            disambiguation: Vec::new(),
        };
        for code in INTERLANGUAGE.split_ascii_whitespace() {
            names.namespaces.insert(code, LinkNamespace::Interlanguage);
        }
        for language in LANGUAGES.iter().filter(|language| wanted(language.code)) {
            for file in language.file.split('|') {
                names.namespaces.insert(file, LinkNamespace::File);
            }
            for category in language.category.split('|') {
                names.namespaces.insert(category, LinkNamespace::Category);
            }
            names.redirect.extend(language.redirect.split('|'));
            names.tail.extend(language.tail.split('|'));
            names.disambiguation.extend(language.disambiguation.split('|'));
        }
        names
    }

    /// The namespace of a link's prefix, the part before its first colon, if its links are not
    /// text.
    pub fn namespace(&self, prefix: &str) -> Option<LinkNamespace> {
        self.namespaces.get(normalize(prefix)?.as_str()).copied()
    }

    /// Whether a section with this heading belongs to the tail of a page.
    pub fn is_tail_heading(&self, heading: &str) -> bool {
        normalize(heading.trim_end_matches(':'))
            .is_some_and(|heading| self.tail.contains(heading.as_str()))
    }

    /// Whether `template` marks a disambiguation page.
    pub fn is_disambiguation(&self, template: &str) -> bool {
        normalize(template).is_some_and(|name| self.disambiguation.contains(&name.as_str()))
    }

    /// Whether `wikitext` redirects to another page: the word, perhaps a colon, and a link.
    pub fn is_redirect(&self, wikitext: &str) -> bool {
        let text = wikitext.trim_start();
        text.starts_with('#')
            && self.redirect.iter().any(|word| {
                let mut found = text.chars();
                word.chars().all(|c| found.next().is_some_and(|other| lower(other) == c)) && {
                    let rest = found.as_str().trim_start();
                    rest.strip_prefix(':').unwrap_or(rest).trim_start().starts_with("[[")
                }
            })
    }
}

/// The lower case of `c` where that is one character.
fn lower(c: char) -> char {
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(one), None) => one,
        _ => c,
    }
}

/// `name` as in the tables: lower case, underscores as spaces, runs of spaces as one. None when
/// it is longer than any name.
fn normalize(name: &str) -> Option<String> {
    let name = name.trim_matches(|c: char| c.is_whitespace() || c == '_');
    if name.is_empty() || name.len() > LONGEST_NAME {
        return None;
    }
    let mut normal = String::with_capacity(name.len());
    for c in name.chars() {
        if c == '_' || c.is_whitespace() {
            if !normal.ends_with(' ') {
                normal.push(' ');
            }
        } else {
            normal.extend(c.to_lowercase());
        }
    }
    Some(normal)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_twenty_languages_have_all_names() {
        let codes: Vec<_> = languages().collect();
        assert_eq!(codes.join(" "), "bg ca cs da de en es fr hr hu it nl pl pt ro ru sl sr sv uk");
        for language in LANGUAGES {
            for table in [
                language.file,
                language.category,
                language.redirect,
                language.tail,
                language.disambiguation,
            ] {
                for name in table.split('|') {
                    assert_eq!(normalize(name).unwrap(), name, "{}", language.code);
                }
            }
            assert!(language.tail.split('|').count() >= 6, "{}", language.code);
        }
    }

    #[test]
    fn names_are_found_in_any_case_and_with_underscores() {
        let german = WikiNames::of(Some("de"));
        assert_eq!(german.namespace("Datei"), Some(LinkNamespace::File));
        assert_eq!(german.namespace(" bild_"), Some(LinkNamespace::File));
        assert_eq!(german.namespace("FILE"), Some(LinkNamespace::File));
        assert_eq!(german.namespace("Kategorie"), Some(LinkNamespace::Category));
        assert_eq!(german.namespace("zh-min-nan"), Some(LinkNamespace::Interlanguage));
        assert_eq!(german.namespace("Fichier"), None);
        assert_eq!(german.namespace("Star Trek"), None);
        assert_eq!(WikiNames::of(None).namespace("Fichier"), Some(LinkNamespace::File));
        assert_eq!(WikiNames::of(Some("xx")).namespace("Категория"), Some(LinkNamespace::Category));
        assert!(german.is_tail_heading("Siehe  auch:") && german.is_tail_heading("References"));
        assert!(!german.is_tail_heading("Geschichte"));
        assert!(WikiNames::of(Some("en")).is_disambiguation("Disambiguation"));
        assert!(german.is_disambiguation("Begriffsklärung"));
    }

    #[test]
    fn redirects_are_known_by_their_word() {
        let russian = WikiNames::of(Some("ru"));
        assert!(russian.is_redirect("#ПЕРЕНАПРАВЛЕНИЕ [[Москва]]"));
        assert!(russian.is_redirect("\n #redirect [[Москва]]"));
        assert!(russian.is_redirect("#Redirect : [[Москва]]"));
        assert!(!russian.is_redirect("#redirecting is described in [[Москва]]"));
        assert!(!russian.is_redirect("# list item"));
        assert!(!russian.is_redirect("ПЕРЕНАПРАВЛЕНИЕ"));
        assert!(!WikiNames::of(Some("de")).is_redirect("#ПЕРЕНАПРАВЛЕНИЕ [[Москва]]"));
    }
}
