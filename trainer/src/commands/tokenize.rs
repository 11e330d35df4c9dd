//! `altiplano tokenize`: documents to token shards.

use std::path::PathBuf;

use altiplano_data::ProgressMode;
use clap::Args;

use super::output::{print, print_json};
use super::threads::use_threads;
use crate::config::{DataConfig, load};
use crate::error::Result;

/// Turn documents into token shards; what is finished is skipped.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub(super) struct TokenizeArgs {
    /// Data configuration.
    config: PathBuf,
    /// Values that replace those of the configuration.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Only this source.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  altiplano tokenize configs/data/quickstart.yaml";

pub(super) fn run(args: TokenizeArgs) -> Result<()> {
    let mut config: DataConfig = load(&args.config, &args.overrides)?;
    super::check_source(&config, args.source.as_deref())?;
    if let Some(only) = &args.source {
        config.sources.retain(|source| source.name == *only);
    }
    use_threads(None)?;
    let report = config.tokenize(ProgressMode::Auto)?;
    if args.json { print_json(&report) } else { print(report.to_string().as_bytes()) }
}
