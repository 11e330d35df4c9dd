//! Residual connection. Derivation: `docs/backward/residual.md`.
//!
//! ```text
//! y       = x + branch
//!
//! dx      = dy
//! dbranch = dy
//! ```
//!
//! The backward pass computes nothing. Where the stream's gradient and that of a branch meet they are
//! added with [`residual_add`].

use crate::element::Element;
use crate::simd::{PIECE, vectorized};
use rayon::prelude::*;

/// `y = x + branch`, any shape.
pub fn residual_forward<E: Element>(y: &mut [E], x: &[E], branch: &[E]) {
    assert_eq!(y.len(), x.len(), "residual_forward: y and x differ in length");
    assert_eq!(y.len(), branch.len(), "residual_forward: y and branch differ in length");
    y.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE))
        .zip(branch.par_chunks(PIECE))
        .for_each(|((y, x), branch)| add(y, x, branch));
}

/// `x += branch`, any shape.
pub fn residual_add<E: Element>(x: &mut [E], branch: &[E]) {
    assert_eq!(x.len(), branch.len(), "residual_add: x and branch differ in length");
    x.par_chunks_mut(PIECE)
        .zip(branch.par_chunks(PIECE))
        .for_each(|(x, branch)| add_assign(x, branch));
}

vectorized! {
    pub(crate) fn add<E: Element>(y: &mut [E], x: &[E], branch: &[E]) {
        for ((y, &x), &b) in y.iter_mut().zip(x).zip(branch) {
            *y = E::from_f32(x.to_f32() + b.to_f32());
        }
    }

    fn add_assign<E: Element>(x: &mut [E], branch: &[E]) {
        for (x, &b) in x.iter_mut().zip(branch) {
            *x = E::from_f32(x.to_f32() + b.to_f32());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn adds_in_place_and_out_of_place() {
        let x: Vec<f32> = (0..40_000).map(|i| i as f32 * 0.25).collect();
        let b: Vec<f32> = (0..40_000).map(|i| 7.0 - i as f32).collect();
        let mut y = vec![0.0; x.len()];
        residual_forward(&mut y, &x, &b);
        assert!((0..x.len()).all(|i| y[i] == x[i] + b[i]));
        let mut z = x.clone();
        residual_add(&mut z, &b);
        assert_eq!(y, z);
        // 256 + 1 is not a bf16: ties go to even.
        let mut y = [bf16::ZERO; 2];
        residual_forward(
            &mut y,
            &[bf16::from_f32(256.0); 2],
            &[bf16::from_f32(1.0), bf16::from_f32(3.0)],
        );
        assert_eq!(y.map(bf16::to_f32), [256.0, 260.0]);
    }
}
