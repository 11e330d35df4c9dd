//! Words cut where no piece can lie across.

use rustc_hash::FxHashMap;

use super::alphabet::{Alphabet, SPACE, spelled};
use super::script::Script;
use super::words::WordCounts;

/// What decides whether a character may stand in a piece with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Space,
    /// Is a piece alone.
    Digit,
    Letter(Script),
}

impl Kind {
    pub fn of(c: char) -> Self {
        match c {
            SPACE => Self::Space,
            '0'..='9' | '０'..='９' => Self::Digit,
            _ => Self::Letter(Script::of(c)),
        }
    }

    /// Whether some piece may have this character and `next` behind it.
    fn may_join(self, next: Self) -> bool {
        match (self, next) {
            (Self::Digit, _) | (_, Self::Digit) => false,
            (Self::Letter(script), Self::Letter(next)) => {
                script == next || script == Script::Inherited || next == Script::Inherited
            }
            _ => true,
        }
    }
}

/// Segments of at least two characters of the alphabet, the most frequent first.
pub(super) struct Segments<'a> {
    /// Segments with their counts; spaces are plain.
    pub counted: Vec<(&'a str, u64)>,
}

impl<'a> Segments<'a> {
    pub fn of(words: &'a WordCounts, alphabet: &Alphabet, kinds: &[Kind]) -> Self {
        let mut counts: FxHashMap<&str, u64> = FxHashMap::default();
        for (word, count) in words.iter() {
            let mut segment = Open { word, start: 0, characters: 0 };
            let mut last: Option<Kind> = None;
            for (at, c) in word.char_indices() {
                let kind = alphabet.place(c).map(|place| kinds[place as usize]);
                let joins = last.zip(kind).is_some_and(|(last, kind)| last.may_join(kind));
                if !joins {
                    segment.close(at, count, &mut counts);
                }
                segment.characters += 1;
                last = kind;
            }
            segment.close(word.len(), count, &mut counts);
        }
        let mut counted: Vec<_> = counts.into_iter().collect();
        counted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        Self { counted }
    }

    /// Characters in all segments.
    pub fn characters(&self) -> usize {
        self.counted.iter().map(|(segment, _)| segment.chars().count()).sum()
    }

    /// The places of a segment's characters in the alphabet.
    pub fn places(segment: &str, alphabet: &Alphabet) -> impl Iterator<Item = u32> {
        segment.chars().filter_map(|c| alphabet.place(spelled(c)))
    }
}

/// The segment that is being read.
struct Open<'a> {
    word: &'a str,
    start: usize,
    characters: usize,
}

impl<'a> Open<'a> {
    /// Ends the segment before byte `at`.
    fn close(&mut self, at: usize, count: u64, counts: &mut FxHashMap<&'a str, u64>) {
        if self.characters > 1 {
            *counts.entry(&self.word[self.start..at]).or_default() += count;
        }
        (self.start, self.characters) = (at, 0);
    }
}
