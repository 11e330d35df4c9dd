//! Copies of a model that exchange gradients and split the state of the optimizer.
//!
//! Each copy works on micro-batches of its own. Matrices lie in *buckets* in the order in which the
//! backward pass completes their gradients; a bucket is exchanged as soon as it is full, while the pass
//! goes on, and of its sum each copy has one part. Norm gains are small and whole on every copy.
//!
//! With `shard: gradients` or `parameters` every micro-batch is added to the sum in the order of the loader, so
//! neither losses nor weights depend on the number of copies. With `optimizer` and `none` a copy adds
//! its own micro-batches first, which rounds differently. With `parameters` a copy has a part of the weights too
//! and gathers a bucket of them when a pass comes to it.

mod adamw;
mod buckets;
mod layout;
mod tensors;
mod weights;

pub use adamw::ShardedAdamW;
pub(crate) use adamw::{ReadState, Remembered};
pub use buckets::GradExchange;
pub use layout::{Bucket, FlatLayout, PlacedMatrix, Segment};
pub(crate) use tensors::{Held, TensorWriters, join_parts, named_moments, named_weights};
