//! The configuration of supervised fine-tuning.

use std::path::{Path, PathBuf};

use altiplano_data::MixtureConfig;
use altiplano_data::chat::BUILT_IN_TEMPLATES;
use altiplano_data::sft::{FileOfExamples, TrainOn};
use altiplano_model::adapters::{AdapterShape, Target};
use altiplano_model::config::{ActivationCheckpointing, LlamaConfig, Precision};
use serde::{Deserialize, Serialize};

use super::check::{
    Check, LARGEST_SIZE, MOST_STEPS, MOST_THREADS, check_adamw, check_name, check_skip_outliers,
};
use super::load::{ConfigFile, Problem, load};
use super::parallel::ParallelConfig;
use super::path::{beside_links, relative_to};
use super::resume::{Change, ON_RESUME_SFT, recorded_changes, refuse_other_kind, sets};
use super::train::{
    BatchConfig, CheckpointConfig, EvalConfig, LrSchedule, MetricsConfig, OptimizerConfig,
    SampleConfig, TrainConfig, VAL_LOSS, ValidateConfig,
};
use super::yaml::to_yaml;
use crate::error::{Result, TrainerError};

/// `configs/sft/*.yaml`: everything that decides a fine-tuning run.
///
/// The defaults of the optimizer are those with which Alpaca and Vicuna were trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {
    /// Name of the run: its directory is `output/name`.
    pub name: String,
    /// Directory of all runs. Default `runs` in the current directory.
    #[serde(default = "default_output")]
    pub output: PathBuf,
    /// Seed of the order of the examples and of which are held out. Default 1.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The model to start from: a Hugging Face directory with `tokenizer.model`, a checkpoint, or a run for
    /// its newest checkpoint.
    pub base: PathBuf,
    /// Where the tensors live: a name that `altiplano devices` lists as usable. Default `cpu`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Number format of matrix products: `bf16` or `f32`. Default `bf16`.
    #[serde(default = "default_precision")]
    pub precision: Precision,
    /// What a layer saves for its backward pass. Default `none`.
    #[serde(default = "default_activation_checkpointing")]
    pub activation_checkpointing: ActivationCheckpointing,
    /// Threads that compute. Default: all cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Chat template: `alpaca`, `vicuna_v1.1`, or the path of a file.
    pub template: String,
    /// Files of examples.
    pub data: Vec<FileOfExamples>,
    /// Most tokens of an example, and tokens of a packed row; at most the model's longest context.
    pub max_length: usize,
    /// What is trained: `responses` or `all` tokens. Default `responses`.
    #[serde(default)]
    pub train_on: TrainOn,
    /// Whether several examples share a row, without seeing each other. Default true.
    #[serde(default = "default_packing")]
    pub packing: bool,
    /// Whether an example with the messages of an earlier one is left out. Default false.
    #[serde(default)]
    pub drop_duplicates: bool,
    /// Whether the model gets a token `[PAD]` behind those of its tokenizer, as the published Alpaca has it. Nothing
    /// here needs one. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub add_pad_token: bool,
    /// Passes over the examples. Either this or `steps`. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Length of the run in optimizer steps. Either this or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Size of a step.
    pub batch: SftBatchConfig,
    /// AdamW, schedule and clipping.
    #[serde(default)]
    pub optimizer: SftOptimizerConfig,
    /// Low-rank adapters, which are trained instead of the weights. Default: none, all weights train.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Loss on examples that are held out.
    #[serde(default)]
    pub validate: SftValidateConfig,
    /// When the state is saved and how much of it is kept.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
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

/// Passes over the examples where neither `epochs` nor `steps` is given.
const EPOCHS: f64 = 3.0;

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

fn default_packing() -> bool {
    true
}

fn default_log_every() -> u64 {
    10
}

/// Size of an optimizer step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftBatchConfig {
    /// Examples of a step.
    pub examples: usize,
    /// Rows of one forward and backward pass. The numbers of a step depend on it by rounding only.
    pub micro_batch: usize,
}

/// Low-rank adapters (arXiv 2106.09685): W + alpha / r · B A, of which A and B are trained and W stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of A and columns of B. Default 8.
    pub r: usize,
    /// The product is scaled by alpha / r. Default 16.
    pub alpha: f64,
    /// Which matrices of every layer have an adapter. Default `q_proj` and `v_proj`.
    pub targets: Vec<Target>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { r: 8, alpha: 16.0, targets: vec![Target::QProj, Target::VProj] }
    }
}

impl LoraConfig {
    /// The shape of the adapters.
    pub fn shape(&self) -> AdapterShape {
        let mut targets = self.targets.clone();
        targets.sort_unstable();
        targets.dedup();
        AdapterShape { rank: self.r, alpha: self.alpha, targets }
    }

    fn check(&self) -> Check {
        if self.r == 0 || self.r > LARGEST_RANK {
            let message = format!("found {}, expected 1 to {LARGEST_RANK}", self.r);
            return Err(Problem::new("lora.r", message));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            let message = format!("found {}, expected a positive number", self.alpha);
            return Err(Problem::new("lora.alpha", message));
        }
        if self.targets.is_empty() {
            return Err(Problem::new("lora.targets", "empty: expected at least one matrix"));
        }
        Ok(())
    }
}

/// Largest rank of adapters.
const LARGEST_RANK: usize = 4096;

/// AdamW, its learning-rate schedule and gradient clipping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftOptimizerConfig {
    /// Peak learning rate. Default 2e-5.
    pub lr: f64,
    /// How the learning rate falls after the warm-up. Default `cosine`.
    pub schedule: LrSchedule,
    /// Learning rate after the decay as a share of the peak. Default 0.
    pub min_lr_ratio: f64,
    /// Share of the steps up to `decay_steps` that are warm-up, rounded up to whole steps. Default 0.03.
    pub warmup_ratio: f64,
    /// Step for which the learning rate is planned: the decay ends there. Default: the last step of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay, on matrices only. Default 0.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 turns clipping off. Default 1.
    pub grad_clip: f64,
}

impl Default for SftOptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 2e-5,
            schedule: LrSchedule::Cosine,
            min_lr_ratio: 0.0,
            warmup_ratio: 0.03,
            decay_steps: None,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            grad_clip: 1.0,
        }
    }
}

impl SftOptimizerConfig {
    /// The optimizer of a run of `steps` steps.
    fn of_steps(&self, steps: u64) -> OptimizerConfig {
        let planned = self.decay_steps.unwrap_or(steps);
        OptimizerConfig {
            lr: self.lr,
            min_lr_ratio: self.min_lr_ratio,
            warmup_steps: (self.warmup_ratio * planned as f64).ceil() as u64,
            schedule: self.schedule,
            // A constant rate has no decay; its warm-up alone is planned.
            decay_steps: self.decay_steps.filter(|_| self.schedule != LrSchedule::Constant),
            cooldown_steps: None,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            grad_clip: self.grad_clip,
        }
    }
}

/// Loss on examples that are held out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftValidateConfig {
    /// Examples that are held out: a share below 1, rounded up, or a number. Default 0.01.
    pub examples: f64,
    /// Steps between two validations; 0 means never. Default 100.
    pub every: u64,
}

impl Default for SftValidateConfig {
    fn default() -> Self {
        Self { examples: 0.01, every: 100 }
    }
}

impl SftConfig {
    /// Directory of the run.
    pub fn run_dir(&self) -> PathBuf {
        self.output.join(&self.name)
    }

    /// Optimizer steps of a run on `examples` examples: whole steps of what `epochs` passes draw.
    pub fn total_steps(&self, examples: u64) -> u64 {
        self.steps.unwrap_or_else(|| {
            let drawn = self.epochs.unwrap_or(EPOCHS) * examples as f64;
            (drawn / self.batch.examples.max(1) as f64).floor() as u64
        })
    }

    /// The optimizer of a run on `examples` examples.
    pub(crate) fn optimizer_of(&self, examples: u64) -> OptimizerConfig {
        self.optimizer.of_steps(self.total_steps(examples))
    }

    /// What the training loop has to know of a run that starts from `base`, a model of this shape, and
    /// trains on `examples` examples.
    ///
    /// # Errors
    /// [`TrainerError::Config`] when the examples are too few for a step or too long for the model.
    pub fn plan(&self, model: LlamaConfig, base: &Path, examples: u64) -> Result<TrainConfig> {
        let steps = self.total_steps(examples);
        let fail = |key: &str, message: String| TrainerError::Config { place: key.into(), message };
        if steps == 0 {
            let step = self.batch.examples;
            return Err(fail(
                "batch.examples",
                format!("{examples} examples do not make a step of {step}: lower it or give steps"),
            ));
        }
        if self.max_length > model.max_seq_len {
            let most = model.max_seq_len;
            return Err(fail(
                "max_length",
                format!(
                    "found {}, but the longest context of {} is {most} tokens",
                    self.max_length,
                    base.display()
                ),
            ));
        }
        Ok(TrainConfig {
            name: self.name.clone(),
            output: self.output.clone(),
            seed: self.seed,
            init_from: Some(base.to_path_buf()),
            device: self.device.clone(),
            precision: self.precision,
            activation_checkpointing: self.activation_checkpointing,
            document_mask: self.packing,
            threads: self.threads,
            readers: 1,
            model,
            tokenizer: None,
            data: MixtureConfig::random(),
            batch: BatchConfig {
                micro_batch: self.batch.micro_batch,
                grad_accum_steps: 1,
                seq_len: self.max_length,
            },
            parallel: ParallelConfig::default(),
            steps: Some(steps),
            tokens: None,
            optimizer: self.optimizer_of(examples),
            validate: ValidateConfig { every: self.validate.every, max_sequences: usize::MAX },
            checkpoint: self.checkpoint.clone(),
            eval: EvalConfig::default(),
            sample: SampleConfig::default(),
            metrics: self.metrics.clone(),
            skip_outliers: self.skip_outliers,
            log_every: self.log_every,
        })
    }

    /// Holds the configuration of a resumed run on `examples` examples to `saved`, the
    /// [`resolved`](Self::resolved) one its checkpoint was written with, and gives the recorded keys that
    /// changed.
    ///
    /// A run whose length changes keeps the plan of its learning rate, as in
    /// [`TrainConfig::resumed_from`]: a `decay_steps` that followed the length becomes the number it stood
    /// for. `decay_steps=null` among the `overrides` makes it the new length.
    ///
    /// # Errors
    /// [`TrainerError::Config`] names every fixed key that changed, and says which may.
    pub fn resumed_from(
        &mut self,
        saved: &Self,
        examples: u64,
        run_dir: &Path,
        overrides: &[String],
    ) -> Result<Vec<Change>> {
        let (length, before) = (self.total_steps(examples), saved.total_steps(examples));
        let optimizer = &mut self.optimizer;
        if length != before
            && optimizer.schedule == saved.optimizer.schedule
            && optimizer.decay_steps.is_none()
            && saved.optimizer.decay_steps.is_none()
        {
            let asked = overrides.iter().any(|o| sets(o, "optimizer.decay_steps"));
            optimizer.decay_steps = Some(if asked { length } else { before });
        }
        recorded_changes(ON_RESUME_SFT, saved, &self.resolved(run_dir)?, run_dir, overrides)
    }

    /// Reads the configuration of a run from the `config.yaml` in its directory and puts `overrides` in
    /// their places. The run goes on where it lies now.
    ///
    /// # Errors
    /// As [`load()`]; [`TrainerError::NoRun`] when there is no `config.yaml`.
    pub fn load_run(run_dir: &Path, overrides: &[String]) -> Result<Self> {
        let file = run_dir.join("config.yaml");
        if !file.exists() {
            return Err(TrainerError::NoRun { path: run_dir.to_path_buf() });
        }
        refuse_other_kind(run_dir, &file, "model", "a pretraining", "altiplano train --resume")?;
        let config: Self = load(&file, overrides)?;
        let dir = run_dir.canonicalize().map_err(TrainerError::io(run_dir))?;
        let mut config = match config.run_dir().canonicalize().ok().as_ref() == Some(&dir) {
            true => config,
            false => config.placed_at(&dir),
        };
        // A run that was moved and left a link in its place still finds what lies around the link.
        let files = config.data.iter_mut().map(|file| &mut file.path);
        for path in files.chain([&mut config.base]).filter(|path| !path.exists()) {
            let around = beside_links(path);
            if around.exists() {
                *path = around;
            }
        }
        if !is_built_in(&config.template) && !Path::new(&config.template).exists() {
            let around = beside_links(Path::new(&config.template));
            if let (true, Some(around)) = (around.exists(), around.to_str()) {
                config.template = around.to_owned();
            }
        }
        Ok(config)
    }

    /// The configuration as that of the run in `dir`.
    pub(crate) fn placed_at(mut self, dir: &Path) -> Self {
        if let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) {
            self.output = parent.to_path_buf();
            self.name = name.to_string_lossy().into_owned();
        }
        self
    }

    /// The configuration with its paths as seen from `run_dir`.
    ///
    /// # Errors
    /// When the current directory is gone.
    pub fn resolved(&self, run_dir: &Path) -> Result<Self> {
        let seen = |path: &Path| relative_to(path, run_dir).map_err(TrainerError::io(path));
        let mut resolved = self.clone();
        resolved.output = seen(&self.output)?;
        resolved.base = seen(&self.base)?;
        if !is_built_in(&self.template) {
            let path = seen(Path::new(&self.template))?;
            resolved.template = path.to_string_lossy().into_owned();
        }
        for file in &mut resolved.data {
            file.path = seen(&file.path)?;
        }
        Ok(resolved)
    }

    /// The [`resolved`](Self::resolved) configuration with every default written out, as it is kept in
    /// `run_dir/config.yaml`.
    ///
    /// # Errors
    /// As [`resolved`](Self::resolved), and when a path is not UTF-8.
    pub fn resolved_yaml(&self, run_dir: &Path) -> Result<String> {
        let yaml = to_yaml(&self.resolved(run_dir)?).map_err(|error| TrainerError::RunFile {
            path: run_dir.join("config.yaml"),
            reason: error.to_string(),
        })?;
        Ok(format!(
            "# Resolved configuration of this fine-tuning run. Paths are relative to this file.\n{yaml}"
        ))
    }
}

fn is_built_in(template: &str) -> bool {
    BUILT_IN_TEMPLATES.iter().any(|(name, _)| *name == template)
}

impl ConfigFile for SftConfig {
    const PATHS: &'static [&'static str] = &["output", "base", "template", "data.*.path"];
    // The names of templates, and that of one that is known to be another.
    const NAMES: &'static [&'static str] = &["alpaca", "vicuna_v1.1", "vicuna", "vicuna_v0"];
    const EXCLUSIVE: &'static [(&'static str, &'static str)] = &[("epochs", "steps")];

    fn check(&self) -> std::result::Result<(), Problem> {
        check_name(&self.name)?;
        check_adamw(&self.optimizer.of_steps(0))?;
        self.check_length()?;
        self.check_sizes()?;
        check_skip_outliers(self.skip_outliers)?;
        if let Some(lora) = &self.lora {
            lora.check()?;
            if self.add_pad_token {
                let message = "found true beside `lora`, which trains no embedding: expected false";
                return Err(Problem::new("add_pad_token", message));
            }
        }
        if self.data.is_empty() {
            return Err(Problem::new("data", "empty: expected at least one file of examples"));
        }
        let held_out = self.validate.examples;
        if !(held_out.is_finite() && (0.0..1e12).contains(&held_out))
            || (held_out >= 1.0 && held_out.fract() != 0.0)
        {
            let message = format!("found {held_out}, expected a share below 1 or a whole number");
            return Err(Problem::new("validate.examples", message));
        }
        if self.checkpoint.keep_best && (self.validate.every == 0 || held_out == 0.0) {
            return Err(Problem::new(
                "checkpoint.keep_best",
                "found true, but nothing is validated: expected validate.every and \
                 validate.examples above 0",
            ));
        }
        let best_by = &self.checkpoint.best_by;
        if best_by != VAL_LOSS {
            let message =
                format!("found {best_by:?}, expected {VAL_LOSS}: no tasks are scored here");
            return Err(Problem::new("checkpoint.best_by", message));
        }
        Ok(())
    }
}

impl SftConfig {
    fn check_length(&self) -> Check {
        match (self.epochs, self.steps) {
            (Some(_), Some(_)) => {
                Err(Problem::new("steps", "given together with epochs: keep one of the two"))
            }
            (Some(epochs), None) if !(epochs.is_finite() && epochs > 0.0 && epochs < 1e6) => {
                Err(Problem::new("epochs", format!("found {epochs}, expected a positive number")))
            }
            (None, Some(steps)) if steps == 0 || steps > MOST_STEPS => {
                Err(Problem::new("steps", format!("found {steps}, expected 1 to 2^40")))
            }
            _ => Ok(()),
        }
    }

    fn check_sizes(&self) -> Check {
        for (key, value, most) in [
            ("max_length", self.max_length, LARGEST_SIZE),
            ("batch.examples", self.batch.examples, LARGEST_SIZE),
            ("batch.micro_batch", self.batch.micro_batch, LARGEST_SIZE),
            ("threads", self.threads.unwrap_or(1), MOST_THREADS),
            ("checkpoint.keep_last", self.checkpoint.keep_last, LARGEST_SIZE),
        ] {
            if value == 0 || value > most {
                return Err(Problem::new(key, format!("found {value}, expected 1 to {most}")));
            }
        }
        if self.batch.micro_batch as u128 * self.max_length as u128 > 1 << 30 {
            let message = "micro_batch · max_length is more than 2^30 tokens: lower it";
            return Err(Problem::new("batch.micro_batch", message));
        }
        let planned = self.optimizer.decay_steps.unwrap_or(1);
        if planned == 0 || planned > MOST_STEPS {
            let message = format!("found {planned}, expected 1 to 2^40");
            return Err(Problem::new("optimizer.decay_steps", message));
        }
        let ratio = self.optimizer.warmup_ratio;
        if !(0.0..=1.0).contains(&ratio) {
            let message = format!("found {ratio}, expected 0 to 1");
            return Err(Problem::new("optimizer.warmup_ratio", message));
        }
        if self.log_every == 0 {
            return Err(Problem::new("log_every", "found 0, expected at least 1"));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config() -> SftConfig {
        serde_json::from_value(serde_json::json!({
            "name": "run", "base": "/b", "template": "alpaca", "data": [{"path": "/a.json"}],
            "max_length": 512, "batch": {"examples": 128, "micro_batch": 4},
        }))
        .unwrap()
    }

    #[test]
    fn every_key_has_a_rule_for_resuming() {
        let mut config = config();
        (config.threads, config.epochs, config.steps) = (Some(1), Some(1.0), Some(1));
        config.skip_outliers = Some(4.0);
        config.lora = Some(LoraConfig::default());
        let value = serde_json::to_value(&config).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        for &key in &keys {
            assert!(ON_RESUME_SFT.iter().any(|(name, _)| name == key), "{key} has no rule");
        }
        for (name, _) in ON_RESUME_SFT {
            let top = name.split('.').next().unwrap();
            assert!(keys.iter().any(|key| *key == top), "{name} is no key");
        }
    }

    /// 52 002 published examples, 128 a step: 1218 steps, 37 of them warm-up.
    #[test]
    fn the_published_alpaca_has_its_steps() {
        let config = config();
        assert_eq!(config.total_steps(52_002), 1218);
        assert_eq!(config.optimizer.of_steps(1218).warmup_steps, 37);
        let fixed = SftConfig { steps: Some(7), ..config };
        assert_eq!(fixed.total_steps(52_002), 7);
    }

    /// A longer run keeps warm-up and decay where they were planned, by `epochs` and by `steps`, unless the
    /// plan is asked to follow.
    #[test]
    fn a_longer_run_keeps_its_plan() {
        let saved = config().resolved(Path::new("/runs/run")).unwrap();
        let resumed = |change: &dyn Fn(&mut SftConfig), overrides: &[&str]| {
            let mut now = config();
            change(&mut now);
            let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_owned()).collect();
            let changes = now.resumed_from(&saved, 52_002, Path::new("/runs/run"), &overrides);
            let steps = now.total_steps(52_002);
            let keys: Vec<String> = changes.unwrap().into_iter().map(|change| change.key).collect();
            (now.optimizer.of_steps(steps), steps, keys.join(" "))
        };
        let (optimizer, steps, keys) = resumed(&|c| c.epochs = Some(5.0), &["epochs=5"]);
        assert_eq!((steps, optimizer.decay_steps, optimizer.warmup_steps), (2031, Some(1218), 37));
        assert_eq!(keys, "epochs optimizer.decay_steps");
        let (optimizer, steps, keys) = resumed(&|c| c.steps = Some(1300), &["steps=1300"]);
        assert_eq!((steps, optimizer.decay_steps, optimizer.warmup_steps), (1300, Some(1218), 37));
        assert_eq!(keys, "optimizer.decay_steps steps");
        let overrides = ["steps=2000", "optimizer.decay_steps=null"];
        let (optimizer, ..) = resumed(&|c| c.steps = Some(2000), &overrides);
        assert_eq!((optimizer.decay_steps, optimizer.warmup_steps), (Some(2000), 60));
        let (optimizer, _, keys) = resumed(&|_| {}, &[]);
        assert_eq!((optimizer.decay_steps, keys.as_str()), (None, ""));
        // The other way to say the same length changes nothing in the plan.
        let (optimizer, _, keys) = resumed(&|c| c.steps = Some(1218), &["steps=1218"]);
        assert_eq!((optimizer.decay_steps, keys.as_str()), (None, "steps"));
        let constant = SftOptimizerConfig {
            schedule: LrSchedule::Constant,
            decay_steps: Some(100),
            ..Default::default()
        };
        let plan = constant.of_steps(1000);
        assert_eq!((plan.decay_steps, plan.warmup_steps), (None, 3));
    }
}
