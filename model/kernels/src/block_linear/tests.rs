use super::*;
use crate::test_support::{
    assert_close, assert_same_for_any_threads, at_every_level, bits, random, to_f64,
};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ALL: [BlockFormat; 5] =
    [BlockFormat::Q8_0, BlockFormat::Q5_0, BlockFormat::Q4_0, BlockFormat::Q4K, BlockFormat::Q6K];

/// Rows as they are stored, of all bytes that may occur, and their elements.
struct Stored {
    rows: Vec<Vec<u8>>,
    values: Vec<f64>,
    format: BlockFormat,
    inputs: usize,
}

impl Stored {
    fn random(format: BlockFormat, outputs: usize, inputs: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (len, bytes) = match format {
            BlockFormat::Q8_0 => (32, 34),
            BlockFormat::Q5_0 => (32, 22),
            BlockFormat::Q4_0 => (32, 18),
            BlockFormat::Q4K => (256, 144),
            BlockFormat::Q6K => (256, 210),
        };
        let mut rows = Vec::new();
        let mut values = Vec::new();
        for _ in 0..outputs {
            let mut row = Vec::new();
            for _ in 0..inputs / len {
                let mut block: Vec<u8> = (0..bytes).map(|_| rng.random::<u8>()).collect();
                let mut half = |at: usize| {
                    let d = f16::from_f32(0.001 + 0.01 * rng.random::<f32>());
                    block[at..at + 2].copy_from_slice(&d.to_le_bytes());
                };
                match format {
                    BlockFormat::Q8_0 | BlockFormat::Q5_0 | BlockFormat::Q4_0 => half(0),
                    BlockFormat::Q4K => (half(0), half(2)).0,
                    BlockFormat::Q6K => half(208),
                }
                values.extend(elements(format, &block));
                row.extend(block);
            }
            rows.push(row);
        }
        Self { rows, values, format, inputs }
    }

    fn matrix(&self) -> BlockMatrix {
        let shape = [self.rows.len(), self.inputs];
        BlockMatrix::new(self.format, shape, |row| &self.rows[row])
    }
}

/// The elements of a block one by one, as the formats are described.
fn elements(format: BlockFormat, block: &[u8]) -> Vec<f64> {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    match format {
        BlockFormat::Q8_0 => (0..32).map(|i| half(0) * f64::from(block[2 + i] as i8)).collect(),
        BlockFormat::Q4_0 => (0..32)
            .map(|i| half(0) * (f64::from(block[2 + i % 16] >> (i / 16 * 4) & 15) - 8.0))
            .collect(),
        BlockFormat::Q5_0 => (0..32)
            .map(|i| {
                let low = block[6 + i % 16] >> (i / 16 * 4) & 15;
                let fifth = block[2 + i / 8] >> (i % 8) & 1;
                half(0) * (f64::from(low | fifth << 4) - 16.0)
            })
            .collect(),
        BlockFormat::Q4K => (0..256)
            .map(|i| {
                let g = i / 32;
                let packed = &block[4..16];
                let (scale, minimum) = match g {
                    0..4 => (packed[g] & 63, packed[g + 4] & 63),
                    _ => (
                        packed[g + 4] & 15 | packed[g - 4] >> 6 << 4,
                        packed[g + 4] >> 4 | packed[g] >> 6 << 4,
                    ),
                };
                let q = block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
                half(0) * f64::from(scale) * f64::from(q) - half(2) * f64::from(minimum)
            })
            .collect(),
        BlockFormat::Q6K => (0..256)
            .map(|i| {
                let (n, l) = (i / 128, i % 128);
                let low = block[64 * n + l % 64] >> (l / 64 * 4) & 15;
                let high = block[128 + 32 * n + l % 32] >> (l / 32 * 2) & 3;
                let scale = f64::from(block[192 + i / 16] as i8);
                half(208) * scale * (f64::from(low | high << 4) - 32.0)
            })
            .collect(),
    }
}

fn product<E: Element>(x: &[E], weight: &BlockMatrix) -> Vec<f32> {
    let [outputs, inputs] = weight.shape();
    let mut y = vec![f32::NAN; x.len() / inputs * outputs];
    block_linear(&mut y, x, weight);
    y
}

#[test]
fn decoded_rows_are_the_stored_ones() {
    for format in ALL {
        let stored = Stored::random(format, 19, 512);
        let matrix = stored.matrix();
        let mut row = vec![0.0; 512];
        for (n, want) in stored.values.chunks(512).enumerate() {
            matrix.decode_row(n, &mut row);
            let want: Vec<f32> = want.iter().map(|x| *x as f32).collect();
            assert_eq!(row, want, "{format:?} row {n}");
        }
    }
}

fn agrees_with_reference<E: Element>() {
    for format in ALL {
        for (rows, inputs, outputs) in
            [(1, 256, 1), (2, 512, 16), (5, 256, 70), (7, 768, 129), (13, 256, 33), (100, 512, 40)]
        {
            let x = random::<E>(rows * inputs, 1.0, 1);
            let stored = Stored::random(format, outputs, inputs);
            let x64 = to_f64(&x);
            let want: Vec<f64> = (0..rows * outputs)
                .map(|i| {
                    let (m, n) = (i / outputs, i % outputs);
                    (0..inputs).map(|k| x64[m * inputs + k] * stored.values[n * inputs + k]).sum()
                })
                .collect();
            // Rounding to 8 bits: at most 1/254 of the largest of a block in each element.
            let bound = |i: usize| -> f64 {
                let (m, n) = (i / outputs, i % outputs);
                let largest = |k: usize| {
                    let block = &x64[m * inputs + k / 32 * 32..][..32];
                    block.iter().fold(0.0, |largest, x| x.abs().max(largest))
                };
                let error = |k: usize| largest(k) / 254.0 * stored.values[n * inputs + k].abs();
                (0..inputs).map(error).sum()
            };
            let what = format!("{format:?} ({rows}, {inputs}, {outputs})");
            let y = product(&x, &stored.matrix());
            for (i, (y, want)) in y.iter().zip(&want).enumerate() {
                let error = (f64::from(*y) - want).abs();
                assert!(error <= 1.001 * bound(i), "{what}[{i}]: {y}, want {want}");
            }

            let mut rounded = vec![bf16::NAN; rows * outputs];
            block_linear(&mut rounded, &x, &stored.matrix());
            let want: Vec<u32> =
                y.iter().map(|&y| <bf16 as Element>::from_f32(y).to_f32().to_bits()).collect();
            assert_eq!(bits(&rounded), want, "{what}");
        }
    }
}

#[test]
fn f32_agrees_with_reference() {
    at_every_level(agrees_with_reference::<f32>);
}

#[test]
fn bf16_agrees_with_reference() {
    at_every_level(agrees_with_reference::<bf16>);
}

/// Activations that are integers are not rounded, so that products are exact but for the sums.
#[test]
fn integers_are_exact() {
    at_every_level(|| {
        for format in ALL {
            let (inputs, outputs) = (512, 35);
            let stored = Stored::random(format, outputs, inputs);
            let mut x = random::<f32>(3 * inputs, 126.0, 5);
            x.iter_mut().for_each(|x| *x = x.round());
            x.chunks_mut(32).for_each(|block| block[0] = -127.0);
            let want: Vec<f64> = (0..3 * outputs)
                .map(|i| {
                    let (m, n) = (i / outputs, i % outputs);
                    let product =
                        |k: usize| f64::from(x[m * inputs + k]) * stored.values[n * inputs + k];
                    (0..inputs).map(product).sum()
                })
                .collect();
            assert_close(&format!("{format:?}"), &product(&x, &stored.matrix()), &want, 1e-5);
        }
    });
}

/// A row has the same bits alone, among any number of others, and wherever it stands among them.
fn same_for_any_rows<E: Element>() {
    let (inputs, outputs) = (768, 70);
    for format in ALL {
        let weight = Stored::random(format, outputs, inputs).matrix();
        let x = random::<E>(200 * inputs, 1.0, 3);
        let alone: Vec<Vec<u32>> = x.chunks(inputs).map(|x| bits(&product(x, &weight))).collect();
        for rows in (1..=20).chain([97, 200]) {
            for first in [0, 200 - rows] {
                let x = &x[first * inputs..][..rows * inputs];
                for (r, y) in bits(&product(x, &weight)).chunks(outputs).enumerate() {
                    assert!(y == alone[first + r], "{format:?}: row {r} of {rows}");
                }
            }
        }
    }
}

#[test]
fn f32_same_for_any_rows() {
    at_every_level(same_for_any_rows::<f32>);
}

#[test]
fn bf16_same_for_any_rows() {
    at_every_level(same_for_any_rows::<bf16>);
}

#[test]
fn same_for_any_threads() {
    for format in ALL {
        let weight = Stored::random(format, 300, 512).matrix();
        let x = random::<f32>(9 * 512, 1.0, 3);
        assert_same_for_any_threads(|| bits(&product(&x, &weight)));
    }
}

/// A value that is not a number spreads to all products of its row and to no other.
#[test]
fn not_a_number_spreads() {
    at_every_level(|| {
        for format in ALL {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = random::<f32>(3 * 512, 1.0, 1);
                x[512 + 300] = bad;
                let y = product(&x, &Stored::random(format, 6, 512).matrix());
                let finite: Vec<bool> = y.iter().map(|y| y.is_finite()).collect();
                assert!(finite[..6].iter().chain(&finite[12..]).all(|&finite| finite));
                assert!(finite[6..12].iter().all(|&finite| !finite), "{format:?} {bad}");
            }
        }
    });
}

#[test]
fn rows_of_zeros_and_tiny_numbers() {
    at_every_level(|| {
        for format in ALL {
            for tiny in [0.0, 1e-44, 1e-38] {
                let y = product(&[tiny; 256], &Stored::random(format, 4, 256).matrix());
                assert!(y.iter().all(|y| y.abs() < 1e-31), "{format:?} {y:?}");
            }
        }
    });
}

#[test]
fn nothing_to_multiply() {
    let weight = BlockMatrix::new(BlockFormat::Q8_0, [0, 64], |_| &[]);
    block_linear::<f32, f32>(&mut [], &[1.0; 128], &weight);
    let weight = Stored::random(BlockFormat::Q8_0, 5, 64).matrix();
    block_linear::<f32, f32>(&mut [], &[], &weight);
}
