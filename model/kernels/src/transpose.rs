//! Transposing words of 32 bits in registers: 16 x 16 with AVX-512, 8 x 8 with AVX2.

#![cfg(target_arch = "x86_64")]

use crate::element::Element;
use std::arch::x86_64::*;

/// `to[s * to_step + i] = from[i][s]` for `lanes` (at most 16) rows of 16 words, rows
/// `row_bytes` apart.
///
/// Words are interleaved in pairs, pairs in fours, and the 128-bit quarters, each holding four
/// words of one column, are then gathered by two shuffles.
///
/// # Safety
///
/// The caller has AVX-512 F; the words named above are readable and writable.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transpose_16(
    to: *mut u32,
    to_step: usize,
    from: *const u8,
    row_bytes: usize,
    lanes: usize,
) {
    let mut rows = [_mm512_setzero_si512(); 16];
    for (i, row) in rows.iter_mut().enumerate() {
        if i < lanes {
            // SAFETY: row i of the source.
            *row = unsafe { _mm512_loadu_si512(from.add(i * row_bytes).cast()) };
        }
    }
    let mut pairs = rows;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Quarter q of fours[4 g + j] holds word 4 q + j of rows 4 g to 4 g + 3.
    let mut fours = pairs;
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = fours;
    for j in 0..4 {
        // Even quarters (0, 2) and odd quarters (1, 3) of the upper and lower eight rows.
        let even = [
            _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88),
            _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88),
        ];
        let odd = [
            _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd),
            _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd),
        ];
        columns[j] = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
        columns[4 + j] = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
        columns[8 + j] = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
        columns[12 + j] = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
    }
    let mask = (0xffff_u32 >> (16 - lanes)) as u16;
    for (s, &column) in columns.iter().enumerate() {
        // SAFETY: `lanes` words of step s.
        unsafe { _mm512_mask_storeu_epi32(to.add(s * to_step).cast(), mask, column) };
    }
}

/// `to[s * to_step + i] = from[i][s]` in f32, for 16 elements of `lanes` (at most 16) rows that are
/// `row` elements apart.
///
/// # Safety
///
/// The caller has AVX2; the elements named above are readable, the numbers writable.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn transpose_to_f32<E: Element>(
    to: *mut f32,
    to_step: usize,
    from: *const E,
    row: usize,
    lanes: usize,
) {
    for start in [0, 8] {
        let mut lane = 0;
        // SAFETY: eight elements from `start` on of the lanes that are left, at their place in `to`.
        unsafe {
            let at = |lane: usize| from.add(lane * row + start);
            let to = |lane: usize| to.add(start * to_step + lane);
            while lane + 8 <= lanes {
                let columns = columns_of_8(std::array::from_fn(|i| widened(at(lane + i))));
                for (s, &column) in columns.iter().enumerate() {
                    _mm256_storeu_ps(to(lane).add(s * to_step), column);
                }
                lane += 8;
            }
            while lane + 4 <= lanes {
                let columns = columns_of_4(std::array::from_fn(|i| widened(at(lane + i))));
                for (s, &column) in columns.iter().enumerate() {
                    let (low, high) =
                        (_mm256_castps256_ps128(column), _mm256_extractf128_ps(column, 1));
                    _mm_storeu_ps(to(lane).add(s * to_step), low);
                    _mm_storeu_ps(to(lane).add((s + 4) * to_step), high);
                }
                lane += 4;
            }
            for lane in lane..lanes {
                for s in 0..8 {
                    to(lane).add(s * to_step).write((*at(lane).add(s)).to_f32());
                }
            }
        }
    }
}

/// Eight neighbours as f32.
///
/// # Safety
///
/// The caller has AVX2, and eight elements are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn widened<E: Element>(from: *const E) -> __m256 {
    // SAFETY: eight elements of either size. A bf16 is the upper half of an f32.
    unsafe {
        if E::IS_BF16 {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(words, 16))
        } else {
            _mm256_loadu_ps(from.cast())
        }
    }
}

/// Word `s` of the eight rows, for each `s`.
#[inline]
#[target_feature(enable = "avx2")]
fn columns_of_8(rows: [__m256; 8]) -> [__m256; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    let (top, bottom) = (columns_of_4([a, b, c, d]), columns_of_4([e, f, g, h]));
    let mut columns = rows;
    for s in 0..4 {
        columns[s] = _mm256_permute2f128_ps(top[s], bottom[s], 0x20);
        columns[s + 4] = _mm256_permute2f128_ps(top[s], bottom[s], 0x31);
    }
    columns
}

/// Words `s` of the four rows in the lower half and words `s + 4` in the upper, for `s` below four.
#[inline]
#[target_feature(enable = "avx2")]
fn columns_of_4([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    let pairs = |low, high| {
        let (low, high) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
        [_mm256_unpacklo_pd(low, high), _mm256_unpackhi_pd(low, high)].map(|x| _mm256_castpd_ps(x))
    };
    let [first, second] = pairs(_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
    let [third, fourth] = pairs(_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
    [first, second, third, fourth]
}
