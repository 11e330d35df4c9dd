//! The pairs that may be merged next, the most frequent first.

use std::cmp::Ordering;

/// A pair in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queued {
    /// How often it stood in the text when it was queued; it may have become less.
    pub count: u64,
    /// Characters.
    pub length: u32,
    /// Number of the pair.
    pub pair: u32,
    /// Its first characters: pieces of one length with different ones come in this order.
    pub start: u64,
}

impl Queued {
    /// Greater comes first: the more frequent, of equal ones the shorter. `text` compares the
    /// pieces of two pairs where that does not decide; at last the pair that was seen first is
    /// greater, so that there is one order.
    fn compare(&self, other: &Self, text: &impl Fn(u32, u32) -> Ordering) -> Ordering {
        self.count
            .cmp(&other.count)
            .then(other.length.cmp(&self.length))
            .then(other.start.cmp(&self.start))
            .then_with(|| text(other.pair, self.pair))
            .then(other.pair.cmp(&self.pair))
    }
}

/// A binary heap whose order needs more than the entries have.
#[derive(Default)]
pub(super) struct Queue {
    entries: Vec<Queued>,
}

impl Queue {
    pub fn push(&mut self, entry: Queued, text: &impl Fn(u32, u32) -> Ordering) {
        let mut at = self.entries.len();
        self.entries.push(entry);
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.entries[parent].compare(&entry, text).is_ge() {
                break;
            }
            self.entries[at] = self.entries[parent];
            at = parent;
        }
        self.entries[at] = entry;
    }

    pub fn first(&self) -> Option<&Queued> {
        self.entries.first()
    }

    /// Takes the first entry out.
    pub fn pop(&mut self, text: &impl Fn(u32, u32) -> Ordering) -> Option<Queued> {
        let last = self.entries.pop()?;
        let Some(first) = self.entries.first().copied() else { return Some(last) };
        self.sink(last, text);
        Some(first)
    }

    /// Gives the first entry a smaller count.
    pub fn lower(&mut self, count: u64, text: &impl Fn(u32, u32) -> Ordering) {
        if let Some(first) = self.entries.first().copied() {
            self.sink(Queued { count, ..first }, text);
        }
    }

    /// Puts `entry` into the place of the first and moves it down to where it belongs.
    fn sink(&mut self, entry: Queued, text: &impl Fn(u32, u32) -> Ordering) {
        let mut at = 0;
        loop {
            let mut child = 2 * at + 1;
            let Some(left) = self.entries.get(child) else { break };
            if let Some(right) = self.entries.get(child + 1)
                && right.compare(left, text).is_gt()
            {
                child += 1;
            }
            if entry.compare(&self.entries[child], text).is_ge() {
                break;
            }
            self.entries[at] = self.entries[child];
            at = child;
        }
        self.entries[at] = entry;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order() {
        let text = |a: u32, b: u32| (a % 3).cmp(&(b % 3));
        let mut queue = Queue::default();
        let mut entries: Vec<Queued> = (0..500u32)
            .map(|pair| {
                let drawn = pair.wrapping_mul(2_654_435_761) >> 8;
                Queued {
                    count: u64::from(drawn % 7),
                    length: 2 + drawn % 3,
                    start: u64::from(drawn % 2),
                    pair,
                }
            })
            .collect();
        for entry in &entries {
            queue.push(*entry, &text);
        }
        // Some get a smaller count before they are taken.
        for _ in 0..50 {
            let first = *queue.first().unwrap();
            queue.lower(first.count / 2, &text);
            entries[first.pair as usize].count = first.count / 2;
        }
        entries.sort_by(|a, b| b.compare(a, &text));
        let taken: Vec<u32> =
            std::iter::from_fn(|| queue.pop(&text)).map(|entry| entry.pair).collect();
        let expected: Vec<u32> = entries.iter().map(|entry| entry.pair).collect();
        assert_eq!(taken, expected);
    }
}
