//! The lanes of AVX2 and FMA: two registers each.

use std::arch::x86_64::*;

use super::format::Format;
use super::lanes::{LANES, Lanes};
use super::tile::{Tile, sums_of_tile};

pub(super) struct Avx2;

// SAFETY: chosen only where cpu_level found AVX2, FMA and F16C.
unsafe impl Lanes for Avx2 {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    #[inline(always)]
    unsafe fn fetch(from: *const u8) {
        // SAFETY: a prefetch reads nothing the program sees, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's 64 bytes; it has AVX2, as in all of these.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn bits([a, b]: [__m256i; 2], shift: u32, mask: u8) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            let (shift, mask) = (_mm_cvtsi32_si128(shift as i32), _mm256_set1_epi8(mask as i8));
            [
                _mm256_and_si256(_mm256_srl_epi16(a, shift), mask),
                _mm256_and_si256(_mm256_srl_epi16(b, shift), mask),
            ]
        }
    }

    #[inline(always)]
    unsafe fn join(low: [__m256i; 2], high: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: as above.
        unsafe {
            [
                _mm256_or_si256(low[0], _mm256_slli_epi16::<4>(high[0])),
                _mm256_or_si256(low[1], _mm256_slli_epi16::<4>(high[1])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn zeros() -> [__m256i; 2] {
        // SAFETY: as above.
        [unsafe { _mm256_setzero_si256() }; 2]
    }

    /// Large elements lose their bias before they are multiplied.
    #[inline(always)]
    unsafe fn start(correction: *const u8, large: bool) -> [__m256i; 2] {
        // SAFETY: as above; the caller's i32.
        unsafe {
            let correction = correction.cast::<i32>().read_unaligned();
            [_mm256_set1_epi32(if large { 0 } else { correction }); 2]
        }
    }

    /// The instruction multiplies integers without a sign by integers with one, and adds two products in
    /// 16 bits: 2 · 63 · 127 of small elements fit, and so do 2 · 128 · 127 of the magnitudes of
    /// large ones, whose sign `x` takes.
    #[inline(always)]
    unsafe fn dot(sums: [__m256i; 2], w: [__m256i; 2], x: *const u8, large: bool) -> [__m256i; 2] {
        let mut out = sums;
        // SAFETY: as above; the caller's four i8.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            for i in 0..2 {
                let pairs = if large {
                    let signed = _mm256_xor_si256(w[i], _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
                } else {
                    _mm256_maddubs_epi16(w[i], x)
                };
                let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                out[i] = _mm256_add_epi32(sums[i], fours);
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn to_floats([a, b]: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)] }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> [__m256; 2] {
        // SAFETY: as above; the caller's 16 f16.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn small(from: *const u8) -> [__m256; 2] {
        // SAFETY: as above; the caller's 16 i8.
        unsafe {
            let all = _mm_loadu_si128(from.cast());
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(all))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u8) -> [__m256; 2] {
        // SAFETY: as above; the caller's f32.
        [unsafe { _mm256_set1_ps(from.cast::<f32>().read_unaligned()) }; 2]
    }

    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn sub_mul(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: as above.
        unsafe { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn store([a, b]: [__m256; 2], to: &mut [f32; LANES]) {
        // SAFETY: as above; 16 numbers.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), a);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), b);
        }
    }
}

// SAFETY: chosen only where cpu_level found AVX2, FMA and F16C.
unsafe impl Tile for Avx2 {
    const IS_WIDE: bool = false;

    #[target_feature(enable = "avx2,fma,bmi2,f16c")]
    unsafe fn tile<F: Format, const R: usize, const P: usize>(
        out: &mut [[[f32; LANES]; P]; R],
        x: [*const u8; R],
        panels: [*const u8; P],
        inputs: usize,
    ) {
        // SAFETY: passed on.
        unsafe { sums_of_tile::<Self, F, R, P>(out, x, panels, inputs) }
    }
}
