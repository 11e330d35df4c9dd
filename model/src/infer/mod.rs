//! Inference: the key/value cache, choosing the next token, generating.

mod generate;
mod kv_cache;
mod sampler;

pub use generate::{Generation, generate};
pub use kv_cache::KvCache;
pub use sampler::{Sampler, SamplerConfig};
