//! A save that is killed, that fails, and that is altered afterwards.

use super::super::{latest, lock, recover, verify, verify_files};
use super::*;

fn state(step: u64) -> TrainState {
    TrainState {
        step,
        tokens: step * 1024,
        loader: serde_json::json!({"drawn": u64::MAX, "epoch": [1, 2]}),
        config: serde_json::json!({"optimizer": {"lr": 0.1 + 0.2}}),
        loss_window: Default::default(),
        grad_norm_window: Default::default(),
        last_step: Default::default(),
    }
}

/// Files that differ from save to save.
fn write(version: u8) -> impl FnOnce(&mut CheckpointFiles) -> Result<()> {
    move |files| {
        files.write_bytes("model.safetensors", &[version; 3000])?;
        files.write_bytes("config.json", &[version; 20])
    }
}

fn entries(run: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(checkpoints_dir(run))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_saved_state_comes_back_exactly() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), &state(7), write(1)).unwrap();
    assert!(dir.ends_with("checkpoints/step_00000007"));
    assert_eq!(verify(&dir).unwrap(), state(7));
    assert_eq!(entries(run.path()), ["step_00000007"]);
    verify_files(&dir, &["model.safetensors"]).unwrap();
    assert!(verify_files(&dir, &["optimizer.safetensors"]).is_err());
}

/// What a kill leaves at each stage, taken as a copy of the directory at that moment.
fn snapshots(
    run: &Path,
    state: &TrainState,
    write_files: impl FnOnce(&mut CheckpointFiles) -> Result<()>,
) -> Vec<(Stage, tempfile::TempDir)> {
    let mut taken = Vec::new();
    save_observed(run, state, write_files, &mut |stage| {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(run, copy.path());
        taken.push((stage, copy));
    })
    .unwrap();
    taken
}

#[test]
fn a_kill_at_any_stage_leaves_the_previous_or_the_new_checkpoint_whole() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), &state(1), write(1)).unwrap();
    let taken = snapshots(run.path(), &state(2), write(2));
    assert_eq!(taken.len(), 5);
    for (stage, run) in taken {
        let before = latest(run.path()).unwrap();
        recover(run.path(), &lock(run.path()).unwrap()).unwrap();
        let newest = latest(run.path()).unwrap();
        assert_eq!(before, newest, "{stage:?}");
        let expected = if stage >= Stage::Renamed { 2 } else { 1 };
        assert_eq!(verify(&newest).unwrap(), state(expected), "{stage:?}");
        assert_eq!(entries(run.path()).len() as u64, expected, "{stage:?}");
        // The run goes on and saves the step again.
        let again = save(run.path(), &state(2), write(3)).unwrap();
        assert_eq!(verify(&again).unwrap(), state(2), "{stage:?}");
        assert_eq!(fs::read(again.join("config.json")).unwrap(), [3; 20]);
    }
}

#[test]
fn a_kill_while_replacing_leaves_one_of_the_two() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), &state(1), write(1)).unwrap();
    let taken = snapshots(run.path(), &state(1), write(2));
    assert_eq!(taken.len(), 7);
    for (stage, run) in taken {
        recover(run.path(), &lock(run.path()).unwrap()).unwrap();
        let newest = latest(run.path()).unwrap();
        verify(&newest).unwrap();
        let content = fs::read(newest.join("config.json")).unwrap();
        let expected = if stage >= Stage::Renamed { [2; 20] } else { [1; 20] };
        assert_eq!(content, expected, "{stage:?}");
        assert_eq!(entries(run.path()), ["step_00000001"], "{stage:?}");
    }
}

#[test]
fn a_failing_writer_leaves_the_old_checkpoint_and_nothing_else() {
    let run = tempfile::tempdir().unwrap();
    let first = save(run.path(), &state(1), |_| Err(TrainerError::Usage { message: "x".into() }));
    assert!(first.unwrap_err().to_string().contains("none before"));
    assert!(entries(run.path()).is_empty());

    let old = save(run.path(), &state(1), write(1)).unwrap();
    let error = save(run.path(), &state(2), |files| {
        write(2)(files)?;
        // Writing here always fails with "no space left on device".
        let full = Path::new("/dev/full");
        fs::write(full, [0; 64]).map_err(TrainerError::io(full))
    })
    .unwrap_err();
    assert!(error.to_string().contains("step_00000001 is intact"), "{error}");
    assert_eq!(entries(run.path()), ["step_00000001"]);
    verify(&old).unwrap();
}

const LIMITED_RUN: &str = "ALTIPLANO_TEST_LIMITED_RUN";

/// Runs in a process of its own, started by the test below: the limit holds for a whole process.
#[test]
fn limited_process_saves() {
    let Some(run) = std::env::var_os(LIMITED_RUN) else {
        return;
    };
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: plain system calls on values that outlive them. Ignoring SIGXFSZ turns a write
    // beyond the limit into an error.
    let status = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
    };
    assert_eq!(status, 0);
    // The writer's file is small enough: it is state.json that does not fit.
    let write = |files: &mut CheckpointFiles| files.write_bytes("config.json", &[2; 20]);
    let error = save(Path::new(&run), &state(2), write).unwrap_err();
    let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    std::process::exit(if chain.contains("state.json") { 77 } else { 1 });
}

#[test]
fn a_disk_that_fills_up_while_saving_leaves_the_old_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    let old = save(run.path(), &state(1), write(1)).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::save::tests::limited_process_saves", "--nocapture"])
        .env(LIMITED_RUN, run.path())
        .output()
        .unwrap();
    assert_eq!(child.status.code(), Some(77), "{}", String::from_utf8_lossy(&child.stdout));
    assert_eq!(entries(run.path()), ["step_00000001"]);
    assert_eq!(latest(run.path()).unwrap(), old);
    verify(&old).unwrap();
}

#[test]
fn every_altered_file_is_named() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), &state(1), write(1)).unwrap();
    let message = |dir: &Path| verify(dir).unwrap_err().to_string();
    for name in ["model.safetensors", "config.json", "state.json"] {
        let path = dir.join(name);
        let original = fs::read(&path).unwrap();

        let mut flipped = original.clone();
        flipped[10] ^= 1;
        fs::write(&path, &flipped).unwrap();
        let found = message(&dir);
        assert!(found.contains(name) && found.contains("altered"), "{found}");

        fs::write(&path, &original[..original.len() / 2]).unwrap();
        let found = message(&dir);
        assert!(found.contains(name) && found.contains("truncated"), "{found}");

        fs::remove_file(&path).unwrap();
        assert!(message(&dir).contains(name));
        fs::write(&path, &original).unwrap();
        verify(&dir).unwrap();
    }
    fs::remove_file(dir.join(DONE_FILE)).unwrap();
    assert!(message(&dir).contains("not finished"));
    assert!(latest(run.path()).is_err());
}

#[test]
fn another_version_is_refused_by_its_number() {
    let run = tempfile::tempdir().unwrap();
    let dir = save(run.path(), &state(1), write(1)).unwrap();
    let path = dir.join(STATE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"format_version\": 2", "\"format_version\": 99, \"new\": 1");
    fs::write(&path, &text).unwrap();
    fs::write(dir.join(DONE_FILE), blake3::hash(text.as_bytes()).to_hex().as_str()).unwrap();
    let error = verify(&dir).unwrap_err().to_string();
    assert!(error.contains("version is 99") && error.contains("state.json"), "{error}");
}
