//! Ranks that are processes, under every MPI that is installed here.
//!
//! A test starts this same program by `mpirun`; [`rank`] is what each rank does. Launchers are
//! looked for in `PATH`, and those that `MPI_LAUNCHERS` names (paths, separated by colons) are tried
//! too. Without any, the tests say what they skip.

#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stdout, reason = "ranks say how they ended, tests what they skip")]

mod launchers;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use launchers::{Mpi, every_mpi};

use altiplano_comm::{CommError, Options, RankGrid, Result, Rows, World, check};

/// Which part a rank plays; also says that this process is a rank.
const PART: &str = "ALTIPLANO_COMM_PART";

/// Not a test: the program of a rank.
#[test]
#[ignore = "is started by the other tests, as a rank"]
fn rank() {
    let Ok(part) = std::env::var(PART) else { return };
    let options = Options {
        library: std::env::var_os("ALTIPLANO_COMM_LIBRARY").map(PathBuf::from),
        timeout: Duration::from_secs(if part == "stopped" { 4 } else { 300 }),
        compare_calls: part == "compared" || part == "mismatch",
        ..Options::default()
    };
    let status = match World::start(&options) {
        Err(error) => {
            println!("\nerror at start: {error}");
            if error.is_usage() { 2 } else { 1 }
        }
        Ok(world) => {
            let me = world.name_of(world.rank());
            let aborter = std::sync::Arc::new(world);
            match play(&part, &aborter) {
                Ok(line) => {
                    println!("\n{me}: {line}");
                    let world = std::sync::Arc::into_inner(aborter).unwrap();
                    world.finish().map_or(1, |()| 0)
                }
                Err(error) => {
                    println!("\nerror of {me}: {error}");
                    aborter.abort(1);
                    std::thread::sleep(Duration::from_secs(5));
                    1
                }
            }
        }
    };
    std::process::exit(status);
}

fn play(part: &str, world: &World) -> Result<String> {
    let everybody = world.everybody();
    match part {
        "collectives" | "compared" => {
            let measured = check::collectives(world, &[4, 1000, 5000, 300_000, 9_000_000])?;
            let grid = RankGrid::new(2, None, world.ranks())?;
            let tensor = world.split("tensor", grid.tensor_group(world.rank()))?;
            let data = world.split("data", grid.data_group(world.rank()))?;
            let value = 10f64.powi(world.rank() as i32);
            let over_data = data.start_all_reduce::<f64, _>(vec![value; 100_000])?;
            let over_tensor = tensor.start_all_reduce::<f64, _>(vec![value])?.wait()?;
            let texts = everybody.gather_bytes("x".repeat(world.rank()).as_bytes())?;
            let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
            let ring = (world.rank() + 1) % world.ranks();
            let before = (world.rank() + world.ranks() - 1) % world.ranks();
            let sent = everybody.start_send::<f64, _>(vec![value; 600_000], ring)?;
            let received = everybody.start_receive::<f64, _>(vec![0.0; 600_000], before)?.wait()?;
            sent.wait()?;
            Ok(format!(
                "{} rows, {} over data, {} over tensor, {lengths:?}, {}, {}",
                measured.len(),
                over_data.wait()?[99_999],
                over_tensor[0],
                received[599_999],
                world.description()
            ))
        }
        // The bits of a sum whose order matters, as one number.
        "bits" => {
            let value = |i: usize| {
                let x = (i + 7919 * world.rank()).wrapping_mul(2_654_435_761) % 1_000_003;
                x as f32 * if i.is_multiple_of(3) { 1e-4 } else { 37.0 }
            };
            let values: Vec<f32> = (0..3_000_000).map(value).collect();
            let sum = everybody.start_all_reduce::<f32, _>(values)?.wait()?;
            let hash = sum.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, x| {
                (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3)
            });
            Ok(format!("bits {hash:016x}"))
        }
        "mismatch" => {
            match world.rank() {
                0 => drop(everybody.start_all_reduce::<f32, _>(vec![0.0; 12])?.wait()?),
                _ => everybody.barrier()?,
            }
            Ok("agreed".into())
        }
        "killed" | "stopped" | "left" | "panicked" => {
            world.set_during("step 3");
            everybody.barrier()?;
            if world.rank() == 1 {
                let signal = match part {
                    "killed" => libc::SIGKILL,
                    "stopped" => libc::SIGSTOP,
                    "left" => std::process::exit(0),
                    _ => panic!("a rank panics"),
                };
                // SAFETY: a signal to this process itself.
                unsafe { libc::raise(signal) };
            }
            let group = everybody.of("layers 1-2");
            let rows = Rows::single(1 << 20);
            let input = vec![1.0f32; 1 << 20];
            let part = vec![0.0f32; rows.part(world.rank(), world.ranks()).len()];
            drop(group.start_reduce_scatter::<f32, _, _>(input, part, rows)?.wait()?);
            Ok("went on".into())
        }
        // While this rank computes, the thread exchanges.
        "overlap" => {
            let values = everybody.start_all_reduce::<f32, _>(vec![1.0; 8 << 20])?;
            let start = Instant::now();
            while !values.is_done() && start.elapsed() < Duration::from_secs(30) {
                std::hint::black_box((0..1000).sum::<u64>());
            }
            let done = values.is_done();
            values.wait()?;
            Ok(format!("done without waiting: {done}"))
        }
        part => panic!("{part}"),
    }
}

impl Mpi {
    fn command(&self, ranks: usize, part: &str) -> Command {
        let mut command = self.launcher();
        command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "rank", "--ignored", "--nocapture"]);
        command.env(PART, part);
        command
    }

    /// Everything that the ranks print, once all have ended, and how.
    fn run(&self, ranks: usize, part: &str) -> (Output, String) {
        let output = self.command(ranks, part).output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output, text)
    }
}

#[test]
fn collectives_over_processes() {
    for mpi in every_mpi("collectives over MPI") {
        for (ranks, part) in [(2, "collectives"), (4, "collectives"), (4, "compared")] {
            let (output, text) = mpi.run(ranks, part);
            assert!(output.status.success(), "{mpi:?} {ranks}: {text}");
            let lines: Vec<&str> = text.lines().filter(|line| line.contains(" rows, ")).collect();
            assert_eq!(lines.len(), ranks, "{mpi:?}: {text}");
            let family = if mpi.is_open { "Open MPI" } else { "MPICH" };
            let over_data = if ranks == 4 { ["101", "1010"] } else { ["1", "10"] };
            for line in lines {
                assert!(line.contains("21 rows") && line.contains(family), "{line}");
                assert!(
                    over_data.iter().any(|sum| line.contains(&format!(" {sum} over data"))),
                    "{line}"
                );
            }
        }
    }
}

#[test]
fn every_mpi_and_threads_give_the_same_bits() {
    let mpis = every_mpi("equal bits over MPI");
    let threads = World::run_threads(4, &Options::default(), |world| play("bits", &world).unwrap());
    let expected = threads.unwrap().remove(0);
    for mpi in mpis {
        let (output, text) = mpi.run(4, "bits");
        assert!(output.status.success(), "{mpi:?}: {text}");
        assert_eq!(text.matches(&expected).count(), 4, "{mpi:?}: {text}, expected {expected}");
    }
}

#[test]
fn an_exchange_goes_on_while_a_rank_computes() {
    for mpi in every_mpi("progress while computing over MPI") {
        let (output, text) = mpi.run(2, "overlap");
        assert!(output.status.success(), "{mpi:?}: {text}");
        assert_eq!(text.matches("done without waiting: true").count(), 2, "{mpi:?}: {text}");
    }
}

#[test]
fn different_calls_over_processes_are_named() {
    for mpi in every_mpi("different calls over MPI") {
        let (output, text) = mpi.run(2, "mismatch");
        assert!(!output.status.success(), "{mpi:?}: {text}");
        assert!(text.contains("all-reduce of 12 f32") && text.contains("called barrier"), "{text}");
    }
}

#[test]
fn a_killed_rank_ends_the_run() {
    for mpi in every_mpi("killed ranks under MPI") {
        for part in ["killed", "left", "panicked"] {
            let (output, text) = mpi.run(3, part);
            assert!(!output.status.success() || part == "left", "{mpi:?} {part}: {text}");
            assert!(!text.contains("went on"), "{mpi:?} {part}: {text}");
        }
    }
}

#[test]
fn a_stopped_rank_is_named_and_ends_the_run() {
    for mpi in every_mpi("stopped ranks under MPI") {
        let (output, text) = mpi.run(3, "stopped");
        assert!(!output.status.success(), "{mpi:?}: {text}");
        let named = text.lines().any(|line| {
            line.contains("step 3: reduce-scatter of layers 1-2 over the world group waited 4 s")
                && line.contains("for rank 1 (host ")
        });
        assert!(named, "{mpi:?}: {text}");
    }
}

#[test]
fn the_library_of_another_launcher_is_named() {
    let mpis = every_mpi("wrong libraries under MPI");
    if mpis.len() < 2 {
        println!("skipped: the library of another launcher (needs Open MPI and MPICH)");
        return;
    }
    for (mpi, other) in [(&mpis[0], &mpis[1]), (&mpis[1], &mpis[0])] {
        let name = if other.is_open { "libmpi.so.40" } else { "libmpi.so.12" };
        let lib = other.launcher.parent().unwrap().parent().unwrap().join("lib").join(name);
        let lib = if lib.exists() { lib } else { PathBuf::from(name) };
        let output = mpi.command(2, "bits").env("ALTIPLANO_COMM_LIBRARY", &lib).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("started 2 ranks, but") && text.contains("parallel.library"),
            "{text}"
        );
    }
}

#[test]
fn a_missing_library_says_what_to_install() {
    // The variables of a launcher, with nothing installed where it is looked for.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "rank", "--ignored", "--nocapture"])
        .env(PART, "bits")
        .env("OMPI_COMM_WORLD_SIZE", "2")
        .env("OMPI_COMM_WORLD_RANK", "0")
        .env("ALTIPLANO_COMM_LIBRARY", "/nonexistent/libmpi.so")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("parallel.library: /nonexistent/libmpi.so"), "{text}");
    let error = CommError::NoLibrary { launcher: "srun".into(), ranks: 2, tried: "a, b".into() };
    assert!(error.to_string().contains("looked for a, b; install"), "{error}");
}
