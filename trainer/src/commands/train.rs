//! `altiplano train`.

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::output::{print_json, print_line};
use crate::checkpoint::Choice;
use crate::config::{ON_RESUME, OnResume, TrainConfig, keys_with, load};
use crate::error::{Result, TrainerError};
use crate::train_loop::{TrainReport, resume, train};
use crate::{launch, signals};

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
    /// The checkpoint to resume from: latest, best (by `checkpoint.best_by`, the lowest validation loss by
    /// default) or step_N. Later ones become a run of their own in RUN/branches.
    #[arg(long, value_name = "WHICH", requires = "resume", default_value = "latest")]
    checkpoint: Choice,
    /// Ranks, as threads of this process, to try a layout without a launcher; under one its ranks
    /// are taken.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    ranks: Option<u16>,
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
  altiplano train configs/train/debug.yaml name=copies batch.grad_accum_steps=2 --ranks 2

On several ranks, which docs/parallel.md is about: mpirun -n 4 altiplano train CONFIG.

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
    let config = read_config(&mut args);
    let config = match launch::launcher()? {
        // Every process reads the same file; one that has none says so itself.
        Some(launcher) => config.map_err(|error| match error.is_usage() {
            true => launch::said_once(&launcher, error),
            false => error,
        })?,
        None => config?,
    };
    let ranks = args.ranks.map(usize::from);
    let launched = launch::launch(&config, ranks, |ranks| match args.resume {
        None => train(config.clone(), ranks),
        Some(_) => resume(config.clone(), args.checkpoint, &args.overrides, ranks),
    })?;
    let report = launched.result;
    let printed = match launched.is_first {
        true => print_report(&report, args.json),
        false => Ok(()),
    };
    match report.signal {
        // After SIGHUP there may be nobody to print for.
        Some(signal) => Ok(Outcome::Interrupted(signal)),
        None => printed.map(|()| Outcome::Done),
    }
}

/// The configuration of the run that is started or resumed.
fn read_config(args: &mut TrainArgs) -> Result<TrainConfig> {
    let Some(run) = &args.resume else {
        return load(&args.config.take().unwrap_or_default(), &args.overrides);
    };
    // With --resume the first positional argument is an override like the others.
    if let Some(first) = args.config.take() {
        args.overrides.insert(0, override_of(first)?);
    }
    TrainConfig::load_run(run, &args.overrides)
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
        let score = report.best_by.as_deref().unwrap_or_default();
        print_line(&format!("best {score}: {}", best.display()))?;
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
