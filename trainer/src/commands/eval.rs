//! `altiplano eval`.

use std::path::PathBuf;

use altiplano_data::document::list_documents;
use altiplano_data::progress::{Progress, ProgressMode, Work};
use altiplano_model::Precision;
use clap::Args;
use serde_json::json;

use super::output::{print_json, print_line};
use super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::eval::{Score, Windows, score_documents};
use crate::trained_model::TrainedModel;

/// Loss, perplexity and bits per byte of a checkpoint on held-out documents.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct EvalArgs {
    /// The checkpoint: a Hugging Face directory with tokenizer.model.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Document files (Parquet), or directories of them.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    documents: Vec<PathBuf>,
    /// Tokens the model sees at once. Default: the model's context.
    #[arg(long)]
    context: Option<usize>,
    /// Tokens by which the window moves on in long documents. Default: half the context.
    #[arg(long)]
    stride: Option<usize>,
    /// Windows computed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Where the model computes: a name that `altiplano devices` lists as usable.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Number format: bf16 or f32.
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  altiplano eval --checkpoint runs/quickstart/checkpoints/step_00001000 \\
      --documents runs/quickstart/data/documents/*/validation-*.parquet";

/// Runs the command.
pub fn run(args: EvalArgs) -> Result<()> {
    use_threads(args.threads)?;
    let trained = TrainedModel::open(&args.checkpoint, &args.device, args.precision)?;
    let limit = trained.model.config.max_seq_len;
    let context = args.context.unwrap_or(limit);
    if context == 0 || context > limit {
        return Err(TrainerError::Usage {
            message: format!("--context {context}: the context of this model is 1 to {limit}"),
        });
    }
    let stride = args.stride.unwrap_or(context.div_ceil(2));
    if stride == 0 || stride > context {
        return Err(TrainerError::Usage {
            message: format!("--stride {stride}: must be 1 to the context, {context}"),
        });
    }
    let documents = read_documents(&args.documents)?;
    let windows = Windows { context, stride, batch: args.batch };
    let bytes = documents.iter().map(|(_, text)| text.len() as u64).sum();
    let count = documents.len() as u64;
    let work = Work::bytes(bytes).of(count, "documents");
    let progress = Progress::new(ProgressMode::Auto, "eval", work);
    let scores = score_documents(
        &trained.model,
        &trained.tokenizer,
        &documents,
        windows,
        |share, ended| {
            progress.set_done((share * bytes as f64) as u64);
            progress.items_done(ended);
        },
    )?;
    progress.finish(&format!("{count} documents"));

    print_line(&format!(
        "{:<16} {:>9} {:>10} {:>10} {:>8} {:>11} {:>14}",
        "source", "documents", "bytes", "tokens", "loss", "perplexity", "bits per byte"
    ))?;
    let row = |name: &str, score: &Score| {
        print_line(&format!(
            "{name:<16} {:>9} {:>10} {:>10} {:>8.4} {:>11.2} {:>14.4}",
            score.documents,
            score.bytes,
            score.tokens,
            score.loss,
            score.perplexity,
            score.bits_per_byte
        ))
    };
    for (name, score) in &scores.sources {
        row(name, score)?;
    }
    row("all", &scores.total)?;
    if !args.json {
        return Ok(());
    }
    let mut object = json!(scores);
    object["checkpoint"] = json!(args.checkpoint);
    object["context"] = json!(context);
    object["stride"] = json!(stride);
    print_json(&object)
}

/// Source and text of every document of `paths`, in the order given.
fn read_documents(paths: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut documents = Vec::new();
    for path in paths {
        for file in list_documents(path, None)? {
            for document in file.reader()? {
                let document = document?;
                documents.push((document.source, document.text));
            }
        }
    }
    Ok(documents)
}
