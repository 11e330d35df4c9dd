//! `altiplano data report`: in = out + reasons, and the table of a mixture.

use std::path::PathBuf;

use altiplano_data::MixtureConfig;
use altiplano_data::loader::{MixtureTable, SourceReport, mixture_report, single_epoch_tokens};
use altiplano_data::pipeline::{self, Waterfall};
use clap::Args;
use serde::Serialize;

use crate::commands::output::{print, print_json};
use crate::commands::threads::use_threads;
use crate::config::load;
use crate::error::{Result, TrainerError};

/// Show how many documents came in, went out and were dropped, and why.
///
/// Statistics and documents are held against the checksums they were written with, every byte.
#[derive(Debug, Args)]
#[command(after_help = REPORT_EXAMPLE)]
pub(in crate::commands) struct ReportArgs {
    /// The `output` folder of a data configuration.
    #[arg(required_unless_present = "mixture")]
    dir: Option<PathBuf>,
    /// Show the mixture of this file: what there is of each source, what is drawn and how often it
    /// repeats.
    #[arg(long, value_name = "CONFIG")]
    mixture: Option<PathBuf>,
    /// Tokens to draw from the mixture. Default: `token_budget` of the file.
    #[arg(long, value_name = "N", requires = "mixture", value_parser = parse_tokens)]
    tokens: Option<u64>,
    /// Show the templates of Wikipedia that were taken out of sentences because no rule says what
    /// they print, the commonest first, each with an example.
    #[arg(long, requires = "dir")]
    templates: bool,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Templates of a source that are shown.
const TEMPLATES_SHOWN: usize = 100;

const REPORT_EXAMPLE: &str = "\
Examples:
  altiplano data report runs/quickstart/data
  altiplano data report runs/quickstart/data --templates
  altiplano data report --mixture configs/data/llama1_mixture.yaml --tokens 1e12";

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    waterfall: Option<Waterfall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mixture: Option<Mixture>,
}

#[derive(Serialize)]
struct Mixture {
    token_budget: u64,
    max_epochs: f64,
    sources: Vec<MixtureRow>,
}

#[derive(Serialize)]
struct MixtureRow {
    #[serde(flatten)]
    source: SourceReport,
    bytes_per_token: f64,
    tokens_drawn: f64,
    epochs: f64,
}

pub(super) fn run(args: &ReportArgs) -> Result<()> {
    use_threads(None)?;
    let waterfall = args.dir.as_deref().map(pipeline::report).transpose()?;
    let mut text = match &waterfall {
        Some(waterfall) if args.templates => waterfall.lost_templates(TEMPLATES_SHOWN),
        Some(waterfall) => waterfall.to_string(),
        None => String::new(),
    };
    let mut report = Report { waterfall, mixture: None };
    if let Some(file) = &args.mixture {
        let config: MixtureConfig = load(file, &[])?;
        let sources = mixture_report(&config)?;
        let token_budget =
            args.tokens.or(config.token_budget).unwrap_or_else(|| single_epoch_tokens(&sources));
        let table = MixtureTable { sources: &sources, token_budget, max_epochs: config.max_epochs };
        text += &table.to_string();
        let row = |source: SourceReport| MixtureRow {
            bytes_per_token: source.bytes_per_token(),
            tokens_drawn: source.share * token_budget as f64,
            epochs: source.epochs(token_budget),
            source,
        };
        let sources = sources.into_iter().map(row).collect();
        report.mixture = Some(Mixture { token_budget, max_epochs: config.max_epochs, sources });
    }
    if args.json { print_json(&report) } else { print(text.as_bytes()) }
}

/// `1e12` or `1000000000000`.
fn parse_tokens(text: &str) -> std::result::Result<u64, String> {
    let tokens: f64 = text.parse().map_err(|_| format!("expected a number, found {text:?}"))?;
    let whole = (1.0..=1e18).contains(&tokens) && tokens.fract() == 0.0;
    whole.then_some(tokens as u64).ok_or_else(|| {
        TrainerError::Usage { message: format!("expected 1 to 1e18, found {text}") }.to_string()
    })
}
