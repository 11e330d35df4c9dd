//! What can go wrong between ranks. Every message names what was found and what to do.

use std::fmt;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, CommError>;

/// A rank and the host it runs on, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Rank in the world.
    pub rank: usize,
    /// Name of its host; empty before the ranks know each other's.
    pub host: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.as_str() {
            "" => write!(f, "rank {}", self.rank),
            host => write!(f, "rank {} (host {host})", self.rank),
        }
    }
}

/// Ranks in one list: `rank 1 (host a), rank 3 (host b)`.
pub(crate) fn list(peers: &[Peer]) -> String {
    /// More are only counted.
    const NAMED: usize = 8;
    let named: Vec<String> = peers.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match peers.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    named.join(", ") + &more
}

/// Two calls that should have been the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ranks are out of step in operation {number} of the {group} group: {rank} called {call}, {other} \
     called {other_call}"
)]
pub struct Mismatch {
    /// Name of the group.
    pub group: String,
    /// Number of the operation in the group.
    pub number: u64,
    /// This rank.
    pub rank: Peer,
    /// Its call.
    pub call: String,
    /// The other rank.
    pub other: Peer,
    /// The other's call.
    pub other_call: String,
}

/// Errors of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    // Before the ranks have met: wrong usage.
    /// A launcher started several ranks, and no MPI library can be opened.
    #[error(
        "{launcher} started {ranks} ranks, but no MPI library can be opened; looked for {tried}; \
         install the runtime of the MPI that the launcher belongs to (Debian: openmpi-bin or mpich), \
         or name its libmpi by parallel.library"
    )]
    NoLibrary {
        /// The launcher, as its environment shows it.
        launcher: String,
        /// How many ranks it started.
        ranks: usize,
        /// What was looked for.
        tried: String,
    },
    /// The library that the user named, or the one found, cannot be used.
    #[error("parallel.library: {}: {reason}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What the loader or the library says, and what is expected.
        reason: String,
    },
    /// The library is of another MPI than the launcher, by its symbols.
    #[error(
        "{launcher} started {ranks} ranks, but {library} ({version}) is not of the same MPI; start with \
         that library's own mpirun, or name the launcher's libmpi by parallel.library"
    )]
    WrongFamily {
        /// The launcher, as its environment shows it.
        launcher: String,
        /// How many ranks it started.
        ranks: usize,
        /// The library that was opened.
        library: String,
        /// What it calls itself.
        version: String,
    },
    /// The library does not belong to the launcher: every process believes to be alone.
    #[error(
        "{launcher} started {ranks} ranks, but {library} ({version}) sees {found}: it belongs to \
         another MPI than the launcher; start with that MPI's own mpirun, or name the launcher's libmpi \
         by parallel.library"
    )]
    WrongLauncher {
        /// The launcher, as its environment shows it.
        launcher: String,
        /// How many ranks it started.
        ranks: usize,
        /// The library that was opened.
        library: String,
        /// What it calls itself.
        version: String,
        /// How many ranks it sees.
        found: usize,
    },
    /// A launcher's variables do not say what they should.
    #[error(
        "{variable}={found:?} in the environment: expected {expected}; start by mpirun or srun"
    )]
    Environment {
        /// The variable.
        variable: String,
        /// Its value.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// The layout does not fit the ranks that were started.
    #[error("{key}: {message}")]
    Layout {
        /// The key of the configuration.
        key: &'static str,
        /// What was found, what is expected, what would be right.
        message: String,
    },

    // While they work
    /// The MPI library reports an error.
    #[error("{during}: MPI: {message}")]
    Mpi {
        /// The operation it happened in.
        during: String,
        /// The library's words.
        message: String,
    },
    /// A rank ended before the others.
    #[error("{during}: {peer} has ended")]
    Gone {
        /// The operation that waits for it.
        during: String,
        /// The rank.
        peer: Peer,
    },
    /// A rank did not answer in time.
    #[error(
        "{during} waited {seconds} s (parallel.timeout) for {}; ranks that print no such line are the \
         ones to look at",
        list(missing)
    )]
    Timeout {
        /// The operation, with the step and the group.
        during: String,
        /// Seconds after which the run ends.
        seconds: u64,
        /// The ranks whose data did not come.
        missing: Vec<Peer>,
    },
    /// The library did not come back from its initialisation.
    #[error(
        "MPI_Init_thread of {library} did not return within {seconds} s (parallel.timeout): a rank of \
         this launch may not have started, or the library belongs to another MPI than the launcher"
    )]
    Start {
        /// The library, or what was looked for.
        library: String,
        /// Seconds waited.
        seconds: u64,
    },
    /// Two ranks called different operations.
    #[error(transparent)]
    Mismatch(Box<Mismatch>),
    /// A buffer does not fit the operation.
    #[error("{operation} over the {group} group: {reason}")]
    Argument {
        /// The operation.
        operation: &'static str,
        /// Name of the group.
        group: String,
        /// What was found and what is expected.
        reason: String,
    },
    /// The system refuses the thread that communicates.
    #[error(
        "cannot start the thread `communication`: {reason}; raise the limit on processes and threads (`ulimit -u`, \
         or `pids.max` of the control group)"
    )]
    Thread {
        /// The system's answer.
        reason: String,
    },
    /// A collective gave another result than the same sum in one process.
    #[error("{operation} of {bytes} bytes: {reason}")]
    Check {
        /// The operation.
        operation: &'static str,
        /// Bytes of its buffer.
        bytes: usize,
        /// Where it differs.
        reason: String,
    },
}

impl CommError {
    /// Whether the user can mend it before the run starts: exit status 2.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoLibrary { .. }
                | Self::Library { .. }
                | Self::WrongFamily { .. }
                | Self::WrongLauncher { .. }
                | Self::Environment { .. }
                | Self::Layout { .. }
        )
    }
}
