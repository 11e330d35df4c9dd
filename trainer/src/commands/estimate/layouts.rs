//! `altiplano estimate --ranks`: a layout, all layouts, growing numbers of ranks, a simulation.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Instant;

use altiplano_model::device;
use clap::Args;
use serde_json::{Map, Value, json};

use super::metric;
use crate::commands::output::{print_json, print_line};
use crate::config::{Shard, TrainConfig, load};
use crate::error::{Result, TrainerError};
use crate::estimate::{
    Candidate, Layout, Profile, ScaleRow, Simulation, Spread, days, layouts, measured_profile,
    scale, simulate,
};

/// Steps of a simulation.
const SIMULATED_STEPS: u32 = 10;

/// Layouts that are printed.
const PRINTED: usize = 20;

/// Options that ask for ranks instead of devices.
#[derive(Debug, Args)]
pub struct LayoutArgs {
    /// Ranks that train together: memory and time of one layout of them.
    #[arg(long, value_name = "N", conflicts_with_all = ["devices", "device_memory", "peak_tflops", "mfu"], value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub ranks: Option<u64>,
    /// Ranks that split every matrix; the others are copies of the model.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "ranks", value_parser = clap::value_parser!(u64).range(1..=1 << 12))]
    tensor: u64,
    /// What the copies split.
    #[arg(long, value_enum, default_value_t = Shard::Optimizer, requires = "ranks")]
    shard: Shard,
    /// Keep norms and the residual stream whole on every tensor rank.
    #[arg(long, requires = "ranks")]
    no_sequence: bool,
    /// Exchange between computing instead of meanwhile.
    #[arg(long, requires = "ranks")]
    no_overlap: bool,
    /// Rates of the hardware: a100-80gb, h100-80gb, h200-141gb, this-machine (measured), or a YAML file.
    #[arg(long, value_name = "NAME", default_value = "a100-80gb", requires = "ranks")]
    hardware: String,
    /// List all layouts that can be trained and fit, fastest first.
    #[arg(long, requires = "ranks")]
    layouts: bool,
    /// The layout on every doubling of ranks, such as 8..16384.
    #[arg(long, value_name = "FROM..TO", requires = "ranks", value_parser = doublings)]
    scale: Option<RangeInclusive<u64>>,
    /// Ranks at paces of their own: ten steps in the order in which they compute and exchange.
    #[arg(long, requires = "ranks")]
    simulate: bool,
}

fn doublings(text: &str) -> std::result::Result<RangeInclusive<u64>, String> {
    let ends = text.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
    match ends {
        Some((Ok(from), Ok(to))) if 1 <= from && from <= to && to <= 1 << 20 => Ok(from..=to),
        _ => {
            Err(format!("{text:?}; expected two numbers of ranks up to 1048576, such as 8..16384"))
        }
    }
}

/// Prints what was asked for of `ranks` ranks.
pub fn run(config: &TrainConfig, ranks: u64, args: &LayoutArgs, as_json: bool) -> Result<()> {
    let profile = profile(config, &args.hardware)?;
    if !ranks.is_multiple_of(args.tensor) {
        let message = format!("--tensor {}: expected a divisor of --ranks ({ranks})", args.tensor);
        return Err(TrainerError::Usage { message });
    }
    print_line(&format!(
        "{}: {} parameters, {}, {ranks} ranks, {} of memory each",
        config.name,
        metric(config.model.parameter_count() as f64),
        config.precision,
        gigabytes(profile.memory_bytes)
    ))?;
    let mut object = Map::new();
    let mut add = |key: &str, value: Value| object.insert(key.to_owned(), value);
    add("name", json!(config.name));
    add("ranks", json!(ranks));
    add("hardware", json!(profile));
    if args.layouts {
        let found = layouts(config, ranks, &profile);
        print_layouts(&found)?;
        add("layouts", json!(found));
    }
    let layout = Layout {
        tensor: args.tensor,
        data: ranks / args.tensor,
        sequence: args.tensor > 1 && !args.no_sequence,
        shard: args.shard,
        overlap: !args.no_overlap,
        micro_batch: config.batch.micro_batch as u64,
        policy: config.activation_checkpointing,
    };
    // A list of layouts is asked for by who has none yet.
    if !args.layouts || args.scale.is_some() || args.simulate {
        layout.check(config)?;
        let found = Candidate::new(config, layout, &profile);
        print_layout(config, &found, &profile)?;
        add("layout", json!(found));
        add("fits", json!(found.fits(&profile)));
    }
    if let Some(range) = &args.scale {
        let rows = scale(config, &layout, &profile, *range.start(), *range.end());
        print_scale(&rows)?;
        add("scale", json!(rows));
    }
    if args.simulate {
        let start = Instant::now();
        let found = simulate(config, &layout, &profile, SIMULATED_STEPS, Spread::default())?;
        print_simulation(&found, start.elapsed().as_secs_f64())?;
        add("simulation", json!(found));
    }
    if as_json { print_json(&object) } else { Ok(()) }
}

fn profile(config: &TrainConfig, name: &str) -> Result<Profile> {
    if let Some(profile) = Profile::named(name) {
        return Ok(profile);
    }
    if name == "this-machine" {
        let device = device::select(&config.device)?;
        return measured_profile(&device, config.precision);
    }
    let file = Path::new(name);
    if !file.is_file() {
        return Err(TrainerError::Usage {
            message: format!(
                "--hardware {name:?}: expected {}, this-machine or a YAML file with their keys",
                Profile::NAMES.join(", ")
            ),
        });
    }
    load(file, &[])
}

fn gigabytes(bytes: f64) -> String {
    format!("{:.1} GB", bytes / 1e9)
}

fn describe(layout: &Layout) -> String {
    let sequence = if layout.sequence { ", sequence" } else { "" };
    let overlap = if layout.overlap { "" } else { ", no overlap" };
    format!(
        "tensor {} x data {}{sequence}, shard {}, micro-batch {}, {}{overlap}",
        layout.tensor, layout.data, layout.shard, layout.micro_batch, layout.policy
    )
}

fn print_layout(config: &TrainConfig, found: &Candidate, profile: &Profile) -> Result<()> {
    print_line(&format!("\n{}", describe(&found.layout)))?;
    print_line("memory of a rank, in MB")?;
    for (name, bytes) in found.memory_bytes.named() {
        print_line(&format!("  {name:<26}{:>12.1}", bytes as f64 / 1e6))?;
    }
    let total = found.memory_bytes.total as f64;
    print_line(&format!(
        "  {:<26}{:>12.1}  {} of {}",
        "total",
        total / 1e6,
        if found.fits(profile) { "fits" } else { "does not fit" },
        gigabytes(profile.usable_bytes())
    ))?;
    let time = &found.seconds;
    print_line("seconds of a step")?;
    for (name, seconds) in [
        ("products and attention", time.products_and_attention),
        ("bound by memory", time.memory),
        ("between tensor ranks", time.tensor),
        ("between copies", time.data),
        ("optimizer", time.optimizer),
    ] {
        print_line(&format!("  {name:<26}{seconds:>12.4}"))?;
    }
    let all = time.tokens_per_second_per_rank * found.layout.ranks() as f64;
    let tokens = config.total_steps().saturating_mul(config.tokens_per_step());
    print_line(&format!(
        "  {:<26}{:>12.4}  {:.1} tokens/s per rank, {} in all, {:.3} days",
        "step",
        time.step,
        time.tokens_per_second_per_rank,
        metric(all),
        days(tokens as f64, all)
    ))
}

fn print_layouts(found: &[Candidate]) -> Result<()> {
    if found.is_empty() {
        return print_line("\nno layout fits");
    }
    print_line(&format!(
        "\n{:>7}{:>7}{:>7}  {:<11}{:<12}{:>10}{:>10}{:>16}",
        "tensor", "data", "micro", "policy", "shard", "GB", "step s", "tokens/s/rank"
    ))?;
    for Candidate { layout, memory_bytes, seconds } in found.iter().take(PRINTED) {
        print_line(&format!(
            "{:>7}{:>7}{:>7}  {:<11}{:<12}{:>10.1}{:>10.2}{:>16.1}",
            layout.tensor,
            layout.data,
            layout.micro_batch,
            layout.policy.to_string(),
            layout.shard.to_string(),
            memory_bytes.total as f64 / 1e9,
            seconds.step,
            seconds.tokens_per_second_per_rank
        ))?;
    }
    match found.len().saturating_sub(PRINTED) {
        0 => Ok(()),
        more => print_line(&format!("and {more} more that fit")),
    }
}

fn print_scale(rows: &[ScaleRow]) -> Result<()> {
    print_line(
        "\ntokens/s per rank, with the step of the configuration and with as much for each copy",
    )?;
    print_line(&format!(
        "{:>8}{:>12}{:>10}{:>12}{:>16}",
        "ranks", "same step", "step s", "latency s", "same per copy"
    ))?;
    for row in rows {
        let cells = match &row.fixed_step {
            Some(Candidate { seconds, .. }) => [
                format!("{:.1}", seconds.tokens_per_second_per_rank),
                format!("{:.3}", seconds.step),
                format!("{:.4}", seconds.latency),
            ],
            None => ["too few", "", ""].map(str::to_owned),
        };
        print_line(&format!(
            "{:>8}{:>12}{:>10}{:>12}{:>16.1}",
            row.ranks,
            cells[0],
            cells[1],
            cells[2],
            row.fixed_copy.seconds.tokens_per_second_per_rank
        ))?;
    }
    Ok(())
}

fn print_simulation(found: &Simulation, seconds: f64) -> Result<()> {
    let least = found.step_seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = found.step_seconds.iter().copied().fold(0.0, f64::max);
    print_line(&format!(
        "\n{} ranks at paces of their own, {} steps in {seconds:.1} s",
        found.ranks,
        found.step_seconds.len()
    ))?;
    let rows = [
        ("step", format!("{:.4} s, from {least:.4} to {most:.4}", found.mean_step_seconds)),
        ("with ranks of one pace", format!("{:.4} s", found.even_step_seconds)),
        (
            "slowest rank",
            format!("{}, {:.3} times the mean", found.slowest_rank, found.slowest_over_mean),
        ),
        ("a rank waits", format!("{:.1}% of its time", 100.0 * found.waiting_share)),
        ("exchanges of a rank", format!("{} in a step", found.exchanges_per_step)),
        ("longest queue", format!("{} pieces", found.longest_queue)),
        ("largest table", format!("{} entries", found.largest_table)),
    ];
    for (name, value) in rows {
        print_line(&format!("  {name:<26}{value}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ranks() {
        assert_eq!(doublings("8..16384"), Ok(8..=16_384));
        for wrong in ["8", "16..8", "0..4", "a..b", "1..99999999"] {
            assert!(doublings(wrong).is_err(), "{wrong}");
        }
    }
}
