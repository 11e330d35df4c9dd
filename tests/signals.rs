//! Signals: a run that is asked to end saves first, and its status says that it is not done.

use std::cell::Cell;
use std::fs;
use std::process::Command;

use altiplano_data::ValidationSet;
use altiplano_trainer::checkpoint;
use altiplano_trainer::config::{TrainConfig, load};
use altiplano_trainer::train_loop::{loader_options, open_loader};
use altiplano_trainer::train_step::Trainer;
use altiplano_trainer::validation::validate;
use burn::tensor::Device;

use crate::harness::{Running, SmallRun};

/// Waits until a run has logged some steps.
fn wait_for_steps(running: &mut Running, run: &SmallRun, name: &str) {
    let metrics = run.run_dir(name).join("metrics.jsonl");
    running.wait_until(|_| fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 3));
}

/// Each signal has its status; the run goes on from where it was.
#[test]
fn an_interrupt_saves_first_and_is_not_success() {
    let run = SmallRun::new();
    for (signal, status) in [("INT", 130), ("TERM", 143), ("HUP", 129), ("USR1", 138)] {
        let name = format!("name={signal}");
        let long = [&name, "steps=100000", "checkpoint.every=0", "validate.every=0"];
        let mut running =
            Running::start(&mut run.train_command(&[&long[..], &["--json"]].concat()));
        wait_for_steps(&mut running, &run, signal);
        running.signal(signal);
        let finished = running.finish().fails(status, &[&format!("SIG{signal}")]);
        assert!(finished.stdout.contains("interrupted at step"), "{}", finished.stdout);
        let report = finished.json();
        assert_eq!(report["interrupted"], true);
        assert_eq!(report["signal"], format!("SIG{signal}"));
        let done = run.metrics(signal).len() as u64;
        assert_eq!(run.checkpoints(signal), [done]);
        // Shorter than it is.
        run.resume(signal, &["steps=2"]).fails(2, &["steps", &format!("step {done} already")]);
    }
    let done = run.metrics("INT").len() as u64;
    let end = format!("steps={}", done + 1);
    let decay = format!("optimizer.decay_steps={}", done + 1);
    let last = run.resume("INT", &[&end, "--json"]).ok();
    assert_eq!(last.json()["interrupted"], false);
    assert_eq!(last.json()["signal"], serde_json::Value::Null);
    // The decay was planned for 100000 steps and still is.
    let lr = |n: u64| run.metrics("INT")[n as usize]["lr"].as_f64().unwrap();
    assert!(lr(done) > 0.99 * lr(done - 1));
    run.resume("INT", &[&decay]).ok();
}

/// What ignores the end of its terminal is left alone by it.
#[test]
fn nohup_is_respected() {
    let run = SmallRun::new();
    let train = run.train_command(&["name=nohup", "steps=100000", "validate.every=0"]);
    let mut shell = Command::new("bash");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "bash"]).arg(train.get_program());
    let mut running = Running::start(shell.args(train.get_args()));
    wait_for_steps(&mut running, &run, "nohup");
    running.signal("HUP");
    running.signal("TERM");
    running.finish().fails(143, &["SIGTERM"]);
}

/// A step that takes hours: the second Ctrl-C is answered, the third ends it.
#[test]
fn the_third_ctrl_c_ends_at_once() {
    let run = SmallRun::new();
    let hours = [
        "name=hours",
        "data=random",
        "tokenizer=null",
        "model.dim=512",
        "model.n_layers=8",
        "model.hidden_dim=1024",
        "batch.micro_batch=64",
        "batch.grad_accum_steps=4000",
        "validate.every=0",
    ];
    let mut running = Running::start(&mut run.train_command(&hours));
    running.wait_until(|stderr| stderr.contains("FLOPs"));
    running.signal("INT");
    running.wait_until(|stderr| stderr.contains("SIGINT: the run ends after the step"));
    running.signal("INT");
    running.wait_until(|stderr| stderr.contains("Ctrl-C once more"));
    running.signal("INT");
    running.finish().fails(130, &[]);
    assert!(checkpoint::latest(&run.run_dir("hours")).is_err());
    // Nothing is finished, so anything may still change.
    let quick = ["batch.grad_accum_steps=1", "batch.micro_batch=2", "model.dim=32", "steps=2"];
    let resumed = run.resume("hours", &quick).ok();
    assert!(resumed.stderr.contains("starts from step 0"), "{}", resumed.stderr);
    assert_eq!(run.metrics("hours").len(), 2);
}

/// Samples that would take hours do not keep a run from ending.
#[test]
fn sampling_is_interrupted() {
    let run = SmallRun::new();
    let prompts = vec!["\"The whale\""; 50_000].join(", ");
    let config = fs::read_to_string(run.config()).unwrap();
    let sample = format!("sample: {{ every: 2, max_tokens: 60, prompts: [{prompts}] }}\n");
    fs::write(run.config(), config + &sample).unwrap();
    let mut running = Running::start(&mut run.train_command(&["name=samples"]));
    running.wait_until(|stderr| stderr.contains("step 2: The whale"));
    running.signal("TERM");
    running.finish().fails(143, &[]);
    assert_eq!((run.metrics("samples").len(), run.checkpoints("samples")), (2, vec![2]));
}

/// A validation ends at the batch before which it was interrupted, and then says nothing.
#[test]
fn validation_is_interrupted() {
    let run = SmallRun::new();
    let config: TrainConfig = load(&run.config(), &[]).unwrap();
    let (_, tokenizer) = open_loader(&config).unwrap();
    let options = loader_options(&config, tokenizer.as_ref());
    let set = ValidationSet::open(&config.data, &options).unwrap();
    let trainer = Trainer::start(&config, &Device::flex()).unwrap();
    let asked = Cell::new(0);
    let after_two = || {
        asked.set(asked.get() + 1);
        asked.get() > 2
    };
    assert_eq!(validate(&trainer, &set, 16, after_two).unwrap(), None);
    assert_eq!(asked.get(), 3);
    assert!(validate(&trainer, &set, 16, || false).unwrap().is_some());
}
