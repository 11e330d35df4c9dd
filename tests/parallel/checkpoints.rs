//! Checkpoints of several ranks: read by other ranks, written by one or several, whole or absent.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{run_ok, train};
use crate::harness::{Finished, SmallRun};

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

/// Files of tensors in a checkpoint.
fn tensor_files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name.contains("safetensors"));
    names.sort();
    names
}

/// The tensors of a checkpoint, by name, whatever files they are in.
fn tensors_by_name(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for name in tensor_files(dir).iter().filter(|name| name.ends_with("safetensors")) {
        let bytes = fs::read(dir.join(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        all.extend(file.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())));
    }
    all.sort();
    all
}

/// Several ranks write a file each, with the tensors that one rank would write; any layout and every command
/// reads them.
#[test]
fn several_ranks_write_a_checkpoint() {
    let run = SmallRun::new();
    let settings = ["steps=4", "checkpoint.every=2", "validate.every=0"];
    let several = ["--ranks", "4", "parallel.file_bytes=150000"];
    for (name, layout) in [
        ("gradients", &["parallel.shard=gradients"][..]),
        ("none", &["parallel.shard=none"]),
        ("split", &["parallel.tensor=2"]),
        ("heads", &["parallel.tensor=4", "parallel.shard=gradients"]),
    ] {
        let whole = [&settings[..], layout, &["--ranks", "4"]].concat();
        let one = format!("one_{name}");
        train(&run, &format!("name={one}"), &whole).ok();
        train(&run, &format!("name={name}"), &[&settings[..], layout, &several].concat()).ok();
        let [one, other] = [one.as_str(), name].map(|name| run.checkpoint(name, 4));
        assert_eq!(tensor_files(&one), ["model.safetensors", "optimizer.safetensors"]);
        let files = tensor_files(&other);
        assert!(files.contains(&"model.safetensors.index.json".to_owned()), "{files:?}");
        assert!(files.contains(&"model-00002-of-00004.safetensors".to_owned()), "{files:?}");
        assert!(files.contains(&"optimizer-00004-of-00004.safetensors".to_owned()), "{files:?}");
        assert_eq!(files.len(), 10, "{files:?}");
        assert!(tensors_by_name(&one) == tensors_by_name(&other), "{name}");
    }
    let model = run.checkpoint("gradients", 4);
    run_ok(&["generate", "--checkpoint", model.to_str().unwrap(), "--prompt", "The"]);
    // Other layouts go on from it bit for bit, and one rank writes one file again.
    let longer = ["steps=6", "optimizer.decay_steps=4"];
    for (name, layout) in [
        ("one_gradients", &["--ranks", "4"][..]),
        ("gradients", &["--ranks", "2", "parallel.shard=parameters"]),
    ] {
        run.resume(name, &[&longer[..], layout].concat()).ok();
    }
    let [one, other] = ["one_gradients", "gradients"].map(|name| run.checkpoint(name, 6));
    assert!(tensors_by_name(&one) == tensors_by_name(&other));
    run.resume("gradients", &["steps=7", "parallel.file_bytes=4294967296"]).ok();
    let files = tensor_files(&run.checkpoint("gradients", 7));
    assert_eq!(files, ["model.safetensors", "optimizer.safetensors"]);
    // A part that was altered is found before the run goes on.
    let part = run.checkpoint("split", 4).join("optimizer-00003-of-00004.safetensors");
    let mut bytes = fs::read(&part).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&part, bytes).unwrap();
    run.resume("split", &["--ranks", "4", "steps=6"]).fails(1, &["optimizer-00003-of-00004"]);
}

/// A file that one rank of several cannot write: all hear of the rank and the file, and there is no checkpoint.
#[test]
fn a_full_disk_on_one_of_several_writers_is_named() {
    let run = SmallRun::new();
    let two = ["steps=2", "checkpoint.every=2", "validate.every=0", "parallel.file_bytes=900000"];
    train(&run, "name=full", &[&two[..], &["--ranks", "4"]].concat()).ok();
    let before = tensors_by_name(&run.checkpoint("full", 2));
    // Room for all files but the largest.
    let dir = run.checkpoint("full", 2);
    let mut sizes: Vec<(u64, String)> = tensor_files(&dir)
        .into_iter()
        .map(|name| (fs::metadata(dir.join(&name)).unwrap().len(), name))
        .collect();
    sizes.sort();
    let ((second, _), (largest, name)) = (&sizes[sizes.len() - 2], &sizes[sizes.len() - 1]);
    let blocks = second.div_ceil(512);
    assert!(blocks * 512 < *largest, "{sizes:?}");
    let numbers: Vec<usize> = name.split(['-', '.']).filter_map(|part| part.parse().ok()).collect();
    let [number, count] = numbers[..] else { panic!("{sizes:?}") };
    let resumed = run.resume_command("full", &["--ranks", "4", "steps=4"]);
    let checkpoints = run.run_dir("full").join("checkpoints");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("ulimit -f {blocks}; exec \"$0\" \"$@\""));
    shell.arg(resumed.get_program()).args(resumed.get_args());
    let finished: Finished = shell.env("RUST_BACKTRACE", "0").output().unwrap().into();
    let rank = format!("rank {} (host ", (number - 1) * 4 / count);
    let words = ["step 4 was not saved", "step_00000002 is intact", &rank, name];
    let stderr = finished.fails(1, &words).stderr;
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    assert_eq!(run.checkpoints("full"), [2]);
    assert_eq!(fs::read_dir(checkpoints).unwrap().count(), 1);
    assert!(tensors_by_name(&run.checkpoint("full", 2)) == before);
    run.resume("full", &["--ranks", "2", "steps=4"]).ok();
}
