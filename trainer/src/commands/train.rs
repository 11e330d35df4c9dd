//! `altiplano train`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;

use super::output::{print_json, print_line};
use super::threads::use_threads;
use crate::config::{TrainConfig, load};
use crate::error::{Result, TrainerError};
use crate::train_loop::{INTERRUPTED, resume, train};

/// Train a model.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct TrainArgs {
    /// Configuration of the run; not with --resume.
    #[arg(required_unless_present = "resume")]
    config: Option<PathBuf>,
    /// Values that replace those of the configuration, such as optimizer.lr=1e-3.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Go on with the newest checkpoint of this run.
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Examples:
  altiplano train configs/train/quickstart.yaml steps=20 optimizer.warmup_steps=5
  altiplano train --resume runs/quickstart

Ctrl-C saves a checkpoint after the step in progress and ends.";

/// Runs the command.
pub fn run(mut args: TrainArgs) -> Result<()> {
    let config: TrainConfig = match &args.resume {
        None => {
            let file = args.config.take().unwrap_or_default();
            load(&file, &args.overrides)?
        }
        Some(run) => {
            // With --resume the first positional argument is an override like the others.
            if let Some(first) = args.config.take() {
                args.overrides.insert(0, override_of(first)?);
            }
            if !run.join("config.yaml").exists() {
                return Err(TrainerError::NoCheckpoint { path: run.clone() });
            }
            TrainConfig::load_run(run, &args.overrides)?
        }
    };
    use_threads(config.threads)?;
    // Fails only when a handler is set already, which this process never does before.
    let _ = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
    let report = if args.resume.is_some() { resume(config)? } else { train(config)? };

    print_line(&format!(
        "{} at step {}: {} tokens, loss {:.4}, {:.0} tokens/s, peak memory {:.0} MB",
        if report.interrupted { "interrupted" } else { "done" },
        report.step,
        report.tokens,
        report.loss,
        report.tokens_per_second,
        report.peak_memory_bytes as f64 / 1e6,
    ))?;
    print_line(&format!("checkpoint: {}", report.checkpoint.display()))?;
    print_line(&format!("loss curve: {}", report.loss_curve.display()))?;
    if args.json { print_json(&report) } else { Ok(()) }
}

fn one_too_many(argument: &str) -> TrainerError {
    TrainerError::Usage {
        message: format!(
            "--resume takes its configuration from the run, so {argument:?} is one too many"
        ),
    }
}

fn override_of(argument: PathBuf) -> Result<String> {
    match argument.into_os_string().into_string() {
        Ok(text) if text.contains('=') => Ok(text),
        Ok(text) => Err(one_too_many(&text)),
        Err(text) => Err(one_too_many(&text.to_string_lossy())),
    }
}
