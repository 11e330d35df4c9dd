//! Conversions between f32 and bf16 slices.

use crate::element::{bf16_bits, bf16_value};
use crate::simd::{PIECE, vectorized};
use half::bf16;
use rayon::prelude::*;

/// `dst = bf16(src)`, rounded to nearest even.
pub fn f32_to_bf16(dst: &mut [bf16], src: &[f32]) {
    assert_eq!(dst.len(), src.len(), "f32_to_bf16: lengths differ");
    dst.par_chunks_mut(PIECE).zip(src.par_chunks(PIECE)).for_each(|(dst, src)| round(dst, src));
}

/// `dst = f32(src)`, exactly.
pub fn bf16_to_f32(dst: &mut [f32], src: &[bf16]) {
    assert_eq!(dst.len(), src.len(), "bf16_to_f32: lengths differ");
    dst.par_chunks_mut(PIECE).zip(src.par_chunks(PIECE)).for_each(|(dst, src)| widen(dst, src));
}

vectorized! {
    fn round(dst: &mut [bf16], src: &[f32]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d = bf16::from_bits(bf16_bits(s));
        }
    }

    fn widen(dst: &mut [f32], src: &[bf16]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d = bf16_value(s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_of_representable_values() {
        let src: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|x| !x.is_nan()).collect();
        let mut wide = vec![0.0; src.len()];
        bf16_to_f32(&mut wide, &src);
        let mut back = vec![bf16::ZERO; src.len()];
        f32_to_bf16(&mut back, &wide);
        assert_eq!(src, back);
    }
}
