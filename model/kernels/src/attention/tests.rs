use super::*;
use crate::test_support::{
    assert_close, assert_same_for_any_threads, at_every_level, bits, random, to_f64,
};
use half::bf16;

const fn shape(
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> AttentionShape {
    AttentionShape { batch, queries, keys, heads, kv_heads, head_dim }
}

/// Awkward lengths and head dims, grouped heads, and queries that follow a cache of keys.
const SHAPES: [AttentionShape; 12] = [
    shape(1, 1, 1, 1, 1, 16),
    shape(2, 17, 17, 2, 2, 48),
    shape(1, 65, 65, 4, 2, 64),
    shape(1, 130, 130, 2, 1, 128),
    shape(2, 97, 97, 3, 1, 20),
    shape(1, 300, 300, 2, 2, 64),
    shape(1, 1, 130, 4, 1, 64),
    shape(2, 3, 90, 4, 2, 20),
    shape(1, 4, 4, 2, 1, 16),
    shape(2, 5, 100, 2, 2, 48),
    shape(1, 100, 231, 2, 1, 32),
    shape(1, 33, 34, 1, 1, 6),
];

/// Documents of uneven length, per query the first position of its own.
fn documents(shape: AttentionShape) -> Vec<i32> {
    let mut first = vec![];
    for b in 0..shape.batch {
        let lengths = [1, 7, 40, 3, 110, 12];
        let mut starts = vec![];
        let mut document = b;
        while starts.len() < shape.keys {
            let start = starts.len() as i32;
            starts.extend(std::iter::repeat_n(start, lengths[document % 6]));
            document += 1;
        }
        first.extend_from_slice(&starts[shape.keys - shape.queries..shape.keys]);
    }
    first
}

/// `(o, lse, dq, dk, dv)` in f64, by the formulas.
fn reference(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    dout: &[f64],
    first: Option<&[i32]>,
    shape: AttentionShape,
) -> [Vec<f64>; 5] {
    let AttentionShape { batch, queries, keys, heads, kv_heads, head_dim } = shape;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let mut out = [q, &[], q, k, v].map(|x| vec![0.0; x.len()]);
    out[1] = vec![0.0; batch * heads * queries];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..queries {
                let qi = ((b * queries + i) * heads + h) * head_dim;
                let kj = |j| ((b * keys + j) * kv_heads + h / (heads / kv_heads)) * head_dim;
                let low = first.map_or(0, |first| first[b * queries + i] as usize);
                let seen = low..i + keys - queries + 1;
                let (q, dout) = (&q[qi..qi + head_dim], &dout[qi..qi + head_dim]);
                let row = |x: &'_ [f64], j: usize| x[kj(j)..kj(j) + head_dim].to_vec();
                let s: Vec<f64> = seen.clone().map(|j| scale * dot(q, &row(k, j))).collect();
                let max = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lse = max + s.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                out[1][(b * heads + h) * queries + i] = lse;
                for (s, j) in s.iter().zip(seen.clone()) {
                    for d in 0..head_dim {
                        out[0][qi + d] += (s - lse).exp() * v[kj(j) + d];
                    }
                }
                let delta = dot(dout, &out[0][qi..qi + head_dim]);
                for (s, j) in s.iter().zip(seen) {
                    let p = (s - lse).exp();
                    let ds = p * (dot(dout, &row(v, j)) - delta) * scale;
                    for d in 0..head_dim {
                        out[2][qi + d] += ds * k[kj(j) + d];
                        out[3][kj(j) + d] += ds * q[d];
                        out[4][kj(j) + d] += p * dout[d];
                    }
                }
            }
        }
    }
    out
}

type Tensors<E> = (Vec<E>, Vec<f32>, Vec<E>, Vec<E>, Vec<E>);

/// Forward and, where shapes allow, backward.
fn run<E: Element>(
    q: &[E],
    k: &[E],
    v: &[E],
    dout: &[E],
    first: Option<&[i32]>,
    shape: AttentionShape,
) -> Tensors<E> {
    let nan = E::from_f32(f32::NAN);
    let mut o = vec![nan; q.len()];
    let mut lse = vec![f32::NAN; shape.batch * shape.heads * shape.queries];
    causal_attention_forward(&mut o, &mut lse, q, k, v, first, shape);
    let (mut dq, mut dk, mut dv) = (vec![nan; q.len()], vec![nan; k.len()], vec![nan; k.len()]);
    if shape.queries == shape.keys {
        causal_attention_backward(&mut dq, &mut dk, &mut dv, dout, q, k, v, &o, &lse, first, shape);
    }
    (o, lse, dq, dk, dv)
}

fn inputs<E: Element>(shape: AttentionShape) -> [Vec<E>; 4] {
    let (q, k) = shape.lengths("test");
    [random(q, 2.0, 1), random(k, 2.0, 2), random(k, 1.0, 3), random(q, 1.0, 4)]
}

fn agrees_with_reference<E: Element>(tolerance: f64, gradient_tolerance: f64) {
    for shape in SHAPES {
        let [q, k, v, dout] = inputs::<E>(shape);
        let first = documents(shape);
        for first in [None, Some(&first[..])] {
            let want =
                reference(&to_f64(&q), &to_f64(&k), &to_f64(&v), &to_f64(&dout), first, shape);
            let name = |x| format!("{x} of {shape:?}, documents: {}", first.is_some());
            at_every_level(|| {
                let (o, lse, dq, dk, dv) = run(&q, &k, &v, &dout, first, shape);
                assert_close(&name("o"), &o, &want[0], tolerance);
                assert_close(&name("lse"), &lse, &want[1], 1e-5);
                if shape.queries == shape.keys {
                    assert_close(&name("dv"), &dv, &want[4], gradient_tolerance);
                    if shape.keys > 1 {
                        assert_close(&name("dq"), &dq, &want[2], gradient_tolerance);
                        assert_close(&name("dk"), &dk, &want[3], gradient_tolerance);
                    }
                }
            });
        }
    }
}

#[test]
fn f32_agrees_with_reference() {
    agrees_with_reference::<f32>(1e-5, 3e-5);
}

#[test]
fn bf16_agrees_with_reference() {
    // Probabilities, score gradients and results are each rounded to 8 bits.
    agrees_with_reference::<bf16>(2e-2, 6e-2);
}

/// The gradient of `Σ dout · o` by central differences of the f64 formulas.
#[test]
fn reference_gradient_is_the_derivative() {
    let shape = shape(1, 9, 9, 2, 1, 4);
    let first = documents(shape);
    let [q, k, v, dout] = inputs::<f32>(shape).map(|x| to_f64(&x));
    let want = reference(&q, &k, &v, &dout, Some(&first), shape);
    let loss = |x: &[Vec<f64>; 3]| -> f64 {
        let [o, ..] = reference(&x[0], &x[1], &x[2], &dout, Some(&first), shape);
        o.iter().zip(&dout).map(|(o, d)| o * d).sum()
    };
    let at = [q, k, v];
    for (tensor, want) in want[2..].iter().enumerate() {
        for i in 0..want.len() {
            let h = 1e-5;
            let (mut up, mut down) = (at.clone(), at.clone());
            up[tensor][i] += h;
            down[tensor][i] -= h;
            let slope = (loss(&up) - loss(&down)) / (2.0 * h);
            assert!((slope - want[i]).abs() < 1e-8, "{tensor} {i}: {slope} {}", want[i]);
        }
    }
}

fn same_for_any_threads<E: Element>() {
    let shape = shape(2, 210, 210, 4, 2, 48);
    let [q, k, v, dout] = inputs::<E>(shape);
    let first = documents(shape);
    assert_same_for_any_threads(|| {
        let (o, lse, dq, dk, dv) = run(&q, &k, &v, &dout, Some(&first), shape);
        (bits(&o), bits(&lse), bits(&dq), bits(&dk), bits(&dv))
    });
}

#[test]
fn f32_same_for_any_threads() {
    same_for_any_threads::<f32>();
}

#[test]
fn bf16_same_for_any_threads() {
    same_for_any_threads::<bf16>();
}

/// A query gets the same from the cache, alone, as among many.
#[test]
fn a_query_after_a_cache_agrees_with_the_whole() {
    let whole = shape(1, 140, 140, 4, 2, 64);
    let [q, k, v, dout] = inputs::<f32>(whole);
    let (o, lse, ..) = run(&q, &k, &v, &dout, None, whole);
    for queries in [1, 3, 20] {
        let tail = shape(1, queries, 140, 4, 2, 64);
        let start = (140 - queries) * 256;
        let (o1, lse1, ..) = run(&q[start..], &k, &v, &dout[start..], None, tail);
        assert_close("o", &o1, &to_f64(&o[start..]), 1e-5);
        for h in 0..4 {
            let want = &lse[(h + 1) * 140 - queries..(h + 1) * 140];
            assert_close("lse", &lse1[h * queries..][..queries], &to_f64(want), 1e-5);
        }
    }
}

/// Documents in one row give what each gives alone.
#[test]
fn documents_do_not_see_each_other() {
    let all = shape(1, 150, 150, 2, 2, 32);
    let [q, k, v, dout] = inputs::<f32>(all);
    let cut = 61;
    let first: Vec<i32> = (0..150).map(|i| if i < cut { 0 } else { cut }).collect();
    let (o, _, dq, dk, dv) = run(&q, &k, &v, &dout, Some(&first), all);
    let split = cut as usize * 64;
    for part in [0..split, split..150 * 64] {
        let time = part.len() / 64;
        let alone = shape(1, time, time, 2, 2, 32);
        let cut = |x: &[f32]| x[part.clone()].to_vec();
        let (o1, _, dq1, dk1, dv1) = run(&cut(&q), &cut(&k), &cut(&v), &cut(&dout), None, alone);
        for (name, got, want) in
            [("o", &o, &o1), ("dq", &dq, &dq1), ("dk", &dk, &dk1), ("dv", &dv, &dv1)]
        {
            assert_close(name, &cut(got), &to_f64(want), 1e-5);
        }
    }
}
