use std::path::Path;

use altiplano_kernels::{AttentionShape, causal_attention_backward, causal_attention_forward};
use half::bf16;

use super::cuda::{HEAD_DIMS, Kernels, MMA, WGMMA};
use crate::backend::cube::nvidia::emulated::{self, Numbers, relative_error};
use crate::backend::cube::nvidia::{Source, assert_compiles};

#[test]
fn the_kernels_compile() {
    for (kernels, one_generation, capabilities) in
        [(&MMA, false, &[(8, 0), (9, 0)][..]), (&MMA, true, &[(9, 0)]), (&WGMMA, true, &[(9, 0)])]
    {
        let sources = HEAD_DIMS.map(|head_dim| {
            [false, true]
                .map(|bounded| Source { one_generation, ..kernels.source(head_dim, bounded) })
        });
        assert_compiles(sources.as_flattened(), capabilities);
    }
}

#[test]
fn every_gpu_gets_what_it_runs() {
    for (capability, architecture) in [((8, 0), "sm_80"), ((12, 0), "sm_120"), ((9, 0), "sm_90a")] {
        let source = Kernels::of(capability).source(64, false);
        assert_eq!(source.architecture(capability), architecture);
    }
    assert!(std::ptr::eq(Kernels::of((9, 0)), &WGMMA));
    for capability in [(8, 0), (8, 9), (10, 0), (12, 0)] {
        assert!(std::ptr::eq(Kernels::of(capability), &MMA));
    }
}

#[test]
fn tiles_fit_the_shared_memory() {
    for head_dim in HEAD_DIMS {
        for bytes in MMA.shared_bytes(head_dim) {
            // Two blocks of an H100; an A100's 163 KiB hold one.
            assert!(2 * (bytes + 1024) <= 227 * 1024 + 1024, "{head_dim}: {bytes}");
        }
        for bytes in WGMMA.shared_bytes(head_dim) {
            assert!(bytes <= 227 * 1024, "{head_dim}: {bytes}");
        }
    }
}

struct Case {
    shape: AttentionShape,
    bounded: bool,
}

/// The kernels on the emulated warp against the CPU kernels in f32, on the same bf16 numbers.
fn check(program: &Path, Case { shape, bounded }: Case) {
    let AttentionShape { batch, queries, keys, heads, kv_heads, head_dim } = shape;
    let mut numbers = Numbers::new(1);
    let mut draw = |count: usize, scale: f32| numbers.bf16s(count, scale);
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
    let error = relative_error(&wide(&o), &o32);
    assert!(error < 4e-3, "o {shape:?}: {error}");
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
            let error = relative_error(&wide(&found), expected);
            assert!(error < 8e-3, "{name} {shape:?}: {error}");
        }
    }
}

/// Tile and fragment indices, waits and barriers, on a machine without a GPU.
fn check_emulated(kernels: &Kernels, hopper: usize) {
    let dir = tempfile::tempdir().unwrap();
    for head_dim in HEAD_DIMS {
        for bounded in [false, true] {
            let mut defines = kernels.source(head_dim, bounded).defines.to_vec();
            defines.push(("HOPPER", hopper));
            let Some(program) = emulated::compile("attention/emulated.cpp", &defines, dir.path())
            else {
                return;
            };
            for [batch, queries, keys, heads, kv_heads] in [
                [1, 1, 1, 2, 2],
                [1, 150, 150, 4, 2],
                [2, 65, 65, 2, 1],
                [1, 5, 70, 2, 2],
                [1, 130, 200, 2, 1],
                // More steps than buffers.
                [1, 260, 260, 1, 1],
            ] {
                let shape = AttentionShape { batch, queries, keys, heads, kv_heads, head_dim };
                check(&program, Case { shape, bounded });
            }
        }
    }
}

#[test]
fn the_emulated_mma_kernels_match_the_cpu() {
    check_emulated(&MMA, 0);
}

#[test]
fn the_emulated_wgmma_kernels_match_the_cpu() {
    check_emulated(&WGMMA, 1);
}
