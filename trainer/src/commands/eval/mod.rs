//! `altiplano eval`: documents, tasks, runs of tasks side by side, and answers that a model judges.

mod compare;
mod documents;
mod judge;
mod tasks;

use clap::{Args, Subcommand};

use crate::error::{Result, TrainerError};
use crate::launch;

/// Loss, perplexity and bits per byte of a checkpoint on held-out documents; its scores in tasks;
/// or, by a command below, runs of tasks compared, and answers judged by a model.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct EvalArgs {
    #[command(subcommand)]
    command: Option<EvalCommand>,
    #[command(flatten)]
    documents: Option<documents::DocumentsArgs>,
}

const EXAMPLE: &str = "\
Examples:
  altiplano eval --checkpoint runs/quickstart --documents runs/quickstart/data
  altiplano eval --checkpoint runs/quickstart/checkpoints/step_00001000 --documents README.md
  altiplano eval tasks --list";

#[derive(Debug, Subcommand)]
enum EvalCommand {
    Tasks(tasks::TasksArgs),
    Compare(compare::CompareArgs),
    Judge(judge::JudgeArgs),
}

/// Runs the command.
pub fn run(args: EvalArgs) -> Result<()> {
    if let Some(launcher) = launch::launcher()? {
        let message = format!(
            "{launcher} started {} processes, and `altiplano eval` computes in one: start it without a \
             launcher; tasks of `eval` in a training configuration are shared by the ranks of its run",
            launcher.ranks
        );
        return Err(launch::said_once(&launcher, TrainerError::Usage { message }));
    }
    match (args.command, args.documents) {
        (Some(EvalCommand::Tasks(args)), _) => tasks::run(args),
        (Some(EvalCommand::Compare(args)), _) => compare::run(args),
        (Some(EvalCommand::Judge(args)), _) => judge::run(args),
        (None, Some(args)) => documents::run(args),
        (None, None) => Err(TrainerError::Usage {
            message: "--checkpoint and --documents say what is scored; see --help".into(),
        }),
    }
}
