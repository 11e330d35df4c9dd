//! The rates of this machine, measured.

use std::time::Instant;

use altiplano_comm::{Options, World, check};
use altiplano_model::config::Precision;
use burn::tensor::Device;

use super::time::Profile;
use crate::error::{Result, TrainerError};
use crate::peak::short_product_flops_per_second;

/// Bytes that are copied, more than caches hold.
const COPIED: usize = 128 << 20;

/// Bytes that two ranks exchange.
const EXCHANGED: usize = 8 << 20;

/// Copies, of which the fastest counts.
const COPIES: usize = 5;

/// Rates of this machine: of products of matrices on `device`, of copies in memory, and of exchanges
/// between two ranks that are threads. A rank is the machine with all its threads; what another
/// machine would be reached at is taken to be the same. Takes seconds.
///
/// # Errors
/// The system refuses a thread, or does not say how much memory there is.
pub fn measured_profile(device: &Device, precision: Precision) -> Result<Profile> {
    let source = vec![1u8; COPIED];
    let mut target = vec![0u8; COPIED];
    let mut fastest = f64::INFINITY;
    for _ in 0..COPIES {
        let start = Instant::now();
        target.copy_from_slice(&source);
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    // Read once and written once.
    let memory_bytes_per_second = 2.0 * COPIED as f64 / fastest.max(1e-9);
    let exchange = |world: World| {
        let measured = check::collectives(&world, &[EXCHANGED])?;
        world.finish().map(|()| measured)
    };
    let measured = World::run_threads(2, &Options::default(), exchange)?.swap_remove(0)?;
    let row = |name: &str| measured.iter().find(|row| row.operation == name);
    let rate = row("reduce-scatter").map_or(1e9, |row| row.bytes_per_second);
    let latency = row("barrier").map_or(1e-5, |row| row.time.as_secs_f64());
    Ok(Profile {
        peak_flops_per_second: short_product_flops_per_second(precision, device),
        // What was measured is reached; attention's share is that of other hardware.
        gemm_share: 1.0,
        attention_share: 0.5,
        memory_bytes_per_second,
        memory_bytes: memory_of_the_machine()?,
        usable_memory: 0.95,
        devices_per_host: 1,
        host_bytes_per_second: rate,
        host_latency_seconds: latency,
        network_bytes_per_second: rate,
        network_latency_seconds: latency,
    })
}

fn memory_of_the_machine() -> Result<f64> {
    let file = "/proc/meminfo";
    let text = std::fs::read_to_string(file)
        .map_err(|source| TrainerError::Io { path: file.into(), source })?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    match kibibytes {
        Some(kibibytes) => Ok(kibibytes * 1024.0),
        None => Err(TrainerError::RunFile {
            path: file.into(),
            reason: "no line MemTotal in kB; name a file of rates by --hardware instead".into(),
        }),
    }
}
