//! Inference: models whose weights are only read, the key/value cache, the forward pass with it, choosing
//! the next token, generating.

mod request;

mod stored_matrix;

mod inference_model;

mod kv_cache;

mod forward;

mod sampler;

mod generate;

pub use generate::{Choosable, FinishReason, generate};
pub use inference_model::{InferenceLayer, InferenceMatrix, InferenceModel, InferencePrecision};
pub use kv_cache::KvCache;
pub use request::{
    FinishReason as SequenceFinish, Request, RequestId, SamplingParams, ScoredToken,
    SequenceOutput, TokenConstraint, TokenLogprob,
};
pub use sampler::{Sampler, SamplerConfig};
pub use stored_matrix::StoredMatrix;
