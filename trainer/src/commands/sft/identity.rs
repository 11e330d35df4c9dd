//! `altiplano sft identity`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::commands::output::print;
use crate::config::{IdentityConfig, load};
use crate::error::Result;

/// Write conversations from which a model learns its name and its makers.
///
/// Examples in the format sharegpt, one a line on standard output: a file for `data` of a fine-tuning run.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct IdentityArgs {
    /// Questions and answers with places for the names.
    config: PathBuf,
    /// Values that replace those of the configuration, such as name=Ishmael.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

const EXAMPLE: &str = "\
Example:
  altiplano sft identity configs/identity/identity.yaml name=Ishmael > identity.jsonl";

/// Runs the command.
pub fn run(args: IdentityArgs) -> Result<()> {
    let config: IdentityConfig = load(&args.config, &args.overrides)?;
    let mut lines = String::new();
    for (number, [question, answer]) in config.rounds().into_iter().enumerate() {
        let turns =
            [json!({"from": "human", "value": question}), json!({"from": "gpt", "value": answer})];
        let record = json!({"id": format!("identity_{number}"), "conversations": turns});
        lines.push_str(&format!("{record}\n"));
    }
    print(lines.as_bytes())
}
