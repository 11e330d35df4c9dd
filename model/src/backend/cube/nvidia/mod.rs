//! The CUDA runtime: what a machine has of NVIDIA's, the kernels in CUDA C++, the vendor's matrix
//! products, and the stream they run on. It knows no op. In a build without the feature `cuda` the
//! file `stub.rs` stands in for all of it.
//!
//! A file here uses only those before it:
//!
//! | file | subject |
//! |---|---|
//! | `source` | CUDA C++ and the numbers it is compiled with |
//! | `problem` | a matrix product as the library is asked for it |
//! | [`probe`](mod@probe) | what is installed, and what is missing |
//! | `context` | the driver's context of a GPU and a stream in it |
//! | `compile` | CUDA C++ to machine code by NVRTC |
//! | `kernel` | kernels: loaded at their first use, launched |
//! | `blas` | cuBLASLt |
//! | `blas_tuning` | the fastest of the algorithms it offers |
//! | `stream` | a GPU, and the order of its two streams |
//!
//! # Two streams, one order
//!
//! burn's tensors, their memory pool and the CubeCL kernels live on a stream of the CubeCL runtime
//! that is not public. cuBLASLt and the kernels in CUDA C++ run on a second stream, which altiplano
//! creates. Both are non-blocking streams of the device's primary context. `stream::Gpu::enqueue` puts
//! a piece of work between the commands of the CubeCL runtime, on that runtime's own thread, and
//! orders it on the device:
//!
//! 1. `cuCtxRecordEvent` captures everything submitted to the context so far, and the second stream
//!    waits for it: inputs are written, and whoever used the output's memory before has finished.
//! 2. The piece of work.
//! 3. An event after it, and `cuCtxWaitEvent` makes everything submitted to the context later wait
//!    for it: outputs are read, and memory that the runtime's pool hands on is written again, only
//!    afterwards.
//!
//! Where the caller promises that nothing else comes between (`uninterrupted`), a row of pieces has
//! step 1 before the first and step 3 after the last alone: a step of training is three such rows.
//!
//! The host waits for nothing, so the pool's assumption, that its memory is used in the order of
//! its commands, stays true. Pointers stay valid because the buffers' bindings are held until the
//! work is submitted. (CUDA Driver API, context management; both calls came with CUDA 12.5.)

mod problem;
mod source;

pub mod probe;

mod context;

mod compile;

mod kernel;

mod blas;

mod blas_tuning;

mod stream;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod emulated;

pub use probe::{Missing, Probe, ReportedGpu, probe, select};
pub(super) use problem::Problem;
pub(super) use source::{Source, arguments, cuda_source};
pub(crate) use stream::uninterrupted;
pub(super) use stream::{Gpu, before_other_work};

#[cfg(test)]
pub(super) use compile::{includes_for_tests, machine_code, nvrtc_for_tests};
#[cfg(test)]
pub(super) use kernel::assert_compiles;
