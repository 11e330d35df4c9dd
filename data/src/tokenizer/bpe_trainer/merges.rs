//! Merging the most frequent pair, again and again.
//!
//! All segments lie in one text of cells, a cell a character, with a cell between two of them. A
//! symbol (a character, or a pair that was merged) has its number in the cell of its first
//! character; of a longer one the last cell says how long it is, so that both neighbours of a symbol
//! are found at once. A pair keeps where it stands; places that are no longer true are passed over.

use std::cmp::Ordering;

use rustc_hash::{FxHashMap, FxHashSet};

use super::alphabet::Alphabet;
use super::queue::{Queue, Queued};
use super::script::Script;
use super::segments::{Kind, Segments};

/// Longest piece in characters, SentencePiece's default.
const LONGEST: usize = 16;
/// Mark of the last cell of a longer symbol; the other bits are its length.
const LAST: u32 = 1 << 31;
/// A cell in which no symbol begins: between segments, or inside a symbol. No length is so large that
/// it looks like a last cell.
const NOTHING: u32 = u32::MAX;
/// The number of a pair that would make no piece.
const NO_PIECE: u32 = u32::MAX;
/// Bits of a character in [`Queued::start`].
const CHARACTER_BITS: u32 = 21;

/// Two symbols that stand beside each other.
struct Pair {
    left: u32,
    right: u32,
    /// How often they do.
    count: u64,
    /// First cells, ascending.
    places: Vec<u32>,
}

/// The state of the merging.
pub(super) struct Merges {
    cells: Vec<u32>,
    /// First cell of the segments of each count, ascending, with the count.
    counts: Vec<(u32, u64)>,
    /// The characters of all symbols, laid end to end, and where those of each symbol end.
    characters: Vec<char>,
    ends: Vec<u32>,
    /// Kinds of the characters of the alphabet, in the order of `alphabet`.
    kinds: FxHashMap<char, Kind>,
    pairs: Vec<Pair>,
    numbers: FxHashMap<(u32, u32), u32>,
    queue: Queue,
    /// What has been merged.
    pieces: FxHashSet<Box<[char]>>,
}

impl Merges {
    /// None when the segments have more characters than cells have numbers.
    pub fn new(segments: &Segments<'_>, alphabet: &Alphabet, kinds: &[Kind]) -> Option<Self> {
        let cells = segments.characters() + segments.counted.len() + 1;
        if cells >= LAST as usize {
            return None;
        }
        let mut merges = Self {
            cells: Vec::with_capacity(cells),
            counts: Vec::new(),
            characters: alphabet.characters.clone(),
            ends: (1..=alphabet.characters.len() as u32).collect(),
            kinds: alphabet.characters.iter().copied().zip(kinds.iter().copied()).collect(),
            pairs: Vec::new(),
            numbers: FxHashMap::default(),
            queue: Queue::default(),
            pieces: FxHashSet::default(),
        };
        merges.cells.push(NOTHING);
        for (segment, count) in &segments.counted {
            if merges.counts.last().is_none_or(|(_, last)| last != count) {
                merges.counts.push((merges.cells.len() as u32, *count));
            }
            let first = merges.cells.len();
            merges.cells.extend(Segments::places(segment, alphabet));
            for at in first..merges.cells.len() - 1 {
                merges.add(merges.cells[at], merges.cells[at + 1], at as u32, *count);
            }
            merges.cells.push(NOTHING);
        }
        merges.queue_from(0);
        Some(merges)
    }

    /// Merges the next pair and gives its characters; none when there is no pair left. Pairs that do
    /// not stand in the text any more are merged too when there is no other, as SentencePiece does.
    pub fn next(&mut self) -> Option<&[char]> {
        loop {
            let number = self.most_frequent()?;
            let piece: Box<[char]> = self.piece(number).collect();
            // Other symbols may make the same piece: `ab` + `c` what `a` + `bc` made.
            if self.pieces.insert(piece) {
                self.merge(number);
                break;
            }
            self.pairs[number as usize].places = Vec::new();
        }
        Some(self.characters_of(self.ends.len() as u32 - 1))
    }

    /// Takes the most frequent pair out of the queue. Counts have become smaller since pairs were queued.
    fn most_frequent(&mut self) -> Option<u32> {
        let order = text_order(&self.pairs, &self.characters, &self.ends);
        loop {
            let first = *self.queue.first()?;
            let count = self.pairs[first.pair as usize].count;
            if count == first.count {
                return self.queue.pop(&order).map(|first| first.pair);
            }
            self.queue.lower(count, &order);
        }
    }

    fn merge(&mut self, number: u32) {
        let Pair { left, right, .. } = self.pairs[number as usize];
        let places = std::mem::take(&mut self.pairs[number as usize].places);
        let (left_length, right_length) = (self.length(left), self.length(right));
        let length = left_length + right_length;
        let piece: Vec<char> = self.piece(number).collect();
        self.characters.extend(piece);
        let merged = self.ends.len() as u32;
        self.ends.push(self.characters.len() as u32);

        let first_new = self.pairs.len();
        let (mut class, mut class_end) = (0, 0);
        for at in places {
            let (middle, end) = (at + left_length, at + length);
            if self.cells[at as usize] != left || self.cells[middle as usize] != right {
                continue;
            }
            if at >= class_end {
                class += self.counts[class..].partition_point(|(start, _)| *start <= at);
                class_end = self.counts.get(class).map_or(u32::MAX, |(start, _)| *start);
            }
            let count = self.counts[class - 1].1;
            let before = self.before(at);
            let next = self.cells[end as usize];
            if let Some((_, symbol)) = before {
                self.subtract(symbol, left, count, number);
            }
            if next != NOTHING {
                self.subtract(right, next, count, number);
            }
            self.cells[at as usize] = merged;
            self.cells[middle as usize] = NOTHING;
            self.cells[end as usize - 1] = LAST | length;
            if let Some((before, symbol)) = before {
                self.add(symbol, merged, before, count);
            }
            if next != NOTHING {
                self.add(merged, next, at, count);
            }
        }
        self.queue_from(first_new);
    }

    /// First cell and number of the symbol before the one that begins at `at`.
    fn before(&self, at: u32) -> Option<(u32, u32)> {
        let last = at as usize - 1;
        let cell = self.cells[last];
        if cell == NOTHING {
            return None;
        }
        let first = if cell & LAST == 0 { last } else { at as usize - (cell & !LAST) as usize };
        Some((first as u32, self.cells[first]))
    }

    /// Notes that `left` and `right` stand at `at`, in a segment that comes `count` times.
    fn add(&mut self, left: u32, right: u32, at: u32, count: u64) {
        let number = match self.numbers.get(&(left, right)) {
            Some(number) => *number,
            None => self.new_pair(left, right),
        };
        if number != NO_PIECE {
            let pair = &mut self.pairs[number as usize];
            pair.count += count;
            pair.places.push(at);
        }
    }

    /// Notes that `left` and `right` stand beside each other at `count` places less. The pair that is
    /// being merged is done with.
    fn subtract(&mut self, left: u32, right: u32, count: u64, merging: u32) {
        if let Some(number) = self.numbers.get(&(left, right))
            && *number != NO_PIECE
            && *number != merging
        {
            self.pairs[*number as usize].count -= count;
        }
    }

    fn new_pair(&mut self, left: u32, right: u32) -> u32 {
        let number = if self.makes_piece(left, right) {
            self.pairs.push(Pair { left, right, count: 0, places: Vec::new() });
            self.pairs.len() as u32 - 1
        } else {
            NO_PIECE
        };
        self.numbers.insert((left, right), number);
        number
    }

    /// Whether two symbols beside each other may be a piece: it is not too long, has characters of
    /// one script, and a space only at its beginning unless it is all spaces.
    fn makes_piece(&self, left: u32, right: u32) -> bool {
        let length = self.length(left) + self.length(right);
        if length as usize > LONGEST {
            return false;
        }
        let kinds = || {
            let characters = self.characters_of(left).iter().chain(self.characters_of(right));
            characters.filter_map(|c| self.kinds.get(c).copied())
        };
        let only_spaces = kinds().all(|kind| kind == Kind::Space);
        let mut script = None;
        for (at, kind) in kinds().enumerate() {
            match kind {
                Kind::Space if at > 0 && !only_spaces => return false,
                Kind::Space => {}
                Kind::Digit => return false,
                Kind::Letter(Script::Inherited) => {}
                Kind::Letter(next) if script.is_some_and(|script| script != next) => return false,
                Kind::Letter(next) => script = Some(next),
            }
        }
        true
    }

    /// Queues the pairs from number `first` on.
    fn queue_from(&mut self, first: usize) {
        let order = text_order(&self.pairs, &self.characters, &self.ends);
        for number in first..self.pairs.len() {
            let pair = &self.pairs[number];
            let characters = piece(pair, &self.characters, &self.ends);
            let (mut start, mut length) = (0, 0);
            for c in characters {
                if length < u64::BITS / CHARACTER_BITS {
                    start = start << CHARACTER_BITS | u64::from(c);
                }
                length += 1;
            }
            let queued = Queued { count: pair.count, length, pair: number as u32, start };
            self.queue.push(queued, &order);
        }
    }

    fn piece(&self, pair: u32) -> impl Iterator<Item = char> {
        piece(&self.pairs[pair as usize], &self.characters, &self.ends)
    }

    fn characters_of(&self, symbol: u32) -> &[char] {
        characters_of(symbol, &self.characters, &self.ends)
    }

    fn length(&self, symbol: u32) -> u32 {
        self.characters_of(symbol).len() as u32
    }
}

fn characters_of<'a>(symbol: u32, characters: &'a [char], ends: &[u32]) -> &'a [char] {
    let start = symbol.checked_sub(1).map_or(0, |before| ends[before as usize]);
    &characters[start as usize..ends[symbol as usize] as usize]
}

/// The characters of a pair.
fn piece(pair: &Pair, characters: &[char], ends: &[u32]) -> impl Iterator<Item = char> {
    let left = characters_of(pair.left, characters, ends);
    left.iter().chain(characters_of(pair.right, characters, ends)).copied()
}

/// Compares the pieces of two pairs by their text.
fn text_order(pairs: &[Pair], characters: &[char], ends: &[u32]) -> impl Fn(u32, u32) -> Ordering {
    let text = |number: u32| piece(&pairs[number as usize], characters, ends);
    move |a, b| text(a).cmp(text(b))
}
