//! Batches of examples: a seeded order for every epoch, rows of several examples, whole passes.

use serde::{Deserialize, Serialize};

use super::examples::Examples;
use super::pack::pack;
use super::report::SftReport;
use crate::error::{DataError, Result};
use crate::loader::{Batch, IGNORED_TARGET, SequenceOrigin};
use crate::mixture::Permutation;

/// Rows without packing are as long as the longest of their pass, rounded up to this.
const LENGTH_STEP: usize = 64;
/// Examples of a row that are named in messages.
const MOST_NAMED: usize = 8;
/// More examples than any run draws; a position beyond is damaged.
const MOST_EXAMPLES: u64 = 1 << 56;

/// How batches are made of examples.
#[derive(Clone, Debug)]
pub struct ExampleLoaderOptions {
    /// Examples of an optimizer step.
    pub examples: usize,
    /// Rows of a pass.
    pub micro_batch: usize,
    /// Tokens of a row; no example is longer.
    pub max_length: usize,
    /// Whether several examples share a row.
    pub packing: bool,
    /// Another seed visits the examples in another order.
    pub seed: u64,
    /// The id that fills rows up.
    pub padding: u32,
}

/// Where a stream of examples stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExamplePosition {
    /// Examples drawn in all.
    pub examples: u64,
    /// Hash of all examples, of what of them is trained and of which are held out.
    pub fingerprint: String,
}

/// An endless stream of steps. What comes next depends only on how many examples were drawn.
#[derive(Debug)]
pub struct ExampleLoader {
    examples: Examples,
    options: ExampleLoaderOptions,
    drawn: u64,
}

impl ExampleLoader {
    /// A stream from its beginning.
    pub fn new(examples: Examples, options: ExampleLoaderOptions) -> Self {
        Self { examples, options, drawn: 0 }
    }

    /// The examples.
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// Where the stream stands.
    pub fn position(&self) -> ExamplePosition {
        ExamplePosition {
            examples: self.drawn,
            fingerprint: self.examples.fingerprint().to_owned(),
        }
    }

    /// Goes on from a position.
    ///
    /// # Errors
    /// [`DataError::StateMismatch`] when it is that of other examples.
    pub fn restore(&mut self, position: &ExamplePosition) -> Result<()> {
        let ours = self.examples.fingerprint();
        if position.fingerprint != ours || position.examples > MOST_EXAMPLES {
            return Err(DataError::StateMismatch {
                what: "the examples, their template or their tokenizer",
                found: position.fingerprint.clone(),
                expected: ours.to_owned(),
            });
        }
        self.drawn = position.examples;
        Ok(())
    }

    /// The passes of the next step: its examples in rows, filled up with empty rows to whole passes.
    pub fn next_step(&mut self) -> Vec<Batch> {
        let drawn = self.draw(self.drawn);
        self.drawn += drawn.len() as u64;
        self.passes(&drawn)
    }

    /// The numbers of the examples of a step that begins behind `before` drawn ones.
    fn draw(&self, before: u64) -> Vec<u32> {
        let train = self.examples.train();
        let count = train.len() as u64;
        let end = before + self.options.examples as u64;
        let (mut drawn, mut order) = (Vec::with_capacity(self.options.examples), None);
        for n in before..end {
            let epoch = n / count;
            let current = match order.take() {
                Some((of, order)) if of == epoch => order,
                _ => Permutation::new(count, self.options.seed, "examples", epoch),
            };
            drawn.push(train[current.apply(n % count) as usize]);
            order = Some((epoch, current));
        }
        drawn
    }

    /// The passes of the examples that are held out, in order.
    pub fn held_out(&self) -> impl Iterator<Item = Batch> + '_ {
        let per_step = self.options.examples.max(1);
        self.examples.held_out().chunks(per_step).flat_map(|examples| self.passes(examples))
    }

    /// Bytes of the text that is predicted in the examples that are held out.
    pub fn held_out_bytes(&self) -> u64 {
        self.examples.held_out().iter().map(|n| self.examples.trained_bytes(*n)).sum()
    }

    fn passes(&self, examples: &[u32]) -> Vec<Batch> {
        let rows = self.rows(examples);
        rows.chunks(self.options.micro_batch).map(|rows| self.pass(rows)).collect()
    }

    /// The examples of each row.
    fn rows(&self, examples: &[u32]) -> Vec<Vec<u32>> {
        let lengths: Vec<usize> = examples.iter().map(|n| self.examples.ids(*n).len()).collect();
        let rows = match self.options.packing {
            true => pack(&lengths, self.options.max_length),
            false => (0..lengths.len()).map(|n| vec![n]).collect(),
        };
        rows.into_iter().map(|row| row.into_iter().map(|n| examples[n]).collect()).collect()
    }

    /// Tokens of the examples of a row.
    fn tokens(&self, row: &[u32]) -> usize {
        row.iter().map(|n| self.examples.ids(*n).len()).sum()
    }

    /// Places of a row in a pass of `rows`.
    fn row_length(&self, rows: &[Vec<u32>]) -> usize {
        match self.options.packing {
            true => self.options.max_length,
            false => {
                let longest = rows.iter().map(|row| self.tokens(row)).max().unwrap_or(1);
                longest.next_multiple_of(LENGTH_STEP).min(self.options.max_length)
            }
        }
    }

    fn pass(&self, rows: &[Vec<u32>]) -> Batch {
        let time = self.row_length(rows);
        let batch_size = self.options.micro_batch;
        let places = batch_size * time;
        let mut batch = Batch {
            batch_size,
            seq_len: time,
            inputs: vec![self.options.padding as i32; places],
            targets: vec![IGNORED_TARGET; places],
            // Padding sees itself alone.
            first_visible: (0..batch_size).flat_map(|_| 0..time as i32).collect(),
            origins: vec![SequenceOrigin::default(); batch_size],
        };
        for (row, examples) in rows.iter().enumerate() {
            let mut at = 0;
            for &example in examples {
                self.put(&mut batch, row, at, example);
                at += self.examples.ids(example).len();
            }
            batch.origins[row] = self.origin(examples, at);
        }
        batch
    }

    /// Puts an example at place `at` of a row.
    fn put(&self, batch: &mut Batch, row: usize, at: usize, example: u32) {
        let ids = self.examples.ids(example);
        let first = row * batch.seq_len + at;
        let places = first..first + ids.len();
        for (input, id) in batch.inputs[places.clone()].iter_mut().zip(ids) {
            *input = *id as i32;
        }
        batch.first_visible[places].fill(at as i32);
        for trained in self.examples.trained(example) {
            for place in trained.filter(|place| *place > 0) {
                batch.targets[first + place - 1] = ids[place] as i32;
            }
        }
    }

    fn origin(&self, examples: &[u32], tokens: usize) -> SequenceOrigin {
        let named = examples.iter().take(MOST_NAMED).map(|n| self.examples.origin(*n));
        let mut names = named.collect::<Vec<_>>().join(" + ");
        if examples.len() > MOST_NAMED {
            names.push_str(&format!(" and {} more", examples.len() - MOST_NAMED));
        }
        SequenceOrigin {
            source: "examples".into(),
            shard: names.into(),
            tokens,
            ..Default::default()
        }
    }

    /// The account of the examples, with the rows of the first epoch, for a run of `steps` steps.
    pub fn report(&self, steps: u64) -> SftReport {
        let mut report = self.examples.report().clone();
        let step = self.options.examples.max(1) as u64;
        let epoch = (self.examples.train().len() as u64 / step).max(1);
        let (mut places, mut tokens) = (0, 0);
        for before in (0..epoch).map(|n| n * step) {
            let micro_batch = self.options.micro_batch;
            for rows in self.rows(&self.draw(before)).chunks(micro_batch) {
                report.rows += micro_batch as u64;
                places += micro_batch * self.row_length(rows);
                tokens += rows.iter().map(|row| self.tokens(row)).sum::<usize>();
            }
        }
        report.padding = 1.0 - tokens as f64 / places.max(1) as f64;
        report.steps = steps;
        report
    }
}
