//! The kernels in plain Rust, for any CPU.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::{DotKernel, WEIGHT_ROWS};

/// Products of f32 with elements that are widened to it.
pub(super) struct Floats<W>(PhantomData<W>);

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
        _next: *const u8,
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
