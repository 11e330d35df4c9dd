//! The kernels of AVX-512: 16 sums in a register.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::activations::{GROUP, STEP, parts};
use super::{BLOCK, DotKernel, Q4_0_BYTES, Q8_0_BYTES, WEIGHT_ROWS};

/// Products of f32 with elements that are widened to it.
pub(super) struct Floats<W>(PhantomData<W>);

/// Products of pairs of bf16.
pub(super) struct Bf16Pairs;

/// Products of 8-bit integers.
pub(super) struct Integers<W>(PhantomData<W>);

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

/// Prefetches a cache line.
#[inline(always)]
fn fetch(line: *const u8) {
    // SAFETY: a prefetch reads nothing the program sees, and faults nowhere.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

/// The sum of the lanes, halves added to halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
fn sum_lanes(x: __m512) -> f32 {
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
fn sum_all<const R: usize>(sums: &[[__m512; WEIGHT_ROWS]; R]) -> [[f32; WEIGHT_ROWS]; R] {
    let mut out = [[0.0; WEIGHT_ROWS]; R];
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = sum_lanes(sum);
        }
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
        ahead: usize,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        const LANES: usize = 16;
        let mut sums = [[_mm512_setzero_ps(); WEIGHT_ROWS]; R];
        for start in (0..inputs).step_by(LANES) {
            let mask = 0xffff_u16 >> (LANES - (inputs - start).min(LANES));
            let mut ws = [_mm512_setzero_ps(); WEIGHT_ROWS];
            for n in 0..WEIGHT_ROWS {
                let from = w[n].wrapping_add(start * W::BYTES);
                if R == 1 {
                    fetch(from.wrapping_add(ahead));
                }
                // SAFETY: elements of the row.
                ws[n] = unsafe { W::load(from, mask) };
            }
            for r in 0..R {
                // SAFETY: elements of the row.
                let x = unsafe { F32::load(x[r].add(start * 4), mask) };
                for n in 0..WEIGHT_ROWS {
                    sums[r][n] = _mm512_fmadd_ps(x, ws[n], sums[r][n]);
                }
            }
        }
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
        ahead: usize,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        const LANES: usize = 32;
        // SAFETY: the same 512 bits, read as 32 bf16.
        let pairs = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        let mut sums = [[_mm512_setzero_ps(); WEIGHT_ROWS]; R];
        for start in (0..inputs).step_by(LANES) {
            let mask = 0xffff_ffff_u32 >> (LANES - (inputs - start).min(LANES));
            // SAFETY: elements of a row.
            let load = |row: *const u8| unsafe {
                _mm512_maskz_loadu_epi16(mask, row.add(2 * start).cast())
            };
            let mut ws = [_mm512_setzero_si512(); WEIGHT_ROWS];
            for n in 0..WEIGHT_ROWS {
                if R == 1 {
                    fetch(w[n].wrapping_add(2 * start + ahead));
                }
                ws[n] = load(w[n]);
            }
            for r in 0..R {
                let x = pairs(load(x[r]));
                for n in 0..WEIGHT_ROWS {
                    sums[r][n] = _mm512_dpbf16_ps(sums[r][n], x, pairs(ws[n]));
                }
            }
        }
        sum_all(&sums)
    }
}

/// A format of blocks.
///
/// # Safety
///
/// The functions may be called only where AVX-512 is compiled for.
pub(super) unsafe trait Blocks {
    /// Bytes of a block.
    const BYTES: usize;
    /// The elements of two blocks, with the bias of the format.
    unsafe fn two(from: *const u8) -> __m512i;
    /// The elements of one block, with the bias of the format, and 32 others.
    unsafe fn one(from: *const u8) -> __m512i;
}

pub(super) struct Q8_0;
pub(super) struct Q4_0;

// SAFETY: inlined into kernels of AVX-512.
unsafe impl Blocks for Q8_0 {
    const BYTES: usize = Q8_0_BYTES;

    #[inline(always)]
    unsafe fn two(from: *const u8) -> __m512i {
        // SAFETY: two blocks.
        unsafe {
            let low = _mm256_loadu_si256(from.add(2).cast());
            let high = _mm256_loadu_si256(from.add(Q8_0_BYTES + 2).cast());
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            _mm512_xor_si512(both, _mm512_set1_epi8(-128))
        }
    }

    #[inline(always)]
    unsafe fn one(from: *const u8) -> __m512i {
        // SAFETY: a block.
        unsafe {
            let low = _mm512_zextsi256_si512(_mm256_loadu_si256(from.add(2).cast()));
            _mm512_xor_si512(low, _mm512_set1_epi8(-128))
        }
    }
}

/// The low halves of 16 bytes, then the high halves, for both halves of `bytes`.
#[inline(always)]
unsafe fn nibbles(bytes: __m256i) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let bytes = _mm512_castsi256_si512(bytes);
        let twice = _mm512_shuffle_i64x2::<0b01_01_00_00>(bytes, bytes);
        let shifts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
        _mm512_and_si512(_mm512_srlv_epi64(twice, shifts), _mm512_set1_epi8(15))
    }
}

// SAFETY: inlined into kernels of AVX-512.
unsafe impl Blocks for Q4_0 {
    const BYTES: usize = Q4_0_BYTES;

    #[inline(always)]
    unsafe fn two(from: *const u8) -> __m512i {
        // SAFETY: two blocks.
        unsafe {
            let low = _mm_loadu_si128(from.add(2).cast());
            let high = _mm_loadu_si128(from.add(Q4_0_BYTES + 2).cast());
            nibbles(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high))
        }
    }

    #[inline(always)]
    unsafe fn one(from: *const u8) -> __m512i {
        // SAFETY: a block.
        unsafe { nibbles(_mm256_zextsi128_si256(_mm_loadu_si128(from.add(2).cast()))) }
    }
}

/// The scales of two blocks, eight times each; zero for the second if there is one alone.
#[inline(always)]
unsafe fn scales(first: *const u8, second: Option<*const u8>) -> __m512 {
    // SAFETY: the caller has AVX-512; a block begins with its scale.
    unsafe {
        let read = |from: *const u8| from.cast::<i16>().read_unaligned();
        let low = _mm_set1_epi16(read(first));
        let high = match second {
            Some(second) => _mm_set1_epi16(read(second)),
            None => _mm_setzero_si128(),
        };
        _mm512_cvtph_ps(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high))
    }
}

// SAFETY: chosen only where cpu_level found AVX-512 with VNNI.
unsafe impl<W: Blocks> DotKernel for Integers<W> {
    const X_ROWS: usize = 4;

    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx2,fma,bmi2,f16c"
    )]
    unsafe fn dot<const R: usize>(
        x: [*const u8; R],
        w: [*const u8; WEIGHT_ROWS],
        inputs: usize,
        ahead: usize,
    ) -> [[f32; WEIGHT_ROWS]; R] {
        let places = parts(inputs);
        let mut sums = [[_mm512_setzero_ps(); WEIGHT_ROWS]; R];
        for group in 0..inputs.div_ceil(GROUP) {
            let mut inner = [[_mm512_setzero_ps(); WEIGHT_ROWS]; R];
            let end = ((group + 1) * GROUP).min(inputs);
            for start in (group * GROUP..end).step_by(STEP) {
                for n in 0..WEIGHT_ROWS {
                    let from = w[n].wrapping_add(start / BLOCK * W::BYTES);
                    if R == 1 {
                        fetch(from.wrapping_add(ahead));
                    }
                    // SAFETY: one or two blocks of the row.
                    let (integers, scale) = unsafe {
                        if start + BLOCK < inputs {
                            let second = from.wrapping_add(W::BYTES);
                            (W::two(from), scales(from, Some(second)))
                        } else {
                            (W::one(from), scales(from, None))
                        }
                    };
                    for r in 0..R {
                        // SAFETY: a step of the row, which has whole steps.
                        let (x, correction) = unsafe {
                            let x = x[r].add(start);
                            (
                                _mm512_loadu_si512(x.cast()),
                                _mm512_loadu_si512(x.add(places.corrections).cast()),
                            )
                        };
                        let total = _mm512_dpbusd_epi32(correction, integers, x);
                        let total = _mm512_cvtepi32_ps(total);
                        inner[r][n] = _mm512_fmadd_ps(total, scale, inner[r][n]);
                    }
                }
            }
            for r in 0..R {
                // SAFETY: the scale of the group.
                let scale =
                    unsafe { x[r].add(places.scales).cast::<f32>().add(group).read_unaligned() };
                let scale = _mm512_set1_ps(scale);
                for n in 0..WEIGHT_ROWS {
                    sums[r][n] = _mm512_fmadd_ps(inner[r][n], scale, sums[r][n]);
                }
            }
        }
        sum_all(&sums)
    }
}
