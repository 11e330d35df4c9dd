//! Devices beside `cpu`: what is listed, runs that give the CPU's numbers, checkpoints that move.

use std::fs;

use altiplano_model::device::select;
use burn::tensor::DType;
use serde_json::Value;

use crate::harness::{SmallRun, copy_dir, corpus, run};
use crate::numeric::{on_device, precisions};

/// Instantiates test bodies for the devices that are not the CPU's. A body takes the name.
macro_rules! other_device_test {
    ($($name:ident),+ $(,)?) => {
        other_device_test!(@module tch "tch" $($name)+);
        other_device_test!(@module tch_cuda "tch:cuda" $($name)+);
        other_device_test!(@module wgpu "wgpu" $($name)+);
        other_device_test!(@module cuda "cuda" $($name)+);
    };
    (@module $module:ident $device:literal $($name:ident)+) => {
        mod $module {
            $(#[test]
            fn $name() {
                crate::devices::on_device($device, |_| super::$name($device));
            })+
        }
    };
}

other_device_test!(
    losses_are_those_of_the_cpu,
    policies_agree_bit_for_bit,
    resume_is_bit_for_bit,
    checkpoints_move_to_and_from_the_cpu,
    documents_can_be_kept_apart,
);

#[test]
fn devices_are_listed_with_what_they_lack() {
    let listed = run(["devices", "--json"]).ok();
    let devices = listed.json()["devices"].clone();
    let of = |name: &str| -> Value {
        let found = devices.as_array().unwrap().iter().find(|device| device["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {devices}")).clone()
    };
    assert_eq!(of("cpu")["usable"], true);
    assert!(of("cpu")["detail"].as_str().unwrap().contains("thread"), "{devices}");
    for device in devices.as_array().unwrap() {
        let (name, detail) = (device["name"].as_str().unwrap(), device["detail"].as_str().unwrap());
        assert!(listed.stdout.contains(detail), "{name} is not in the table");
        if device["usable"] == true {
            continue;
        }
        // A run on it fails in the words of the list, before it makes its folder.
        let small = SmallRun::new();
        let asked = format!("device={name}");
        small.train(&[&asked]).fails(2, &[name, detail]);
        assert!(!small.run_dir("small").exists());
    }
    let built_in = cfg!(feature = "tch");
    assert_eq!(of("tch")["usable"], built_in);
    if !built_in {
        assert!(of("tch")["detail"].as_str().unwrap().contains("--features tch"), "{devices}");
    }
    SmallRun::new().train(&["device=gpu"]).fails(2, &["\"gpu\"", "altiplano devices"]);
}

fn losses(run: &SmallRun, name: &str) -> Vec<f64> {
    run.metrics(name).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

/// A run from the same seed as on the CPU in f32: in f32 nearly the same losses to the end, in
/// bf16 losses that differ by what its rounding explains. (Seen on `tch`: 4e-8 and 6e-4.)
fn losses_are_those_of_the_cpu(device: &str) {
    let run = SmallRun::new();
    let on = format!("device={device}");
    let shared = ["steps=200", "checkpoint.every=0", "validate.every=0", "threads=1"];
    let train = |name: &str, device: &str, precision: &str| {
        let own = [format!("name={name}"), device.to_string(), format!("precision={precision}")];
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        run.train(&[&own[..], &shared].concat()).ok();
        losses(&run, name)
    };
    let cpu = train("cpu", "device=cpu", "f32");
    let mut runs = vec![("f32", 1e-4)];
    if select(device).unwrap().supports_dtype(DType::BF16) {
        runs.push(("bf16", 5e-3));
    }
    for (precision, tolerance) in runs {
        let there = train(precision, &on, precision);
        assert_eq!(there.len(), cpu.len());
        for (step, (x, y)) in there.iter().zip(&cpu).enumerate() {
            let error = (x - y).abs() / y;
            assert!(error < tolerance, "{precision}, step {}: {x}, on the CPU {y}", step + 1);
        }
        let largest = there.iter().zip(&cpu).map(|(x, y)| (x - y).abs() / y).fold(0.0, f64::max);
        assert!(largest > 0.0, "two devices never round alike: was it the CPU twice?");
    }
}

fn policies_agree_bit_for_bit(device: &str) {
    let run = SmallRun::new();
    let on = format!("device={device}");
    // bf16 where the device has it.
    let precision = precisions(&select(device).unwrap()).last().unwrap();
    let precision = format!("precision={precision:?}").to_lowercase();
    for policy in ["none", "selective", "full"] {
        let own = [format!("name={policy}"), format!("activation_checkpointing={policy}")];
        run.train(&[&own[0], &own[1], &on, &precision, "steps=12", "threads=2"]).ok();
        assert_eq!(run.numbers(policy), run.numbers("none"), "{policy}");
        assert!(run.tensors(policy, 12) == run.tensors("none", 12), "{policy}: the weights differ");
    }
}

/// The run `from` as it was after `step`, under the name `to`.
fn as_of_step(run: &SmallRun, from: &str, to: &str, step: u64) {
    copy_dir(&run.run_dir(from), &run.run_dir(to));
    for later in (step + 10..=40).step_by(10) {
        fs::remove_dir_all(run.checkpoint(to, later)).unwrap();
    }
}

/// A run of 40 steps with all its checkpoints, on one device.
fn whole_run(run: &SmallRun, name: &str, device: &str, threads: usize) {
    let own = [format!("name={name}"), format!("device={device}"), format!("threads={threads}")];
    run.train(&[&own[0], &own[1], &own[2], "precision=f32", "checkpoint.keep_last=9"]).ok();
}

fn resume_is_bit_for_bit(device: &str) {
    let run = SmallRun::new();
    whole_run(&run, "whole", device, 2);
    as_of_step(&run, "whole", "resumed", 20);
    run.resume("resumed", &[]).ok();
    assert_eq!(run.numbers("resumed"), run.numbers("whole"));
    assert!(run.tensors("resumed", 40) == run.tensors("whole", 40), "the weights differ");
}

/// Half the steps on one device and half on the other, both ways, end at the same loss; and the
/// checkpoint says the same on both.
fn checkpoints_move_to_and_from_the_cpu(device: &str) {
    let run = SmallRun::new();
    whole_run(&run, "here", "cpu", 1);
    whole_run(&run, "there", device, 1);
    for (from, to) in [("here", device), ("there", "cpu")] {
        let moved = format!("{from}_moved");
        as_of_step(&run, from, &moved, 20);
        run.resume(&moved, &[&format!("device={to}")]).ok();
        let (moved, stayed) = (losses(&run, &moved), losses(&run, from));
        assert_eq!(moved.len(), 40);
        assert_eq!(moved[..20], stayed[..20]);
        for (x, y) in moved[20..].iter().zip(&stayed[20..]) {
            assert!((x - y).abs() < 1e-4 * y, "{from} to {to}: {x} and {y}");
        }
    }

    let checkpoint = run.checkpoint("there", 40);
    // The smallest source: a GPU in software takes its time.
    let documents = corpus().join("documents/early");
    let evaluate = |device: &str| {
        let arguments = ["eval", "--json", "--threads", "1", "--device", device, "--checkpoint"];
        let paths = [checkpoint.to_str().unwrap(), "--documents", documents.to_str().unwrap()];
        run_json(&[&arguments[..], &paths].concat())["loss"].as_f64().unwrap()
    };
    let (here, there) = (evaluate("cpu"), evaluate(device));
    assert!((here - there).abs() < 1e-5 * here, "{here} and {there}");
    let generate = |device: &str| {
        let prompt = ["--prompt", "The whale", "--temperature", "0", "--max-tokens", "20"];
        let arguments =
            ["generate", "--json", "--threads", "1", "--device", device, "--checkpoint"];
        let path = [checkpoint.to_str().unwrap()];
        run_json(&[&arguments[..], &path, &prompt].concat())["token_ids"].clone()
    };
    assert_eq!(generate("cpu"), generate(device));
}

fn run_json(arguments: &[&str]) -> Value {
    run(arguments).ok().json()
}

/// Packed documents take another path through attention than plain causality.
fn documents_can_be_kept_apart(device: &str) {
    let run = SmallRun::new();
    let early = format!("data.sources.0.path={}", corpus().join("tokens/early").display());
    let shared = [&early, "document_mask=true", "precision=f32", "threads=1"];
    let train = |name: &str, device: &str| {
        let own = [format!("name={name}"), format!("device={device}")];
        run.train(&[&[own[0].as_str(), own[1].as_str()], &shared[..]].concat()).ok();
        losses(&run, name)
    };
    for (x, y) in train("there", device).iter().zip(train("here", "cpu")) {
        assert!((x - y).abs() < 1e-4 * y, "{x} and {y}");
    }
}
