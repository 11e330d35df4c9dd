//! Merging the symbols of a word.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

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

/// Merges one word at a time, with memory that is used again.
#[derive(Default)]
pub(super) struct Merger {
    nodes: Vec<Node>,
    candidates: BinaryHeap<Reverse<Candidate>>,
}

/// A symbol of the word. One that was merged into its neighbour has no length.
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
    /// Merges `symbols`: place, length in bytes and number of each, in order.
    pub fn merge(
        &mut self,
        table: &MergeTable,
        symbols: impl Iterator<Item = (usize, usize, u32)>,
    ) {
        self.nodes.clear();
        self.candidates.clear();
        for (start, length, symbol) in symbols {
            // A word of 2^32 characters does not fit into a text we accept: its tail would stay
            // unmerged.
            let index = u32::try_from(self.nodes.len()).ok();
            let previous = index.and_then(|index| index.checked_sub(1));
            if let Some(last) = self.nodes.last_mut() {
                last.next = index;
            }
            self.nodes.push(Node { symbol, start, length, previous, next: None });
            if let (Some(left), Some(right)) = (previous, index) {
                self.consider(table, left, right);
            }
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
    }

    fn consider(&mut self, table: &MergeTable, left: u32, right: u32) {
        let (a, b) = (self.nodes[left as usize], self.nodes[right as usize]);
        if let Some(Merge { rank, symbol }) = table.get(a.symbol, b.symbol) {
            let length = a.length + b.length;
            self.candidates.push(Reverse(Candidate { rank, left, right, symbol, length }));
        }
    }

    /// The symbols that are left, each with its place in the word.
    pub fn symbols(&self) -> impl Iterator<Item = (Range<usize>, u32)> {
        let left = self.nodes.iter().filter(|node| node.length != 0);
        left.map(|node| (node.start..node.start + node.length, node.symbol))
    }
}
