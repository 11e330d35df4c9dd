//! Scaled rotary embeddings in a GGUF file.
//!
//! The linear rule has keys. LLaMA 3's has none: the file holds what each frequency is divided by, as
//! the tensor `rope_freqs.weight` (D/2). What those numbers follow from stands in keys of this program,
//! which others pass over; a file without them is held to the constants of LLaMA 3.1 to 3.3.

use altiplano_model::LlamaConfig;
use altiplano_model::config::{RopeScaling, rope_frequencies};
use altiplano_model::quantize::StoredAs;

use super::key;
use super::open::Header;
use super::write::Keys;
use crate::error::Result;
use crate::interop::parameter::Shape;
use crate::interop::stored_model::tensor_error;

/// What each pair's frequency is divided by.
pub(super) const TENSOR: &str = "rope_freqs.weight";
/// Constants of every LLaMA 3.1 to 3.3.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_CONTEXT: usize = 8192;
/// Relative difference of two factors that mean the same number in f32.
const TOLERANCE: f64 = 1e-4;

/// Writes the keys of a model's scaling.
pub(super) fn write(keys: &mut Keys, config: &LlamaConfig) {
    match config.rope_scaling {
        None => {}
        Some(RopeScaling::Linear { factor }) => {
            keys.text(key::ROPE_SCALING_TYPE, "linear");
            keys.f32(key::ROPE_SCALING_FACTOR, factor);
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => {
            keys.f32(key::LLAMA3_FACTOR, factor);
            keys.f32(key::LLAMA3_LOW, low_freq_factor);
            keys.f32(key::LLAMA3_HIGH, high_freq_factor);
            keys.size(key::LLAMA3_CONTEXT, original_max_position_embeddings);
        }
    }
}

/// The numbers of [`TENSOR`], where a model has it.
pub(super) fn factors(config: &LlamaConfig) -> Option<Vec<f32>> {
    let scaling = config.rope_scaling?;
    matches!(scaling, RopeScaling::Llama3 { .. }).then(|| divisors(config, &scaling))
}

fn divisors(config: &LlamaConfig, scaling: &RopeScaling) -> Vec<f32> {
    let frequencies = rope_frequencies(config.head_dim(), config.rope_theta);
    frequencies.into_iter().map(|frequency| scaling.divisor(frequency) as f32).collect()
}

/// Reads the scaling of a file, whose configuration but for it is `config`.
pub(super) fn read(header: &Header, config: &LlamaConfig) -> Result<Option<RopeScaling>> {
    let linear = read_linear(header)?;
    if !header.has_tensor(TENSOR) {
        return Ok(linear);
    }
    let factors = read_factors(header, config)?;
    if linear.is_some() {
        let found = "factors of the rotary embedding beside a linear scaling";
        return Err(tensor_error(header.path(), TENSOR, found, "one of the two"));
    }
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(None);
    }
    // Low frequencies are divided by the whole factor, and none by more.
    let largest = factors.iter().copied().fold(0f32, f32::max);
    let context = header.optional_u32(key::LLAMA3_CONTEXT)?;
    let scaling = RopeScaling::Llama3 {
        factor: header.float(key::LLAMA3_FACTOR)?.unwrap_or(f64::from(largest)),
        low_freq_factor: header.float(key::LLAMA3_LOW)?.unwrap_or(LOW_FREQ_FACTOR),
        high_freq_factor: header.float(key::LLAMA3_HIGH)?.unwrap_or(HIGH_FREQ_FACTOR),
        original_max_position_embeddings: context.map_or(ORIGINAL_CONTEXT, |n| n as usize),
    };
    let same = |(x, y): (&f32, &f32)| {
        let (x, y) = (f64::from(*x), f64::from(*y));
        (x - y).abs() <= TOLERANCE * y.abs()
    };
    if divisors(config, &scaling).iter().zip(&factors).all(same) {
        return Ok(Some(scaling));
    }
    let found = "factors that do not follow from the constants of LLaMA 3";
    let expected = "those of the llama3 rule; the Hugging Face directory of the model says its own";
    Err(tensor_error(header.path(), TENSOR, found, expected))
}

fn read_linear(header: &Header) -> Result<Option<RopeScaling>> {
    let kind = header.optional_text(key::ROPE_SCALING_TYPE)?;
    match kind.as_deref() {
        // A factor without a type is linear to llama.cpp.
        None | Some("linear") => {}
        Some("none") => return Ok(None),
        Some(other) => {
            let expected = "none or linear, or factors in rope_freqs.weight";
            return Err(header.unfit(key::ROPE_SCALING_TYPE, other, expected));
        }
    }
    for key in [key::ROPE_SCALING_FACTOR, key::ROPE_SCALE_LINEAR] {
        if let Some(factor) = header.float(key)? {
            let scales = factor != 0.0 && factor != 1.0;
            return Ok(scales.then_some(RopeScaling::Linear { factor }));
        }
    }
    Ok(None)
}

fn read_factors(header: &Header, config: &LlamaConfig) -> Result<Vec<f32>> {
    let half = config.head_dim() / 2;
    let place = header.tensor(TENSOR, Shape { rows: 1, columns: half, is_vector: true })?;
    let bytes = header.bytes().get(place.bytes.clone()).unwrap_or_default();
    if place.stored != StoredAs::F32 || bytes.len() != half * size_of::<f32>() {
        return Err(tensor_error(header.path(), TENSOR, place.stored.name(), "f32"));
    }
    let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(bytes.chunks_exact(size_of::<f32>()).map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers that llama.cpp's converter writes for LLaMA 3.2, at the borders of the rule.
    #[test]
    fn factors_of_llama_3() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        // A wavelength of 8192 / 4 tokens and below stays, 8192 and above is divided by 32.
        let divisor = |wavelength: f64| scaling.divisor(std::f64::consts::TAU / wavelength);
        assert_eq!([divisor(100.0), divisor(2047.0)], [1.0, 1.0]);
        assert_eq!([divisor(8193.0), divisor(1e6)], [32.0, 32.0]);
        // Half way in turns, 2.5 of 1 to 4.
        let half = 1.0 / (0.5 / 32.0 + 0.5);
        assert!((divisor(8192.0 / 2.5) - half).abs() < 1e-12);
        assert_eq!(RopeScaling::Linear { factor: 3.0 }.divisor(0.1), 3.0);
    }
}
