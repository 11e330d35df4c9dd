//! Merging the symbols of a word.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::NO_SYMBOL;
use crate::tokenizer::model_proto::{Piece, PieceType};

/// An entry of the table that is not in use.
const EMPTY: u64 = u64::MAX;

/// What two symbols side by side merge to, with the rank of the merge: 0 is done first. A table
/// with open addressing, half full.
pub(super) struct MergeTable {
    entries: Box<[Entry]>,
    shift: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    pair: u64,
    merge: Merge,
}

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    symbol: u32,
}

impl MergeTable {
    /// The merges that end in one of `pieces`; `symbol` gives the symbol of a text.
    pub fn new<'a>(pieces: &'a [Piece], symbol: impl Fn(&'a str) -> Option<u32>) -> Self {
        // A piece with a space is never found: spaces are `▁` by then.
        let is_text = |piece: &Piece| {
            matches!(piece.kind, PieceType::Normal | PieceType::UserDefined)
                && !piece.text.contains(' ')
        };
        let mut scores: Vec<f32> =
            pieces.iter().filter(|piece| is_text(piece)).map(|piece| piece.score).collect();
        scores.sort_unstable_by(|a, b| b.partial_cmp(a).unwrap_or(Ordering::Equal));
        scores.dedup();
        let mut merges = Vec::new();
        for (id, piece) in pieces.iter().enumerate().filter(|(_, piece)| is_text(piece)) {
            // Equal scores have equal ranks.
            let rank = scores.partition_point(|score| *score > piece.score) as u32;
            let merge = Merge { rank, symbol: id as u32 };
            for (cut, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(cut);
                if let (Some(left), Some(right)) = (symbol(left), symbol(right)) {
                    merges.push((pair(left, right), merge));
                }
            }
        }
        let size = (2 * merges.len()).next_power_of_two().max(2);
        let empty = Entry { pair: EMPTY, merge: Merge { rank: 0, symbol: NO_SYMBOL } };
        let mut table =
            Self { entries: vec![empty; size].into(), shift: 64 - size.trailing_zeros() };
        for (pair, merge) in merges {
            let slot = table.slot(pair);
            table.entries[slot] = Entry { pair, merge };
        }
        table
    }

    /// The entry of `pair`, or the free one where it belongs. The table is never full.
    fn slot(&self, pair: u64) -> usize {
        let mut slot = (pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.entries[slot].pair != EMPTY && self.entries[slot].pair != pair {
            slot = (slot + 1) % self.entries.len();
        }
        slot
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        if left == NO_SYMBOL || right == NO_SYMBOL {
            return None;
        }
        let entry = self.entries[self.slot(pair(left, right))];
        (entry.pair != EMPTY).then_some(entry.merge)
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Most symbols of a word whose best pair is looked for among all pairs each time. Few words of a text
/// have more, and up to here that is faster than to keep the pairs in order.
const SCANNED: usize = 32;

/// The rank of two neighbours that do not merge.
const NO_RANK: u32 = u32::MAX;

/// Merges one word at a time, with memory that is used again.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    nodes: Vec<Node>,
    candidates: BinaryHeap<Reverse<Candidate>>,
}

/// A symbol of the word.
#[derive(Clone, Copy)]
pub(super) struct Symbol {
    /// Its number.
    pub symbol: u32,
    /// Its first byte in the word.
    pub start: usize,
    /// The merge with the next symbol: its rank, or [`NO_RANK`], and what becomes of the two.
    rank: u32,
    merged: u32,
}

impl Symbol {
    fn new(symbol: u32, start: usize) -> Self {
        Self { symbol, start, rank: NO_RANK, merged: NO_SYMBOL }
    }
}

/// A symbol in the list of a long word. One that was merged into its neighbour has no length.
#[derive(Clone, Copy)]
struct Node {
    symbol: u32,
    start: usize,
    length: usize,
    previous: Option<u32>,
    next: Option<u32>,
}

/// Two neighbours that make a piece: the lowest rank first, then the leftmost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    symbol: u32,
    /// Bytes of both. They are more once one of the two was merged with another.
    length: usize,
}

impl Merger {
    /// Merges the symbols of a word of `length` bytes, each given by its first byte and its number, in
    /// order. Returns those that are left; each reaches to the next one's first byte.
    pub fn merge(
        &mut self,
        table: &MergeTable,
        length: usize,
        symbols: impl Iterator<Item = (usize, u32)>,
    ) -> &[Symbol] {
        self.symbols.clear();
        self.symbols.extend(symbols.map(|(start, symbol)| Symbol::new(symbol, start)));
        if self.symbols.len() <= SCANNED {
            merge_by_scanning(table, &mut self.symbols);
        } else {
            self.merge_by_heap(table, length);
        }
        &self.symbols
    }

    fn merge_by_heap(&mut self, table: &MergeTable, length: usize) {
        self.nodes.clear();
        self.candidates.clear();
        let ends = self.symbols.iter().skip(1).map(|next| next.start).chain([length]);
        for (index, (symbol, end)) in self.symbols.iter().zip(ends).enumerate() {
            // A word of 2^32 characters does not fit into a text we accept: its tail would stay
            // unmerged.
            let index = u32::try_from(index).ok();
            let previous = index.and_then(|index| index.checked_sub(1));
            if let Some(last) = self.nodes.last_mut() {
                last.next = index;
            }
            let &Symbol { symbol, start, .. } = symbol;
            self.nodes.push(Node { symbol, start, length: end - start, previous, next: None });
        }
        for right in 1..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX) {
            self.consider(table, right - 1, right);
        }
        while let Some(Reverse(best)) = self.candidates.pop() {
            let (left, right) = (self.nodes[best.left as usize], self.nodes[best.right as usize]);
            let untouched =
                left.length != 0 && right.length != 0 && left.length + right.length == best.length;
            if !untouched {
                continue;
            }
            self.nodes[best.left as usize] =
                Node { symbol: best.symbol, length: best.length, next: right.next, ..left };
            self.nodes[best.right as usize].length = 0;
            if let Some(next) = right.next {
                self.nodes[next as usize].previous = Some(best.left);
                self.consider(table, best.left, next);
            }
            if let Some(previous) = left.previous {
                self.consider(table, previous, best.left);
            }
        }
        let left = self.nodes.iter().filter(|node| node.length != 0);
        self.symbols.clear();
        self.symbols.extend(left.map(|node| Symbol::new(node.symbol, node.start)));
    }

    fn consider(&mut self, table: &MergeTable, left: u32, right: u32) {
        let (a, b) = (self.nodes[left as usize], self.nodes[right as usize]);
        if let Some(Merge { rank, symbol }) = table.get(a.symbol, b.symbol) {
            let length = a.length + b.length;
            self.candidates.push(Reverse(Candidate { rank, left, right, symbol, length }));
        }
    }
}

/// Merges the symbols of a short word.
fn merge_by_scanning(table: &MergeTable, symbols: &mut Vec<Symbol>) {
    for at in 0..symbols.len() {
        pair_with_next(table, symbols, at);
    }
    // The first of equal ranks.
    while let Some((at, best)) = symbols.iter().enumerate().min_by_key(|(_, symbol)| symbol.rank)
        && best.rank != NO_RANK
    {
        symbols[at].symbol = best.merged;
        symbols.remove(at + 1);
        pair_with_next(table, symbols, at);
        if at > 0 {
            pair_with_next(table, symbols, at - 1);
        }
    }
}

/// Looks up what the symbol at `at` and the next one merge to.
#[inline]
fn pair_with_next(table: &MergeTable, symbols: &mut [Symbol], at: usize) {
    let next = symbols.get(at + 1).map_or(NO_SYMBOL, |next| next.symbol);
    let merge = table.get(symbols[at].symbol, next);
    let Merge { rank, symbol } = merge.unwrap_or(Merge { rank: NO_RANK, symbol: NO_SYMBOL });
    (symbols[at].rank, symbols[at].merged) = (rank, symbol);
}
