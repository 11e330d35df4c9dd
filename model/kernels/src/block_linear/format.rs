//! The formats of blocks, and how a panel of 16 rows holds them.
//!
//! Integers are copied in words of four bytes: word `w` of a block of row `r` lies at `64 w + 4 r` of
//! the panel's block. The formats are made so that the four bytes of a word have four elements next to each
//! other in their low bits and four others in their high bits; so one register of 64 bytes has four
//! elements of each of the 16 rows. (The fifth bits of `q5_0` alone are put into such an order: bit `s` of
//! byte `i` is that of element `4 s + i`.) Behind the integers of all blocks lie the scales of all blocks:
//!
//! | format | a block | integers of 16 rows | scales of 16 rows |
//! |---|---|---:|---|
//! | `q8_0` | 32 elements | 512 bytes, plus 128 | 16 f16 |
//! | `q5_0` | 32 | 320 bytes, plus 16 | 16 f16 |
//! | `q4_0` | 32 | 256 bytes, plus 8 | 16 f16 |
//! | `q4_k` | 8 groups of 32 | 2048 bytes | 16 f16 `d`, 16 f16 `d_min`; of each group 16 scales and 16 minimums of a byte |
//! | `q6_k` | 16 groups of 16 | 3072 bytes, plus 32 | 16 f16 `d`; of each group 16 scales of a byte |

use super::lanes::{LANES, Lanes};

/// A format of blocks of small integers, as GGUF files have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFormat {
    /// Blocks of 32: an f16 scale, an i8 for each element.
    Q8_0,
    /// Blocks of 32: an f16 scale, the fifth bit of each element, 16 more than its value, and half a byte
    /// for the others; byte `j` has those of elements `j` and `j + 16`.
    Q5_0,
    /// Blocks of 32: an f16 scale, half a byte for each element, 8 more than its value; byte `j` has
    /// elements `j` and `j + 16`.
    Q4_0,
    /// Blocks of 256: f16 scales of scales and of minimums, 6-bit scales and minimums of 8 groups of 32,
    /// half a byte for each element.
    Q4K,
    /// Blocks of 256: the low four and the high two bits of each element, 32 more than its value; 8-bit
    /// scales of 16 groups of 16; an f16 scale of scales.
    Q6K,
}

/// Evaluates an expression with the type of a format for its name.
macro_rules! with_format {
    ($format:expr, $F:ident => $body:expr) => {
        match $format {
            BlockFormat::Q8_0 => {
                type $F = $crate::block_linear::format::Q8_0;
                $body
            }
            BlockFormat::Q5_0 => {
                type $F = $crate::block_linear::format::Q5_0;
                $body
            }
            BlockFormat::Q4_0 => {
                type $F = $crate::block_linear::format::Q4_0;
                $body
            }
            BlockFormat::Q4K => {
                type $F = $crate::block_linear::format::Q4K;
                $body
            }
            BlockFormat::Q6K => {
                type $F = $crate::block_linear::format::Q6K;
                $body
            }
        }
    };
}
pub(super) use with_format;

/// Bytes of a word of four bytes in all rows of a panel.
const WORD: usize = 4 * LANES;

/// A format to the product of a tile.
pub(super) trait Format {
    /// Elements of a block.
    const LEN: usize;
    /// Bytes of a block as it is stored.
    const BYTES: usize;
    /// Elements that share a scale.
    const GROUP: usize;
    /// What elements are stored above their value.
    const BIAS: i32;
    /// Whether a minimum of the group is subtracted from its elements.
    const HAS_MINIMUM: bool = false;
    /// Bytes of the integers of a block in a panel.
    const QUANT_BYTES: usize;
    /// Bytes of the scales of a block in a panel.
    const SCALE_BYTES: usize;

    /// Word `word` of the integers of the block `stored`.
    fn quant_word(stored: &[u8], word: usize) -> u32;

    /// Writes the scales of the block `stored` as those of row `row` of a panel.
    fn write_scales(stored: &[u8], row: usize, scales: &mut [u8]);

    /// Four elements of each row, with the bias: those of step `step` of a group.
    ///
    /// # Safety
    ///
    /// `quants` are the integers of a block; the rest as of the methods of [`Lanes`].
    unsafe fn elements<L: Lanes>(quants: *const u8, group: usize, step: usize) -> L::Bytes;

    /// The scale of a group in each row.
    ///
    /// # Safety
    ///
    /// `scales` are those of a block; the rest as of the methods of [`Lanes`].
    unsafe fn scale<L: Lanes>(scales: *const u8, group: usize) -> L::Floats;

    /// The minimum of a group in each row.
    ///
    /// # Safety
    ///
    /// As [`Format::scale`]; the format has minimums.
    unsafe fn minimum<L: Lanes>(_scales: *const u8, _group: usize) -> L::Floats {
        unreachable!("only formats with minimums are asked for them")
    }
}

/// Bytes of a panel of rows of `inputs` elements: whole cache lines.
pub(super) fn panel_bytes<F: Format>(inputs: usize) -> usize {
    (inputs / F::LEN * (F::QUANT_BYTES + F::SCALE_BYTES)).next_multiple_of(64)
}

/// The four bytes of word `word`, as they lie.
fn read_word(from: &[u8], word: usize) -> u32 {
    let from = &from[4 * word..];
    u32::from_ne_bytes([from[0], from[1], from[2], from[3]])
}

/// Copies the f16 at the start of `from` to row `row` of 16.
fn write_half(from: &[u8], row: usize, to: &mut [u8]) {
    to[2 * row..][..2].copy_from_slice(&from[..2]);
}

pub(super) struct Q8_0;

impl Format for Q8_0 {
    const LEN: usize = 32;
    const BYTES: usize = 2 + Self::LEN;
    const GROUP: usize = Self::LEN;
    const BIAS: i32 = 128;
    const QUANT_BYTES: usize = Self::LEN * LANES;
    const SCALE_BYTES: usize = 2 * LANES;

    fn quant_word(stored: &[u8], word: usize) -> u32 {
        // Signed as it is stored; the bias takes the sign away.
        read_word(&stored[2..], word) ^ 0x8080_8080
    }

    fn write_scales(stored: &[u8], row: usize, scales: &mut [u8]) {
        write_half(stored, row, scales);
    }

    #[inline(always)]
    unsafe fn elements<L: Lanes>(quants: *const u8, _group: usize, step: usize) -> L::Bytes {
        // SAFETY: a step of the block.
        unsafe { L::bytes(quants.add(step * WORD)) }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(scales: *const u8, _group: usize) -> L::Floats {
        // SAFETY: the scales of the block.
        unsafe { L::halves(scales) }
    }
}

pub(super) struct Q5_0;

impl Format for Q5_0 {
    const LEN: usize = 32;
    const BYTES: usize = 2 + Self::LEN / 8 + Self::LEN / 2;
    const GROUP: usize = Self::LEN;
    const BIAS: i32 = 16;
    const QUANT_BYTES: usize = (Self::LEN / 8 + Self::LEN / 2) * LANES;
    const SCALE_BYTES: usize = 2 * LANES;

    /// The nibbles, then the fifth bits.
    fn quant_word(stored: &[u8], word: usize) -> u32 {
        if word < 4 {
            return read_word(&stored[6..], word);
        }
        let fifth = u32::from_le(read_word(&stored[2..], 0));
        let mut bytes = [0u8; 4];
        for bit in 0..32 {
            bytes[bit % 4] |= ((fifth >> bit & 1) as u8) << (bit / 4);
        }
        u32::from_ne_bytes(bytes)
    }

    fn write_scales(stored: &[u8], row: usize, scales: &mut [u8]) {
        write_half(stored, row, scales);
    }

    #[inline(always)]
    unsafe fn elements<L: Lanes>(quants: *const u8, group: usize, step: usize) -> L::Bytes {
        // SAFETY: words of the block, whose nibbles lie as those of `q4_0`.
        unsafe {
            let fifth = L::bits(L::bytes(quants.add(4 * WORD)), step as u32, 1);
            L::join(Q4_0::elements::<L>(quants, group, step), fifth)
        }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(scales: *const u8, _group: usize) -> L::Floats {
        // SAFETY: the scales of the block.
        unsafe { L::halves(scales) }
    }
}

pub(super) struct Q4_0;

impl Format for Q4_0 {
    const LEN: usize = 32;
    const BYTES: usize = 2 + Self::LEN / 2;
    const GROUP: usize = Self::LEN;
    const BIAS: i32 = 8;
    const QUANT_BYTES: usize = Self::LEN / 2 * LANES;
    const SCALE_BYTES: usize = 2 * LANES;

    fn quant_word(stored: &[u8], word: usize) -> u32 {
        read_word(&stored[2..], word)
    }

    fn write_scales(stored: &[u8], row: usize, scales: &mut [u8]) {
        write_half(stored, row, scales);
    }

    #[inline(always)]
    unsafe fn elements<L: Lanes>(quants: *const u8, _group: usize, step: usize) -> L::Bytes {
        // SAFETY: a word of the block.
        unsafe { L::bits(L::bytes(quants.add(step % 4 * WORD)), step as u32 / 4 * 4, 15) }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(scales: *const u8, _group: usize) -> L::Floats {
        // SAFETY: the scales of the block.
        unsafe { L::halves(scales) }
    }
}

pub(super) struct Q4K;

/// Bytes of the two f16 of all rows in front of the scales of the groups of a block of `q4_k`.
const Q4K_HEAD: usize = 2 * 2 * LANES;

impl Format for Q4K {
    const LEN: usize = 256;
    const BYTES: usize = 2 + 2 + 12 + Self::LEN / 2;
    const GROUP: usize = 32;
    const BIAS: i32 = 0;
    const HAS_MINIMUM: bool = true;
    const QUANT_BYTES: usize = Self::LEN / 2 * LANES;
    const SCALE_BYTES: usize = Q4K_HEAD + 8 * 2 * LANES;

    fn quant_word(stored: &[u8], word: usize) -> u32 {
        read_word(&stored[16..], word)
    }

    fn write_scales(stored: &[u8], row: usize, scales: &mut [u8]) {
        let (head, groups) = scales.split_at_mut(Q4K_HEAD);
        write_half(stored, row, head);
        write_half(&stored[2..], row, &mut head[2 * LANES..]);
        // 6 bits each: of the groups 0 to 3 in a byte, of 4 to 7 in half a byte and the high two bits
        // of the byte of the group four before.
        let packed = &stored[4..16];
        for group in 0..8 {
            let (scale, minimum) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                let low = packed[group + 4];
                let high = |byte: u8| byte >> 6 << 4;
                (low & 15 | high(packed[group - 4]), low >> 4 | high(packed[group]))
            };
            groups[group * 2 * LANES + row] = scale;
            groups[group * 2 * LANES + LANES + row] = minimum;
        }
    }

    /// 64 elements, two groups, share 32 bytes: the first has the low halves.
    #[inline(always)]
    unsafe fn elements<L: Lanes>(quants: *const u8, group: usize, step: usize) -> L::Bytes {
        // SAFETY: a word of the block.
        unsafe {
            let bytes = L::bytes(quants.add((group / 2 * 8 + step) * WORD));
            L::bits(bytes, group as u32 % 2 * 4, 15)
        }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(scales: *const u8, group: usize) -> L::Floats {
        // SAFETY: the scales of the block.
        unsafe { L::mul(L::halves(scales), L::small(scales.add(Q4K_HEAD + group * 2 * LANES))) }
    }

    #[inline(always)]
    unsafe fn minimum<L: Lanes>(scales: *const u8, group: usize) -> L::Floats {
        // SAFETY: the minimums of the block.
        unsafe {
            let minimum = L::small(scales.add(Q4K_HEAD + group * 2 * LANES + LANES));
            L::mul(L::halves(scales.add(2 * LANES)), minimum)
        }
    }
}

pub(super) struct Q6K;

/// Bytes of the low four bits of a block of `q6_k`.
const Q6K_LOW: usize = 128;

impl Format for Q6K {
    const LEN: usize = 256;
    const BYTES: usize = Q6K_LOW + Self::LEN / 4 + Self::LEN / 16 + 2;
    const GROUP: usize = 16;
    const BIAS: i32 = 32;
    const QUANT_BYTES: usize = (Q6K_LOW + Self::LEN / 4) * LANES;
    const SCALE_BYTES: usize = 2 * LANES + 16 * LANES;

    fn quant_word(stored: &[u8], word: usize) -> u32 {
        read_word(stored, word)
    }

    fn write_scales(stored: &[u8], row: usize, scales: &mut [u8]) {
        let (head, groups) = scales.split_at_mut(2 * LANES);
        let (group_scales, d) = stored[Q6K_LOW + Self::LEN / 4..].split_at(16);
        write_half(d, row, head);
        for (group, scale) in group_scales.iter().enumerate() {
            groups[group * LANES + row] = *scale;
        }
    }

    /// 128 elements in four runs of 32: bytes `l` and `32 + l` of 64 have the low bits of elements `l` and
    /// `32 + l` in their low halves, of `64 + l` and `96 + l` in their high ones; byte `l` of 32 has the high
    /// bits of all four.
    #[inline(always)]
    unsafe fn elements<L: Lanes>(quants: *const u8, group: usize, step: usize) -> L::Bytes {
        let (half, run, word) = (group / 8, group % 8 / 2, group % 2 * 4 + step);
        // SAFETY: words of the block.
        unsafe {
            let low = L::bytes(quants.add((half * 16 + run % 2 * 8 + word) * WORD));
            let high = L::bytes(quants.add((Q6K_LOW / 4 + half * 8 + word) * WORD));
            let low = L::bits(low, run as u32 / 2 * 4, 15);
            L::join(low, L::bits(high, run as u32 * 2, 3))
        }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(scales: *const u8, group: usize) -> L::Floats {
        // SAFETY: the scales of the block.
        unsafe { L::mul(L::halves(scales), L::small(scales.add(2 * LANES + group * LANES))) }
    }
}
