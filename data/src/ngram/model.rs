//! A memory-mapped n-gram model, and scoring with it.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::MOST_WORDS;
use super::binary::{
    ALIGNMENT, BYTE_ORDER, CHECKSUM_BYTES, Footer, MAGIC, MOST_PROBES, Slot, Unigram, VERSION,
    capacity, first_slot, hash_before, hash_word, stored,
};
use super::vocabulary::{BEGIN, END, UNKNOWN, Vocabulary, WordId};
use crate::error::{DataError, Result};

/// A memory-mapped n-gram model. Opening it checks sizes and checksum.
///
/// The file must not be changed in place while it is mapped; altiplano replaces files by renaming.
pub struct NGramModel {
    map: Mmap,
    path: PathBuf,
    checksum: blake3::Hash,
    vocabulary: Vocabulary,
    order: usize,
    suffixes_complete: bool,
    seed: u64,
    unigrams: Range<usize>,
    /// Place and n-grams of each order from 2.
    tables: Vec<(Range<usize>, u64)>,
}

impl std::fmt::Debug for NGramModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NGramModel")
            .field("path", &self.path)
            .field("order", &self.order)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl NGramModel {
    /// Maps the file `path`.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::BadFile`] when it is not a model, is damaged or of another
    /// version.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io(path))?;
        // SAFETY: the mapping is read-only. That no one truncates or writes the file while it is
        // mapped is the caller's part, said at `NGramModel`.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path))?;
        Self::read(path, map)
    }

    fn read(path: &Path, map: Mmap) -> Result<Self> {
        let fail = |reason: String| DataError::bad_file(path, reason);
        if !map.starts_with(&MAGIC) {
            return Err(fail(
                "not an n-gram model of altiplano; give an ARPA file to \
                 `altiplano data import-lm` to make one"
                    .into(),
            ));
        }
        let cut = || fail("the n-gram model is cut short or damaged; make it again".into());
        let checked = map.len().checked_sub(CHECKSUM_BYTES).ok_or_else(cut)?;
        let body = checked.checked_sub(size_of::<Footer>()).ok_or_else(cut)?;
        let footer: Footer = bytemuck::pod_read_unaligned(&map[body..checked]);
        if footer.magic != MAGIC {
            return Err(cut());
        }
        if footer.version != VERSION || footer.byte_order != BYTE_ORDER {
            return Err(fail(format!(
                "n-gram model of version {} and byte order {:08x}, expected {VERSION} and \
                 {BYTE_ORDER:08x}; make it again on this machine",
                footer.version, footer.byte_order
            )));
        }
        let order = footer.order as usize;
        if !(2..=MOST_WORDS).contains(&order) {
            return Err(fail(format!("order {order}, expected 2 to {MOST_WORDS}")));
        }
        // The parts, one behind the other.
        let mut at = ALIGNMENT;
        let mut part = |count: u64, size: usize| -> Option<Range<usize>> {
            let start = at.checked_next_multiple_of(ALIGNMENT)?;
            let end = start.checked_add(usize::try_from(count).ok()?.checked_mul(size)?)?;
            at = end;
            (end <= body).then_some(start..end)
        };
        let unigrams = part(footer.words, size_of::<Unigram>()).ok_or_else(cut)?;
        let text = part(footer.text_bytes, 1).ok_or_else(cut)?;
        let mut tables = Vec::new();
        for (&entries, &slots) in footer.entries.iter().zip(&footer.slots).take(order - 1) {
            tables.push((part(slots, size_of::<Slot>()).ok_or_else(cut)?, entries));
        }
        if at.checked_next_multiple_of(ALIGNMENT) != Some(body) {
            return Err(cut());
        }
        let checksum = blake3::hash(&map[..checked]);
        if checksum.as_bytes() != &map[checked..] {
            return Err(fail("the checksum is wrong: the file is damaged; make it again".into()));
        }
        let text = std::str::from_utf8(&map[text]).map_err(|_| cut())?;
        let vocabulary = vocabulary(text, footer.words)
            .ok_or_else(|| fail("its list of words is damaged; make it again".into()))?;
        Ok(Self {
            path: path.to_owned(),
            checksum,
            vocabulary,
            order,
            suffixes_complete: footer.suffixes_complete == 1,
            seed: footer.seed,
            unigrams,
            tables,
            map,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checksum at the end of the file: the blake3 hash of all before it.
    pub fn checksum(&self) -> String {
        self.checksum.to_hex().to_string()
    }

    /// Words of the longest n-grams.
    pub fn order(&self) -> usize {
        self.order
    }

    /// How many n-grams there are of each order, from 1.
    pub fn counts(&self) -> Vec<u64> {
        let unigrams = self.vocabulary.len() as u64;
        std::iter::once(unigrams).chain(self.tables.iter().map(|(_, entries)| *entries)).collect()
    }

    /// The words.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// A view to score with. Making one costs next to nothing.
    pub fn scorer(&self) -> Scorer<'_> {
        let mut tables = [Table::default(); MOST_WORDS - 1];
        for (table, (range, entries)) in tables.iter_mut().zip(&self.tables) {
            // The parts are aligned, so the cast holds.
            let slots = bytemuck::try_cast_slice(&self.map[range.clone()]).unwrap_or_default();
            *table = Table { slots, capacity: capacity(*entries) };
        }
        let unigrams =
            bytemuck::try_cast_slice(&self.map[self.unigrams.clone()]).unwrap_or_default();
        Scorer {
            unigrams,
            tables,
            order: self.order,
            suffixes_complete: self.suffixes_complete,
            seed: self.seed,
        }
    }

    /// Scores a sentence between `<s>` and `</s>`.
    pub fn score_sentence(&self, words: impl IntoIterator<Item = WordId>) -> Score {
        self.scorer().sentence(words)
    }

    /// Scores a line of words with white space between them.
    pub fn score_line(&self, line: &str) -> Score {
        let words = line.split(super::vocabulary::is_delimiter).filter(|word| !word.is_empty());
        self.score_sentence(words.map(|word| self.vocabulary.id(word)))
    }
}

/// The words of a file's list, if there are `count` and all differ.
fn vocabulary(text: &str, count: u64) -> Option<Vocabulary> {
    let mut vocabulary = Vocabulary::default();
    let marks = vocabulary.len();
    for (index, word) in text.split_terminator('\n').enumerate() {
        let expected = u32::try_from(index).ok()?;
        let id = if index < marks { vocabulary.find(word)? } else { vocabulary.add(word).ok()? };
        if id != expected {
            return None;
        }
    }
    let all = text.ends_with('\n') && vocabulary.len() as u64 == count;
    all.then_some(vocabulary)
}

#[derive(Clone, Copy, Default)]
struct Table<'a> {
    slots: &'a [Slot],
    capacity: u64,
}

impl<'a> Table<'a> {
    #[inline]
    fn find(&self, hash: u64) -> Option<&'a Slot> {
        let hash = stored(hash);
        let first = usize::try_from(first_slot(hash, self.capacity)).ok()?;
        for slot in self.slots.get(first..)?.iter().take(MOST_PROBES) {
            if slot.hash == hash {
                return Some(slot);
            }
            if slot.hash == 0 || slot.hash > hash {
                return None;
            }
        }
        None
    }
}

/// The words before the next one that the model knows together, and their backoffs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct State {
    length: usize,
    /// The last word first.
    words: [WordId; MOST_WORDS - 1],
    /// The logarithm of the backoff of the last word, the last two, and so on.
    backoffs: [f32; MOST_WORDS - 1],
}

/// What a text scored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// The base-10 logarithm of its probability.
    pub log10: f64,
    /// Words, the end of the sentence included.
    pub tokens: u64,
}

impl Score {
    /// Perplexity: `10^(−log10/tokens)`. Without tokens it is not a number.
    pub fn perplexity(&self) -> f64 {
        10f64.powf(-self.log10 / self.tokens as f64)
    }
}

/// A view of a model to score with.
#[derive(Clone, Copy)]
pub struct Scorer<'a> {
    unigrams: &'a [Unigram],
    /// Of each order from 2.
    tables: [Table<'a>; MOST_WORDS - 1],
    order: usize,
    suffixes_complete: bool,
    seed: u64,
}

impl Scorer<'_> {
    /// The state behind nothing at all.
    pub fn empty(&self) -> State {
        State::default()
    }

    /// The state at the beginning of a sentence.
    pub fn begin(&self) -> State {
        let mut state = State { length: 1, ..State::default() };
        state.words[0] = BEGIN;
        state.backoffs[0] = self.unigram(BEGIN).backoff;
        state
    }

    /// The base-10 logarithm of the probability of `word` behind `state`, and the state behind
    /// `word`. A number outside the vocabulary is [`UNKNOWN`].
    #[inline]
    pub fn score(&self, state: &State, word: WordId) -> (f32, State) {
        let word = if (word as usize) < self.unigrams.len() { word } else { UNKNOWN };
        let unigram = self.unigram(word);
        let mut next = State { length: 1, ..State::default() };
        next.words[0] = word;
        next.backoffs[0] = unigram.backoff;
        let mut log10 = unigram.log10;
        let mut matched = 0;
        let mut hash = hash_word(self.seed, word);
        let before = state.words.iter().take(state.length.min(self.order - 1));
        for (at, (&earlier, table)) in before.zip(&self.tables).enumerate() {
            hash = hash_before(hash, earlier);
            let found = table.find(hash);
            if found.is_none() && self.suffixes_complete {
                break;
            }
            if let Some(slot) = found {
                log10 = slot.log10;
                matched = at + 1;
            }
            // A context is one word shorter than the longest n-gram.
            if at + 2 < self.order {
                next.words[at + 1] = earlier;
                next.backoffs[at + 1] = found.map_or(0.0, |slot| slot.backoff);
                next.length = at + 2;
            }
        }
        // What the longer contexts held back.
        let backoffs = state.backoffs.iter().take(state.length).skip(matched);
        (log10 + backoffs.sum::<f32>(), next)
    }

    /// Scores a sentence between `<s>` and `</s>`.
    pub fn sentence(&self, words: impl IntoIterator<Item = WordId>) -> Score {
        let mut state = self.begin();
        let mut score = Score::default();
        for word in words.into_iter().chain([END]) {
            let (log10, next) = self.score(&state, word);
            score.log10 += f64::from(log10);
            score.tokens += 1;
            state = next;
        }
        score
    }

    fn unigram(&self, word: WordId) -> Unigram {
        self.unigrams.get(word as usize).copied().unwrap_or(Unigram { log10: -100.0, backoff: 0.0 })
    }
}
