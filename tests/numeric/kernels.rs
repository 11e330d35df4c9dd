//! The fast implementation of each op against its reference in f64, in f32 and bf16.

use altiplano_model::config::rope_frequencies;
use altiplano_model::ops::{self, IGNORED_TARGET, RopeTable, reference};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{assert_close, exact, exact_ids, random, random_ids, supported, values};

super::device_test!(linear, rms_norm, rope, swiglu, residual, embedding, head, adamw);

/// Formats the kernels run in, with the relative error their rounding allows: f32 sums, and bf16's
/// 8 bits of every output.
const FORMATS: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::BF16, 6e-3)];

/// (batch, time, channels), none a multiple of a tile.
const SHAPES: [[usize; 3]; 4] = [[1, 1, 16], [1, 17, 48], [2, 65, 33], [3, 130, 96]];

fn zeros<const D: usize>(shape: [usize; D], dtype: DType, device: &Device) -> Tensor<D> {
    Tensor::zeros(shape, (device, dtype))
}

/// An accumulator that is not zero, in f32 and in f64.
fn accumulator<const D: usize>(shape: [usize; D], device: &Device) -> (Tensor<D>, Tensor<D>) {
    let start = random(shape, 99, DType::F32, device);
    (start.clone() * 1.0, exact(&start))
}

fn check<const D: usize>(what: &str, dtype: DType, x: &Tensor<D>, y: &Tensor<D>, tolerance: f64) {
    assert_close(&format!("{what} {dtype:?} {:?}", y.dims()), &exact(x), y, tolerance);
}

fn linear(device: &Device) {
    for (dtype, tolerance) in supported(FORMATS, device) {
        for [b, t, c] in SHAPES {
            let outputs = c + 7;
            let x = random([b, t, c], 1, dtype, device);
            let weight = random([outputs, c], 2, dtype, device);
            let dy = random([b, t, outputs], 3, dtype, device);
            let (x64, weight64, dy64) = (exact(&x), exact(&weight), exact(&dy));
            let y = ops::linear_forward(&x, &weight);
            check("y", dtype, &y, &reference::linear::forward(&x64, &weight64), tolerance);
            let (mut dweight, mut dweight64) = accumulator([outputs, c], device);
            let dx = ops::linear_backward(&dy, &x, &weight, &mut dweight);
            let dx64 = reference::linear::backward(&dy64, &x64, &weight64, &mut dweight64);
            check("dx", dtype, &dx, &dx64, tolerance);
            check("dweight", dtype, &dweight, &dweight64, tolerance);

            // The same added to what is there, which stays as it was for whoever else holds it.
            let stream = random([b, t, outputs], 4, dtype, device);
            let kept = exact(&stream);
            let sum = ops::linear_residual_forward(stream.clone(), &x, &weight);
            let sum64 = kept.clone() + reference::linear::forward(&x64, &weight64);
            check("residual + y", dtype, &sum, &sum64, tolerance);
            check("residual", dtype, &stream, &kept, 0.0);
            let begun = random([b, t, c], 5, dtype, device);
            let (mut again, _) = accumulator([outputs, c], device);
            let begun64 = exact(&begun);
            let dx = ops::linear_backward_add(begun, &dy, &x, &weight, &mut again);
            check("dx added", dtype, &dx, &(begun64 + dx64), tolerance);
            assert_eq!(values(&again), values(&dweight));
        }
    }
}

fn rms_norm(device: &Device) {
    for (dtype, tolerance) in supported(FORMATS, device) {
        for [b, t, c] in SHAPES {
            let x = random([b, t, c], 1, dtype, device);
            let weight = random([c], 2, DType::F32, device);
            let dy = random([b, t, c], 3, dtype, device);
            let (x64, weight64) = (exact(&x), exact(&weight));
            let (y, rstd) = ops::rms_norm_forward(&x, &weight, 1e-5);
            let (y64, rstd64) = reference::rms_norm::forward(&x64, &weight64, 1e-5);
            check("y", dtype, &y, &y64, tolerance);
            check("rstd", dtype, &rstd, &rstd64, 1e-5);
            let (mut dweight, mut dweight64) = accumulator([c], device);
            let dx = ops::rms_norm_backward(&dy, &x, &weight, &rstd, &mut dweight);
            let dx64 = reference::rms_norm::backward(
                &exact(&dy),
                &x64,
                &weight64,
                &rstd64,
                &mut dweight64,
            );
            check("dx", dtype, &dx, &dx64, tolerance);
            check("dweight", dtype, &dweight, &dweight64, 1e-5);

            let branch = random([b, t, c], 4, dtype, device);
            let (h, y, rstd) = ops::residual_rms_norm_forward(&x, &branch, &weight, 1e-5);
            let h64 = x64.clone() + exact(&branch);
            check("h", dtype, &h, &h64, tolerance);
            let (y64, rstd64) = reference::rms_norm::forward(&exact(&h), &weight64, 1e-5);
            check("y of h", dtype, &y, &y64, tolerance);
            check("rstd of h", dtype, &rstd, &rstd64, 1e-5);
            let (mut dweight, mut dweight64) = accumulator([c], device);
            let stream64 = exact(&branch);
            let dx = ops::residual_rms_norm_backward(branch, &dy, &h, &weight, &rstd, &mut dweight);
            let dx64 = reference::rms_norm::backward(
                &exact(&dy),
                &exact(&h),
                &weight64,
                &rstd64,
                &mut dweight64,
            );
            check("dx + stream", dtype, &dx, &(stream64 + dx64), tolerance);
            check("dweight of h", dtype, &dweight, &dweight64, 1e-5);
        }
    }
}

fn rope(device: &Device) {
    for (dtype, tolerance) in supported(FORMATS, device) {
        for (b, t, h, d) in [(1, 1, 1, 2), (2, 17, 3, 16), (1, 65, 4, 48)] {
            let frequencies = rope_frequencies(d, 10_000.0);
            let table = |dtype, device: &Device| {
                RopeTable::new(t + 5, &frequencies, dtype, device).positions(5, t)
            };
            let (table, table64) = (table(DType::F32, device), table(DType::F64, &Device::flex()));
            let x = random([b, t, h, d], 1, dtype, device);
            let y = ops::rope_forward(x.clone(), &table);
            check("y", dtype, &y, &reference::rope::forward(&exact(&x), &table64), tolerance);
            let dx = ops::rope_backward(x.clone(), &table);
            check("dx", dtype, &dx, &reference::rope::backward(&exact(&x), &table64), tolerance);
            // A rotation: forward after backward is the identity.
            check("identity", dtype, &ops::rope_forward(dx, &table), &exact(&x), 2.0 * tolerance);
        }
    }
}

fn swiglu(device: &Device) {
    for (dtype, tolerance) in supported(FORMATS, device) {
        for shape in SHAPES {
            let gate = random(shape, 1, dtype, device) * 8.0;
            let (up, dy) = (random(shape, 2, dtype, device), random(shape, 3, dtype, device));
            let (gate64, up64) = (exact(&gate), exact(&up));
            let y = ops::swiglu_forward(&gate, &up);
            check("y", dtype, &y, &reference::swiglu::forward(&gate64, &up64), tolerance);
            let (dgate, dup) = ops::swiglu_backward(&dy, &gate, &up);
            let (dgate64, dup64) = reference::swiglu::backward(&exact(&dy), &gate64, &up64);
            check("dgate", dtype, &dgate, &dgate64, tolerance);
            check("dup", dtype, &dup, &dup64, tolerance);
        }
    }
}

fn residual(device: &Device) {
    for (dtype, tolerance) in supported(FORMATS, device) {
        let (x, branch) =
            (random([2, 9, 33], 1, dtype, device), random([2, 9, 33], 2, dtype, device));
        let sum = exact(&x) + exact(&branch);
        let shared = ops::residual_forward(x.clone(), &branch);
        check("shared", dtype, &shared, &sum, tolerance);
        assert_close("x is untouched", &x, &random([2, 9, 33], 1, dtype, device), 0.0);
        check("in place", dtype, &ops::residual_forward(x, &branch), &sum, tolerance);
    }
}

fn embedding(device: &Device) {
    for (dtype, tolerance) in supported(FORMATS, device) {
        let weight = random([31, 24], 1, dtype, device);
        let ids = random_ids([3, 40], 31, 2, device);
        let dy = random([3, 40, 24], 3, dtype, device);
        let y = ops::embedding_forward(&weight, &ids);
        check(
            "y",
            dtype,
            &y,
            &reference::embedding::forward(&exact(&weight), &exact_ids(&ids)),
            0.0,
        );
        let (mut dweight, mut dweight64) = accumulator([31, 24], device);
        ops::embedding_backward(&dy, &ids, &mut dweight);
        reference::embedding::backward(&exact(&dy), &exact_ids(&ids), &mut dweight64);
        check("dweight", dtype, &dweight, &dweight64, tolerance);
    }
}

fn head(device: &Device) {
    // More tokens than one chunk of logits, a vocabulary that is no multiple of a tile.
    for (dtype, tolerance) in supported(FORMATS, device) {
        for (b, t, c, v) in [(1, 1, 16, 5), (2, 19, 24, 67), (3, 130, 32, 301)] {
            let x = random([b, t, c], 1, dtype, device);
            let weight = random([v, c], 2, dtype, device);
            let mut ids: Vec<i32> =
                random_ids([b, t], v as i32, 3, device).to_data().iter::<i32>().collect();
            ids.iter_mut().step_by(5).skip(1).for_each(|id| *id = IGNORED_TARGET);
            let targets: Tensor<2, Int> =
                Tensor::from_data(TensorData::new(ids.clone(), [b, t]), (device, DType::I32));
            let (x64, weight64, targets64) = (exact(&x), exact(&weight), exact_ids(&targets));

            let losses = ops::head_cross_entropy_forward(&x, &weight, &targets);
            let losses64 = reference::head_cross_entropy::forward(&x64, &weight64, &targets64);
            check("losses", dtype, &losses, &losses64, 1e-5);
            let (mut dweight, mut dweight64) = accumulator([v, c], device);
            let (again, dx) =
                ops::head_cross_entropy_backward(&x, &weight, &targets, 0.37, &mut dweight);
            let (_, dx64) = reference::head_cross_entropy::backward(
                &x64,
                &weight64,
                &targets64,
                0.37,
                &mut dweight64,
            );
            assert_close("losses of both", &again, &losses, 0.0);
            check("dx", dtype, &dx, &dx64, tolerance);
            check("dweight", dtype, &dweight, &dweight64, tolerance);
            for (loss, id) in values(&losses).iter().zip(ids) {
                assert_eq!(*loss == 0.0, id < 0, "loss {loss} of target {id}");
            }
        }
    }
}

fn adamw(device: &Device) {
    use altiplano_model::backend::AdamWStep;
    let shape = [37, 29];
    let mut param = random(shape, 1, DType::F32, device);
    let (mut m, mut v) = (zeros(shape, DType::F32, device), zeros(shape, DType::F32, device));
    let bf16 = device.supports_dtype(DType::BF16);
    let mut copy = bf16.then(|| param.clone().cast(DType::BF16));
    let mut param64 = exact(&param);
    let (mut m64, mut v64) = (exact(&m), exact(&v));
    for step in 1..=5 {
        let grad = random(shape, 10 + step, DType::F32, device);
        let hyper = AdamWStep {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.7,
        };
        ops::adamw_step(&mut param, &mut m, &mut v, &grad, copy.as_mut(), &hyper);
        reference::adamw::step(&mut param64, &mut m64, &mut v64, &exact(&grad), &hyper);
    }
    check("param", DType::F32, &param, &param64, 1e-6);
    check("m", DType::F32, &m, &m64, 1e-6);
    check("v", DType::F32, &v, &v64, 1e-6);
    if let Some(copy) = copy {
        assert_close("copy", &copy, &param.cast(DType::BF16), 0.0);
    }
}
