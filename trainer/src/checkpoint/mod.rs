//! Checkpoints: the state of a run on disk, whole or not at all.
//!
//! A checkpoint is a Hugging Face model directory plus what a run needs to go on:
//!
//! ```text
//! runs/<name>/checkpoints/step_00001000/
//!     config.json generation_config.json tokenizer.model tokenizer_config.json …   Hugging Face
//!     model.safetensors        f32 weights under Hugging Face names
//!     optimizer.safetensors    AdamW moments: m.<name>, v.<name>
//!     state.json               step, tokens, position in the data, blake3 of every file
//!     DONE                     blake3 of state.json; written last
//! ```
//!
//! Where several ranks write, each has a file of its own in place of the two of tensors:
//! `model-00001-of-00004.safetensors` and so on, with `model.safetensors.index.json`.
//!
//! A run on low-rank adapters has those of [`peft`] in place of `config.json` and `model.safetensors`.
//!
//! [`save()`] writes into `.tmp-step_…` beside it, flushes everything to the disk and renames, so
//! `kill -9` at any moment leaves the previous or the new checkpoint whole. [`verify()`] reads every
//! byte again before a run trusts it.

mod chat_template;
mod choice;
mod directory;
pub mod hugging_face;
pub mod peft;
mod save;
mod verify;

use serde::{Deserialize, Serialize};

pub use chat_template::{CHAT_TEMPLATE_FILE, read_chat_template};
pub use choice::{Choice, before, best_of, choose, set_aside};
pub use directory::{RunLock, find, latest, list, lock, prune, recover, step_name};
pub use peft::ADAPTER_FILE;
pub(crate) use save::PartOfCheckpoint;
pub use save::{CheckpointFiles, save};
pub(crate) use verify::mark;
pub use verify::{is_checkpoint, lists, read_bounded, read_file, read_state, verify, verify_files};

use crate::metrics::StepMetrics;
use crate::outlier_window::OutlierWindow;

/// Version of the layout of a checkpoint. A reader refuses newer versions. Version 1 has the hash
/// of the settings instead of the settings: its weights can be used, but no run goes on from it.
pub const FORMAT_VERSION: u32 = 2;

/// The weights, f32.
pub const MODEL_FILE: &str = "model.safetensors";
/// The moments of AdamW, f32.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";
const DONE_FILE: &str = "DONE";

/// What a run needs beside the tensors to go on exactly where it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Position in the data: the loader's own state.
    pub loader: serde_json::Value,
    /// The [`resolved`](crate::config::TrainConfig::resolved) configuration of the run; null in
    /// version 1.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Recent losses, for the outlier test.
    #[serde(default)]
    pub loss_window: OutlierWindow,
    /// Recent gradient norms, for the outlier test.
    #[serde(default)]
    pub grad_norm_window: OutlierWindow,
    /// Metrics of the step just done, which are logged after the checkpoint is safe.
    #[serde(default)]
    pub last_step: StepMetrics,
}
