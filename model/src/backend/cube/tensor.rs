//! Tensors as the kernels take them: rows without gaps, in order; and how many threads to start.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind, VectorSize};
use cubecl::zspace::Strides;
use cubecl::zspace::metadata::Metadata;
use cubecl::{CubeCount, CubeDim};

use super::nvidia::before_other_work;
use super::reduction::THREADS;

/// Cubes along one axis of the grid that every runtime allows (WebGPU's limit, and CUDA's for the
/// second axis).
const LONGEST_AXIS: usize = 65_535;

/// Bytes a thread loads at once.
const LOAD_BYTES: usize = 16;

/// The tensor itself when its elements already lie in order, a copy otherwise. CUDA tensors that
/// burn allocates may have padded rows.
///
/// Kernels take the length of a buffer for that of the tensor, so the padding of a single row,
/// which lies in order, is left out.
pub(super) fn contiguous(x: CubeTensor) -> CubeTensor {
    if !x.is_contiguous() {
        before_other_work();
    }
    let mut x = into_contiguous(x);
    let bytes = (elements(&x) * x.dtype.size()) as u64;
    let padding = x.handle.size_in_used().saturating_sub(bytes);
    if padding > 0 {
        x.handle = x.handle.offset_end(padding);
    }
    x
}

/// Whether nothing else holds the storage of `x`. The device's thread does for a moment, while it
/// allocates it; that is waited for. A fault of the device shows when something is read.
pub(super) fn is_owned(x: &CubeTensor) -> bool {
    x.can_mut() || (x.client.flush().is_ok() && x.can_mut())
}

/// A tensor an op works on in place.
///
/// One with padded rows is laid out anew the first time it comes here; from then on it is the
/// tensor without gaps that the op handed back.
pub(super) fn accumulator(x: CubeTensor, op: &str) -> CubeTensor {
    assert!(is_owned(&x), "{op}: the storage it works on in place is shared");
    contiguous(x)
}

pub(super) fn dims(x: &CubeTensor) -> Vec<usize> {
    x.meta.shape().to_vec()
}

/// Product of all dimensions but the last, and the last.
pub(super) fn rows_and_width(x: &CubeTensor) -> (usize, usize) {
    let dims = dims(x);
    let (width, leading) = dims.split_last().expect("a tensor has a last dimension");
    (leading.iter().product(), *width)
}

pub(super) fn elements(x: &CubeTensor) -> usize {
    x.meta.num_elements()
}

/// An output to be written on the device of `like`: its content is meaningless.
pub(super) fn new(like: &CubeTensor, dims: &[usize], dtype: DType) -> CubeTensor {
    let shape = Shape::from(dims.to_vec());
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

pub(super) fn new_like(x: &CubeTensor) -> CubeTensor {
    new(x, &dims(x), x.dtype)
}

/// Rows `first..first + count` of `x`, all leading dimensions taken together, as a view: what is
/// written to it is written to `x`. The rows have to start where memory of their own might, at a
/// multiple of the alignment of tensors.
pub(super) fn row_range(x: &CubeTensor, first: usize, count: usize) -> CubeTensor {
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

/// The element type of a kernel for activations of `dtype`.
pub(super) fn element(dtype: DType) -> ElemType {
    match dtype {
        DType::F32 => ElemType::Float(FloatKind::F32),
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        other => panic!("no kernel for activations of {other:?}"),
    }
}

/// Elements a thread takes at once where runs of `width` elements of `dtype` are addressed: a
/// power of two that divides `width`, 16 bytes at most.
pub(super) fn vector(width: usize, dtype: DType) -> VectorSize {
    let mut size = LOAD_BYTES / dtype.size();
    while !width.is_multiple_of(size) {
        size /= 2;
    }
    size
}

/// The grid of at least `cubes` cubes, for a kernel that stops at its own count and is launched next:
/// the runtime waits for the work of the second stream first.
pub(super) fn cubes(cubes: usize) -> CubeCount {
    before_other_work();
    let rows = cubes.div_ceil(LONGEST_AXIS).max(1);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

/// The grid of at least `units` threads in cubes of [`THREADS`].
pub(super) fn units(units: usize) -> CubeCount {
    cubes(units.div_ceil(THREADS))
}

/// A cube of [`THREADS`].
pub(super) fn threads() -> CubeDim {
    CubeDim::new_1d(THREADS as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_divide_rows() {
        assert_eq!(vector(768, DType::F32), 4);
        assert_eq!(vector(768, DType::BF16), 8);
        assert_eq!(vector(33, DType::BF16), 1);
        assert_eq!(vector(6, DType::F32), 2);
    }

    #[test]
    fn grids_cover_what_was_asked_within_the_axis() {
        for count in [1, 65_535, 65_536, 131_071, 5_000_000] {
            let CubeCount::Static(x, y, z) = cubes(count) else { unreachable!() };
            assert!(x as usize * y as usize * z as usize >= count);
            assert!(x as usize <= LONGEST_AXIS && y as usize <= LONGEST_AXIS);
        }
    }
}
