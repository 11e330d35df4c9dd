//! Blocks of 32 elements with one scale: `q8_0`, `q5_0` and `q4_0`. The bytes are those of the
//! Python package `gguf`.

use half::f16;

use super::{inverse, read_f16};

/// Elements of a block.
pub(super) const LEN: usize = 32;
/// f16 scale, an i8 for each element.
pub(super) const Q8_0_BYTES: usize = 2 + LEN;
/// f16 scale, the fifth bits, two elements a byte.
pub(super) const Q5_0_BYTES: usize = 2 + LEN / 8 + LEN / 2;
/// f16 scale, two elements a byte.
pub(super) const Q4_0_BYTES: usize = 2 + LEN / 2;

pub(super) fn encode_q8_0(block: &[f32; LEN], out: &mut [u8; Q8_0_BYTES]) {
    let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    let (head, quants) = out.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (value, out) in block.iter().zip(quants) {
        // `round` goes away from zero on a tie.
        *out = ((value * inverse).round() as i8).to_le_bytes()[0];
    }
}

pub(super) fn decode_q8_0(bytes: &[u8; Q8_0_BYTES], out: &mut [f32; LEN]) {
    let (head, quants) = bytes.split_at(2);
    let scale = read_f16(head);
    for (quant, out) in quants.iter().zip(out) {
        *out = scale * f32::from(i8::from_le_bytes([*quant]));
    }
}

/// The value furthest from zero, with its sign; the first of several.
fn extreme(block: &[f32; LEN]) -> f32 {
    let further = |best: f32, value: f32| if value.abs() > best.abs() { value } else { best };
    block.iter().copied().reduce(further).unwrap_or_default()
}

/// Scale and integers 0 to `2 · half − 1`: the extreme value becomes 0, that is −`half`.
fn symmetric(block: &[f32; LEN], half: u8) -> (f32, [u8; LEN]) {
    let half = f32::from(half);
    let scale = extreme(block) / -half;
    let inverse = inverse(scale);
    let quants = block.map(|value| {
        let quant = (value * inverse + (half + 0.5)) as u8;
        quant.min((2.0 * half) as u8 - 1)
    });
    (scale, quants)
}

/// Element `j` in the low half of byte `j`, element `j + 16` in the high half.
fn pack_nibbles(quants: &[u8; LEN], out: &mut [u8]) {
    let (low, high) = quants.split_at(LEN / 2);
    for ((low, high), out) in low.iter().zip(high).zip(out) {
        *out = (low & 0x0F) | (high << 4);
    }
}

fn unpack_nibbles(bytes: &[u8]) -> [u8; LEN] {
    let mut quants = [0; LEN];
    let (low, high) = quants.split_at_mut(LEN / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        *low = byte & 0x0F;
        *high = byte >> 4;
    }
    quants
}

pub(super) fn encode_q4_0(block: &[f32; LEN], out: &mut [u8; Q4_0_BYTES]) {
    let (scale, quants) = symmetric(block, 8);
    let (head, nibbles) = out.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    pack_nibbles(&quants, nibbles);
}

pub(super) fn decode_q4_0(bytes: &[u8; Q4_0_BYTES], out: &mut [f32; LEN]) {
    let (head, nibbles) = bytes.split_at(2);
    let scale = read_f16(head);
    for (quant, out) in unpack_nibbles(nibbles).into_iter().zip(out) {
        *out = scale * (f32::from(quant) - 8.0);
    }
}

pub(super) fn encode_q5_0(block: &[f32; LEN], out: &mut [u8; Q5_0_BYTES]) {
    let (scale, quants) = symmetric(block, 16);
    let fifth_bits =
        quants.iter().enumerate().fold(0u32, |bits, (j, quant)| bits | u32::from(quant >> 4) << j);
    let (head, rest) = out.split_at_mut(2);
    let (bits, nibbles) = rest.split_at_mut(LEN / 8);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    bits.copy_from_slice(&fifth_bits.to_le_bytes());
    pack_nibbles(&quants, nibbles);
}

pub(super) fn decode_q5_0(bytes: &[u8; Q5_0_BYTES], out: &mut [f32; LEN]) {
    let (head, rest) = bytes.split_at(2);
    let (bits, nibbles) = rest.split_at(LEN / 8);
    let scale = read_f16(head);
    let fifth_bits = bits.iter().rev().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
    for (j, (nibble, out)) in unpack_nibbles(nibbles).into_iter().zip(out).enumerate() {
        let quant = nibble | ((fifth_bits >> j & 1) as u8) << 4;
        *out = scale * (f32::from(quant) - 16.0);
    }
}
