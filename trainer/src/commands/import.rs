//! `altiplano import`.

use std::path::PathBuf;

use altiplano_data::ProgressMode;
use altiplano_model::quantize::StoredAs;
use clap::{Args, ValueEnum};

use super::export::{number_format, print_summary};
use super::sizes;
use super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::interop::hugging_face::HuggingFaceOptions;
use crate::interop::{gguf, hugging_face, meta};

/// Read a model of another program: a Hugging Face directory, a GGUF file or Meta's layout.
///
/// The model becomes a directory that `altiplano generate`, `eval` and `export` read.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct ImportArgs {
    /// What to read.
    #[arg(long)]
    from: Format,
    /// The directory; the file for gguf.
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Number format of the weights: f32, bf16 or f16.
    #[arg(long, default_value = "f32", value_parser = number_format)]
    dtype: StoredAs,
    /// Most bytes of a file of weights, such as 5GB or 500MB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = sizes::bytes)]
    max_shard_size: u64,
    /// The model's context in tokens, for meta, whose files do not say it. Default: 2048.
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// The directory to write.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace a model that is there.
    #[arg(long)]
    overwrite: bool,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Examples:
  altiplano import --from gguf model.gguf --output imported
  altiplano import --from meta meta --context 512 --dtype bf16 --output from-meta
  altiplano generate --checkpoint imported --prompt \"The people\"";

/// A family of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A Hugging Face directory: safetensors, plain or packed by AWQ, and config.json.
    Hf,
    /// A file of llama.cpp.
    Gguf,
    /// Meta's consolidated.NN.pth with params.json.
    Meta,
}

/// Context of the first LLaMA.
const DEFAULT_CONTEXT: usize = 2048;

/// Runs the command.
pub fn run(args: ImportArgs) -> Result<()> {
    if args.context.is_some() && args.from != Format::Meta {
        let message = "--context: an option of --from meta alone; the other formats say it".into();
        return Err(TrainerError::Usage { message });
    }
    use_threads(args.threads)?;
    let model = match args.from {
        Format::Hf => hugging_face::open_packed(&args.path)?,
        Format::Gguf => gguf::open(&args.path)?,
        Format::Meta => meta::open(&args.path, args.context.unwrap_or(DEFAULT_CONTEXT))?,
    };
    let options = HuggingFaceOptions {
        stored: args.dtype,
        max_shard_bytes: args.max_shard_size,
        overwrite: args.overwrite,
        progress: ProgressMode::Auto,
    };
    let summary = hugging_face::write(&model, &args.output, options)?;
    print_summary(&summary, args.json)
}
