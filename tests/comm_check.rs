//! `altiplano comm-check`: ranks as threads, and as processes where an MPI is installed.

use std::process::Command;

use crate::harness::{altiplano, run};

#[test]
fn ranks_as_threads_agree() {
    let ran = run(["comm-check", "--ranks", "3", "--size", "300kB", "--json"]).ok();
    let json = ran.json();
    assert_eq!((&json["ranks"], &json["hosts"]), (&3.into(), &1.into()));
    assert_eq!(json["library"], "threads of one process");
    let rows = json["collectives"].as_array().unwrap();
    assert_eq!(rows.len(), 13);
    for row in rows {
        let what = row["operation"].as_str().unwrap();
        assert!(row["seconds"].as_f64().unwrap() > 0.0, "{what}");
        assert!(ran.stdout.contains(what));
    }
    let alone = run(["comm-check", "--ranks", "1", "--size", "4kB"]).ok();
    assert!(alone.stdout.starts_with("1 ranks on 1 host"), "{}", alone.stdout);
}

/// A rank of a launcher whose variables are these.
fn under_launcher(rank: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = altiplano();
    command.arg("comm-check").args(arguments);
    command.env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", rank);
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty());
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_library_that_cannot_be_used_is_named_once() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("libmpi.so.40");
    std::fs::write(&text, "no library\n".repeat(100)).unwrap();
    let text = text.to_str().unwrap();
    for library in [text, "/nonexistent/libmpi.so.40"] {
        let (status, error) = under_launcher("0", &["--library", library]);
        assert_eq!(status, Some(2), "{error}");
        assert!(error.contains("parallel.library") && error.contains(library), "{error}");
        // Every rank finds it, the first says it.
        assert_eq!(under_launcher("1", &["--library", library]), (Some(2), String::new()));
    }
    let (status, error) = under_launcher("2", &[]);
    assert_eq!(status, Some(2));
    assert!(error.contains("OMPI_COMM_WORLD_RANK=\"2\""), "{error}");
    let (status, error) = under_launcher("0", &["--ranks", "3"]);
    assert_eq!(status, Some(2));
    assert!(error.contains("--ranks 3, but Open MPI's launcher"), "{error}");
}

/// Under `mpirun` of `PATH`, or of the first of `MPI_LAUNCHERS`.
#[test]
fn ranks_as_processes_agree() {
    let named = std::env::var_os("MPI_LAUNCHERS").unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    let Some(launcher) = named.chain(["mpirun".into()]).find(|launcher| {
        Command::new(launcher).arg("--version").output().is_ok_and(|output| output.status.success())
    }) else {
        eprintln!("skipped: comm-check under mpirun (not found; scripts/setup mpi installs it)");
        return;
    };
    let version = Command::new(&launcher).arg("--version").output().unwrap().stdout;
    let mut command = Command::new(&launcher);
    if !String::from_utf8_lossy(&version).contains("HYDRA") {
        command.args(["--oversubscribe", "--bind-to", "none"]);
        for variable in ["OMPI", "PRTE"] {
            command.env(format!("{variable}_ALLOW_RUN_AS_ROOT"), "1");
            command.env(format!("{variable}_ALLOW_RUN_AS_ROOT_CONFIRM"), "1");
        }
    }
    let output = command
        .args(["-n", "4"])
        .arg(altiplano().get_program())
        .args(["comm-check", "--size", "300kB", "--json"])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    let objects: Vec<&str> = stdout.lines().filter(|line| line.starts_with('{')).collect();
    let [object] = objects[..] else { panic!("{stdout}") };
    let json: serde_json::Value = serde_json::from_str(object).unwrap();
    assert_eq!(json["ranks"], 4);
    assert!(json["library"].as_str().unwrap().contains("MPI"), "{object}");
}
