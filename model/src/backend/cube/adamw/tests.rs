use altiplano_kernels::{AdamWStep, adamw_step};
use half::bf16;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::cuda::{AdamWEntry, AdamWTable, BLOCK_ELEMENTS, SpanTable, blocks, source};
use crate::backend::cube::nvidia::{Source, assert_compiles, emulated};

#[test]
fn the_kernels_compile() {
    assert_compiles(&[source()], &[(8, 0), (9, 0)]);
    assert_compiles(&[Source { one_generation: true, ..source() }], &[(9, 0)]);
}

#[test]
fn tables_fit_the_arguments_of_a_kernel() {
    // 4096 bytes with the pointers behind the table.
    assert_eq!(size_of::<AdamWEntry>(), 56);
    assert_eq!(size_of::<AdamWTable>(), 64 * 56 + 32);
    assert_eq!(size_of::<SpanTable>(), 128 * 24 + 8);
    assert!(size_of::<AdamWTable>() <= 4096 && size_of::<SpanTable>() + 16 <= 4096);
}

#[test]
fn blocks_follow_each_other() {
    let (firsts, count) = blocks([1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 5].into_iter());
    assert_eq!((firsts, count), (vec![0, 1, 2, 4], 5));
}

/// The kernels on an emulated block against those of the CPU: tensors of one element, of a few
/// blocks, of lengths that four does not divide, with and without copies.
#[test]
fn the_emulated_kernels_match_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = emulated::compile("adamw/emulated.cpp", &source().defines, dir.path())
    else {
        return;
    };
    let lengths = [1, 4, 511, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 2, 3 * BLOCK_ELEMENTS + 1029, 8];
    let hyper = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 3,
        grad_scale: 0.7,
    };
    let f = hyper.factors();
    for with_copy in [false, true] {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut draw = |count: usize, low: f32| -> Vec<f32> {
            (0..count).map(|_| rng.random_range(low..1.0)).collect()
        };
        // v is not negative.
        let tensors: Vec<[Vec<f32>; 4]> =
            lengths.iter().map(|&n| [-1.0, -1.0, 0.0, -1.0].map(|low| draw(n, low))).collect();
        let mut input = Vec::new();
        let mut put = |bytes: &[u8]| input.extend_from_slice(bytes);
        put(bytemuck::cast_slice(&[lengths.len() as i32, i32::from(with_copy)]));
        put(bytemuck::cast_slice(&[
            f.keep,
            f.rate,
            f.root_correction,
            f.beta1,
            f.beta2,
            f.eps,
            f.grad_scale,
        ]));
        put(bytemuck::cast_slice(&lengths.map(|n| n as i32)));
        tensors.iter().flatten().for_each(|tensor| put(bytemuck::cast_slice(tensor)));

        let mut output = emulated::run(&program, input);
        let mut params = Vec::new();
        for [param, m, v, grad] in &tensors {
            let n = param.len();
            let [mut param, mut m, mut v] = [param, m, v].map(Clone::clone);
            adamw_step(&mut param, &mut m, &mut v, grad, None, &hyper);
            for (name, expected) in [("param", &param), ("m", &m), ("v", &v)] {
                for (found, expected) in output.take::<f32>(n).iter().zip(expected) {
                    let error = (found - expected).abs();
                    assert!(error <= 1e-6 * expected.abs().max(1.0), "{name} of {n}: {error:e}");
                }
            }
            let copy: Vec<bf16> = output.take(n);
            for (copy, param) in copy.iter().zip(&param) {
                let error = (copy.to_f32() - param).abs();
                // Half of the distance of neighbours, and what the parameter differs by.
                assert!(error <= param.abs() / 256.0 + 1e-6 || !with_copy, "{copy} of {param}");
            }
            assert!(with_copy || copy.iter().all(|&x| x == bf16::ZERO), "null was written to");
            params.push(param);
        }
        for param in &params {
            let sum: Vec<f32> = output.take(2);
            let sum = f64::from(sum[0]) + f64::from(sum[1]);
            let exact: f64 = param.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            // The parameters themselves differ by a few roundings.
            assert!((sum / exact - 1.0).abs() < 3e-6, "{sum} is not {exact}");
        }
        for n in lengths {
            assert!(output.take::<f32>(n).iter().all(|&x| x == 0.0), "a gradient of {n} is left");
        }
    }
}
