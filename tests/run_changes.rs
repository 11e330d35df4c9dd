//! What a run can become after it was started: longer, changed, taken back, the start of another.

use std::fs;

use crate::harness::{Finished, SmallRun, copy_dir};

/// The lines of `changes.jsonl` as step, key and new value.
fn changes(run: &SmallRun, name: &str) -> Vec<(u64, String, String)> {
    let text = fs::read_to_string(run.run_dir(name).join("changes.jsonl")).unwrap();
    let parse = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let key = value["key"].as_str().unwrap().to_string();
        (value["step"].as_u64().unwrap(), key, value["to"].to_string())
    };
    text.lines().map(parse).collect()
}

#[track_caller]
fn says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(finished.stderr.contains(word), "no {word:?} in: {}", finished.stderr);
    }
}

/// A run that stopped before its first checkpoint is started and resumed alike.
#[test]
fn without_a_checkpoint_a_run_begins_again() {
    let run = SmallRun::new();
    run.train(&["name=whole", "steps=6"]).ok();
    let stopped = |name: &str| {
        copy_dir(&run.run_dir("whole"), &run.run_dir(name));
        fs::remove_dir_all(run.run_dir(name).join("checkpoints/step_00000006")).unwrap();
    };
    for unfinished in [false, true] {
        for name in ["started", "resumed"] {
            let _ = fs::remove_dir_all(run.run_dir(name));
            stopped(name);
            if unfinished {
                let half = run.run_dir(name).join("checkpoints/.tmp-step_00000006");
                fs::create_dir(&half).unwrap();
                fs::write(half.join("model.safetensors"), "x").unwrap();
            }
            let finished = match name {
                "started" => run.train(&["name=started", "steps=6"]).ok(),
                _ => run.resume(name, &[]).ok(),
            };
            says(
                &finished,
                &["starts from step 0", "steps 1 to 6 of metrics.jsonl are done again"],
            );
            assert_eq!(run.numbers(name), run.numbers("whole"), "{name}");
            assert!(run.tensors(name, 6) == run.tensors("whole", 6), "{name}: the weights differ");
        }
    }
    run.train(&["name=whole", "steps=6"]).fails(1, &["--resume"]);
    run.resume("nothing", &[]).fails(1, &["nothing", "not a run"]);
    // A checkpoint without its config.yaml is not written over.
    fs::remove_file(run.run_dir("whole").join("config.yaml")).unwrap();
    run.train(&["name=whole", "steps=6"]).fails(1, &["there already"]);
}

/// A finished run that is extended is the run that was planned for the whole length.
#[test]
fn extending_is_bit_for_bit_the_longer_run() {
    let run = SmallRun::new();
    let common = ["validate.every=20", "checkpoint.every=0"];
    for (name, schedule, horizon) in [
        ("constant", "constant", "null"),
        ("wsd", "wsd", "45"),
        ("cosine", "cosine", "60"),
        ("short", "cosine", "20"),
    ] {
        let schedule = format!("optimizer.schedule={schedule}");
        let decay = format!("optimizer.decay_steps={horizon}");
        let planned = [&schedule, &decay, common[0], common[1]];
        let (part, whole) = (format!("name={name}"), format!("name={name}_whole"));
        // A decay that ends with the run need not be given.
        let shorter = if name == "short" { &planned[..1] } else { &planned[..2] };
        run.train(&[&[part.as_str(), "steps=20"], shorter, &common].concat()).ok();
        run.train(&[&[whole.as_str(), "steps=40"], &planned[..]].concat()).ok();
        let tokens = format!("tokens={}", 40 * 4 * 2 * 64);
        let length = if name == "wsd" { tokens.as_str() } else { "steps=40" };
        let extended = run.resume(name, &[length]).ok();
        says(&extended, &["resumes from step 20", "from step 21 on, steps: 20 -> "]);
        let whole = format!("{name}_whole");
        assert_eq!(run.numbers(name), run.numbers(&whole), "{name}");
        assert!(run.tensors(name, 40) == run.tensors(&whole, 40), "{name}: the weights differ");
        assert!(changes(&run, name).iter().all(|change| change.0 == 20));
        if name == "short" {
            says(&extended, &["optimizer.decay_steps=40 makes it fall until the new end"]);
        }
    }
    let lr = |name: &str, n: usize| run.metrics(name)[n - 1]["lr"].as_f64().unwrap();
    assert_eq!((lr("constant", 40), lr("wsd", 40)), (3e-3, 3e-3));
    assert!(lr("cosine", 40) < lr("cosine", 20));
    assert_eq!((lr("short", 20), lr("short", 40)), (3e-3 * 0.1, 3e-3 * 0.1));
    // The decay of the constant part comes later.
    run.resume("wsd", &["steps=45"]).ok();
    assert!(lr("wsd", 42) < 3e-3 && lr("wsd", 45) == 3e-3 * 0.1);
    let done = run.resume("wsd", &[]).ok();
    says(&done, &["all 45 steps are done"]);
}

/// Settings that may change do so from the next step on, and the run says when.
#[test]
fn settings_change_on_resume() {
    let run = SmallRun::new();
    run.train(&["steps=10", "optimizer.schedule=constant", "checkpoint.every=5"]).ok();
    let longer = run.resume("small", &["steps=20", "optimizer.lr=1e-3", "log_every=5"]).ok();
    says(&longer, &["from step 11 on, optimizer.lr: 0.003 -> 0.001"]);
    let lr = |n: usize| run.metrics("small")[n - 1]["lr"].as_f64().unwrap();
    assert_eq!((lr(10), lr(11), lr(20)), (3e-3, 1e-3, 1e-3));
    let first = [(10, "optimizer.lr", "0.001"), (10, "steps", "20")];
    let owned = |list: &[(u64, &str, &str)]| -> Vec<_> {
        list.iter().map(|&(step, key, to)| (step, key.to_string(), to.to_string())).collect()
    };
    assert_eq!(changes(&run, "small"), owned(&first));
    // The run keeps them.
    run.resume("small", &["steps=22"]).ok();
    assert_eq!(lr(22), 1e-3);
    let both = [&first[..], &[(20, "steps", "22")]].concat();
    assert_eq!(changes(&run, "small"), owned(&both));

    // What cannot change is refused by name, also when it was edited into the file.
    for fixed in ["model.hidden_dim=64", "seed=2", "batch.micro_batch=2", "data.sources.0.weight=1"]
    {
        let key = fixed.split('=').next().unwrap();
        run.resume("small", &[fixed]).fails(2, &[fixed, key, "May change", "optimizer"]);
    }
    let weights = run.checkpoint("small", 22);
    let from = format!("init_from={}", weights.display());
    run.resume("small", &[&from]).fails(2, &["init_from"]);
    let file = run.run_dir("small").join("config.yaml");
    let yaml = fs::read_to_string(&file).unwrap();
    fs::write(&file, yaml.replace("seed: 1\n", "seed: 2\n")).unwrap();
    run.resume("small", &[]).fails(2, &["config.yaml", "seed: 1 -> 2"]);
    fs::write(&file, yaml.replace("lr: 0.001\n", "lr: 0.002\n")).unwrap();
    says(&run.resume("small", &["steps=23"]).ok(), &["optimizer.lr: 0.001 -> 0.002"]);
    assert_eq!(lr(23), 2e-3);
    // Resuming itself changes nothing.
    let before = fs::read(&file).unwrap();
    run.resume("small", &[]).ok();
    assert_eq!(fs::read(&file).unwrap(), before);
}

/// Going back sets the later part of a run aside, whole.
#[test]
fn a_run_goes_back_to_an_earlier_checkpoint() {
    let run = SmallRun::new();
    let many = ["checkpoint.keep_last=9", "validate.every=10"];
    run.train(&[&["name=whole"], &many[..]].concat()).ok();
    copy_dir(&run.run_dir("whole"), &run.run_dir("back"));
    let back = run.resume("back", &["--checkpoint", "step_20"]).ok();
    says(&back, &["resumes from step 20", "step_00000030, step_00000040", "after_step_00000020"]);
    assert_eq!(run.numbers("back"), run.numbers("whole"));
    assert!(run.tensors("back", 40) == run.tensors("whole", 40), "the weights differ");
    // The part set aside is a run.
    let branch = "back/branches/after_step_00000020";
    assert_eq!(run.checkpoints(branch), [30, 40]);
    assert_eq!(run.numbers(branch), run.numbers("whole"));
    let again = run.resume(branch, &[]).ok();
    says(&again, &["resumes from step 40"]);
    run.resume(branch, &["--checkpoint", "step_30"]).ok();
    assert!(run.tensors(branch, 40) == run.tensors("whole", 40), "the weights differ");

    run.resume("back", &["--checkpoint", "step_25"]).fails(2, &["step_00000025", "step_00000030"]);
    run.resume("back", &["--checkpoint", "oldest"]).fails(2, &["latest, best or step_N"]);
    run.train(&["--checkpoint", "latest"]).fails(2, &["--resume"]);

    // A damaged newest checkpoint: the flag it names helps.
    fs::write(run.checkpoint("back", 40).join("optimizer.safetensors"), "x").unwrap();
    let flag = ["--checkpoint", "step_00000030"];
    run.resume("back", &[]).fails(1, &["optimizer.safetensors", &flag.join(" ")]);
    run.resume("back", &flag).ok();
    assert_eq!(run.numbers("back"), run.numbers("whole"));
    assert!(run.tensors("back", 40) == run.tensors("whole", 40), "the weights differ");
}

/// The checkpoint with the lowest validation loss stays, and a run can go back to it.
#[test]
fn the_best_checkpoint_is_kept() {
    let run = SmallRun::new();
    let best = ["checkpoint.every=0", "checkpoint.keep_best=true", "validate.every=5"];
    let every = ["name=every", "steps=12", "checkpoint.keep_last=9"];
    run.train(&[&every[..], &best].concat()).ok();
    // Every validation of the beginning of a run is the best so far.
    assert_eq!(run.checkpoints("every"), [5, 10, 12]);

    let one = ["steps=12", "checkpoint.keep_last=1", "optimizer.schedule=constant"];
    let report = run.train(&[&one[..], &best, &["--json"]].concat()).ok().json();
    assert_eq!(run.checkpoints("small"), [12]);
    assert!(report["best_checkpoint"].as_str().unwrap().ends_with("step_00000012"));
    // A rate that spoils the model.
    let report = run.resume("small", &["steps=22", "optimizer.lr=0.5", "--json"]).ok().json();
    assert_eq!(run.checkpoints("small"), [12, 22]);
    assert!(report["best_checkpoint"].as_str().unwrap().ends_with("step_00000012"));
    let back = ["--checkpoint", "best", "optimizer.lr=3e-3", "steps=15"];
    says(&run.resume("small", &back).ok(), &["resumes from step 12", "step_00000022"]);
    assert_eq!(run.checkpoints("small"), [15]);
    let lr = run.metrics("small")[14]["lr"].as_f64().unwrap();
    assert_eq!(lr, 3e-3);
}

/// Weights of a Hugging Face directory are the start of a new run.
#[test]
fn a_run_starts_from_weights() {
    let run = SmallRun::new();
    run.train(&["name=first"]).ok();
    let weights = run.checkpoint("first", 40);
    let from = format!("init_from={}", weights.display());
    // So small a rate changes no weight.
    let still = ["name=still", "precision=f32", "steps=1", "optimizer.lr=1e-30", &from];
    let started = run.train(&still).ok();
    says(&started, &["starts from the weights of", "step_00000040"]);
    assert!(run.tensors("still", 1)[0] == run.tensors("first", 40)[0], "the weights differ");
    // It goes on without them.
    run.train(&["name=second", "steps=4", "checkpoint.every=2", &from]).ok();
    let loss = |name: &str, n: usize| run.metrics(name)[n - 1]["loss"].as_f64().unwrap();
    assert!(loss("second", 1) < loss("first", 1) - 0.5);
    fs::rename(&weights, run.dir.path().join("moved")).unwrap();
    run.resume("second", &["steps=6"]).ok();

    let moved = format!("init_from={}", run.dir.path().join("moved").display());
    let other = ["name=third", "model.n_heads=8", "model.hidden_dim=64", &moved];
    run.train(&other).fails(2, &["init_from", "model.n_heads=4", "model.hidden_dim=48"]);
    assert!(!run.run_dir("third").join("config.yaml").exists());
    run.train(&["name=third", "init_from=/nonexistent"]).fails(1, &["/nonexistent"]);
    // A run stands for its newest checkpoint.
    let newest = format!("init_from={}", run.run_dir("second").display());
    let started = run.train(&["name=newest", "steps=1", &newest]).ok();
    says(&started, &["starts from the weights of", "second/checkpoints/step_00000006"]);
    // A directory of someone else's has no checksums, and a tokenizer that may be another.
    let foreign = run.dir.path().join("moved");
    fs::remove_file(foreign.join("state.json")).unwrap();
    fs::remove_file(foreign.join("DONE")).unwrap();
    run.train(&["name=third", "steps=1", &moved]).ok();
    // Its weights may be in shards.
    fs::rename(foreign.join("model.safetensors"), foreign.join("model-1.safetensors")).unwrap();
    let bytes = fs::read(foreign.join("model-1.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let names = tensors.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let shard_of: serde_json::Map<_, _> =
        names.map(|name| (name.clone(), "model-1.safetensors".into())).collect();
    let index = serde_json::json!({ "weight_map": shard_of }).to_string();
    fs::write(foreign.join("model.safetensors.index.json"), index).unwrap();
    let shards = [&still[1..4], &["name=shards", &moved]].concat();
    run.train(&shards).ok();
    assert!(run.tensors("shards", 1)[0] == run.tensors("still", 1)[0], "the weights differ");
    let model = foreign.join("tokenizer.model");
    let mut bytes = fs::read(&model).unwrap();
    // An unknown field at the end: SentencePiece reads the same pieces from other bytes.
    bytes.extend([0xf8, 0x7f, 0x01]);
    fs::write(&model, bytes).unwrap();
    run.train(&["name=fourth", &moved]).fails(2, &["init_from", "tokenizer.model"]);
}
