//! Training on several ranks: as threads of one process, and as processes where an MPI is installed.

mod tensor;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use altiplano_data::{Batch, IGNORED_TARGET, Share};
use altiplano_model::params::Weights;
use altiplano_trainer::config::{TrainConfig, load};
use altiplano_trainer::error::TrainerError;
use altiplano_trainer::launch::launch;
use altiplano_trainer::train_loop::open_loader;
use altiplano_trainer::train_step::Trainer;
use burn::tensor::{DType, Device};
use serde_json::Value;

use crate::harness::{Finished, Running, SmallRun, altiplano, copy_dir, corpus, run};

/// Matrices of several pieces, so that copies of the model have parts of one; four micro-batches that
/// one, two and four copies can share.
const LAYOUT: [&str; 8] = [
    "model.dim=64",
    "model.hidden_dim=640",
    "batch.micro_batch=2",
    "batch.grad_accum_steps=4",
    "steps=12",
    "validate.every=6",
    "checkpoint.every=6",
    "parallel.check_every=5",
];

/// A run of these settings and more, named `name`.
fn train(run: &SmallRun, name: &str, settings: &[&str]) -> Finished {
    run.train_command(&with(name, settings)).output().unwrap().into()
}

fn with<'a>(name: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let mut all = LAYOUT.to_vec();
    all.extend_from_slice(settings);
    all.push(name);
    all
}

#[track_caller]
fn assert_same(run: &SmallRun, one: &str, other: &str, step: u64) {
    assert_eq!(run.numbers(one), run.numbers(other), "{one}, {other}");
    assert!(run.tensors(one, step) == run.tensors(other, step), "{one}, {other}");
}

/// With `shard: gradients` every bit is that of one process, whatever the ranks, threads, buckets and
/// whether they exchange while they compute.
#[test]
fn gradients_are_summed_in_the_order_of_the_loader() {
    let run = SmallRun::new();
    let gradients = "parallel.shard=gradients";
    train(&run, "name=one", &[gradients]).ok();
    let numbers = run.numbers("one");
    assert_eq!(numbers.len(), 13);
    for (name, settings) in [
        ("two", &["--ranks", "2", "threads=2"][..]),
        ("four", &["--ranks", "4", "parallel.overlap=false", "parallel.bucket_bytes=1"]),
        ("large", &["--ranks", "2", "parallel.bucket_bytes=1073741824", "threads=1"]),
        ("alone", &["parallel.overlap=false", "parallel.bucket_bytes=1", "threads=1"]),
    ] {
        let named = format!("name={name}");
        let settings = [&[gradients][..], settings].concat();
        let said = train(&run, &named, &settings).ok().stderr;
        let ranks = settings.iter().position(|word| *word == "--ranks");
        if let Some(at) = ranks {
            let line =
                format!("{} ranks: tensor 1 x data {}, shard ", settings[at + 1], settings[at + 1]);
            assert!(said.contains(&line), "{said}");
        }
        assert_same(&run, "one", name, 12);
    }
    let metrics = run.metrics("four");
    for line in &metrics {
        assert_eq!(
            (&line["ranks"], &line["tensor"], &line["data"]),
            (&4.into(), &1.into(), &4.into())
        );
        assert!(line["communication_seconds"].as_f64().unwrap() > 0.0);
        assert!(line["slowest_over_mean"].as_f64().unwrap() >= 1.0);
        assert!(line["slowest_rank"].as_u64().unwrap() < 4);
    }
    assert!(run.metrics("one").iter().all(|line| line["ranks"].is_null()));
}

/// The first element that differs by more than `most` of the largest, over all tensors of a model.
#[track_caller]
fn assert_close(run: &SmallRun, one: &str, other: &str, step: u64, most: f32) {
    let config: TrainConfig = load(&run.run_dir(one).join("config.yaml"), &[]).unwrap();
    let read = |name: &str| -> Weights {
        let path = run.checkpoint(name, step).join("model.safetensors");
        altiplano_model::weights::load(&path, "", &config.model, &Device::flex()).unwrap()
    };
    let (one, other) = (read(one), read(other));
    for ((param, a), (_, b)) in one.iter().zip(other.iter()) {
        let (a, b) = (a.to_data(), b.to_data());
        let (a, b) = (a.as_slice::<f32>().unwrap(), b.as_slice::<f32>().unwrap());
        let largest = a.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let apart = a.iter().zip(b).fold(0f32, |apart, (x, y)| apart.max((x - y).abs()));
        assert!(apart <= most * largest, "{param}: {apart} of {largest}");
    }
}

/// Whole copies and copies that split the optimizer's state come to the same bits, and to those of
/// one process but for rounding.
#[test]
fn copies_agree_whatever_they_split() {
    let run = SmallRun::new();
    for (name, settings) in [
        ("name=one", &["precision=f32"][..]),
        ("name=none", &["precision=f32", "--ranks", "2", "parallel.shard=none"]),
        ("name=optimizer", &["precision=f32", "--ranks", "2", "parallel.bucket_bytes=1"]),
        ("name=bf16_none", &["--ranks", "4", "parallel.shard=none"]),
        ("name=bf16_optimizer", &["--ranks", "4"]),
    ] {
        train(&run, name, &[settings, &["optimizer.lr=1e-4"]].concat()).ok();
    }
    assert_same(&run, "none", "optimizer", 12);
    assert_same(&run, "bf16_none", "bf16_optimizer", 12);
    for (one, other) in run.metrics("one").iter().zip(run.metrics("optimizer")) {
        let (one, other) = (one["loss"].as_f64().unwrap(), other["loss"].as_f64().unwrap());
        assert!((one - other).abs() < 1e-6 * one, "{one} {other}");
    }
    assert_close(&run, "one", "optimizer", 12, 1e-4);
}

/// The state of the optimizer is split evenly, but for norm gains, which all have, and pieces.
#[test]
fn copies_split_the_state_of_the_optimizer() {
    let run = SmallRun::new();
    let overrides = LAYOUT.map(String::from);
    let config: TrainConfig = load(&run.config(), &overrides).unwrap();
    let bytes_of = |rank: usize| {
        let bytes = launch(&config, Some(4), |ranks| {
            let weights = Weights::init(&config.model, 1, DType::F32, &Device::flex());
            let trainer = Trainer::start_on(&config, weights, ranks)?;
            let own = trainer.sharded_state_bytes().unwrap() as u64;
            Ok(ranks.gather("bytes", &[own])?[rank])
        });
        bytes.unwrap().result
    };
    let gains = 12 * (config.model.parameter_count() - config.model.matrix_parameter_count());
    let matrices = 12 * config.model.matrix_parameter_count();
    let held: Vec<u64> = (0..4).map(bytes_of).collect();
    assert_eq!(held.iter().sum::<u64>(), (matrices + 4 * gains) as u64);
    let share = (matrices / 4 + gains) as u64;
    // A bucket is cut at pieces, and matrices begin at pieces.
    let pieces = 12 * 16_384 * 4;
    assert!(held.iter().all(|bytes| bytes.abs_diff(share) < 4 * pieces), "{held:?}, {share}");
}

/// A run goes on with other ranks bit for bit: 2, 4, 1 copies against one process throughout.
#[test]
fn a_run_goes_on_with_other_ranks() {
    let run = SmallRun::new();
    let gradients = "parallel.shard=gradients";
    train(&run, "name=one", &[gradients]).ok();
    train(&run, "name=moves", &[gradients, "--ranks", "2", "steps=4", "optimizer.decay_steps=12"])
        .ok();
    let four = ["--ranks", "4", "steps=8", "parallel.bucket_bytes=100000"];
    let said = run.resume("moves", &four).ok().stderr;
    assert!(
        said.contains("tensor 1 x data 4, shard gradients: same numbers bit for bit"),
        "{said}"
    );
    run.resume("moves", &["steps=12", "optimizer.decay_steps=null"]).ok();
    let losses = |name| -> Vec<(Value, Value)> {
        let of = |line: Value| (line["loss"].clone(), line["grad_norm"].clone());
        run.metrics(name).into_iter().map(of).collect()
    };
    assert_eq!(losses("one"), losses("moves"));
    assert!(run.tensors("one", 12) == run.tensors("moves", 12));
    // The layout is no part of a checkpoint: with another split the numbers are those to rounding.
    train(&run, "name=whole", &["--ranks", "2", "parallel.shard=none", "steps=6"]).ok();
    let said = run.resume("whole", &["--ranks", "4", "steps=12", "parallel.shard=optimizer"]).ok();
    assert!(said.stderr.contains("same numbers to rounding"), "{}", said.stderr);
    let model = run.checkpoint("moves", 12);
    let generated = ["generate", "--checkpoint", model.to_str().unwrap(), "--prompt", "The"];
    run_ok(&generated);
}

fn run_ok(arguments: &[&str]) {
    run(arguments.iter().copied().chain(["--max-tokens", "4"])).ok();
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

/// A checkpoint that one rank cannot write is none; the one before is whole.
#[test]
fn a_full_disk_on_the_writer_is_named() {
    let run = SmallRun::new();
    let two = ["--ranks", "2", "steps=2", "checkpoint.every=2", "validate.every=0"];
    train(&run, "name=full", &two).ok();
    let before = run.tensors("full", 2);
    let resumed = run.resume_command("full", &["--ranks", "2", "steps=4"]);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("ulimit -f 64; exec \"$0\" \"$@\"");
    shell.arg(resumed.get_program()).args(resumed.get_args());
    let finished: Finished = shell.env("RUST_BACKTRACE", "0").output().unwrap().into();
    let words =
        ["rank 0 (host ", "step 4 was not saved", "step_00000002 is intact", "model.safetensors"];
    let stderr = finished.fails(1, &words).stderr;
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    assert_eq!(run.checkpoints("full"), [2]);
    assert!(run.tensors("full", 2) == before);
    let names = fs::read_dir(run.run_dir("full").join("checkpoints")).unwrap();
    assert_eq!(names.count(), 1);
    run.resume("full", &["--ranks", "4", "steps=4"]).ok();
}

/// A loss that is no number ends all ranks before the weights change, and one of them says where.
#[test]
fn a_loss_that_is_no_number_is_said_once() {
    let run = SmallRun::new();
    let settings = ["--ranks", "2", "optimizer.lr=1e30", "optimizer.grad_clip=0"];
    let finished = train(&run, "name=wild", &settings);
    let words =
        ["is not finite", " on rank ", "rank 0: ", "rank 1: ", "the weights were not updated"];
    let stderr = finished.fails(1, &words).stderr;
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
}

/// Copies read the batches of one stream in turn, with any number of readers, and stand at one place.
#[test]
fn shares_of_a_stream_are_its_batches() {
    let run = SmallRun::new();
    let mut config: TrainConfig = load(&run.config(), &[]).unwrap();
    let mut whole = open_loader(&config).unwrap().0;
    let batches: Vec<Batch> = (0..12).map(|_| whole.next_batch().unwrap()).collect();
    for (of, readers) in [(2, 1), (3, 2), (4, 3)] {
        config.readers = readers;
        for index in 0..of {
            let mut loader = open_loader(&config).unwrap().0;
            loader.set_share(Share { index, of });
            for round in 0..12 / of {
                assert_eq!(loader.next_batch().unwrap(), batches[round * of + index]);
            }
            assert_eq!(loader.state(), whole.state());
        }
    }
}

/// Micro-batches weigh by the targets that count on all ranks together.
#[test]
fn ranks_with_few_targets_weigh_less() {
    let run = SmallRun::new();
    let settings = with("name=few", &["parallel.shard=gradients", "precision=f32"]);
    let settings: Vec<String> = settings.into_iter().map(String::from).collect();
    let config: TrainConfig = load(&run.config(), &settings).unwrap();
    let mut loader = open_loader(&config).unwrap().0;
    let mut batches: Vec<Batch> = (0..4).map(|_| loader.next_batch().unwrap()).collect();
    for (number, batch) in batches.iter_mut().enumerate() {
        batch.targets[..40 * number].fill(IGNORED_TARGET);
    }
    let first_steps = |copies: usize| {
        let launched = launch(&config, Some(copies), |ranks| {
            let weights = Weights::init(&config.model, 1, DType::F32, &Device::flex());
            let mut trainer = Trainer::start_on(&config, weights, ranks)?;
            let share = ranks.share();
            let own = batches.iter().skip(share.index).step_by(share.of);
            let own: Vec<Batch> = own.cloned().collect();
            let mut numbers = Vec::new();
            for step in 1..4 {
                let outcome = trainer.step(step, &own, 1e-3)?;
                numbers.push((outcome.loss.to_bits(), outcome.grad_norm.to_bits()));
                assert_eq!(outcome.tokens, 4 * 2 * 64);
            }
            Ok(numbers)
        });
        launched.unwrap().result
    };
    let expected = first_steps(2);
    assert_eq!(first_steps(4), expected);
    let alone = {
        let weights = Weights::init(&config.model, 1, DType::F32, &Device::flex());
        let mut trainer = Trainer::start_from(&config, weights).unwrap();
        let outcomes = (1..4).map(|step| trainer.step(step, &batches, 1e-3).unwrap());
        outcomes.map(|o| (o.loss.to_bits(), o.grad_norm.to_bits())).collect::<Vec<_>>()
    };
    assert_eq!(alone, expected);
}

/// Ranks that read the same data, or whose copies differ, are told apart from those that train.
#[test]
fn ranks_that_do_not_train_together_are_named() {
    let run = SmallRun::new();
    let config: TrainConfig = load(&run.config(), &LAYOUT.map(String::from)).unwrap();
    let mut loader = open_loader(&config).unwrap().0;
    let same: Vec<Batch> = (0..2).map(|_| loader.next_batch().unwrap()).collect();
    let error = launch(&config, Some(2), |ranks| {
        let weights = Weights::init(&config.model, 1, DType::F32, &Device::flex());
        Ok(Trainer::start_on(&config, weights, ranks)?.step(1, &same, 1e-3)?.loss)
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("all 2 copies of the model read the same data"), "{error}");

    let error = launch(&config, Some(4), |ranks| {
        let own = [u8::from(ranks.share().index == 2); 32];
        let hashes = [("embedding".into(), [7; 32]), ("head".into(), own)];
        ranks.compare("the copies", &hashes, |_| 0)
    });
    let error = error.unwrap_err().to_string();
    for words in ["the copies are not equal", "rank 0 (host ", "rank 2 (host ", "differ in head"] {
        assert!(error.contains(words), "{error}");
    }

    // One rank fails where the others do not: all hear of it.
    let error = launch(&config, Some(4), |ranks| {
        let own = match ranks.share().index {
            1 => Err(TrainerError::Usage { message: "no room".into() }),
            _ => Ok(()),
        };
        ranks.agree("room", own)
    });
    let error = error.unwrap_err();
    assert!(error.is_usage() && error.to_string().starts_with("rank 1 (host "), "{error}");
    assert!(error.to_string().ends_with(": no room"), "{error}");
}

/// What does not fit is an error before anything is written, with what would fit.
#[test]
fn layouts_that_do_not_fit_are_named() {
    let run = SmallRun::new();
    for (settings, words) in [
        (
            &["parallel.data=2"][..],
            &["parallel.data 2 = 2 ranks", "this process is alone", "mpirun -n 2"][..],
        ),
        (
            &["--ranks", "4", "parallel.data=2"],
            &["parallel.data", "4 were started", "parallel.data=4"],
        ),
        (
            &["--ranks", "3"],
            &["batch.grad_accum_steps", "found 4", "3 copies", "the nearest: 3, 6"],
        ),
        (&["parallel.data=3"], &["batch.grad_accum_steps", "the nearest: 3, 6"]),
        (&["--ranks", "3", "parallel.tensor=3"], &["parallel.tensor", "n_heads (4)", "1, 2, 4"]),
        (
            &["parallel.tensor=2", "model.n_heads=6", "model.n_kv_heads=3", "model.dim=96"],
            &["parallel.tensor", "n_kv_heads (3)"],
        ),
        (&["parallel.tensor=4", "model.hidden_dim=642"], &["parallel.tensor", "hidden_dim (642)"]),
        (
            &["parallel.tensor=4", "batch.micro_batch=1", "batch.seq_len=6"],
            &["batch.micro_batch", "6 tokens", "parallel.tensor (4)", "parallel.sequence=false"],
        ),
        (&["--ranks", "2", "device=tch"], &["device", "compute on CPUs"]),
        (&["parallel.shard=parameters"], &["parallel.shard", "none, optimizer or gradients"]),
        (&["parallel.shard=gradient"], &["parallel.shard", "gradient"]),
        (&["parallel.timeout=0"], &["parallel.timeout", "found 0"]),
        (&["parallel.bucket_bytes=0"], &["parallel.bucket_bytes", "found 0"]),
    ] {
        let stderr = train(&run, "name=none", settings).fails(2, words).stderr;
        assert_eq!(stderr.matches("error").count(), 1, "{stderr}");
        assert!(!run.dir.path().join("runs").exists(), "{settings:?}");
    }
}

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

/// An installed MPI.
#[derive(Debug, Clone)]
struct Mpi {
    launcher: PathBuf,
    /// Open MPI, else MPICH.
    is_open: bool,
}

/// One of each family that `MPI_LAUNCHERS` or `PATH` has; says so when there is none.
fn every_mpi(what: &str) -> Vec<Mpi> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["mpirun", "mpiexec.hydra", "mpirun.openmpi", "mpirun.mpich"];
    let in_path = std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .filter(|file| file.is_file());
    let named = std::env::var_os("MPI_LAUNCHERS").unwrap_or_default();
    let launchers = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    let mut found: Vec<Mpi> = Vec::new();
    for launcher in launchers.chain(in_path) {
        let Ok(output) = Command::new(&launcher).arg("--version").output() else { continue };
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_open = version.contains("Open MPI") || version.contains("OpenRTE");
        if (is_open || version.contains("HYDRA")) && found.iter().all(|mpi| mpi.is_open != is_open)
        {
            found.push(Mpi { launcher, is_open });
        }
    }
    if found.is_empty() {
        eprintln!("skipped: {what} (no mpirun found; scripts/setup mpi installs Open MPI's)");
    }
    found
}

impl Mpi {
    fn launcher(&self) -> Command {
        let mut command = Command::new(&self.launcher);
        if self.is_open {
            command.args(["--oversubscribe", "--bind-to", "none"]);
            for variable in ["OMPI", "PRTE"] {
                command.env(format!("{variable}_ALLOW_RUN_AS_ROOT"), "1");
                command.env(format!("{variable}_ALLOW_RUN_AS_ROOT_CONFIRM"), "1");
            }
        }
        command.stdin(Stdio::null());
        command
    }

    /// `command` on so many ranks.
    fn on(&self, ranks: usize, command: &Command) -> Command {
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

/// A killed rank ends the run, which goes on from its newest checkpoint to the same bits.
#[test]
fn a_killed_rank_loses_nothing() {
    let gradients = "parallel.shard=gradients";
    for mpi in every_mpi("killed ranks under MPI") {
        let run = SmallRun::new();
        let settings =
            ["checkpoint.every=2", "log_every=1", gradients, "threads=1", "validate.every=0"];
        train(&run, "name=whole", &settings).ok();
        for (round, step) in [2, 5].into_iter().enumerate() {
            let name = format!("name=killed{round}");
            let command = run.train_command(&with(&name, &settings));
            let mut running = Running::start(&mut mpi.on(2 << round, &command));
            let line = format!("step  {step}/12");
            running.wait_until(|stderr| stderr.contains(&line));
            let ranks = ranks_of(&run);
            assert!(ranks.len() > 1, "{ranks:?}");
            send(ranks[ranks.len() - 1], libc::SIGKILL);
            let ended = running.finish();
            assert_ne!(ended.code, Some(0), "{}", ended.stderr);
            assert!(ranks_of(&run).is_empty());
            let name = format!("killed{round}");
            run.resume(&name, &["--ranks", "2"]).ok();
            assert_same(&run, "whole", &name, 12);
            let checkpoints = run.run_dir(&name).join("checkpoints");
            let names = fs::read_dir(checkpoints).unwrap().flatten().map(|entry| entry.file_name());
            assert!(names.into_iter().all(|name| !name.to_str().unwrap().starts_with('.')));
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
