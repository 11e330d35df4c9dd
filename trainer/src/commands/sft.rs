//! `altiplano sft`.

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::output::{print, print_json, print_line};
use super::threads::use_threads;
use super::train::{override_of, print_report};
use crate::checkpoint::Choice;
use crate::config::{ON_RESUME_SFT, OnResume, SftConfig, keys_with, load};
use crate::error::{Result, TrainerError};
use crate::sft::{FineTuning, fine_tune, resume};
use crate::{signals, world};

/// Fine-tune a model on conversations.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub struct SftArgs {
    /// Configuration of the run; not with --resume.
    #[arg(required_unless_present = "resume")]
    config: Option<PathBuf>,
    /// Values that replace those of the configuration, such as optimizer.lr=1e-5.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the first N examples with the trained tokens marked, and train nothing.
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    show: Option<usize>,
    /// Print what becomes of the examples, and train nothing.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Go on with a run, from its newest checkpoint.
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// The checkpoint to resume from: latest, best (lowest validation loss) or step_N. Later ones
    /// become a run of their own in RUN/branches.
    #[arg(long, value_name = "WHICH", requires = "resume", default_value = "latest")]
    checkpoint: Choice,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

fn after_help() -> String {
    format!(
        "\
Examples:
  altiplano sft configs/sft/quickstart.yaml --dry-run
  altiplano sft configs/sft/quickstart.yaml --show 2
  altiplano sft configs/sft/quickstart.yaml name=taught_again steps=2
  altiplano sft configs/sft/quickstart.yaml name=adapted steps=2 lora.r=8 optimizer.lr=3e-3
  altiplano sft --resume runs/taught

Keys that may change on --resume, from the next step on, recorded in RUN/changes.jsonl:
  {}
and without an effect on the numbers:
  {}

Signals end a run as they end `altiplano train`.",
        keys_with(ON_RESUME_SFT, OnResume::Recorded),
        keys_with(ON_RESUME_SFT, OnResume::Free),
    )
}

/// Runs the command.
pub fn run(mut args: SftArgs) -> Result<Outcome> {
    if let Some(launcher) = world::launcher()? {
        let message = format!("sft trains on one rank, but {launcher} started {}", launcher.ranks);
        return Err(world::said_once(&launcher, TrainerError::Usage { message }));
    }
    let report = match args.resume.take() {
        None => {
            let file = args.config.take().unwrap_or_default();
            let config: SftConfig = load(&file, &args.overrides)?;
            use_threads(config.threads)?;
            if args.dry_run || args.show.is_some() {
                return look(&args, config).map(|()| Outcome::Done);
            }
            signals::catch()?;
            fine_tune(config)?
        }
        Some(run) => {
            signals::catch()?;
            // With --resume the first positional argument is an override like the others.
            if let Some(first) = args.config.take() {
                args.overrides.insert(0, override_of(first)?);
            }
            let config = SftConfig::load_run(&run, &args.overrides)?;
            use_threads(config.threads)?;
            resume(config, args.checkpoint, &args.overrides)?
        }
    };
    let printed = print_report(&report, args.json);
    match report.signal {
        // After SIGHUP there may be nobody to print for.
        Some(signal) => Ok(Outcome::Interrupted(signal)),
        None => printed.map(|()| Outcome::Done),
    }
}

/// Prints examples and their account.
fn look(args: &SftArgs, config: SftConfig) -> Result<()> {
    let task = FineTuning::open_base(config)?;
    if let Some(count) = args.show {
        print(task.show(count).as_bytes())?;
    }
    if !args.dry_run {
        return Ok(());
    }
    let report = task.report();
    print_line(&report.to_string())?;
    if args.json { print_json(&report) } else { Ok(()) }
}
