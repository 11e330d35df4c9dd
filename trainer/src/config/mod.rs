//! Configuration files: YAML in, a checked structure out.
//!
//! [`load()`] reads any structure that implements [`ConfigFile`]. It rejects unknown and duplicate
//! keys with the line and the nearest key, replaces values by `key=value` overrides, reads
//! mappings that are kept in a file of their own, and resolves relative paths.

mod check;
mod data;
mod document;
mod endpoint;
mod explain;
mod identity;
mod judge;
mod load;
mod locate;
mod parallel;
mod path;
mod resume;
mod self_instruct;
mod sft;
mod step;
mod train;
mod yaml;

pub use altiplano_data::DataConfig;
pub(crate) use check::MOST_THREADS;
pub use endpoint::EndpointConfig;
pub(crate) use explain::nearest;
pub use identity::{IdentityConfig, IdentityGroup};
pub use judge::{JudgeConfig, JudgeMode, JudgedModel};
pub use load::{ConfigFile, Problem, load};
pub use parallel::{ParallelConfig, Shard};
pub use path::{normalize, relative_to};
pub use resume::{Change, ON_RESUME, ON_RESUME_SFT, OnResume, keys_with};
pub(crate) use resume::{collect_differences, recorded_changes};
pub use self_instruct::{PromptInterface, SelfInstructConfig};
pub use sft::{LoraConfig, SftBatchConfig, SftConfig, SftOptimizerConfig, SftValidateConfig};
pub use step::load_step;
pub use train::{
    BatchConfig, CheckpointConfig, EvalConfig, LrSchedule, MetricsConfig, OptimizerConfig,
    SampleConfig, TrainConfig, VAL_LOSS, ValidateConfig,
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod shipped;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
