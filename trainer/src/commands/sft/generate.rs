//! `altiplano sft generate`.

use std::path::PathBuf;

use altiplano_data::progress::ProgressMode;
use clap::Args;

use crate::commands::output::{print_json, print_line};
use crate::commands::threads::use_threads;
use crate::config::{SelfInstructConfig, load};
use crate::error::Result;
use crate::self_instruct;

/// Have a model write instructions after the example of seed tasks (Self-Instruct).
///
/// The result is OUTPUT/instructions.jsonl, examples in the format alpaca. A command that was killed goes on
/// when it is run again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct GenerateArgs {
    /// Configuration: seed tasks, who writes, how many.
    config: PathBuf,
    /// Values that replace those of the configuration, such as instructions=100.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  altiplano sft generate configs/self_instruct/quickstart.yaml max_requests=2";

/// Runs the command.
pub fn run(args: GenerateArgs) -> Result<()> {
    let config: SelfInstructConfig = load(&args.config, &args.overrides)?;
    use_threads(args.threads)?;
    let report = self_instruct::run(&config, ProgressMode::Auto)?;
    print_line(&format!("{}: {report}", config.output.join("instructions.jsonl").display()))?;
    if args.json { print_json(&report) } else { Ok(()) }
}
