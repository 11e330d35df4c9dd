//! SwiGLU, the gated activation of the feed-forward. Derivation: `docs/backward/swiglu.md`.
//!
//! ```text
//! σ     = 1 / (1 + exp(−gate))
//! y     = gate ∘ σ ∘ up
//!
//! dup   = dy ∘ gate ∘ σ
//! dgate = dy ∘ up ∘ σ ∘ (1 + gate ∘ (1 − σ))
//! ```

use crate::element::Element;
use crate::exp::exp;
use crate::simd::{PIECE, vectorized};
use rayon::prelude::*;

/// `y = silu(gate) * up`, any shape.
pub fn swiglu_forward<E: Element>(y: &mut [E], gate: &[E], up: &[E]) {
    assert_eq!(y.len(), gate.len(), "swiglu_forward: y and gate differ in length");
    assert_eq!(y.len(), up.len(), "swiglu_forward: y and up differ in length");
    y.par_chunks_mut(PIECE)
        .zip(gate.par_chunks(PIECE))
        .zip(up.par_chunks(PIECE))
        .for_each(|((y, gate), up)| forward(y, gate, up));
}

/// `dgate` and `dup` from `dy`, any shape.
pub fn swiglu_backward<E: Element>(dgate: &mut [E], dup: &mut [E], dy: &[E], gate: &[E], up: &[E]) {
    let len = dy.len();
    assert!(
        [dgate.len(), dup.len(), gate.len(), up.len()].iter().all(|&l| l == len),
        "swiglu_backward: lengths differ"
    );
    dgate
        .par_chunks_mut(PIECE)
        .zip(dup.par_chunks_mut(PIECE))
        .zip(dy.par_chunks(PIECE))
        .zip(gate.par_chunks(PIECE))
        .zip(up.par_chunks(PIECE))
        .for_each(|((((dgate, dup), dy), gate), up)| backward(dgate, dup, dy, gate, up));
}

vectorized! {
    fn forward<E: Element>(y: &mut [E], gate: &[E], up: &[E]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.to_f32();
            *y = E::from_f32(g / (1.0 + exp(-g)) * u.to_f32());
        }
    }

    fn backward<E: Element>(dgate: &mut [E], dup: &mut [E], dy: &[E], gate: &[E], up: &[E]) {
        for ((((dg, du), &dy), &g), &u) in dgate.iter_mut().zip(dup).zip(dy).zip(gate).zip(up) {
            let (dy, gate, up) = (dy.to_f32(), g.to_f32(), u.to_f32());
            let sigma = 1.0 / (1.0 + exp(-gate));
            *du = E::from_f32(dy * (gate * sigma));
            *dg = E::from_f32(dy * up * (sigma * gate.mul_add(1.0 - sigma, 1.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, assert_same_for_any_threads, bits, random, to_f64, tolerance,
    };
    use half::bf16;

    fn silu(g: f64) -> f64 {
        g / (1.0 + (-g).exp())
    }

    fn agrees_with_reference<E: Element>() {
        for len in [1, 17, 1000, PIECE + 5] {
            let gate = random::<E>(len, 8.0, 1);
            let [up, dy] = [2, 3].map(|seed| random::<E>(len, 1.0, seed));
            let [g, u, d] = [&gate, &up, &dy].map(|x| to_f64(x));
            let nan = E::from_f32(f32::NAN);
            let (mut y, mut dgate, mut dup) = (vec![nan; len], vec![nan; len], vec![nan; len]);
            swiglu_forward(&mut y, &gate, &up);
            swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up);
            let want = |f: &dyn Fn(usize) -> f64| (0..len).map(f).collect::<Vec<_>>();
            assert_close("y", &y, &want(&|i| silu(g[i]) * u[i]), tolerance::<E>());
            assert_close("dup", &dup, &want(&|i| silu(g[i]) * d[i]), tolerance::<E>());
            // The derivative of silu by central differences.
            let h = 1e-5;
            let slope = |g: f64| (silu(g + h) - silu(g - h)) / (2.0 * h);
            assert_close("dgate", &dgate, &want(&|i| slope(g[i]) * u[i] * d[i]), tolerance::<E>());
        }
    }

    #[test]
    fn f32_agrees_with_reference() {
        agrees_with_reference::<f32>();
    }

    #[test]
    fn bf16_agrees_with_reference() {
        agrees_with_reference::<bf16>();
    }

    #[test]
    fn extremes_stay_finite() {
        let gate = [-1e30f32, -100.0, 100.0, 1e30];
        let (mut y, mut dgate, mut dup) = ([f32::NAN; 4], [f32::NAN; 4], [f32::NAN; 4]);
        swiglu_forward(&mut y, &gate, &[1.0; 4]);
        swiglu_backward(&mut dgate, &mut dup, &[1.0; 4], &gate, &[1.0; 4]);
        assert_eq!(y, [0.0, 0.0, 100.0, 1e30]);
        assert_eq!(dgate, [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(dup, y);
    }

    #[test]
    fn same_for_any_threads() {
        let [gate, up] = [1, 2].map(|seed| random::<bf16>(5 * PIECE + 3, 2.0, seed));
        assert_same_for_any_threads(|| {
            let mut y = gate.clone();
            swiglu_forward(&mut y, &gate, &up);
            bits(&y)
        });
    }
}
