//! Ranks that split every matrix, alone and together with copies of the model.

use altiplano_trainer::config::{TrainConfig, load};

use super::processes::every_mpi;
use super::{LAYOUT, assert_close, assert_same, run_ok, train, with};
use crate::harness::{Finished, SmallRun};

/// Losses of every step, and those of validations.
fn losses(run: &SmallRun, name: &str) -> Vec<f64> {
    let lines = run.metrics_lines(name);
    let of =
        |key: &str| -> Vec<f64> { lines.iter().filter_map(|line| line[key].as_f64()).collect() };
    [of("loss"), of("val_loss")].concat()
}

#[track_caller]
fn assert_near(run: &SmallRun, one: &str, other: &str, most: f64) {
    let (one, other) = (losses(run, one), losses(run, other));
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        assert!((one - other).abs() <= most * one, "{one} {other}");
    }
}

const GRADIENTS: [&str; 2] = ["precision=f32", "parallel.shard=gradients"];

/// Two ranks that split the matrices give the bits of two such pairs with `shard: gradients`, and one
/// process' numbers to rounding.
#[test]
fn copies_of_a_split_model_change_no_bit() {
    let run = SmallRun::new();
    train(&run, "name=one", &GRADIENTS).ok();
    for (name, settings) in [
        ("name=split", &["--ranks", "2"][..]),
        ("name=copies", &["--ranks", "4", "threads=2"]),
        ("name=at_once", &["--ranks", "4", "parallel.overlap=false", "parallel.bucket_bytes=1"]),
    ] {
        let settings = [&GRADIENTS[..], &["parallel.tensor=2"], settings].concat();
        let said = train(&run, name, &settings).ok().stderr;
        assert!(said.contains("tensor 2 x data "), "{said}");
        assert!(said.contains(", sequence, shard gradients"), "{said}");
    }
    assert_same(&run, "split", "copies", 12);
    assert_same(&run, "split", "at_once", 12);
    assert_near(&run, "one", "split", 1e-5);
    assert_close(&run, "one", "split", 12, 1e-2);
}

/// More ranks than heads of keys and values, without splitting tokens, samples between the steps, whole copies and
/// split ones; what one rank reads of the checkpoint.
#[test]
fn ranks_share_heads_of_keys_and_values() {
    let run = SmallRun::new();
    let config: TrainConfig = load(&run.config(), &LAYOUT.map(String::from)).unwrap();
    assert_eq!((config.model.n_heads, config.model.kv_heads()), (4, 2));
    let f32 =
        ["precision=f32", "sample.every=6", "sample.prompts=[\"The\"]", "sample.max_tokens=4"];
    train(&run, "name=one", &f32).ok();
    let mut samples = Vec::new();
    for (name, settings) in [
        ("name=four", &["--ranks", "4", "parallel.tensor=4"][..]),
        ("name=whole", &["--ranks", "4", "parallel.tensor=4", "parallel.sequence=false"]),
        ("name=none", &["--ranks", "4", "parallel.tensor=2", "parallel.shard=none"]),
        ("name=optimizer", &["--ranks", "4", "parallel.tensor=2"]),
    ] {
        let said = train(&run, name, &[&f32[..], settings].concat()).ok().stderr;
        let of_sample = |line: &&str| line.contains("step 6: The") || line.contains("step 12: The");
        samples.push(said.lines().filter(of_sample).count());
        assert_near(&run, "one", &name[5..], 1e-5);
    }
    assert_eq!(samples, [2; 4]);
    assert_same(&run, "none", "optimizer", 12);
    let model = run.checkpoint("four", 12);
    run_ok(&["generate", "--checkpoint", model.to_str().unwrap(), "--prompt", "The"]);
}

/// A run moves from 2 x 2 ranks to 1 x 4, to 4 x 1, where ranks share heads of keys and values, and to one process.
#[test]
fn a_run_goes_on_with_other_splits() {
    let run = SmallRun::new();
    train(&run, "name=one", &GRADIENTS).ok();
    let start = ["--ranks", "4", "parallel.tensor=2", "steps=3", "optimizer.decay_steps=12"];
    train(&run, "name=moves", &[&GRADIENTS[..], &start].concat()).ok();
    for (settings, line) in [
        (&["--ranks", "4", "parallel.tensor=1", "steps=6"][..], "tensor 1 x data 4"),
        (&["--ranks", "4", "parallel.tensor=4", "steps=9"], "tensor 4 x data 1"),
        (&["parallel.tensor=1", "steps=12", "optimizer.decay_steps=null"], "tensor 1 x data 1"),
    ] {
        let said = run.resume("moves", settings).ok().stderr;
        assert!(said.contains(line) && said.contains("same numbers to rounding"), "{said}");
    }
    let of_steps = |name| -> Vec<f64> {
        run.metrics(name).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let (one, moves) = (of_steps("one"), of_steps("moves"));
    assert_eq!((one.len(), moves.len()), (12, 12));
    for (one, moves) in one.iter().zip(&moves) {
        assert!((one - moves).abs() <= 1e-5 * one, "{one} {moves}");
    }
}

/// Processes that split the matrices give the bits of threads that do.
#[test]
fn processes_split_matrices_alike() {
    let run = SmallRun::new();
    let mpis = every_mpi("split matrices under MPI");
    if mpis.is_empty() {
        return;
    }
    let settings = ["parallel.tensor=2", "threads=1"];
    train(&run, "name=threads", &[&settings[..], &["--ranks", "4"]].concat()).ok();
    for (index, mpi) in mpis.iter().enumerate() {
        let name = format!("name=processes{index}");
        let command = run.train_command(&with(&name, &settings));
        let ran: Finished = mpi.on(4, &command).output().unwrap().into();
        let said = ran.ok().stderr;
        assert!(said.contains("4 ranks: tensor 2 x data 2, sequence, shard optimizer"), "{said}");
        assert_same(&run, "threads", &name[5..], 12);
    }
}
