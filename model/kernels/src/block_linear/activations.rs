//! Rows of activations rounded to 8 bits.
//!
//! `x ≈ t q`, `q` from −127 to 127, with a scale for every [`BLOCK`] elements: `t` = largest |x| / 127.
//! The row has, one after the other:
//!
//! | part | bytes |
//! |---|---|
//! | `q`, i8 | 1 for each element |
//! | `t`, f32 | 4 for every 32 elements |
//! | corrections | 4 for each group of the weight's format |
//!
//! Products are of integers without a sign by integers with one. Where elements of the weight are stored
//! with a bias, the correction is −bias · Σ q, an i32 with which the sum of a group begins; where they have
//! a minimum, it is `t` Σ q, an f32 by which the minimum is multiplied.

use super::format::Format;
use crate::element::Element;
use crate::simd::vectorized;

/// Elements of `x` that share a scale.
pub(super) const BLOCK: usize = 32;

/// Where the parts of a row lie, in bytes.
pub(super) struct Parts {
    pub scales: usize,
    pub corrections: usize,
    end: usize,
}

/// The places of the parts of a row of `inputs` elements.
#[inline(always)]
pub(super) fn parts<F: Format>(inputs: usize) -> Parts {
    let corrections = inputs + inputs / BLOCK * 4;
    Parts { scales: inputs, corrections, end: corrections + inputs / F::GROUP * 4 }
}

/// Bytes of a row: whole cache lines.
pub(super) fn bytes_of_row<F: Format>(inputs: usize) -> usize {
    parts::<F>(inputs).end.next_multiple_of(64)
}

/// Rounds the row `x`, which is whole blocks.
pub(super) fn quantize_row<F: Format, E: Element>(to: &mut [u8], x: &[E]) {
    let Parts { scales: quants_end, corrections, end } = parts::<F>(x.len());
    let (quants, rest) = to[..end].split_at_mut(quants_end);
    let (scales, corrections) = rest.split_at_mut(corrections - quants_end);
    let quants: &mut [i8] = bytemuck::cast_slice_mut(quants);
    let scales: &mut [f32] = bytemuck::cast_slice_mut(scales);
    quantize(quants, scales, x);
    for (n, (to, quants)) in
        corrections.chunks_exact_mut(4).zip(quants.chunks_exact(F::GROUP)).enumerate()
    {
        let total: i32 = quants.iter().map(|&q| i32::from(q)).sum();
        let correction = if F::HAS_MINIMUM {
            (scales[n * F::GROUP / BLOCK] * total as f32).to_ne_bytes()
        } else {
            (-F::BIAS * total).to_ne_bytes()
        };
        to.copy_from_slice(&correction);
    }
}

vectorized! {
    /// Rounds block by block. The scale of a block with what is not a number is none either, so that the
    /// products are none.
    fn quantize<E: Element>(quants: &mut [i8], scales: &mut [f32], x: &[E]) {
        let blocks = x.chunks_exact(BLOCK).zip(quants.chunks_exact_mut(BLOCK));
        for ((x, quants), scale) in blocks.zip(scales) {
            let mut values = [0.0f32; BLOCK];
            let mut magnitudes = [0.0f32; BLOCK];
            let mut all_finite = true;
            for i in 0..BLOCK {
                values[i] = x[i].to_f32();
                magnitudes[i] = values[i].abs();
                all_finite &= magnitudes[i] < f32::INFINITY;
            }
            let mut width = BLOCK / 2;
            while width > 0 {
                for i in 0..width {
                    let other = magnitudes[i + width];
                    magnitudes[i] = if other > magnitudes[i] { other } else { magnitudes[i] };
                }
                width /= 2;
            }
            let inverse = 127.0 / magnitudes[0];
            if !(all_finite && inverse.is_finite()) {
                quants.fill(0);
                *scale = if all_finite { 0.0 } else { f32::NAN };
                continue;
            }
            *scale = magnitudes[0] / 127.0;
            for i in 0..BLOCK {
                quants[i] = (values[i] * inverse).round_ties_even() as i32 as i8;
            }
        }
    }
}
