//! `altiplano generate`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use altiplano_model::infer::{InferencePrecision, SamplingParams};
use clap::{ArgGroup, Args};

use super::chat::{ChatOptions, converse};
use super::output::{print, print_json};
use super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::prompts::{read_prompt, read_prompts};
use crate::text_generation::{Generated, GeneratedText, GenerationOptions, generate_texts};
use crate::text_model::TextModel;

/// Continue texts with a trained model.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
#[command(group = ArgGroup::new("texts").required(true).args(["prompt", "prompt_file", "prompts", "chat"]))]
pub struct GenerateArgs {
    /// The model: a run, which stands for its newest checkpoint, a checkpoint, a Hugging Face
    /// directory with its tokenizer, low-rank adapters in PEFT's form, or a GGUF file. Weights are mapped
    /// and used as they are stored.
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// The beginning of the text.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file that holds the beginning of the text; - is standard input. Line breaks at its end do not
    /// count.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A file of many beginnings, one a line, or JSON lines with a string `prompt`; - is standard
    /// input. They are continued together and share the passes over the weights.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Answer messages, one a line of standard input, by the chat template of the model. On a
    /// terminal Ctrl-C ends an answer and Ctrl-D the conversation.
    #[arg(long, conflicts_with = "n")]
    chat: bool,
    /// With --chat: the chat template: alpaca, vicuna_v1.1 or a file. Default: the model's own.
    #[arg(long, value_name = "NAME", requires = "chat")]
    template: Option<String>,
    /// With --chat: the system message. Default: that of the template, if it has one.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Continuations of each prompt.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    n: u32,
    /// Most tokens to generate; the context may end before.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// No end of text before so many tokens.
    #[arg(long, default_value_t = 0)]
    min_tokens: usize,
    /// Go on after an end of text.
    #[arg(long)]
    ignore_eos: bool,
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true, value_parser = not_negative)]
    temperature: f32,
    /// Keep the K likeliest tokens; 0 keeps all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep the likeliest tokens up to this share of the probability.
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true,
          value_parser = share)]
    top_p: f32,
    /// Keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true,
          value_parser = share)]
    min_p: f32,
    /// Divides positive logits of tokens of the text so far and multiplies negative ones; 1 changes
    /// nothing.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true,
          value_parser = positive)]
    repetition_penalty: f32,
    /// Taken from the logits of tokens that were generated.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true,
          value_parser = finite)]
    presence_penalty: f32,
    /// Taken from the logits of tokens that were generated, once for every time.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true,
          value_parser = finite)]
    frequency_penalty: f32,
    /// Added to the logit of a token; may be given several times.
    #[arg(long, value_name = "ID=VALUE", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Give the log-probability of each token and of the N likeliest ones at its place; with --json.
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    /// Seed of the draws. A text depends on it, its prompt and its number alone, not on other prompts; a
    /// prompt that is given again gets other texts.
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
    /// Print a JSON object a line for each text, as it ends, instead of streaming: prompt_index,
    /// index, text, token_ids, finish_reason, and logprobs where they are asked for.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Examples:
  altiplano generate --checkpoint runs/quickstart \\
      --prompt \"The people\" --max-tokens 64 --temperature 0.7
  altiplano generate --chat --checkpoint runs/taught --temperature 0 <<< \"Who are you?\"
  printf 'One\\nTwo\\n' | altiplano generate --checkpoint runs/quickstart \\
      --prompts - --max-tokens 8 --min-p 0.05 --logprobs 2 --json";

/// A number that satisfies `fits`, or what is expected.
fn number(
    text: &str,
    fits: impl Fn(f32) -> bool,
    expected: &str,
) -> std::result::Result<f32, String> {
    let number = text.parse().ok().filter(|x: &f32| x.is_finite() && fits(*x));
    number.ok_or_else(|| format!("expected {expected}"))
}

fn not_negative(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| x >= 0.0, "a number from 0 on")
}

fn share(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

fn positive(text: &str) -> std::result::Result<f32, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

fn finite(text: &str) -> std::result::Result<f32, String> {
    number(text, |_| true, "a number")
}

fn bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let bias = text.split_once('=').and_then(|(id, value)| {
        Some((id.parse().ok()?, number(value, |_| true, "a number").ok()?))
    });
    bias.ok_or_else(|| "expected a token id, = and a number, such as 13=-2.5".to_string())
}

impl GenerateArgs {
    fn prompts(&self) -> Result<Vec<String>> {
        match (&self.prompt, &self.prompt_file, &self.prompts) {
            (_, _, Some(path)) => read_prompts(path),
            (_, Some(path), _) => Ok(vec![read_prompt(path)?]),
            (prompt, ..) => Ok(prompt.iter().cloned().collect()),
        }
    }

    fn options(&self, end_tokens: Vec<u32>) -> GenerationOptions {
        let sampling = SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            ..SamplingParams::default()
        };
        let (samples, stop) = (self.n as usize, self.stop.clone());
        GenerationOptions { sampling, samples, end_tokens, stop, most_blocks: None }
    }
}

/// Runs the command.
pub fn run(args: GenerateArgs) -> Result<()> {
    use_threads(args.threads)?;
    let prompts = args.prompts()?;
    let trained = TextModel::open(&args.checkpoint, &args.device, args.precision)?;
    let known = trained.model.config().vocab_size;
    if let Some((id, _)) = args.logit_bias.iter().find(|(id, _)| *id as usize >= known) {
        let message = format!("--logit-bias {id}: expected an id below {known}, the vocabulary");
        return Err(TrainerError::Usage { message });
    }
    let options = args.options(trained.end_tokens.clone());
    if args.chat {
        let (template, system) = (args.template.as_deref(), args.system.as_deref());
        return converse(&trained, options, &ChatOptions { template, system, json: args.json });
    }
    let TextModel { model, tokenizer, .. } = trained;
    let one = prompts.len() * options.samples == 1;
    let (waiting, printed) = (BTreeMap::new(), 0);
    let mut in_order = InOrder { prompts: &prompts, samples: options.samples, waiting, printed };
    let mut written = Ok(());
    if one && !args.json {
        print(prompts[0].as_bytes())?;
    }
    generate_texts(&model, &tokenizer, &prompts, &options, |generated| {
        written = match generated {
            Generated::Piece { text, .. } if one && !args.json => print(text.as_bytes()),
            Generated::Piece { .. } => Ok(()),
            Generated::End(text) if args.json => print_json(&text),
            Generated::End(_) if one => print(b"\n"),
            Generated::End(text) => in_order.print(text),
        };
        written.is_ok()
    })?;
    written
}

/// Texts that end in any order and are printed in that of the prompts.
struct InOrder<'a> {
    prompts: &'a [String],
    samples: usize,
    /// Texts that ended before one that goes before them.
    waiting: BTreeMap<usize, GeneratedText>,
    printed: usize,
}

impl InOrder<'_> {
    fn print(&mut self, text: GeneratedText) -> Result<()> {
        self.waiting.insert(text.prompt_index * self.samples + text.index, text);
        while let Some(text) = self.waiting.remove(&self.printed) {
            self.printed += 1;
            let GeneratedText { prompt_index, index, text, .. } = text;
            let prompt = &self.prompts[prompt_index];
            print(format!("--- prompt {prompt_index}, text {index}\n{prompt}{text}\n").as_bytes())?;
        }
        Ok(())
    }
}
