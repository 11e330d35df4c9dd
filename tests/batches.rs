//! `altiplano data batches` writes what training sees.

use std::fs;
use std::path::Path;

use altiplano_data::shard::Shard;
use altiplano_data::{Batch, Tokenizer};
use altiplano_trainer::config::{TrainConfig, load};
use altiplano_trainer::train_step::Trainer;
use burn::tensor::Device;
use serde_json::Value;

use crate::harness::{SmallRun, corpus, repository, run};

/// Shape and numbers of a `.npy` file of little-endian i32.
fn npy(path: &Path) -> (Vec<usize>, Vec<i32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let head = std::str::from_utf8(&bytes[10..data]).unwrap();
    assert!(head.contains("'descr': '<i4', 'fortran_order': False"), "{head}");
    let (_, shape) = head.split_once("'shape': (").unwrap();
    let (shape, _) = shape.split_once(')').unwrap();
    let shape: Vec<usize> = shape.split(", ").map(|size| size.parse().unwrap()).collect();
    let ids: Vec<i32> =
        bytes[data..].chunks(4).map(|id| i32::from_le_bytes(id.try_into().unwrap())).collect();
    assert_eq!(ids.len(), shape.iter().product::<usize>());
    (shape, ids)
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(row: &Value, key: &str) -> Vec<i32> {
    row[key].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

/// The configuration of a run of 30 steps, in which the end of an epoch and targets that do not count
/// come up.
fn trained(run: &SmallRun) -> String {
    let early = format!("data.sources.0.path={}", corpus().join("tokens/early").display());
    let data = [&early, "data.sources.0.weight=20", "data.mask_document_boundary=true"];
    run.train(&[&["name=seen", "steps=30", "precision=f32"], &data[..]].concat()).ok();
    run.run_dir("seen").join("config.yaml").display().to_string()
}

/// The losses of a run are those of training on the arrays that were written, bit for bit.
#[test]
fn training_on_what_was_written_gives_the_losses_of_the_run() {
    let small = SmallRun::new();
    let file = trained(&small);
    let folder = small.dir.path().join("batches");
    run(["data", "batches", &file, "--steps", "30", "--npy", folder.to_str().unwrap()]).ok();
    let (shape, inputs) = npy(&folder.join("inputs.npy"));
    let (target_shape, targets) = npy(&folder.join("targets.npy"));
    assert_eq!((&shape[..], &target_shape[..]), (&[30, 2, 4, 64][..], &shape[..]));
    assert!(targets.contains(&-100), "no target is masked: the test shows less");

    let config: TrainConfig = load(Path::new(&file), &[]).unwrap();
    let mut trainer = Trainer::start(&config, &Device::flex()).unwrap();
    let micro_batches: Vec<Batch> = inputs
        .chunks(4 * 64)
        .zip(targets.chunks(4 * 64))
        .map(|(inputs, targets)| Batch {
            batch_size: 4,
            seq_len: 64,
            inputs: inputs.to_vec(),
            targets: targets.to_vec(),
            first_visible: vec![0; 4 * 64],
            origins: Vec::new(),
        })
        .collect();
    for (line, batches) in small.metrics("seen").iter().zip(micro_batches.chunks(2)) {
        let (step, lr) = (line["step"].as_u64().unwrap(), line["lr"].as_f64().unwrap());
        let outcome = trainer.step(step, batches, lr).unwrap();
        assert_eq!(outcome.loss, line["loss"].as_f64().unwrap(), "step {step}");
    }
}

/// From any step, in any form; and every row lies in the shard where its origin says.
#[test]
fn rows_are_the_same_from_any_step_and_lie_where_they_say() {
    let small = SmallRun::new();
    let file = trained(&small);
    let print =
        |arguments: &[&str]| run([&["data", "batches", &file], arguments].concat()).ok().stdout;
    let rows = json_lines(&print(&["--steps", "30", "--format", "jsonl"]));
    assert_eq!(rows.len(), 30 * 2 * 4);
    for (number, row) in rows.iter().enumerate() {
        let place = [&row["step"], &row["micro_batch"], &row["row"]].map(|n| n.as_u64().unwrap());
        let number = number as u64;
        assert_eq!(place, [number / 8 + 1, number / 4 % 2, number % 4]);
        let shard = Shard::open(Path::new(row["shard"].as_str().unwrap())).unwrap();
        let mut found = vec![0; 64];
        let token = row["token"].as_u64().unwrap();
        shard.read(token, &mut found).unwrap();
        assert_eq!(ids(row, "inputs"), found);
        let starts: Vec<u64> =
            shard.document_starts(token + 1, token + 64).map(|start| start - token).collect();
        assert_eq!(row["document_starts"], serde_json::json!(starts));
        for (place, target) in ids(row, "targets").into_iter().enumerate().take(63) {
            assert!(target == -100 || target == found[place + 1]);
        }
    }
    let epochs: Vec<&Value> =
        rows.iter().filter(|row| row["source"] == "early").map(|row| &row["epoch"]).collect();
    assert!(epochs.contains(&&0.into()) && epochs.contains(&&1.into()), "{epochs:?}");

    let tail = json_lines(&print(&["--from-step", "26", "--steps", "5", "--format", "jsonl"]));
    assert_eq!(tail, rows[25 * 8..]);
    let folder = small.dir.path().join("tail");
    print(&["--from-step", "26", "--steps", "5", "--npy", folder.to_str().unwrap()]);
    let (shape, inputs) = npy(&folder.join("inputs.npy"));
    assert_eq!(shape, [5, 2, 4, 64]);
    let all: Vec<i32> = tail.iter().flat_map(|row| ids(row, "inputs")).collect();
    assert_eq!(inputs, all);
    let mut origins = tail.clone();
    for row in &mut origins {
        row.as_object_mut().unwrap().retain(|key, _| key != "inputs" && key != "targets");
    }
    assert_eq!(json_lines(&fs::read_to_string(folder.join("rows.jsonl")).unwrap()), origins);

    // The text form: a line of the origin, a line of pieces.
    let text = print(&["--from-step", "30"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2 * 8);
    let tokenizer = Tokenizer::open(&corpus().join("tokenizer.model")).unwrap();
    for (row, lines) in rows[29 * 8..].iter().zip(lines.chunks(2)) {
        let origin = format!(
            "step 30, micro-batch {}, row {}: {}, epoch {}, sequence {}, {}, tokens ",
            row["micro_batch"],
            row["row"],
            row["source"].as_str().unwrap(),
            row["epoch"],
            row["sequence"],
            row["shard"].as_str().unwrap(),
        );
        assert!(lines[0].starts_with(&origin), "{} {origin}", lines[0]);
        let piece = |id: &i32| tokenizer.piece(*id as u32).unwrap().text.clone();
        let pieces: Vec<String> = ids(row, "inputs").iter().map(piece).collect();
        let shown: Vec<&str> = lines[1].split_whitespace().filter(|piece| *piece != "|").collect();
        let pieces: Vec<&str> =
            pieces.iter().map(String::as_str).filter(|piece| *piece != "|").collect();
        assert_eq!(shown, pieces);
    }
}

#[test]
fn steps_that_the_run_lacks_are_an_error_and_random_tokens_need_no_tokenizer() {
    let debug = repository("configs/train/debug.yaml");
    let debug = debug.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let npy = folder.path().to_str().unwrap();
    for (arguments, words) in [
        (&["--from-step", "0"][..], &["--from-step 0", "1 to 20"][..]),
        (&["--from-step", "21"], &["--from-step 21", "1 to 20"]),
        (&["--steps", "0", "--npy", npy], &["--steps 0"]),
        (&["--steps", "18446744073709551615"], &["1 to 20"]),
        (&["--format", "jsonl", "--npy", npy], &["--format", "--npy"]),
    ] {
        run([&["data", "batches", debug], arguments].concat()).fails(2, words);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    let text = run(["data", "batches", debug, "--from-step", "20"]).ok().stdout;
    assert!(
        text.starts_with("step 20, micro-batch 0, row 0: random, epoch 0, sequence "),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2 * 4);
}
