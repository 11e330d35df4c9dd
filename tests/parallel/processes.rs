//! Ranks that are processes of an installed MPI, and their ends.

#[path = "../../model/comm/tests/launchers/mod.rs"]
mod launchers;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use launchers::{Mpi, every_mpi};

use super::{assert_same, run_ok, train, with};
use crate::harness::{Finished, Running, SmallRun, altiplano, copy_dir, corpus};

/// A rank of Open MPI's launcher, as its variables say.
fn as_rank(command: &mut Command, rank: usize, ranks: usize) -> Finished {
    command.env("OMPI_COMM_WORLD_SIZE", ranks.to_string());
    command.env("OMPI_COMM_WORLD_RANK", rank.to_string());
    command.output().unwrap().into()
}

/// What every process of a launch finds, the first says.
#[test]
fn errors_before_the_ranks_meet_are_said_once() {
    let run = SmallRun::new();
    let text = run.dir.path().join("libmpi.so.40");
    fs::write(&text, "no library\n".repeat(100)).unwrap();
    let library = format!("parallel.library={}", text.display());
    for (settings, words) in [
        (&[library.as_str()][..], &["parallel.library", "libmpi.so.40"][..]),
        (&["parallel.library=/nonexistent/libmpi.so"], &["parallel.library", "/nonexistent"]),
        (&["parallel.data=4"], &["parallel.data", "2 were started", "Open MPI's launcher"]),
        (&["optimizer.rate=3"], &["optimizer.rate"]),
        (&["--ranks", "2"], &["--ranks 2", "Open MPI's launcher"]),
    ] {
        let mut command = run.train_command(&with("name=none", settings));
        as_rank(&mut command, 0, 2).fails(2, words);
        let other = as_rank(&mut command, 1, 2);
        assert_eq!((other.code, other.stderr.as_str()), (Some(2), ""), "{settings:?}");
    }
    let mut sft = altiplano();
    sft.args(["sft", "configs/sft/quickstart.yaml"]);
    as_rank(&mut sft, 0, 2).fails(2, &["sft trains on one rank"]);
    assert!(!run.dir.path().join("runs").exists());
}

impl Mpi {
    /// `command` on so many ranks.
    pub fn on(&self, ranks: usize, command: &Command) -> Command {
        let mut launched = self.launcher();
        launched.args(["-n", &ranks.to_string()]);
        launched.arg(command.get_program()).args(command.get_args());
        let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        launched.envs(variables);
        launched
    }

    /// Two ranks with different commands.
    fn pair(&self, one: &Command, other: &Command) -> Finished {
        let mut launched = self.launcher();
        for (index, command) in [one, other].into_iter().enumerate() {
            launched.args(if index > 0 { &[":", "-n", "1"][..] } else { &["-n", "1"] });
            launched.arg(command.get_program()).args(command.get_args());
        }
        launched.output().unwrap().into()
    }
}

/// Every MPI gives the bits of ranks that are threads, prints one object, and writes a checkpoint that
/// one process reads.
#[test]
fn ranks_as_processes_train_alike() {
    let run = SmallRun::new();
    let gradients = "parallel.shard=gradients";
    let mpis = every_mpi("training under MPI");
    if mpis.is_empty() {
        return;
    }
    train(&run, "name=threads", &["--ranks", "4", gradients, "threads=1"]).ok();
    for (index, mpi) in mpis.iter().enumerate() {
        let name = format!("name=processes{index}");
        let train = run.train_command(&with(&name, &["--json", gradients, "threads=1"]));
        let ran: Finished = mpi.on(4, &train).output().unwrap().into();
        let ran = ran.ok();
        let objects: Vec<&str> = ran.stdout.lines().filter(|line| line.starts_with('{')).collect();
        let [object] = objects[..] else { panic!("{mpi:?}: {}", ran.stdout) };
        let report: Value = serde_json::from_str(object).unwrap();
        assert_eq!(report["step"], 12);
        let family = if mpi.is_open { "Open MPI" } else { "MPICH" };
        assert!(ran.stderr.contains("4 ranks: tensor 1 x data 4, shard gradients; 1 host; "));
        assert!(ran.stderr.contains(family), "{}", ran.stderr);
        let name = format!("processes{index}");
        assert_same(&run, "threads", &name, 12);
        let losses: Vec<f64> =
            run.metrics(&name).iter().map(|line| line["loss"].as_f64().unwrap()).collect();
        assert!(losses[11] < losses[0], "{losses:?}");
        let model = run.checkpoint(&name, 12);
        let model = model.to_str().unwrap();
        run_ok(&["generate", "--checkpoint", model, "--prompt", "The"]);
        // On two ranks of the same MPI.
        let resumed = run.resume_command(&name, &["steps=14"]);
        let ran: Finished = mpi.on(2, &resumed).output().unwrap().into();
        ran.ok();
        assert_eq!(run.checkpoints(&name).last(), Some(&14));
    }
}

/// Ranks that differ in a setting, in the corpus or in the checkpoint say so once, with both ranks.
#[test]
fn ranks_that_differ_are_named() {
    for mpi in every_mpi("ranks that differ under MPI") {
        let run = SmallRun::new();
        let small = run.train_command(&with("name=pair", &["optimizer.lr=1e-3"]));
        let large = run.train_command(&with("name=pair", &["optimizer.lr=2e-3"]));
        let stderr = mpi.pair(&small, &large).stderr;
        let line =
            "the configuration differs between ranks: optimizer.lr is 0.001 on rank 0 (host ";
        assert!(stderr.contains(line) && stderr.contains("0.002 on rank 1 (host "), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        assert!(!run.dir.path().join("runs").exists());

        // The number of threads is each rank's own.
        let few = ["steps=2", "validate.every=0"];
        let told = run.train_command(&with("name=threads", &[&few[..], &["threads=1"]].concat()));
        let other = run.train_command(&with("name=threads", &few));
        mpi.pair(&told, &other).ok();
        fs::remove_dir_all(run.dir.path().join("runs")).unwrap();

        // The same settings, and other tokens under another path.
        let own = run.dir.path().join("corpus");
        copy_dir(corpus(), &own);
        let from = own.join("tokens/books");
        fs::remove_dir_all(own.join("tokens/speeches")).unwrap();
        fs::rename(own.join("tokens/early"), own.join("tokens/speeches")).unwrap();
        let path = format!("data.sources.0.path={}", own.join("tokens/speeches").display());
        assert!(from.exists());
        let one = run.train_command(&with("name=pair", &[]));
        let other = run.train_command(&with("name=pair", &[&path]));
        let stderr = mpi.pair(&one, &other).stderr;
        assert!(stderr.contains("the corpus differs between ranks: "), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");

        // A directory of a run that is not shared: this rank has another of the name.
        train(&run, "name=apart", &["steps=2", "checkpoint.every=2", "validate.every=0"]).ok();
        let apart = run.dir.path().join("elsewhere/apart");
        fs::create_dir_all(&apart).unwrap();
        fs::copy(run.run_dir("apart").join("config.yaml"), apart.join("config.yaml")).unwrap();
        let tokens = |number: usize, name: &str| {
            format!("data.sources.{number}.path={}", corpus().join("tokens").join(name).display())
        };
        let tokenizer = format!("tokenizer={}", corpus().join("tokenizer.model").display());
        let resume = |dir: PathBuf| {
            let mut command = altiplano();
            command.args(["train", "--resume"]).arg(dir).arg("steps=4");
            command.args([&tokens(0, "speeches"), &tokens(1, "books"), &tokenizer]);
            command
        };
        let stderr = mpi.pair(&resume(run.run_dir("apart")), &resume(apart)).stderr;
        assert!(stderr.contains("rank 1 (host ") && stderr.contains("shared between"), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");

        // A path that one rank does not see.
        let other = run.train_command(&with("name=pair", &["data.sources.0.path=/nonexistent"]));
        let stderr = mpi.pair(&one, &other).stderr;
        assert!(stderr.contains("rank 1 (host ") && stderr.contains("/nonexistent"), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    }
}

/// The library of another MPI than the launcher's is named.
#[test]
fn the_library_of_another_launcher_is_named() {
    let run = SmallRun::new();
    let mpis = every_mpi("wrong libraries under MPI");
    let [one, other] = &mpis[..] else {
        eprintln!("skipped: the library of another launcher (needs Open MPI and MPICH)");
        return;
    };
    for (mpi, other) in [(one, other), (other, one)] {
        let name = if other.is_open { "libmpi.so.40" } else { "libmpi.so.12" };
        let lib = other.launcher.parent().unwrap().parent().unwrap().join("lib").join(name);
        let library = if lib.exists() { lib.display().to_string() } else { name.to_owned() };
        let library = format!("parallel.library={library}");
        let command = run.train_command(&with("name=none", &[&library]));
        let ran: Finished = mpi.on(2, &command).output().unwrap().into();
        let stderr = ran.fails(2, &["started 2 ranks, but", "parallel.library"]).stderr;
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        assert!(!run.dir.path().join("runs").exists());
    }
}

/// Process ids of the ranks below a launcher.
fn ranks_of(run: &SmallRun) -> Vec<u32> {
    let config = run.config();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let is_rank = words.first().is_some_and(|program| program.ends_with(b"altiplano"));
        if is_rank && words.iter().any(|word| *word == config.to_str().unwrap().as_bytes()) {
            found.push(pid);
        }
    }
    found
}

fn send(pid: u32, signal: i32) {
    // SAFETY: a signal to a rank that this test started.
    unsafe { libc::kill(pid as i32, signal) };
}

/// A killed rank ends the run, which goes on from its newest checkpoint to the same bits. `ALTIPLANO_KILLS=50`
/// kills as often, other ranks at other moments.
#[test]
fn a_killed_rank_loses_nothing() {
    let kills = std::env::var("ALTIPLANO_KILLS").ok().and_then(|kills| kills.parse().ok());
    let kills: usize = kills.unwrap_or(2);
    for mpi in every_mpi("killed ranks under MPI") {
        let run = SmallRun::new();
        let settings = ["checkpoint.every=2", "log_every=1", "threads=1", "validate.every=0"];
        let gradients = [&settings[..], &["parallel.shard=gradients"]].concat();
        train(&run, "name=whole", &gradients).ok();
        for round in 0..kills {
            let step = [2, 5, 1, 7, 10, 4, 8][round % 7];
            // Copies that split weights too and write files of their own, every other time.
            let others = ["parallel.shard=parameters", "parallel.file_bytes=200000"];
            let settings = match round % 2 {
                0 => gradients.clone(),
                _ => [&settings[..], &others].concat(),
            };
            let name = format!("name=killed{round}");
            let command = run.train_command(&with(&name, &settings));
            let mut running = Running::start(&mut mpi.on(2 << (round % 2), &command));
            let line = format!("step {step:2}/12");
            running.wait_until(|stderr| stderr.contains(&line));
            let ranks = ranks_of(&run);
            assert!(ranks.len() > 1, "{ranks:?}");
            std::thread::sleep(Duration::from_millis((round / 7 * 13) as u64));
            send(ranks[ranks.len() - 1 - round % 3 % ranks.len()], libc::SIGKILL);
            let ended = running.finish();
            assert_ne!(ended.code, Some(0), "{}", ended.stderr);
            assert!(ranks_of(&run).is_empty());
            let name = format!("killed{round}");
            run.resume(&name, &["--ranks", "2", "parallel.file_bytes=4294967296"]).ok();
            assert_same(&run, "whole", &name, 12);
            let checkpoints = run.run_dir(&name).join("checkpoints");
            let names = fs::read_dir(checkpoints).unwrap().flatten().map(|entry| entry.file_name());
            assert!(names.into_iter().all(|name| !name.to_str().unwrap().starts_with('.')));
            fs::remove_dir_all(run.run_dir(&name)).unwrap();
        }
    }
}

/// A stopped rank is named by the others, which end within the time given.
#[test]
fn a_stopped_rank_is_named() {
    for mpi in every_mpi("stopped ranks under MPI") {
        let run = SmallRun::new();
        let settings = [
            "steps=100000",
            "log_every=1",
            "parallel.timeout=4",
            "threads=1",
            "validate.every=0",
            "checkpoint.every=0",
        ];
        let command = run.train_command(&with("name=stopped", &settings));
        let mut running = Running::start(&mut mpi.on(2, &command));
        running.wait_until(|stderr| stderr.contains("step      3/"));
        let ranks = ranks_of(&run);
        assert_eq!(ranks.len(), 2, "{ranks:?}");
        send(ranks[1], libc::SIGSTOP);
        let began = Instant::now();
        let ended = running.finish();
        for pid in ranks_of(&run) {
            send(pid, libc::SIGKILL);
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        assert_ne!(ended.code, Some(0));
        assert!(
            ended.stderr.contains("waited 4 s (parallel.timeout) for rank "),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains(": step "), "{}", ended.stderr);
    }
}

/// Whom a test sends a signal.
#[derive(Debug, Clone)]
enum Signalled {
    /// The process whose threads are the ranks.
    Threads,
    /// `mpirun`, which hands it on.
    Launcher(Mpi),
    /// One rank of several.
    Rank(Mpi),
}

/// A signal to whomever ends all ranks after one step, which they save, and the run goes on from there
/// as if nothing had been.
#[test]
fn a_signal_ends_all_ranks_after_one_step() {
    let run = SmallRun::new();
    let mpis = every_mpi("signals under MPI");
    let mut signalled = vec![Signalled::Threads];
    for mpi in mpis {
        signalled.extend([Signalled::Launcher(mpi.clone()), Signalled::Rank(mpi)]);
    }
    let settings = [
        "steps=100000",
        "checkpoint.every=0",
        "validate.every=0",
        "parallel.shard=gradients",
        "threads=1",
    ];
    for (index, signalled) in signalled.into_iter().enumerate() {
        let name = format!("ended{index}");
        let named = format!("name={name}");
        let command = run.train_command(&with(&named, &[&settings[..], &["log_every=1"]].concat()));
        let mut launched = match &signalled {
            Signalled::Threads => {
                let mut command = Command::new(command.get_program());
                command.args(run.train_command(&with(&named, &settings)).get_args());
                command.args(["--ranks", "2", "log_every=1"]);
                command
            }
            Signalled::Launcher(mpi) | Signalled::Rank(mpi) => mpi.on(2, &command),
        };
        let mut running = Running::start(&mut launched);
        running.wait_until(|stderr| stderr.contains("step      3/"));
        match &signalled {
            Signalled::Rank(_) => send(*ranks_of(&run).last().unwrap(), libc::SIGUSR1),
            _ => running.signal("USR1"),
        }
        let ended = running.finish();
        assert_eq!(ended.code, Some(138), "{signalled:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("SIGUSR1: the run ends"), "{signalled:?}: {}", ended.stderr);
        let steps = run.checkpoints(&name);
        let [step] = steps[..] else { panic!("{signalled:?}: {steps:?}") };
        let last = format!("steps={}", step + 2);
        run.resume(&name, &["--ranks", "4", &last]).ok();
        let whole = [&settings[1..], &[&last, "optimizer.decay_steps=100000"]].concat();
        let whole_name = format!("name=whole{index}");
        train(&run, &whole_name, &whole).ok();
        assert!(run.tensors(&name, step + 2) == run.tensors(&whole_name[5..], step + 2));
    }
}
