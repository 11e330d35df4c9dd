//! Inference: an engine that continues many prompts at a time. Token ids only, no text.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | `request` | what the engine is asked for and what it answers |
//! | `options` | how an engine is set up |
//! | `stored_matrix` | matrices in the format they are stored in |
//! | `inference_model` | a model whose weights are only read |
//! | `block_pool` | who holds which blocks of the cache, which are free, which prefixes they hold |
//! | `model` | what the engine needs of a model |
//! | `paged_cache` | keys and values of all layers in blocks |
//! | `forward` | one pass over tokens of several sequences |
//! | `sampler` | choosing the next token |
//! | `scheduler` | which tokens the next pass computes, and in which blocks |
//! | `engine` | the above, step by step |
//! | `generate` | one prompt |

mod request;

mod options;

mod stored_matrix;

mod inference_model;

mod block_pool;

mod model;

mod paged_cache;

mod forward;

mod sampler;

mod scheduler;

mod engine;

mod generate;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use block_pool::BlockId;
pub use engine::{Engine, EngineEvent, EngineEventKind, EngineStats};
pub use forward::HiddenRows;
pub use generate::generate;
pub use inference_model::{InferenceLayer, InferenceMatrix, InferenceModel, InferencePrecision};
pub use model::{EngineModel, Pass, PassSequence};
pub use options::{EngineOptions, SchedulingPolicy};
pub use paged_cache::{PagedCache, bytes_per_block};
pub use request::{
    FinishReason, Request, RequestId, SamplingParams, ScoredToken, SequenceId, SequenceOutput,
    TokenConstraint, TokenLogprob,
};
pub use stored_matrix::StoredMatrix;
