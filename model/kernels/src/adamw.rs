//! AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2). Derivation:
//! `docs/backward/adamw.md`.
//!
//! ```text
//! g ← scale · g                                       scale: the clipping factor
//! m ← β1 m + (1 − β1) g            m̂ = m / (1 − β1ᵗ)   t: the step, counted from 1
//! v ← β2 v + (1 − β2) g²           v̂ = v / (1 − β2ᵗ)
//! w ← w − lr λ w − lr m̂ / (√v̂ + ε)
//! ```
//!
//! One pass over memory reads the gradient and updates parameter, moments and the bf16 copy, so a
//! step runs at the speed of memory.

use crate::element::bf16_bits;
use crate::simd::{PIECE, vectorized};
use half::bf16;
use rayon::prelude::*;

/// Hyperparameters of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay λ; 0 for norm gains.
    pub weight_decay: f32,
    /// The step being taken, counted from 1.
    pub step: u64,
    /// Multiplies the gradient first: gradient clipping and averaging.
    pub grad_scale: f32,
}

/// What a step multiplies by, the same for every element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWFactors {
    /// β1.
    pub beta1: f32,
    /// β2.
    pub beta2: f32,
    /// What the gradient is multiplied by.
    pub grad_scale: f32,
    /// `1 - lr λ`.
    pub keep: f32,
    /// `lr / (1 - β1^t)`.
    pub rate: f32,
    /// `1 / sqrt(1 - β2^t)`.
    pub root_correction: f32,
    /// ε.
    pub eps: f32,
}

impl AdamWStep {
    /// The factors of this step.
    pub fn factors(&self) -> AdamWFactors {
        // Powers in f64: β2^t is close to 1 in the first steps.
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(self.step as f64);
        AdamWFactors {
            beta1: self.beta1,
            beta2: self.beta2,
            grad_scale: self.grad_scale,
            keep: (1.0 - f64::from(self.lr) * f64::from(self.weight_decay)) as f32,
            rate: (f64::from(self.lr) / correction(self.beta1)) as f32,
            root_correction: (1.0 / correction(self.beta2).sqrt()) as f32,
            eps: self.eps,
        }
    }
}

/// One step in place. `copy`, if given, receives the new parameters rounded to bf16.
pub fn adamw_step(
    param: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    grad: &[f32],
    copy: Option<&mut [bf16]>,
    hyper: &AdamWStep,
) {
    let len = param.len();
    assert!(m.len() == len && v.len() == len && grad.len() == len, "adamw_step: lengths differ");
    let f = hyper.factors();
    let pieces = param
        .par_chunks_mut(PIECE)
        .zip(m.par_chunks_mut(PIECE))
        .zip(v.par_chunks_mut(PIECE))
        .zip(grad.par_chunks(PIECE));
    match copy {
        None => pieces.for_each(|(((p, m), v), g)| update(p, m, v, g, f)),
        Some(copy) => {
            assert_eq!(copy.len(), len, "adamw_step: the copy differs in length");
            pieces
                .zip(copy.par_chunks_mut(PIECE))
                .for_each(|((((p, m), v), g), copy)| update_and_copy(p, m, v, g, copy, f));
        }
    }
}

#[inline(always)]
fn update_one(p: &mut f32, m: &mut f32, v: &mut f32, g: f32, f: AdamWFactors) {
    let g = g * f.grad_scale;
    *m = f.beta1.mul_add(*m, (1.0 - f.beta1) * g);
    *v = f.beta2.mul_add(*v, (1.0 - f.beta2) * g * g);
    let denominator = v.sqrt().mul_add(f.root_correction, f.eps);
    *p = p.mul_add(f.keep, -(f.rate * *m / denominator));
}

vectorized! {
    fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], f: AdamWFactors) {
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
            update_one(p, m, v, g, f);
        }
    }

    fn update_and_copy(
        p: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        g: &[f32],
        copy: &mut [bf16],
        f: AdamWFactors,
    ) {
        for ((((p, m), v), &g), copy) in p.iter_mut().zip(m).zip(v).zip(g).zip(copy) {
            update_one(p, m, v, g, f);
            *copy = bf16::from_bits(bf16_bits(*p));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, assert_same_for_any_threads, bits, random, to_f64};

    const HYPER: AdamWStep = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 0.5,
    };

    #[test]
    fn ten_steps_agree_with_the_paper_in_f64() {
        let len = PIECE + 37;
        let mut p = random::<f32>(len, 1.0, 1);
        let (mut m, mut v) = (vec![0.0f32; len], vec![0.0f32; len]);
        let mut copy = vec![bf16::NAN; len];
        let mut want = to_f64(&p);
        let (mut m64, mut v64) = (vec![0.0f64; len], vec![0.0f64; len]);
        let f = f64::from;
        for step in 1..=10 {
            let g = random::<f32>(len, 2.0, 1 + step);
            let hyper = AdamWStep { step, ..HYPER };
            adamw_step(&mut p, &mut m, &mut v, &g, Some(&mut copy), &hyper);
            let (b1, b2) = (f(HYPER.beta1), f(HYPER.beta2));
            for i in 0..len {
                let g = f(HYPER.grad_scale) * f(g[i]);
                m64[i] = b1 * m64[i] + (1.0 - b1) * g;
                v64[i] = b2 * v64[i] + (1.0 - b2) * g * g;
                let m_hat = m64[i] / (1.0 - b1.powi(step as i32));
                let v_hat = v64[i] / (1.0 - b2.powi(step as i32));
                want[i] -= f(HYPER.lr)
                    * (m_hat / (v_hat.sqrt() + f(HYPER.eps)) + f(HYPER.weight_decay) * want[i]);
            }
        }
        assert_close("p", &p, &want, 2e-6);
        assert_close("m", &m, &m64, 2e-6);
        assert_close("v", &v, &v64, 2e-6);
        assert!(p.iter().zip(&copy).all(|(&p, &copy)| bf16::from_f32(p) == copy));
    }

    #[test]
    fn without_a_copy_the_parameters_are_the_same() {
        let g = random::<f32>(1000, 1.0, 2);
        let run = |copy: Option<&mut [bf16]>| {
            let mut p = random::<f32>(1000, 1.0, 1);
            let (mut m, mut v) = (vec![0.1; 1000], vec![0.2; 1000]);
            adamw_step(&mut p, &mut m, &mut v, &g, copy, &HYPER);
            (bits(&p), bits(&m), bits(&v))
        };
        assert_eq!(run(None), run(Some(&mut [bf16::ZERO; 1000])));
    }

    #[test]
    fn a_zero_gradient_only_decays() {
        let (mut p, mut m, mut v) = ([2.0f32], [0.0], [0.0]);
        adamw_step(&mut p, &mut m, &mut v, &[0.0], None, &HYPER);
        assert_eq!((p, m, v), ([2.0 * (1.0 - 1e-2 * 0.1)], [0.0], [0.0]));
    }

    #[test]
    fn same_for_any_threads() {
        let g = random::<f32>(3 * PIECE + 1, 1.0, 2);
        assert_same_for_any_threads(|| {
            let mut p = random::<f32>(g.len(), 1.0, 1);
            let (mut m, mut v) = (vec![0.0; g.len()], vec![0.0; g.len()]);
            adamw_step(&mut p, &mut m, &mut v, &g, None, &HYPER);
            (bits(&p), bits(&m), bits(&v))
        });
    }
}
