use altiplano_kernels::{
    residual_add, residual_rms_norm_backward, rms_norm_backward, rms_norm_forward,
};
use half::bf16;

use super::cuda::{WIDEST, groups, row_warps, shared_bytes, source};
use crate::backend::cube::nvidia::assert_compiles;
use crate::backend::cube::nvidia::emulated::{self, Numbers, relative_error};

/// Widths with one, two and four warps a row, and with pieces that not every thread has.
const WIDTHS: [usize; 4] = [64, 640, 1544, 2112];

#[test]
fn the_kernels_compile() {
    let sources = WIDTHS.into_iter().chain([WIDEST]).map(source);
    assert_compiles(&sources.collect::<Vec<_>>(), &[(8, 0), (9, 0)]);
}

#[test]
fn shared_memory_needs_no_permission() {
    for channels in (8..=WIDEST).step_by(8) {
        assert!(shared_bytes(channels).iter().all(|&bytes| bytes <= 48 * 1024), "{channels}");
        assert!(channels / 8 <= 8 * 32 * row_warps(channels), "{channels}");
    }
}

/// The kernels on an emulated block against those of the CPU, with and without the residual
/// connection, for rows that fill no block.
#[test]
fn the_emulated_kernels_match_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    for channels in WIDTHS {
        let Some(program) =
            emulated::compile("rms_norm/emulated.cpp", &source(channels).defines, dir.path())
        else {
            return;
        };
        for (rows, residual) in [(1, false), (7, true), (21, false), (21, true)] {
            let what = format!("{rows} {channels} {residual}");
            let mut numbers = Numbers::new(1);
            let [x, branch, dy, stream] =
                [3.0, 1.0, 1.0, 1.0].map(|scale| numbers.bf16s(rows * channels, scale));
            let (weight, start) = (numbers.f32s(channels, 1.0), numbers.f32s(channels, 1.0));
            let block_rows = 2 * groups(channels) as i32;

            let mut input: Vec<u8> =
                bytemuck::cast_slice(&[rows as i32, i32::from(residual), block_rows]).to_vec();
            for tensor in [&x, &branch, &dy, &stream] {
                input.extend_from_slice(bytemuck::cast_slice(tensor));
            }
            input.extend_from_slice(bytemuck::cast_slice(&weight));
            input.extend_from_slice(bytemuck::cast_slice(&start));
            let mut output = emulated::run(&program, input);

            let mut h = x;
            if residual {
                residual_add(&mut h, &branch);
            }
            let (mut y, mut rstd) = (h.clone(), vec![0.0; rows]);
            rms_norm_forward(&mut y, &mut rstd, &h, &weight, 1e-6);
            let (mut dx, mut dweight) = (stream, start);
            let backward =
                if residual { residual_rms_norm_backward } else { rms_norm_backward::<bf16> };
            backward(&mut dx, &mut dweight, &dy, &h, &weight, &rstd);

            let size = rows * channels;
            assert_eq!(output.take::<bf16>(size), h, "h {what}");
            let close = |name: &str, found: &[f32], expected: &[f32], tolerance: f64| {
                let error = relative_error(found, expected);
                assert!(error < tolerance, "{name} {what}: {error}");
            };
            let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
            close("y", &wide(&output.take::<bf16>(size)), &wide(&y), 1e-3);
            close("rstd", &output.take::<f32>(rows), &rstd, 1e-6);
            close("dx", &wide(&output.take::<bf16>(size)), &wide(&dx), 1e-3);
            close("dweight", &output.take::<f32>(channels), &dweight, 1e-5);
        }
    }
}
