//! Phrases looked for in lines without regard to case, all at once.
//!
//! "Without regard to case" is Python's: the phrase is looked for in `line.lower()`. For ASCII
//! phrases that is an ASCII comparison, but for two characters whose lower case is or contains an
//! ASCII letter, the Kelvin sign and the capital I with a dot.

use std::borrow::Cow;
use std::path::Path;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::error::{DataError, Result};
use crate::text::python;

/// Where a phrase counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boundary {
    /// Wherever it stands.
    Anywhere,
    /// Between two characters that are not `a` to `z`; so never at an end of the line. The rule
    /// of TFDS: `[^a-z](…)[^a-z]`.
    NotAToZ,
    /// Between characters that are no letter, digit or `_`, or the ends of the line. The rule of
    /// datatrove: `(?:\W|^)(…)(?:\W|$)`.
    NotWord,
}

/// `LISTS` lists of phrases.
#[derive(Debug)]
pub(super) struct Phrases<const LISTS: usize> {
    automaton: AhoCorasick,
    /// The list of each pattern.
    lists: Vec<usize>,
    boundary: Boundary,
    ascii: bool,
}

impl<const LISTS: usize> Phrases<LISTS> {
    pub fn new(
        phrases: [Vec<String>; LISTS],
        boundary: Boundary,
    ) -> std::result::Result<Self, String> {
        let phrases: Vec<(usize, String)> = phrases
            .into_iter()
            .enumerate()
            .flat_map(|(list, phrases)| phrases.into_iter().map(move |phrase| (list, phrase)))
            .map(|(list, phrase)| (list, phrase.to_lowercase()))
            .collect();
        // A few thousand phrases fit in the fast automaton.
        let bytes: usize = phrases.iter().map(|phrase| phrase.1.len()).sum();
        let kind = (bytes <= 1 << 16).then_some(AhoCorasickKind::DFA);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(true)
            .kind(kind)
            .build(phrases.iter().map(|phrase| &phrase.1))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            automaton,
            ascii: phrases.iter().all(|phrase| phrase.1.is_ascii()),
            lists: phrases.into_iter().map(|phrase| phrase.0).collect(),
            boundary,
        })
    }

    /// Which lists have a phrase in `line`.
    pub fn find(&self, line: &str) -> [bool; LISTS] {
        let mut found = [false; LISTS];
        let line = self.comparable(line);
        if self.lists.is_empty() || !self.automaton.is_match(&*line) {
            return found;
        }
        for matched in self.automaton.find_overlapping_iter(&*line) {
            let (before, after) = (&line[..matched.start()], &line[matched.end()..]);
            let counts = match self.boundary {
                Boundary::Anywhere => true,
                Boundary::NotAToZ => {
                    let other = |c: char| !c.to_ascii_lowercase().is_ascii_lowercase();
                    before.chars().next_back().is_some_and(other)
                        && after.chars().next().is_some_and(other)
                }
                Boundary::NotWord => {
                    let other = |c: char| !(python::is_alnum(c) || c == '_');
                    before.chars().next_back().is_none_or(other)
                        && after.chars().next().is_none_or(other)
                }
            };
            if counts {
                found[self.lists[matched.pattern().as_usize()]] = true;
            }
        }
        found
    }

    /// The line, in lower case where an ASCII comparison does not do.
    fn comparable<'a>(&self, line: &'a str) -> Cow<'a, str> {
        if line.is_ascii() || (self.ascii && !line.contains(['\u{212a}', '\u{130}'])) {
            Cow::Borrowed(line)
        } else {
            Cow::Owned(line.to_lowercase())
        }
    }
}

/// Reads a list with a word or phrase per line.
pub(super) fn read_bad_words(path: &Path, boundary: Boundary) -> Result<Phrases<1>> {
    let text = std::fs::read_to_string(path).map_err(DataError::io(path))?;
    let words: Vec<String> = python::split_lines(&text)
        .map(|line| python::strip(line).to_owned())
        .filter(|word| !word.is_empty())
        .collect();
    if words.is_empty() {
        return Err(DataError::bad_file(path, "an empty list; expected a word per line"));
    }
    Phrases::new([words], boundary).map_err(|reason| DataError::bad_file(path, reason))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn finds(words: &[&str], boundary: Boundary, line: &str) -> bool {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        Phrases::new([words], boundary).unwrap().find(line)[0]
    }

    #[test]
    fn boundaries_are_those_of_the_two_regular_expressions() {
        use Boundary::{Anywhere, NotAToZ, NotWord};
        let words = ["bad", "bad word", "x&y"];
        for (line, tfds, datatrove) in [
            ("a bad one", true, true),
            ("a BAD, one", true, true),
            ("a badge", false, false),
            ("a Bad", false, true),
            ("bad luck", false, true),
            ("2bad2", true, false),
            ("(bad)", true, true),
            ("_bad_", true, false),
            ("ébadé", true, false),
            ("so x&y.", true, true),
            ("a xbad badly bad!", true, true),
        ] {
            assert_eq!(finds(&words, NotAToZ, line), tfds, "tfds {line:?}");
            assert_eq!(finds(&words, NotWord, line), datatrove, "datatrove {line:?}");
            assert!(finds(&words, Anywhere, line));
        }
    }

    #[test]
    fn case_is_pythons() {
        let anywhere = Boundary::Anywhere;
        assert!(finds(&["use cookies"], anywhere, "We USE COO\u{212a}IES here"));
        assert!(!finds(&["kind"], anywhere, "k\u{130}nd"), "the dot comes between");
        assert!(finds(&["плохо"], anywhere, "Это ПЛОХО."));
        assert!(!finds(&[], anywhere, "anything"));
    }

    #[test]
    fn lists_are_told_apart_though_phrases_overlap() {
        let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let phrases = Phrases::new(
            [list(&["lorem ipsum"]), list(&["ipsum"]), list(&["x"])],
            Boundary::Anywhere,
        )
        .unwrap();
        assert_eq!(phrases.find("a LOREM ipsum b"), [true, true, false]);
    }

    #[test]
    fn a_list_is_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        std::fs::write(&path, "bad\r\n\n  Two Words \n").unwrap();
        let phrases = read_bad_words(&path, Boundary::NotAToZ).unwrap();
        assert!(phrases.find("with two words in it")[0]);
        std::fs::write(&path, "\n\n").unwrap();
        assert!(read_bad_words(&path, Boundary::NotAToZ).is_err());
    }
}
