//! `altiplano comm-check`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use altiplano_comm::check::{Measurement, collectives};
use altiplano_comm::mpi::Launcher;
use altiplano_comm::{CommError, Options, World};
use altiplano_data::terminal::write_last_line;
use clap::Args;
use serde_json::json;

use super::estimate::metric_bytes;
use super::output::{print_json, print_line};
use super::sizes;
use crate::error::{Result, TrainerError};

/// Try every exchange between ranks, compare the results bit for bit, and time them.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct CommCheckArgs {
    /// Ranks, as threads of this process; under a launcher its ranks are taken.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    ranks: Option<u16>,
    /// Largest buffer: a number with kB, MB, GB or MiB.
    #[arg(long, value_name = "SIZE", default_value = "16MB", value_parser = buffer)]
    size: usize,
    /// The MPI library to open, instead of the one that is found.
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// Seconds after which a rank that does not answer ends the check.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  altiplano comm-check --ranks 4 --size 1MB --json

Under a launcher every process is a rank, and MPI moves the bytes: mpirun -n 4 altiplano
comm-check. The library that the launcher belongs to is found at run time; docs/parallel.md has
the launch lines.";

/// Threads without --ranks.
const RANKS: u16 = 2;

/// Most bytes of a buffer. A rank holds a few of them.
const LARGEST: u64 = 4 << 30;

fn buffer(text: &str) -> std::result::Result<usize, String> {
    match sizes::bytes(text)? {
        size if size <= LARGEST => usize::try_from(size).map_err(|error| error.to_string()),
        size => Err(format!("{size} bytes; expected at most {LARGEST}")),
    }
}

/// Runs the command.
pub fn run(args: CommCheckArgs) -> Result<()> {
    let options = Options {
        library: args.library.clone(),
        timeout: Duration::from_secs(args.timeout),
        report: Arc::new(write_last_line),
        ..Options::default()
    };
    let launcher = Launcher::from_environment(|name| std::env::var(name).ok())?;
    let sizes: Vec<usize> =
        [4 << 10, 256 << 10, args.size].into_iter().filter(|size| *size <= args.size).collect();
    let check = |world: World| {
        let measured = collectives(&world, &sizes)?;
        let found = Found {
            rank: world.rank(),
            ranks: world.ranks(),
            hosts: world.host_count(),
            library: world.description().to_owned(),
            measured,
        };
        world.finish()?;
        Ok(found)
    };
    let found = match launcher {
        Some(launcher) if launcher.ranks > 1 => {
            if let Some(ranks) = args.ranks.filter(|ranks| usize::from(*ranks) != launcher.ranks) {
                let message = format!("--ranks {ranks}, but {launcher} started {}", launcher.ranks);
                return Err(TrainerError::Usage { message });
            }
            let world = World::start(&options).map_err(|error| match launcher.rank {
                0 => TrainerError::from(error),
                // All ranks find the same; one of them says it.
                _ if error.is_usage() => TrainerError::SaidByRankZero(Box::new(error.into())),
                _ => TrainerError::from(error),
            })?;
            check(world)?
        }
        _ => {
            if let Some(library) = &args.library {
                let message = format!(
                    "--library {}: no launcher has started this, so the ranks would be threads, which use no \
                     MPI; start it by mpirun -n 2",
                    library.display()
                );
                return Err(TrainerError::Usage { message });
            }
            let ranks = usize::from(args.ranks.unwrap_or(RANKS));
            let found = World::run_threads(ranks, &options, check)?;
            let mut found =
                found.into_iter().collect::<std::result::Result<Vec<_>, CommError>>()?;
            found.swap_remove(0)
        }
    };
    if found.rank == 0 { print_found(&found, args.json) } else { Ok(()) }
}

struct Found {
    rank: usize,
    ranks: usize,
    hosts: usize,
    library: String,
    measured: Vec<Measurement>,
}

fn print_found(found: &Found, as_json: bool) -> Result<()> {
    let Found { ranks, hosts, library, measured, .. } = found;
    let hosts_word = if *hosts == 1 { "host" } else { "hosts" };
    print_line(&format!("{ranks} ranks on {hosts} {hosts_word}: {library}"))?;
    print_line("every result has the bits of the same sum in one process\n")?;
    print_line(&format!(
        "{:<16}{:>12}{:>14}{:>16}",
        "operation", "buffer", "time", "a rank sends"
    ))?;
    for row in measured {
        let size = if row.bytes == 0 { String::new() } else { metric_bytes(row.bytes as u64) };
        let rate = match row.bytes_per_second {
            rate if rate > 0.0 => format!("{:.3} GB/s", rate / 1e9),
            _ => String::new(),
        };
        let time = format!("{:.1} us", row.time.as_secs_f64() * 1e6);
        print_line(&format!("{:<16}{size:>12}{time:>14}{rate:>16}", row.operation))?;
    }
    if !as_json {
        return Ok(());
    }
    let rows: Vec<_> = measured
        .iter()
        .map(|row| {
            json!({
                "operation": row.operation,
                "bytes": row.bytes,
                "seconds": row.time.as_secs_f64(),
                "bytes_per_second": row.bytes_per_second,
            })
        })
        .collect();
    print_json(&json!({ "ranks": ranks, "hosts": hosts, "library": library, "collectives": rows }))
}
