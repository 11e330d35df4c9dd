//! Which sequences make the next batch.

use super::{LoaderOptions, Share};
use crate::mixture::{Permutation, SourceOrder};

/// A row of a batch to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub source: usize,
    /// Number of the sequence inside the source.
    pub sequence: u64,
    /// How often the source was gone through before.
    pub epoch: u64,
}

/// Decides the rows of one batch after the other. Its state is the number of sequences drawn from
/// each source; the rest follows from it.
#[derive(Clone, Debug)]
pub(super) struct Planner {
    order: SourceOrder,
    sources: Vec<PlannedSource>,
    drawn: Vec<u64>,
    batch_size: usize,
    seed: u64,
}

#[derive(Clone, Debug)]
struct PlannedSource {
    name: String,
    sequences: u64,
    /// The order of the current epoch, made when it is first needed.
    epoch: Option<(u64, Permutation)>,
}

impl Planner {
    /// A planner over sources of these names and numbers of sequences.
    pub fn new(order: SourceOrder, sources: Vec<(String, u64)>, options: &LoaderOptions) -> Self {
        Self {
            order,
            drawn: vec![0; sources.len()],
            sources: sources
                .into_iter()
                .map(|(name, sequences)| PlannedSource { name, sequences, epoch: None })
                .collect(),
            batch_size: options.batch_size,
            seed: options.seed,
        }
    }

    pub fn order(&self) -> &SourceOrder {
        &self.order
    }

    /// Sequences drawn from each source.
    pub fn drawn(&self) -> &[u64] {
        &self.drawn
    }

    /// Continues from these numbers of sequences drawn.
    pub fn restore(&mut self, drawn: &[u64]) {
        self.drawn.copy_from_slice(drawn);
    }

    /// The rows of the next batch.
    pub fn next_rows(&mut self) -> Vec<Row> {
        (0..self.batch_size).map(|_| self.next_row()).collect()
    }

    /// The rows of the batch that a share reads among the next batches, one for each share.
    pub fn next_rows_of(&mut self, share: Share) -> Vec<Row> {
        let mut own = Vec::new();
        for index in 0..share.of {
            let rows = self.next_rows();
            if index == share.index {
                own = rows;
            }
        }
        own
    }

    /// Draws the rows of so many batches without looking for their sequences.
    pub fn skip_batches(&mut self, batches: u64) {
        let rows = batches.saturating_mul(self.batch_size as u64);
        if let [drawn] = &mut self.drawn[..] {
            *drawn = drawn.saturating_add(rows);
            return;
        }
        for _ in 0..rows {
            let index = self.order.next(&self.drawn);
            self.drawn[index] += 1;
        }
    }

    fn next_row(&mut self) -> Row {
        let index = self.order.next(&self.drawn);
        let source = &mut self.sources[index];
        let draw = self.drawn[index];
        self.drawn[index] += 1;
        let (epoch, place) = (draw / source.sequences, draw % source.sequences);
        let sequence = match &source.epoch {
            Some((current, permutation)) if *current == epoch => permutation.apply(place),
            _ => {
                let permutation =
                    Permutation::new(source.sequences, self.seed, &source.name, epoch);
                let sequence = permutation.apply(place);
                source.epoch = Some((epoch, permutation));
                sequence
            }
        };
        Row { source: index, sequence, epoch }
    }
}
