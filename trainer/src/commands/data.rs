//! `altiplano data`: raw text to documents, and a look at what came of it.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use altiplano_data::ProgressMode;
use altiplano_data::document::{Split, list_documents};
use altiplano_data::pipeline::{self, RunOptions};
use clap::{Args, Subcommand, ValueEnum};

use super::output::{print, print_json};
use crate::config::{DataConfig, load};
use crate::error::{Result, TrainerError};

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    Run(RunArgs),
    Report(ReportArgs),
    Cat(CatArgs),
}

/// Turn raw text into documents; what is finished is skipped.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLE)]
pub(super) struct RunArgs {
    /// Data configuration.
    config: PathBuf,
    /// Values that replace those of the configuration.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Only this source.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

const RUN_EXAMPLE: &str = "\
Example:
  altiplano data run configs/data/quickstart.yaml --source speeches";

/// Show how many documents came in, went out and were dropped, and why.
#[derive(Debug, Args)]
#[command(after_help = REPORT_EXAMPLE)]
pub(super) struct ReportArgs {
    /// The `output` folder of a data configuration.
    dir: PathBuf,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

const REPORT_EXAMPLE: &str = "\
Example:
  altiplano data report runs/quickstart/data";

/// Write documents to standard output.
#[derive(Debug, Args)]
#[command(after_help = CAT_EXAMPLE)]
pub(super) struct CatArgs {
    /// Document files, or folders of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// What is written of a document.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Only this side of the holdout.
    #[arg(long, value_enum)]
    split: Option<SplitName>,
    /// At most this many documents.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

const CAT_EXAMPLE: &str = "\
Examples:
  altiplano data cat runs/quickstart/data/documents --split validation | xz -9e | wc -c
  altiplano data cat runs/quickstart/data/documents/speeches --format jsonl --limit 3";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// The text, documents separated by one line feed.
    Text,
    /// One JSON object a line.
    Jsonl,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Validation,
}

pub(super) fn run(command: DataCommand) -> Result<()> {
    match command {
        DataCommand::Run(args) => run_sources(&args),
        DataCommand::Report(args) => report(&args),
        DataCommand::Cat(args) => cat(&args),
    }
}

fn run_sources(args: &RunArgs) -> Result<()> {
    let config: DataConfig = load(&args.config, &args.overrides)?;
    super::check_source(&config, args.source.as_deref())?;
    let options = RunOptions { only: args.source.clone(), progress: ProgressMode::Auto };
    let report = config.run_pipeline(&options)?;
    if args.json { print_json(&report) } else { print(report.waterfall.to_string().as_bytes()) }
}

fn report(args: &ReportArgs) -> Result<()> {
    let waterfall = pipeline::report(&args.dir)?;
    if args.json { print_json(&waterfall) } else { print(waterfall.to_string().as_bytes()) }
}

fn cat(args: &CatArgs) -> Result<()> {
    let split = args.split.map(|split| match split {
        SplitName::Train => Split::Train,
        SplitName::Validation => Split::Validation,
    });
    let mut files = Vec::new();
    for path in &args.paths {
        files.extend(list_documents(path, split)?);
    }
    let mut stdout = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let mut written = 0;
    let limit = args.limit.unwrap_or(usize::MAX);
    for file in files {
        if written >= limit {
            break;
        }
        for document in file.reader()?.take(limit - written) {
            let document = document?;
            let line = match args.format {
                Format::Text if written == 0 => write!(stdout, "{}", document.text),
                Format::Text => write!(stdout, "\n{}", document.text),
                Format::Jsonl => serde_json::to_writer(&mut stdout, &document)
                    .map_err(std::io::Error::from)
                    .and_then(|()| writeln!(stdout)),
            };
            line.map_err(TrainerError::Output)?;
            written += 1;
        }
    }
    stdout.flush().map_err(TrainerError::Output)
}
