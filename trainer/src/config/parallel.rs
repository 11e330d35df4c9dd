//! How a run is spread over ranks.

use std::fmt;
use std::path::PathBuf;

use altiplano_model::parallel::{TensorRank, divisors};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::load::Problem;
use super::train::TrainConfig;

/// What the copies of a model split among each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Shard {
    /// Nothing: every copy is whole.
    None,
    /// Master weights and moments (ZeRO-1).
    Optimizer,
    /// Those and the gradients (ZeRO-2).
    Gradients,
    /// Those and the weights (ZeRO-3).
    Parameters,
}

impl Shard {
    /// Whether every micro-batch of a copy is added to sums of which each copy has a part, so that a
    /// copy never has all gradients.
    pub fn splits_gradients(self) -> bool {
        matches!(self, Self::Gradients | Self::Parameters)
    }

    /// Whether no copy has all weights.
    pub fn splits_weights(self) -> bool {
        self == Self::Parameters
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Optimizer => "optimizer",
            Self::Gradients => "gradients",
            Self::Parameters => "parameters",
        })
    }
}

/// How a run is spread over ranks, which a launcher such as `mpirun` starts. Nothing here decides
/// more than the rounding of the numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelConfig {
    /// Ranks that split every matrix. Default 1.
    pub tensor: usize,
    /// Whether those ranks split norms and the residual stream by tokens. Default true.
    pub sequence: bool,
    /// Copies of the model, each with micro-batches of its own. Default: ranks / tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<usize>,
    /// What the copies split. Default `optimizer`.
    pub shard: Shard,
    /// Whether ranks exchange while they compute. Default true. The numbers do not depend on it.
    pub overlap: bool,
    /// Gradients are exchanged in pieces of at least so many bytes. Default 32 MiB.
    pub bucket_bytes: usize,
    /// Seconds after which a rank that does not answer ends the run; five times as many around
    /// the first step, validations and checkpoints. Default 300.
    pub timeout: u64,
    /// Steps between comparisons of what ranks hold in common; 0 means never. Default 1000.
    pub check_every: u64,
    /// Weights or moments of more bytes are written to several files of a checkpoint, each by a rank of its own.
    /// Default 4 GiB.
    pub file_bytes: u64,
    /// Of ranks that are threads: bytes per second at which each sends, to see what a slow network does.
    /// Default: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_bytes_per_second: Option<u64>,
    /// The MPI library. Default: searched for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self {
            tensor: 1,
            sequence: true,
            data: None,
            shard: Shard::Optimizer,
            overlap: true,
            bucket_bytes: 32 << 20,
            timeout: 300,
            check_every: 1000,
            file_bytes: 4 << 30,
            link_bytes_per_second: None,
            library: None,
        }
    }
}

/// Most ranks of one kind.
const MOST_RANKS: usize = 1 << 20;
/// Longest time to wait for a rank, in seconds: a week.
const LONGEST_TIMEOUT: u64 = 7 * 24 * 3600;

fn numbers(fitting: impl IntoIterator<Item = usize>) -> String {
    fitting.into_iter().map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

impl TrainConfig {
    /// What a layout asks of the shapes, as far as the configuration alone tells.
    ///
    /// # Errors
    /// The first rule that does not hold, with what would fit.
    pub(crate) fn check_parallel(&self) -> Result<(), Problem> {
        let parallel = &self.parallel;
        for (key, found, most) in [
            ("parallel.tensor", parallel.tensor, MOST_RANKS),
            ("parallel.data", parallel.data.unwrap_or(1), MOST_RANKS),
            ("parallel.bucket_bytes", parallel.bucket_bytes, 1 << 40),
            ("parallel.timeout", parallel.timeout as usize, LONGEST_TIMEOUT as usize),
            ("parallel.file_bytes", parallel.file_bytes as usize, 1 << 50),
            (
                "parallel.link_bytes_per_second",
                parallel.link_bytes_per_second.unwrap_or(1) as usize,
                1 << 50,
            ),
        ] {
            if found == 0 || found > most {
                return Err(Problem::new(key, format!("found {found}, expected 1 to {most}")));
            }
        }
        self.check_tensor()?;
        parallel.data.map_or(Ok(()), |data| self.check_copies(data))
    }

    /// Whether `parallel.tensor` ranks can split the matrices and tokens.
    ///
    /// # Errors
    /// They cannot, with what would fit.
    fn check_tensor(&self) -> Result<(), Problem> {
        let t = self.parallel.tensor;
        if let Err(error) = TensorRank::all(t, &self.model) {
            return Err(Problem::of("parallel.tensor", error.to_string()));
        }
        let tokens = self.batch.micro_batch.saturating_mul(self.batch.seq_len);
        if self.parallel.sequence && !tokens.is_multiple_of(t) {
            return Err(Problem::new(
                "batch.micro_batch",
                format!(
                    "micro_batch x seq_len is {tokens} tokens, which parallel.tensor ({t}) ranks split; \
                     expected a multiple of {t}, or parallel.sequence=false"
                ),
            ));
        }
        Ok(())
    }

    /// Whether the micro-batches of a step can be dealt to `data` copies of the model.
    ///
    /// # Errors
    /// They are no multiple of the copies.
    pub(crate) fn check_copies(&self, data: usize) -> Result<(), Problem> {
        let found = self.batch.grad_accum_steps;
        if found.is_multiple_of(data) {
            return Ok(());
        }
        let below = found / data * data;
        let nearest = [below, below + data].into_iter().filter(|n| *n > 0);
        Err(Problem::new(
            "batch.grad_accum_steps",
            format!(
                "found {found} micro-batches of a step for {data} copies of the model (parallel.data); \
                 expected a multiple of {data}, the nearest: {}; or as many copies as divide {found}: {}",
                numbers(nearest),
                numbers(divisors(found))
            ),
        ))
    }
}
