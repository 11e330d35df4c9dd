//! The fused output head and cross entropy, in chunks of tokens.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::zspace::Strides;
use cubecl::zspace::metadata::Metadata;

#[cfg(feature = "cuda")]
use super::cuda::cross_entropy::cross_entropy as cross_entropy_on_gpu;
use super::kernels::cross_entropy;
use super::product::{Operand, add_product, product, product_into};
use super::tensor::{
    accumulator, contiguous, cubes, dims, element, elements, new, new_like, rows_and_width, vector,
};
use super::{threads, write_at};

/// Tokens whose logits exist at once in the fused head: 2048 rows of a 32000-word vocabulary are
/// 262 MB of f32, enough rows to keep a product at its rate.
const HEAD_CHUNK: usize = 2048;

/// The pieces of `rows` the fused head works on: first row and count.
fn chunks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(HEAD_CHUNK).map(move |first| (first, HEAD_CHUNK.min(rows - first)))
}

/// Rows `first..first + count` of `x`, all leading dimensions taken together, as a view: what is
/// written to it is written to `x`. `first` is a multiple of [`HEAD_CHUNK`], so the rows start where
/// memory of their own might.
fn row_range(x: &CubeTensor, first: usize, count: usize) -> CubeTensor {
    let (rows, width) = rows_and_width(x);
    let bytes = |rows: usize| (rows * width * x.dtype.size()) as u64;
    let handle = x.handle.clone();
    CubeTensor::new(
        x.client.clone(),
        handle.offset_start(bytes(first)).offset_end(bytes(rows - first - count)),
        Metadata::new(Shape::from(vec![count, width]), Strides::from(vec![width, 1])),
        x.device.clone(),
        x.dtype,
    )
}

/// Losses (B, T) of `x` (B, T, C), `weight` (V, C), `targets` (B, T).
pub(super) fn forward(x: CubeTensor, weight: CubeTensor, targets: CubeTensor) -> CubeTensor {
    let (x, weight, targets) = (contiguous(x), contiguous(weight), contiguous(targets));
    let (vocabulary, _) = rows_and_width(&weight);
    let size = vector(vocabulary, DType::F32);
    let losses = new(&x, &dims(&targets), DType::F32);
    for (first, rows) in chunks(elements(&targets)) {
        let chunk = contiguous(row_range(&x, first, rows));
        let (chunk, weight) = (Operand::rows(&chunk), Operand::columns(&weight));
        let logits = product(&chunk, &weight, &[rows, vocabulary], DType::F32);
        #[cfg(feature = "cuda")]
        if cross_entropy_on_gpu([&logits, &targets, &losses], None, first, 1.0) {
            continue;
        }
        // SAFETY: a cube reads its row of V logits and writes the loss of its row; targets
        // are below V, as `TokenBatch` checked.
        unsafe {
            cross_entropy::forward::launch_unchecked(
                &x.client.clone(),
                cubes(rows),
                threads(),
                size,
                logits.into_buffer_arg(),
                targets.clone().into_buffer_arg(),
                losses.clone().into_buffer_arg(),
                first,
                rows,
                vocabulary / size,
            );
        }
    }
    losses
}

/// (losses, dx, dweight) of `scale` · Σ losses.
pub(super) fn backward(
    x: CubeTensor,
    weight: CubeTensor,
    targets: CubeTensor,
    scale: f32,
    dweight: CubeTensor,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let mut dweight = accumulator(dweight, "head_cross_entropy_backward");
    let (x, weight, targets) = (contiguous(x), contiguous(weight), contiguous(targets));
    let (vocabulary, channels) = rows_and_width(&weight);
    let size = vector(vocabulary, DType::F32);
    let losses = new(&x, &dims(&targets), DType::F32);
    let dx = new_like(&x);
    for (first, rows) in chunks(elements(&targets)) {
        let chunk = contiguous(row_range(&x, first, rows));
        let chunk = Operand::rows(&chunk);
        let logits = product(&chunk, &Operand::columns(&weight), &[rows, vocabulary], DType::F32);
        let dlogits = new(&x, &[rows, vocabulary], x.dtype);
        #[cfg(feature = "cuda")]
        let done = cross_entropy_on_gpu([&logits, &targets, &losses], Some(&dlogits), first, scale);
        #[cfg(not(feature = "cuda"))]
        let done = false;
        if !done {
            // SAFETY: as forward; `dlogits` has the shape of `logits`.
            unsafe {
                cross_entropy::backward::launch_unchecked(
                    &x.client.clone(),
                    cubes(rows),
                    threads(),
                    size,
                    logits.into_buffer_arg(),
                    targets.clone().into_buffer_arg(),
                    losses.clone().into_buffer_arg(),
                    dlogits.clone().into_buffer_arg(),
                    first,
                    rows,
                    vocabulary / size,
                    scale,
                    element(x.dtype),
                );
            }
        }
        dweight = add_product(dweight, &Operand::columns(&dlogits), &chunk);
        let weight = Operand::rows(&weight);
        let dlogits = Operand::rows(&dlogits);
        if !product_into(&dlogits, &weight, &row_range(&dx, first, rows)) {
            let dchunk = product(&dlogits, &weight, &[rows, channels], x.dtype);
            write_at(&dchunk, &dx, first * channels);
        }
    }
    (losses, dx, dweight)
}
