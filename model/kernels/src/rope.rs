//! Rotary position embedding, rotate-half layout. Derivation: `docs/backward/rope.md`.
//!
//! ```text
//! y_i        = x_i cos φ − x_{i+D/2} sin φ
//! y_{i+D/2}  = x_{i+D/2} cos φ + x_i sin φ
//!
//! dx_i       = dy_i cos φ + dy_{i+D/2} sin φ
//! dx_{i+D/2} = dy_{i+D/2} cos φ − dy_i sin φ
//! ```

use crate::element::Element;
use crate::simd::vectorized;
use rayon::prelude::*;

/// The shape of the rotated tensor `(B, T, H, D)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeShape {
    /// Sequences, `B`.
    pub batch: usize,
    /// Positions per sequence, `T`.
    pub time: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Channels per head, `D`, even.
    pub head_dim: usize,
}

/// Positions one task handles.
const POSITIONS: usize = 16;

/// Rotates `x` (B, T, H, D); `cos` and `sin` are (T, D/2).
pub fn rope_forward<E: Element>(y: &mut [E], x: &[E], cos: &[f32], sin: &[f32], shape: RopeShape) {
    rotate(y, x, cos, sin, 1.0, shape);
}

/// Rotates `dy` back.
pub fn rope_backward<E: Element>(
    dx: &mut [E],
    dy: &[E],
    cos: &[f32],
    sin: &[f32],
    shape: RopeShape,
) {
    rotate(dx, dy, cos, sin, -1.0, shape);
}

fn rotate<E: Element>(y: &mut [E], x: &[E], cos: &[f32], sin: &[f32], sign: f32, shape: RopeShape) {
    let RopeShape { batch, time, heads, head_dim } = shape;
    let row = heads * head_dim;
    assert_eq!(head_dim % 2, 0, "rope: the head dim is odd");
    assert_eq!(x.len(), batch * time * row, "rope: x is not (B, T, H, D)");
    assert_eq!(y.len(), x.len(), "rope: output and input differ in length");
    assert_eq!(cos.len(), time * head_dim / 2, "rope: cos is not (T, D/2)");
    assert_eq!(sin.len(), cos.len(), "rope: sin is not (T, D/2)");
    if x.is_empty() {
        return;
    }
    y.par_chunks_mut(POSITIONS * row).zip(x.par_chunks(POSITIONS * row)).enumerate().for_each(
        |(task, (y, x))| {
            let half = head_dim / 2;
            for (i, (y, x)) in y.chunks_exact_mut(row).zip(x.chunks_exact(row)).enumerate() {
                let t = (task * POSITIONS + i) % time;
                let (cos, sin) = (&cos[t * half..][..half], &sin[t * half..][..half]);
                rotate_position(y, x, cos, sin, sign);
            }
        },
    );
}

vectorized! {
    fn rotate_position<E: Element>(y: &mut [E], x: &[E], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
            let (y_low, y_high) = y.split_at_mut(half);
            let (x_low, x_high) = x.split_at(half);
            let (sin, y_high) = (&sin[..half], &mut y_high[..half]);
            for i in 0..half {
                let (a, b, c, s) = (x_low[i].to_f32(), x_high[i].to_f32(), cos[i], sign * sin[i]);
                y_low[i] = E::from_f32(a * c - b * s);
                y_high[i] = E::from_f32(b * c + a * s);
            }
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

    /// Angles `t θ^(-2i/D)`, as (cos, sin).
    fn angles(time: usize, head_dim: usize) -> (Vec<f32>, Vec<f32>) {
        let half = head_dim / 2;
        let angle = |i: usize| {
            (i / half) as f64 * 10_000f64.powf(-2.0 * (i % half) as f64 / head_dim as f64)
        };
        let table = |f: fn(f64) -> f64| (0..time * half).map(|i| f(angle(i)) as f32).collect();
        (table(f64::cos), table(f64::sin))
    }

    /// The rotation by matrix, in f64; transposed for the backward pass.
    fn reference(
        x: &[f64],
        cos: &[f32],
        sin: &[f32],
        transpose: bool,
        shape: RopeShape,
    ) -> Vec<f64> {
        let RopeShape { time, heads, head_dim, .. } = shape;
        let half = head_dim / 2;
        let mut y = vec![0.0; x.len()];
        for (row, (y, x)) in y.chunks_mut(head_dim).zip(x.chunks(head_dim)).enumerate() {
            let t = row / heads % time;
            for i in 0..half {
                let (c, s) = (f64::from(cos[t * half + i]), f64::from(sin[t * half + i]));
                let s = if transpose { -s } else { s };
                y[i] = x[i] * c - x[i + half] * s;
                y[i + half] = x[i] * s + x[i + half] * c;
            }
        }
        y
    }

    fn agrees_with_reference<E: Element>() {
        for (batch, time, heads, head_dim) in
            [(1, 1, 1, 2), (2, 17, 3, 16), (1, 65, 2, 48), (3, 40, 1, 64), (1, 5, 2, 128)]
        {
            let shape = RopeShape { batch, time, heads, head_dim };
            let (cos, sin) = angles(time, head_dim);
            let x = random::<E>(batch * time * heads * head_dim, 1.0, 1);
            let mut y = vec![E::from_f32(f32::NAN); x.len()];
            rope_forward(&mut y, &x, &cos, &sin, shape);
            let want = reference(&to_f64(&x), &cos, &sin, false, shape);
            assert_close(&format!("y {shape:?}"), &y, &want, tolerance::<E>());
            let mut dx = vec![E::from_f32(f32::NAN); x.len()];
            rope_backward(&mut dx, &x, &cos, &sin, shape);
            let want = reference(&to_f64(&x), &cos, &sin, true, shape);
            assert_close(&format!("dx {shape:?}"), &dx, &want, tolerance::<E>());
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
    fn same_for_any_threads() {
        let shape = RopeShape { batch: 2, time: 50, heads: 2, head_dim: 32 };
        let (cos, sin) = angles(50, 32);
        let x = random::<bf16>(2 * 50 * 64, 1.0, 1);
        assert_same_for_any_threads(|| {
            let mut y = x.clone();
            rope_forward(&mut y, &x, &cos, &sin, shape);
            bits(&y)
        });
    }
}
