//! Which tensor of a file is stored how: the mixtures of llama.cpp's quantizer.

use std::str::FromStr;

use altiplano_model::quantize::StoredAs;

use crate::interop::parameter::{Parameter, Shape};

/// What a whole file is said to be stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// Everything in f32.
    F32,
    /// Matrices in f16.
    F16,
    /// Matrices in bf16.
    Bf16,
    /// Matrices in 8-bit blocks.
    Q8_0,
    /// Matrices in 4-bit blocks, the output head in `q6_k`.
    Q4_0,
    /// Matrices in 4-bit blocks, the output head too.
    Q4_0Pure,
    /// Matrices in 4-bit blocks with fitted scales, the output head and about half of the projections
    /// to values and out of the feed-forward in `q6_k`.
    Q4KM,
    /// Matrices in 6-bit blocks.
    Q6K,
}

impl FileType {
    /// Every type.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_0Pure,
        Self::Q4KM,
        Self::Q6K,
    ];

    /// Its usual name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_0Pure => "q4_0_pure",
            Self::Q4KM => "q4_k_m",
            Self::Q6K => "q6_k",
        }
    }

    /// Its number under `general.file_type`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 | Self::Q4_0Pure => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// Whether most tensors are quantized.
    pub(super) fn is_quantized(self) -> bool {
        self.usual().is_quantized()
    }

    /// How most matrices are stored.
    fn usual(self) -> StoredAs {
        match self {
            Self::F32 => StoredAs::F32,
            Self::F16 => StoredAs::F16,
            Self::Bf16 => StoredAs::Bf16,
            Self::Q8_0 => StoredAs::Q8_0,
            Self::Q4_0 | Self::Q4_0Pure => StoredAs::Q4_0,
            Self::Q4KM => StoredAs::Q4K,
            Self::Q6K => StoredAs::Q6K,
        }
    }

    /// How a parameter of a model of `n_layers` is stored, and whether that is larger than it should
    /// be because its rows are not whole blocks.
    pub(super) fn stored_as(
        self,
        parameter: Parameter,
        shape: Shape,
        n_layers: usize,
    ) -> (StoredAs, bool) {
        if shape.is_vector {
            return (StoredAs::F32, false);
        }
        let wanted = match self {
            Self::Q4_0 | Self::Q4KM if parameter.is_head() => StoredAs::Q6K,
            Self::Q4KM if parameter.is_value_or_down() => {
                match parameter.layer().is_some_and(|layer| deserves_more_bits(layer, n_layers)) {
                    true => StoredAs::Q6K,
                    false => StoredAs::Q4K,
                }
            }
            _ => self.usual(),
        };
        let stored = wanted.that_fits(shape.columns);
        (stored, stored != wanted)
    }
}

/// The first and the last eighth of the layers, and every third in between.
fn deserves_more_bits(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

impl FromStr for FileType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| kind.name() == lower).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("{text:?} is not a type of GGUF files; expected one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers_with_more_bits(n_layers: usize) -> Vec<usize> {
        (0..n_layers).filter(|layer| deserves_more_bits(*layer, n_layers)).collect()
    }

    #[test]
    fn about_half_of_the_layers_get_more_bits() {
        let of_32 = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        assert_eq!(layers_with_more_bits(32), of_32);
        assert_eq!(layers_with_more_bits(2), [1]);
        assert_eq!(layers_with_more_bits(1), [0]);
    }
}
