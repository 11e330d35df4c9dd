//! `altiplano eval judge`.

use std::path::PathBuf;

use altiplano_data::progress::ProgressMode;
use clap::Args;

use crate::commands::output::{print, print_json};
use crate::commands::threads::use_threads;
use crate::config::{JudgeConfig, load};
use crate::error::Result;
use crate::judge;

/// Have a model judge the answers of others.
///
/// Models answer questions at any OpenAI-compatible endpoint or from a checkpoint, and a judge compares or rates
/// the answers. What was answered before is not asked again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct JudgeArgs {
    /// Configuration: questions, models, judge and prompts.
    config: PathBuf,
    /// Values that replace those of the configuration, such as mode=single.
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
Examples:
  altiplano eval judge configs/judge/quickstart.yaml
  altiplano eval judge configs/judge/quickstart.yaml mode=single output=runs/rated --json";

/// Runs the command.
pub fn run(args: JudgeArgs) -> Result<()> {
    let config: JudgeConfig = load(&args.config, &args.overrides)?;
    use_threads(args.threads)?;
    let report = judge::run(&config, ProgressMode::Auto)?;
    print(report.to_string().as_bytes())?;
    if args.json { print_json(&report) } else { Ok(()) }
}
