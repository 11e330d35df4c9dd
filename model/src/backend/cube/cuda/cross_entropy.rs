//! The kernel of `cross_entropy.cu`: losses and gradients of rows of logits, on our stream.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cudarc::driver::sys;

use super::kernel::{Module, arguments, launch};
use super::stream::Gpu;
use crate::backend::cube::tensor::rows_and_width;

/// The kernel and the instructions it is built from.
pub(super) const SOURCE: &str = concat!(
    include_str!("intrinsics.cu"),
    include_str!("elements.cu"),
    include_str!("cross_entropy.cu")
);

/// Threads of a block: so many that the rows at work on all multiprocessors stay in the cache
/// between the two passes over them.
const THREADS: usize = 1024;

const DEFINES: [(&str, usize); 1] = [("THREADS", THREADS)];

/// Bytes of shared memory: the largest logit and a sum of each warp.
const SHARED_BYTES: usize = 8 * THREADS / 32;

/// The kernel.
#[derive(Clone, Copy)]
pub(super) struct Function(sys::CUfunction);

// SAFETY: functions of a loaded module may be launched from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Computes the losses of rows `first`.. from their `logits`, and their bf16 gradients times `scale`
/// where `dlogits` is given. False where another kernel must.
///
/// # Panics
/// When it does not compile: NVRTC does not fit the driver or the GPU.
pub(in super::super) fn cross_entropy(
    [logits, targets, losses]: [&CubeTensor; 3],
    dlogits: Option<&CubeTensor>,
    first: usize,
    scale: f32,
) -> bool {
    let (rows, vocabulary) = rows_and_width(logits);
    let takes = dlogits.is_none_or(|dlogits| dlogits.dtype == DType::BF16);
    if !takes || !vocabulary.is_multiple_of(8) {
        return false;
    }
    let Some(gpu) = Gpu::of(logits) else { return false };
    let load = || {
        gpu.enter()?;
        let module = Module::load(SOURCE, &DEFINES, &gpu.architecture())?;
        module.function("cross_entropy", SHARED_BYTES)
    };
    let function = *gpu.cross_entropy.get_or_init(|| {
        Function(load().unwrap_or_else(|reason| panic!("cross entropy kernel: {reason}")))
    });
    let mut tensors = vec![logits, targets, losses];
    tensors.extend(dlogits);
    gpu.enqueue_all(&tensors, move |gpu, addresses| {
        // Whole: its single field may not cross threads.
        let function = function;
        let [logits, targets, losses] = [0, 1, 2].map(|i| addresses[i]);
        let dlogits = addresses.get(3).copied().unwrap_or_default();
        let (first, vocabulary) = (first as i32, vocabulary as i32);
        launch(
            gpu,
            function.0,
            (rows, 1, 1),
            THREADS,
            SHARED_BYTES,
            arguments![logits, targets, losses, dlogits, first, vocabulary, scale],
        )
    });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
