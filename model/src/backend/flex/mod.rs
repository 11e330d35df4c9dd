//! Flex: hands the slices of CPU tensors to `altiplano-kernels`.
//!
//! A panic here is a broken invariant of [`crate::ops`], never something a user can cause.

mod buffer_pool;
mod exchange_buffer;

use altiplano_kernels::{
    self as kernels, AdamWStep, AttentionShape, BlockMatrix, HeadChunk, HeadStatistics,
    LinearShape, PagedRows, PagedShape, RopeShape, StoredWeight,
};
use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{DType, Shape};
use half::bf16;

pub(crate) use exchange_buffer::ExchangeBuffer;

use super::{HEAD_CHUNK, TransformerOps};

/// Runs `$body` with `$e` the element type of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $e = f32;
                $body
            }
            DType::BF16 => {
                type $e = bf16;
                $body
            }
            other => panic!("no kernel for activations of {other:?}"),
        }
    };
}

/// The tensor itself when its elements already lie in order, a copy otherwise.
fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.layout().contiguous_offsets().is_some() { x } else { x.to_contiguous() }
}

/// The tensor itself when it may be written in place, a copy otherwise.
fn owned(x: FlexTensor) -> FlexTensor {
    let mut x = contiguous(x);
    with_element!(x.dtype(), E => {
        let whole = x.layout().num_elements() * size_of::<E>() == x.bytes().len();
        if whole && x.try_storage_mut::<E>().is_some() {
            return x;
        }
        let mut y = new_like(&x);
        slice_mut::<E>(&mut y, "copy").copy_from_slice(slice(&x));
        y
    })
}

fn slice<E: burn::tensor::Element + bytemuck::Pod>(x: &FlexTensor) -> &[E] {
    x.as_slice().unwrap_or_else(|| {
        panic!("expected contiguous {:?}, found {:?} {:?}", E::dtype(), x.dtype(), x.layout())
    })
}

/// The mutable elements of a tensor that works as an accumulator.
fn slice_mut<'a, E: burn::tensor::Element + bytemuck::Pod>(
    x: &'a mut FlexTensor,
    op: &str,
) -> &'a mut [E] {
    let elements = x.layout().num_elements();
    let storage = x
        .try_storage_mut::<E>()
        .unwrap_or_else(|| panic!("{op}: the storage it works on in place is shared"));
    assert_eq!(storage.len(), elements, "{op}: works in place on a view");
    storage
}

fn dims(x: &FlexTensor) -> Vec<usize> {
    x.layout().shape().to_vec()
}

/// Product of all dimensions but the last, and the last.
fn rows_and_width(x: &FlexTensor) -> (usize, usize) {
    let dims = dims(x);
    let (width, leading) = dims.split_last().expect("a tensor has a last dimension");
    (leading.iter().product(), *width)
}

/// An output to be written: its content is meaningless.
fn new(dims: &[usize], dtype: DType) -> FlexTensor {
    let shape = Shape::from(dims.to_vec());
    let bytes = shape.num_elements() * dtype.size();
    if bytes < buffer_pool::SMALLEST {
        return FlexTensor::empty(shape, dtype);
    }
    FlexTensor::new(buffer_pool::take(bytes), Layout::contiguous(shape), dtype)
}

fn new_like(x: &FlexTensor) -> FlexTensor {
    new(&dims(x), x.dtype())
}

fn linear_shape(rows: &FlexTensor, weight: &FlexTensor) -> LinearShape {
    let (rows, _) = rows_and_width(rows);
    let (outputs, inputs) = rows_and_width(weight);
    LinearShape { rows, inputs, outputs }
}

fn rope_shape(x: &FlexTensor) -> RopeShape {
    let [batch, time, heads, head_dim] = dims(x)[..] else { panic!("RoPE takes (B, T, H, D)") };
    RopeShape { batch, time, heads, head_dim }
}

fn attention_shape(q: &FlexTensor, k: &FlexTensor) -> AttentionShape {
    let [batch, queries, heads, head_dim] = dims(q)[..] else { panic!("q is (B, T, H, D)") };
    let [_, keys, kv_heads, _] = dims(k)[..] else { panic!("k is (B, T, K, D)") };
    AttentionShape { batch, queries, keys, heads, kv_heads, head_dim }
}

/// The bound of each query, or none when the tensor is empty.
fn bound(first_visible: &FlexTensor) -> Option<&[i32]> {
    let bound: &[i32] = slice(first_visible);
    (!bound.is_empty()).then_some(bound)
}

/// See [`super::paged_attention`].
pub(super) fn paged_attention(
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    cache: (&mut [u8], &mut [u8]),
    sequences: &[PagedRows<'_>],
) -> (FlexTensor, FlexTensor) {
    let (q, k, v) = (contiguous(q), contiguous(k), contiguous(v));
    let AttentionShape { queries, heads, kv_heads, head_dim, .. } = attention_shape(&q, &k);
    let shape = PagedShape { heads, kv_heads, head_dim };
    let mut o = new_like(&q);
    let mut lse = new(&[1, heads, queries], DType::F32);
    let op = "paged_attention";
    with_element!(q.dtype(), E => {
        let keys: &mut [E] = bytemuck::cast_slice_mut(cache.0);
        let values: &mut [E] = bytemuck::cast_slice_mut(cache.1);
        let (k, v) = (slice::<E>(&k), slice::<E>(&v));
        kernels::paged_keys_values_write((&mut *keys, &mut *values), k, v, sequences, shape);
        kernels::paged_attention_forward(
            slice_mut::<E>(&mut o, op), slice_mut(&mut lse, op), slice(&q),
            (keys, values), sequences, shape);
    });
    (o, lse)
}

/// See [`super::stored_linear`].
pub(super) fn stored_linear(
    x: FlexTensor,
    weight: StoredWeight<'_>,
    outputs: usize,
    dtype: DType,
) -> FlexTensor {
    let x = contiguous(x);
    let (rows, inputs) = rows_and_width(&x);
    let shape = LinearShape { rows, inputs, outputs };
    let mut y_dims = dims(&x);
    *y_dims.last_mut().expect("x has a last dimension") = outputs;
    let mut y = new(&y_dims, dtype);
    with_element!(x.dtype(), E => with_element!(dtype, O => kernels::stored_linear::<E, O>(
        slice_mut(&mut y, "stored_linear"), slice(&x), weight, shape)));
    y
}

/// See [`super::block_linear`].
pub(super) fn block_linear(x: FlexTensor, weight: &BlockMatrix, dtype: DType) -> FlexTensor {
    let x = contiguous(x);
    let mut y_dims = dims(&x);
    *y_dims.last_mut().expect("x has a last dimension") = weight.shape()[0];
    let mut y = new(&y_dims, dtype);
    with_element!(x.dtype(), E => with_element!(dtype, O => kernels::block_linear::<E, O>(
        slice_mut(&mut y, "block_linear"), slice(&x), weight)));
    y
}

/// See [`super::head_statistics`].
pub(super) fn head_statistics(
    x: FlexTensor,
    weight: FlexTensor,
    targets: Vec<i32>,
    gradient: bool,
) -> (HeadChunk, Vec<HeadStatistics>) {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let shape = linear_shape(&x, &weight);
    with_element!(x.dtype(), E => HeadChunk::forward::<E>(
        slice(&x), slice(&weight), targets, shape, gradient))
}

/// See [`super::head_gradient`].
pub(super) fn head_gradient(
    chunk: HeadChunk,
    x: FlexTensor,
    weight: FlexTensor,
    totals: &[[f32; 2]],
    scale: f32,
    mut dweight: FlexTensor,
) -> (FlexTensor, FlexTensor) {
    let (x, weight) = (contiguous(x), contiguous(weight));
    let shape = linear_shape(&x, &weight);
    let mut dx = new_like(&x);
    let op = "head_gradient";
    with_element!(x.dtype(), E => chunk.backward::<E>(
        slice_mut(&mut dx, op), slice_mut(&mut dweight, op), slice(&x), slice(&weight), totals,
        scale, shape));
    (dx, dweight)
}

/// See [`super::is_finite`].
pub(super) fn is_finite(x: FlexTensor) -> bool {
    let x = contiguous(x);
    match x.dtype() {
        DType::F32 => slice::<f32>(&x).iter().all(|x| x.is_finite()),
        DType::BF16 => slice::<bf16>(&x).iter().all(|x| x.is_finite()),
        DType::F64 => slice::<f64>(&x).iter().all(|x| x.is_finite()),
        other => panic!("no check of activations of {other:?}"),
    }
}

impl TransformerOps for Flex {
    fn embedding_forward(weight: FlexTensor, ids: FlexTensor) -> FlexTensor {
        let ids = contiguous(ids);
        let (_, channels) = rows_and_width(&weight);
        let mut shape = dims(&ids);
        shape.push(channels);
        let mut y = new(&shape, weight.dtype());
        with_element!(weight.dtype(), E => kernels::embedding_forward::<E>(
            slice_mut(&mut y, "embedding_forward"), slice(&weight), slice(&ids), channels));
        y
    }

    fn embedding_backward(mut dweight: FlexTensor, dy: FlexTensor, ids: FlexTensor) -> FlexTensor {
        let (dy, ids) = (contiguous(dy), contiguous(ids));
        let (_, channels) = rows_and_width(&dy);
        with_element!(dy.dtype(), E => kernels::embedding_backward::<E>(
            slice_mut(&mut dweight, "embedding_backward"), slice(&dy), slice(&ids), channels));
        dweight
    }

    fn linear_forward(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let shape = linear_shape(&x, &weight);
        let mut y_dims = dims(&x);
        *y_dims.last_mut().expect("x has a last dimension") = shape.outputs;
        let mut y = new(&y_dims, x.dtype());
        with_element!(x.dtype(), E => kernels::linear_forward::<E>(
            slice_mut(&mut y, "linear_forward"), slice(&x), slice(&weight), shape));
        y
    }

    fn linear_residual_forward(
        residual: FlexTensor,
        x: FlexTensor,
        weight: FlexTensor,
    ) -> FlexTensor {
        let x = contiguous(x);
        let shape = linear_shape(&x, &weight);
        let mut y = owned(residual);
        with_element!(x.dtype(), E => kernels::linear_forward_add::<E>(
            slice_mut(&mut y, "linear_residual_forward"), slice(&x), slice(&weight), shape));
        y
    }

    fn linear_backward_input(dy: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let dy = contiguous(dy);
        let shape = linear_shape(&dy, &weight);
        let mut dx_dims = dims(&dy);
        *dx_dims.last_mut().expect("dy has a last dimension") = shape.inputs;
        let mut dx = new(&dx_dims, dy.dtype());
        with_element!(dy.dtype(), E => kernels::linear_backward_input::<E>(
            slice_mut(&mut dx, "linear_backward_input"), slice(&dy), slice(&weight), shape));
        dx
    }

    fn linear_backward_input_add(dx: FlexTensor, dy: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let dy = contiguous(dy);
        let shape = linear_shape(&dy, &weight);
        let mut dx = owned(dx);
        with_element!(dy.dtype(), E => kernels::linear_backward_input_add::<E>(
            slice_mut(&mut dx, "linear_backward_input_add"), slice(&dy), slice(&weight), shape));
        dx
    }

    fn linear_backward_weight(
        mut dweight: FlexTensor,
        dy: FlexTensor,
        x: FlexTensor,
    ) -> FlexTensor {
        let (dy, x) = (contiguous(dy), contiguous(x));
        let shape = linear_shape(&x, &dweight);
        with_element!(x.dtype(), E => kernels::linear_backward_weight::<E>(
            slice_mut(&mut dweight, "linear_backward_weight"), slice(&dy), slice(&x), shape));
        dweight
    }

    fn rms_norm_forward(x: FlexTensor, weight: FlexTensor, eps: f64) -> (FlexTensor, FlexTensor) {
        let x = contiguous(x);
        let mut y = new_like(&x);
        let shape = dims(&x);
        let mut rstd = new(&shape[..shape.len() - 1], DType::F32);
        with_element!(x.dtype(), E => kernels::rms_norm_forward::<E>(
            slice_mut(&mut y, "rms_norm_forward"), slice_mut(&mut rstd, "rms_norm_forward"),
            slice(&x), slice(&weight), eps as f32));
        (y, rstd)
    }

    fn rms_norm_backward(
        dy: FlexTensor,
        x: FlexTensor,
        weight: FlexTensor,
        rstd: FlexTensor,
        mut dweight: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (dy, x) = (contiguous(dy), contiguous(x));
        let mut dx = new_like(&x);
        with_element!(x.dtype(), E => kernels::rms_norm_backward::<E>(
            slice_mut(&mut dx, "rms_norm_backward"), slice_mut(&mut dweight, "rms_norm_backward"),
            slice(&dy), slice(&x), slice(&weight), slice(&rstd)));
        (dx, dweight)
    }

    fn residual_rms_norm_forward(
        x: FlexTensor,
        branch: FlexTensor,
        weight: FlexTensor,
        eps: f64,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, branch) = (contiguous(x), contiguous(branch));
        let (mut h, mut y) = (new_like(&x), new_like(&x));
        let shape = dims(&x);
        let mut rstd = new(&shape[..shape.len() - 1], DType::F32);
        let op = "residual_rms_norm_forward";
        with_element!(x.dtype(), E => kernels::residual_rms_norm_forward::<E>(
            [slice_mut(&mut h, op), slice_mut(&mut y, op)], slice_mut(&mut rstd, op),
            [slice(&x), slice(&branch)], slice(&weight), eps as f32));
        (h, y, rstd)
    }

    fn residual_rms_norm_backward(
        dstream: FlexTensor,
        dy: FlexTensor,
        x: FlexTensor,
        weight: FlexTensor,
        rstd: FlexTensor,
        mut dweight: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (dy, x) = (contiguous(dy), contiguous(x));
        let mut dx = owned(dstream);
        let op = "residual_rms_norm_backward";
        with_element!(x.dtype(), E => kernels::residual_rms_norm_backward::<E>(
            slice_mut(&mut dx, op), slice_mut(&mut dweight, op),
            slice(&dy), slice(&x), slice(&weight), slice(&rstd)));
        (dx, dweight)
    }

    fn residual_forward(x: FlexTensor, branch: FlexTensor) -> FlexTensor {
        let (mut x, branch) = (contiguous(x), contiguous(branch));
        with_element!(x.dtype(), E => {
            let whole = x.layout().num_elements() * size_of::<E>() == x.bytes().len();
            if whole && let Some(x) = x.try_storage_mut::<E>() {
                kernels::residual_add::<E>(x, slice(&branch));
            } else {
                let mut y = new_like(&x);
                kernels::residual_forward::<E>(
                    slice_mut(&mut y, "residual_forward"), slice(&x), slice(&branch));
                return y;
            }
        });
        x
    }

    fn rope_forward(x: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let shape = rope_shape(&x);
        let mut y = new_like(&x);
        with_element!(x.dtype(), E => kernels::rope_forward::<E>(
            slice_mut(&mut y, "rope_forward"), slice(&x), slice(&cos), slice(&sin), shape));
        y
    }

    fn rope_backward(dy: FlexTensor, cos: FlexTensor, sin: FlexTensor) -> FlexTensor {
        let dy = contiguous(dy);
        let shape = rope_shape(&dy);
        let mut dx = new_like(&dy);
        with_element!(dy.dtype(), E => kernels::rope_backward::<E>(
            slice_mut(&mut dx, "rope_backward"), slice(&dy), slice(&cos), slice(&sin), shape));
        dx
    }

    fn swiglu_forward(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
        let (gate, up) = (contiguous(gate), contiguous(up));
        let mut y = new_like(&gate);
        with_element!(gate.dtype(), E => kernels::swiglu_forward::<E>(
            slice_mut(&mut y, "swiglu_forward"), slice(&gate), slice(&up)));
        y
    }

    fn swiglu_backward(
        dy: FlexTensor,
        gate: FlexTensor,
        up: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (dy, gate, up) = (contiguous(dy), contiguous(gate), contiguous(up));
        let (mut dgate, mut dup) = (new_like(&gate), new_like(&up));
        with_element!(gate.dtype(), E => kernels::swiglu_backward::<E>(
            slice_mut(&mut dgate, "swiglu_backward"), slice_mut(&mut dup, "swiglu_backward"),
            slice(&dy), slice(&gate), slice(&up)));
        (dgate, dup)
    }

    fn causal_attention_forward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        first_visible: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (q, k, v) = (contiguous(q), contiguous(k), contiguous(v));
        let first_visible = contiguous(first_visible);
        let shape = attention_shape(&q, &k);
        let mut o = new_like(&q);
        let mut lse = new(&[shape.batch, shape.heads, shape.queries], DType::F32);
        with_element!(q.dtype(), E => kernels::causal_attention_forward::<E>(
            slice_mut(&mut o, "causal_attention_forward"),
            slice_mut(&mut lse, "causal_attention_forward"),
            slice(&q), slice(&k), slice(&v), bound(&first_visible), shape));
        (o, lse)
    }

    fn causal_attention_backward(
        dout: FlexTensor,
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        o: FlexTensor,
        lse: FlexTensor,
        first_visible: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (dout, q, k, v) = (contiguous(dout), contiguous(q), contiguous(k), contiguous(v));
        let first_visible = contiguous(first_visible);
        let shape = attention_shape(&q, &k);
        let (mut dq, mut dk, mut dv) = (new_like(&q), new_like(&k), new_like(&v));
        let op = "causal_attention_backward";
        with_element!(q.dtype(), E => kernels::causal_attention_backward::<E>(
            slice_mut(&mut dq, op), slice_mut(&mut dk, op), slice_mut(&mut dv, op),
            slice(&dout), slice(&q), slice(&k), slice(&v), slice(&o), slice(&lse),
            bound(&first_visible), shape));
        (dq, dk, dv)
    }

    fn head_cross_entropy_forward(
        x: FlexTensor,
        weight: FlexTensor,
        targets: FlexTensor,
    ) -> FlexTensor {
        let (x, targets) = (contiguous(x), contiguous(targets));
        let shape = linear_shape(&x, &weight);
        let mut losses = new(&dims(&targets), DType::F32);
        with_element!(x.dtype(), E => kernels::head_cross_entropy_forward::<E>(
            slice_mut(&mut losses, "head_cross_entropy_forward"),
            slice(&x), slice(&weight), slice(&targets), shape, HEAD_CHUNK));
        losses
    }

    fn head_cross_entropy_backward(
        x: FlexTensor,
        weight: FlexTensor,
        targets: FlexTensor,
        scale: f32,
        mut dweight: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (x, targets) = (contiguous(x), contiguous(targets));
        let shape = linear_shape(&x, &weight);
        let mut losses = new(&dims(&targets), DType::F32);
        let mut dx = new_like(&x);
        let op = "head_cross_entropy_backward";
        with_element!(x.dtype(), E => kernels::head_cross_entropy_backward::<E>(
            slice_mut(&mut losses, op), slice_mut(&mut dx, op), slice_mut(&mut dweight, op),
            slice(&x), slice(&weight), slice(&targets), scale, shape, HEAD_CHUNK));
        (losses, dx, dweight)
    }

    fn adamw_step(
        mut param: FlexTensor,
        mut m: FlexTensor,
        mut v: FlexTensor,
        grad: FlexTensor,
        hyper: AdamWStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let op = "adamw_step";
        kernels::adamw_step(
            slice_mut(&mut param, op),
            slice_mut(&mut m, op),
            slice_mut(&mut v, op),
            slice(&grad),
            None,
            &hyper,
        );
        (param, m, v)
    }

    fn adamw_step_with_copy(
        mut param: FlexTensor,
        mut m: FlexTensor,
        mut v: FlexTensor,
        grad: FlexTensor,
        mut copy: FlexTensor,
        hyper: AdamWStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        let op = "adamw_step_with_copy";
        kernels::adamw_step(
            slice_mut(&mut param, op),
            slice_mut(&mut m, op),
            slice_mut(&mut v, op),
            slice(&grad),
            Some(slice_mut::<bf16>(&mut copy, op)),
            &hyper,
        );
        (param, m, v, copy)
    }

    fn sum_of_squares(x: FlexTensor) -> FlexTensor {
        let mut sum = new(&[1], DType::F64);
        slice_mut::<f64>(&mut sum, "sum_of_squares")[0] = kernels::sum_of_squares(slice(&x));
        sum
    }

    fn fill_zero(mut x: FlexTensor) -> FlexTensor {
        kernels::fill_zero(slice_mut(&mut x, "fill_zero"));
        x
    }

    fn head_logits(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let shape = linear_shape(&x, &weight);
        let mut logits_dims = dims(&x);
        *logits_dims.last_mut().expect("x has a last dimension") = shape.outputs;
        let mut logits = new(&logits_dims, DType::F32);
        with_element!(x.dtype(), E => kernels::head_logits::<E>(
            slice_mut(&mut logits, "head_logits"), slice(&x), slice(&weight), shape));
        logits
    }

    fn kv_cache_write(mut cache: FlexTensor, rows: FlexTensor, position: usize) -> FlexTensor {
        let rows = contiguous(rows);
        let width: usize = dims(&cache)[1..].iter().product();
        with_element!(rows.dtype(), E => {
            let rows = slice::<E>(&rows);
            let start = position * width;
            slice_mut::<E>(&mut cache, "kv_cache_write")[start..start + rows.len()]
                .copy_from_slice(rows);
        });
        cache
    }
}
