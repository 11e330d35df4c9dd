//! Inference: the key/value cache, the forward pass with it, choosing the next token, generating.

mod kv_cache;

mod forward;

mod sampler;

mod generate;

pub use generate::{FinishReason, generate};
pub use kv_cache::KvCache;
pub use sampler::{Sampler, SamplerConfig};
