use super::*;
use crate::test_support::{
    assert_close, assert_same_for_any_threads, at_every_level, bits, random, to_f64,
};
use half::{bf16, f16};

/// A weight as it is stored, and its elements.
struct Weight {
    bytes: Vec<u8>,
    values: Vec<f64>,
    stored: WeightFormat,
}

impl Weight {
    fn new(stored: WeightFormat, outputs: usize, inputs: usize) -> Self {
        let numbers = random::<f32>(outputs * inputs, 1.0, 7);
        let mut bytes = Vec::new();
        let mut values = Vec::new();
        match stored {
            WeightFormat::F32 => numbers.iter().for_each(|x| {
                bytes.extend(x.to_le_bytes());
                values.push(f64::from(*x));
            }),
            WeightFormat::F16 => numbers.iter().map(|x| f16::from_f32(*x)).for_each(|x| {
                bytes.extend(x.to_le_bytes());
                values.push(x.to_f64());
            }),
            WeightFormat::Bf16 => numbers.iter().map(|x| bf16::from_f32(*x)).for_each(|x| {
                bytes.extend(x.to_le_bytes());
                values.push(x.to_f64());
            }),
        }
        Self { bytes, values, stored }
    }

    fn stored(&self) -> StoredWeight<'_> {
        StoredWeight { bytes: &self.bytes, format: self.stored, order: RowOrder::AsStored }
    }
}

const ALL: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16];

fn product<E: Element>(x: &[E], weight: StoredWeight<'_>, shape: LinearShape) -> Vec<f32> {
    let mut y = vec![f32::NAN; shape.rows * shape.outputs];
    stored_linear(&mut y, x, weight, shape);
    y
}

fn agrees_with_reference<E: Element>() {
    for stored in ALL {
        for (rows, inputs, outputs) in
            [(1, 32, 1), (2, 64, 3), (5, 96, 70), (7, 544, 129), (13, 288, 9), (100, 800, 33)]
        {
            let shape = LinearShape { rows, inputs, outputs };
            let x = random::<E>(rows * inputs, 1.0, 1);
            let weight = Weight::new(stored, outputs, inputs);
            let x64 = to_f64(&x);
            let want: Vec<f64> = (0..rows * outputs)
                .map(|i| {
                    let (m, n) = (i / outputs, i % outputs);
                    (0..inputs).map(|k| x64[m * inputs + k] * weight.values[n * inputs + k]).sum()
                })
                .collect();
            let y = product(&x, weight.stored(), shape);
            assert_close(&format!("{stored:?} {shape:?}"), &y, &want, 1e-5);

            let mut rounded = vec![bf16::NAN; rows * outputs];
            stored_linear(&mut rounded, &x, weight.stored(), shape);
            assert_eq!(bits(&rounded), y.iter().map(|&y| bf16_bits_of(y)).collect::<Vec<_>>());
        }
    }
}

fn bf16_bits_of(x: f32) -> u32 {
    <bf16 as Element>::from_f32(x).to_f32().to_bits()
}

#[test]
fn f32_agrees_with_reference() {
    at_every_level(agrees_with_reference::<f32>);
}

#[test]
fn bf16_agrees_with_reference() {
    at_every_level(agrees_with_reference::<bf16>);
}

/// Any length of rows.
#[test]
fn rows_of_any_length() {
    at_every_level(|| {
        for stored in ALL {
            for inputs in (1..70).chain([0]) {
                let shape = LinearShape { rows: 3, inputs, outputs: 5 };
                let x = random::<bf16>(3 * inputs, 1.0, 1);
                let weight = Weight::new(stored, 5, inputs);
                let x64 = to_f64(&x);
                let want: Vec<f64> = (0..15)
                    .map(|i| {
                        let (m, n) = (i / 5, i % 5);
                        (0..inputs)
                            .map(|k| x64[m * inputs + k] * weight.values[n * inputs + k])
                            .sum()
                    })
                    .collect();
                let y = product(&x, weight.stored(), shape);
                assert_close(&format!("{stored:?} {inputs}"), &y, &want, 1e-5);
            }
        }
    });
}

/// A row has the same bits alone, among any number of others, and wherever it stands among them.
fn same_for_any_rows<E: Element>() {
    let (inputs, outputs) = (864, 70);
    for stored in ALL {
        let weight = Weight::new(stored, outputs, inputs);
        let x = random::<E>(200 * inputs, 1.0, 3);
        let shape = |rows| LinearShape { rows, inputs, outputs };
        let alone: Vec<Vec<u32>> =
            x.chunks(inputs).map(|x| bits(&product(x, weight.stored(), shape(1)))).collect();
        for rows in (1..=64).chain([97, 200]) {
            for first in [0, 200 - rows] {
                let x = &x[first * inputs..][..rows * inputs];
                let y = bits(&product(x, weight.stored(), shape(rows)));
                for (r, y) in y.chunks(outputs).enumerate() {
                    assert!(y == alone[first + r], "{stored:?}: row {r} of {rows}");
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
    let shape = LinearShape { rows: 9, inputs: 1056, outputs: 300 };
    for stored in ALL {
        let weight = Weight::new(stored, shape.outputs, shape.inputs);
        let x = random::<f32>(shape.rows * shape.inputs, 1.0, 3);
        assert_same_for_any_threads(|| bits(&product(&x, weight.stored(), shape)));
        let x = random::<bf16>(shape.rows * shape.inputs, 1.0, 3);
        assert_same_for_any_threads(|| bits(&product(&x, weight.stored(), shape)));
    }
}

/// A value that is not a number spreads to all products of its row and to no other.
#[test]
fn not_a_number_spreads() {
    at_every_level(|| {
        for stored in ALL {
            for bad in [f32::NAN, f32::INFINITY] {
                let shape = LinearShape { rows: 3, inputs: 320, outputs: 6 };
                let mut x = random::<f32>(3 * 320, 1.0, 1);
                x[320 + 300] = bad;
                let y = product(&x, Weight::new(stored, 6, 320).stored(), shape);
                let finite: Vec<bool> = y.iter().map(|y| y.is_finite()).collect();
                assert!(finite[..6].iter().chain(&finite[12..]).all(|&finite| finite));
                assert!(finite[6..12].iter().all(|&finite| !finite), "{stored:?} {bad}");
            }
        }
    });
}

#[test]
fn rows_in_pairs_go_to_halves() {
    let shape = LinearShape { rows: 3, inputs: 64, outputs: 48 };
    let x = random::<f32>(3 * 64, 1.0, 1);
    let weight = Weight::new(WeightFormat::F16, 48, 64);
    let plain = product(&x, weight.stored(), shape);
    let order = RowOrder::PairsToHalves { head_dim: 16 };
    let y = product(&x, StoredWeight { order, ..weight.stored() }, shape);
    for (i, y) in y.iter().enumerate() {
        let (head, place) = (i / 16, i % 16);
        assert_eq!(y.to_bits(), plain[head * 16 + 2 * (place % 8) + place / 8].to_bits());
    }
}
