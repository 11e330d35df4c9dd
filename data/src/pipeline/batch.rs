//! A batch of documents on its way through the steps of a stage.

use rayon::prelude::*;

use super::chain::DocumentStep;
use super::clock::Clock;
use super::stats::{StepStats, run_step};
use crate::document::{Document, Reason};
use crate::step::Verdict;

/// Text bytes and documents at which a batch is full. A batch per thread is in memory.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_DOCUMENTS: usize = 4096;
/// Documents of a batch that one thread sends through the steps together. How a batch is cut into
/// such parts does not depend on the number of threads.
const PART_DOCUMENTS: usize = 64;

/// Documents with the input file each came from.
#[derive(Default)]
pub(super) struct Batch {
    items: Vec<Item>,
    bytes: usize,
}

/// A document in a batch.
pub(super) struct Item {
    pub document: Document,
    /// Position of its input file in the task.
    pub input: usize,
    /// The step that dropped it, why, and its length when it entered that step.
    pub dropped: Option<(usize, Reason, String, u64)>,
}

/// Some documents of a batch after the steps.
pub(super) struct Part {
    pub items: Vec<Item>,
    pub stats: Vec<StepStats>,
}

impl Batch {
    pub fn push(&mut self, document: Document, input: usize) {
        self.bytes += document.text.len();
        self.items.push(Item { document, input, dropped: None });
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.items.len() >= BATCH_DOCUMENTS
    }

    /// Empties the batch through `steps`. The parts come back in order.
    pub fn run(&mut self, steps: &[DocumentStep], parallel: bool) -> Vec<Part> {
        self.bytes = 0;
        let mut items = std::mem::take(&mut self.items).into_iter();
        let mut parts: Vec<Vec<Item>> = Vec::new();
        while items.len() > 0 {
            parts.push(items.by_ref().take(PART_DOCUMENTS).collect());
        }
        if parallel {
            parts.into_par_iter().map(|items| run_part(items, steps)).collect()
        } else {
            parts.into_iter().map(|items| run_part(items, steps)).collect()
        }
    }
}

/// `items` with the documents at the places of `pieces` replaced by their pieces, in order.
fn with_pieces(items: Vec<Item>, pieces: Vec<(usize, Vec<Document>)>) -> Vec<Item> {
    let mut pieces = pieces.into_iter().peekable();
    let mut all = Vec::with_capacity(items.len());
    for (place, item) in items.into_iter().enumerate() {
        match pieces.next_if(|(at, _)| *at == place) {
            None => all.push(item),
            Some((_, documents)) => all.extend(documents.into_iter().map(|document| Item {
                document,
                dropped: None,
                ..item
            })),
        }
    }
    all
}

fn run_part(mut items: Vec<Item>, steps: &[DocumentStep]) -> Part {
    let mut all = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let clock = Clock::start();
        let mut stats = StepStats::default();
        // Pieces of split documents, with the place of the document.
        let mut pieces: Vec<(usize, Vec<Document>)> = Vec::new();
        for (place, item) in items.iter_mut().enumerate() {
            if item.dropped.is_some() {
                continue;
            }
            let bytes = item.document.text.len() as u64;
            match run_step(&*step.step, &mut item.document, &mut stats) {
                Verdict::Keep => {}
                Verdict::Split(documents) => pieces.push((place, documents)),
                Verdict::Drop { reason, detail } => {
                    item.dropped = Some((index, reason, detail, bytes));
                }
            }
        }
        if !pieces.is_empty() {
            items = with_pieces(items, pieces);
        }
        clock.stop(&mut stats.cpu_seconds);
        all.push(stats);
    }
    Part { items, stats: all }
}
