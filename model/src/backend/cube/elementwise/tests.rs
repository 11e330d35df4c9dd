use altiplano_kernels::{
    RopeShape, residual_forward, rope_backward, rope_forward, swiglu_backward, swiglu_forward,
};
use half::bf16;

use super::cuda::source;
use crate::backend::cube::nvidia::assert_compiles;
use crate::backend::cube::nvidia::emulated::{self, Numbers, relative_error};

#[test]
fn the_kernels_compile() {
    assert_compiles(&[source()], &[(8, 0), (9, 0)]);
}

/// The kernels on an emulated block against those of the CPU: one piece, and pieces that fill no
/// block.
#[test]
fn the_emulated_kernels_match_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) =
        emulated::compile("elementwise/emulated.cpp", &source().defines, dir.path())
    else {
        return;
    };
    for (pieces, [batch, time, heads, half]) in
        [(1, [1, 1, 1, 1]), (300, [2, 5, 3, 2]), (513, [1, 33, 2, 4])]
    {
        let mut numbers = Numbers::new(1);
        let [gate, up, dy] = [4.0, 1.0, 1.0].map(|scale| numbers.bf16s(8 * pieces, scale));
        let x = numbers.bf16s(batch * time * heads * half * 16, 1.0);
        let [cos, sin] = [1.0, 1.0].map(|scale| numbers.f32s(time * half * 8, scale));

        let sizes = [pieces, batch, time, heads, half].map(|n| n as i32);
        let mut input: Vec<u8> = bytemuck::cast_slice(&sizes).to_vec();
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
    }
}
