//! The RMSNorm kernels of `rms_norm.cu`, with the residual connections around them: compiled for
//! each width at its first use, launched on our stream.

use std::sync::Arc;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::kernel::{Source, arguments};
use super::stream::Gpu;
use crate::backend::cube::tensor::{new, rows_and_width};

/// Threads of a block.
const THREADS: usize = 128;

/// The widest rows the kernels keep in registers.
const WIDEST: usize = 8192;

/// Blocks the rows of a backward pass are dealt out to: four for each multiprocessor of an H100.
const BLOCKS: usize = 528;

/// Channels a block adds up.
const SUM_CHANNELS: usize = 32;

/// Warps that share a row: a thread has at most four pieces of eight elements, eight of the widest.
fn row_warps(channels: usize) -> usize {
    match channels {
        0..=1024 => 1,
        1025..=2048 => 2,
        _ => 4,
    }
}

/// Rows a block works on at once.
fn groups(channels: usize) -> usize {
    THREADS / 32 / row_warps(channels)
}

fn source(channels: usize) -> Source<3> {
    let text = concat!(
        include_str!("intrinsics.cu"),
        include_str!("elements.cu"),
        include_str!("rms_norm.cu")
    );
    let defines =
        [("CHANNELS", channels), ("ROW_WARPS", row_warps(channels)), ("THREADS", THREADS)];
    Source::new("RMSNorm", text, defines)
}

/// Bytes of shared memory: a sum of each warp; the weight gradient of each group of rows.
fn shared_bytes(channels: usize) -> [usize; 2] {
    [4 * THREADS, 4 * (groups(channels) * channels).max(THREADS)]
}

/// The GPU of `x`, if its kernels take such rows: in bf16, of a width they know.
fn gpu_of(x: &CubeTensor) -> Option<Arc<Gpu>> {
    let (_, channels) = rows_and_width(x);
    let takes = x.dtype == DType::BF16 && channels <= WIDEST && channels.is_multiple_of(8);
    if takes { Gpu::of(x) } else { None }
}

/// Computes `y` and `rstd` of `x`, or of `x` + `branch`, which then goes to `h`: (branch, h). False
/// where another kernel must.
pub(in super::super) fn forward(
    x: &CubeTensor,
    residual: Option<(&CubeTensor, &CubeTensor)>,
    weight: &CubeTensor,
    y: &CubeTensor,
    rstd: &CubeTensor,
    eps: f64,
) -> bool {
    let Some(gpu) = gpu_of(x) else { return false };
    let (rows, channels) = rows_and_width(x);
    let [sums, _] = shared_bytes(channels);
    let kernel = gpu.kernel(&source(channels), "rms_norm_forward", sums);
    let mut tensors = vec![x, weight, y, rstd];
    tensors.extend(residual.into_iter().flat_map(|(branch, h)| [branch, h]));
    gpu.enqueue_all(&tensors, move |gpu, addresses| {
        let [x, weight, y, rstd] = [0, 1, 2, 3].map(|i| addresses[i]);
        let [branch, h] = [4, 5].map(|i| addresses.get(i).copied().unwrap_or_default());
        let (count, eps) = (rows as i32, eps as f32);
        kernel.launch(
            gpu,
            (rows.div_ceil(groups(channels)), 1, 1),
            THREADS,
            arguments![x, branch, weight, h, y, rstd, count, eps],
        )
    });
    true
}

/// Computes `dx`, with the gradient of the stream `dstream` added to it, and adds to `dweight`.
/// `dx` may be `dstream`. False where other kernels must.
pub(in super::super) fn backward(
    [dy, x, weight, rstd]: [&CubeTensor; 4],
    dstream: Option<&CubeTensor>,
    dx: &CubeTensor,
    dweight: &CubeTensor,
) -> bool {
    let Some(gpu) = gpu_of(x) else { return false };
    let (rows, channels) = rows_and_width(x);
    let [sums, gradients] = shared_bytes(channels);
    let source = source(channels);
    let backward = gpu.kernel(&source, "rms_norm_backward", gradients);
    let add_rows = gpu.kernel(&source, "rms_norm_add_rows", sums);
    let block_rows = rows.div_ceil(BLOCKS).next_multiple_of(groups(channels));
    let blocks = rows.div_ceil(block_rows);
    let partial = new(x, &[blocks, channels], DType::F32);
    let mut tensors = vec![dy, x, weight, rstd, dx, dweight, &partial];
    tensors.extend(dstream);
    gpu.enqueue_all(&tensors, move |gpu, addresses| {
        let [dy, x, weight, rstd, dx, dweight, partial] =
            [0, 1, 2, 3, 4, 5, 6].map(|i| addresses[i]);
        let stream = addresses.get(7).copied().unwrap_or_default();
        let (count, block_rows, parts) = (rows as i32, block_rows as i32, blocks as i32);
        backward.launch(
            gpu,
            (blocks, 1, 1),
            THREADS,
            arguments![dy, x, weight, rstd, stream, dx, partial, count, block_rows],
        )?;
        add_rows.launch(
            gpu,
            (channels.div_ceil(SUM_CHANNELS), 1, 1),
            THREADS,
            arguments![partial, dweight, parts],
        )
    });
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
