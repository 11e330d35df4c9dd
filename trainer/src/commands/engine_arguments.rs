//! The arguments of commands that answer requests: which model, how it computes, what it remembers.

use std::path::PathBuf;

use altiplano_model::infer::{InferencePrecision, SchedulingPolicy};
use altiplano_serve::app::AppOptions;
use clap::{ArgAction, Args};
use serde_json::Value;

use super::sizes;
use crate::error::{Result, TrainerError};
use crate::serving::{GenerationConfig, ServingOptions};

/// A whole number above 0.
pub(super) fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "expected 1 or more".to_string())
}

/// Arguments under vLLM's names.
#[derive(Debug, Args)]
pub struct EngineArguments {
    /// The model: a run, which stands for its newest checkpoint, a checkpoint, a Hugging Face
    /// directory with its tokenizer, low-rank adapters in PEFT's form, which are added to the model
    /// they name, or a GGUF file. Weights are mapped and used as they are stored.
    #[arg(long, value_name = "PATH", alias = "model")]
    checkpoint: PathBuf,
    /// Names of the model in requests; the first one is in answers. Default: the name of the
    /// directory, and the path as it is given.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    served_model_name: Vec<String>,
    /// Where the model computes: a name that `altiplano devices` lists as usable.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Number format: f32, bf16, q8_0 or q4_0; the last two on the CPU. Default: that of the weights.
    #[arg(long, alias = "dtype")]
    precision: Option<InferencePrecision>,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Tokens of a prompt and its answer together. Default: the model's context.
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Tokens of a block of the key/value cache, a multiple of 16.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    block_size: usize,
    /// Blocks of the cache, whatever the memory.
    #[arg(long, value_name = "BLOCKS")]
    num_gpu_blocks_override: Option<usize>,
    /// Memory of the cache, such as 4GB. Default: half of what is free on the CPU, 4 GiB on other
    /// devices, and no more than the most sequences can use.
    #[arg(long, value_name = "SIZE", value_parser = sizes::bytes, alias = "kv-cache-memory-bytes")]
    kv_cache_memory: Option<u64>,
    /// Sequences that are computed at a time.
    #[arg(long, value_name = "N", default_value = "128", value_parser = at_least_one)]
    pub max_num_seqs: usize,
    /// Tokens of a step, prompts and answers together.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    max_num_batched_tokens: usize,
    /// Most tokens of one prompt in a step; 0 is no limit.
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    long_prefill_token_threshold: usize,
    /// Prompts share the blocks of what they have in common.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true")]
    enable_prefix_caching: bool,
    /// The same as `--enable-prefix-caching false`.
    #[arg(long)]
    no_enable_prefix_caching: bool,
    /// A long prompt is computed over several steps, beside the answers of others.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true")]
    enable_chunked_prefill: bool,
    /// The same as `--enable-chunked-prefill false`.
    #[arg(long)]
    no_enable_chunked_prefill: bool,
    /// Whose turn it is: fcfs, or priority, by the field of that name in requests.
    #[arg(long, value_name = "POLICY", default_value = "fcfs")]
    scheduling_policy: SchedulingPolicy,
    /// The seed from which those of requests without one follow.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// How conversations become text: a file, alpaca, or vicuna_v1.1. Default: what the model has.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<String>,
    /// Sampling defaults: auto for those of the model, none for OpenAI's, or a directory with
    /// generation_config.json.
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    generation_config: String,
    /// Sampling defaults that replace those, as a JSON object.
    #[arg(long, value_name = "JSON")]
    override_generation_config: Option<String>,
    /// Most log-probabilities that a request may ask for at a place; -1 for no limit.
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true)]
    max_logprobs: i64,
    /// Write tokens in answers as token_id:123, which loses nothing.
    #[arg(long)]
    return_tokens_as_token_ids: bool,
}

impl EngineArguments {
    /// The options that the arguments stand for; `app` is how requests are treated, whose fields of the
    /// same names are set.
    pub fn options(&self, mut app: AppOptions) -> Result<ServingOptions> {
        let invalid = |message: String| Err(TrainerError::Usage { message });
        app.seed = self.seed;
        app.return_tokens_as_token_ids = self.return_tokens_as_token_ids;
        app.max_logprobs = match self.max_logprobs {
            -1 => usize::MAX,
            count => match usize::try_from(count) {
                Ok(count) => count,
                Err(_) => return invalid(format!("--max-logprobs {count}: must be -1 or more")),
            },
        };
        let generation_config = match self.generation_config.as_str() {
            "auto" => GenerationConfig::Model,
            "none" | "vllm" => GenerationConfig::None,
            directory => GenerationConfig::Directory(directory.into()),
        };
        let override_generation_config = match &self.override_generation_config {
            None => None,
            Some(text) => match serde_json::from_str::<Value>(text) {
                Ok(value) if value.is_object() => Some(value),
                _ => {
                    return invalid(format!(
                        "--override-generation-config {text}: expected a JSON object"
                    ));
                }
            },
        };
        Ok(ServingOptions {
            checkpoint: self.checkpoint.clone(),
            device: self.device.clone(),
            precision: self.precision,
            names: self.served_model_name.clone(),
            max_model_len: self.max_model_len,
            block_size: self.block_size,
            num_blocks: self.num_gpu_blocks_override,
            cache_bytes: self.kv_cache_memory,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            long_prefill_token_threshold: self.long_prefill_token_threshold,
            enable_prefix_caching: self.enable_prefix_caching && !self.no_enable_prefix_caching,
            enable_chunked_prefill: self.enable_chunked_prefill && !self.no_enable_chunked_prefill,
            policy: self.scheduling_policy,
            chat_template: self.chat_template.clone(),
            generation_config,
            override_generation_config,
            app,
        })
    }
}
