//! `altiplano eval --documents`.

use std::path::PathBuf;

use altiplano_data::document::Split;
use altiplano_data::progress::{Progress, ProgressMode, Work};
use altiplano_model::Precision;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::super::output::{print_json, print_line};
use super::super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::eval::{Score, Windows, score_documents};
use crate::eval_documents::read_documents;
use crate::trained_model::TrainedModel;

/// What is scored, and how.
#[derive(Debug, Args)]
pub struct DocumentsArgs {
    /// The model: a run, which stands for its newest checkpoint, a checkpoint, or a Hugging Face
    /// directory with tokenizer.model or tokenizer.json.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Data directories, of which the held-out documents are scored, or files that are scored whole:
    /// text, JSON lines (*.jsonl, text in `text`) or Parquet (text in the column `text`).
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    documents: Vec<PathBuf>,
    /// Which documents of a data directory are scored.
    #[arg(long, value_enum, default_value_t = SplitName::Validation)]
    split: SplitName,
    /// Leave the end mark of documents out, for a model that was trained on shards without one
    /// (`shards.add_eos: false`). By default its prediction counts, as in training and validation.
    #[arg(long)]
    no_end_mark: bool,
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Validation,
    All,
}

/// Scores documents.
pub fn run(args: DocumentsArgs) -> Result<()> {
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
    let split = match args.split {
        SplitName::Train => Some(Split::Train),
        SplitName::Validation => Some(Split::Validation),
        SplitName::All => None,
    };
    let read = read_documents(&args.documents, split)?;
    let documents = &read.documents;
    let end_mark = !args.no_end_mark && trained.tokenizer.eos_id().is_some();
    let windows = Windows { context, stride, batch: args.batch };
    let bytes = documents.iter().map(|(_, text)| text.len() as u64).sum();
    let count = documents.len() as u64;
    let work = Work::bytes(bytes).of(count, "documents");
    let progress = Progress::new(ProgressMode::Auto, "eval", work);
    let scores = score_documents(
        &trained.model,
        &trained.tokenizer,
        documents,
        windows,
        end_mark,
        |share, ended| {
            progress.set_done((share * bytes as f64) as u64);
            progress.items_done(ended);
        },
    )?;
    progress.finish(&format!("{count} documents"));

    print_line(&format!("checkpoint: {}", trained.path.display()))?;
    for origin in &read.origins {
        print_line(&format!("scored: {origin}"))?;
    }
    print_line(match end_mark {
        true => "tokens: those of the text and the end mark of each document",
        false => "tokens: those of the text, without an end mark",
    })?;
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
    object["checkpoint"] = json!(trained.path);
    object["scored"] = json!(read.origins);
    object["end_mark"] = json!(end_mark);
    object["context"] = json!(context);
    object["stride"] = json!(stride);
    print_json(&object)
}
