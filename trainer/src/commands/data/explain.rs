//! `altiplano data explain`: what happened to one document.

use std::path::PathBuf;

use altiplano_data::pipeline;
use clap::Args;

use crate::commands::output::{print, print_json};
use crate::error::Result;

/// Tell what happened to one document: the step that dropped it and why, or where it is.
#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_EXAMPLE)]
pub(in crate::commands) struct ExplainArgs {
    /// Id of the document, or file@offset of a record that could not be read.
    id: String,
    /// The `output` folder of a data configuration.
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Look in this source only.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

const EXPLAIN_EXAMPLE: &str = "\
Example:
  altiplano data explain enwiki:12 runs/quickstart/data";

pub(super) fn run(args: &ExplainArgs) -> Result<()> {
    let explanation = pipeline::explain(&args.dir, &args.id, args.source.as_deref())?;
    if args.json { print_json(&explanation) } else { print(explanation.to_string().as_bytes()) }
}
