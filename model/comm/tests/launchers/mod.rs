//! The MPIs that tests start ranks with.

#![allow(clippy::print_stderr, reason = "tests say what they skip")]

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// An installed MPI.
#[derive(Debug, Clone)]
pub struct Mpi {
    pub launcher: PathBuf,
    /// Open MPI, else MPICH.
    pub is_open: bool,
}

/// One of each family that `MPI_LAUNCHERS` or `PATH` has, to try `what` with; says so when there is none.
pub fn every_mpi(what: &str) -> Vec<Mpi> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["mpirun", "mpiexec.hydra", "mpirun.openmpi", "mpirun.mpich"];
    let in_path = std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .filter(|file| file.is_file());
    let named = std::env::var_os("MPI_LAUNCHERS").unwrap_or_default();
    let launchers = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    let mut found: Vec<Mpi> = Vec::new();
    for launcher in launchers.chain(in_path) {
        let Ok(output) = Command::new(&launcher).arg("--version").output() else { continue };
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_open = version.contains("Open MPI") || version.contains("OpenRTE");
        if (is_open || version.contains("HYDRA")) && found.iter().all(|mpi| mpi.is_open != is_open)
        {
            found.push(Mpi { launcher, is_open });
        }
    }
    if found.is_empty() {
        eprintln!("skipped: {what} (no mpirun found; scripts/setup mpi installs Open MPI's)");
    }
    found
}

impl Mpi {
    /// The launcher: ranks and what they run are to follow.
    pub fn launcher(&self) -> Command {
        let mut command = Command::new(&self.launcher);
        if self.is_open {
            command.args(["--oversubscribe", "--bind-to", "none"]);
            // As root, too, and without waiting for a network.
            for variable in ["OMPI", "PRTE"] {
                command.env(format!("{variable}_ALLOW_RUN_AS_ROOT"), "1");
                command.env(format!("{variable}_ALLOW_RUN_AS_ROOT_CONFIRM"), "1");
            }
        }
        command.stdin(Stdio::null());
        command
    }
}
