//! A checkpoint opened for serving: the model in an engine, its text side, its defaults.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use altiplano_data::chat::SpecialTokens;
use altiplano_model::device;
use altiplano_model::infer::{
    Engine, EngineOptions, InferencePrecision, SchedulingPolicy, bytes_per_block,
};
use altiplano_serve::app::{App, AppOptions};
use altiplano_serve::engine_thread;
use altiplano_serve::served_model::{SamplingDefaults, ServedModel, now};
use altiplano_serve::serving_metrics::ServingMetrics;
use burn::tensor::Device;
use serde_json::Value;

use crate::chat_session::find_template;
use crate::checkpoint;
use crate::error::{Result, TrainerError};
use crate::text_model::TextModel;

/// The share of free memory that the cache gets by default on the CPU.
const CACHE_SHARE: f64 = 0.5;
/// Bytes that it gets by default elsewhere.
const DEVICE_CACHE_BYTES: u64 = 4 << 30;

/// Where sampling defaults come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationConfig {
    /// `generation_config.json` of the model.
    Model,
    /// OpenAI's defaults.
    None,
    /// The file in another directory.
    Directory(PathBuf),
}

/// How a checkpoint is served.
#[derive(Debug, Clone)]
pub struct ServingOptions {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Where it computes.
    pub device: String,
    /// In which number format; that of the weights by default.
    pub precision: Option<InferencePrecision>,
    /// Names of the model; of the checkpoint by default.
    pub names: Vec<String>,
    /// Tokens of prompt and answer; the model's context by default.
    pub max_model_len: Option<usize>,
    /// Tokens of a block of the cache.
    pub block_size: usize,
    /// Blocks of the cache; by memory by default.
    pub num_blocks: Option<usize>,
    /// Bytes of the cache; a share of what is free by default.
    pub cache_bytes: Option<u64>,
    /// Sequences that run at a time.
    pub max_num_seqs: usize,
    /// Tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Most tokens of one sequence in a step; 0 for no limit.
    pub long_prefill_token_threshold: usize,
    /// Requests share what their prompts have in common.
    pub enable_prefix_caching: bool,
    /// A prompt may take several steps.
    pub enable_chunked_prefill: bool,
    /// Whose turn it is.
    pub policy: SchedulingPolicy,
    /// A file, or the name of a built-in template; the model's own by default.
    pub chat_template: Option<String>,
    /// Where sampling defaults come from.
    pub generation_config: GenerationConfig,
    /// Keys that replace those of it.
    pub override_generation_config: Option<Value>,
    /// How requests are treated.
    pub app: AppOptions,
}

/// Opens a checkpoint and starts its engine.
///
/// # Errors
/// Which file or option does not fit.
pub fn open(options: ServingOptions) -> Result<Arc<App>> {
    let TextModel { path, model, tokenizer, end_tokens, template } =
        TextModel::open(&options.checkpoint, &options.device, options.precision)?;
    let config = model.config().clone();
    let context = config.max_seq_len;
    let max_model_len = options.max_model_len.unwrap_or(context);
    if !(1..=context).contains(&max_model_len) {
        let message =
            format!("--max-model-len {max_model_len}: the context of this model is {context}");
        return Err(TrainerError::Usage { message });
    }
    let defaults = sampling_defaults(&path, &options)?;
    let tokenizer_config = optional_json(&path, "tokenizer_config.json")?.unwrap_or_default();
    let template = find_template(&path, template.as_ref(), options.chat_template.as_deref())?;
    let dtype = model.dtype();
    let num_blocks = match options.num_blocks {
        Some(blocks) => blocks,
        None => {
            let each = bytes_per_block(&config, dtype, options.block_size);
            let all = options
                .max_num_seqs
                .saturating_mul(max_model_len.div_ceil(options.block_size.max(1)));
            let bytes = options.cache_bytes.unwrap_or_else(|| cache_bytes(model.device()));
            blocks_that_fit(bytes, each, all)?
        }
    };
    let mut engine_options = EngineOptions::new(max_model_len, 1);
    engine_options.block_size = options.block_size;
    engine_options.num_blocks = num_blocks;
    engine_options.max_num_seqs = options.max_num_seqs;
    engine_options.max_num_batched_tokens = options.max_num_batched_tokens;
    engine_options.long_prefill_token_threshold = options.long_prefill_token_threshold;
    engine_options.enable_prefix_caching = options.enable_prefix_caching;
    engine_options.enable_chunked_prefill = options.enable_chunked_prefill;
    engine_options.policy = options.policy;
    engine_options.eos_token_ids = end_tokens.clone();
    engine_options.vocab_limit = Some(tokenizer.vocab_size());
    let engine = Engine::new(Arc::new(model), engine_options)?;

    let served = ServedModel {
        names: names(&options),
        root: path.display().to_string(),
        specials: SpecialTokens::of(&tokenizer),
        template,
        tokenizer_config,
        max_model_len,
        vocab_size: config.vocab_size,
        eos_token_ids: end_tokens,
        tokenizer,
        defaults,
        created: now(),
    };
    let metrics = Arc::new(ServingMetrics::new(served.name(), max_model_len));
    let engine = engine_thread::start(engine, Arc::clone(&metrics))?;
    Ok(App::new(served, engine, metrics, options.app))
}

/// The names given, else that of the directory and the path as it was given.
fn names(options: &ServingOptions) -> Vec<String> {
    if !options.names.is_empty() {
        return options.names.clone();
    }
    let path = &options.checkpoint;
    let directory = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut names: Vec<String> =
        directory.into_iter().chain([path.display().to_string()]).collect();
    names.dedup();
    names
}

/// A JSON file of the model, if it is there.
fn optional_json(dir: &Path, name: &str) -> Result<Option<Value>> {
    if !dir.join(name).exists() {
        return Ok(None);
    }
    let bytes = checkpoint::read_file(dir, name)?;
    let json = serde_json::from_slice(&bytes).map_err(|error| TrainerError::RunFile {
        path: dir.join(name),
        reason: format!("not JSON: {error}"),
    })?;
    Ok(Some(json))
}

/// The sampling defaults of a model, checked as those of a request are.
fn sampling_defaults(dir: &Path, options: &ServingOptions) -> Result<SamplingDefaults> {
    let name = "generation_config.json";
    let dir = match &options.generation_config {
        GenerationConfig::Directory(dir) => dir,
        _ => dir,
    };
    let path = dir.join(name);
    let mut config = match &options.generation_config {
        GenerationConfig::None => Value::Null,
        GenerationConfig::Model => optional_json(dir, name)?.unwrap_or_default(),
        GenerationConfig::Directory(dir) => {
            optional_json(dir, name)?.ok_or_else(|| TrainerError::RunFile {
                path: path.clone(),
                reason:
                    "no such file; --generation-config takes auto, none or a directory that has it"
                        .into(),
            })?
        }
    };
    if !config.is_object() && !config.is_null() {
        let reason = "expected a JSON object".into();
        return Err(TrainerError::RunFile { path, reason });
    }
    let replacing = options.override_generation_config.as_ref().and_then(Value::as_object);
    for (key, value) in replacing.into_iter().flatten() {
        config[key] = value.clone();
    }
    SamplingDefaults::of_generation_config(&config).map_err(|unfit| {
        match replacing.is_some_and(|keys| keys.contains_key(unfit.key)) {
            true => {
                TrainerError::Usage { message: format!("--override-generation-config: {unfit}") }
            }
            false => TrainerError::RunFile {
                path,
                reason: format!(
                    "{unfit}; mend it, or give another value by --override-generation-config, or \
                     leave the file out by --generation-config none"
                ),
            },
        }
    })
}

/// Bytes of the cache where nobody says it: a share of what is free on the CPU. How much is free elsewhere
/// is not known, and is not what this machine's own memory says.
pub(crate) fn cache_bytes(device: &Device) -> u64 {
    match device::is_cpu(device) {
        true => (free_memory() as f64 * CACHE_SHARE) as u64,
        false => DEVICE_CACHE_BYTES,
    }
}

/// Blocks of `each` bytes that fit into the memory for the cache, at most `all`.
pub(crate) fn blocks_that_fit(bytes: u64, each: u128, all: usize) -> Result<usize> {
    let blocks = usize::try_from(u128::from(bytes) / each.max(1)).unwrap_or(usize::MAX).min(all);
    if blocks == 0 {
        let message = format!(
            "--kv-cache-memory: {bytes} bytes are less than one block of the cache, {each} bytes"
        );
        return Err(TrainerError::Usage { message });
    }
    Ok(blocks)
}

/// Bytes of memory that a program can still have: the least of what the system and the control group
/// say; 4 GiB where neither says anything.
fn free_memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| {
        let kilobytes = line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim();
        Some(kilobytes.parse::<u64>().ok()? << 10)
    });
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, now)| most.saturating_sub(now));
    available.into_iter().chain(group).min().unwrap_or(4 << 30)
}
