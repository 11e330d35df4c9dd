//! Causal attention against the reference that builds the whole T × T matrix.

use altiplano_model::ops::{
    causal_attention_backward, causal_attention_forward, reference::causal_attention as reference,
};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{assert_close, exact, exact_ids, random, supported};

super::device_test!(shapes, document_bounds, queries_after_a_cache);

const FORMATS: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::BF16, 1e-2)];

fn check(
    dtype: DType,
    tolerance: f64,
    [b, t, h, k, d]: [usize; 5],
    first_visible: Option<&Tensor<2, Int>>,
    device: &Device,
) {
    let what = |name: &str| format!("{name} {dtype:?} B{b} T{t} H{h} K{k} D{d}");
    let first64 = first_visible.map(exact_ids);
    let first64 = first64.as_ref();
    let q = random([b, t, h, d], 1, dtype, device) * 3.0;
    let key = random([b, t, k, d], 2, dtype, device);
    let value = random([b, t, k, d], 3, dtype, device);
    let dout = random([b, t, h, d], 4, dtype, device);

    let (o, lse) = causal_attention_forward(&q, &key, &value, first_visible);
    let (o64, lse64) = reference::forward(&exact(&q), &exact(&key), &exact(&value), first64);
    assert_close(&what("o"), &exact(&o), &o64, tolerance);
    assert_close(&what("lse"), &exact(&lse), &lse64, tolerance);

    let (dq, dk, dv) = causal_attention_backward(&dout, &q, &key, &value, &o, &lse, first_visible);
    let (dq64, dk64, dv64) = reference::backward(
        &exact(&dout),
        &exact(&q),
        &exact(&key),
        &exact(&value),
        &o64,
        &lse64,
        first64,
    );
    // A single token attends to itself alone: its score has no gradient.
    if t > 1 {
        assert_close(&what("dq"), &exact(&dq), &dq64, tolerance);
        assert_close(&what("dk"), &exact(&dk), &dk64, tolerance);
    }
    assert_close(&what("dv"), &exact(&dv), &dv64, tolerance);
}

fn shapes(device: &Device) {
    for (dtype, tolerance) in supported(FORMATS, device) {
        for shape in [
            [1, 1, 2, 2, 16],
            [2, 17, 4, 2, 48],
            [1, 65, 6, 1, 64],
            [2, 130, 2, 2, 128],
            [1, 513, 2, 1, 64],
        ] {
            check(dtype, tolerance, shape, None, device);
        }
    }
}

fn document_bounds(device: &Device) {
    let (b, t) = (2, 150);
    // Documents start at 0, 1, 70 and 71 in the first row and at 0 and 149 in the second.
    let starts = [vec![0, 1, 70, 71], vec![0, 149]];
    let first: Vec<i32> = starts
        .iter()
        .flat_map(|starts| {
            (0..t as i32).map(move |position| {
                *starts.iter().rev().find(|start| **start <= position).unwrap()
            })
        })
        .collect();
    let first: Tensor<2, Int> =
        Tensor::from_data(TensorData::new(first, [b, t]), (device, DType::I32));
    for (dtype, tolerance) in supported(FORMATS, device) {
        check(dtype, tolerance, [b, t, 4, 2, 32], Some(&first), device);
    }
}

/// The last queries of a sequence against all its keys are the last rows of the whole.
fn queries_after_a_cache(device: &Device) {
    let (t, h, k, d) = (70, 4, 2, 32);
    let q = random([1, t, h, d], 1, DType::F32, device);
    let key = random([1, t, k, d], 2, DType::F32, device);
    let value = random([1, t, k, d], 3, DType::F32, device);
    let (whole, whole_lse) = causal_attention_forward(&q, &key, &value, None);
    for queries in [1, 5, 33, 69] {
        let last = q.clone().narrow(1, t - queries, queries);
        let (o, lse) = causal_attention_forward(&last, &key, &value, None);
        assert_close("o", &o, &whole.clone().narrow(1, t - queries, queries), 1e-6);
        assert_close("lse", &lse, &whole_lse.clone().narrow(2, t - queries, queries), 1e-6);
    }
}
