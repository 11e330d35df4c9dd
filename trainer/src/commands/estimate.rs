//! `altiplano estimate`.

mod layouts;

use std::path::PathBuf;

use clap::Args;

use super::output::{print_json, print_line};
use super::sizes;
use super::threads::use_threads;
use crate::config::{TrainConfig, load};
use crate::error::Result;
use crate::estimate::{Estimate, EvalEstimate, Hardware, PaperFigures, estimate, six_n_mfu};

/// Show what a run costs before it starts: parameters, memory by part, FLOPs, days.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct EstimateArgs {
    /// Configuration of the run.
    config: PathBuf,
    /// Values that replace those of the configuration, such as batch.micro_batch=4.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Devices that share the work, each with micro-batches of its own and its part of weights,
    /// gradients and moments.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    devices: u64,
    /// Memory of a device: a number with GB, GiB, MB or MiB.
    #[arg(long, value_name = "SIZE", default_value = "80GB", value_parser = sizes::bytes)]
    device_memory: u64,
    /// Peak of a device in TFLOP/s; 312 is an A100 in bf16.
    #[arg(long, value_name = "X", default_value_t = 312.0, value_parser = positive)]
    peak_tflops: f64,
    /// Share of that peak spent on 6N FLOPs per token, from 0 to 1; 0.476 is what LLaMA 65B reached.
    #[arg(long, value_name = "X", default_value_t = 0.476, value_parser = share)]
    mfu: f64,
    #[command(flatten)]
    layout: layouts::LayoutArgs,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Examples:
  altiplano estimate configs/train/quickstart.yaml batch.micro_batch=16
  altiplano estimate configs/train/llama_65b.yaml --devices 2048 --device-memory 80GB
  altiplano estimate configs/train/llama_65b.yaml --ranks 2048 --layouts
  altiplano estimate configs/train/llama_65b.yaml batch.micro_batch=4 batch.grad_accum_steps=512 \\
      --ranks 256 --tensor 8 --scale 8..16384 --simulate

With --ranks the time comes out of the rates of the hardware and what the ranks exchange, and a
step has micro_batch x grad_accum_steps sequences over all ranks. Without it:
The time is 6N · tokens / (mfu · peak · devices) for N parameters; attention adds operations
(6 · layers · dim · seq_len per token) that this share of the peak does not count.";

/// Runs the command.
pub fn run(args: EstimateArgs) -> Result<()> {
    let config: TrainConfig = load(&args.config, &args.overrides)?;
    use_threads(config.threads)?;
    if let Some(ranks) = args.layout.ranks {
        return layouts::run(&config, ranks, &args.layout, args.json);
    }
    let hardware = Hardware {
        devices: args.devices,
        device_memory_bytes: args.device_memory,
        peak_flops_per_second: args.peak_tflops * 1e12,
        mfu: args.mfu,
    };
    let threads = config.threads.unwrap_or_else(rayon::current_num_threads);
    let found = estimate(&config, hardware, threads);
    let batch = &config.batch;
    print_line(&format!(
        "{}: {} parameters ({}), {}, micro-batch {} x {} tokens",
        found.name,
        found.parameters,
        metric(found.parameters as f64),
        found.precision,
        batch.micro_batch,
        batch.seq_len
    ))?;
    print_memory(&found)?;
    print_time(&found)?;
    if let Some(paper) = &found.paper {
        print_paper(&found, paper)?;
    }
    if args.json { print_json(&found) } else { Ok(()) }
}

fn print_memory(found: &Estimate) -> Result<()> {
    let policies = &found.memory_bytes_by_policy;
    let columns = [&policies.none, &policies.selective, &policies.full];
    let whose = if found.hardware.devices > 1 { " of one device" } else { "" };
    print_line(&format!("\nmemory{whose} by checkpointing policy, in MB"))?;
    let row = |name: &str, cells: [String; 3]| {
        print_line(&format!("  {name:<18}{:>14}{:>14}{:>14}", cells[0], cells[1], cells[2]))
    };
    row("", ["none", "selective", "full"].map(str::to_string))?;
    let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
    for (index, (name, _)) in columns[0].named().into_iter().enumerate() {
        row(name, columns.map(|parts| megabytes(parts.named()[index].1)))?;
    }
    row("total", columns.map(|parts| megabytes(parts.total)))?;
    print_line(&format!(
        "  {} as configured: {} of {}, {}",
        found.policy,
        metric_bytes(found.memory_bytes.total),
        metric_bytes(found.hardware.device_memory_bytes),
        if found.fits { "fits" } else { "does not fit" }
    ))?;
    let Some(evaluation) = &found.evaluation else { return Ok(()) };
    let EvalEstimate { tasks, times, memory_bytes, total_bytes } = evaluation;
    print_line(&format!(
        "  evaluation of {} {times} times: {} in place of a step's activations ({} of matrices, at most {} of \
         keys and values), {} in all",
        tasks.join(", "),
        metric_bytes(memory_bytes.matrices.saturating_add(memory_bytes.cache)),
        metric_bytes(memory_bytes.matrices),
        metric_bytes(memory_bytes.cache),
        metric_bytes(*total_bytes),
    ))
}

fn print_time(found: &Estimate) -> Result<()> {
    let (flops, hardware) = (&found.flops_per_token, &found.hardware);
    print_line(&format!(
        "\nFLOPs per token: {:.4e} = 6N {:.4e} + causal attention 6LCT {:.4e}",
        flops.total, flops.six_n, flops.attention
    ))?;
    print_line(&format!(
        "{} tokens: {:.3e} FLOPs",
        metric(found.tokens as f64),
        flops.total * found.tokens as f64
    ))?;
    print_line(&format!(
        "{} x {:.1} TFLOP/s at a 6N-MFU of {:.3} ({:.3} with attention): {:.1} tokens/s per \
         device, {:.0} in all, {:.3} days",
        hardware.devices,
        hardware.peak_flops_per_second / 1e12,
        hardware.mfu,
        hardware.mfu * flops.total / flops.six_n,
        found.tokens_per_second_per_device,
        found.tokens_per_second,
        found.days
    ))
}

fn print_paper(found: &Estimate, paper: &PaperFigures) -> Result<()> {
    print_line(&format!("\n{:<28}{:>12}{:>12}", paper.source, "paper", "here"))?;
    let row = |name: &str, paper: String, here: String| {
        print_line(&format!("  {name:<34}{paper:>12}{here:>12}"))
    };
    row("parameters", metric(paper.parameters), metric(found.parameters as f64))?;
    row(
        "tokens/s per device",
        format!("{:.0}", paper.tokens_per_second_per_device),
        format!("{:.0}", found.tokens_per_second_per_device),
    )?;
    row("tokens", metric(paper.tokens), metric(found.tokens as f64))?;
    row("days", format!("{:.1}", paper.days), format!("{:.1}", found.days))?;
    let here = six_n_mfu(
        found.parameters as f64,
        found.tokens_per_second_per_device,
        found.hardware.peak_flops_per_second,
    );
    row("6N-MFU", format!("{:.3}", paper.mfu), format!("{here:.3}"))
}

/// A count with a unit: 58.07M, 1.40T.
pub(super) fn metric(value: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(unit, _)| value >= *unit) {
        Some((unit, name)) => format!("{:.2}{name}", value / unit),
        None => format!("{value:.0}"),
    }
}

pub(super) fn metric_bytes(bytes: u64) -> String {
    if bytes >= 10_000_000_000 {
        format!("{:.1} GB", bytes as f64 / 1e9)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(format!("{text:?} is no number above 0")),
    }
}

fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err(format!("{text:?} is no share; expected a number above 0 and at most 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_rates() {
        assert_eq!(share("0.5"), Ok(0.5));
        assert!(share("0").is_err() && share("1.1").is_err() && share("NaN").is_err());
        assert_eq!(positive("312"), Ok(312.0));
        assert!(positive("-1").is_err() && positive("inf").is_err());
    }

    #[test]
    fn counts_are_short() {
        assert_eq!(metric(58_073_600.0), "58.07M");
        assert_eq!(metric(1.4e12), "1.40T");
        assert_eq!(metric(12.0), "12");
    }
}
