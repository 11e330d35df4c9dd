//! The counts of n-grams of all orders that Kneser-Ney smoothing takes, from those of the highest.
//!
//! Sorted by the last word, then the one before it, and so on, the n-grams of all orders pass by in
//! one stream.

use std::path::Path;

use super::records::{Record, RecordFile, RecordWriter, count, set_count};
use super::vocabulary::{BEGIN, Vocabulary};
use crate::error::Result;

/// The counts that modified Kneser-Ney smoothing takes (Chen and Goodman 1998; Heafield et al.
/// 2013, section 3.2): how often the n-gram stands in the text for the highest order and for
/// those that begin a sentence, and how many different words stand before it for the others.
pub(super) struct AdjustedCounts {
    /// By number of the word; 0 for `<unk>` and `<s>`.
    pub unigrams: Vec<u64>,
    /// N-grams of each order from 2, last word first, sorted.
    pub longer: Vec<RecordFile>,
    /// How many n-grams of each order from 1 have a count of 1, 2, 3 and 4.
    pub of_counts: Vec<[u64; 4]>,
}

impl AdjustedCounts {
    pub fn new(
        mut windows: RecordFile,
        order: usize,
        vocabulary: &Vocabulary,
        folder: &Path,
    ) -> Result<Self> {
        let mut pass = AdjustPass {
            unigrams: vec![0; vocabulary.len()],
            writers: (2..=order).map(|n| RecordWriter::create(folder, n)).collect::<Result<_>>()?,
            of_counts: vec![[0; 4]; order],
            open: vec![0; order],
            last: None,
        };
        for window in windows.read()? {
            pass.add(&window?, order)?;
        }
        pass.close(0)?;
        let AdjustPass { unigrams, writers, of_counts, .. } = pass;
        let longer = writers.into_iter().map(RecordWriter::finish).collect::<Result<_>>()?;
        Ok(Self { unigrams, longer, of_counts })
    }
}

struct AdjustPass {
    unigrams: Vec<u64>,
    writers: Vec<RecordWriter>,
    of_counts: Vec<[u64; 4]>,
    /// Counts so far of the n-grams of each order that end the current window.
    open: Vec<u64>,
    /// The current window and how many of its words are not padding.
    last: Option<(Record, usize)>,
}

impl AdjustPass {
    fn add(&mut self, window: &Record, order: usize) -> Result<()> {
        // One mark of the beginning is a word, the others are padding.
        let begin = window[..order].iter().position(|word| *word == BEGIN);
        let words = begin.map_or(order, |at| at + 1);
        let same = match &self.last {
            Some((last, _)) => (0..order).take_while(|&at| last[at] == window[at]).count(),
            None => 0,
        };
        self.close(same)?;
        // The n-grams of more than `same` words are new. Each is another one before the n-gram
        // that is a word shorter.
        for n in same + 1..=words {
            if n >= 2 {
                self.open[n - 2] += 1;
            }
            self.open[n - 1] = 0;
        }
        // The longest is counted as it stands: nothing is before it, or nothing that is counted.
        self.open[words - 1] = count(window);
        self.last = Some((*window, words));
        Ok(())
    }

    /// Writes the open n-grams of more than `same` words.
    fn close(&mut self, same: usize) -> Result<()> {
        let Some((window, words)) = self.last else {
            return Ok(());
        };
        for n in same + 1..=words {
            let count = self.open[n - 1];
            if let Some(of_count) = count
                .checked_sub(1)
                .and_then(|index| self.of_counts[n - 1].get_mut(usize::try_from(index).ok()?))
            {
                *of_count += 1;
            }
            if n == 1 {
                self.unigrams[window[0] as usize] = count;
                continue;
            }
            let mut record = Record::default();
            record[..n].copy_from_slice(&window[..n]);
            set_count(&mut record, count);
            self.writers[n - 2].write(&record)?;
        }
        Ok(())
    }
}
