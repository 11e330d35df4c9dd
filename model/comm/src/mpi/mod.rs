//! MPI without linking it: the launcher's environment, the library opened at run time, its ABI.

mod abi;

mod environment;

mod library;

mod transport;

use std::path::Path;

use libloading::os::unix::Library;

use crate::engine::Started;
use crate::error::{CommError, Result};

pub use environment::{Family, Launcher};

/// Opens the library and meets the other ranks that `launcher` started. The thread that calls this
/// is the one that communicates.
pub(crate) fn start(launcher: &Launcher, library: Option<&Path>) -> Result<Started> {
    let found = library::open(launcher, library)?;
    let name = found.path.display().to_string();
    match abi::Abi::of(&found) {
        abi::Abi::OpenMpi => {
            let family = Some(Family::OpenMpi);
            initialise::<*mut libc::c_void>(found, abi::open_mpi, family, launcher, &name)
        }
        abi::Abi::Mpich => {
            initialise::<libc::c_int>(found, abi::mpich, Some(Family::Mpich), launcher, &name)
        }
        abi::Abi::Standard => {
            initialise::<*mut libc::c_void>(found, abi::standard, None, launcher, &name)
        }
    }
}

fn initialise<H: abi::Handle>(
    found: library::Found,
    constants: impl FnOnce(&Library) -> std::result::Result<abi::Constants<H>, String>,
    family: Option<Family>,
    launcher: &Launcher,
    name: &str,
) -> Result<Started> {
    let unusable = |reason| CommError::Library { path: found.path.clone(), reason };
    let constants = constants(&found.library).map_err(unusable)?;
    // SAFETY: `Abi::of` has told the width of this library's handles, which is that of `H`.
    let functions = unsafe { abi::Functions::<H>::load(&found.library) }.map_err(unusable)?;
    // An MPI library leaves threads and handlers of the end of the process behind: it is never
    // closed.
    std::mem::forget(found.library);
    let mut mpi = transport::Mpi::new(functions, constants);
    let failed =
        |message: String| CommError::Mpi { during: format!("the start of {name}"), message };
    let version = mpi.version();
    // MPICH's library ends the process in its start when the launcher is Open MPI's, Open MPI's is
    // rank 0 of 1 under MPICH's: neither is tried.
    if family.is_some() && launcher.family.is_some() && family != launcher.family {
        return Err(CommError::WrongFamily {
            launcher: launcher.to_string(),
            ranks: launcher.ranks,
            library: name.to_string(),
            version,
        });
    }
    mpi.initialise().map_err(failed)?;
    let (rank, ranks) = mpi.world().map_err(failed)?;
    if ranks != launcher.ranks {
        return Err(CommError::WrongLauncher {
            launcher: launcher.to_string(),
            ranks: launcher.ranks,
            library: name.to_string(),
            version,
            found: ranks,
        });
    }
    let on_host = mpi.on_host().map_err(failed)?;
    let description = format!("{version} ({name})");
    Ok(Started { transport: Box::new(mpi), rank, ranks, description, on_host })
}
