//! `altiplano export`.

use std::path::{Path, PathBuf};

use altiplano_data::ProgressMode;
use altiplano_data::document::Split;
use altiplano_model::quantize::StoredAs;
use clap::{Args, ValueEnum};

use super::estimate;
use super::output::{print_json, print_line};
use super::sizes;
use super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::eval_documents::read_documents;
use crate::interop::Summary;
use crate::interop::awq::{self, AwqOptions};
use crate::interop::gguf::{self, FileType, GgufOptions};
use crate::interop::hugging_face::{self, HuggingFaceOptions};
use crate::interop::meta::{self, MetaOptions};

/// Write a model for other programs: Hugging Face, llama.cpp (GGUF), Meta's layout or AWQ.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct ExportArgs {
    /// The model: a checkpoint, a run (its newest checkpoint) or any Hugging Face directory.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// What to write.
    #[arg(long)]
    format: Format,
    /// Number format of the weights, for hf and meta: f32, bf16 or f16. Default: f32.
    #[arg(long, value_parser = number_format)]
    dtype: Option<StoredAs>,
    /// How the weights are stored, for gguf: f32, f16, bf16, q8_0, q6_k, q4_k_m, q4_0, or q4_0_pure
    /// (q4_0 whose output head is q4_0 too). Default: f16.
    #[arg(long = "type", value_name = "TYPE")]
    file_type: Option<FileType>,
    /// Most bytes of a file of weights, for hf, such as 5GB or 500MB. Default: 5GB.
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes)]
    max_shard_size: Option<u64>,
    /// Files of the model-parallel group, for meta. Default: 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    shards: Option<u8>,
    /// Text that the weights are fitted to, for awq: files of text, JSON lines or Parquet, or data
    /// directories, whose training documents are read.
    #[arg(long, value_name = "PATH")]
    calibration: Vec<PathBuf>,
    /// Most calibration sequences of 512 tokens, for awq. Default: 128.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    calibration_sequences: Option<u16>,
    /// Inputs that share a scale, for awq: 32, 64 or 128. Default: 128.
    #[arg(long, value_name = "N", value_parser = group_size)]
    group_size: Option<usize>,
    /// Name of the model, for gguf. Default: its size.
    #[arg(long)]
    name: Option<String>,
    /// The checkpoint holds low-rank adapters: add them to the model they were trained on.
    #[arg(long)]
    merge: bool,
    /// The directory to write. For gguf also a file that ends in .gguf.
    #[arg(long, value_name = "PATH")]
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
  altiplano export --checkpoint runs/quickstart --format hf --dtype bf16 --output exported
  altiplano export --checkpoint runs/quickstart --format gguf --type q8_0 --output model.gguf
  altiplano export --checkpoint runs/quickstart --format meta --dtype f16 --output meta
  altiplano export --checkpoint runs/adapted --merge --format hf --output merged
  altiplano export --checkpoint runs/quickstart --format awq --group-size 32 \\
      --calibration runs/quickstart/data --calibration-sequences 8 --output awq";

/// A family of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A Hugging Face directory: safetensors, config.json, the tokenizer.
    Hf,
    /// A file of llama.cpp, with the tokenizer in it.
    Gguf,
    /// Meta's consolidated.NN.pth with params.json.
    Meta,
    /// A Hugging Face directory whose matrices are in 4 bits, fitted to --calibration.
    Awq,
}

/// What readers of AWQ know.
fn group_size(text: &str) -> std::result::Result<usize, String> {
    match text {
        "32" => Ok(32),
        "64" => Ok(64),
        "128" => Ok(128),
        _ => Err(format!("{text:?} is not a group size; expected 32, 64 or 128")),
    }
}

/// f32, bf16 or f16.
pub(super) fn number_format(text: &str) -> std::result::Result<StoredAs, String> {
    match text {
        "f32" => Ok(StoredAs::F32),
        "bf16" => Ok(StoredAs::Bf16),
        "f16" => Ok(StoredAs::F16),
        _ => Err(format!("{text:?} is not a number format; expected f32, bf16 or f16")),
    }
}

/// Runs the command.
pub fn run(args: ExportArgs) -> Result<()> {
    args.check()?;
    use_threads(args.threads)?;
    let model = match args.merge {
        true => hugging_face::open_merged(&args.checkpoint)?,
        false => hugging_face::open(&args.checkpoint)?,
    };
    let stored = args.dtype.unwrap_or(StoredAs::F32);
    let (overwrite, progress) = (args.overwrite, ProgressMode::Auto);
    let summary = match args.format {
        Format::Hf => {
            let max_shard_bytes = args.max_shard_size.unwrap_or(5_000_000_000);
            let options = HuggingFaceOptions { stored, max_shard_bytes, overwrite, progress };
            hugging_face::write(&model, &args.output, options)?
        }
        Format::Gguf => {
            let file_type = args.file_type.unwrap_or(FileType::F16);
            let name = args.name.as_deref();
            let options = GgufOptions { file_type, name, overwrite, progress };
            gguf::write(&model, &gguf_path(&args.output, file_type), options)?
        }
        Format::Meta => {
            let shards = args.shards.map_or(1, usize::from);
            let options = MetaOptions { stored, shards, overwrite, progress };
            meta::write(&model, &args.output, options)?
        }
        Format::Awq => {
            let group = args.group_size.unwrap_or(awq::DEFAULT_GROUP);
            let sequences = args.calibration_sequences.map_or(awq::DEFAULT_SEQUENCES, usize::from);
            let texts = read_documents(&args.calibration, Some(Split::Train))?;
            let options = AwqOptions { group, sequences, overwrite, progress };
            awq::write(&model, &texts.documents, &args.output, options)?
        }
    };
    print_summary(&summary, args.json)
}

impl ExportArgs {
    /// Every option belongs to the format.
    fn check(&self) -> Result<()> {
        let floating = [Format::Hf, Format::Meta];
        for (option, given, formats) in [
            ("--dtype", self.dtype.is_some(), &floating[..]),
            ("--type", self.file_type.is_some(), &[Format::Gguf]),
            ("--max-shard-size", self.max_shard_size.is_some(), &[Format::Hf]),
            ("--shards", self.shards.is_some(), &[Format::Meta]),
            ("--name", self.name.is_some(), &[Format::Gguf]),
            ("--calibration", !self.calibration.is_empty(), &[Format::Awq]),
            ("--calibration-sequences", self.calibration_sequences.is_some(), &[Format::Awq]),
            ("--group-size", self.group_size.is_some(), &[Format::Awq]),
        ] {
            if given && !formats.contains(&self.format) {
                let names: Vec<String> =
                    formats.iter().map(|format| format!("{format:?}").to_lowercase()).collect();
                let message =
                    format!("{option}: an option of --format {} alone", names.join(" and "));
                return Err(TrainerError::Usage { message });
            }
        }
        if self.format == Format::Awq && self.calibration.is_empty() {
            let message = "--format awq needs --calibration PATH: the weights are fitted to text";
            return Err(TrainerError::Usage { message: message.into() });
        }
        Ok(())
    }
}

/// The file itself, or the file of this type in a directory.
fn gguf_path(output: &Path, file_type: FileType) -> PathBuf {
    match output.extension() {
        Some(extension) if extension == "gguf" => output.to_path_buf(),
        _ => output.join(gguf::file_name(file_type)),
    }
}

/// Prints what was written.
pub(super) fn print_summary(summary: &Summary, json: bool) -> Result<()> {
    for note in &summary.notes {
        tracing::warn!("{note}");
    }
    for file in &summary.files {
        print_line(&format!("{:>12}  {}", estimate::metric_bytes(file.bytes), file.name))?;
    }
    let formats: Vec<String> =
        summary.stored_as.iter().map(|(format, count)| format!("{count} {format}")).collect();
    print_line(&format!(
        "{}: {} parameters in {} tensors ({}), {}",
        summary.output.display(),
        estimate::metric(summary.parameters as f64),
        summary.tensors,
        formats.join(", "),
        estimate::metric_bytes(summary.bytes)
    ))?;
    if json { print_json(summary) } else { Ok(()) }
}
