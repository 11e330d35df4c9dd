//! Rows of activations in the forms that the kernels read.
//!
//! For products of integers a row is rounded to 8 bits, in groups of [`GROUP`] elements with a scale
//! each: `x ≈ s q`, `q` from −127 to 127, `s` = largest |x| / 127. The row then has, one after the
//! other, each filled up with zeros to whole steps of 64 elements:
//!
//! | part | bytes |
//! |---|---|
//! | `q` | 1 for each element |
//! | corrections, i32 | 4 for every 4 elements |
//! | `s`, f32 | 4 for each group |
//!
//! The kernels of AVX-512 multiply integers without a sign by integers with one. They take elements
//! of the weight plus a bias that makes them positive ([`Bias`]), and begin their sums with the
//! correction: −bias · Σ q of the four elements that share a sum.

use crate::element::Element;
use crate::simd::vectorized;

/// Elements that share a scale.
pub(super) const GROUP: usize = 256;

/// Elements of a step.
pub(super) const STEP: usize = 64;

/// Elements that share a sum of a step.
const SHARED: usize = 4;

/// What is added to the elements of a weight to make them positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    Q8_0 = 128,
    Q4_0 = 8,
}

/// Where the parts of a row lie, in bytes.
pub(super) struct Parts {
    pub corrections: usize,
    pub scales: usize,
    pub end: usize,
}

/// The places of the parts of a row of `inputs` elements.
#[inline(always)]
pub(super) fn parts(inputs: usize) -> Parts {
    let corrections = inputs.next_multiple_of(STEP);
    let scales = 2 * corrections;
    Parts { corrections, scales, end: scales + inputs.div_ceil(GROUP) * size_of::<f32>() }
}

/// Bytes of a row rounded to 8 bits: whole cache lines.
pub(super) fn bytes_of_row(inputs: usize) -> usize {
    parts(inputs).end.next_multiple_of(64)
}

/// Rounds the row `x` to 8 bits.
pub(super) fn quantize_row<E: Element>(to: &mut [u8], x: &[E], bias: Bias) {
    let Parts { corrections, scales, end } = parts(x.len());
    let (quants, rest) = to[..end].split_at_mut(corrections);
    let (corrections, scales) = rest.split_at_mut(scales - corrections);
    let quants: &mut [i8] = bytemuck::cast_slice_mut(quants);
    let corrections: &mut [i32] = bytemuck::cast_slice_mut(corrections);
    let scales: &mut [f32] = bytemuck::cast_slice_mut(scales);
    let groups = x.chunks(GROUP).zip(quants.chunks_mut(GROUP));
    for ((x, quants), scale) in groups.zip(scales) {
        *scale = quantize_group(quants, x);
    }
    add_up(corrections, quants, -(bias as i32));
}

vectorized! {
    /// Rounds a group, and gives its scale: not a number when one of the group is not, so that
    /// the products are none either.
    fn quantize_group<E: Element>(quants: &mut [i8], x: &[E]) -> f32 {
        let mut largest = [0.0f32; 16];
        let mut all_finite = true;
        for run in x.chunks(16) {
            for (largest, x) in largest.iter_mut().zip(run) {
                let magnitude = x.to_f32().abs();
                all_finite &= magnitude < f32::INFINITY;
                *largest = if magnitude > *largest { magnitude } else { *largest };
            }
        }
        let largest = largest.iter().fold(0.0f32, |a, &b| if b > a { b } else { a });
        let scale = largest / 127.0;
        let inverse = 127.0 / largest;
        if !(all_finite && inverse.is_finite()) {
            quants.fill(0);
            return if all_finite { 0.0 } else { f32::NAN };
        }
        let (rounded, padding) = quants.split_at_mut(x.len());
        for (q, x) in rounded.iter_mut().zip(x) {
            *q = (x.to_f32() * inverse).round_ties_even() as i32 as i8;
        }
        padding.fill(0);
        scale
    }

    /// `factor` times the sums of every four elements.
    fn add_up(sums: &mut [i32], quants: &[i8], factor: i32) {
        for (sum, quants) in sums.iter_mut().zip(quants.chunks_exact(SHARED)) {
            let total: i32 = quants.iter().map(|&q| i32::from(q)).sum();
            *sum = factor * total;
        }
    }

    /// The same numbers in f32.
    pub(super) fn widen_row<E: Element>(to: &mut [f32], x: &[E]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = x.to_f32();
        }
    }
}
