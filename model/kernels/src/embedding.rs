//! Token embedding. Derivation: `docs/backward/embedding.md`.
//!
//! ```text
//! y_m    = w[ids_m]
//!
//! dw[v] += Σ_{m : ids_m = v} dy_m      in the order of m
//! ```

use crate::element::Element;
use crate::simd::vectorized;
use rayon::prelude::*;

/// Tokens whose rows one forward task copies.
const TOKENS: usize = 64;

/// Rows of `dw` that one backward task adds to: it looks through all ids for those of its rows, so
/// the order of each row's sum is the order of its tokens.
const OWNED: usize = 512;

/// `y` (M, C) = rows `ids` (M) of `weight` (V, C).
pub fn embedding_forward<E: Element>(y: &mut [E], weight: &[E], ids: &[i32], channels: usize) {
    assert_eq!(y.len(), ids.len() * channels, "embedding_forward: y is not (M, C)");
    if y.is_empty() {
        return;
    }
    y.par_chunks_mut(TOKENS * channels).zip(ids.par_chunks(TOKENS)).for_each(|(y, ids)| {
        for (y, &id) in y.chunks_exact_mut(channels).zip(ids) {
            y.copy_from_slice(&weight[id as usize * channels..][..channels]);
        }
    });
}

/// `dweight` (V, C) `+=` rows of `dy` (M, C) at `ids` (M).
pub fn embedding_backward<E: Element>(dweight: &mut [f32], dy: &[E], ids: &[i32], channels: usize) {
    assert_eq!(dy.len(), ids.len() * channels, "embedding_backward: dy is not (M, C)");
    if dy.is_empty() {
        return;
    }
    let vocabulary = dweight.len() / channels;
    assert!(
        ids.iter().all(|&id| (id as usize) < vocabulary),
        "embedding_backward: an id is outside the vocabulary of {vocabulary}"
    );
    dweight.par_chunks_mut(OWNED * channels).enumerate().for_each(|(task, rows)| {
        let first = task * OWNED;
        for (&id, dy) in ids.iter().zip(dy.chunks_exact(channels)) {
            let row = (id as usize).wrapping_sub(first);
            if row < OWNED {
                add(&mut rows[row * channels..][..channels], dy);
            }
        }
    });
}

vectorized! {
    fn add<E: Element>(sum: &mut [f32], x: &[E]) {
        for (s, &x) in sum.iter_mut().zip(x) {
            *s += x.to_f32();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn gathers_and_scatters() {
        let (vocabulary, channels) = (1300, 5);
        let weight: Vec<f32> = (0..vocabulary * channels).map(|i| i as f32).collect();
        let ids = [3, 1299, 0, 3, 512, 511];
        let mut y = vec![0.0; ids.len() * channels];
        embedding_forward(&mut y, &weight, &ids, channels);
        for (m, &id) in ids.iter().enumerate() {
            assert_eq!(y[m * channels..][..channels], weight[id as usize * channels..][..channels]);
        }
        let dy: Vec<bf16> = (0..y.len()).map(|i| bf16::from_f32(i as f32)).collect();
        let mut dweight = vec![1.0f32; weight.len()];
        embedding_backward(&mut dweight, &dy, &ids, channels);
        let mut want = vec![1.0f32; weight.len()];
        for (m, &id) in ids.iter().enumerate() {
            for c in 0..channels {
                want[id as usize * channels + c] += (m * channels + c) as f32;
            }
        }
        assert_eq!(dweight, want);
    }
}
