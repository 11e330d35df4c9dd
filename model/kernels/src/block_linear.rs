//! The linear layer of inference with weights in blocks of small integers, as GGUF files have them.
//!
//! ```text
//! y_mn = Σ_g (s_ng t_mg) Σ_k∈g u_nk q_mk  −  Σ_g a_ng (t_mg Σ_k∈g q_mk)
//! ```
//!
//! An element of the weight is `s u`, or `s u − a`, with an integer `u` and the scale `s` and minimum `a`
//! of its group `g`; a row of `x` is rounded to 8 bits, `x ≈ t q` with a scale for every 32 elements
//! (`activations`). The inner sum is of integers, so it is exact.
//!
//! A matrix is laid out anew when it is opened ([`BlockMatrix`]), with 16 rows side by side: one register
//! holds four elements of each, one instruction multiplies them by four elements of a row of `x`, and the
//! 16 sums are 16 outputs next to each other. The weight is read once from memory, in order, for all rows of
//! `x`.
//!
//! **An element of `y` has one order of summation**, the groups from the first to the last, whatever the
//! number of rows and threads.
//!
//! Rounding a row to 8 bits brings an error of about 0.5% of the root mean square of `y`, of the same
//! order as `q8_0` itself.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod lanes;
mod matrix;
#[cfg(test)]
mod tests;
mod tile;

use crate::element::Element;
use crate::gemm::SharedPointer;
use crate::scratch::Scratch;
#[cfg(target_arch = "x86_64")]
use crate::simd::CpuLevel;
#[cfg(not(test))]
use crate::simd::cpu_level;
#[cfg(test)]
use crate::test_support::level as cpu_level;
use activations::{bytes_of_row, quantize_row};
use format::{Format, with_format};
use lanes::LANES;
use rayon::prelude::*;
use tile::Tile;

pub use format::BlockFormat;
pub use matrix::BlockMatrix;

/// Panels of 16 outputs that one task multiplies, an even number.
const TASK_PANELS: usize = 4;

/// Rows of `x` that go past a panel before the next one: they stay in the second-level cache.
const X_BLOCK: usize = 96;

/// `y` (M, outputs) `=` `x` (M, inputs) times `weight` (outputs, inputs) transposed.
///
/// # Panics
/// As every function of this crate.
pub fn block_linear<E: Element, O: Element>(y: &mut [O], x: &[E], weight: &BlockMatrix) {
    let [outputs, inputs] = weight.shape();
    let rows = x.len().checked_div(inputs).unwrap_or(0);
    assert_eq!(x.len(), rows * inputs, "block_linear: x is not rows of {inputs}");
    assert_eq!(y.len(), rows * outputs, "block_linear: y is not ({rows}, {outputs})");
    if y.is_empty() {
        return;
    }
    with_format!(weight.format(), F => for_this_cpu::<F, E, O>(y, x, weight));
}

/// With the widest instructions of this CPU.
fn for_this_cpu<F: Format, E: Element, O: Element>(y: &mut [O], x: &[E], weight: &BlockMatrix) {
    #[cfg(target_arch = "x86_64")]
    {
        // Such CPUs have the products of 8-bit integers too.
        if cpu_level() >= CpuLevel::Avx512Bf16 {
            return multiply::<avx512::Avx512, F, E, O>(y, x, weight);
        }
        if cpu_level() >= CpuLevel::Avx2 {
            return multiply::<avx2::Avx2, F, E, O>(y, x, weight);
        }
    }
    multiply::<lanes::Portable, F, E, O>(y, x, weight);
}

/// Rounds the rows of `x` and multiplies, a task for every few panels.
fn multiply<L: Tile, F: Format, E: Element, O: Element>(
    y: &mut [O],
    x: &[E],
    weight: &BlockMatrix,
) {
    let [outputs, inputs] = weight.shape();
    let row_bytes = bytes_of_row::<F>(inputs);
    let rows = x.len() / inputs;
    let mut scratch = Scratch::new::<u8>(rows * row_bytes);
    let to = scratch.as_mut::<u8>().par_chunks_exact_mut(row_bytes);
    let from = x.par_chunks_exact(inputs);
    to.zip(from).with_min_len(8).for_each(|(to, x)| quantize_row::<F, E>(to, x));

    let product =
        Product { y: SharedPointer::new(y), x: scratch.as_ref::<u8>(), row_bytes, rows, weight };
    let panels = outputs.div_ceil(LANES);
    (0..panels.div_ceil(TASK_PANELS)).into_par_iter().for_each(|task| {
        let panels = task * TASK_PANELS..((task + 1) * TASK_PANELS).min(panels);
        for row in (0..rows).step_by(X_BLOCK) {
            let rows = row..(row + X_BLOCK).min(rows);
            for panel in panels.clone().step_by(if L::IS_WIDE { 2 } else { 1 }) {
                product.rows_of_panels::<L, F>(rows.clone(), panel);
            }
        }
    });
}

/// What is to be multiplied.
struct Product<'a, O> {
    y: SharedPointer<O>,
    /// Rows rounded to 8 bits.
    x: &'a [u8],
    row_bytes: usize,
    rows: usize,
    weight: &'a BlockMatrix,
}

impl<O: Element> Product<'_, O> {
    /// Rows of `x` times the panel `panel`, and the one behind it where two are multiplied at a time.
    fn rows_of_panels<L: Tile, F: Format>(&self, rows: std::ops::Range<usize>, panel: usize) {
        let tiles = rows.len().div_ceil(if L::IS_WIDE { 6 } else { 2 });
        let mut row = rows.start;
        for tile in 0..tiles {
            // Tiles of about the same height.
            let count = (rows.end - row).div_ceil(tiles - tile);
            if L::IS_WIDE {
                match count {
                    1 => self.tile::<L, F, 1, 2>(row, panel),
                    2 => self.tile::<L, F, 2, 2>(row, panel),
                    3 => self.tile::<L, F, 3, 2>(row, panel),
                    4 => self.tile::<L, F, 4, 2>(row, panel),
                    5 => self.tile::<L, F, 5, 2>(row, panel),
                    _ => self.tile::<L, F, 6, 2>(row, panel),
                }
            } else {
                match count {
                    1 => self.tile::<L, F, 1, 1>(row, panel),
                    _ => self.tile::<L, F, 2, 1>(row, panel),
                }
            }
            row += count;
        }
    }

    fn tile<L: Tile, F: Format, const R: usize, const P: usize>(&self, row: usize, panel: usize) {
        let [outputs, inputs] = self.weight.shape();
        assert!(row + R <= self.rows, "block_linear: rows of a tile");
        let mut x = [std::ptr::null(); R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = self.x[(row + r) * self.row_bytes..][..self.row_bytes].as_ptr();
        }
        let mut w = [std::ptr::null(); P];
        for (p, w) in w.iter_mut().enumerate() {
            *w = self.weight.panel(panel + p).as_ptr();
        }
        let mut sums = [[[0.0; LANES]; P]; R];
        // SAFETY: L was chosen for this CPU; whole rows and panels of `inputs` elements, in the layout of F.
        unsafe { L::tile::<F, R, P>(&mut sums, x, w, inputs) };
        for (r, sums) in sums.iter().enumerate() {
            let first = panel * LANES;
            let count = outputs.saturating_sub(first).min(P * LANES);
            let start = (row + r) * outputs + first;
            for (n, &sum) in sums.as_flattened().iter().take(count).enumerate() {
                // SAFETY: inside y; the columns of these panels belong to this task.
                unsafe { self.y.at(start + n).write(O::from_f32(sum)) };
            }
        }
    }
}
