//! The characters that get a piece of their own.

use super::words::WordCounts;

/// Code points there are.
const CODE_POINTS: usize = 0x11_0000;
/// The place of a character outside the alphabet.
const OUTSIDE: u32 = u32::MAX;

/// The most frequent characters of a sample, which together make up a share of it.
pub(super) struct Alphabet {
    /// The most frequent first, of equal ones the smaller code point; a space is `▁`.
    pub characters: Vec<char>,
    places: Vec<u32>,
}

impl Alphabet {
    /// The fewest characters that make up the share `coverage` of all. None when there is no
    /// character.
    pub fn of(words: &WordCounts, coverage: f64) -> Option<Self> {
        let mut counts = vec![0u64; CODE_POINTS];
        for (word, count) in words.iter() {
            for c in word.chars() {
                counts[spelled(c) as usize] += count;
            }
        }
        // A zero byte ends a text of SentencePiece and is not counted.
        counts[0] = 0;
        let total: u64 = counts.iter().sum();
        let mut counted: Vec<(u64, char)> = counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .filter_map(|(point, count)| Some((*count, char::from_u32(point as u32)?)))
            .collect();
        counted.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        // In f32 as SentencePiece computes it: the bound decides which characters there are.
        let wanted = coverage as f32;
        let mut alphabet = Self { characters: Vec::new(), places: vec![OUTSIDE; CODE_POINTS] };
        let mut covered = 0u64;
        for (count, c) in counted {
            if (covered as f64 / total as f64) as f32 >= wanted {
                break;
            }
            covered += count;
            if c != BOUNDARY {
                alphabet.places[c as usize] = alphabet.characters.len() as u32;
                alphabet.characters.push(c);
            }
        }
        (total > 0).then_some(alphabet)
    }

    /// The place of a character of a word, if it is in the alphabet.
    pub fn place(&self, c: char) -> Option<u32> {
        Some(self.places[spelled(c) as usize]).filter(|place| *place != OUTSIDE)
    }
}

/// Parts words where a mark was spelled out.
const BOUNDARY: char = '\u{1f}';

/// A character of a word as pieces spell it.
pub(super) fn spelled(c: char) -> char {
    if c == ' ' { SPACE } else { c }
}

/// Stands for a space in pieces.
pub(super) const SPACE: char = '\u{2581}';
