//! What a configuration costs before it runs: parameters, memory by part, operations, days.
//!
//! On equal devices that share all state, by the share of the peak that a published run reached
//! ([`estimate`]); on ranks in a [`Layout`], by the rates of the hardware ([`StepTime`]).

mod layout;
mod measure;
mod memory;
mod search;
mod simulate;
mod throughput;
mod time;

use altiplano_model::config::{ActivationCheckpointing, Precision};
use serde::Serialize;

use crate::config::TrainConfig;
use crate::eval_tasks::EvalMemory;

pub use layout::{Layout, RankMemory, sequences_per_step};
pub use measure::measured_profile;
pub use memory::{MemoryByPolicy, MemoryParts};
pub use search::{Candidate, ScaleRow, layouts, scale};
pub use simulate::{Simulation, Spread, simulate};
pub use throughput::{FlopsPerToken, LLAMA_65B, PaperFigures, days, six_n_mfu, tokens_per_second};
pub use time::{Profile, StepTime};

/// The devices a run is to be spread over. The default is one A100 of 80 GB at the share of its
/// peak that the paper's 65B model reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hardware {
    /// Devices.
    pub devices: u64,
    /// Memory of one, in bytes.
    pub device_memory_bytes: u64,
    /// Peak rate of matrix products of one, in operations per second.
    pub peak_flops_per_second: f64,
    /// 6N · tokens/s as a share of that peak.
    pub mfu: f64,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            devices: 1,
            device_memory_bytes: 80_000_000_000,
            peak_flops_per_second: LLAMA_65B.peak_flops_per_second,
            mfu: LLAMA_65B.mfu,
        }
    }
}

/// What a configuration costs on some hardware.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Name of the run.
    pub name: String,
    /// Parameters of the model, N.
    pub parameters: u64,
    /// Number format of matrix products.
    pub precision: Precision,
    /// The configured policy, which `memory_bytes` is for.
    pub policy: ActivationCheckpointing,
    /// The devices.
    #[serde(flatten)]
    pub hardware: Hardware,
    /// Most memory of one device, by part.
    pub memory_bytes: MemoryParts,
    /// The same for every policy.
    pub memory_bytes_by_policy: MemoryByPolicy,
    /// What scoring tasks during the run holds, where any are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvalEstimate>,
    /// Whether `memory_bytes.total`, and that of an evaluation, is at most the memory of a device.
    pub fits: bool,
    /// Operations of the forward and backward pass.
    pub flops_per_token: FlopsPerToken,
    /// mfu · peak / 6N.
    pub tokens_per_second_per_device: f64,
    /// The same for all devices.
    pub tokens_per_second: f64,
    /// Tokens of the whole run.
    pub tokens: u64,
    /// Days for them on all devices.
    pub days: f64,
    /// The published figures, where the run is the paper's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paper: Option<PaperFigures>,
}

/// Tasks that are scored during a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalEstimate {
    /// Their names.
    pub tasks: Vec<String>,
    /// How often they are scored.
    pub times: u64,
    /// What is held then in place of a step's saved activations.
    pub memory_bytes: EvalMemory,
    /// Most memory of one device then.
    pub total_bytes: u64,
}

impl EvalEstimate {
    fn new(config: &TrainConfig, step: &MemoryParts) -> Option<Self> {
        let memory_bytes = EvalMemory::new(config);
        let held = memory_bytes.matrices.saturating_add(memory_bytes.cache);
        config.eval.is_on().then(|| Self {
            tasks: config.eval.tasks.clone(),
            times: config.eval.count(config.total_steps()),
            memory_bytes,
            total_bytes: (step.total - step.activations).saturating_add(held),
        })
    }
}

/// Estimates a run of `config` whose computation takes `threads` threads a device.
pub fn estimate(config: &TrainConfig, hardware: Hardware, threads: usize) -> Estimate {
    let parameters = config.model.parameter_count() as u64;
    let policies = MemoryByPolicy::new(config, hardware.devices, threads);
    let memory_bytes = *policies.of(config.activation_checkpointing);
    let evaluation = EvalEstimate::new(config, &memory_bytes);
    let of_evaluation = evaluation.as_ref().map_or(0, |evaluation| evaluation.total_bytes);
    let per_device =
        tokens_per_second(parameters as f64, hardware.mfu, hardware.peak_flops_per_second);
    let all = per_device * hardware.devices as f64;
    let tokens = config.total_steps().saturating_mul(config.tokens_per_step());
    Estimate {
        name: config.name.clone(),
        parameters,
        precision: config.precision,
        policy: config.activation_checkpointing,
        hardware,
        memory_bytes,
        memory_bytes_by_policy: policies,
        fits: memory_bytes.total.max(of_evaluation) <= hardware.device_memory_bytes,
        evaluation,
        flops_per_token: FlopsPerToken::new(&config.model, config.batch.seq_len),
        tokens_per_second_per_device: per_device,
        tokens_per_second: all,
        tokens,
        days: days(tokens as f64, all),
        paper: LLAMA_65B.is_of(parameters, &hardware).then_some(LLAMA_65B),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::load;

    fn config(name: &str) -> TrainConfig {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/train");
        load(&dir.join(name), &[]).unwrap()
    }

    #[test]
    fn the_65b_run_takes_as_long_as_published() {
        let config = config("llama_65b.yaml");
        let hardware = Hardware { devices: 2048, ..Hardware::default() };
        let found = estimate(&config, hardware, 1);
        let paper = found.paper.unwrap();
        let close = |found: f64, published: f64| (found / published - 1.0).abs() < 0.01;
        assert!(close(found.tokens_per_second_per_device, paper.tokens_per_second_per_device));
        assert!(close(found.days, paper.days), "{}", found.days);
        assert!(close(found.tokens as f64, 1.4e12));
        assert!(found.fits, "{:?}", found.memory_bytes);
        assert!(estimate(&config, Hardware::default(), 1).paper.is_none());
        assert!(!estimate(&config, Hardware::default(), 1).fits);
    }

    #[test]
    fn the_object_has_the_keys_that_are_promised() {
        let found = estimate(&config("bench.yaml"), Hardware::default(), 2);
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["parameters"], 58_073_600);
        assert_eq!(json["memory_bytes"]["moments"], 8 * 58_073_600u64);
        assert_eq!(json["memory_bytes_by_policy"]["none"], json["memory_bytes"]);
        assert!(json["tokens_per_second_per_device"].as_f64().unwrap() > 0.0);
        assert!(json["days"].as_f64().unwrap() > 0.0);
        assert_eq!(json["devices"], 1);
        assert!(json.get("paper").is_none());
    }
}
