use super::*;
use crate::causal_attention_forward;
use crate::test_support::{
    assert_close, assert_same_for_any_threads, at_every_level, bits, random, to_f64,
};
use half::bf16;

const SHAPES: [PagedShape; 5] = [
    PagedShape { heads: 2, kv_heads: 2, head_dim: 64 },
    PagedShape { heads: 4, kv_heads: 2, head_dim: 128 },
    PagedShape { heads: 6, kv_heads: 2, head_dim: 20 },
    PagedShape { heads: 1, kv_heads: 1, head_dim: 6 },
    PagedShape { heads: 8, kv_heads: 1, head_dim: 48 },
];

/// Tokens of each sequence.
const LENGTHS: [usize; 6] = [1, 15, 17, 96, 131, 230];

/// A cache whose content nobody wrote is not a number, so that reading it shows.
struct Cache<E> {
    k: Vec<E>,
    v: Vec<E>,
    shape: PagedShape,
    /// Of each sequence, scattered over the cache.
    pages: Vec<Vec<u32>>,
}

impl<E: Element> Cache<E> {
    fn new(shape: PagedShape) -> Self {
        let counts = LENGTHS.map(|length| length.div_ceil(PAGE));
        let total: usize = counts.iter().sum();
        let nan = E::from_f32(f32::NAN);
        let mut next = 0;
        let pages = counts.map(|count| {
            (0..count)
                .map(|_| {
                    next += 1;
                    (next * 7 % total) as u32
                })
                .collect()
        });
        assert!(!total.is_multiple_of(7));
        Self {
            k: vec![nan; total * shape.key_page()],
            v: vec![nan; total * shape.value_page()],
            shape,
            pages: pages.to_vec(),
        }
    }

    /// Writes and attends to these parts of sequences, which stand one after the other in the pass.
    fn pass(
        &mut self,
        inputs: &[[Vec<E>; 3]],
        parts: &[(usize, Range<usize>)],
    ) -> Vec<(Vec<E>, Vec<f32>)> {
        let PagedShape { heads, kv_heads, head_dim } = self.shape;
        let (mut q, mut k, mut v, mut rows) = (vec![], vec![], vec![], vec![]);
        let mut row = 0;
        for (sequence, part) in parts {
            let cut = |x: &[E], heads: usize| {
                x[part.start * heads * head_dim..part.end * heads * head_dim].to_vec()
            };
            let [own_q, own_k, own_v] = &inputs[*sequence];
            q.extend(cut(own_q, heads));
            k.extend(cut(own_k, kv_heads));
            v.extend(cut(own_v, kv_heads));
            let pages = &self.pages[*sequence];
            rows.push(PagedRows { rows: row..row + part.len(), start: part.start, pages });
            row += part.len();
        }
        let mut o = vec![E::from_f32(f32::NAN); q.len()];
        let mut lse = vec![f32::NAN; row * heads];
        paged_keys_values_write((&mut self.k, &mut self.v), &k, &v, &rows, self.shape);
        paged_attention_forward(&mut o, &mut lse, &q, (&self.k, &self.v), &rows, self.shape);
        rows.iter()
            .map(|part| {
                let part = part.rows.clone();
                let o = o[part.start * heads * head_dim..part.end * heads * head_dim].to_vec();
                let lse = (0..heads).flat_map(|h| lse[h * row..][part.clone()].to_vec());
                (o, lse.collect())
            })
            .collect()
    }
}

fn inputs<E: Element>(shape: PagedShape) -> Vec<[Vec<E>; 3]> {
    let PagedShape { heads, kv_heads, head_dim } = shape;
    let lengths = LENGTHS.iter().enumerate();
    lengths
        .map(|(n, length)| {
            let seed = 10 * n as u64;
            [
                random(length * heads * head_dim, 2.0, seed),
                random(length * kv_heads * head_dim, 2.0, seed + 1),
                random(length * kv_heads * head_dim, 1.0, seed + 2),
            ]
        })
        .collect()
}

/// All tokens of all sequences in one pass.
fn whole<E: Element>(shape: PagedShape, inputs: &[[Vec<E>; 3]]) -> Vec<(Vec<E>, Vec<f32>)> {
    let parts: Vec<_> = LENGTHS.iter().enumerate().map(|(n, length)| (n, 0..*length)).collect();
    Cache::new(shape).pass(inputs, &parts)
}

fn agrees_with_dense<E: Element>(tolerance: f64) {
    for shape in SHAPES {
        let inputs = inputs::<E>(shape);
        at_every_level(|| {
            for (n, (o, lse)) in whole(shape, &inputs).into_iter().enumerate() {
                let PagedShape { heads, kv_heads, head_dim } = shape;
                let [q, k, v] = &inputs[n];
                let (queries, keys) = (LENGTHS[n], LENGTHS[n]);
                let dense = AttentionShape { batch: 1, queries, keys, heads, kv_heads, head_dim };
                let mut want = (vec![E::ZERO; q.len()], vec![0.0; lse.len()]);
                causal_attention_forward(&mut want.0, &mut want.1, q, k, v, None, dense);
                let name = format!("sequence {n} of {shape:?}");
                assert_close(&name, &o, &to_f64(&want.0), tolerance);
                assert_close(&name, &lse, &to_f64(&want.1), tolerance);
            }
        });
    }
}

#[test]
fn f32_agrees_with_dense() {
    agrees_with_dense::<f32>(1e-5);
}

#[test]
fn bf16_agrees_with_dense() {
    // The dense kernel rounds probabilities too.
    agrees_with_dense::<bf16>(4e-2);
}

/// One by one, in chunks and mixed with others: the bits of one pass over all.
fn same_bits_in_any_parts<E: Element>() {
    for shape in SHAPES {
        let inputs = inputs::<E>(shape);
        at_every_level(|| {
            let want = whole(shape, &inputs);
            let row = shape.heads * shape.head_dim;
            for chunk in [1, 3, 14, 40, 97] {
                let mut cache = Cache::new(shape);
                // Sequence n joins at step n and goes on by chunks of its own size.
                let mut done = [0; LENGTHS.len()];
                for step in 0.. {
                    let parts: Vec<(usize, Range<usize>)> = (0..LENGTHS.len().min(step + 1))
                        .filter(|n| done[*n] < LENGTHS[*n])
                        .map(|n| {
                            let end = (done[n] + chunk + 2 * n * (step % 2)).min(LENGTHS[n]);
                            (n, done[n]..end)
                        })
                        .collect();
                    if parts.is_empty() && step >= LENGTHS.len() {
                        break;
                    }
                    let outputs = cache.pass(&inputs, &parts);
                    for ((n, part), (o, lse)) in parts.into_iter().zip(outputs) {
                        let name =
                            format!("{part:?} of sequence {n}, {shape:?}, chunks of {chunk}");
                        let (want_o, want_lse) = &want[n];
                        let want_o = &want_o[part.start * row..part.end * row];
                        assert!(bits(&o) == bits(want_o), "{name}");
                        for (h, lse) in lse.chunks_exact(part.len()).enumerate() {
                            let want = &want_lse[h * LENGTHS[n]..][part.clone()];
                            assert!(bits(lse) == bits(want), "{name}, head {h}");
                        }
                        done[n] = part.end;
                    }
                }
            }
        });
    }
}

#[test]
fn f32_same_bits_in_any_parts() {
    same_bits_in_any_parts::<f32>();
}

#[test]
fn bf16_same_bits_in_any_parts() {
    same_bits_in_any_parts::<bf16>();
}

#[test]
fn same_for_any_threads() {
    let inputs = inputs::<bf16>(SHAPES[1]);
    assert_same_for_any_threads(|| {
        let outputs = whole(SHAPES[1], &inputs);
        outputs.iter().map(|(o, lse)| (bits(o), bits(lse))).collect::<Vec<_>>()
    });
}
