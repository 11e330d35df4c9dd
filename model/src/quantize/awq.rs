//! AWQ (arXiv 2306.00978): matrices in 4 bits whose scales follow from what flows through them.
//!
//! Elements of a row stand in groups along the inputs, each with a scale `s` in f16 and a zero point `z`
//! of 4 bits: `w = (q − z) · s`. What the format loses is made smaller in two steps, both searched on
//! calibration texts: inputs that are large on average get larger weights and are divided before
//! ([`search`]), and the largest weights of a group are cut where that helps the others.
//!
//! The layout is that of AutoAWQ's `gemm` version: `qweight` (in, out / 8) and `qzeros` (in / group,
//! out / 8) as 32-bit integers of 8 outputs each, `scales` (in / group, out).

pub mod search;

use half::f16;
use rayon::prelude::*;

/// Outputs of a 32-bit integer.
pub const PACKED: usize = 8;
/// The output of the eight whose 4 bits stand at each place of an integer, lowest bits first.
const ORDER: [usize; PACKED] = [0, 2, 4, 6, 1, 3, 5, 7];
/// The largest integer of an element.
const MOST: f32 = 15.0;
/// Least spread of a group: scales are positive.
const LEAST_SPREAD: f32 = 1e-5;

/// A matrix (out, in) in 4 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Inputs that share a scale.
    pub group: usize,
    /// (in, out / 8).
    pub qweight: Vec<i32>,
    /// (in / group, out / 8).
    pub qzeros: Vec<i32>,
    /// (in / group, out).
    pub scales: Vec<f16>,
}

/// Scale and zero point of a group of weights. Zero is in the range of every group: a zero point of 4
/// bits cannot move it out.
fn scale_and_zero(weights: &[f32]) -> (f32, f32) {
    let (least, most) =
        weights.iter().fold((0f32, 0f32), |(least, most), w| (least.min(*w), most.max(*w)));
    let scale = f16::from_f32((most - least).max(LEAST_SPREAD) / MOST).to_f32();
    (scale, (-(least / scale).round_ties_even()).clamp(0.0, MOST))
}

fn integer(weight: f32, scale: f32, zero: f32) -> f32 {
    ((weight / scale).round_ties_even() + zero).clamp(0.0, MOST)
}

/// What the weights of a group become by being stored.
pub(super) fn round_trip(weights: &mut [f32]) {
    let (scale, zero) = scale_and_zero(weights);
    weights.iter_mut().for_each(|w| *w = (integer(*w, scale, zero) - zero) * scale);
}

impl PackedMatrix {
    /// Packs a matrix of `outputs` rows. The inputs are whole groups and the outputs a multiple of 8.
    pub fn pack(weights: &[f32], outputs: usize, group: usize) -> Self {
        let inputs = weights.len() / outputs;
        let (groups, columns) = (inputs / group, outputs / PACKED);
        let settings: Vec<(f32, f32)> = weights.par_chunks(group).map(scale_and_zero).collect();
        let of = |output: usize, group: usize| settings[output * groups + group];
        let mut packed = Self {
            inputs,
            outputs,
            group,
            qweight: vec![0; inputs * columns],
            qzeros: vec![0; groups * columns],
            scales: vec![f16::ZERO; groups * outputs],
        };
        packed.qweight.par_chunks_mut(columns).enumerate().for_each(|(input, row)| {
            for (column, word) in row.iter_mut().enumerate() {
                *word = word_of(|n| {
                    let output = column * PACKED + n;
                    let (scale, zero) = of(output, input / group);
                    integer(weights[output * inputs + input], scale, zero)
                });
            }
        });
        for n in 0..groups {
            for column in 0..columns {
                packed.qzeros[n * columns + column] = word_of(|k| of(column * PACKED + k, n).1);
            }
            for output in 0..outputs {
                packed.scales[n * outputs + output] = f16::from_f32(of(output, n).0);
            }
        }
        packed
    }
}

/// The integer of 8 outputs.
fn word_of(value: impl Fn(usize) -> f32) -> i32 {
    let bits = |(place, n): (usize, &usize)| (value(*n) as u32) << (4 * place);
    ORDER.iter().enumerate().map(bits).fold(0, |word, bits| word | bits) as i32
}

/// The tensors of a matrix (out, in) where they lie, little-endian.
#[derive(Debug, Clone, Copy)]
pub struct PackedBytes<'a> {
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Inputs that share a scale.
    pub group: usize,
    /// (in, out / 8), i32.
    pub qweight: &'a [u8],
    /// (in / group, out / 8), i32.
    pub qzeros: &'a [u8],
    /// (in / group, out), f16.
    pub scales: &'a [u8],
}

impl PackedBytes<'_> {
    /// Reads the row of an output into `out`, which has a place for every input.
    pub fn read_row(&self, output: usize, out: &mut [f32]) {
        let columns = self.outputs / PACKED;
        let (column, n) = (output / PACKED, output % PACKED);
        let place = ORDER.iter().position(|at| *at == n).unwrap_or(0);
        let bits = |bytes: &[u8], row: usize| {
            let at = 4 * (row * columns + column);
            let word =
                bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (word >> (4 * place) & 15) as f32
        };
        for (number, group) in out.chunks_mut(self.group).enumerate() {
            let at = 2 * (number * self.outputs + output);
            let scale = self.scales.get(at..at + 2);
            let scale = scale.map_or(0.0, |b| f16::from_le_bytes([b[0], b[1]]).to_f32());
            let zero = bits(self.qzeros, number);
            for (k, value) in group.iter_mut().enumerate() {
                *value = (bits(self.qweight, number * self.group + k) - zero) * scale;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// Integers, zero points and scales are those of `scripts/golden/make_awq.py`, and are read back
    /// as what a round trip makes of the weights.
    #[test]
    fn packing_is_that_of_numpy() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/awq/packed.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let data = |name: &str| golden.tensor(name).unwrap().data();
        let weights: Vec<f32> = data("weight")
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let outputs = golden.tensor("weight").unwrap().shape()[0];
        let packed = PackedMatrix::pack(&weights, outputs, 32);
        let words = |words: &[i32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        assert!(words(&packed.qweight) == data("qweight"));
        assert!(words(&packed.qzeros) == data("qzeros"));
        let scales: Vec<u8> = packed.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        assert!(scales == data("scales"));

        let stored = PackedBytes {
            inputs: packed.inputs,
            outputs,
            group: 32,
            qweight: data("qweight"),
            qzeros: data("qzeros"),
            scales: data("scales"),
        };
        let mut expected = weights.clone();
        expected.chunks_mut(32).for_each(round_trip);
        for (output, expected) in expected.chunks(packed.inputs).enumerate() {
            let mut row = vec![0.0; packed.inputs];
            stored.read_row(output, &mut row);
            assert_eq!(row, expected, "row {output}");
        }
    }
}
