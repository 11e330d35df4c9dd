//! What can go wrong in the trainer and its commands.

use std::path::{Path, PathBuf};

use altiplano_comm::CommError;
use altiplano_data::error::DataError;
use altiplano_model::error::ModelError;
use altiplano_serve::error::ServeError;

/// Result of the trainer crate.
pub type Result<T> = std::result::Result<T, TrainerError>;

/// Errors of the trainer crate. Each names where it was found, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerError {
    // Configuration and usage: exit status 2
    /// A configuration file or an override does not say what it should.
    #[error("{place}: {message}")]
    Config {
        /// `file:line:column`, `file`, or the override as it was written.
        place: String,
        /// Which key, what was found, what was expected.
        message: String,
    },
    /// Arguments of a command that do not fit together.
    #[error("{message}")]
    Usage {
        /// What was given and what to write instead.
        message: String,
    },

    // Files
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Standard output cannot be written to.
    #[error("standard output: {0}")]
    Output(#[source] std::io::Error),
    /// The system refuses a thread.
    #[error(
        "cannot start the threads that {purpose}: {source}; ask for fewer threads, or raise the limit \
         on processes and threads (`ulimit -u`, or `pids.max` of the control group)"
    )]
    Threads {
        /// What the threads are for.
        purpose: &'static str,
        /// The system's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of a run is not what its name says.
    #[error("{}: {reason}", path.display())]
    RunFile {
        /// The file.
        path: PathBuf,
        /// What differs and what to do.
        reason: String,
    },
    /// A file of prompts is not what it should be.
    #[error("{place}: {reason}")]
    PromptFile {
        /// The file, and the line where it is one.
        place: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A new run would write over one that is there.
    #[error(
        "{}: a run of this name is there already; go on with it by --resume, or choose another name",
        path.display()
    )]
    RunExists {
        /// The run directory.
        path: PathBuf,
    },
    /// An export or import would write over something.
    #[error("{}: {what}", path.display())]
    OutputExists {
        /// The directory or file.
        path: PathBuf,
        /// What is there and what to do.
        what: String,
    },
    /// A plot cannot be drawn.
    #[error("{}: cannot draw the plot: {reason}", path.display())]
    Plot {
        /// The picture.
        path: PathBuf,
        /// What the drawing library says.
        reason: String,
    },

    // Checkpoints
    /// A checkpoint cannot be saved; what was saved before is untouched.
    #[error(
        "the checkpoint of step {step} was not saved ({kept}); make room or choose another `output`"
    )]
    CheckpointSave {
        /// The step whose state was to be saved.
        step: u64,
        /// What is still there to resume from.
        kept: String,
        /// What failed.
        #[source]
        source: Box<TrainerError>,
    },
    /// A checkpoint is truncated, altered, incomplete or of another version.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file that differs.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        reason: String,
    },
    /// A path that was given as a checkpoint is none.
    #[error(
        "{}: {found}; expected a run or a checkpoint that `altiplano train` wrote, or a Hugging \
         Face directory of a LLaMA (config.json, model.safetensors, tokenizer.model)",
        path.display()
    )]
    NotACheckpoint {
        /// The path given.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A run has not finished a checkpoint yet.
    #[error("{}: no finished checkpoint here", path.display())]
    NoCheckpoint {
        /// The directory that was searched.
        path: PathBuf,
    },
    /// What should be resumed is not a run.
    #[error(
        "{}: not a run: it has no config.yaml; start one by `altiplano train CONFIG`",
        path.display()
    )]
    NoRun {
        /// The directory given.
        path: PathBuf,
    },

    // Training
    /// A loss or gradient is not a finite number; the weights were not updated.
    #[error("step {step}: {what} is not finite ({found}); the weights were not updated. {hint}")]
    NonFinite {
        /// The step that was not taken.
        step: u64,
        /// `loss`, or the name of the gradient.
        what: String,
        /// The value.
        found: String,
        /// Which documents were in the batch and what to try.
        hint: String,
    },

    // Other crates
    /// From the exchange between ranks.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// What every rank of a launch finds: rank 0 prints it.
    #[error(transparent)]
    SaidByRankZero(Box<TrainerError>),
    /// What all ranks know of: they end together, and this is the rank that says it.
    #[error(transparent)]
    Agreed(Box<TrainerError>),
    /// What this rank failed with; the others have not.
    #[error("{rank}: {source}")]
    AtRank {
        /// The rank and its host.
        rank: String,
        /// What it failed with.
        source: Box<TrainerError>,
    },
    /// What another rank failed with.
    #[error("{rank}: {message}")]
    OnRank {
        /// The rank and its host.
        rank: String,
        /// Its words.
        message: String,
        /// Whether they are about arguments or configuration.
        usage: bool,
    },
    /// From the data crate.
    #[error(transparent)]
    Data(#[from] DataError),
    /// From the model crate.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// From the server.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl TrainerError {
    /// Attaches the path to an error of the operating system: `.map_err(TrainerError::io(path))`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Whether the user's arguments or configuration are at fault: exit status 2 instead of 1.
    pub fn is_usage(&self) -> bool {
        if let Some(inner) = self.inner() {
            return inner.is_usage();
        }
        matches!(
            self,
            Self::Config { .. }
                | Self::Usage { .. }
                | Self::Serve(ServeError::Usage { .. })
                | Self::OnRank { usage: true, .. }
                | Self::Data(DataError::Config { .. })
                | Self::Model(ModelError::Config { .. } | ModelError::Device { .. })
        ) || matches!(self, Self::Comm(error) if error.is_usage())
    }

    /// What ranks have put around an error.
    fn inner(&self) -> Option<&Self> {
        match self {
            Self::SaidByRankZero(error) | Self::Agreed(error) => Some(error),
            Self::AtRank { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether all ranks know of it and end together.
    pub fn is_agreed(&self) -> bool {
        matches!(self, Self::SaidByRankZero(_) | Self::Agreed(_))
    }

    /// Whether the exchange with another rank failed: what went wrong is to be found there.
    pub fn is_from_exchange(&self) -> bool {
        match self.inner() {
            Some(inner) => inner.is_from_exchange(),
            None => matches!(self, Self::Comm(_)),
        }
    }

    /// The error with everything that led to it, in one line.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        text
    }

    /// Whether another process has told the user: all ranks of a launch find the same error.
    pub fn is_said_elsewhere(&self) -> bool {
        matches!(self, Self::SaidByRankZero(_))
    }

    /// Whether the reader of standard output went away, as `| head` does: not an error.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe)
    }
}
