//! The command line: each command reads its arguments, calls library functions and prints.
//!
//! Results go to standard output, progress and log lines to standard error. With `--json` the last
//! line on standard output is one JSON object.

mod batch;
mod bench;
mod chat;
mod comm_check;
mod data;
mod devices;
mod engine_arguments;
mod estimate;
mod eval;
mod export;
mod generate;
mod import;
mod output;
mod route;
mod serve;
mod sft;
mod sizes;
mod threads;
mod tokenize;
mod tokenizer;
mod train;

use altiplano_data::terminal;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::config::{DataConfig, nearest};
use crate::error::{Result, TrainerError};
use crate::signals::Signal;

/// Pretrains LLaMA models: raw text to documents, tokenizer, token shards, training, generation, serving.
#[derive(Debug, Parser)]
#[command(name = "altiplano", version, max_term_width = 100, after_help = EXAMPLE)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLE: &str = "\
From raw text to generated text:
  altiplano data run        configs/data/quickstart.yaml
  altiplano tokenizer train configs/data/quickstart.yaml
  altiplano tokenize        configs/data/quickstart.yaml
  altiplano train           configs/train/quickstart.yaml
  altiplano generate --checkpoint runs/quickstart/checkpoints/step_00001000 --prompt \"The people\"

Exit status: 0 done, 1 failed, 2 wrong usage or configuration; a training run that a signal
interrupted: 128 + its number.
Log level: RUST_LOG=debug.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Raw text to documents, and a look at them.
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Train a tokenizer, encode and decode with it.
    #[command(subcommand)]
    Tokenizer(tokenizer::TokenizerCommand),
    Tokenize(tokenize::TokenizeArgs),
    Train(train::TrainArgs),
    Sft(sft::SftArgs),
    Eval(Box<eval::EvalArgs>),
    Generate(generate::GenerateArgs),
    Serve(Box<serve::ServeArgs>),
    Route(route::RouteArgs),
    /// Answer files of requests without a server.
    #[command(subcommand)]
    Batch(Box<batch::BatchCommand>),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    Estimate(estimate::EstimateArgs),
    Devices(devices::DevicesArgs),
    CommCheck(comm_check::CommCheckArgs),
    /// Measure speed and memory of training, attention and generation.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its work is done.
    Done,
    /// A signal ended it early; what it had is saved.
    Interrupted(Signal),
}

impl Outcome {
    /// Exit status of the process.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Interrupted(signal) => signal.exit_status(),
        }
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever the command fails with; see
    /// [`is_usage`](crate::error::TrainerError::is_usage) and
    /// [`is_broken_pipe`](crate::error::TrainerError::is_broken_pipe) for the exit status.
    pub fn run(self) -> Result<Outcome> {
        match self.command {
            Command::Train(args) => return train::run(args),
            Command::Sft(args) => return sft::run(args),
            Command::Data(command) => data::run(command),
            Command::Tokenizer(command) => tokenizer::run(command),
            Command::Tokenize(args) => tokenize::run(args),
            Command::Eval(args) => eval::run(*args),
            Command::Generate(args) => generate::run(args),
            Command::Serve(args) => serve::run(*args),
            Command::Route(args) => route::run(args),
            Command::Batch(command) => batch::run(*command),
            Command::Export(args) => export::run(args),
            Command::Import(args) => import::run(args),
            Command::Estimate(args) => estimate::run(args),
            Command::Devices(args) => devices::run(args),
            Command::CommCheck(args) => comm_check::run(args),
            Command::Bench(command) => bench::run(command),
        }?;
        Ok(Outcome::Done)
    }
}

/// Checks that `--source` names a source of the configuration.
fn check_source(config: &DataConfig, source: Option<&str>) -> Result<()> {
    let names = || config.sources.iter().map(|source| source.name.as_str());
    let Some(wanted) = source.filter(|wanted| !names().any(|name| name == *wanted)) else {
        return Ok(());
    };
    let near = nearest(wanted, names()).map(|name| format!("; did you mean {name:?}?"));
    let known: Vec<&str> = names().collect();
    Err(TrainerError::Usage {
        message: format!(
            "--source {wanted:?} is no source of the configuration{} known sources: {}",
            near.unwrap_or(";".into()),
            known.join(", ")
        ),
    })
}

/// Sends log lines to standard error; `RUST_LOG` chooses the level, `info` by default.
pub fn init_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails only when a subscriber is there already, which then gets the lines.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| terminal::Stderr)
        .with_ansi(terminal::is_live())
        .with_target(false)
        .without_time()
        .try_init();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.get_subcommands().next().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("altiplano"), "no example in the help of{path}");
                assert!(command.get_about().is_some(), "nothing about{path}");
            }
            command.get_subcommands().for_each(|sub| visit(sub, &path));
        }
        visit(&Cli::command(), "");
    }
}
