#![allow(clippy::unwrap_used)]

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Numbers as weights are: small, both signs, now and then a large one.
fn weights(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut value = || {
        let sum: f32 = (0..4).map(|_| rng.random_range(-0.02f32..0.02)).sum();
        if rng.random_range(0..50) == 0 { 8.0 * sum } else { sum }
    };
    (0..count).map(|_| value()).collect()
}

fn round_trip(format: StoredAs, row: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0xAA; format.row_bytes(row.len()).unwrap()];
    format.encode(row, &mut bytes).unwrap();
    let mut back = vec![f32::NAN; row.len()];
    format.decode(&bytes, &mut back);
    back
}

/// Root of the mean squared error over the root of the mean square.
fn relative_error(row: &[f32], back: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = row.iter().zip(back).map(|(a, b)| square(a - b)).sum();
    (error / row.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[test]
fn every_format_comes_back_within_its_precision() {
    let row = weights(4096, 1);
    for (format, bound) in [
        (StoredAs::F32, 0.0),
        (StoredAs::F16, 3e-4),
        (StoredAs::Bf16, 3e-3),
        (StoredAs::Q8_0, 0.012),
        (StoredAs::Q6K, 0.035),
        (StoredAs::Q5_0, 0.11),
        (StoredAs::Q4K, 0.13),
        (StoredAs::Q4_0, 0.22),
    ] {
        let error = relative_error(&row, &round_trip(format, &row));
        assert!(error <= bound, "{format:?}: {error}");
        // And not better than it can be: the blocks are used.
        assert!(error >= bound / 8.0, "{format:?}: {error}");
    }
}

#[test]
fn the_fitted_scales_beat_the_plain_ones() {
    let row = weights(4096, 2);
    let [k, plain] =
        [StoredAs::Q4K, StoredAs::Q4_0].map(|f| relative_error(&row, &round_trip(f, &row)));
    assert!(k < 0.8 * plain, "{k} and {plain}");
}

#[test]
fn blocks_of_one_value_and_of_tiny_values_are_numbers() {
    for value in [0.0f32, 1.0, -1.0, 3e-3, -1e-40, 6e4, -6e4] {
        let row = vec![value; 256];
        for format in StoredAs::ALL {
            let back = round_trip(format, &row);
            let bound = 0.08 * value.abs() + 1e-6;
            assert!(
                back.iter().all(|x| (x - value).abs() <= bound),
                "{format:?} of {value}: {:?}",
                &back[..4]
            );
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_an_error() {
    let encode = |format: StoredAs, value: f32| {
        let mut row = weights(256, 3);
        row[77] = value;
        format.encode(&row, &mut vec![0; format.row_bytes(256).unwrap()])
    };
    for format in StoredAs::ALL {
        for value in [f32::INFINITY, f32::NEG_INFINITY] {
            let found = encode(format, value);
            assert_eq!(found.is_err(), format.is_quantized(), "{format:?} of {value}");
        }
        assert_eq!(encode(format, f32::NAN).is_err(), format.is_quantized(), "{format:?}");
        assert!(encode(format, 65504.0).is_ok(), "{format:?}");
    }
    assert_eq!(encode(StoredAs::F16, 7e4), Err(OutOfRange(7e4)));
    assert_eq!(encode(StoredAs::Q4_0, -7e4), Err(OutOfRange(-7e4)));
    assert_eq!(encode(StoredAs::Bf16, f32::MAX), Err(OutOfRange(f32::MAX)));
    assert!(encode(StoredAs::F32, f32::MAX).is_ok());
}

#[test]
fn rows_are_whole_blocks() {
    assert_eq!(StoredAs::F32.row_bytes(7), Some(28));
    assert_eq!(StoredAs::Q8_0.row_bytes(64), Some(68));
    assert_eq!(StoredAs::Q8_0.row_bytes(48), None);
    assert_eq!(StoredAs::Q4K.row_bytes(512), Some(288));
    assert_eq!(StoredAs::Q6K.row_bytes(256), Some(210));
    assert_eq!(StoredAs::Q6K.row_bytes(128), None);
    assert_eq!(StoredAs::F32.row_bytes(usize::MAX), None);
}

#[test]
fn rows_that_are_not_whole_blocks_get_a_larger_format() {
    assert_eq!(StoredAs::Q4K.that_fits(512), StoredAs::Q4K);
    assert_eq!(StoredAs::Q4K.that_fits(96), StoredAs::Q5_0);
    assert_eq!(StoredAs::Q6K.that_fits(96), StoredAs::Q8_0);
    assert_eq!(StoredAs::Q4_0.that_fits(48), StoredAs::F16);
    assert_eq!(StoredAs::F32.that_fits(7), StoredAs::F32);
}

/// The blocks and values of the Python package `gguf`: see `tests/golden/README.md`.
#[test]
fn blocks_are_those_of_the_python_package() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/gguf/blocks.safetensors");
    let file = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = tensors.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let row = floats("values");
    for format in [StoredAs::Q8_0, StoredAs::Q5_0, StoredAs::Q4_0] {
        let mut bytes = vec![0; format.row_bytes(row.len()).unwrap()];
        format.encode(&row, &mut bytes).unwrap();
        let expected = tensors.tensor(&format!("{}.blocks", format.name())).unwrap();
        assert!(bytes == expected.data(), "{format:?}: other bytes");
    }
    for format in StoredAs::ALL.into_iter().filter(|format| format.is_quantized()) {
        let blocks = tensors.tensor(&format!("{}.blocks", format.name())).unwrap();
        let expected = floats(&format!("{}.values", format.name()));
        let mut values = vec![0f32; expected.len()];
        format.decode(blocks.data(), &mut values);
        assert_eq!(values, expected, "{format:?}");
    }
}
