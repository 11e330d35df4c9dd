use altiplano_kernels::{
    RopeShape, residual_forward, rope_backward, rope_forward, swiglu_backward, swiglu_forward,
};
use half::bf16;

use super::*;
use crate::backend::cube::cuda::emulated::{self, Numbers, relative_error};
use crate::backend::cube::cuda::kernel::tests::compile;

#[test]
fn the_kernels_compile() {
    compile(&[source()], &[(8, 0), (9, 0)]);
}

/// The kernels on an emulated block against those of the CPU: one piece, and pieces that fill no
/// block; chains longer than a tile, ids that come once, ids that come always.
#[test]
fn the_emulated_kernels_match_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) =
        emulated::compile("emulated_elementwise.cpp", &source().defines, dir.path())
    else {
        return;
    };
    for (pieces, [batch, time, heads, half], count, vocabulary) in
        [(1, [1, 1, 1, 1], 1, 3), (300, [2, 5, 3, 2], 2500, 40), (513, [1, 33, 2, 4], 1100, 5000)]
    {
        let mut numbers = Numbers::new(1);
        let [gate, up, dy] = [4.0, 1.0, 1.0].map(|scale| numbers.bf16s(8 * pieces, scale));
        let x = numbers.bf16s(batch * time * heads * half * 16, 1.0);
        let [cos, sin] = [1.0, 1.0].map(|scale| numbers.f32s(time * half * 8, scale));
        let ids: Vec<i32> = numbers
            .f32s(count, vocabulary as f32 / 2.0)
            .into_iter()
            .map(|id| (id + vocabulary as f32 / 2.0) as i32)
            .collect();

        let sizes = [pieces, batch, time, heads, half, count].map(|n| n as i32);
        let mut input: Vec<u8> = bytemuck::cast_slice(&sizes).to_vec();
        input.extend_from_slice(bytemuck::cast_slice(&ids));
        for tensor in [&gate, &up, &dy, &x] {
            input.extend_from_slice(bytemuck::cast_slice(tensor));
        }
        for table in [&cos, &sin] {
            input.extend_from_slice(bytemuck::cast_slice(table));
        }
        let mut output = emulated::run(&program, input);

        let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let mut close = |name: &str, expected: &[bf16]| {
            let found: Vec<bf16> = output.take(expected.len());
            let error = relative_error(&wide(&found), &wide(expected));
            assert!(error < 1e-3, "{name} {pieces}: {error}");
        };
        let empty = || vec![bf16::ZERO; 8 * pieces];
        let (mut sum, mut y, mut dgate, mut dup) = (empty(), empty(), empty(), empty());
        residual_forward(&mut sum, &gate, &up);
        close("residual", &sum);
        swiglu_forward(&mut y, &gate, &up);
        close("swiglu", &y);
        swiglu_backward(&mut dgate, &mut dup, &dy, &gate, &up);
        close("dgate", &dgate);
        close("dup", &dup);
        let shape = RopeShape { batch, time, heads, head_dim: 16 * half };
        let (mut forward, mut back) = (x.clone(), x.clone());
        rope_forward(&mut forward, &x, &cos, &sin, shape);
        close("rope", &forward);
        rope_backward(&mut back, &x, &cos, &sin, shape);
        close("rope back", &back);

        let next: Vec<i32> = output.take(count);
        let follows: Vec<i32> = output.take(count);
        let mut expected = vec![0; count];
        for n in 0..count {
            let m = (n + 1..count).find(|&m| ids[m] == ids[n]).unwrap_or(count);
            assert_eq!(next[n], m as i32, "next of {n} of {count}");
            if m < count {
                expected[m] = 1;
            }
        }
        assert_eq!(follows, expected);
    }
}
