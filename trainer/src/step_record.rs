//! What the ranks of a step tell each other, so that all decide alike.

use altiplano_comm::double_double::DoubleDouble;
use altiplano_data::Batch;

use crate::error::{Result, TrainerError};
use crate::metrics::peak_memory_bytes;
use crate::signals::{self, Signal};
use crate::world::{Ranks, first_signal};

/// What the ranks of a step tell of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RanksOfStep {
    /// A signal that has come to one of them.
    pub signal: Option<Signal>,
    /// Mean time that a rank waited for others, in seconds.
    pub communication_seconds: f64,
    /// The rank that computed longest.
    pub slowest: usize,
    /// Its time over the mean.
    pub slowest_over_mean: f64,
    /// The most memory that any rank has held, in bytes.
    pub peak_memory_bytes: u64,
}

/// What counts in a step, on all ranks together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Targets {
    /// Targets that count, at least 1.
    pub targets: usize,
    /// Tokens, without padding.
    pub tokens: u64,
}

impl Targets {
    /// Counts them, and holds the micro-batches of different ranks to being different.
    ///
    /// # Errors
    /// All ranks read the same data, or an exchange fails.
    pub fn of_step(ranks: &Ranks, batches: &[Batch]) -> Result<Self> {
        let targets = batches.iter().map(Batch::valid_targets).sum::<usize>();
        let origins = batches.iter().flat_map(|batch| &batch.origins);
        let tokens = origins.map(|origin| origin.tokens as u64).sum();
        if ranks.is_alone() {
            return Ok(Self { targets: targets.max(1), tokens });
        }
        let all = ranks.gather("targets of the step", &[targets as u64, tokens, mark(batches)])?;
        let grid = ranks.grid();
        let records: Vec<&[u64]> = all.chunks_exact(3).collect();
        let first_of_copy = |rank: usize| grid.tensor_group(rank)[0];
        let strays = |rank: &usize| records[*rank] != records[first_of_copy(*rank)];
        if let Some(rank) = (0..records.len()).find(strays) {
            return Err(ranks.agreed(TrainerError::Usage {
                message: format!(
                    "{} and {} split one copy of the model and read different data, expected the same",
                    ranks.name_of(first_of_copy(rank)),
                    ranks.name_of(rank)
                ),
            }));
        }
        let copies = records.iter().step_by(grid.tensor());
        let told = |place: usize| copies.clone().map(move |told| told[place]);
        if grid.data() > 1 && told(2).all(|mark| mark == all[2]) {
            return Err(ranks.agreed(TrainerError::Usage {
                message: format!(
                    "all {} copies of the model read the same data, expected micro-batches of its own on each",
                    grid.data()
                ),
            }));
        }
        Ok(Self { targets: told(0).sum::<u64>().max(1) as usize, tokens: told(1).sum() })
    }
}

/// A number that stands for the tokens of micro-batches and where they come from.
fn mark(batches: &[Batch]) -> u64 {
    let mut hash = blake3::Hasher::new();
    for batch in batches {
        let tokens: Vec<u8> = batch.inputs.iter().flat_map(|token| token.to_le_bytes()).collect();
        hash.update(&tokens);
        for origin in &batch.origins {
            hash.update(&origin.sequence.to_le_bytes());
            hash.update(&origin.epoch.to_le_bytes());
        }
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// What a rank tells of a step before the weights change.
#[derive(Debug)]
pub(crate) struct StepRecord {
    pub step: u64,
    /// Σ g² of its part of the gradients.
    pub squares: DoubleDouble,
    /// The number of the first parameter whose gradient it found not to be finite.
    pub not_finite: Option<usize>,
    /// Seconds that it waited for others.
    pub waited: f64,
    /// Seconds since the step began, waiting included.
    pub seconds: f64,
    /// Summed losses of each of its micro-batches.
    pub losses: Vec<f64>,
}

/// What the records of all ranks come to.
#[derive(Debug)]
pub(crate) struct Summed {
    /// Losses of all micro-batches, added in the order of the loader.
    pub loss: f64,
    /// The rank of the first micro-batch whose loss is not finite.
    pub rank_of_loss: usize,
    /// Σ g².
    pub squares: f64,
    /// The first parameter whose gradient is not finite, and the rank that found it.
    pub not_finite: Option<(usize, usize)>,
    pub ranks: Option<RanksOfStep>,
}

/// Numbers of a record before the losses.
const HEAD: usize = 8;

impl StepRecord {
    /// Exchanges the records.
    ///
    /// # Errors
    /// Ranks are at different steps, or the exchange fails.
    pub fn sum(self, ranks: &Ranks) -> Result<Summed> {
        if ranks.is_alone() {
            return Ok(Summed {
                loss: self.losses.iter().sum(),
                rank_of_loss: 0,
                squares: self.squares.round(),
                not_finite: self.not_finite.map(|index| (index, 0)),
                ranks: None,
            });
        }
        let mut own = vec![
            self.step,
            self.squares.hi.to_bits(),
            self.squares.lo.to_bits(),
            self.not_finite.map_or(0, |index| index as u64 + 1),
            u64::from(signals::pending().map_or(0, Signal::number)),
            self.waited.to_bits(),
            self.seconds.to_bits(),
            peak_memory_bytes(),
        ];
        own.extend(self.losses.iter().map(|loss| loss.to_bits()));
        let all = ranks.gather("the step record", &own)?;
        let records: Vec<&[u64]> = all.chunks_exact(own.len()).collect();
        if let Some(other) = records.iter().position(|record| record[0] != records[0][0]) {
            return Err(ranks.agreed(TrainerError::Usage {
                message: format!(
                    "ranks are out of step: {} is at step {}, {} at step {}",
                    ranks.name_of(0),
                    records[0][0],
                    ranks.name_of(other),
                    records[other][0]
                ),
            }));
        }
        let loss_of = |micro: usize, copy: usize| {
            let rank = copy * ranks.grid().tensor();
            (f64::from_bits(records[rank][HEAD + micro]), rank)
        };
        let copies = 0..ranks.grid().data();
        let micros =
            (0..self.losses.len()).flat_map(|micro| copies.clone().map(move |copy| (micro, copy)));
        let losses: Vec<(f64, usize)> = micros.map(|(micro, copy)| loss_of(micro, copy)).collect();
        let not_finite = records
            .iter()
            .enumerate()
            .filter(|(_, record)| record[3] > 0)
            .map(|(rank, record)| (record[3] as usize - 1, rank))
            .min();
        let squares = |record: &&[u64]| DoubleDouble {
            hi: f64::from_bits(record[1]),
            lo: f64::from_bits(record[2]),
        };
        let squares = records.iter().map(squares).fold(DoubleDouble::default(), DoubleDouble::plus);
        Ok(Summed {
            loss: losses.iter().map(|(loss, _)| loss).sum(),
            rank_of_loss: losses
                .iter()
                .find(|(loss, _)| !loss.is_finite())
                .map_or(0, |(_, rank)| *rank),
            squares: squares.round(),
            not_finite,
            ranks: Some(of_step(&records)),
        })
    }
}

fn of_step(records: &[&[u64]]) -> RanksOfStep {
    let count = records.len() as f64;
    let waited = |record: &[u64]| f64::from_bits(record[5]);
    let computed = |record: &[u64]| f64::from_bits(record[6]) - waited(record);
    let mean = records.iter().map(|record| computed(record)).sum::<f64>() / count;
    let slowest = records
        .iter()
        .enumerate()
        .max_by(|a, b| computed(a.1).total_cmp(&computed(b.1)))
        .map_or(0, |(rank, _)| rank);
    RanksOfStep {
        signal: first_signal(records.iter().map(|record| record[4])),
        communication_seconds: records.iter().map(|record| waited(record)).sum::<f64>() / count,
        slowest,
        slowest_over_mean: computed(records[slowest]) / mean.max(f64::MIN_POSITIVE),
        peak_memory_bytes: records.iter().map(|record| record[7]).max().unwrap_or(0),
    }
}
