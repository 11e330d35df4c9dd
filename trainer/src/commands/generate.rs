//! `altiplano generate`.

use std::path::PathBuf;

use altiplano_model::infer::{InferencePrecision, Sampler, SamplerConfig};
use clap::Args;

use super::chat::{ChatOptions, converse};
use super::output::{print, print_json};
use super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::text_generation::generate_text;
use crate::text_model::TextModel;

/// Continue a text with a trained model.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct GenerateArgs {
    /// The model: a run, which stands for its newest checkpoint, a checkpoint, a Hugging Face
    /// directory with tokenizer.model, low-rank adapters in PEFT's form, or a GGUF file. Weights are mapped
    /// and used as they are stored.
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// The beginning of the text.
    #[arg(long, value_name = "TEXT", required_unless_present = "chat")]
    prompt: Option<String>,
    /// Answer messages, one a line of standard input, by the chat template of the model. On a
    /// terminal Ctrl-C ends an answer and Ctrl-D the conversation.
    #[arg(long, conflicts_with = "prompt")]
    chat: bool,
    /// With --chat: the chat template: alpaca, vicuna_v1.1 or a file. Default: the model's own.
    #[arg(long, value_name = "NAME", requires = "chat")]
    template: Option<String>,
    /// With --chat: the system message. Default: that of the template, if it has one.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Most tokens to generate; the context may end before.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep the likeliest tokens up to this share of the probability.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End the text before this string; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Where the model computes: a name that `altiplano devices` lists as usable.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Number format: f32, bf16, q8_0 or q4_0; the last two on the CPU. Default: that of the weights.
    #[arg(long)]
    precision: Option<InferencePrecision>,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object with text, token_ids and finish_reason instead of streaming.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Examples:
  altiplano generate --checkpoint runs/quickstart \\
      --prompt \"The people\" --max-tokens 64 --temperature 0.7
  altiplano generate --chat --checkpoint runs/taught --temperature 0 <<< \"Who are you?\"";

/// Runs the command.
pub fn run(args: GenerateArgs) -> Result<()> {
    let invalid = |message: String| Err(TrainerError::Usage { message });
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return invalid(format!("--temperature {}: must be 0 or more", args.temperature));
    }
    if !(0.0..=1.0).contains(&args.top_p) {
        return invalid(format!("--top-p {}: must be from 0 to 1", args.top_p));
    }
    use_threads(args.threads)?;
    let trained = TextModel::open(&args.checkpoint, &args.device, args.precision)?;
    let mut sampler = Sampler::new(SamplerConfig {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    });
    if args.chat {
        let options = ChatOptions {
            template: args.template.as_deref(),
            system: args.system.as_deref(),
            max_tokens: args.max_tokens,
            stop: &args.stop,
            json: args.json,
        };
        return converse(&trained, &mut sampler, &options);
    }
    let TextModel { model, tokenizer, end_tokens, .. } = trained;
    let prompt = args.prompt.unwrap_or_default();
    let mut streamed = Ok(());
    if !args.json {
        print(prompt.as_bytes())?;
    }
    let generated = generate_text(
        &model,
        &tokenizer,
        &end_tokens,
        &prompt,
        args.max_tokens,
        &args.stop,
        &mut sampler,
        |piece| {
            if !args.json && streamed.is_ok() && !piece.is_empty() {
                streamed = print(piece.as_bytes());
            }
            streamed.is_ok()
        },
    )?;
    streamed?;
    if args.json { print_json(&generated) } else { print(b"\n") }
}
