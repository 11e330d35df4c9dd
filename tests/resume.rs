//! Killed runs: at any moment, resumed, bit for bit the run that was not.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use altiplano_data::shard::Shard;
use altiplano_trainer::checkpoint;

use crate::harness::{SmallRun, corpus};

/// Kills a run again and again, at moments spread over steps and checkpoint writes; every time the
/// newest checkpoint is whole, and the end is that of a run nobody touched. The corpus is so small
/// that this crosses epochs, and every resume uses another number of threads and readers.
#[test]
fn kill_9_at_any_moment_and_resume() {
    let run = SmallRun::new();
    let early = corpus().join("tokens/early");
    let small_source = format!("data.sources.0.path={}", early.display());
    let common = [
        "steps=60",
        "checkpoint.every=1",
        "checkpoint.keep_last=3",
        "validate.every=30",
        &small_source,
    ];
    run.train(&[&["name=whole"], &common[..]].concat()).ok();

    let overrides = [&["name=killed"], &common[..]].concat();
    let mut kills = 0;
    for attempt in 0..40u64 {
        let threads = format!("threads={}", 1 + attempt % 3);
        let readers = format!("readers={}", 1 + attempt % 4);
        // Before its first checkpoint a run can be started again, and be resumed too.
        let unsaved = checkpoint::latest(&run.run_dir("killed")).is_err();
        // One that was killed before it wrote its configuration can only be started again.
        let begun = run.run_dir("killed").join("config.yaml").exists();
        let mut command = if !begun || (unsaved && attempt % 2 == 0) {
            run.train_command(&overrides)
        } else {
            run.resume_command("killed", &[&threads, &readers])
        };
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From the start of the process into its steps, at odd distances, later every time so that
        // a slow machine gets on too.
        std::thread::sleep(Duration::from_millis(100 + 37 * attempt + 83 * attempt % 200));
        let finished = child.try_wait().unwrap();
        if let Some(status) = finished {
            assert!(status.success(), "attempt {attempt}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        if let Ok(newest) = checkpoint::latest(&run.run_dir("killed")) {
            checkpoint::verify(&newest).unwrap();
        }
    }
    assert!(kills >= 3, "only {kills} kills: the test shows nothing");
    run.resume("killed", &[]).ok();
    assert_eq!(run.numbers("killed"), run.numbers("whole"));
    // Killed after the last checkpoint, before its validation.
    let log = run.run_dir("killed").join("metrics.jsonl");
    let lines = fs::read_to_string(&log).unwrap();
    let lost = lines.trim_end().rfind('\n').unwrap() + 1;
    assert!(lines[lost..].contains("val_loss"), "{}", &lines[lost..]);
    fs::write(&log, &lines[..lost]).unwrap();
    run.resume("killed", &[]).ok();
    assert_eq!(run.numbers("killed"), run.numbers("whole"));
    assert!(run.tensors("killed", 60) == run.tensors("whole", 60), "the weights differ");
    let json = |path: PathBuf| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let drawn = &json(run.checkpoint("whole", 60).join("state.json"))["loader"]["per_source"][0];
    let shard = Shard::open(&early.join("train-00000.arrow")).unwrap();
    let sequences = shard.header().tokens / 64;
    assert!(drawn.as_u64().unwrap() > sequences, "{drawn} of {sequences}: no epoch was crossed");
}

/// A second process is kept out of a run that is going on.
#[test]
fn a_run_has_one_writer() {
    let run = SmallRun::new();
    fs::create_dir_all(run.run_dir("busy")).unwrap();
    let _lock = checkpoint::lock(&run.run_dir("busy")).unwrap();
    run.train(&["name=busy"]).fails(1, &["another altiplano process"]);
}
