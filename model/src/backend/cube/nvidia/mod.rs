//! NVIDIA GPUs: what is installed, the vendor's matrix products, tensor-core attention.
//!
//! # Two streams, one order
//!
//! burn's tensors, their memory pool and the CubeCL kernels live on a stream of the CubeCL runtime
//! that is not public. The vendor's library and the kernels of `attention.cu` run on a stream of
//! ours. Both are non-blocking streams of the device's primary context. `stream::Gpu::enqueue` puts
//! a piece of work between the commands of the runtime, on the runtime's own thread, and orders it
//! on the device:
//!
//! 1. `cuCtxRecordEvent` captures everything submitted to the context so far, and our stream waits
//!    for it: inputs are written, and whoever used the output's memory before has finished.
//! 2. Our work.
//! 3. An event after it, and `cuCtxWaitEvent` makes everything submitted to the context later wait
//!    for it: outputs are read, and memory that the runtime's pool hands on is written again, only
//!    afterwards.
//!
//! Where the caller promises that nothing else comes between ([`uninterrupted`]), a row of pieces has
//! step 1 before the first and step 3 after the last alone: a step of training is three such rows.
//!
//! The host waits for nothing, so the pool's assumption, that its memory is used in the order of
//! its commands, stays true. Pointers stay valid because the buffers' bindings are held until the
//! work is submitted. (CUDA Driver API, context management; both calls came with CUDA 12.5.)

pub(super) mod attention;
pub(super) mod compile;
pub(super) mod cross_entropy;
pub(super) mod elementwise;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod emulated;
mod kernel;
pub(crate) mod optimizer;
pub mod probe;
pub(super) mod products;
pub(super) mod rms_norm;
mod stream;
mod tuning;

pub use probe::{Gpu, Missing, Probe, probe, select};
pub(super) use stream::before_other_work;
pub(crate) use stream::uninterrupted;
