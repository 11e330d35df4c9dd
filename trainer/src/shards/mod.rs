//! Copies of a model that exchange gradients and split the state of the optimizer.
//!
//! Each copy works on micro-batches of its own. Matrices lie in *buckets* in the order in which the
//! backward pass completes their gradients; a bucket is exchanged as soon as it is full, while the pass
//! goes on, and of its sum each copy has one part. Norm gains are small and whole on every copy.
//!
//! With `shard: gradients` every micro-batch is added to the sum in the order of the loader, so
//! neither losses nor weights depend on the number of copies. With `optimizer` and `none` a copy adds
//! its own micro-batches first, which rounds differently.

mod adamw;
mod buckets;
mod layout;
mod tensors;

pub(crate) use adamw::ReadMoment;
pub use adamw::ShardedAdamW;
pub use buckets::GradExchange;
pub use layout::{Bucket, FlatLayout, PlacedMatrix, Segment};
pub(crate) use tensors::{GatheredTensors, named_moments, named_weights};
