//! The launches of `cuda.cu`: RMSNorm with the residual connections around it, compiled for each width
//! at its first use.

use std::sync::Arc;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{Backward, Forward};
use crate::backend::cube::nvidia::{Gpu, Source, arguments, cuda_source};
use crate::backend::cube::tensor::{new, rows_and_width};

/// Threads of a block.
const THREADS: usize = 128;

/// The widest rows the kernels keep in registers.
pub(super) const WIDEST: usize = 8192;

/// Blocks the rows of a backward pass are dealt out to: four for each multiprocessor of an H100.
const BLOCKS: usize = 528;

/// Channels a block adds up after a backward pass, one a lane of a warp.
const SUM_CHANNELS: usize = 32;

/// Warps that share a row: a thread has at most four pieces of eight elements, eight of the widest.
pub(super) fn row_warps(channels: usize) -> usize {
    match channels {
        0..=1024 => 1,
        1025..=2048 => 2,
        _ => 4,
    }
}

/// Rows a block works on at once.
pub(super) fn groups(channels: usize) -> usize {
    THREADS / 32 / row_warps(channels)
}

pub(super) fn source(channels: usize) -> Source<4> {
    let defines = [
        ("CHANNELS", channels),
        ("ROW_WARPS", row_warps(channels)),
        ("SUM_CHANNELS", SUM_CHANNELS),
        ("THREADS", THREADS),
    ];
    Source::new("RMSNorm", cuda_source!("cuda.cu"), defines)
}

/// Bytes of shared memory: a sum of each thread; the weight gradient of each group of rows.
pub(super) fn shared_bytes(channels: usize) -> [usize; 2] {
    [4 * THREADS, 4 * (groups(channels) * channels).max(THREADS)]
}

/// Computes `y` and `rstd` of `x`, or of `x` + branch, which then goes to h: (branch, h).
pub(super) fn forward(
    gpu: &Arc<Gpu>,
    call: &Forward,
    residual: Option<(&CubeTensor, &CubeTensor)>,
) {
    let Forward { x, weight, y, rstd, eps } = call;
    let (rows, channels) = rows_and_width(x);
    let eps = *eps as f32;
    let [sums, _] = shared_bytes(channels);
    let kernel = gpu.kernel(&source(channels), "rms_norm_forward", sums);
    let mut tensors = vec![x, weight, y, rstd];
    tensors.extend(residual.into_iter().flat_map(|(branch, h)| [branch, h]));
    gpu.enqueue_all(&tensors, move |stream, addresses| {
        let [x, weight, y, rstd] = [0, 1, 2, 3].map(|i| addresses[i]);
        let [branch, h] = [4, 5].map(|i| addresses.get(i).copied().unwrap_or_default());
        let count = rows as i32;
        kernel.launch(
            stream,
            (rows.div_ceil(groups(channels)), 1, 1),
            THREADS,
            arguments![x, branch, weight, h, y, rstd, count, eps],
        )
    });
}

/// Computes `dx`, with the gradient of the stream `dstream` added to it, and adds to `dweight`. `dx`
/// may be `dstream`.
pub(super) fn backward(gpu: &Arc<Gpu>, call: &Backward, dstream: Option<&CubeTensor>) {
    let Backward { dy, x, weight, rstd, dx, dweight } = call;
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
    gpu.enqueue_all(&tensors, move |stream, addresses| {
        let [dy, x, weight, rstd, dx, dweight, partial] =
            [0, 1, 2, 3, 4, 5, 6].map(|i| addresses[i]);
        let dstream = addresses.get(7).copied().unwrap_or_default();
        let (count, block_rows, parts) = (rows as i32, block_rows as i32, blocks as i32);
        backward.launch(
            stream,
            (blocks, 1, 1),
            THREADS,
            arguments![dy, x, weight, rstd, dstream, dx, partial, count, block_rows],
        )?;
        add_rows.launch(
            stream,
            (channels.div_ceil(SUM_CHANNELS), 1, 1),
            THREADS,
            arguments![partial, dweight, parts],
        )
    });
}
