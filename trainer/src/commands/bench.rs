//! `altiplano bench`: speed and memory of training, attention and generation.

use std::path::PathBuf;

use altiplano_model::infer::InferencePrecision;
use altiplano_model::{Precision, device};
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{print_json, print_line};
use super::threads::use_threads;
use crate::bench::{
    AttentionBenchOptions, GenerateBenchOptions, TrainBenchOptions, bench_attention, bench_data,
    bench_generate, bench_train,
};
use crate::config::{TrainConfig, load, load_step};
use crate::error::Result;
use crate::peak::{Peak, large_product_flops_per_second};

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    Train(TrainArgs),
    Attention(AttentionArgs),
    Matmul(MatmulArgs),
    Generate(GenerateArgs),
    Data(DataArgs),
}

/// Measure optimizer steps of a configuration; writes no run.
#[derive(Debug, Args)]
#[command(after_help = TRAIN_EXAMPLE)]
pub(super) struct TrainArgs {
    /// Configuration of a run.
    config: PathBuf,
    /// Values that replace those of the configuration.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Steps timed, of which the median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(5..))]
    steps: u64,
    /// Steps before them that are not timed.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warmup: u64,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const TRAIN_EXAMPLE: &str = "\
Examples:
  altiplano bench train configs/train/bench.yaml
  altiplano bench train configs/train/bench.yaml precision=f32 activation_checkpointing=full --json

`mfu` is a share of the peak that the maker of a GPU publishes for it; for a CPU, or a GPU that is
not known by its name, of the best of several matrix products before and after the steps.";

/// Measure one step of the data pipeline on the text of JSON lines.
#[derive(Debug, Args)]
#[command(after_help = DATA_EXAMPLE)]
pub(super) struct DataArgs {
    /// The step, by its name in `steps` of a data configuration.
    step: String,
    /// JSON lines with `text`; `.gz` and `.zst` are unpacked.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// YAML file with the step's options. Default: every option at its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const DATA_EXAMPLE: &str = "\
Example:
  altiplano bench data c4 tests/fixtures/plain/moby-dick.jsonl

Speed is of one core: bytes of text by processor time of the thread.";

/// Measure causal attention, forward and backward, on random numbers.
#[derive(Debug, Args)]
#[command(after_help = ATTENTION_EXAMPLE)]
pub(super) struct AttentionArgs {
    /// Heads, as many for keys and values.
    #[arg(long, value_name = "H", default_value_t = 8)]
    heads: usize,
    /// Width of a head.
    #[arg(long, value_name = "D", default_value_t = 64)]
    head_dim: usize,
    /// Tokens of a sequence.
    #[arg(long, value_name = "T", default_value_t = 4096)]
    seq_len: usize,
    /// Sequences.
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Where: cpu, or a device of this build as in `device:` of a run.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number format: bf16 or f32.
    #[arg(long, default_value = "bf16")]
    precision: Precision,
    /// Passes timed, of which the median counts.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const ATTENTION_EXAMPLE: &str = "\
Example:
  altiplano bench attention --seq-len 4096 --precision f32

FLOP/s count 3.5 · 2BHT²D: 2BHT²D forward, the causal half of two products, and 2.5 times that
backward.";

/// Measure a large matrix product: the ceiling of everything else on the same machine.
#[derive(Debug, Args)]
#[command(after_help = MATMUL_EXAMPLE)]
pub(super) struct MatmulArgs {
    /// Where: cpu, or a device of this build as in `device:` of a run.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number format: bf16 or f32.
    #[arg(long, default_value = "bf16")]
    precision: Precision,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const MATMUL_EXAMPLE: &str = "\
Example:
  altiplano bench matmul --precision f32

On NVIDIA GPUs the product is cuBLASLt's; with ALTIPLANO_PRODUCTS=cubek in the environment it is
that of the kernels used where cuBLASLt is missing.";

/// Measure generation from a checkpoint: the prompts at once, then token by token.
#[derive(Debug, Args)]
#[command(after_help = GENERATE_EXAMPLE)]
pub(super) struct GenerateArgs {
    /// The model: a run, which stands for its newest checkpoint, a checkpoint, or a Hugging Face
    /// directory with tokenizer.model or tokenizer.json.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Sequences at a time, which share each pass over the weights.
    #[arg(long, value_name = "N", default_value_t = 1)]
    sequences: usize,
    /// Tokens of the prompt of each.
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens generated after it.
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,
    /// Number format: f32, bf16, q8_0 or q4_0. Default: that of the weights.
    #[arg(long)]
    precision: Option<InferencePrecision>,
    /// Generations timed, of which the median counts.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const GENERATE_EXAMPLE: &str = "\
Example:
  altiplano bench generate --checkpoint runs/quickstart";

pub(super) fn run(command: BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Train(args) => train(&args),
        BenchCommand::Attention(args) => attention(&args),
        BenchCommand::Matmul(args) => matmul(&args),
        BenchCommand::Generate(args) => generate(&args),
        BenchCommand::Data(args) => data(&args),
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    let config: TrainConfig = load(&args.config, &args.overrides)?;
    use_threads(config.threads)?;
    let bench = bench_train(&config, TrainBenchOptions { steps: args.steps, warmup: args.warmup })?;
    print_line(&format!(
        "{}: {:.1}M parameters, {}, checkpointing {}, {} threads, {} tokens a step",
        config.name,
        bench.parameters as f64 / 1e6,
        bench.precision,
        bench.policy,
        bench.threads,
        bench.tokens_per_step,
    ))?;
    print_line(&format!(
        "{:.1} tokens/s, {:.3} s a step (median of {})",
        bench.tokens_per_second, bench.step_seconds, bench.steps
    ))?;
    print_line(&format!(
        "{:.1} model GFLOP/s, mfu {:.3} of a peak of {:.1} GFLOP/s; matrix product {:.1} GFLOP/s",
        bench.model_flops_per_second / 1e9,
        bench.mfu,
        bench.peak_flops_per_second / 1e9,
        bench.matmul_flops_per_second / 1e9
    ))?;
    print_line(&format!("{:.0} MB peak memory", bench.peak_memory_bytes as f64 / 1e6))?;
    if args.json { print_json(&bench) } else { Ok(()) }
}

fn attention(args: &AttentionArgs) -> Result<()> {
    use_threads(args.threads)?;
    let bench = bench_attention(&AttentionBenchOptions {
        device: args.device.clone(),
        batch: args.batch,
        heads: args.heads,
        head_dim: args.head_dim,
        seq_len: args.seq_len,
        precision: args.precision,
        repeats: args.repeats,
    })?;
    print_line(&format!(
        "B {} H {} D {} T {}, {}, {} threads",
        bench.batch, bench.heads, bench.head_dim, bench.seq_len, bench.precision, bench.threads
    ))?;
    print_line(&format!(
        "forward {:.4} s, backward {:.4} s, {:.1} GFLOP/s, {:.0} MB peak memory",
        bench.forward_seconds,
        bench.backward_seconds,
        bench.flops_per_second / 1e9,
        bench.peak_memory_bytes as f64 / 1e6
    ))?;
    if args.json { print_json(&bench) } else { Ok(()) }
}

fn matmul(args: &MatmulArgs) -> Result<()> {
    use_threads(args.threads)?;
    let device = device::select(&args.device)?;
    let rate = large_product_flops_per_second(args.precision, &device);
    Peak::keep(&args.device, &device, args.precision, rate);
    print_line(&format!("{:.1} GFLOP/s, {}, {}", rate / 1e9, args.precision, args.device))?;
    let figures = json!({
        "flops_per_second": rate,
        "precision": args.precision,
        "device": args.device,
    });
    if args.json { print_json(&figures) } else { Ok(()) }
}

fn generate(args: &GenerateArgs) -> Result<()> {
    use_threads(args.threads)?;
    let bench = bench_generate(
        &args.checkpoint,
        &GenerateBenchOptions {
            sequences: args.sequences,
            prompt_tokens: args.prompt_tokens,
            new_tokens: args.new_tokens,
            precision: args.precision,
            repeats: args.repeats,
        },
    )?;
    print_line(&format!(
        "{:.1}M parameters, {}, {} threads, opened in {:.3} s: {} × prompt of {} tokens, {} new",
        bench.parameters as f64 / 1e6,
        bench.precision,
        bench.threads,
        bench.seconds_to_open,
        bench.sequences,
        bench.prompt_tokens,
        bench.new_tokens
    ))?;
    print_line(&format!(
        "prefill {:.1} tokens/s, decode {:.1} tokens/s, {:.4} s to the first token, {:.0} MB peak \
         memory",
        bench.prefill_tokens_per_second,
        bench.decode_tokens_per_second,
        bench.seconds_to_first_token,
        bench.peak_memory_bytes as f64 / 1e6
    ))?;
    if args.json { print_json(&bench) } else { Ok(()) }
}

fn data(args: &DataArgs) -> Result<()> {
    let step = load_step(&args.step, args.config.as_deref())?;
    let bench = bench_data(&args.step, &step, &args.inputs)?;
    print_line(&format!(
        "{}: {:.1} MB/s of one core; {} of {} documents kept, {:.1} of {:.1} MB",
        bench.step,
        bench.megabytes_per_second,
        bench.documents_kept,
        bench.documents,
        bench.bytes_kept as f64 / 1e6,
        bench.bytes as f64 / 1e6,
    ))?;
    if args.json { print_json(&bench) } else { Ok(()) }
}
