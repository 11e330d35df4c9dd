//! Blocks of 256 elements in groups, each group with a small scale of its own: `q4_k` and `q6_k`.
//!
//! Readers agree on what the bytes mean; how a writer finds scales is its own affair. Here each group
//! tries a row of scales, fits the best line through the integers they give by weighted least squares,
//! and keeps the one of the smallest error. Elements far from zero weigh more, as errors there are
//! what a product shows.

use half::f16;

use super::{inverse, read_f16};

/// Elements of a block.
pub(super) const LEN: usize = 256;
/// f16 `d` and `d_min`, 12 bytes of 6-bit scales and minimums, two elements a byte.
pub(super) const Q4_K_BYTES: usize = 2 + 2 + 12 + LEN / 2;
/// Low four bits, high two bits, an i8 scale for each group, f16 `d`.
pub(super) const Q6_K_BYTES: usize = LEN / 2 + LEN / 4 + LEN / Q6_GROUP + 2;

/// Elements of a group of `q4_k`.
const Q4_GROUP: usize = 32;
const Q4_GROUPS: usize = LEN / Q4_GROUP;
/// Elements of a group of `q6_k`.
const Q6_GROUP: usize = 16;

/// Largest integer of an element of `q4_k`.
const Q4_TOP: f32 = 15.0;
/// Largest 6-bit scale or minimum.
const SIX_BITS: f32 = 63.0;
/// Elements of `q6_k` are −32 to 31.
const Q6_HALF: f32 = 32.0;

/// A group as `scale · q − minimum`, `q` from 0 to 15.
#[derive(Clone, Copy, Default)]
struct Line {
    scale: f32,
    minimum: f32,
}

/// The line with the smallest weighted error of those that 21 widths of the group's range give.
fn fit_line(group: &[f32; Q4_GROUP]) -> Line {
    let mean_square = group.iter().map(|x| x * x).sum::<f32>() / Q4_GROUP as f32;
    let weights = group.map(|x| mean_square.sqrt() + x.abs());
    // The minimum is stored without a sign, so a line begins at zero or below.
    let low = group.iter().fold(0f32, |low, x| low.min(*x));
    let high = group.iter().fold(f32::NEG_INFINITY, |high, x| high.max(*x));
    if high <= low {
        return Line { scale: 0.0, minimum: -low };
    }
    let range = high - low;
    let mut best = Line { scale: range / Q4_TOP, minimum: -low };
    let mut best_error = line_error(group, &weights, best);
    for step in 0..=20u8 {
        let quantize = inverse(range / (Q4_TOP - 1.0 + 0.1 * f32::from(step)));
        let quants = group.map(|x| (quantize * (x - low)).round_ties_even().clamp(0.0, Q4_TOP));
        let Some(line) = weighted_line(group, &quants, &weights) else { continue };
        let error = line_error(group, &weights, line);
        if error < best_error {
            (best, best_error) = (line, error);
        }
    }
    best
}

/// The line through (q, x) by weighted least squares, through zero where it would begin above.
fn weighted_line(
    group: &[f32; Q4_GROUP],
    quants: &[f32; Q4_GROUP],
    weights: &[f32; Q4_GROUP],
) -> Option<Line> {
    let [mut w, mut x, mut q, mut qq, mut qx] = [0f32; 5];
    for ((value, quant), weight) in group.iter().zip(quants).zip(weights) {
        w += weight;
        x += weight * value;
        q += weight * quant;
        qq += weight * quant * quant;
        qx += weight * quant * value;
    }
    let determinant = w * qq - q * q;
    if determinant <= 0.0 {
        return None;
    }
    let scale = (w * qx - x * q) / determinant;
    let offset = (qq * x - q * qx) / determinant;
    if offset <= 0.0 {
        return (scale > 0.0).then_some(Line { scale, minimum: -offset });
    }
    (qq > 0.0 && qx > 0.0).then(|| Line { scale: qx / qq, minimum: 0.0 })
}

fn line_error(group: &[f32; Q4_GROUP], weights: &[f32; Q4_GROUP], line: Line) -> f32 {
    let inverse = inverse(line.scale);
    let error = |(x, weight): (&f32, &f32)| {
        let quant = nearest(x + line.minimum, inverse, Q4_TOP);
        let difference = line.scale * quant - line.minimum - x;
        weight * difference * difference
    };
    group.iter().zip(weights).map(error).sum()
}

/// The integer from 0 to `top` nearest to `x · inverse`.
fn nearest(x: f32, inverse: f32, top: f32) -> f32 {
    (x * inverse).round_ties_even().clamp(0.0, top)
}

pub(super) fn encode_q4_k(block: &[f32; LEN], out: &mut [u8; Q4_K_BYTES]) {
    let (groups, _) = block.as_chunks::<Q4_GROUP>();
    let mut lines = [Line::default(); Q4_GROUPS];
    for (line, group) in lines.iter_mut().zip(groups) {
        *line = fit_line(group);
    }
    let largest = |of: fn(&Line) -> f32| lines.iter().map(of).fold(0f32, f32::max);
    let scale_unit = largest(|line| line.scale) / SIX_BITS;
    let minimum_unit = largest(|line| line.minimum) / SIX_BITS;
    let (to_scale, to_minimum) = (inverse(scale_unit), inverse(minimum_unit));
    let scales = lines.map(|line| nearest(line.scale, to_scale, SIX_BITS) as u8);
    let minimums = lines.map(|line| nearest(line.minimum, to_minimum, SIX_BITS) as u8);

    let (head, rest) = out.split_at_mut(4);
    let (packed, quants) = rest.split_at_mut(12);
    let (d, d_min) = (f16::from_f32(scale_unit), f16::from_f32(minimum_unit));
    head[..2].copy_from_slice(&d.to_le_bytes());
    head[2..].copy_from_slice(&d_min.to_le_bytes());
    pack_six_bits(&scales, &minimums, packed);

    // The integers belong to the scales as they are stored.
    let quant = |x: &f32, group: usize| {
        let scale = d.to_f32() * f32::from(scales[group]);
        let minimum = d_min.to_f32() * f32::from(minimums[group]);
        nearest(x + minimum, inverse(scale), Q4_TOP) as u8
    };
    // Two groups share 32 bytes: the first in the low halves.
    let (pairs, _) = block.as_chunks::<{ 2 * Q4_GROUP }>();
    for (n, (pair, out)) in pairs.iter().zip(quants.chunks_exact_mut(Q4_GROUP)).enumerate() {
        let (first, second) = pair.split_at(Q4_GROUP);
        for ((low, high), out) in first.iter().zip(second).zip(out) {
            *out = quant(low, 2 * n) | quant(high, 2 * n + 1) << 4;
        }
    }
}

/// Eight scales and eight minimums of six bits in 12 bytes: bytes 0 to 3 have the scales 0 to 3, bytes
/// 4 to 7 the minimums 0 to 3; bytes 8 to 11 have the low four bits of scales 4 to 7 and of minimums
/// 4 to 7, whose high two bits are on top of the first eight bytes.
fn pack_six_bits(scales: &[u8; Q4_GROUPS], minimums: &[u8; Q4_GROUPS], out: &mut [u8]) {
    for j in 0..4 {
        let (scale, minimum) = (scales[j + 4], minimums[j + 4]);
        out[j] = scales[j] | (scale >> 4) << 6;
        out[j + 4] = minimums[j] | (minimum >> 4) << 6;
        out[j + 8] = (scale & 0x0F) | minimum << 4;
    }
}

fn unpack_six_bits(bytes: &[u8; 12]) -> ([u8; Q4_GROUPS], [u8; Q4_GROUPS]) {
    let (mut scales, mut minimums) = ([0; Q4_GROUPS], [0; Q4_GROUPS]);
    for j in 0..4 {
        scales[j] = bytes[j] & 63;
        minimums[j] = bytes[j + 4] & 63;
        scales[j + 4] = (bytes[j + 8] & 0x0F) | (bytes[j] >> 6) << 4;
        minimums[j + 4] = bytes[j + 8] >> 4 | (bytes[j + 4] >> 6) << 4;
    }
    (scales, minimums)
}

pub(super) fn decode_q4_k(bytes: &[u8; Q4_K_BYTES], out: &mut [f32; LEN]) {
    let (d, d_min) = (read_f16(&bytes[..2]), read_f16(&bytes[2..4]));
    let mut packed = [0; 12];
    packed.copy_from_slice(&bytes[4..16]);
    let (scales, minimums) = unpack_six_bits(&packed);
    let quants = bytes[16..].chunks_exact(Q4_GROUP);
    for (n, (pair, quants)) in out.chunks_exact_mut(2 * Q4_GROUP).zip(quants).enumerate() {
        let (first, second) = pair.split_at_mut(Q4_GROUP);
        let line =
            |group: usize| (d * f32::from(scales[group]), d_min * f32::from(minimums[group]));
        let ((low_scale, low_minimum), (high_scale, high_minimum)) = (line(2 * n), line(2 * n + 1));
        for ((low, high), quant) in first.iter_mut().zip(second).zip(quants) {
            *low = low_scale * f32::from(quant & 0x0F) - low_minimum;
            *high = high_scale * f32::from(quant >> 4) - high_minimum;
        }
    }
}

/// The scale of a group of `q6_k` with the smallest error weighted by x²: of 19 scales near the one
/// that maps the extreme value to −32, each replaced by the best for its integers.
fn fit_scale(group: &[f32; Q6_GROUP]) -> f32 {
    let extreme = group.iter().fold(0f32, |best, &x| if x.abs() > best.abs() { x } else { best });
    let (mut best, mut best_gain) = (0.0, 0.0);
    for step in -9i8..=9 {
        let quantize = inverse(extreme / -(Q6_HALF + 0.1 * f32::from(step)));
        let (mut along, mut square) = (0f32, 0f32);
        for x in group {
            let quant = (quantize * x).round_ties_even().clamp(-Q6_HALF, Q6_HALF - 1.0);
            along += x * x * x * quant;
            square += x * x * quant * quant;
        }
        // What the best scale takes off the weighted sum of squares.
        let gain = along * along / square;
        if gain > best_gain {
            (best, best_gain) = (along / square, gain);
        }
    }
    best
}

pub(super) fn encode_q6_k(block: &[f32; LEN], out: &mut [u8; Q6_K_BYTES]) {
    let (groups, _) = block.as_chunks::<Q6_GROUP>();
    let mut fitted = [0f32; LEN / Q6_GROUP];
    for (scale, group) in fitted.iter_mut().zip(groups) {
        *scale = fit_scale(group);
    }
    let extreme = fitted.iter().fold(0f32, |best, &x| if x.abs() > best.abs() { x } else { best });
    let d = f16::from_f32(extreme / -128.0);
    let to_scale = inverse(extreme / -128.0);
    let scales =
        fitted.map(|scale| (scale * to_scale).round_ties_even().clamp(-128.0, 127.0) as i8);

    let mut quants = [0u8; LEN];
    for ((group, quants), scale) in groups.iter().zip(quants.chunks_mut(Q6_GROUP)).zip(scales) {
        let inverse = inverse(d.to_f32() * f32::from(scale));
        for (x, quant) in group.iter().zip(quants) {
            let nearest = (x * inverse).round_ties_even().clamp(-Q6_HALF, Q6_HALF - 1.0);
            *quant = (nearest + Q6_HALF) as u8;
        }
    }
    let (low_bits, rest) = out.split_at_mut(LEN / 2);
    let (high_bits, rest) = rest.split_at_mut(LEN / 4);
    let (scale_bytes, d_bytes) = rest.split_at_mut(LEN / Q6_GROUP);
    // Half a block at a time: elements l, l + 32, l + 64 and l + 96 share a byte of high bits.
    let halves = quants.chunks_exact(LEN / 2);
    let (low_halves, high_halves) =
        (low_bits.chunks_exact_mut(LEN / 4), high_bits.chunks_exact_mut(LEN / 8));
    for ((half, low), high) in halves.zip(low_halves).zip(high_halves) {
        for l in 0..32 {
            let [a, b, c, e] = [half[l], half[l + 32], half[l + 64], half[l + 96]];
            low[l] = (a & 0x0F) | c << 4;
            low[l + 32] = (b & 0x0F) | e << 4;
            high[l] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6;
        }
    }
    for (scale, out) in scales.iter().zip(scale_bytes) {
        *out = scale.to_le_bytes()[0];
    }
    d_bytes.copy_from_slice(&d.to_le_bytes());
}

pub(super) fn decode_q6_k(bytes: &[u8; Q6_K_BYTES], out: &mut [f32; LEN]) {
    let (low_bits, rest) = bytes.split_at(LEN / 2);
    let (high_bits, rest) = rest.split_at(LEN / 4);
    let (scales, d) = rest.split_at(LEN / Q6_GROUP);
    let d = read_f16(d);
    let mut quants = [0u8; LEN];
    let (low_halves, high_halves) =
        (low_bits.chunks_exact(LEN / 4), high_bits.chunks_exact(LEN / 8));
    for ((half, low), high) in quants.chunks_exact_mut(LEN / 2).zip(low_halves).zip(high_halves) {
        for l in 0..32 {
            half[l] = (low[l] & 0x0F) | (high[l] & 3) << 4;
            half[l + 32] = (low[l + 32] & 0x0F) | (high[l] >> 2 & 3) << 4;
            half[l + 64] = low[l] >> 4 | (high[l] >> 4 & 3) << 4;
            half[l + 96] = low[l + 32] >> 4 | (high[l] >> 6) << 4;
        }
    }
    for (n, (quant, out)) in quants.iter().zip(out).enumerate() {
        let scale = d * f32::from(i8::from_le_bytes([scales[n / Q6_GROUP]]));
        *out = scale * (f32::from(*quant) - Q6_HALF);
    }
}
