//! Matrix products: the vendor's library on NVIDIA GPUs, cubek's kernels elsewhere.

use burn::tensor::{DType, Shape};
use burn_cubecl::Cube;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::{permute, reshape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::CubeDim;

use super::kernels::elementwise;
use super::kernels::reduction::THREADS;
use super::tensor::{
    before_other_work, dims, elements, new, new_like, rows_and_width, units, vector,
};
use crate::backend::TransformerOps;

/// A matrix stored by rows, read as it is or transposed.
#[derive(Clone)]
pub(super) struct Operand {
    /// (rows, columns) as stored, without gaps.
    pub tensor: CubeTensor,
    /// Whether the product reads columns for rows.
    pub transposed: bool,
}

impl Operand {
    /// `tensor` with all its leading dimensions as rows.
    pub fn rows(tensor: &CubeTensor) -> Self {
        let (rows, width) = rows_and_width(tensor);
        let tensor = reshape(tensor.clone(), Shape::from(vec![rows, width]));
        Self { tensor, transposed: false }
    }

    /// The transpose of [`Self::rows`].
    pub fn columns(tensor: &CubeTensor) -> Self {
        Self { transposed: true, ..Self::rows(tensor) }
    }

    /// Rows and columns as the product reads them.
    pub fn shape(&self) -> (usize, usize) {
        let (rows, columns) = rows_and_width(&self.tensor);
        if self.transposed { (columns, rows) } else { (rows, columns) }
    }
}

/// left (m, k) · right (k, n) as a new tensor of `out_dims` (m · n elements) in `dtype`. Operands
/// have one type, f32 or bf16; sums are f32.
pub(super) fn product(
    left: &Operand,
    right: &Operand,
    out_dims: &[usize],
    dtype: DType,
) -> CubeTensor {
    let ((m, _), (_, n)) = (left.shape(), right.shape());
    let out = new(&left.tensor, &[m, n], dtype);
    #[cfg(feature = "cuda")]
    if super::cuda::products::product(left, right, None, &out) {
        return reshape(out, Shape::from(out_dims.to_vec()));
    }
    let out = cubek_product(left, right, out);
    reshape(out, Shape::from(out_dims.to_vec()))
}

/// sum (m, n) += left (m, k) · right (k, n), in place: an f32 sum, or one in the type of the operands.
pub(super) fn add_product(sum: CubeTensor, left: &Operand, right: &Operand) -> CubeTensor {
    #[cfg(feature = "cuda")]
    if super::cuda::products::product(left, right, Some(&sum), &sum) {
        return sum;
    }
    let ((m, _), (_, n)) = (left.shape(), right.shape());
    let term = cubek_product(left, right, new(&sum, &[m, n], sum.dtype));
    if sum.dtype != DType::F32 {
        return Cube::residual_forward(sum, term);
    }
    let size = vector(elements(&sum), DType::F32);
    // SAFETY: both buffers hold as many elements, and the kernel stops at the end of `sum`.
    unsafe {
        elementwise::accumulate::launch_unchecked(
            &term.client.clone(),
            units(elements(&sum) / size),
            CubeDim::new_1d(THREADS as u32),
            size,
            sum.clone().into_buffer_arg(),
            term.into_buffer_arg(),
        );
    }
    sum
}

/// `term` + left (m, k) · right (k, n) as a new tensor of the shape and type of `term`, m · n elements.
pub(super) fn sum_and_product(term: CubeTensor, left: &Operand, right: &Operand) -> CubeTensor {
    #[cfg(feature = "cuda")]
    {
        let out = new_like(&term);
        if super::cuda::products::product(left, right, Some(&term), &out) {
            return out;
        }
    }
    let branch = product(left, right, &dims(&term), term.dtype);
    Cube::residual_forward(branch, term)
}

/// Writes left (m, k) · right (k, n) to `out`, a view of m · n elements. False where only a product
/// of its own can be computed.
pub(super) fn product_into(left: &Operand, right: &Operand, out: &CubeTensor) -> bool {
    #[cfg(feature = "cuda")]
    return super::cuda::products::product(left, right, None, out);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (left, right, out);
        false
    }
}

/// The product by cubek, which reads transposed operands through their strides.
fn cubek_product(left: &Operand, right: &Operand, out: CubeTensor) -> CubeTensor {
    let view = |operand: &Operand| match operand.transposed {
        true => permute(operand.tensor.clone(), &[1, 0]),
        false => operand.tensor.clone(),
    };
    let dtype = out.dtype;
    before_other_work();
    matmul(view(left), view(right), Some(out), MatmulStrategy::Cube, dtype)
        .unwrap_or_else(|error| panic!("matrix product: {error:?}"))
}
