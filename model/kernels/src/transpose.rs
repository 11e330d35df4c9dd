//! Transposing 16 x 16 words of 32 bits in registers.

#![cfg(target_arch = "x86_64")]

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
