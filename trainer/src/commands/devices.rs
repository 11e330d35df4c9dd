//! `altiplano devices`.

use altiplano_model::device;
use clap::Args;
use serde_json::json;

use super::output::{print_json, print_line};
use super::threads::use_threads;
use crate::error::Result;

/// List where a model can be trained here, and what the rest lacks.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct DevicesArgs {
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  altiplano devices --json

The names are what `device:` of a training configuration and --device take.";

/// Runs the command.
pub fn run(args: DevicesArgs) -> Result<()> {
    use_threads(None)?;
    let devices = device::list();
    for device in &devices {
        let state = if device.usable { "usable" } else { "not usable" };
        print_line(&format!("{:<12} {state:<11} {}", device.name, device.detail))?;
    }
    if args.json { print_json(&json!({ "devices": devices })) } else { Ok(()) }
}
