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
//! | `q8_0`, `q4_0` | of integers: activations are rounded to 8 bits, see `activations` |
//! | others | the caller decodes a row to f32 |
//!
//! Rounding a row of activations to 8 bits, in groups of 256 with a scale each, brings an error of about
//! 0.7% of the root mean square of `y` (of the same order as `q8_0` itself), which the decoded formats do
//! not have.

mod activations;
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
#[cfg(test)]
use crate::test_support::level as cpu_level;
use activations::{Bias, bytes_of_row, quantize_row};
use rayon::prelude::*;

/// How the elements of a weight are stored, little-endian.
#[derive(Clone, Copy)]
pub enum WeightFormat<'a> {
    /// 32-bit floating point.
    F32,
    /// 16-bit IEEE floating point.
    F16,
    /// 16-bit brain floating point.
    Bf16,
    /// Blocks of 32: an f16 scale, an i8 for each element.
    Q8_0,
    /// Blocks of 32: an f16 scale, half a byte for each element, 8 more than its value; byte `j` has
    /// elements `j` and `j + 16`.
    Q4_0,
    /// Rows of any other format.
    Decoded {
        /// Bytes of a row.
        row_bytes: usize,
        /// Writes the elements of a row.
        decode: &'a (dyn Fn(&[u8], &mut [f32]) + Sync),
    },
}

impl WeightFormat<'_> {
    /// Bytes of a row of `inputs` elements.
    fn row_bytes(self, inputs: usize) -> usize {
        match self {
            Self::F32 => inputs * 4,
            Self::F16 | Self::Bf16 => inputs * 2,
            Self::Q8_0 => inputs / BLOCK * Q8_0_BYTES,
            Self::Q4_0 => inputs / BLOCK * Q4_0_BYTES,
            Self::Decoded { row_bytes, .. } => row_bytes,
        }
    }
}

/// A weight (outputs, inputs) as it is stored.
#[derive(Clone, Copy)]
pub struct StoredWeight<'a> {
    /// Row after row. They need not be aligned.
    pub bytes: &'a [u8],
    /// How the elements are stored.
    pub format: WeightFormat<'a>,
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

/// Elements of a block of `q8_0` and `q4_0`, and its bytes.
const BLOCK: usize = 32;
const Q8_0_BYTES: usize = 2 + BLOCK;
const Q4_0_BYTES: usize = 2 + BLOCK / 2;

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

    /// Bytes of rows of the weight that are unpacked once for many rows of `x`; 0 where that is of no
    /// use.
    fn unpacked_bytes(_inputs: usize) -> usize {
        0
    }

    /// Unpacks rows of the weight, of `inputs` elements, for [`Self::dot_unpacked`].
    ///
    /// # Safety
    ///
    /// `to` has [`Self::unpacked_bytes`] bytes; the rest as of [`Self::dot`].
    unsafe fn unpack(_to: *mut u8, _w: [*const u8; WEIGHT_ROWS], _inputs: usize) {}

    /// The sums of [`Self::dot`], to the bit, from unpacked rows of the weight.
    ///
    /// # Safety
    ///
    /// [`Self::unpack`] wrote `unpacked`; the rest as of [`Self::dot`].
    unsafe fn dot_unpacked<const R: usize>(
        _x: [*const u8; R],
        _unpacked: *const u8,
        _inputs: usize,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        unreachable!("a kernel that unpacks has sums of what it unpacked")
    }
}

/// Rows of the weight that a tile is multiplied by.
#[derive(Clone, Copy)]
enum Panel {
    /// As they are stored, and what is read after them.
    Stored([*const u8; WEIGHT_ROWS], *const u8),
    /// As the kernel unpacked them.
    Unpacked(*const u8),
}

/// Rows of `x` from which on rows of the weight are unpacked first.
const UNPACK_FROM: usize = 8;

/// `y` (M, outputs) `=` `x` (M, inputs) times `weight` (outputs, inputs) transposed.
///
/// # Panics
/// As every function of this crate; and when a row of blocks is not whole blocks.
pub fn stored_linear<E: Element, O: Element>(
    y: &mut [O],
    x: &[E],
    weight: StoredWeight<'_>,
    shape: LinearShape,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let row_bytes = weight.format.row_bytes(inputs);
    let blocks = matches!(weight.format, WeightFormat::Q8_0 | WeightFormat::Q4_0);
    assert!(!blocks || inputs.is_multiple_of(BLOCK), "stored_linear: rows are not whole blocks");
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
    Int8(Bias),
}

/// Which kernel, for products with a weight of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512(Form, Stored),
    #[cfg(target_arch = "x86_64")]
    Avx2(Form, Stored),
    Portable(Form, Stored),
}

/// [`WeightFormat`] as the kernels see it: decoded rows are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
}

/// The kernel for activations `E` and a weight of this format on this CPU.
fn choose<E: Element>(format: WeightFormat<'_>) -> Kernel {
    let stored = match format {
        WeightFormat::F32 | WeightFormat::Decoded { .. } => Stored::F32,
        WeightFormat::F16 => Stored::F16,
        WeightFormat::Bf16 => Stored::Bf16,
        WeightFormat::Q8_0 => Stored::Q8_0,
        WeightFormat::Q4_0 => Stored::Q4_0,
    };
    let form = match stored {
        Stored::Q8_0 => Form::Int8(Bias::Q8_0),
        Stored::Q4_0 => Form::Int8(Bias::Q4_0),
        _ => Form::F32,
    };
    #[cfg(target_arch = "x86_64")]
    {
        let level = cpu_level();
        if level >= CpuLevel::Avx512Bf16 && E::IS_BF16 && stored == Stored::Bf16 {
            return Kernel::Avx512(Form::Bf16, stored);
        }
        // Its instruction for products of 8 bits came with, or before, that for bf16.
        let needed = if form == Form::F32 { CpuLevel::Avx512 } else { CpuLevel::Avx512Bf16 };
        if level >= needed {
            return Kernel::Avx512(form, stored);
        }
        if level >= CpuLevel::Avx2 {
            return Kernel::Avx2(form, stored);
        }
    }
    Kernel::Portable(form, stored)
}

impl Kernel {
    fn run<E: Element, O: Element>(self, product: Product<'_, E, O>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(Form::Bf16, _) => product.run::<avx512::Bf16Pairs>(Form::Bf16),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(form, stored) => match stored {
                Stored::F32 => product.run::<avx512::Floats<avx512::F32>>(form),
                Stored::F16 => product.run::<avx512::Floats<avx512::F16>>(form),
                Stored::Bf16 => product.run::<avx512::Floats<avx512::Bf16>>(form),
                Stored::Q8_0 => product.run::<avx512::Integers<avx512::Q8_0>>(form),
                Stored::Q4_0 => product.run::<avx512::Integers<avx512::Q4_0>>(form),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(form, stored) => match stored {
                Stored::F32 => product.run::<avx2::Floats<avx2::F32>>(form),
                Stored::F16 => product.run::<avx2::Floats<avx2::F16>>(form),
                Stored::Bf16 => product.run::<avx2::Floats<avx2::Bf16>>(form),
                Stored::Q8_0 => product.run::<avx2::Integers<avx2::Q8_0>>(form),
                Stored::Q4_0 => product.run::<avx2::Integers<avx2::Q4_0>>(form),
            },
            Self::Portable(form, stored) => match stored {
                Stored::F32 => product.run::<portable::Floats<portable::F32>>(form),
                Stored::F16 => product.run::<portable::Floats<portable::F16>>(form),
                Stored::Bf16 => product.run::<portable::Floats<portable::Bf16>>(form),
                Stored::Q8_0 => product.run::<portable::Integers<portable::Q8_0>>(form),
                Stored::Q4_0 => product.run::<portable::Integers<portable::Q4_0>>(form),
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

impl<E: Element, O: Element> Product<'_, E, O> {
    /// Brings `x` into the form that `K` reads, and multiplies.
    fn run<K: DotKernel>(self, form: Form) {
        let LinearShape { rows, inputs, .. } = self.shape;
        if form == Form::Bf16 || (form == Form::F32 && !E::IS_BF16) {
            let row_bytes = inputs * size_of::<E>();
            let activations = Activations { bytes: bytemuck::cast_slice(self.x), row_bytes };
            return self.multiply::<K>(&activations);
        }
        let row_bytes = match form {
            Form::Int8(_) => bytes_of_row(inputs),
            Form::F32 | Form::Bf16 => inputs * size_of::<f32>(),
        };
        let mut scratch = Scratch::new::<u8>(rows * row_bytes);
        if row_bytes > 0 {
            let to = scratch.as_mut::<u8>().par_chunks_exact_mut(row_bytes);
            let from = self.x.par_chunks_exact(inputs);
            let convert = |(to, x): (&mut [u8], &[E])| match form {
                Form::Int8(bias) => quantize_row(to, x, bias),
                Form::F32 | Form::Bf16 => activations::widen_row(bytemuck::cast_slice_mut(to), x),
            };
            to.zip(from).with_min_len(8).for_each(convert);
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
        let LinearShape { inputs, outputs, .. } = self.shape;
        // A row beyond the last is the last once more, and its sums are not written.
        let stored = |w: usize| {
            let row = (first + w).min(outputs - 1);
            &self.weight.bytes[row * self.row_bytes..][..self.row_bytes]
        };
        let decoded = match self.weight.format {
            WeightFormat::Decoded { decode, .. } => {
                let mut rows = Scratch::new::<f32>(WEIGHT_ROWS * inputs);
                for (n, to) in rows.as_mut::<f32>().chunks_exact_mut(inputs.max(1)).enumerate() {
                    decode(stored(n), to);
                }
                Some(rows)
            }
            _ => None,
        };
        let mut w = [std::ptr::null(); WEIGHT_ROWS];
        for (n, w) in w.iter_mut().enumerate() {
            *w = match &decoded {
                Some(rows) => rows.as_ref::<f32>()[n * inputs..].as_ptr().cast(),
                None => stored(n).as_ptr(),
            };
        }
        let unpacked_bytes = K::unpacked_bytes(inputs);
        let mut unpacked = (unpacked_bytes > 0 && rows.len() >= UNPACK_FROM)
            .then(|| Scratch::new::<u8>(unpacked_bytes));
        // Decoded rows lie in scratch memory: what follows them there is not the next rows.
        let next = match &decoded {
            Some(_) => std::ptr::null(),
            None => w[0].wrapping_add(WEIGHT_ROWS * self.row_bytes),
        };
        let mut panel = Panel::Stored(w, next);
        if let Some(unpacked) = &mut unpacked {
            let to = unpacked.as_mut::<u8>().as_mut_ptr();
            // SAFETY: K runs on this CPU; room for what is unpacked.
            unsafe { K::unpack(to, w, inputs) };
            panel = Panel::Unpacked(to);
        }
        let tiles = rows.len().div_ceil(K::X_ROWS.min(MOST_X_ROWS));
        let mut row = rows.start;
        for tile in 0..tiles {
            // Tiles of about the same height.
            let count = (rows.end - row).div_ceil(tiles - tile);
            match count {
                1 => self.multiply_tile::<K, 1>(x, row, panel, first),
                2 => self.multiply_tile::<K, 2>(x, row, panel, first),
                3 => self.multiply_tile::<K, 3>(x, row, panel, first),
                4 => self.multiply_tile::<K, 4>(x, row, panel, first),
                5 => self.multiply_tile::<K, 5>(x, row, panel, first),
                _ => self.multiply_tile::<K, MOST_X_ROWS>(x, row, panel, first),
            }
            row += count;
            if let Panel::Stored(_, next) = &mut panel {
                *next = std::ptr::null();
            }
        }
    }

    #[inline(always)]
    fn multiply_tile<K: DotKernel, const R: usize>(
        &self,
        x: &Activations<'_>,
        row: usize,
        panel: Panel,
        first: usize,
    ) {
        let LinearShape { inputs, outputs, .. } = self.shape;
        // SAFETY: K runs on this CPU, and these are rows in the form and the format it was chosen for.
        let sums = unsafe {
            match panel {
                Panel::Stored(w, next) => K::dot::<R>(x.rows(row), w, inputs, next),
                Panel::Unpacked(unpacked) => K::dot_unpacked::<R>(x.rows(row), unpacked, inputs),
            }
        };
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
