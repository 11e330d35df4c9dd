use half::bf16;

use super::cuda::source;
use crate::backend::cube::nvidia::assert_compiles;
use crate::backend::cube::nvidia::emulated::{self, Numbers, relative_error};

#[test]
fn the_kernel_compiles() {
    assert_compiles(&[source()], &[(8, 0), (9, 0)]);
}

/// The kernel on an emulated block against the formulas in f64: vocabularies smaller and larger
/// than what a block takes at once, targets at both ends and an ignored one.
#[test]
fn the_emulated_kernel_matches_the_formulas() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = emulated::compile("head/emulated.cpp", &source().defines, dir.path())
    else {
        return;
    };
    for vocabulary in [8, 304, 10_008] {
        let targets = [0, vocabulary as i32 - 1, -1, vocabulary as i32 / 2];
        let (rows, scale) = (targets.len(), 0.37f32);
        let logits = Numbers::new(1).f32s(rows * vocabulary, 30.0);
        let mut input: Vec<u8> = bytemuck::cast_slice(&[rows as i32, vocabulary as i32]).to_vec();
        input.extend_from_slice(&scale.to_ne_bytes());
        input.extend_from_slice(bytemuck::cast_slice(&targets));
        input.extend_from_slice(bytemuck::cast_slice(&logits));
        let mut output = emulated::run(&program, input);
        let losses: Vec<f32> = output.take(rows);
        assert_eq!(output.take::<f32>(rows), losses);
        let dlogits: Vec<bf16> = output.take(rows * vocabulary);
        for (r, &target) in targets.iter().enumerate() {
            let z: Vec<f64> =
                logits[r * vocabulary..][..vocabulary].iter().map(|&z| f64::from(z)).collect();
            let largest = z.iter().copied().fold(f64::MIN, f64::max);
            let lse = largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
            let gradient: Vec<f32> = (0..vocabulary)
                .map(|i| {
                    let hot = f64::from(u8::from(i as i32 == target));
                    let factor = if target < 0 { 0.0 } else { f64::from(scale) };
                    (factor * ((z[i] - lse).exp() - hot)) as f32
                })
                .collect();
            let found: Vec<f32> =
                dlogits[r * vocabulary..][..vocabulary].iter().map(|x| x.to_f32()).collect();
            if target < 0 {
                assert_eq!(losses[r], 0.0);
                assert!(found.iter().all(|&x| x == 0.0));
                continue;
            }
            let loss = lse - z[target as usize];
            assert!((f64::from(losses[r]) - loss).abs() < 1e-4, "{vocabulary} {r}");
            let error = relative_error(&found, &gradient);
            assert!(error < 4e-3, "{vocabulary} {r}: {error}");
        }
    }
}
