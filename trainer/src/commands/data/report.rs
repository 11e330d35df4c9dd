//! `altiplano data report`: in = out + reasons.

use std::path::PathBuf;

use altiplano_data::pipeline;
use clap::Args;

use crate::commands::output::{print, print_json};
use crate::error::Result;

/// Show how many documents came in, went out and were dropped, and why.
#[derive(Debug, Args)]
#[command(after_help = REPORT_EXAMPLE)]
pub(in crate::commands) struct ReportArgs {
    /// The `output` folder of a data configuration.
    dir: PathBuf,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

const REPORT_EXAMPLE: &str = "\
Example:
  altiplano data report runs/quickstart/data";

pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let waterfall = pipeline::report(&args.dir)?;
    if args.json { print_json(&waterfall) } else { print(waterfall.to_string().as_bytes()) }
}
