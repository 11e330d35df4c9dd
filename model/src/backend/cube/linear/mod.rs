//! Linear layers and the logits of the head, by matrix products: the vendor's library on NVIDIA GPUs,
//! cubek's kernels elsewhere.

mod cubecl;
mod cuda;

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::reshape;
use burn_cubecl::tensor::CubeTensor;

use super::elementwise::{self, write_at};
use super::engine::{Call, Engine};
use super::nvidia::{Gpu, Problem};
use super::tensor::{
    accumulator, contiguous, dims, is_owned, new, new_like, row_range, rows_and_width,
};

/// A matrix stored by rows, read as it is or transposed.
#[derive(Clone)]
pub(super) struct Operand {
    /// (rows, columns) as stored, without gaps.
    tensor: CubeTensor,
    /// Whether the product reads columns for rows.
    transposed: bool,
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
    fn shape(&self) -> (usize, usize) {
        let (rows, columns) = rows_and_width(&self.tensor);
        if self.transposed { (columns, rows) } else { (rows, columns) }
    }
}

/// left (m, k) · right (k, n). Operands have one type, f32 or bf16; sums are f32.
struct Product<'a> {
    left: &'a Operand,
    right: &'a Operand,
    /// The type of the result.
    dtype: DType,
}

impl Product<'_> {
    fn problem(&self) -> Problem {
        let ((m, k), (_, n)) = (self.left.shape(), self.right.shape());
        Problem {
            m,
            n,
            k,
            left_transposed: self.left.transposed,
            right_transposed: self.right.transposed,
            input: self.left.tensor.dtype,
            output: self.dtype,
        }
    }

    /// A tensor (m, n) for the result.
    fn output(&self) -> CubeTensor {
        let ((m, _), (_, n)) = (self.left.shape(), self.right.shape());
        new(&self.left.tensor, &[m, n], self.dtype)
    }
}

impl Call for Product<'_> {
    fn tensor(&self) -> &CubeTensor {
        &self.left.tensor
    }

    fn suits_cuda(&self) -> bool {
        cuda::is_wanted()
    }

    fn suits(&self, gpu: &Gpu) -> bool {
        gpu.multiplies(self.problem())
    }
}

/// left (m, k) · right (k, n) as a new tensor of `out_dims` (m · n elements) in `dtype`.
pub(super) fn product(
    left: &Operand,
    right: &Operand,
    out_dims: &[usize],
    dtype: DType,
) -> CubeTensor {
    let call = Product { left, right, dtype };
    let out = call.output();
    let out = match Engine::for_op(&call) {
        Engine::Cuda(gpu) => {
            cuda::product(&gpu, &call, None, &out);
            out
        }
        Engine::CubeCl => cubecl::product(&call, out),
    };
    reshape(out, Shape::from(out_dims.to_vec()))
}

/// sum (m, n) += left (m, k) · right (k, n), in place: an f32 sum, or one in the type of the operands.
pub(super) fn add_product(sum: CubeTensor, left: &Operand, right: &Operand) -> CubeTensor {
    let call = Product { left, right, dtype: sum.dtype };
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => {
            cuda::product(&gpu, &call, Some(&sum), &sum);
            sum
        }
        Engine::CubeCl => {
            let term = cubecl::product(&call, call.output());
            if sum.dtype != DType::F32 {
                return elementwise::residual_forward(sum, term);
            }
            cubecl::accumulate(&sum, term);
            sum
        }
    }
}

/// `term` + left (m, k) · right (k, n) as a new tensor of the shape and type of `term`, m · n elements.
fn sum_and_product(term: CubeTensor, left: &Operand, right: &Operand) -> CubeTensor {
    let call = Product { left, right, dtype: term.dtype };
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => {
            let out = new_like(&term);
            cuda::product(&gpu, &call, Some(&term), &out);
            out
        }
        Engine::CubeCl => {
            let branch = cubecl::product(&call, call.output());
            elementwise::residual_forward(reshape(branch, Shape::from(dims(&term))), term)
        }
    }
}

/// Writes left (m, k) · right (k, n) to rows `first`.. of `target` (rows, n), which start where
/// [`row_range`] wants them.
pub(super) fn product_into(left: &Operand, right: &Operand, target: &CubeTensor, first: usize) {
    let call = Product { left, right, dtype: target.dtype };
    let ((m, _), (_, n)) = (left.shape(), right.shape());
    match Engine::for_op(&call) {
        Engine::Cuda(gpu) => cuda::product(&gpu, &call, None, &row_range(target, first, m)),
        Engine::CubeCl => write_at(&cubecl::product(&call, call.output()), target, first * n),
    }
}

/// The shape of `x` with another last dimension.
fn with_width(x: &CubeTensor, width: usize) -> Vec<usize> {
    let mut shape = dims(x);
    *shape.last_mut().expect("a tensor has a last dimension") = width;
    shape
}

/// `x` (…, in) · `weight` (out, in)ᵀ in `dtype`.
fn forward_in(x: CubeTensor, weight: CubeTensor, dtype: DType) -> CubeTensor {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let shape = with_width(&x, rows_and_width(&weight).0);
    product(&Operand::rows(&x), &Operand::columns(&weight), &shape, dtype)
}

pub(super) fn forward(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let dtype = x.dtype;
    forward_in(x, weight, dtype)
}

pub(super) fn head_logits(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    forward_in(x, weight, DType::F32)
}

pub(super) fn residual_forward(
    residual: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
) -> CubeTensor {
    let (residual, x, weight) = (contiguous(residual), contiguous(x), contiguous(weight));
    sum_and_product(residual, &Operand::rows(&x), &Operand::columns(&weight))
}

pub(super) fn backward_input(dy: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let (dy, weight) = (contiguous(dy), contiguous(weight));
    let shape = with_width(&dy, rows_and_width(&weight).1);
    product(&Operand::rows(&dy), &Operand::rows(&weight), &shape, dy.dtype)
}

pub(super) fn backward_input_add(dx: CubeTensor, dy: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let (dy, weight) = (contiguous(dy), contiguous(weight));
    // A product that the library adds to `dx` rounds once, a product with a sum after it twice. Which
    // of them runs must depend on the caller alone, so `is_owned` waits for the device's thread, which
    // holds `dx` for a moment after it was allocated.
    if !is_owned(&dx) {
        return elementwise::residual_forward(backward_input(dy, weight), dx);
    }
    add_product(contiguous(dx), &Operand::rows(&dy), &Operand::rows(&weight))
}

pub(super) fn backward_weight(dweight: CubeTensor, dy: CubeTensor, x: CubeTensor) -> CubeTensor {
    let dweight = accumulator(dweight, "linear_backward_weight");
    let (dy, x) = (contiguous(dy), contiguous(x));
    add_product(dweight, &Operand::columns(&dy), &Operand::rows(&x))
}
