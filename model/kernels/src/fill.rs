//! Filling a whole tensor, at the speed of memory.

use crate::simd::PIECE;
use rayon::prelude::*;

/// Sets every element to zero.
pub fn fill_zero(x: &mut [f32]) {
    x.par_chunks_mut(PIECE).for_each(|piece| piece.fill(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left() {
        for len in [0, 1, PIECE, 2 * PIECE + 3] {
            let mut x = vec![1.0; len];
            fill_zero(&mut x);
            assert!(x.iter().all(|&x| x == 0.0), "{len}");
        }
    }
}
