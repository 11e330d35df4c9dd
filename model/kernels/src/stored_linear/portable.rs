//! The kernels in plain Rust, for any CPU.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::activations::{GROUP, parts};
use super::{BLOCK, DotKernel, Q4_0_BYTES, Q8_0_BYTES, WEIGHT_ROWS};

/// Products of f32 with elements that are widened to it.
pub(super) struct Floats<W>(PhantomData<W>);

/// Products of integers.
pub(super) struct Integers<W>(PhantomData<W>);

/// A floating-point format.
pub(super) trait Float {
    /// Bytes of an element.
    const BYTES: usize;
    /// The element of these bytes.
    fn value(bytes: &[u8]) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Float for F32 {
    const BYTES: usize = 4;

    fn value(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Float for F16 {
    const BYTES: usize = 2;

    fn value(bytes: &[u8]) -> f32 {
        f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

impl Float for Bf16 {
    const BYTES: usize = 2;

    fn value(bytes: &[u8]) -> f32 {
        bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

/// A format of blocks.
pub(super) trait Blocks {
    /// Bytes of a block, the f16 scale in front.
    const BYTES: usize;
    /// The integers of a block behind its scale.
    fn integers(bytes: &[u8]) -> [i8; BLOCK];
}

pub(super) struct Q8_0;
pub(super) struct Q4_0;

impl Blocks for Q8_0 {
    const BYTES: usize = Q8_0_BYTES;

    fn integers(bytes: &[u8]) -> [i8; BLOCK] {
        std::array::from_fn(|i| bytes[i] as i8)
    }
}

impl Blocks for Q4_0 {
    const BYTES: usize = Q4_0_BYTES;

    fn integers(bytes: &[u8]) -> [i8; BLOCK] {
        let half = BLOCK / 2;
        std::array::from_fn(|i| {
            let nibble = if i < half { bytes[i] & 15 } else { bytes[i - half] >> 4 };
            nibble as i8 - 8
        })
    }
}

/// Bytes `from` to `from + length` of a row.
///
/// # Safety
///
/// They must be readable as long as they are used.
unsafe fn bytes<'a>(row: *const u8, from: usize, length: usize) -> &'a [u8] {
    // SAFETY: passed on.
    unsafe { std::slice::from_raw_parts(row.add(from), length) }
}

// SAFETY: needs nothing of the CPU.
unsafe impl<W: Float> DotKernel for Floats<W> {
    const X_ROWS: usize = 2;

    unsafe fn dot<const R: usize>(
        x: [*const u8; R],
        w: [*const u8; WEIGHT_ROWS],
        inputs: usize,
        _ahead: usize,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        x.map(|x| {
            w.map(|w| {
                // SAFETY: rows of `inputs` elements.
                let (x, w) = unsafe { (bytes(x, 0, 4 * inputs), bytes(w, 0, W::BYTES * inputs)) };
                let mut sums = [0.0f32; 8];
                let pairs = x.chunks_exact(4).zip(w.chunks_exact(W::BYTES));
                for (i, (x, w)) in pairs.enumerate() {
                    sums[i % 8] += F32::value(x) * W::value(w);
                }
                sums.iter().sum()
            })
        })
    }
}

// SAFETY: needs nothing of the CPU.
unsafe impl<W: Blocks> DotKernel for Integers<W> {
    const X_ROWS: usize = 2;

    unsafe fn dot<const R: usize>(
        x: [*const u8; R],
        w: [*const u8; WEIGHT_ROWS],
        inputs: usize,
        _ahead: usize,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        let scales_at = parts(inputs).scales;
        x.map(|x| {
            w.map(|w| {
                let mut sum = 0.0;
                for group in 0..inputs.div_ceil(GROUP) {
                    let blocks = group * GROUP / BLOCK..((group + 1) * GROUP).min(inputs) / BLOCK;
                    let mut inner = 0.0;
                    for block in blocks {
                        // SAFETY: block of a row of `inputs` elements.
                        let (x, w) = unsafe {
                            (bytes(x, block * BLOCK, BLOCK), bytes(w, block * W::BYTES, W::BYTES))
                        };
                        let products = x.iter().zip(W::integers(&w[2..]));
                        let total: i32 =
                            products.map(|(&x, w)| i32::from(x as i8) * i32::from(w)).sum();
                        inner += F16::value(w) * total as f32;
                    }
                    // SAFETY: the scale of this group.
                    let scale = unsafe { bytes(x, scales_at + 4 * group, 4) };
                    sum += F32::value(scale) * inner;
                }
                sum
            })
        })
    }
}
