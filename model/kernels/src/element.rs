//! The two element types of activations and matrix weights.

use half::bf16;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// `f32` or [`bf16`]. Arithmetic is always f32; this converts at the edges.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + PartialEq + std::fmt::Debug + Send + Sync + 'static
{
    /// Whether this is [`bf16`].
    const IS_BF16: bool;

    /// Zero.
    const ZERO: Self;

    /// The same number as f32, exactly.
    fn to_f32(self) -> f32;

    /// The nearest element; ties go to the even mantissa, NaN stays NaN.
    fn from_f32(x: f32) -> Self;

    /// The bits of this number as bf16, rounded if need be.
    fn to_bf16_bits(self) -> u16;
}

impl Element for f32 {
    const IS_BF16: bool = false;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_bf16_bits(self) -> u16 {
        bf16_bits(self)
    }
}

impl Element for bf16 {
    const IS_BF16: bool = true;
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16_value(self)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_bits(bf16_bits(x))
    }

    #[inline(always)]
    fn to_bf16_bits(self) -> u16 {
        self.to_bits()
    }
}

/// A bf16 is the upper half of an f32.
#[inline(always)]
pub(crate) fn bf16_value(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The upper half of `x`, rounded to nearest even; branch-free, so that loops vectorise.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN must not round up to infinity: set its quiet bit instead.
    let quiet_nan = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet_nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_half() {
        // Every exponent and sign, with mantissas around the rounding boundary.
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits((u32::from(high) << 16) | low);
                let ours = <bf16 as Element>::from_f32(x);
                let theirs = bf16::from_f32(x);
                assert!(
                    ours == theirs || (ours.is_nan() && theirs.is_nan()),
                    "{x:e}: {ours:?} {theirs:?}"
                );
            }
        }
    }
}
