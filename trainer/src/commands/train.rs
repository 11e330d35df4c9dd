//! `altiplano train`.

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::output::{print_json, print_line};
use super::threads::use_threads;
use crate::checkpoint::Choice;
use crate::config::{ON_RESUME, OnResume, TrainConfig, keys_with, load};
use crate::error::{Result, TrainerError};
use crate::signals;
use crate::train_loop::{TrainReport, resume, train};

/// Train a model.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub struct TrainArgs {
    /// Configuration of the run; not with --resume.
    #[arg(required_unless_present = "resume")]
    config: Option<PathBuf>,
    /// Values that replace those of the configuration, such as optimizer.lr=1e-3.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Go on with a run, from its newest checkpoint. A larger `steps` or `tokens` extends it.
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
  altiplano train configs/train/quickstart.yaml steps=20 optimizer.warmup_steps=5
  altiplano train configs/train/quickstart.yaml name=second steps=20 optimizer.warmup_steps=5 \\
      init_from=runs/first/checkpoints/step_00000040
  altiplano train --resume runs/quickstart
  altiplano train --resume runs/first --checkpoint step_40 optimizer.lr=1e-3
  altiplano train --resume runs/first steps=60

Keys that may change on --resume, from the next step on, recorded in RUN/changes.jsonl:
  {}
and without an effect on the numbers:
  {}

Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 (Slurm: --signal=USR1@300) save a checkpoint after the step in
progress and end with status 130, 143, 129 and 138. Status 0: the last step is done.",
        keys_with(ON_RESUME, OnResume::Recorded),
        keys_with(ON_RESUME, OnResume::Free),
    )
}

/// Runs the command.
pub fn run(mut args: TrainArgs) -> Result<Outcome> {
    signals::catch()?;
    let report = match args.resume.take() {
        None => {
            let file = args.config.take().unwrap_or_default();
            let config: TrainConfig = load(&file, &args.overrides)?;
            use_threads(config.threads)?;
            train(config)?
        }
        Some(run) => {
            // With --resume the first positional argument is an override like the others.
            if let Some(first) = args.config.take() {
                args.overrides.insert(0, override_of(first)?);
            }
            let config = TrainConfig::load_run(&run, &args.overrides)?;
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

/// Prints how a run ended.
pub(super) fn print_report(report: &TrainReport, json: bool) -> Result<()> {
    let by = report.signal.map_or(String::new(), |signal| format!(" by {}", signal.name()));
    print_line(&format!(
        "{} at step {}{by}: {} tokens, loss {:.4}, {:.0} tokens/s, peak memory {:.0} MB",
        if report.interrupted { "interrupted" } else { "done" },
        report.step,
        report.tokens,
        report.loss,
        report.tokens_per_second,
        report.peak_memory_bytes as f64 / 1e6,
    ))?;
    match &report.checkpoint {
        Some(path) => print_line(&format!("checkpoint: {}", path.display()))?,
        None => print_line("checkpoint: none, no step was done")?,
    }
    if let Some(best) = &report.best_checkpoint {
        print_line(&format!("lowest validation loss: {}", best.display()))?;
    }
    if report.step > 0 {
        print_line(&format!("loss curve: {}", report.loss_curve.display()))?;
    }
    if json { print_json(report) } else { Ok(()) }
}

fn one_too_many(argument: &str) -> TrainerError {
    TrainerError::Usage {
        message: format!(
            "--resume takes its configuration from the run, so {argument:?} is one too many"
        ),
    }
}

/// The first positional argument, which is an override where there is no configuration.
pub(super) fn override_of(argument: PathBuf) -> Result<String> {
    match argument.into_os_string().into_string() {
        Ok(text) if text.contains('=') => Ok(text),
        Ok(text) => Err(one_too_many(&text)),
        Err(text) => Err(one_too_many(&text.to_string_lossy())),
    }
}
