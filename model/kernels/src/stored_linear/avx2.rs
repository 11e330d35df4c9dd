//! The kernels of AVX2 and FMA: 8 sums in a register.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{DotKernel, WEIGHT_ROWS};

/// Products of f32 with elements that are widened to it.
pub(super) struct Floats<W>(PhantomData<W>);

/// A floating-point format.
///
/// # Safety
///
/// The functions may be called only where AVX2 is compiled for.
pub(super) unsafe trait Float {
    /// Bytes of an element.
    const BYTES: usize;
    /// The 8 elements at `from`.
    unsafe fn load(from: *const u8) -> __m256;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

// SAFETY: inlined into kernels of AVX2.
unsafe impl Float for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the caller vouches for the elements.
        unsafe { _mm256_loadu_ps(from.cast()) }
    }
}

// SAFETY: inlined into kernels of AVX2.
unsafe impl Float for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the caller vouches for the elements.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

// SAFETY: inlined into kernels of AVX2.
unsafe impl Float for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256 {
        // SAFETY: the caller vouches for the elements.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
}

/// The sum of the lanes, halves added to halves.
#[inline]
#[target_feature(enable = "avx2,fma,bmi2")]
fn sum_lanes(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

#[inline]
#[target_feature(enable = "avx2,fma,bmi2")]
fn sum_all<const R: usize>(sums: &[[__m256; WEIGHT_ROWS]; R]) -> [[f32; WEIGHT_ROWS]; R] {
    let mut out = [[0.0; WEIGHT_ROWS]; R];
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = sum_lanes(sum);
        }
    }
    out
}

const LANES: usize = 8;

/// The last elements of a row, fewer than 8, and zeros.
///
/// # Safety
///
/// `count` elements of `bytes` bytes must be readable.
#[inline(always)]
unsafe fn tail(from: *const u8, count: usize, bytes: usize) -> [u8; 4 * LANES] {
    let mut tail = [0; 4 * LANES];
    // SAFETY: fewer than 8 elements of at most 4 bytes.
    unsafe { tail.as_mut_ptr().copy_from_nonoverlapping(from, count * bytes) };
    tail
}

// SAFETY: chosen only where cpu_level found AVX2, FMA and F16C.
unsafe impl<W: Float> DotKernel for Floats<W> {
    const X_ROWS: usize = 2;

    #[target_feature(enable = "avx2,fma,bmi2,f16c")]
    unsafe fn dot<const R: usize>(
        x: [*const u8; R],
        w: [*const u8; WEIGHT_ROWS],
        inputs: usize,
        _next: *const u8,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        let mut sums = [[_mm256_setzero_ps(); WEIGHT_ROWS]; R];
        let whole = inputs / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            let mut ws = [_mm256_setzero_ps(); WEIGHT_ROWS];
            for n in 0..WEIGHT_ROWS {
                // SAFETY: elements of the row.
                ws[n] = unsafe { W::load(w[n].add(start * W::BYTES)) };
            }
            for r in 0..R {
                // SAFETY: elements of the row.
                let x = unsafe { F32::load(x[r].add(4 * start)) };
                for n in 0..WEIGHT_ROWS {
                    sums[r][n] = _mm256_fmadd_ps(x, ws[n], sums[r][n]);
                }
            }
        }
        if whole < inputs {
            for n in 0..WEIGHT_ROWS {
                for r in 0..R {
                    let count = inputs - whole;
                    // SAFETY: the last elements of the rows, then copies of them on the stack.
                    unsafe {
                        let w = tail(w[n].add(whole * W::BYTES), count, W::BYTES);
                        let x = tail(x[r].add(4 * whole), count, 4);
                        let (x, w) = (F32::load(x.as_ptr()), W::load(w.as_ptr()));
                        sums[r][n] = _mm256_fmadd_ps(x, w, sums[r][n]);
                    }
                }
            }
        }
        sum_all(&sums)
    }
}
