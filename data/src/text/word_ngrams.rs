//! Words of a text in a normal form, and hashes of every run of n of them.
//!
//! Overlap between texts is measured in these: shingles of 13 words for books and for
//! evaluation texts.

use xxhash_rust::xxh3::xxh3_64;

use super::python;

/// The words of a text: runs of what Python's `\w` matches (letters, numbers and the underscore),
/// in lower case.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// The words, a space after each.
    text: String,
    /// Where each word begins, and the end of the text.
    starts: Vec<usize>,
}

impl Words {
    /// The words of `text`.
    pub fn of(text: &str) -> Self {
        let mut words = Self::default();
        words.read(text);
        words
    }

    /// Replaces the words by those of `text`, keeping the memory.
    pub fn read(&mut self, text: &str) {
        self.text.clear();
        self.starts.clear();
        self.text.reserve(text.len() + 1);
        let mut inside = false;
        for c in text.chars() {
            if c == '_' || python::is_alnum(c) {
                if !inside {
                    self.starts.push(self.text.len());
                    inside = true;
                }
                if c.is_ascii() {
                    self.text.push(c.to_ascii_lowercase());
                } else {
                    self.text.extend(c.to_lowercase());
                }
            } else if inside {
                self.text.push(' ');
                inside = false;
            }
        }
        if inside {
            self.text.push(' ');
        }
        self.starts.push(self.text.len());
    }

    /// How many words there are.
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Whether there is no word.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `count` words from word `first` on, joined by single spaces; empty when there are not so
    /// many.
    pub fn run(&self, first: usize, count: usize) -> &str {
        let end = first.checked_add(count).and_then(|end| self.starts.get(end));
        match (self.starts.get(first), end) {
            (Some(&start), Some(&end)) => self.text[start..end].trim_end_matches(' '),
            _ => "",
        }
    }

    /// The hash of every run of `n` words, in order: xxh3-64 of the words joined by spaces. There
    /// is none when there are fewer words than `n`.
    pub fn ngrams(&self, n: usize) -> impl Iterator<Item = u64> {
        let text = self.text.as_bytes();
        let ends = self.starts.iter().skip(n.max(1));
        self.starts.iter().zip(ends).map(|(&start, &end)| xxh3_64(&text[start..end - 1]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_what_python_takes_for_them() {
        let words = Words::of("The 3rd “naïve” word_list—v2.0, Straße!\n");
        let runs: Vec<_> = (0..words.len()).map(|at| words.run(at, 1)).collect();
        assert_eq!(runs, ["the", "3rd", "naïve", "word_list", "v2", "0", "straße"]);
        assert_eq!(words.run(1, 2), "3rd naïve");
        assert_eq!(words.run(6, 2), "");
        assert!(Words::of(" … \n").is_empty());
        assert!(Words::default().is_empty());
    }

    #[test]
    fn ngrams_ignore_what_stands_between_words() {
        let hashes = |text: &str, n| Words::of(text).ngrams(n).collect::<Vec<_>>();
        assert_eq!(hashes("A b, c\nD.", 2), hashes("«a» B C d", 2));
        assert_eq!(hashes("a b c d", 2).len(), 3);
        assert_eq!(hashes("a b c d", 4).len(), 1);
        assert!(hashes("a b c d", 5).is_empty());
        assert!(hashes("", 1).is_empty());
        // The border between words counts.
        assert_ne!(hashes("ab c", 2), hashes("a bc", 2));
        assert_eq!(hashes("x a b c y", 3)[1], hashes("A-B-C", 3)[0]);
    }

    proptest! {
        #[test]
        fn any_text_is_cut_as_character_by_character(text in "\\PC*|[a-zA-Z_0-9 .é²٣ß\u{301}\n]*") {
            let word = |c: char| c == '_' || python::is_alnum(c);
            let expected: Vec<String> = text
                .split(|c| !word(c))
                .filter(|word| !word.is_empty())
                .map(|word| word.chars().flat_map(char::to_lowercase).collect())
                .collect();
            let words = Words::of(&text);
            let found: Vec<_> = (0..words.len()).map(|at| words.run(at, 1)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
