//! How the elements of a row are stored: whole numbers of a format, or blocks of small integers with
//! a scale, as in GGUF files.
//!
//! | format | bits a weight | a block | value of an element |
//! |---|---|---|---|
//! | `f32`, `f16`, `bf16` | 32, 16 | 1 element | itself |
//! | `q8_0` | 8.5 | 32 elements | `d · q` |
//! | `q5_0` | 5.5 | 32 elements | `d · (q − 16)` |
//! | `q4_0` | 4.5 | 32 elements | `d · (q − 8)` |
//! | `q4_k` | 4.5 | 8 groups of 32 elements | `d · s · q − d_min · m`, with `s` and `m` of the group |
//! | `q6_k` | 6.5625 | 16 groups of 16 elements | `d · s · (q − 32)`, with `s` of the group |
//!
//! `d` and `d_min` are f16, everything is little-endian. A row has whole blocks: [`StoredAs::row_bytes`]
//! says whether it can.

mod k_blocks;
mod small_blocks;

use half::{bf16, f16};

use k_blocks::{decode_q4_k, decode_q6_k, encode_q4_k, encode_q6_k};
use small_blocks::{decode_q4_0, decode_q5_0, decode_q8_0, encode_q4_0, encode_q5_0, encode_q8_0};

/// How elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoredAs {
    /// 32-bit floating point.
    F32,
    /// 16-bit IEEE floating point.
    F16,
    /// 16-bit brain floating point.
    Bf16,
    /// 8-bit integers, a scale for 32 of them.
    Q8_0,
    /// 5-bit integers, a scale for 32 of them.
    Q5_0,
    /// 4-bit integers, a scale for 32 of them.
    Q4_0,
    /// 4-bit integers, a 6-bit scale and minimum for 32 of them.
    Q4K,
    /// 6-bit integers, an 8-bit scale for 16 of them.
    Q6K,
}

/// A value that a format cannot hold: it is not finite, or beyond the largest number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutOfRange(pub f32);

impl StoredAs {
    /// Every format.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q5_0,
        Self::Q4_0,
        Self::Q4K,
        Self::Q6K,
    ];

    /// Its usual name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q5_0 => "q5_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Elements of a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q5_0 | Self::Q4_0 => small_blocks::LEN,
            Self::Q4K | Self::Q6K => k_blocks::LEN,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => small_blocks::Q8_0_BYTES,
            Self::Q5_0 => small_blocks::Q5_0_BYTES,
            Self::Q4_0 => small_blocks::Q4_0_BYTES,
            Self::Q4K => k_blocks::Q4_K_BYTES,
            Self::Q6K => k_blocks::Q6_K_BYTES,
        }
    }

    /// Whether several elements share a scale.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row; none when the row is not whole blocks, or longer than memory can be.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let whole = columns.is_multiple_of(self.block_len());
        whole.then(|| (columns / self.block_len()).checked_mul(self.block_bytes()))?
    }

    /// The format, or the next larger one whose blocks make whole rows of `columns` elements.
    pub fn that_fits(self, columns: usize) -> Self {
        if self.row_bytes(columns).is_some() {
            return self;
        }
        let smaller_blocks = match self {
            Self::Q4K => Self::Q5_0,
            Self::Q6K => Self::Q8_0,
            other => other,
        };
        match smaller_blocks.row_bytes(columns) {
            Some(_) => smaller_blocks,
            None => Self::F16,
        }
    }

    /// Writes a row. `out` has [`StoredAs::row_bytes`] bytes.
    ///
    /// # Errors
    /// [`OutOfRange`] with the first value that the format cannot hold. Infinities and NaN stay what
    /// they are in a floating-point format.
    pub fn encode(self, row: &[f32], out: &mut [u8]) -> Result<(), OutOfRange> {
        match self {
            Self::F32 => {
                for (value, out) in row.iter().zip(out.chunks_exact_mut(4)) {
                    out.copy_from_slice(&value.to_le_bytes());
                }
            }
            Self::F16 => {
                for (value, out) in row.iter().zip(out.chunks_exact_mut(2)) {
                    let half = f16::from_f32(*value);
                    check_rounded(*value, half.is_finite())?;
                    out.copy_from_slice(&half.to_le_bytes());
                }
            }
            Self::Bf16 => {
                for (value, out) in row.iter().zip(out.chunks_exact_mut(2)) {
                    let half = bf16::from_f32(*value);
                    check_rounded(*value, half.is_finite())?;
                    out.copy_from_slice(&half.to_le_bytes());
                }
            }
            Self::Q8_0 => encode_blocks(row, out, encode_q8_0)?,
            Self::Q5_0 => encode_blocks(row, out, encode_q5_0)?,
            Self::Q4_0 => encode_blocks(row, out, encode_q4_0)?,
            Self::Q4K => encode_blocks(row, out, encode_q4_k)?,
            Self::Q6K => encode_blocks(row, out, encode_q6_k)?,
        }
        Ok(())
    }

    /// Reads a row of `out.len()` elements; `bytes` has [`StoredAs::row_bytes`] bytes.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => {
                for (b, out) in bytes.chunks_exact(4).zip(out) {
                    *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Self::F16 => {
                for (b, out) in bytes.chunks_exact(2).zip(out) {
                    *out = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Self::Bf16 => {
                for (b, out) in bytes.chunks_exact(2).zip(out) {
                    *out = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Self::Q8_0 => decode_blocks(bytes, out, decode_q8_0),
            Self::Q5_0 => decode_blocks(bytes, out, decode_q5_0),
            Self::Q4_0 => decode_blocks(bytes, out, decode_q4_0),
            Self::Q4K => decode_blocks(bytes, out, decode_q4_k),
            Self::Q6K => decode_blocks(bytes, out, decode_q6_k),
        }
    }
}

/// A finite value must stay finite.
fn check_rounded(value: f32, finite: bool) -> Result<(), OutOfRange> {
    if finite || !value.is_finite() { Ok(()) } else { Err(OutOfRange(value)) }
}

fn encode_blocks<const LEN: usize, const BYTES: usize>(
    row: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) -> Result<(), OutOfRange> {
    let (blocks, _) = row.as_chunks::<LEN>();
    let (out, _) = out.as_chunks_mut::<BYTES>();
    for (block, out) in blocks.iter().zip(out) {
        // A scale is an f16: what is beyond its range would make all of the block infinite.
        let limit = f16::MAX.to_f32();
        if let Some(&value) = block.iter().find(|value| value.is_nan() || value.abs() > limit) {
            return Err(OutOfRange(value));
        }
        encode(block, out);
    }
    Ok(())
}

fn decode_blocks<const LEN: usize, const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (out, _) = out.as_chunks_mut::<LEN>();
    for (block, out) in blocks.iter().zip(out) {
        decode(block, out);
    }
}

/// The f16 that begins `bytes`.
fn read_f16(bytes: &[u8]) -> f32 {
    match bytes {
        [low, high, ..] => f16::from_le_bytes([*low, *high]).to_f32(),
        _ => 0.0,
    }
}

/// 1 / `scale`, and 0 where that is no number: a block of zeros, or of numbers too small to divide by.
fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[cfg(test)]
mod tests;
