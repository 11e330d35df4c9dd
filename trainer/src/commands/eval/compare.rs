//! `altiplano eval compare`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::output::{print_json, print_line};
use crate::error::Result;
use crate::eval_tasks::{Run, compare, warnings};

/// Compare checkpoints on the tasks that `eval tasks --output` scored, with 95 % intervals.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct CompareArgs {
    /// Folders that `altiplano eval tasks --output` filled; the others are compared with the first.
    #[arg(value_name = "FOLDER", num_args = 1.., required = true)]
    runs: Vec<PathBuf>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  altiplano eval compare runs/quickstart/eval runs/quickstart/eval";

/// Runs the command.
pub fn run(args: CompareArgs) -> Result<()> {
    let runs: Vec<Run> = args.runs.iter().map(|folder| Run::open(folder)).collect::<Result<_>>()?;
    for warning in warnings(&runs) {
        tracing::warn!("{warning}");
    }
    let comparisons = compare(&runs, args.seed);
    print_line(&format!(
        "{:<16} {:<26} {:>8} {:>9} {:<20} {:>10} {:<22} run",
        "task", "measure", "examples", "value", "95 %", "difference", "95 %"
    ))?;
    for comparison in &comparisons {
        for run in &comparison.runs {
            let interval = |of: [f64; 2]| format!("[{:.4}, {:.4}]", of[0], of[1]);
            let difference = run.difference.as_ref();
            let measure = comparison.measure.strip_suffix(",none").unwrap_or(&comparison.measure);
            print_line(&format!(
                "{:<16} {measure:<26} {:>8} {:>9.4} {:<20} {:>10} {:<22} {}",
                comparison.task,
                run.examples,
                run.value,
                interval(run.interval),
                difference.map_or_else(String::new, |x| format!("{:+.4}", x.value)),
                difference.map_or_else(String::new, |x| {
                    let paired = if x.paired { "" } else { " not paired" };
                    format!("{}{paired}", interval(x.interval))
                }),
                run.run.display()
            ))?;
        }
    }
    match args.json {
        true => print_json(&json!({ "comparisons": comparisons })),
        false => Ok(()),
    }
}
