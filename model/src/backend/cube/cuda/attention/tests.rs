use std::path::Path;

use altiplano_kernels::{AttentionShape, causal_attention_backward, causal_attention_forward};
use half::bf16;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::*;
use crate::backend::cube::cuda::compile::{machine_code, nvrtc_for_tests};
use crate::backend::cube::cuda::emulated;

#[test]
fn the_kernels_compile() {
    if !nvrtc_for_tests("attention.cu") {
        return;
    }
    for architecture in ["sm_80", "sm_90", "sm_90a"] {
        for head_dim in HEAD_DIMS {
            for bounded in [0, 1] {
                let defines = [("HEAD_DIM", head_dim), ("BOUNDED", bounded)];
                let code = machine_code(SOURCE, architecture, &defines, &[]).unwrap();
                assert!(code.starts_with(b"\x7fELF"), "{architecture} {head_dim}");
            }
        }
    }
}

#[test]
fn tiles_fit_the_shared_memory_of_two_blocks() {
    for head_dim in HEAD_DIMS {
        for bytes in shared_bytes(head_dim) {
            // Of an H100; an A100's 163 KiB hold one.
            assert!(2 * (bytes + 1024) <= 227 * 1024 + 1024, "{head_dim}: {bytes}");
        }
    }
}

#[test]
fn the_constants_are_those_of_the_source() {
    for (name, value) in [
        ("THREADS", THREADS as usize),
        ("QUERY_ROWS", QUERY_ROWS),
        ("FORWARD_KEYS", FORWARD_KEYS),
        ("GRADIENT_KEYS", GRADIENT_KEYS),
        ("KEY_ROWS", KEY_ROWS),
        ("STEP_QUERIES", STEP_QUERIES),
    ] {
        assert!(SOURCE.contains(&format!("constexpr int {name} = {value};")), "{name} = {value}");
    }
}

/// ‖x − y‖ / ‖y‖.
fn relative_error(x: &[bf16], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut x.iter().zip(y).map(|(x, y)| f64::from(x.to_f32()) - f64::from(*y)));
    difference / norm(&mut y.iter().map(|y| f64::from(*y)))
}

struct Case {
    shape: AttentionShape,
    bounded: bool,
}

/// The kernels on the emulated warp against the CPU kernels in f32, on the same bf16 numbers.
fn check(program: &Path, Case { shape, bounded }: Case) {
    let AttentionShape { batch, queries, keys, heads, kv_heads, head_dim } = shape;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut draw = |count: usize, scale: f32| -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(scale * rng.random_range(-1.0..1.0f32))).collect()
    };
    let (q_len, kv_len) = (batch * queries * heads * head_dim, batch * keys * kv_heads * head_dim);
    let (q, k, v, dout) =
        (draw(q_len, 3.0), draw(kv_len, 2.0), draw(kv_len, 1.0), draw(q_len, 1.0));
    let first: Vec<i32> = (0..batch * queries)
        .map(|row| if bounded { ((row % queries + keys - queries) / 37 * 37) as i32 } else { 0 })
        .collect();

    let dims = [batch, queries, keys, heads, kv_heads].map(|n| n as i32);
    let mut input: Vec<u8> = bytemuck::cast_slice(&dims).to_vec();
    for tensor in [&q, &k, &v, &dout] {
        input.extend_from_slice(bytemuck::cast_slice(tensor));
    }
    input.extend_from_slice(bytemuck::cast_slice(&first));
    let mut output = emulated::run(program, input);

    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
    let (q32, k32, v32, dout32) = (wide(&q), wide(&k), wide(&v), wide(&dout));
    let rows = batch * heads * queries;
    let (mut o32, mut lse32) = (vec![0.0f32; q_len], vec![0.0f32; rows]);
    let bound = bounded.then_some(&first[..]);
    causal_attention_forward(&mut o32, &mut lse32, &q32, &k32, &v32, bound, shape);

    let o: Vec<bf16> = output.take(q_len);
    let lse: Vec<f32> = output.take(rows);
    assert!(relative_error(&o, &o32) < 4e-3, "o {shape:?}: {}", relative_error(&o, &o32));
    for (lse, expected) in lse.iter().zip(&lse32) {
        assert!((lse - expected).abs() < 1e-4, "lse {shape:?}: {lse} is not {expected}");
    }
    if queries != keys {
        return;
    }
    let (mut dq32, mut dk32, mut dv32) =
        (vec![0.0f32; q_len], vec![0.0f32; kv_len], vec![0.0f32; kv_len]);
    causal_attention_backward(
        &mut dq32, &mut dk32, &mut dv32, &dout32, &q32, &k32, &v32, &o32, &lse32, bound, shape,
    );
    output.take::<f32>(rows); // delta
    for (name, expected) in [("dq", &dq32), ("dk", &dk32), ("dv", &dv32)] {
        let found: Vec<bf16> = output.take(expected.len());
        // A single token attends to itself alone: its score has no gradient.
        if queries > 1 || name == "dv" {
            let error = relative_error(&found, expected);
            assert!(error < 8e-3, "{name} {shape:?}: {error}");
        }
    }
}

/// Tile and fragment indices, waits and barriers, on a machine without a GPU.
#[test]
fn the_emulated_kernels_match_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    for head_dim in HEAD_DIMS {
        for bounded in [false, true] {
            let defines = [("HEAD_DIM", head_dim), ("BOUNDED", usize::from(bounded))];
            let Some(program) = emulated::compile("emulated_attention.cpp", &defines, dir.path())
            else {
                return;
            };
            for [batch, queries, keys, heads, kv_heads] in [
                [1, 1, 1, 2, 2],
                [1, 150, 150, 4, 2],
                [2, 65, 65, 2, 1],
                [1, 5, 70, 2, 2],
                [1, 130, 200, 2, 1],
            ] {
                let shape = AttentionShape { batch, queries, keys, heads, kv_heads, head_dim };
                check(&program, Case { shape, bounded });
            }
        }
    }
}
