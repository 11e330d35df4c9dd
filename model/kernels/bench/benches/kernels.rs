//! Benchmarks of each kernel on the shapes of a 58M model. Small and quick:
//! `cargo bench --manifest-path model/kernels/bench/Cargo.toml`, or with a filter, e.g. `-- attention/bf16`.

#![allow(missing_docs)]

use altiplano_kernels::{
    AdamWStep, AttentionShape, Element, LinearShape, adamw_step, causal_attention_backward,
    causal_attention_forward, head_cross_entropy_backward, linear_backward_input,
    linear_backward_weight, linear_forward, rms_norm_backward, rms_norm_forward, swiglu_backward,
    swiglu_forward,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use std::time::Duration;

const ROWS: usize = 2048;
const CHANNELS: usize = 512;
const HIDDEN: usize = 1376;
const VOCABULARY: usize = 32_000;

/// Numbers without a pattern that matters, in [-1, 1].
fn numbers<E: Element>(len: usize) -> Vec<E> {
    let hash = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 8;
    (0..len).map(|i| E::from_f32(hash(i) as f32 / 8_388_608.0 - 1.0)).collect()
}

fn name<E: Element>() -> &'static str {
    if E::IS_BF16 { "bf16" } else { "f32" }
}

/// Multiply-adds count as two operations; criterion prints them as elements per second.
fn linear<E: Element>(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for (rows, inputs, outputs) in
        [(1, CHANNELS, HIDDEN), (ROWS, CHANNELS, HIDDEN), (ROWS, HIDDEN, CHANNELS)]
    {
        let shape = LinearShape { rows, inputs, outputs };
        let (x, w) = (numbers::<E>(rows * inputs), numbers::<E>(outputs * inputs));
        let dy = numbers::<E>(rows * outputs);
        let (mut y, mut dx) = (dy.clone(), x.clone());
        let mut dw = vec![0.0; w.len()];
        group.throughput(Throughput::Elements(2 * (rows * inputs * outputs) as u64));
        let id = |pass: &str| {
            BenchmarkId::new(
                format!("{pass}/{}", name::<E>()),
                format!("{rows}x{inputs}x{outputs}"),
            )
        };
        group.bench_function(id("forward"), |b| b.iter(|| linear_forward(&mut y, &x, &w, shape)));
        group.bench_function(id("backward_input"), |b| {
            b.iter(|| linear_backward_input(&mut dx, &dy, &w, shape));
        });
        group.bench_function(id("backward_weight"), |b| {
            b.iter(|| linear_backward_weight(&mut dw, &dy, &x, shape));
        });
    }
}

/// Causal attention counts half of the full square: 2 B H T² D forward, 5 B H T² D backward.
fn attention<E: Element>(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for (batch, time) in [(4, 512), (1, 2048)] {
        let shape = AttentionShape {
            batch,
            queries: time,
            keys: time,
            heads: 8,
            kv_heads: 8,
            head_dim: 64,
        };
        let q = numbers::<E>(batch * time * CHANNELS);
        let (k, v, dout, mut o) = (q.clone(), q.clone(), q.clone(), q.clone());
        let (mut dq, mut dk, mut dv) = (q.clone(), q.clone(), q.clone());
        let mut lse = vec![0.0; batch * 8 * time];
        let id = |pass: &str| {
            BenchmarkId::new(format!("{pass}/{}", name::<E>()), format!("B{batch}_T{time}"))
        };
        let products = (batch * CHANNELS * time * time) as u64;
        group.throughput(Throughput::Elements(2 * products));
        group.bench_function(id("forward"), |b| {
            b.iter(|| causal_attention_forward(&mut o, &mut lse, &q, &k, &v, None, shape));
        });
        group.throughput(Throughput::Elements(5 * products));
        group.bench_function(id("backward"), |b| {
            b.iter(|| {
                causal_attention_backward(
                    &mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &o, &lse, None, shape,
                );
            });
        });
    }
}

fn cross_entropy<E: Element>(c: &mut Criterion) {
    let mut group = c.benchmark_group("head_cross_entropy");
    let rows = 512;
    let shape = LinearShape { rows, inputs: CHANNELS, outputs: VOCABULARY };
    let (x, w) = (numbers::<E>(rows * CHANNELS), numbers::<E>(VOCABULARY * CHANNELS));
    let targets: Vec<i32> = (0..rows as i32).map(|i| i * 61).collect();
    let (mut losses, mut dx, mut dw) = (vec![0.0; rows], x.clone(), vec![0.0; w.len()]);
    group.throughput(Throughput::Elements(6 * (rows * CHANNELS * VOCABULARY) as u64));
    group.bench_function(BenchmarkId::new("backward", name::<E>()), |b| {
        b.iter(|| {
            head_cross_entropy_backward(
                &mut losses,
                &mut dx,
                &mut dw,
                &x,
                &w,
                &targets,
                1e-3,
                shape,
                rows,
            );
        });
    });
}

/// Memory-bound kernels, in bytes read and written.
fn elementwise<E: Element>(c: &mut Criterion) {
    let mut group = c.benchmark_group("elementwise");
    let bytes =
        |tensors: usize, len: usize| Throughput::Bytes((tensors * len * size_of::<E>()) as u64);
    let id = |op: &str| BenchmarkId::new(op, name::<E>());

    let len = ROWS * HIDDEN;
    let (gate, up, dy) = (numbers::<E>(len), numbers::<E>(len), numbers::<E>(len));
    let (mut y, mut dgate, mut dup) = (gate.clone(), gate.clone(), gate.clone());
    group.throughput(bytes(3, len));
    group.bench_function(id("swiglu_forward"), |b| b.iter(|| swiglu_forward(&mut y, &gate, &up)));
    group.throughput(bytes(5, len));
    group.bench_function(id("swiglu_backward"), |b| {
        b.iter(|| swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up));
    });

    let len = ROWS * CHANNELS;
    let (x, dy) = (numbers::<E>(len), numbers::<E>(len));
    let (mut y, mut dx) = (x.clone(), x.clone());
    let (weight, mut dweight) = (vec![1.0; CHANNELS], vec![0.0; CHANNELS]);
    let mut rstd = vec![0.0; ROWS];
    group.throughput(bytes(2, len));
    group.bench_function(id("rms_norm_forward"), |b| {
        b.iter(|| rms_norm_forward(&mut y, &mut rstd, &x, &weight, 1e-6));
    });
    group.throughput(bytes(3, len));
    group.bench_function(id("rms_norm_backward"), |b| {
        b.iter(|| rms_norm_backward(&mut dx, &mut dweight, &dy, &x, &weight, &rstd));
    });
}

fn adamw(c: &mut Criterion) {
    let len = 1 << 24;
    let (mut p, mut m, g) = (numbers::<f32>(len), numbers::<f32>(len), numbers::<f32>(len));
    let mut v = vec![0.1; len];
    let mut copy = vec![bf16::ZERO; len];
    let hyper = AdamWStep {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 10,
        grad_scale: 0.5,
    };
    let mut group = c.benchmark_group("adamw");
    // Reads p, m, v, g; writes p, m, v and the copy.
    group.throughput(Throughput::Bytes(30 * len as u64));
    group.bench_function("step_with_bf16_copy", |b| {
        b.iter(|| adamw_step(&mut p, &mut m, &mut v, &g, Some(&mut copy), &hyper));
    });
}

fn both(c: &mut Criterion) {
    linear::<f32>(c);
    linear::<bf16>(c);
    attention::<f32>(c);
    attention::<bf16>(c);
    cross_entropy::<f32>(c);
    cross_entropy::<bf16>(c);
    elementwise::<f32>(c);
    elementwise::<bf16>(c);
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = both, adamw
}
criterion_main!(kernels);
