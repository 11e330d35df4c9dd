//! `altiplano data batches`: what a run will see.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::batch_dump::{StepBatches, json_line, rows, text};
use crate::commands::output::print_line;
use crate::commands::threads::use_threads;
use crate::config::{TrainConfig, load};
use crate::error::{Result, TrainerError};

/// Write the batches a training run will see: token ids and where they come from.
#[derive(Debug, Args)]
#[command(after_help = BATCHES_EXAMPLE)]
pub(in crate::commands) struct BatchesArgs {
    /// Configuration of the run; for a run that is there, the config.yaml in its directory.
    config: PathBuf,
    /// Values that replace those of the configuration.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// First step, counted from 1.
    #[arg(long, value_name = "STEP", default_value_t = 1)]
    from_step: u64,
    /// Steps.
    #[arg(long, value_name = "N", default_value_t = 1)]
    steps: u64,
    /// What is written of a sequence.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Instead of printing, write inputs.npy and targets.npy, arrays of 32-bit integers of shape
    /// (steps, micro-batches, sequences, tokens), and the origins as rows.jsonl to this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "format")]
    npy: Option<PathBuf>,
}

const BATCHES_EXAMPLE: &str = "\
Examples:
  altiplano data batches configs/train/quickstart.yaml --steps 2
  altiplano data batches runs/quickstart/config.yaml --from-step 500 --format jsonl
  altiplano data batches configs/train/quickstart.yaml --steps 100 --npy batches

A target of -100 does not count. To find the sequences from a late step on takes a while if the run
has several sources: about 10 s for 300 million sequences.";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A line of its origin and a line of its pieces; `|` stands where a document begins.
    Text,
    /// One JSON object a line: origin, inputs and targets.
    Jsonl,
}

pub(super) fn run(args: &BatchesArgs) -> Result<()> {
    let config: TrainConfig = load(&args.config, &args.overrides)?;
    use_threads(config.threads)?;
    let mut batches = StepBatches::open(&config, args.from_step, args.steps)?;
    if let Some(folder) = &args.npy {
        batches.write_npy(folder)?;
        return print_line(&format!("{} steps written to {}", args.steps, folder.display()));
    }
    let mut stdout = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    while let Some((step, step_batches)) = batches.next_step()? {
        for row in rows(step, &step_batches) {
            let line = match args.format {
                Format::Text => text(&row, batches.tokenizer()).into_bytes(),
                Format::Jsonl => json_line(&row)?,
            };
            stdout.write_all(&line).map_err(TrainerError::Output)?;
        }
    }
    stdout.flush().map_err(TrainerError::Output)
}
