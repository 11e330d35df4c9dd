//! Tasks scored during a training run, with the weights of a step.
//!
//! On the CPU they are scored by a copy of the matrices in the number format of the run, whose rows do not depend
//! on each other: a score depends on the weights alone, however many ranks share the examples, and is that of
//! `altiplano eval tasks` on the checkpoint of the step in the same precision. Elsewhere the tensors of the
//! run are shared.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use altiplano_data::eval_tasks::find_task;
use altiplano_data::progress::ProgressMode;
use altiplano_data::{DataError, Tokenizer};
use altiplano_model::activation_checkpoint::saved_bytes_per_layer;
use altiplano_model::config::LlamaConfig;
use altiplano_model::device;
use altiplano_model::infer::InferenceModel;
use altiplano_model::params::Weights;
use serde::Serialize;

use super::generations::Sampling;
use super::results::TaskResult;
use super::run::{EvalOptions, OpenTask};
use super::sample::Sample;
use super::scoring::EvalModel;
use crate::config::{TrainConfig, VAL_LOSS};
use crate::error::{Result, TrainerError};
use crate::metrics::EvalMetrics;
use crate::world::Ranks;

/// The tasks of a run, read and ready to be scored.
#[derive(Debug)]
pub struct Evaluation {
    tasks: Vec<OpenTask>,
    options: EvalOptions,
    cache_bytes: u64,
}

/// What an evaluation holds beside what a run always holds, on each rank that computes, in bytes: no more
/// activations than a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EvalMemory {
    /// The copy of the matrices, on the CPU.
    pub matrices: u64,
    /// Most keys and values: as much as a step's saved activations, or a text of the longest context.
    pub cache: u64,
}

impl EvalMemory {
    /// Of a run of `config`.
    pub fn new(config: &TrainConfig) -> Self {
        let (model, batch) = (&config.model, &config.batch);
        let (policy, precision) = (config.activation_checkpointing, config.precision);
        let saved =
            saved_bytes_per_layer(model, policy, precision, batch.micro_batch, batch.seq_len);
        let kv = 2 * model.kv_heads() * model.head_dim() * precision.bytes();
        let layers = model.n_layers as u64;
        let text = (kv as u64).saturating_mul(model.max_seq_len as u64);
        let bytes = if config.device == "cpu" { precision.bytes() as u64 } else { 0 };
        Self {
            matrices: bytes * model.matrix_parameter_count() as u64,
            cache: layers.saturating_mul((saved as u64).max(text)),
        }
    }
}

impl Evaluation {
    /// Reads the files of all tasks of a run, on every rank; none where nothing is scored.
    ///
    /// # Errors
    /// When a file is missing or damaged, ranks read different ones, or the best checkpoint is chosen by a score
    /// that no task has.
    pub fn open(config: &TrainConfig, ranks: &Ranks) -> Result<Option<Self>> {
        if !config.eval.is_on() {
            return Ok(None);
        }
        let evaluation = ranks.agree("the files of eval.tasks", Self::read(config))?;
        if !ranks.is_alone() {
            let hashes = evaluation.tasks.iter().map(OpenTask::hash_of_files);
            let hashes =
                ranks.agree("the files of eval.tasks", hashes.collect::<Result<Vec<_>>>())?;
            ranks.agree_on("the content of the files below eval.data", &hashes.join(" "))?;
        }
        Ok(Some(evaluation))
    }

    fn read(config: &TrainConfig) -> Result<Self> {
        let eval = &config.eval;
        let sampling = Sampling {
            samples: 1,
            temperature: 0.0,
            top_p: 1.0,
            seed: config.seed,
            execution: None,
        };
        let options = EvalOptions {
            data: eval.data.clone().unwrap_or_default(),
            rules: eval.rules,
            shots: eval.shots,
            limit: eval.limit,
            sampling,
            output: None,
            progress: ProgressMode::Hidden,
        };
        let mut tasks = Vec::new();
        for task in eval.tasks.iter().filter_map(|name| find_task(name)) {
            let open = OpenTask::open(task, &options).map_err(with_key_of_yaml)?;
            // Whether there are as many shots as asked for shows now, not after the first thousand steps.
            open.left(&options, &HashSet::new()).map_err(with_key_of_yaml)?;
            tasks.push(open);
        }
        let best_by = &config.checkpoint.best_by;
        let names: Vec<String> =
            tasks.iter().flat_map(|task| task.score_names(eval.rules)).collect();
        if best_by != VAL_LOSS && !names.contains(best_by) {
            return Err(TrainerError::Config {
                place: "checkpoint.best_by".into(),
                message: format!(
                    "found {best_by:?}, expected {VAL_LOSS} or one of the scores {}",
                    names.join(", ")
                ),
            });
        }
        Ok(Self { tasks, options, cache_bytes: EvalMemory::new(config).cache })
    }

    /// One line about what is scored.
    pub fn describe(&self) -> String {
        let tasks = self
            .tasks
            .iter()
            .map(|task| format!("{} ({} examples)", task.task().name, task.count(&self.options)));
        format!("evaluates {}", tasks.collect::<Vec<_>>().join(", "))
    }

    /// Scores all tasks, with `weights` on the ranks that have them whole. All ranks call it together and get the
    /// same; `None` when `ended` said on all of them that the run is to end. `warn` is told what could not be
    /// scored.
    ///
    /// # Errors
    /// When the model fails on a rank, or an exchange does.
    pub fn run(
        &self,
        config: &LlamaConfig,
        weights: Option<Weights>,
        tokenizer: &Tokenizer,
        ranks: &Ranks,
        mut ended: impl FnMut() -> Result<bool>,
        mut warn: impl FnMut(String),
    ) -> Result<Option<EvalMetrics>> {
        let started = Instant::now();
        let model = weights.map(|weights| match device::is_cpu(&weights.norm.device()) {
            true => InferenceModel::in_memory(config.clone(), &weights, None),
            false => InferenceModel::from_weights(config.clone(), &weights),
        });
        let model = ranks.agree("the evaluation", model.transpose().map_err(Into::into))?;
        let end_tokens: Vec<u32> = tokenizer.eos_id().into_iter().collect();
        let model = model.as_ref().map(|model| EvalModel {
            model,
            tokenizer,
            end_tokens: &end_tokens,
            cache_bytes: Some(self.cache_bytes),
        });
        let mut eval = BTreeMap::new();
        for task in &self.tasks {
            let Some(result) = self.score(task, model, ranks, &mut ended)? else {
                return Ok(None);
            };
            for (reason, count) in &result.not_scored {
                warn(format!("{}: {count} not scored: {reason}", result.task));
            }
            for (score, value) in result.scores() {
                match value.is_finite() {
                    true => drop(eval.insert(score, value)),
                    false => warn(format!("{score} is {value} and is left out")),
                }
            }
        }
        Ok(Some(EvalMetrics { eval, eval_seconds: started.elapsed().as_secs_f64() }))
    }

    /// The figures of one task, whose examples the ranks share that have the model.
    fn score(
        &self,
        task: &OpenTask,
        model: Option<EvalModel<'_>>,
        ranks: &Ranks,
        ended: &mut impl FnMut() -> Result<bool>,
    ) -> Result<Option<TaskResult>> {
        // Where ranks split the weights the first has them whole, and the others wait for it.
        let have = ranks.gather("the evaluation", &[u64::from(model.is_some())])?;
        let before = have.iter().take(ranks.rank());
        let (index, of) = (before.sum::<u64>() as usize, have.iter().sum::<u64>().max(1) as usize);
        let left = task.left(&self.options, &HashSet::new())?;
        let mut samples: Vec<Sample> = Vec::with_capacity(left.len());
        for examples in left.chunks(task.at_a_time(&self.options) * of) {
            if ended()? {
                return Ok(None);
            }
            let own: Vec<_> = examples.iter().skip(index).step_by(of).cloned().collect();
            let scored = match model {
                Some(model) => task.score(model, &self.options, &own),
                None => Ok(Vec::new()),
            };
            let scored = ranks.agree("the evaluation", scored)?;
            if ranks.is_alone() {
                samples.extend(scored);
                continue;
            }
            for told in ranks.gather_texts("the evaluation", &to_text(&scored)?)? {
                samples.extend(of_text(&told)?);
            }
        }
        Ok(Some(task.summarize(samples)))
    }
}

fn to_text(samples: &[Sample]) -> Result<String> {
    serde_json::to_string(samples).map_err(|error| TrainerError::Output(error.into()))
}

fn of_text(text: &str) -> Result<Vec<Sample>> {
    serde_json::from_str(text).map_err(|error| TrainerError::Output(error.into()))
}

/// An error about an option of the command line, about the key that stands for it in a configuration.
fn with_key_of_yaml(error: TrainerError) -> TrainerError {
    match error {
        TrainerError::Data(DataError::Config { key, found, expected }) => {
            let key = key.strip_prefix("--").map_or(key.clone(), |option| format!("eval.{option}"));
            DataError::Config { key, found, expected }.into()
        }
        other => other,
    }
}
