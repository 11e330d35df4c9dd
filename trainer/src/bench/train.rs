//! Whole optimizer steps: data, forward, backward, clipping, AdamW.

use std::time::Instant;

use altiplano_model::config::{ActivationCheckpointing, Precision};
use altiplano_model::device;
use burn::tensor::Device;
use serde::Serialize;

use super::median;
use crate::config::TrainConfig;
use crate::error::Result;
use crate::metrics::peak_memory_bytes;
use crate::peak::{
    Peak, large_product_flops_per_second, published_flops_per_second,
    short_product_flops_per_second,
};
use crate::schedule::Schedule;
use crate::train_loop::{next_batches, open_loader};
use crate::train_step::Trainer;

/// How long it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainBenchOptions {
    /// Steps that are timed.
    pub steps: u64,
    /// Steps before them, which allocate what later steps use again.
    pub warmup: u64,
}

/// Speed and memory of training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainBench {
    /// Tokens of a step over its time.
    pub tokens_per_second: f64,
    /// Median time of a step.
    pub step_seconds: f64,
    /// Operations the model needs
    /// ([`train_flops_per_token`](altiplano_model::LlamaConfig::train_flops_per_token)), whatever
    /// the checkpointing policy computes twice.
    pub model_flops_per_second: f64,
    /// Best rate of several matrix products in the same process and precision, some before the
    /// steps, some after.
    pub matmul_flops_per_second: f64,
    /// Peak of the device: published for a GPU that is known by its name; else the rate above, or
    /// that of the model if it is higher.
    pub peak_flops_per_second: f64,
    /// Model FLOP/s as a share of the peak, at most 1.
    pub mfu: f64,
    /// Most memory the process held during the steps.
    pub peak_memory_bytes: u64,
    /// Number format of matrix products.
    pub precision: Precision,
    /// What a layer saves for its backward pass.
    pub policy: ActivationCheckpointing,
    /// Threads that compute.
    pub threads: usize,
    /// Parameters of the model.
    pub parameters: usize,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// Steps timed.
    pub steps: u64,
    /// Loss of the last step, in nats: tells that the work was real.
    pub loss: f64,
}

/// Trains `config` for a few steps from its starting weights; writes nothing.
///
/// # Errors
/// As the first steps of a run fail.
pub fn bench_train(config: &TrainConfig, options: TrainBenchOptions) -> Result<TrainBench> {
    let device = device::select(&config.device)?;
    device::in_pool(&device, || measure(config, options, &device))
}

fn measure(
    config: &TrainConfig,
    options: TrainBenchOptions,
    device: &Device,
) -> Result<TrainBench> {
    // Products before and after: on a shared machine one moment may be slow. Those before are small,
    // so that the peak memory is that of the steps.
    let product_before = short_product_flops_per_second(config.precision, device);
    let mut loader = open_loader(config)?.0;
    let mut trainer = Trainer::start(config, device)?;
    let schedule = Schedule::new(&config.optimizer, config.total_steps());

    let (mut seconds, mut loss) = (Vec::new(), f64::NAN);
    for step in 1..=options.warmup + options.steps {
        let started = Instant::now();
        let batches = next_batches(config, &mut loader)?;
        loss = trainer.step(step, &batches, schedule.lr(step))?.loss;
        if step > options.warmup {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    // Before the large matrix product below adds its own.
    let peak_memory_bytes = peak_memory_bytes();
    drop((trainer, loader));

    let step_seconds = median(&seconds);
    let tokens_per_second = config.tokens_per_step() as f64 / step_seconds;
    let model_flops_per_second =
        config.model.train_flops_per_token(config.batch.seq_len) * tokens_per_second;
    let product_after = large_product_flops_per_second(config.precision, device);
    let matmul_flops_per_second = product_before.max(product_after);
    Peak::keep(&config.device, device, config.precision, matmul_flops_per_second);
    let published = device::gpu_name(&config.device)
        .and_then(|gpu| published_flops_per_second(&gpu, config.precision));
    let peak = Peak::new(published.unwrap_or(matmul_flops_per_second));
    Ok(TrainBench {
        tokens_per_second,
        step_seconds,
        model_flops_per_second,
        matmul_flops_per_second,
        peak_flops_per_second: peak.flops_per_second().max(model_flops_per_second),
        mfu: peak.mfu(model_flops_per_second),
        peak_memory_bytes,
        precision: config.precision,
        policy: config.activation_checkpointing,
        threads: rayon::current_num_threads(),
        parameters: config.model.parameter_count(),
        tokens_per_step: config.tokens_per_step(),
        steps: options.steps,
        loss,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::load;

    #[test]
    fn figures_of_a_tiny_run_fit_together() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/train/debug.yaml");
        let output = tempfile::tempdir().unwrap();
        let overrides = [format!("output={}", output.path().display())];
        let config: TrainConfig = load(&file, &overrides).unwrap();
        let bench = bench_train(&config, TrainBenchOptions { steps: 5, warmup: 1 }).unwrap();
        assert_eq!(bench.parameters, config.model.parameter_count());
        assert_eq!((bench.tokens_per_step, bench.steps), (2 * 2 * 32, 5));
        let tokens = bench.tokens_per_second * bench.step_seconds;
        assert!((tokens / 128.0 - 1.0).abs() < 1e-9, "{tokens}");
        let flops = bench.model_flops_per_second / bench.tokens_per_second;
        assert!((flops / config.model.train_flops_per_token(32) - 1.0).abs() < 1e-9);
        assert_eq!(bench.mfu, bench.model_flops_per_second / bench.peak_flops_per_second);
        assert!(bench.mfu > 0.0 && bench.mfu <= 1.0, "{}", bench.mfu);
        assert!(bench.peak_flops_per_second >= bench.matmul_flops_per_second);
        // ln 256 = 5.5 nats is what knowing nothing costs.
        assert!(bench.loss > 4.0 && bench.loss < 7.0, "{}", bench.loss);
        assert!(bench.peak_memory_bytes > 1 << 20);
        assert_eq!(std::fs::read_dir(output.path()).unwrap().count(), 0, "nothing is written");
    }
}
