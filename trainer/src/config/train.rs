//! The configuration of a training run.

use std::fmt;
use std::path::{Path, PathBuf};

use altiplano_data::MixtureConfig;
use altiplano_data::eval_tasks::Rules;
use altiplano_model::config::{ActivationCheckpointing, LlamaConfig, Precision};
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::load::ConfigFile;
use super::parallel::ParallelConfig;
use super::path::relative_to;
use super::yaml::to_yaml;
use crate::error::{Result, TrainerError};

/// `configs/train/*.yaml`: everything that decides a run.
///
/// The defaults of optimizer and schedule are LLaMA's (arXiv 2302.13971, section 2.3 and table 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the run: its directory is `output/name`.
    pub name: String,
    /// Directory of all runs. Default `runs` in the current directory.
    #[serde(default = "default_output")]
    pub output: PathBuf,
    /// Seed of the weights and of the order of the data. Default 1.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Weights the run starts from: the directory of a Hugging Face LLaMA, a checkpoint, or a run
    /// for its newest checkpoint. Default: weights drawn from `seed`. Read when the run starts,
    /// never when it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// Where the tensors live: a name that `altiplano devices` lists as usable. Default `cpu`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Number format of matrix products: `bf16` or `f32`. Default `bf16`.
    #[serde(default = "default_precision")]
    pub precision: Precision,
    /// What a layer saves for its backward pass: `none`, `selective` or `full`; less memory for
    /// more time, the same gradients. Default `none`.
    #[serde(default = "default_activation_checkpointing")]
    pub activation_checkpointing: ActivationCheckpointing,
    /// Whether a token sees only its own document where several share a sequence. Default false,
    /// as in LLaMA. It is about attention; `data.mask_document_boundary` is about the loss.
    #[serde(default)]
    pub document_mask: bool,
    /// Threads that compute. Default: all cores. On `cpu` the numbers do not depend on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Threads that read token shards. Default 1. The batches do not depend on it.
    #[serde(default = "default_readers")]
    pub readers: usize,
    /// Shape of the model: a mapping, or the path of a file that holds it.
    pub model: LlamaConfig,
    /// The SentencePiece model that made the shards. Needed unless `data` is `random`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// What is trained on: `random`, or sources with weights.
    pub data: MixtureConfig,
    /// Size of a step.
    pub batch: BatchConfig,
    /// How the run is spread over ranks.
    #[serde(default)]
    pub parallel: ParallelConfig,
    /// Length of the run in optimizer steps. Either this or `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Length of the run in tokens, rounded up to whole steps. Either this or `steps`.
    #[serde(default, deserialize_with = "count", skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// AdamW, schedule and clipping.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Loss on held-out documents.
    #[serde(default)]
    pub validate: ValidateConfig,
    /// Tasks of `docs/eval.md`, scored during training.
    #[serde(default)]
    pub eval: EvalConfig,
    /// When the state is saved and how much of it is kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Text written by the model during training.
    #[serde(default)]
    pub sample: SampleConfig,
    /// What is recorded beside `metrics.jsonl`.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Skip the update of a step whose loss or gradient norm lies more than this many standard
    /// deviations above its recent mean. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_outliers: Option<f64>,
    /// Steps between two lines of progress where there is no terminal. Default 10.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
}

fn default_output() -> PathBuf {
    PathBuf::from("runs")
}

fn default_seed() -> u64 {
    1
}

fn default_device() -> String {
    "cpu".into()
}

fn default_precision() -> Precision {
    Precision::Bf16
}

fn default_activation_checkpointing() -> ActivationCheckpointing {
    ActivationCheckpointing::None
}

fn default_readers() -> usize {
    1
}

fn default_log_every() -> u64 {
    10
}

/// A whole number that may be written `1.4e12`.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<u64>, D::Error> {
    struct Count;

    impl<'de> Visitor<'de> for Count {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a whole number such as 5000000 or 1.4e12")
        }

        fn visit_u64<E: serde::de::Error>(self, value: u64) -> std::result::Result<Self::Value, E> {
            Ok(Some(value))
        }

        fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<Self::Value, E> {
            // Every whole f64 up to 2^53 is exact.
            if value.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&value) {
                return Ok(Some(value as u64));
            }
            Err(E::invalid_value(serde::de::Unexpected::Float(value), &self))
        }

        fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<Self::Value, E> {
            Ok(None)
        }
    }

    deserializer.deserialize_any(Count)
}

/// Size of one optimizer step: `micro_batch · grad_accum_steps · seq_len` tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Sequences of one forward and backward pass.
    pub micro_batch: usize,
    /// Passes whose gradients make one step, over all copies of the model. Default 1.
    #[serde(default = "one")]
    pub grad_accum_steps: usize,
    /// Tokens of a sequence; at most `model.max_seq_len`.
    pub seq_len: usize,
}

fn one() -> usize {
    1
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// Half a cosine, from the peak down to the floor at `decay_steps`.
    Cosine,
    /// Warm-up, stable, decay: the peak until `cooldown_steps` before `decay_steps`, then a
    /// straight line down to the floor.
    Wsd,
    /// The peak, for ever.
    Constant,
}

/// AdamW, its learning-rate schedule and gradient clipping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate. Default 3e-4.
    pub lr: f64,
    /// Learning rate after the decay as a share of the peak. Default 0.1.
    pub min_lr_ratio: f64,
    /// Steps of the linear warm-up. Default 2000.
    pub warmup_steps: u64,
    /// How the learning rate falls after the warm-up. Default `cosine`.
    pub schedule: LrSchedule,
    /// Step at which the decay ends, counted from the start of the run; later than its last step
    /// for a run that is to be extended. Default: the last step. Not with `constant`.
    pub decay_steps: Option<u64>,
    /// Steps of the decay of `wsd`, the last of which is `decay_steps`. Default: a tenth of
    /// `decay_steps`.
    pub cooldown_steps: Option<u64>,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay, on matrices only. Default 0.1.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 turns clipping off. Default 1.
    pub grad_clip: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 3e-4,
            min_lr_ratio: 0.1,
            warmup_steps: 2000,
            schedule: LrSchedule::Cosine,
            decay_steps: None,
            cooldown_steps: None,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_clip: 1.0,
        }
    }
}

/// Loss on held-out documents during training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidateConfig {
    /// Steps between two validations; 0 means never. Default 1000.
    pub every: u64,
    /// Most sequences read from each source. Default 256.
    pub max_sequences: usize,
}

impl Default for ValidateConfig {
    fn default() -> Self {
        Self { every: 1000, max_sequences: 256 }
    }
}

/// Tasks of `docs/eval.md`, scored during training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Their names. Default: none, nothing is scored.
    pub tasks: Vec<String>,
    /// The folder with their files, each task's in a folder of its name. Needed with `tasks`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Steps between two evaluations; 0 means never. Default 0.
    pub every: u64,
    /// Further steps after which there is an evaluation. Default: none.
    pub steps: Vec<u64>,
    /// Whether there is one after the last step. Default true.
    pub at_end: bool,
    /// Whose prompts and scores: `paper` or `harness`. Default `paper`.
    pub rules: Rules,
    /// Examples shown before each question. Default: those of the rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Most examples of a task. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            data: None,
            every: 0,
            steps: Vec::new(),
            at_end: true,
            rules: Rules::Paper,
            shots: None,
            limit: None,
        }
    }
}

impl EvalConfig {
    /// Whether anything is ever scored.
    pub fn is_on(&self) -> bool {
        !self.tasks.is_empty() && (self.every > 0 || !self.steps.is_empty() || self.at_end)
    }

    /// Whether there is an evaluation after `step` of a run that ends after `last_step`.
    pub fn is_due(&self, step: u64, last_step: u64) -> bool {
        let every = self.every > 0 && step.is_multiple_of(self.every);
        self.is_on() && (every || self.steps.contains(&step) || (self.at_end && step == last_step))
    }

    /// How many evaluations a run of so many steps has.
    pub fn count(&self, last_step: u64) -> u64 {
        if !self.is_on() {
            return 0;
        }
        let mut others: Vec<u64> = self.steps.clone();
        others.extend(self.at_end.then_some(last_step));
        others.retain(|step| {
            (1..=last_step).contains(step) && (self.every == 0 || !step.is_multiple_of(self.every))
        });
        others.sort_unstable();
        others.dedup();
        last_step.checked_div(self.every).unwrap_or(0) + others.len() as u64
    }
}

/// The name of the validation loss among the scores that the best checkpoint may be chosen by.
pub const VAL_LOSS: &str = "val_loss";

/// When checkpoints are written and which are kept. The last step always writes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints; 0 means only at the end. Default 1000.
    pub every: u64,
    /// How many of the newest are kept. Default 2.
    pub keep_last: usize,
    /// Checkpoints at multiples of this step are kept for good; 0 means none. Default 0.
    pub keep_every: u64,
    /// Whether the checkpoint with the best score is kept, also under the name `RUN/best`; one is
    /// written after a score that is better than all before. Default false.
    pub keep_best: bool,
    /// The score: `val_loss`, the lowest of which is best, or one of `eval`, such as `piqa/acc`.
    /// Default `val_loss`.
    pub best_by: String,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        let best_by = VAL_LOSS.to_owned();
        Self { every: 1000, keep_last: 2, keep_every: 0, keep_best: false, best_by }
    }
}

/// Text written by the model during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Steps between two samples; 0 means never. Default 0.
    pub every: u64,
    /// Beginnings that the model continues. Default: none.
    pub prompts: Vec<String>,
    /// Most tokens of a continuation. Default 64.
    pub max_tokens: usize,
    /// Sampling temperature; 0 takes the likeliest token. Default 0.8.
    pub temperature: f64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { every: 0, prompts: Vec::new(), max_tokens: 64, temperature: 0.8 }
    }
}

/// What is recorded beside `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Event files for TensorBoard in the directory of the run. Default false.
    pub tensorboard: bool,
}

impl TrainConfig {
    /// Directory of the run.
    pub fn run_dir(&self) -> PathBuf {
        self.output.join(&self.name)
    }

    /// Tokens of one optimizer step.
    pub fn tokens_per_step(&self) -> u64 {
        let BatchConfig { micro_batch, grad_accum_steps, seq_len } = self.batch;
        micro_batch as u64 * grad_accum_steps as u64 * seq_len as u64
    }

    /// Optimizer steps of the whole run: `steps`, or `tokens` rounded up to whole steps.
    pub fn total_steps(&self) -> u64 {
        match (self.steps, self.tokens) {
            (Some(steps), _) => steps,
            (None, Some(tokens)) => tokens.div_ceil(self.tokens_per_step().max(1)),
            (None, None) => 0,
        }
    }

    /// Step at which the decay of the learning rate ends: `optimizer.decay_steps`, or the last step.
    pub fn decay_steps(&self) -> u64 {
        self.optimizer.decay_steps.unwrap_or_else(|| self.total_steps())
    }

    /// The configuration with its paths as seen from `run_dir`, so a run can move together with
    /// what it points to.
    ///
    /// # Errors
    /// When the current directory is gone.
    pub fn resolved(&self, run_dir: &Path) -> Result<Self> {
        let seen = |path: &Path| relative_to(path, run_dir).map_err(TrainerError::io(path));
        let mut resolved = self.clone();
        resolved.output = seen(&self.output)?;
        resolved.init_from = self.init_from.as_deref().map(seen).transpose()?;
        resolved.parallel.library = self.parallel.library.as_deref().map(seen).transpose()?;
        resolved.tokenizer = self.tokenizer.as_deref().map(seen).transpose()?;
        resolved.eval.data = self.eval.data.as_deref().map(seen).transpose()?;
        for source in &mut resolved.data.sources {
            source.path = seen(&source.path)?;
        }
        Ok(resolved)
    }

    /// The [`resolved`](Self::resolved) configuration with every default written out, as it is kept
    /// in `run_dir/config.yaml`.
    ///
    /// # Errors
    /// As [`resolved`](Self::resolved), and when a path is not UTF-8.
    pub fn resolved_yaml(&self, run_dir: &Path) -> Result<String> {
        let resolved = self.resolved(run_dir)?;
        let yaml = to_yaml(&resolved).map_err(|error| TrainerError::RunFile {
            path: run_dir.join("config.yaml"),
            reason: error.to_string(),
        })?;
        Ok(format!(
            "# Resolved configuration of this run. Paths are relative to this file.\n{yaml}"
        ))
    }
}

impl ConfigFile for TrainConfig {
    const INCLUDES: &'static [&'static str] = &["model", "data"];
    const PATHS: &'static [&'static str] = &[
        "output",
        "init_from",
        "tokenizer",
        "data.sources.*.path",
        "eval.data",
        "parallel.library",
    ];
    const ADDRESSES: &'static [&'static str] = &["data.sources.*.path"];
    const EXCLUSIVE: &'static [(&'static str, &'static str)] = &[("steps", "tokens")];

    fn check(&self) -> std::result::Result<(), super::Problem> {
        super::check::check(self)
    }
}

impl ConfigFile for LlamaConfig {
    fn check(&self) -> std::result::Result<(), super::Problem> {
        super::check::check_model(self, "")
    }
}
