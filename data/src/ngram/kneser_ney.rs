//! Modified Kneser-Ney smoothing, interpolated, as KenLM's `lmplz` does it without pruning.
//!
//! With `a` the adjusted count of an n-gram ([`AdjustedCounts`]), `D` the discount of its count
//! (Chen and Goodman 1998, eq. 26) and sums over all words `x` seen behind the context `h`
//! (Heafield et al. 2013, "Scalable Modified Kneser-Ney Language Model Estimation"):
//!
//! ```text
//! u(w | h) = (a(h w) − D(a(h w))) / Σ a(h x)       b(h) = Σ D(a(h x)) / Σ a(h x)
//! p(w | h) = u(w | h) + b(h) p(w | h less its first word)
//! p(w)     = u(w) + b / |V|
//! ```
//!
//! In one thing `lmplz` (KenLM 0.3.0) differs: for the numbers of n-grams with a count of 1 to 4,
//! from which the discounts come, it takes the plain count of the last n-gram of each lower order
//! (last in the order of the words from the end) for its adjusted one. On any but tiny texts that
//! changes no logarithm by more than 1e-6.
//!
//! `V` has `<unk>` and `</s>` but not `<s>`, which is never predicted. Its probability is written
//! as 1, which is what `lmplz` does.

use tempfile::TempDir;

use super::NGrams;
use super::adjusted_counts::AdjustedCounts;
use super::records::{
    Equal, Record, RecordFile, RecordReader, RecordWriter, Sorter, count, floats, set_floats,
};
use super::vocabulary::{BEGIN, UNKNOWN, Vocabulary};
use crate::error::{DataError, Result};

/// What `lmplz --discount_fallback` takes for an order whose counts give no discounts.
const FALLBACK: [f64; 3] = [0.5, 1.0, 1.5];

/// The base-10 logarithm that stands for 0 in ARPA files.
const LOG10_OF_ZERO: f64 = -99.0;

/// The model, and the discounts of each order.
pub(super) fn estimate(
    counts: AdjustedCounts,
    vocabulary: Vocabulary,
    fallback: bool,
    scratch: TempDir,
    memory_bytes: u64,
) -> Result<(NGrams, Vec<[f64; 3]>)> {
    let discounts = counts
        .of_counts
        .iter()
        .enumerate()
        .map(|(index, of_counts)| discounts(index + 1, *of_counts, fallback))
        .collect::<Result<Vec<_>>>()?;
    let unigrams = unigram_probabilities(&counts.unigrams, &discounts[0]);
    let mut orders = Vec::new();
    for (index, file) in counts.longer.into_iter().enumerate() {
        let order = index + 2;
        orders.push(Normalized::new(file, order, &discounts[order - 1], &scratch, memory_bytes)?);
    }
    let ngrams = interpolate(&unigrams, orders, vocabulary, scratch, memory_bytes)?;
    Ok((ngrams, discounts))
}

/// The discounts for n-grams of count 1, 2, and 3 or more.
fn discounts(order: usize, of_counts: [u64; 4], fallback: bool) -> Result<[f64; 3]> {
    let [one, two, ..] = of_counts.map(|count| count as f64);
    let y = one / (one + 2.0 * two);
    let mut found = [0.0; 3];
    for (index, discount) in found.iter_mut().enumerate() {
        let j = index as f64 + 1.0;
        *discount = j - (j + 1.0) * y * of_counts[index + 1] as f64 / of_counts[index] as f64;
        // Also for 0 divided by 0.
        let fits = (0.0..=j).contains(discount) && of_counts[index] > 0;
        if !fits && fallback {
            return Ok(FALLBACK);
        }
        if !fits {
            return Err(DataError::LanguageModel {
                reason: format!(
                    "{} n-grams of {order} words stand {} times in the text and {} once more: no \
                     discount follows from that; use more or more varied text, or set \
                     `discount_fallback`",
                    of_counts[index],
                    index + 1,
                    of_counts[index + 1]
                ),
            });
        }
    }
    Ok(found)
}

fn discount_of(count: u64, discounts: &[f64; 3]) -> f64 {
    match count {
        0 => 0.0,
        1 => discounts[0],
        2 => discounts[1],
        _ => discounts[2],
    }
}

/// Probability of each word; 0 for `<s>`.
fn unigram_probabilities(counts: &[u64], discounts: &[f64; 3]) -> Vec<f64> {
    let sum: u64 = counts.iter().sum();
    let sum = sum as f64;
    let held_back: f64 = counts.iter().map(|count| discount_of(*count, discounts)).sum();
    // Not `<s>`.
    let uniform = held_back / sum / (counts.len() - 1) as f64;
    let mut probabilities: Vec<f64> = counts
        .iter()
        .map(|&count| (count as f64 - discount_of(count, discounts)) / sum + uniform)
        .collect();
    probabilities[BEGIN as usize] = 0.0;
    probabilities
}

/// The n-grams of one order with `u` and their context's `b`, and the `b` of all contexts. Both
/// last word first and sorted.
struct Normalized {
    ngrams: RecordFile,
    contexts: RecordFile,
}

impl Normalized {
    fn new(
        mut counts: RecordFile,
        order: usize,
        discounts: &[f64; 3],
        scratch: &TempDir,
        memory_bytes: u64,
    ) -> Result<Self> {
        let folder = scratch.path();
        // Sorted by context first.
        let mut by_context = Sorter::new(folder, order, Equal::Keep, memory_bytes / 2);
        for record in counts.read()? {
            let mut record = record?;
            record[..order].rotate_left(1);
            by_context.push(record)?;
        }
        drop(counts);
        let mut by_context = by_context.finish()?;

        let mut ngrams = Sorter::new(folder, order, Equal::Keep, memory_bytes / 2);
        let mut contexts = RecordWriter::create(folder, order - 1)?;
        // The n-grams of one context: at most as many as there are words.
        let mut group: Vec<Record> = Vec::new();
        let mut finish = |group: &mut Vec<Record>| -> Result<()> {
            let Some(first) = group.first() else {
                return Ok(());
            };
            let sum = group.iter().map(count).fold(0, u64::saturating_add) as f64;
            let held_back: f64 =
                group.iter().map(|record| discount_of(count(record), discounts)).sum();
            let backoff = held_back / sum;
            let mut context = Record::default();
            context[..order - 1].copy_from_slice(&first[..order - 1]);
            set_floats(&mut context, backoff as f32, 0.0);
            contexts.write(&context)?;
            for mut record in group.drain(..) {
                let count = count(&record);
                let u = (count as f64 - discount_of(count, discounts)) / sum;
                record[..order].rotate_right(1);
                set_floats(&mut record, u as f32, backoff as f32);
                ngrams.push(record)?;
            }
            Ok(())
        };
        for record in by_context.read()? {
            let record = record?;
            if group.first().is_some_and(|first| first[..order - 1] != record[..order - 1]) {
                finish(&mut group)?;
            }
            group.push(record);
        }
        finish(&mut group)?;
        Ok(Self { ngrams: ngrams.finish()?, contexts: contexts.finish()? })
    }
}

/// Joins each order with the one below and with the backoffs of the one above.
fn interpolate(
    unigrams: &[f64],
    mut orders: Vec<Normalized>,
    vocabulary: Vocabulary,
    scratch: TempDir,
    memory_bytes: u64,
) -> Result<NGrams> {
    let mut ngrams = Vec::new();
    let mut backoffs = Vec::new();
    for Normalized { ngrams: file, contexts } in &mut orders {
        ngrams.push(Ahead::new(file.read()?)?);
        backoffs.push(Ahead::new(contexts.read()?)?);
    }
    let writers = (2..ngrams.len() + 2)
        .map(|n| RecordWriter::create(scratch.path(), n))
        .collect::<Result<Vec<_>>>()?;
    let mut pass = Interpolation { ngrams, backoffs, writers };
    let mut found = Vec::with_capacity(unigrams.len());
    for (id, &probability) in unigrams.iter().enumerate() {
        let mut record = Record::default();
        record[0] = id as u32;
        let backoff = pass.backoff(1, &record)?;
        let log10 = if id == BEGIN as usize { 0.0 } else { log10(probability) };
        found.push((log10, backoff));
        if id != UNKNOWN as usize {
            pass.extend(2, &record, probability)?;
        }
    }
    let writers = pass.finish()?;
    drop(orders);
    let longer = writers.into_iter().map(RecordWriter::finish).collect::<Result<_>>()?;
    Ok(NGrams {
        vocabulary,
        unigrams: found,
        longer,
        suffixes_complete: true,
        scratch,
        memory_bytes,
    })
}

/// A reader with a look at the next record.
struct Ahead<'a> {
    reader: RecordReader<'a>,
    next: Option<Record>,
}

impl<'a> Ahead<'a> {
    fn new(mut reader: RecordReader<'a>) -> Result<Self> {
        let next = reader.next().transpose()?;
        Ok(Self { reader, next })
    }

    /// The next record if its first words are those of `record`.
    fn take(&mut self, words: usize, record: &Record) -> Result<Option<Record>> {
        match self.next {
            Some(next) if next[..words] == record[..words] => {
                self.next = self.reader.next().transpose()?;
                Ok(Some(next))
            }
            _ => Ok(None),
        }
    }
}

struct Interpolation<'a> {
    /// Of each order from 2.
    ngrams: Vec<Ahead<'a>>,
    /// Of contexts of each order from 1.
    backoffs: Vec<Ahead<'a>>,
    /// Of each order from 2.
    writers: Vec<RecordWriter>,
}

impl Interpolation<'_> {
    /// Writes the n-grams of `order` and more words that end in those of `lower`, an n-gram of a
    /// word less with the probability `p`. The depth is at most the highest order.
    fn extend(&mut self, order: usize, lower: &Record, p: f64) -> Result<()> {
        let Some(ngrams) = self.ngrams.get_mut(order - 2) else {
            return Ok(());
        };
        let mut next = ngrams.take(order - 1, lower)?;
        while let Some(mut record) = next {
            let (u, context) = floats(&record);
            let probability = f64::from(u) + f64::from(context) * p;
            self.extend(order + 1, &record, probability)?;
            let backoff = self.backoff(order, &record)?;
            set_floats(&mut record, log10(probability), backoff);
            self.writers[order - 2].write(&record)?;
            next = self.ngrams[order - 2].take(order - 1, lower)?;
        }
        Ok(())
    }

    /// The logarithm of the backoff of an n-gram of `order` words.
    fn backoff(&mut self, order: usize, record: &Record) -> Result<f32> {
        let Some(backoffs) = self.backoffs.get_mut(order - 1) else {
            return Ok(0.0);
        };
        let found = backoffs.take(order, record)?;
        Ok(found.map_or(0.0, |record| log10(f64::from(floats(&record).0))))
    }

    /// Checks that everything was used.
    fn finish(self) -> Result<Vec<RecordWriter>> {
        let left = self.ngrams.iter().chain(&self.backoffs).any(|ahead| ahead.next.is_some());
        if left {
            return Err(DataError::LanguageModel {
                reason: "the n-grams of the orders do not fit together; is the disk of the \
                         temporary files in order?"
                    .into(),
            });
        }
        Ok(self.writers)
    }
}

fn log10(probability: f64) -> f32 {
    if probability > 0.0 { probability.log10() as f32 } else { LOG10_OF_ZERO as f32 }
}
