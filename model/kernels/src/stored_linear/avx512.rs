//! The kernels of AVX-512: 16 sums in a register.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{DotKernel, WEIGHT_ROWS};

/// Products of f32 with elements that are widened to it.
pub(super) struct Floats<W>(PhantomData<W>);

/// Products of pairs of bf16.
pub(super) struct Bf16Pairs;

/// A floating-point format.
///
/// # Safety
///
/// The functions may be called only where AVX-512 is compiled for.
pub(super) unsafe trait Float {
    /// Bytes of an element.
    const BYTES: usize;
    /// The 16 elements at `from`, or those of the mask, and zeros.
    unsafe fn load(from: *const u8, mask: __mmask16) -> __m512;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

// SAFETY: inlined into kernels of AVX-512.
unsafe impl Float for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: the caller vouches for the elements of the mask.
        unsafe { _mm512_maskz_loadu_ps(mask, from.cast()) }
    }
}

// SAFETY: inlined into kernels of AVX-512.
unsafe impl Float for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: the caller vouches for the elements of the mask.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast())) }
    }
}

// SAFETY: inlined into kernels of AVX-512.
unsafe impl Float for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: the caller vouches for the elements of the mask.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16))
        }
    }
}

/// Prefetches the `bytes` bytes that four rows have at step `step`, as if they lay one after the other.
#[inline(always)]
fn fetch(next: *const u8, step: usize, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        let line = next.wrapping_add(step * bytes + line);
        // SAFETY: a prefetch reads nothing the program sees, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
}

/// Calls `$step` with the first element and the mask of every `$lanes` of a row: whole steps, which the compiler
/// then sees without a mask, and what is left. Steps of the last rows of `x` fetch what is read next, `$bytes`
/// each.
macro_rules! for_steps {
    ($step:ident, $inputs:expr, $lanes:expr, $next:expr, $bytes:expr) => {
        let whole = $inputs / $lanes * $lanes;
        if $next.is_null() {
            for start in (0..whole).step_by($lanes) {
                $step(start, !0);
            }
        } else {
            for start in (0..whole).step_by($lanes) {
                fetch($next, start / $lanes, $bytes);
                $step(start, !0);
            }
        }
        if whole < $inputs {
            $step(whole, !0 >> ($lanes - ($inputs - whole)));
        }
    };
}

/// The four lanes left of a sum when its halves were added to each other twice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
fn quarter(x: __m512) -> __m128 {
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x))
}

/// The sums of the lanes, halves added to halves: (x₀ + x₂) + (x₁ + x₃) of the last four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
fn sum_all<const R: usize>(sums: &[[__m512; WEIGHT_ROWS]; R]) -> [[f32; WEIGHT_ROWS]; R] {
    let mut out = [[0.0; WEIGHT_ROWS]; R];
    for (out, [a, b, c, d]) in out.iter_mut().zip(sums) {
        let (a, b, c, d) = (quarter(*a), quarter(*b), quarter(*c), quarter(*d));
        let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        let four = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
        // SAFETY: four floats.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), four) };
    }
    out
}

// SAFETY: chosen only where cpu_level found AVX-512.
unsafe impl<W: Float> DotKernel for Floats<W> {
    const X_ROWS: usize = 6;

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
    unsafe fn dot<const R: usize>(
        x: [*const u8; R],
        w: [*const u8; WEIGHT_ROWS],
        inputs: usize,
        next: *const u8,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        const LANES: usize = 16;
        let mut sums = [[_mm512_setzero_ps(); WEIGHT_ROWS]; R];
        let mut step = |start: usize, mask: __mmask16| {
            let mut ws = [_mm512_setzero_ps(); WEIGHT_ROWS];
            for n in 0..WEIGHT_ROWS {
                // SAFETY: elements of the row.
                ws[n] = unsafe { W::load(w[n].add(start * W::BYTES), mask) };
            }
            for r in 0..R {
                // SAFETY: elements of the row.
                let x = unsafe { F32::load(x[r].add(start * 4), mask) };
                for n in 0..WEIGHT_ROWS {
                    sums[r][n] = _mm512_fmadd_ps(x, ws[n], sums[r][n]);
                }
            }
        };
        for_steps!(step, inputs, LANES, next, WEIGHT_ROWS * LANES * W::BYTES);
        sum_all(&sums)
    }
}

// SAFETY: chosen only where cpu_level found AVX512-BF16.
unsafe impl DotKernel for Bf16Pairs {
    const X_ROWS: usize = 6;

    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2"
    )]
    unsafe fn dot<const R: usize>(
        x: [*const u8; R],
        w: [*const u8; WEIGHT_ROWS],
        inputs: usize,
        next: *const u8,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        const LANES: usize = 32;
        // SAFETY: the same 512 bits, read as 32 bf16.
        let pairs = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        let mut sums = [[_mm512_setzero_ps(); WEIGHT_ROWS]; R];
        let mut step = |start: usize, mask: __mmask32| {
            // SAFETY: elements of a row.
            let load = |row: *const u8| unsafe {
                _mm512_maskz_loadu_epi16(mask, row.add(2 * start).cast())
            };
            let mut ws = [_mm512_setzero_si512(); WEIGHT_ROWS];
            for n in 0..WEIGHT_ROWS {
                ws[n] = load(w[n]);
            }
            for r in 0..R {
                let x = pairs(load(x[r]));
                for n in 0..WEIGHT_ROWS {
                    sums[r][n] = _mm512_dpbf16_ps(sums[r][n], x, pairs(ws[n]));
                }
            }
        };
        for_steps!(step, inputs, LANES, next, WEIGHT_ROWS * LANES * 2);
        sum_all(&sums)
    }
}
