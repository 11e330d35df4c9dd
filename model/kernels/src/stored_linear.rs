//! The linear layer of inference: rows of activations times a weight that stays in the format it is
//! stored in, wherever it lies in memory.
//!
//! ```text
//! y_mn = Σ_k x_mk w_nk
//! ```
//!
//! Rows of `x` and of the weight both lie along the contraction, so nothing is packed: a kernel
//! (`DotKernel`) takes a few rows of `x` and four of the weight, keeps a vector of sums for every
//! pair in registers and adds up its lanes at the end. The weight is read once from memory for all
//! rows of `x`, which is what generation waits for.
//!
//! **An element of `y` has one order of summation**, the steps of its kernel from the first to the last.
//! It depends on the CPU, the format and the length of the rows alone: a row has the same bits alone and
//! among thousands, and for any number of threads.
//!
//! | format | products |
//! |---|---|
//! | `f32`, `f16`, and `bf16` with f32 activations | widened in registers, f32 |
//! | `bf16` with bf16 activations | pairs of bf16 into f32 sums where the CPU has them, else as above |
//!
//! Blocks of small integers have kernels of their own, in [`block_linear`](mod@crate::block_linear).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

use crate::element::Element;
use crate::gemm::SharedPointer;
use crate::linear::LinearShape;
use crate::scratch::Scratch;
#[cfg(target_arch = "x86_64")]
use crate::simd::CpuLevel;
#[cfg(not(test))]
use crate::simd::cpu_level;
use crate::simd::vectorized;
#[cfg(test)]
use crate::test_support::level as cpu_level;
use rayon::prelude::*;

/// How the elements of a weight are stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// 32-bit floating point.
    F32,
    /// 16-bit IEEE floating point.
    F16,
    /// 16-bit brain floating point.
    Bf16,
}

impl WeightFormat {
    /// Bytes of a row of `inputs` elements.
    fn row_bytes(self, inputs: usize) -> usize {
        match self {
            Self::F32 => inputs * 4,
            Self::F16 | Self::Bf16 => inputs * 2,
        }
    }
}

/// A weight (outputs, inputs) as it is stored.
#[derive(Clone, Copy)]
pub struct StoredWeight<'a> {
    /// Row after row. They need not be aligned.
    pub bytes: &'a [u8],
    /// How the elements are stored.
    pub format: WeightFormat,
    /// Which column of `y` a row belongs to.
    pub order: RowOrder,
}

/// Which column of `y` a row of a weight belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Row n to column n.
    AsStored,
    /// Rows 2i and 2i + 1 of a head, which rotary embeddings turn together, to columns i and i + D/2
    /// of it.
    PairsToHalves {
        /// Rows of a head, `D`.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The column of row `row`.
    #[inline(always)]
    fn column(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::PairsToHalves { head_dim } => {
                let place = row % head_dim;
                row - place + place % 2 * (head_dim / 2) + place / 2
            }
        }
    }
}

/// Rows of the weight that a kernel takes at a time.
const WEIGHT_ROWS: usize = 4;

/// Most rows of `x` that any kernel takes at a time.
const MOST_X_ROWS: usize = 6;

/// Rows of the weight that one task multiplies.
const TASK_ROWS: usize = 64;

/// Rows of `x` that go past a few rows of the weight before the next ones: they stay in the second-level
/// cache.
const X_BLOCK: usize = 96;

/// Sums of products of rows, with the instructions of one kind of CPU.
///
/// # Safety
///
/// A kernel may be used only on a CPU that has its instructions: [`choose`] sees to it.
unsafe trait DotKernel {
    /// Most rows of `x` that it takes at a time.
    const X_ROWS: usize;

    /// The sums `[r][w]` over `inputs` elements of row `r` of `x` and row `w` of the weight.
    ///
    /// # Safety
    ///
    /// Rows of `x` are as [`Activations`] has them for this kernel, rows of the weight as its format
    /// says, all of `inputs` elements. As many bytes from `next` on are read next, unless it is null:
    /// the kernel may prefetch them, wherever they are.
    unsafe fn dot<const R: usize>(
        x: [*const u8; R],
        w: [*const u8; WEIGHT_ROWS],
        inputs: usize,
        next: *const u8,
    ) -> [[f32; WEIGHT_ROWS]; R];
}

/// `y` (M, outputs) `=` `x` (M, inputs) times `weight` (outputs, inputs) transposed.
///
/// # Panics
/// As every function of this crate.
pub fn stored_linear<E: Element, O: Element>(
    y: &mut [O],
    x: &[E],
    weight: StoredWeight<'_>,
    shape: LinearShape,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let row_bytes = weight.format.row_bytes(inputs);
    assert_eq!(x.len(), rows * inputs, "stored_linear: x is not ({rows}, {inputs})");
    assert_eq!(y.len(), rows * outputs, "stored_linear: y is not ({rows}, {outputs})");
    assert_eq!(weight.bytes.len(), outputs * row_bytes, "stored_linear: the weight's bytes");
    if let RowOrder::PairsToHalves { head_dim } = weight.order {
        let whole = head_dim > 0 && head_dim % 2 == 0 && outputs.is_multiple_of(head_dim);
        assert!(whole, "stored_linear: {outputs} rows are not heads of {head_dim}");
    }
    if rows == 0 || outputs == 0 {
        return;
    }
    choose::<E>(weight.format).run(Product {
        y: SharedPointer::new(y),
        x,
        weight,
        row_bytes,
        shape,
    });
}

/// What is to be multiplied.
struct Product<'a, E, O> {
    y: SharedPointer<O>,
    x: &'a [E],
    weight: StoredWeight<'a>,
    row_bytes: usize,
    shape: LinearShape,
}

/// The form in which a kernel reads rows of `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    F32,
    Bf16,
}

/// Which kernel, for products with a weight of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Bf16Pairs,
    #[cfg(target_arch = "x86_64")]
    Avx512(WeightFormat),
    #[cfg(target_arch = "x86_64")]
    Avx2(WeightFormat),
    Portable(WeightFormat),
}

/// The kernel for activations `E` and a weight of this format on this CPU.
fn choose<E: Element>(format: WeightFormat) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        let level = cpu_level();
        if level >= CpuLevel::Avx512Bf16 && E::IS_BF16 && format == WeightFormat::Bf16 {
            return Kernel::Bf16Pairs;
        }
        if level >= CpuLevel::Avx512 {
            return Kernel::Avx512(format);
        }
        if level >= CpuLevel::Avx2 {
            return Kernel::Avx2(format);
        }
    }
    Kernel::Portable(format)
}

impl Kernel {
    fn run<E: Element, O: Element>(self, product: Product<'_, E, O>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Pairs => product.run::<avx512::Bf16Pairs>(Form::Bf16),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(format) => match format {
                WeightFormat::F32 => product.run::<avx512::Floats<avx512::F32>>(Form::F32),
                WeightFormat::F16 => product.run::<avx512::Floats<avx512::F16>>(Form::F32),
                WeightFormat::Bf16 => product.run::<avx512::Floats<avx512::Bf16>>(Form::F32),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(format) => match format {
                WeightFormat::F32 => product.run::<avx2::Floats<avx2::F32>>(Form::F32),
                WeightFormat::F16 => product.run::<avx2::Floats<avx2::F16>>(Form::F32),
                WeightFormat::Bf16 => product.run::<avx2::Floats<avx2::Bf16>>(Form::F32),
            },
            Self::Portable(format) => match format {
                WeightFormat::F32 => product.run::<portable::Floats<portable::F32>>(Form::F32),
                WeightFormat::F16 => product.run::<portable::Floats<portable::F16>>(Form::F32),
                WeightFormat::Bf16 => product.run::<portable::Floats<portable::Bf16>>(Form::F32),
            },
        }
    }
}

/// Rows of `x` in the form that a kernel reads.
struct Activations<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
}

impl Activations<'_> {
    /// `R` rows from `first` on.
    fn rows<const R: usize>(&self, first: usize) -> [*const u8; R] {
        let mut rows = [self.bytes.as_ptr(); R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = self.bytes[(first + r) * self.row_bytes..].as_ptr();
        }
        rows
    }
}

/// Bytes from a row of `x` to the next. Rows whose bytes are a multiple of a page compete for the same few
/// places of the first-level cache: they lie a cache line further apart.
fn distance_of_rows(row_bytes: usize) -> usize {
    if row_bytes.is_multiple_of(4096) { row_bytes + 64 } else { row_bytes }
}

impl<E: Element, O: Element> Product<'_, E, O> {
    /// Brings `x` into the form that `K` reads, and multiplies.
    fn run<K: DotKernel>(self, form: Form) {
        let LinearShape { rows, inputs, .. } = self.shape;
        let as_they_are = form == Form::Bf16 || !E::IS_BF16;
        let element = if as_they_are { size_of::<E>() } else { size_of::<f32>() };
        let row_bytes = distance_of_rows(inputs * element);
        if as_they_are && (rows == 1 || row_bytes == inputs * element) {
            let activations = Activations { bytes: bytemuck::cast_slice(self.x), row_bytes };
            return self.multiply::<K>(&activations);
        }
        let mut scratch = Scratch::new::<u8>(rows * row_bytes);
        if inputs > 0 {
            let to = scratch.as_mut::<u8>().par_chunks_exact_mut(row_bytes);
            let from = self.x.par_chunks_exact(inputs);
            to.zip(from).with_min_len(8).for_each(|(to, x)| {
                let to = &mut to[..inputs * element];
                if as_they_are {
                    to.copy_from_slice(bytemuck::cast_slice(x));
                } else {
                    widen_row(bytemuck::cast_slice_mut(to), x);
                }
            });
        }
        self.multiply::<K>(&Activations { bytes: scratch.as_ref::<u8>(), row_bytes });
    }

    fn multiply<K: DotKernel>(&self, x: &Activations<'_>) {
        let tasks = self.shape.outputs.div_ceil(TASK_ROWS);
        (0..tasks).into_par_iter().for_each(|task| {
            let first = task * TASK_ROWS;
            let end = (first + TASK_ROWS).min(self.shape.outputs);
            for row in (0..self.shape.rows).step_by(X_BLOCK) {
                let rows = row..(row + X_BLOCK).min(self.shape.rows);
                for panel in (first..end).step_by(WEIGHT_ROWS) {
                    self.multiply_panel::<K>(x, rows.clone(), panel);
                }
            }
        });
    }

    /// Some rows of `x` times the four rows of the weight from `first` on, or those there are.
    fn multiply_panel<K: DotKernel>(
        &self,
        x: &Activations<'_>,
        rows: std::ops::Range<usize>,
        first: usize,
    ) {
        let LinearShape { outputs, .. } = self.shape;
        // A row beyond the last is the last once more, and its sums are not written.
        let stored = |w: usize| {
            let row = (first + w).min(outputs - 1);
            &self.weight.bytes[row * self.row_bytes..][..self.row_bytes]
        };
        let w: [*const u8; WEIGHT_ROWS] = std::array::from_fn(|n| stored(n).as_ptr());
        let mut next = w[0].wrapping_add(WEIGHT_ROWS * self.row_bytes);
        let tiles = rows.len().div_ceil(K::X_ROWS.min(MOST_X_ROWS));
        let mut row = rows.start;
        for tile in 0..tiles {
            // Tiles of about the same height.
            let count = (rows.end - row).div_ceil(tiles - tile);
            match count {
                1 => self.multiply_tile::<K, 1>(x, row, w, next, first),
                2 => self.multiply_tile::<K, 2>(x, row, w, next, first),
                3 => self.multiply_tile::<K, 3>(x, row, w, next, first),
                4 => self.multiply_tile::<K, 4>(x, row, w, next, first),
                5 => self.multiply_tile::<K, 5>(x, row, w, next, first),
                _ => self.multiply_tile::<K, MOST_X_ROWS>(x, row, w, next, first),
            }
            row += count;
            next = std::ptr::null();
        }
    }

    #[inline(always)]
    fn multiply_tile<K: DotKernel, const R: usize>(
        &self,
        x: &Activations<'_>,
        row: usize,
        w: [*const u8; WEIGHT_ROWS],
        next: *const u8,
        first: usize,
    ) {
        let LinearShape { inputs, outputs, .. } = self.shape;
        // SAFETY: K runs on this CPU, and these are rows in the form and the format it was chosen for.
        let sums = unsafe { K::dot::<R>(x.rows(row), w, inputs, next) };
        let together = self.weight.order == RowOrder::AsStored && outputs - first >= WEIGHT_ROWS;
        for (r, sums) in sums.iter().enumerate() {
            let start = (row + r) * outputs;
            if together {
                // SAFETY: inside y; the columns of these rows belong to this task.
                let to = unsafe { self.y.at(start + first) }.cast::<[O; WEIGHT_ROWS]>();
                // SAFETY: as above; arrays are aligned as their elements are.
                unsafe { to.write(sums.map(O::from_f32)) };
                continue;
            }
            for (n, &sum) in sums.iter().enumerate().take(outputs - first) {
                let column = self.weight.order.column(first + n);
                // SAFETY: inside y; the columns of these rows belong to this task.
                unsafe { self.y.at(start + column).write(O::from_f32(sum)) };
            }
        }
    }
}

vectorized! {
    /// The same numbers in f32.
    fn widen_row<E: Element>(to: &mut [f32], x: &[E]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = x.to_f32();
        }
    }
}
