//! The lanes of AVX-512 with products of 8-bit integers (VNNI): a register each.

use std::arch::x86_64::*;

use super::format::Format;
use super::lanes::{LANES, Lanes};
use super::tile::{Tile, sums_of_tile};

pub(super) struct Avx512;

// SAFETY: chosen only where cpu_level found AVX-512 with VNNI.
unsafe impl Lanes for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn fetch(from: *const u8) {
        // SAFETY: a prefetch reads nothing the program sees, and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: the caller's 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn bits(bytes: __m512i, shift: u32, mask: u8) -> __m512i {
        // SAFETY: the caller has AVX-512, as in all of these.
        unsafe {
            let shifted = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    unsafe fn join(low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_or_si512(low, _mm512_slli_epi16::<4>(high)) }
    }

    #[inline(always)]
    unsafe fn zeros() -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn start(correction: *const u8, _large: bool) -> __m512i {
        // SAFETY: as above; the caller's i32.
        unsafe { _mm512_set1_epi32(correction.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, w: __m512i, x: *const u8, _large: bool) -> __m512i {
        // SAFETY: as above; the caller's four i8.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm512_dpbusd_epi32(sums, w, x)
        }
    }

    #[inline(always)]
    unsafe fn to_floats(ints: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> __m512 {
        // SAFETY: as above; the caller's 16 f16.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn small(from: *const u8) -> __m512 {
        // SAFETY: as above; the caller's 16 i8.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u8) -> __m512 {
        // SAFETY: as above; the caller's f32.
        unsafe { _mm512_set1_ps(from.cast::<f32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sub_mul(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn store(floats: __m512, to: &mut [f32; LANES]) {
        // SAFETY: as above; 16 numbers.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), floats) }
    }
}

// SAFETY: chosen only where cpu_level found AVX-512 with VNNI.
unsafe impl Tile for Avx512 {
    const IS_WIDE: bool = true;

    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx2,fma,bmi2,f16c"
    )]
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
