//! Inference: the key/value cache, the forward pass with it, choosing the next token, generating.

mod request;

mod kv_cache;

mod forward;

mod sampler;

mod generate;

pub use generate::{FinishReason, generate};
pub use kv_cache::KvCache;
pub use request::{
    FinishReason as SequenceFinish, Request, RequestId, SamplingParams, ScoredToken,
    SequenceOutput, TokenConstraint, TokenLogprob,
};
pub use sampler::{Sampler, SamplerConfig};
