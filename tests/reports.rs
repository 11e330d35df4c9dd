//! What a run reports beside its losses: `mfu`, wall-clock time, the validation before the first step,
//! event files for TensorBoard.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Finished, SmallRun, altiplano, repository};

#[test]
fn every_step_has_a_time_and_a_share_of_the_peak() {
    let small = SmallRun::new();
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_secs_f64()
    };
    let before = now();
    small.train(&["steps=6", "checkpoint.every=3"]).ok();
    // A resumed run reports them too.
    fs::remove_dir_all(small.checkpoint("small", 6)).unwrap();
    small.resume("small", &[]).ok();
    let lines = small.metrics("small");
    assert_eq!(lines.len(), 6);
    let mut last = before;
    for line in &lines {
        let mfu = line["mfu"].as_f64().unwrap();
        assert!(mfu > 0.0 && mfu <= 1.0, "{line}");
        let time = line["wall_time"].as_f64().unwrap();
        assert!(time >= last, "{time} after {last}");
        last = time;
    }
    assert!(last <= now());
}

/// The measured peak is kept for the next run, and a run does without where it cannot be.
#[test]
fn the_measured_peak_is_kept_where_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, cache: &Path| {
        let mut command = altiplano();
        command.arg("train").arg(repository("configs/train/debug.yaml"));
        command.arg(format!("output={}", folder.path().display())).arg(format!("name={name}"));
        command.env("XDG_CACHE_HOME", cache);
        Finished::from(command.output().unwrap()).ok();
        let text = fs::read_to_string(folder.path().join(name).join("metrics.jsonl")).unwrap();
        let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(line["mfu"].as_f64().unwrap() > 0.0, "{line}");
    };
    let cache = folder.path().join("cache");
    let file = cache.join("altiplano/peak_flops.json");
    let kept = || -> BTreeMap<String, Value> {
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap()
    };
    for runs in 1..=2 {
        train(&format!("run{runs}"), &cache);
        let kept = kept();
        let (key, measured) = kept.first_key_value().unwrap();
        assert!(kept.len() == 1 && key.contains("cpu, f32"), "{kept:?}");
        assert_eq!(measured["measurements"], runs);
    }
    // After enough measurements the best of them counts.
    let far_too_high = 1e17;
    let mut peaks = kept();
    for measured in peaks.values_mut() {
        *measured = serde_json::json!({"flops_per_second": far_too_high, "measurements": 100});
    }
    fs::write(&file, serde_json::to_vec(&peaks).unwrap()).unwrap();
    train("cached", &cache);
    assert_eq!(kept(), peaks);
    let text = fs::read_to_string(folder.path().join("cached/metrics.jsonl")).unwrap();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["mfu"].as_f64().unwrap() < 1e-4, "{line}");
    }
    let no_folder = folder.path().join("a file");
    fs::write(&no_folder, "").unwrap();
    train("homeless", &no_folder);
}

#[test]
fn a_validation_comes_before_the_first_step() {
    let small = SmallRun::new();
    let shown = small.train(&["steps=4", "validate.every=2", "checkpoint.every=2"]).ok().stderr;
    assert!(shown.contains("before the first step, validation: loss"), "{shown}");
    let lines = small.metrics_lines("small");
    assert_eq!(lines.len(), 5);
    let initial = &lines[0];
    assert_eq!((&initial["step"], &initial["tokens"]), (&0.into(), &0.into()));
    assert!(initial.get("loss").is_none() && initial.get("lr").is_none(), "{initial}");
    let loss = initial["val_loss"].as_f64().unwrap();
    assert!((loss - 400f64.ln()).abs() < 0.2, "{loss}");
    assert!(initial["val_loss_per_source"]["books"].as_f64().unwrap() > 0.0);
    assert!(initial["wall_time"].as_f64().unwrap() <= lines[1]["wall_time"].as_f64().unwrap());
    // It stays through a resume, and is not done again.
    fs::remove_dir_all(small.checkpoint("small", 4)).unwrap();
    let shown = small.resume("small", &[]).ok().stderr;
    assert!(!shown.contains("before the first step"), "{shown}");
    assert_eq!(small.metrics_lines("small")[0], *initial);
    // Without validations there is none.
    small.train(&["name=none", "steps=1", "validate.every=0"]).ok();
    assert_eq!(small.metrics_lines("none").len(), 1);
}

/// What the events of a file say.
#[derive(Debug, PartialEq)]
enum Event {
    Version(String),
    Start { step: u64 },
    Scalars { step: u64, wall_time: f64, values: BTreeMap<String, f32> },
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// The records of an event file, lengths and data held against their checksums.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let check = |bytes: &[u8], crc: &[u8]| {
        let masked = crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(crc, masked.to_le_bytes(), "{}", path.display());
    };
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[..];
    let mut records = Vec::new();
    while !rest.is_empty() {
        check(&rest[..8], &rest[8..12]);
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let data = &rest[12..12 + length];
        check(data, &rest[12 + length..16 + length]);
        records.push(data.to_vec());
        rest = &rest[16 + length..];
    }
    records
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// The fields of a protobuf message with their bytes; a varint is its eight bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (field, rest) = bytes.split_at(length);
        fields.push((key >> 3, field.to_vec()));
        bytes = rest;
    }
    fields
}

fn event(bytes: &[u8]) -> Event {
    let all: BTreeMap<u64, Vec<u8>> = fields(bytes).into_iter().collect();
    let number = |field: &Vec<u8>| u64::from_le_bytes(field[..].try_into().unwrap());
    let step = all.get(&2).map_or(0, number);
    if let Some(version) = all.get(&3) {
        return Event::Version(String::from_utf8(version.clone()).unwrap());
    }
    if let Some(session) = all.get(&7) {
        assert_eq!(
            fields(session),
            [(1, 1u64.to_le_bytes().to_vec())],
            "not the start of a session"
        );
        return Event::Start { step };
    }
    let mut values = BTreeMap::new();
    for (number, value) in fields(&all[&5]) {
        assert_eq!(number, 1);
        let value: BTreeMap<u64, Vec<u8>> = fields(&value).into_iter().collect();
        let tag = String::from_utf8(value[&1].clone()).unwrap();
        values.insert(tag, f32::from_le_bytes(value[&2][..].try_into().unwrap()));
    }
    Event::Scalars { step, wall_time: f64::from_bits(number(&all[&1])), values }
}

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.display().to_string().contains("tfevents")).collect();
    files.sort();
    files
}

/// What TensorBoard shows of the files of a run: a session that starts at a step voids what was there
/// from that step on.
fn shown(files: &[PathBuf]) -> BTreeMap<u64, (f64, BTreeMap<String, f32>)> {
    let mut shown = BTreeMap::new();
    for file in files {
        let mut events = records(file).into_iter().map(|record| event(&record));
        assert_eq!(events.next(), Some(Event::Version("brain.Event:2".into())));
        for event in events {
            match event {
                Event::Version(version) => panic!("{version} twice"),
                Event::Start { step } => shown.retain(|known, _| *known < step),
                Event::Scalars { step, wall_time, values } => {
                    assert!(shown.insert(step, (wall_time, values)).is_none(), "step {step} twice");
                }
            }
        }
    }
    shown
}

/// Event files say what `metrics.jsonl` says, through a resume from an older checkpoint, and when they
/// are asked for in the middle of a run only.
#[test]
fn event_files_say_what_the_metrics_say() {
    let small = SmallRun::new();
    let data = format!("eval.data={}", repository("tests/fixtures/eval_tasks").display());
    let eval = ["eval.tasks=[piqa]", "eval.every=5", data.as_str()];
    let common = ["steps=12", "checkpoint.every=4", "validate.every=6"];
    let common = [&common[..], &eval].concat();
    small.train(&[&["name=events", "metrics.tensorboard=true"], &common[..]].concat()).ok();
    small.train(&[&["name=later"], &common[..]].concat()).ok();
    assert_eq!(event_files(&small.run_dir("later")), Vec::<PathBuf>::new());
    for name in ["events", "later"] {
        fs::remove_dir_all(small.checkpoint(name, 12)).unwrap();
    }
    small.resume("events", &[]).ok();
    small.resume("later", &["metrics.tensorboard=true"]).ok();
    for (name, files) in [("events", 2), ("later", 1)] {
        let found = event_files(&small.run_dir(name));
        assert_eq!(found.len(), files, "{found:?}");
        let shown = shown(&found);
        let lines = small.metrics_lines(name);
        assert_eq!(shown.len(), lines.len());
        for (line, (step, (wall_time, values))) in lines.iter().zip(&shown) {
            assert_eq!(line["step"], *step);
            assert_eq!(line["wall_time"], *wall_time);
            let mut expected = BTreeMap::new();
            let mut expect = |tag: &str, value: &Value| {
                if let Some(value) = value.as_f64() {
                    expected.insert(tag.to_string(), value as f32);
                }
            };
            for key in ["loss", "lr", "grad_norm", "tokens"] {
                expect(&format!("train/{key}"), &line[key]);
            }
            for key in
                ["tokens_per_second", "mfu", "step_seconds", "data_seconds", "peak_memory_bytes"]
            {
                expect(&format!("speed/{key}"), &line[key]);
            }
            expect("validation/loss", &line["val_loss"]);
            expect("validation/bits_per_byte", &line["bits_per_byte"]);
            for source in ["books", "speeches"] {
                expect(&format!("validation_loss/{source}"), &line["val_loss_per_source"][source]);
                let bits = &line["bits_per_byte_per_source"][source];
                expect(&format!("validation_bits_per_byte/{source}"), bits);
            }
            expect("eval/piqa/acc", &line["eval"]["piqa/acc"]);
            expect("speed/eval_seconds", &line["eval_seconds"]);
            if *step == 0 {
                expected.remove("train/tokens");
            }
            assert_eq!(*values, expected, "step {step}");
        }
    }
    // The second file begins where the first was left for good.
    let second = records(&event_files(&small.run_dir("events"))[1]);
    assert_eq!(event(&second[1]), Event::Start { step: 9 });
}
