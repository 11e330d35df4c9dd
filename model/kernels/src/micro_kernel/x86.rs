//! The micro-kernels of AVX2 and AVX-512.

use super::contract::{MR, MicroKernel, NR, RUN, layout};
use super::portable::{SUB_COLUMNS, multiply_plain};
use crate::element::Element;
use crate::transpose::{transpose_16, transpose_to_f32};
use std::arch::x86_64::*;

/// f32 on AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2F32;

/// f32 on AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Avx512F32;

/// bf16 on AVX512-BF16.
#[derive(Clone, Copy)]
pub(super) struct Avx512Bf16;

// SAFETY: reached only where cpu_level found AVX2 and FMA.
unsafe impl MicroKernel for Avx2F32 {
    type Unit = f32;
    const DEPTH: usize = 1;
    const STRIP: usize = SUB_COLUMNS;

    /// Always: 6 rows at a time fit the first-level cache whatever their distance.
    fn reads_rows_in_place(_address: usize, _stride: usize) -> bool {
        true
    }

    #[inline(always)]
    fn unit<E: Element>(at: impl Fn(usize) -> E) -> f32 {
        at(0).to_f32()
    }

    #[inline(always)]
    fn transposes<E: Element>() -> bool {
        true
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,bmi2")]
    unsafe fn transpose_16<E: Element>(
        to: *mut f32,
        to_step: usize,
        from: *const E,
        row: usize,
        lanes: usize,
    ) {
        // SAFETY: passed on.
        unsafe { transpose_to_f32(to, to_step, from, row, lanes) }
    }

    #[target_feature(enable = "avx2,fma,bmi2")]
    unsafe fn multiply<const LAYOUT: u8>(
        steps: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe {
            if LAYOUT == layout::STRIPS {
                fetch(c, MR, c_row);
            }
            let a = layout::units::<LAYOUT, _>(a, 1);
            multiply_plain::<LAYOUT>(steps, a, b, c, c_row, add, |a, b, sum| a.mul_add(b, sum));
        }
    }

    #[target_feature(enable = "avx2,fma,bmi2")]
    unsafe fn multiply_rows(
        steps: usize,
        a: *const u8,
        a_row: usize,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe {
            fetch(c, MR, c_row);
            let a = layout::in_place(a, a_row);
            multiply_plain::<{ layout::STRIPS }>(steps, a, b, c, c_row, add, |a, b, sum| {
                a.mul_add(b, sum)
            });
        }
    }

    #[target_feature(enable = "avx2,fma,bmi2")]
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}

/// Prefetches `rows` rows of 32 words, `row` words apart, from `first` on. Without it, a product whose
/// sums go to 12 rows on 12 pages would wait for these rows at its end.
#[inline(always)]
pub(super) fn fetch<T>(first: *const T, rows: usize, row: usize) {
    for r in 0..rows {
        let line = first.wrapping_add(r * row);
        // SAFETY: a prefetch reads nothing the program sees, and faults nowhere.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(RUN).cast());
        }
    }
}

/// How many steps ahead of its use a step of `B` is prefetched into the first-level cache: a step is
/// two cache lines and is used up in 12 cycles, less than a load from the second-level cache takes.
const STEPS_AHEAD: usize = 8;

/// Whether 12 rows, `stride` bytes apart, stay in the first-level cache together. It finds a line by
/// its address modulo 4096 and holds at most 12 lines of one such place, so rows whole or half pages
/// apart push each other, and the columns of `B`, out.
fn lie_in_several_sets(stride: usize) -> bool {
    !stride.is_multiple_of(2048)
}

/// Stores the 12 x 32 sums to `c`, or adds them.
///
/// # Safety
///
/// The caller has AVX-512, and 12 rows of 32 floats, `c_row` apart, are writable at `c`.
#[inline(always)]
unsafe fn store(sums: &[[__m512; 2]; MR], c: *mut f32, c_row: usize, add: bool) {
    for (r, [low, high]) in sums.iter().enumerate() {
        // SAFETY: row r of c.
        unsafe {
            let c = c.add(r * c_row);
            let (mut low, mut high) = (*low, *high);
            if add {
                low = _mm512_add_ps(_mm512_loadu_ps(c), low);
                high = _mm512_add_ps(_mm512_loadu_ps(c.add(16)), high);
            }
            _mm512_storeu_ps(c, low);
            _mm512_storeu_ps(c.add(16), high);
        }
    }
}

/// `multiply` for f32; `a(r, s)` is the place of row `r`, step `s` of `A`.
///
/// # Safety
///
/// As [`MicroKernel::multiply`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
unsafe fn multiply_f32(
    steps: usize,
    a: impl Fn(usize, usize) -> *const f32,
    b: *const f32,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    if add {
        fetch(c, MR, c_row);
    }
    for s in 0..steps {
        // SAFETY: inside the ranges the caller vouches for.
        unsafe {
            let b = b.add(s * NR);
            fetch(b.wrapping_add(STEPS_AHEAD * NR), 1, NR);
            let (low, high) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(a(r, s).read_unaligned());
                sums[0] = _mm512_fmadd_ps(a, low, sums[0]);
                sums[1] = _mm512_fmadd_ps(a, high, sums[1]);
            }
        }
    }
    // SAFETY: passed on.
    unsafe { store(&sums, c, c_row, add) }
}

/// `multiply` for pairs of bf16; `a(r, s)` is the place of row `r`, step `s` of `A`.
///
/// # Safety
///
/// As [`MicroKernel::multiply`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2")]
unsafe fn multiply_bf16(
    steps: usize,
    a: impl Fn(usize, usize) -> *const u32,
    b: *const u32,
    c: *mut f32,
    c_row: usize,
    add: bool,
) {
    // SAFETY: the same 512 bits, read as 32 bf16.
    let pairs = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    if add {
        fetch(c, MR, c_row);
    }
    for s in 0..steps {
        // SAFETY: inside the ranges the caller vouches for.
        unsafe {
            let b = b.add(s * NR);
            fetch(b.wrapping_add(STEPS_AHEAD * NR), 1, NR);
            let low = pairs(_mm512_loadu_si512(b.cast()));
            let high = pairs(_mm512_loadu_si512(b.add(16).cast()));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = a(r, s).read_unaligned().cast_signed();
                let a = pairs(_mm512_set1_epi32(a));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, high);
            }
        }
    }
    // SAFETY: passed on.
    unsafe { store(&sums, c, c_row, add) }
}

// SAFETY: reached only where cpu_level found these features.
unsafe impl MicroKernel for Avx512F32 {
    type Unit = f32;
    const DEPTH: usize = 1;
    const BLOCK_STEPS: usize = 512;

    fn reads_rows_in_place(_address: usize, stride: usize) -> bool {
        lie_in_several_sets(stride)
    }

    #[inline(always)]
    fn unit<E: Element>(at: impl Fn(usize) -> E) -> f32 {
        at(0).to_f32()
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
    unsafe fn transpose_16<E: Element>(
        to: *mut f32,
        to_step: usize,
        from: *const E,
        row: usize,
        lanes: usize,
    ) {
        // SAFETY: passed on; elements lie as units, of 32 bits.
        unsafe { transpose_16(to.cast(), to_step, from.cast(), row * size_of::<E>(), lanes) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
    unsafe fn multiply<const LAYOUT: u8>(
        steps: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe { multiply_f32(steps, layout::units::<LAYOUT, _>(a, 1), b, c, c_row, add) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
    unsafe fn multiply_rows(
        steps: usize,
        a: *const u8,
        a_row: usize,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe { multiply_f32(steps, layout::in_place(a, a_row), b, c, c_row, add) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}

// SAFETY: reached only where cpu_level found these features.
unsafe impl MicroKernel for Avx512Bf16 {
    type Unit = u32;
    const DEPTH: usize = 2;

    fn reads_rows_in_place(_address: usize, stride: usize) -> bool {
        lie_in_several_sets(stride)
    }

    #[inline(always)]
    fn unit<E: Element>(at: impl Fn(usize) -> E) -> u32 {
        u32::from(at(0).to_bf16_bits()) | (u32::from(at(1).to_bf16_bits()) << 16)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi2")]
    unsafe fn transpose_16<E: Element>(
        to: *mut u32,
        to_step: usize,
        from: *const E,
        row: usize,
        lanes: usize,
    ) {
        // SAFETY: passed on; elements lie as units, of 32 bits.
        unsafe { transpose_16(to.cast(), to_step, from.cast(), row * size_of::<E>(), lanes) }
    }

    #[inline]
    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2"
    )]
    unsafe fn multiply<const LAYOUT: u8>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe { multiply_bf16(steps, layout::units::<LAYOUT, _>(a, 2), b, c, c_row, add) }
    }

    #[inline]
    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2"
    )]
    unsafe fn multiply_rows(
        steps: usize,
        a: *const u8,
        a_row: usize,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe { multiply_bf16(steps, layout::in_place(a, a_row), b, c, c_row, add) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn interleave(to: *mut u32, low: *const u8, high: *const u8, lanes: usize) {
        for start in (0..lanes).step_by(RUN) {
            let mask = (0xffff_u32 >> (RUN - (lanes - start).min(RUN))) as u16;
            // SAFETY: the lanes of the mask.
            unsafe {
                let load = |row: *const u8| {
                    let row = row.cast::<i16>().add(start);
                    _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row))
                };
                let pairs = _mm512_or_si512(load(low), _mm512_slli_epi32(load(high), 16));
                _mm512_mask_storeu_epi32(to.add(start).cast(), mask, pairs);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store_row(to: *mut u32, row: &[f32; RUN]) {
        // SAFETY: 16 bf16 are 8 units.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(row.as_ptr()));
            to.cast::<__m256bh>().write_unaligned(rounded);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store_columns(to: *mut u32, low: &[f32; RUN], high: &[f32; RUN]) {
        // SAFETY: 16 units; the casts are between integer and bf16 views of the same bits.
        unsafe {
            let widen =
                |x: __m256bh| _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(x));
            let low = widen(_mm512_cvtneps_pbh(_mm512_loadu_ps(low.as_ptr())));
            let high = widen(_mm512_cvtneps_pbh(_mm512_loadu_ps(high.as_ptr())));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }

    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2"
    )]
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}
