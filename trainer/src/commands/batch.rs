//! `altiplano batch`.

use std::path::PathBuf;

use altiplano_data::progress::{Progress, ProgressMode, Work};
use altiplano_serve::admission::AdmissionLimits;
use altiplano_serve::app::AppOptions;
use altiplano_serve::batch;
use altiplano_serve::error::ServeError;
use altiplano_serve::runtime::Runtime;
use clap::{Args, Subcommand};
use serde_json::json;

use super::engine_arguments::EngineArguments;
use super::output::{print_json, print_line};
use super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::serving;

/// Answer files of requests without a server.
#[derive(Debug, Subcommand)]
pub enum BatchCommand {
    Run(BatchRunArgs),
}

/// Answer every line of a file of OpenAI batch requests.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct BatchRunArgs {
    #[command(flatten)]
    engine: EngineArguments,
    /// Requests, one a line: {"custom_id", "method": "POST", "url": "/v1/completions", "body"}.
    #[arg(long, short, value_name = "FILE")]
    input: PathBuf,
    /// Answers, one a line, appended as they are made. Lines of the input that have one are not
    /// answered again, unless it is an error.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  altiplano batch run --checkpoint runs/quickstart --input in.jsonl --output out.jsonl

A line of in.jsonl: {\"custom_id\": \"a\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"The\"}}
A batch that was interrupted goes on when it is run again. Lines that failed are answered again then; until
that their answers are errors. Exit status: 0 when every line has a good answer, 1 when lines failed.";

/// Runs the command.
pub fn run(command: BatchCommand) -> Result<()> {
    let BatchCommand::Run(args) = command;
    use_threads(args.engine.threads)?;
    let concurrency = args.engine.max_num_seqs;
    let app = serving::open(args.engine.options(AppOptions {
        // The batch itself keeps as many open as there can be.
        admission: AdmissionLimits { requests: usize::MAX, tokens: usize::MAX },
        max_logprobs: 0,
        seed: 0,
        stream_interval: 1,
        return_tokens_as_token_ids: false,
        api_key: None,
        max_body_bytes: 0,
    })?)?;
    let bytes = std::fs::metadata(&args.input).map_err(TrainerError::io(&args.input))?.len();
    let progress = Progress::new(ProgressMode::Auto, "batch", Work::bytes(bytes));
    let report = Runtime::start()?.run(batch::run(
        &app,
        &args.input,
        &args.output,
        concurrency,
        |done| {
            progress.set_done(done.bytes);
            progress.items_done(done.lines);
        },
    ))?;
    let said = format!(
        "{} answers, {} of them errors; {} were there before",
        report.answered, report.failed, report.skipped
    );
    progress.finish(&said);
    print_line(&format!("{}: {said}", args.output.display()))?;
    if args.json {
        print_json(&json!({
            "answered": report.answered,
            "failed": report.failed,
            "skipped": report.skipped,
        }))?;
    }
    match report.first_failure {
        None => Ok(()),
        Some(first) => Err(ServeError::LinesFailed {
            input: args.input,
            output: args.output,
            failed: report.failed,
            answered: report.answered,
            first: first.line,
            reason: first.reason,
        }
        .into()),
    }
}
