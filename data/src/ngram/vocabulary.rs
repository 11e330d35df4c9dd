//! Words and their numbers.

use std::collections::HashMap;

use crate::error::{DataError, Result};

/// Number of a word.
pub type WordId = u32;

/// What no other word covers.
pub const UNKNOWN: WordId = 0;
/// The beginning of a sentence.
pub const BEGIN: WordId = 1;
/// The end of a sentence.
pub const END: WordId = 2;

/// The names of the first three words, as every ARPA file has them.
const MARKS: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// Words in the order they were first seen, behind `<unk>`, `<s>` and `</s>`.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// The words end to end.
    text: String,
    /// Where each word ends.
    ends: Vec<usize>,
    ids: HashMap<Box<str>, WordId>,
}

impl Default for Vocabulary {
    /// The marks only.
    fn default() -> Self {
        let mut vocabulary = Self { text: String::new(), ends: Vec::new(), ids: HashMap::new() };
        for mark in MARKS {
            vocabulary.insert(mark, vocabulary.ends.len() as u32);
        }
        vocabulary
    }
}

impl Vocabulary {
    /// How many words there are, marks included.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is nothing but the marks.
    pub fn is_empty(&self) -> bool {
        self.len() == MARKS.len()
    }

    /// The word's number; [`UNKNOWN`] if it is not there.
    pub fn id(&self, word: &str) -> WordId {
        self.ids.get(word).copied().unwrap_or(UNKNOWN)
    }

    /// The number of a word that is there, be it a mark.
    pub fn find(&self, word: &str) -> Option<WordId> {
        self.ids.get(word).copied()
    }

    /// The word of a number.
    pub fn word(&self, id: WordId) -> Option<&str> {
        let index = id as usize;
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.text.get(start..end)
    }

    /// All words, by number.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.word(index as u32))
    }

    /// The number of `word`, which is added if it is new.
    ///
    /// # Errors
    /// [`DataError::LanguageModel`] when there are 2^32 words.
    pub(super) fn add(&mut self, word: &str) -> Result<WordId> {
        if let Some(id) = self.find(word) {
            return Ok(id);
        }
        let id = WordId::try_from(self.len()).map_err(|_| DataError::LanguageModel {
            reason: "the text has more than 2^32 different words".into(),
        })?;
        self.insert(word, id);
        Ok(id)
    }

    fn insert(&mut self, word: &str, id: WordId) {
        self.text.push_str(word);
        self.ends.push(self.text.len());
        self.ids.insert(word.into(), id);
    }
}

/// Whether `word` can stand in a model: not empty, no white space, no mark.
pub(super) fn is_plain(word: &str) -> bool {
    !word.is_empty() && !word.contains(is_delimiter) && !MARKS.contains(&word)
}

/// Whether `character` ends a word in an ARPA file.
pub(super) fn is_delimiter(character: char) -> bool {
    matches!(character, '\0' | '\t'..='\r' | ' ')
}
