//! Tensor parallelism: ranks that hold a part of every matrix and compute a layer together.
//!
//! Between the matrices the tokens are split over the ranks too (sequence parallelism), so norms and the
//! residual stream are computed once. Derivation: `docs/backward/tokens.md`.
//!
//! | module | subject |
//! |---|---|
//! | [`layout`] | who holds which rows and columns of every parameter; whole weights split and joined |
//! | [`group`] | exchanges of tensors between ranks |
//! | [`tokens`] | the two op pairs that exchange activations |
//! | [`embedding`], [`head`] | token embedding and cross entropy of a vocabulary that is split by words |
//! | [`shared_gradients`] | gradients of what several ranks hold |
//!
//! On one rank every function here returns its argument or is the op of [`crate::ops`].

pub mod embedding;
pub mod group;
pub mod head;
pub mod layout;
pub mod shared_gradients;
pub mod tokens;

pub use embedding::{vocab_parallel_embedding_backward, vocab_parallel_embedding_forward};
pub use group::{Group, Pending, TensorGroup};
pub use head::{
    vocab_parallel_cross_entropy_backward, vocab_parallel_cross_entropy_forward,
    vocab_parallel_logits,
};
pub use layout::{Slice, TensorRank, divisors};
pub use shared_gradients::{sum_gain_gradients, sum_kv_gradients};
pub use tokens::{
    Tokens, gather_tokens_backward, gather_tokens_forward, linear_sum_residual_forward,
    sum_tokens_backward, sum_tokens_forward,
};
