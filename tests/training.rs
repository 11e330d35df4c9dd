//! Training runs: they learn, they repeat, they do not grow.

use std::collections::HashSet;
use std::fs;

use altiplano_data::Batch;
use altiplano_model::param_tree::Leaf;
use altiplano_model::{LlamaConfig, Precision};
use altiplano_trainer::config::TrainConfig;
use altiplano_trainer::train_step::Trainer;
use burn::tensor::{Device, TensorData};
use serde_json::json;

use crate::harness::{SmallRun, corpus};
use crate::numeric::{tiny_config, uniform};

fn config(precision: Precision, model: &LlamaConfig) -> TrainConfig {
    serde_json::from_value(json!({
        "name": "test",
        "precision": precision,
        "model": model,
        "data": "random",
        "batch": { "micro_batch": 4, "seq_len": 24 },
        "steps": 150,
        "optimizer": { "lr": 1e-2, "warmup_steps": 1, "weight_decay": 0.0 },
    }))
    .unwrap()
}

fn trainer(config: &TrainConfig) -> Trainer {
    Trainer::start(config, &Device::flex()).unwrap()
}

fn master_weights(trainer: &Trainer) -> Vec<TensorData> {
    trainer.master_weights().iter().map(|(_, weight)| weight.to_data()).collect()
}

fn batch(rows: usize, time: usize, vocabulary: i32) -> Batch {
    let ids: Vec<i32> = uniform(rows * (time + 1), 3)
        .iter()
        .map(|x| ((x + 1.0) / 2.0 * f64::from(vocabulary)) as i32)
        .collect();
    let row = |offset: usize| -> Vec<i32> {
        (0..rows).flat_map(|r| ids[r * (time + 1) + offset..][..time].to_vec()).collect()
    };
    Batch {
        batch_size: rows,
        seq_len: time,
        inputs: row(0),
        targets: row(1),
        first_visible: vec![0; rows * time],
        origins: Vec::new(),
    }
}

/// Random tokens can only be learnt by heart, through every layer.
#[test]
fn one_batch_is_learnt_by_heart() {
    for precision in [Precision::F32, Precision::Bf16] {
        let config = config(precision, &LlamaConfig { init_std: 0.05, ..tiny_config() });
        let mut trainer = trainer(&config);
        let batch = [batch(4, 24, 53)];
        let first = trainer.step(1, &batch, 1e-3).unwrap().loss;
        assert!((first - 53f64.ln()).abs() < 0.5, "{precision:?}: starts at {first}");
        let mut last = first;
        for step in 2..=150 {
            last = trainer.step(step, &batch, 1e-2).unwrap().loss;
        }
        assert!(last < 0.02, "{precision:?}: ends at {last}");
    }
}

#[test]
fn a_non_finite_loss_stops_before_the_update() {
    let config = config(Precision::F32, &tiny_config());
    let mut trainer = trainer(&config);
    trainer.model.weights.layers[1].up_proj =
        trainer.model.weights.layers[1].up_proj.clone() * f64::INFINITY;
    let before = master_weights(&trainer);
    let mut batch = batch(2, 24, 53);
    batch.origins = vec![Default::default(); 2];
    let error = trainer.step(7, &[batch], 1e-2).unwrap_err().to_string();
    assert!(error.contains("step 7") && error.contains("loss"), "{error}");
    assert_eq!(before, master_weights(&trainer));
}

#[test]
fn outliers_are_skipped_when_asked() {
    let mut config = config(Precision::F32, &tiny_config());
    config.skip_outliers = Some(4.0);
    let mut trainer = trainer(&config);
    let usual = [batch(4, 24, 53)];
    for step in 1..=140 {
        // A rate of zero: only the window fills, with equal losses but for the batch.
        let rows = [batch(2 + (step % 3) as usize, 24, 53)];
        assert!(!trainer.step(step, &rows, 0.0).unwrap().skipped, "step {step}");
    }
    for (_, weight) in trainer.model.weights.iter_mut() {
        if let Leaf::Matrix(matrix) = weight {
            matrix.inplace(|matrix| matrix * 3.0);
        }
    }
    let before = master_weights(&trainer);
    assert!(trainer.step(141, &usual, 1e-2).unwrap().skipped);
    assert_eq!(before, master_weights(&trainer));
}

/// Loss falls on real text; everything a run leaves is there.
#[test]
fn a_run_learns_and_leaves_its_files() {
    let run = SmallRun::new();
    let report = run.train(&["name=learns"]).ok();
    assert!(report.stdout.contains("done at step 40"), "{}", report.stdout);
    let metrics = run.metrics("learns");
    assert_eq!(metrics.len(), 40);
    let loss = |n: usize| metrics[n]["loss"].as_f64().unwrap();
    assert!((loss(0) - 400f64.ln()).abs() < 0.2, "{}", loss(0));
    assert!(loss(39) < loss(0) - 0.5, "{} to {}", loss(0), loss(39));
    for key in [
        "step",
        "tokens",
        "wall_time",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "step_seconds",
        "data_seconds",
        "peak_memory_bytes",
    ] {
        assert!(metrics.iter().all(|line| line.get(key).is_some()), "{key}");
    }
    let validation = &metrics[39];
    assert!(validation["bits_per_byte"].as_f64().unwrap() > 0.0);
    assert!(validation["val_loss_per_source"]["books"].as_f64().unwrap() > 0.0);
    let dir = run.run_dir("learns");
    let svg = fs::read_to_string(dir.join("loss.svg")).unwrap();
    assert!(svg.contains("<svg") && svg.contains("validation, books"));
    assert_eq!(&fs::read(dir.join("loss.png")).unwrap()[1..4], b"PNG");
    // keep_last: 2 of the four checkpoints.
    let kept: HashSet<String> = fs::read_dir(dir.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(kept, HashSet::from(["step_00000030".into(), "step_00000040".into()]));
}

/// Same seed, same numbers: for any number of threads and readers and any checkpointing policy.
#[test]
fn numbers_do_not_depend_on_threads_readers_or_policy() {
    let run = SmallRun::new();
    let variants: [&[&str]; 4] = [
        &["threads=1", "readers=1"],
        &["threads=2", "readers=2"],
        &["threads=3", "readers=4", "activation_checkpointing=selective"],
        &["threads=7", "activation_checkpointing=full"],
    ];
    let mut all = Vec::new();
    for (n, variant) in variants.iter().enumerate() {
        let name = format!("variant{n}");
        let named = format!("name={name}");
        let overrides = [&[named.as_str(), "steps=12"], *variant].concat();
        run.train(&overrides).ok();
        all.push((run.numbers(&name), run.tensors(&name, 12)));
    }
    for other in &all[1..] {
        assert_eq!(all[0].0, other.0);
        assert!(all[0].1 == other.1, "the weights differ");
    }
    run.train(&["name=other_seed", "steps=12", "seed=2"]).ok();
    assert_ne!(all[0].0, run.numbers("other_seed"));
}

/// Text written by the model appears while it trains.
#[test]
fn samples_are_shown_when_asked() {
    let run = SmallRun::new();
    let sample = ["sample.every=6", r#"sample.prompts=["The whale"]"#, "sample.max_tokens=8"];
    let shown = run.train(&[&["name=samples", "steps=12"], &sample[..]].concat()).ok().stderr;
    for step in ["step 6: The whale", "step 12: The whale"] {
        assert!(shown.contains(step), "no {step:?} in: {shown}");
    }
}

/// Tokens that see only their own document are predicted differently, and training goes on.
#[test]
fn documents_can_be_kept_apart() {
    let run = SmallRun::new();
    // A source so small that every place where two documents meet is seen.
    let early = format!("data.sources.0.path={}", corpus().join("tokens/early").display());
    run.train(&["name=together", &early]).ok();
    run.train(&["name=apart", &early, "document_mask=true"]).ok();
    let loss = |name: &str| run.metrics(name)[39]["loss"].as_f64().unwrap();
    let (together, apart) = (loss("together"), loss("apart"));
    assert!(together != apart && (together - apart).abs() < 0.5, "{together} and {apart}");
}

/// One pass of eight sequences and four passes of two are the same step.
#[test]
fn gradient_accumulation_is_the_larger_batch() {
    let run = SmallRun::new();
    let shared = ["steps=8", "precision=f32"];
    let whole = ["name=whole", "batch.micro_batch=8", "batch.grad_accum_steps=1"];
    let split = ["name=split", "batch.micro_batch=2", "batch.grad_accum_steps=4"];
    run.train(&[&whole[..], &shared].concat()).ok();
    run.train(&[&split[..], &shared].concat()).ok();
    for (x, y) in run.metrics("whole").iter().zip(run.metrics("split")) {
        for key in ["loss", "grad_norm"] {
            let (x, y) = (x[key].as_f64().unwrap(), y[key].as_f64().unwrap());
            assert!((x - y).abs() < 1e-4 * y, "{key}: {x} and {y}");
        }
    }
}

#[test]
fn memory_stays_flat_over_200_steps() {
    let run = SmallRun::new();
    let overrides =
        ["name=flat", "steps=220", "checkpoint.every=0", "validate.every=50", "readers=2"];
    run.train(&overrides).ok();
    let metrics = run.metrics("flat");
    let peak = |n: usize| metrics[n]["peak_memory_bytes"].as_u64().unwrap();
    // The first validation after step 50 has been through every allocation of a run.
    let growth = peak(218) - peak(60);
    assert!(growth < 2 << 20, "grew by {growth} bytes from {} on", peak(60));
}
