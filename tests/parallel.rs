//! Training on several ranks: what copies split, and what does not fit.

mod checkpoints;
mod parameters;
mod processes;
mod tensor;

use altiplano_data::{Batch, IGNORED_TARGET, Share};
use altiplano_model::params::Weights;
use altiplano_trainer::config::{TrainConfig, load};
use altiplano_trainer::error::TrainerError;
use altiplano_trainer::launch::launch;
use altiplano_trainer::train_loop::open_loader;
use altiplano_trainer::train_step::Trainer;
use burn::tensor::{DType, Device};

use crate::harness::{Finished, SmallRun, run};

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

fn run_ok(arguments: &[&str]) {
    run(arguments.iter().copied().chain(["--max-tokens", "4"])).ok();
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
        (&["parallel.shard=parameters", "device=tch"], &["device", "shard parameters"]),
        (&["parallel.file_bytes=0"], &["parallel.file_bytes", "found 0"]),
        (&["parallel.shard=gradient"], &["parallel.shard", "gradient"]),
        (&["parallel.timeout=0"], &["parallel.timeout", "found 0"]),
        (&["parallel.bucket_bytes=0"], &["parallel.bucket_bytes", "found 0"]),
    ] {
        let stderr = train(&run, "name=none", settings).fails(2, words).stderr;
        assert_eq!(stderr.matches("error").count(), 1, "{stderr}");
        assert!(!run.dir.path().join("runs").exists(), "{settings:?}");
    }
}
