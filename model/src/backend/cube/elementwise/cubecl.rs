//! The ops in CubeCL: how they are launched, then the kernels. A thread takes 16 bytes.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{Residual, Rotation, SwigluBackward, SwigluForward};
use crate::backend::cube::tensor::{element, elements, rows_and_width, threads, units, vector};

pub(super) fn residual(call: Residual) {
    let Residual { x, branch, y, in_place } = call;
    let size = vector(elements(&x), x.dtype);
    let (client, dtype) = (x.client.clone(), element(x.dtype));
    let grid = units(elements(&x) / size);
    // SAFETY: all have the same elements; the kernels stop at the end of what they write.
    unsafe {
        if in_place {
            residual_add_kernel::launch_unchecked(
                &client,
                grid,
                threads(),
                size,
                y.into_buffer_arg(),
                branch.into_buffer_arg(),
                dtype,
            );
        } else {
            residual_sum_kernel::launch_unchecked(
                &client,
                grid,
                threads(),
                size,
                x.into_buffer_arg(),
                branch.into_buffer_arg(),
                y.into_buffer_arg(),
                dtype,
            );
        }
    }
}

pub(super) fn rotate(call: Rotation) {
    let Rotation { x, cos, sin, y, in_place, direction, time, heads, head_dim } = call;
    let size = vector(head_dim / 2, x.dtype);
    let half = head_dim / 2 / size;
    let (client, dtype) = (x.client.clone(), element(x.dtype));
    let grid = units(elements(&x) / size / 2);
    let (cos, sin) = (cos.into_buffer_arg(), sin.into_buffer_arg());
    // SAFETY: the kernels stop at the end of `y`, which has the elements of `x`; the table has `time`
    // rows.
    unsafe {
        if in_place {
            rotate_in_place_kernel::launch_unchecked(
                &client,
                grid,
                threads(),
                size,
                y.into_buffer_arg(),
                cos,
                sin,
                time,
                heads,
                direction,
                half,
                dtype,
            );
        } else {
            rotate_kernel::launch_unchecked(
                &client,
                grid,
                threads(),
                size,
                x.into_buffer_arg(),
                cos,
                sin,
                y.into_buffer_arg(),
                time,
                heads,
                direction,
                half,
                dtype,
            );
        }
    }
}

pub(super) fn swiglu_forward(call: SwigluForward) {
    let SwigluForward { gate, up, y } = call;
    let size = vector(elements(&gate), gate.dtype);
    // SAFETY: all three have the same elements; the kernel stops at the end of `y`.
    unsafe {
        swiglu_forward_kernel::launch_unchecked(
            &y.client.clone(),
            units(elements(&y) / size),
            threads(),
            size,
            gate.into_buffer_arg(),
            up.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            element(y.dtype),
        );
    }
}

pub(super) fn swiglu_backward(call: SwigluBackward) {
    let SwigluBackward { dy, gate, up, dgate, dup } = call;
    let size = vector(elements(&gate), gate.dtype);
    // SAFETY: all five have the same elements; the kernel stops at the end of `dy`.
    unsafe {
        swiglu_backward_kernel::launch_unchecked(
            &dy.client.clone(),
            units(elements(&dy) / size),
            threads(),
            size,
            dy.into_buffer_arg(),
            gate.into_buffer_arg(),
            up.into_buffer_arg(),
            dgate.clone().into_buffer_arg(),
            dup.into_buffer_arg(),
            element(dgate.dtype),
        );
    }
}

/// Sets every element of `x`, which has no gaps, to zero.
pub(in super::super) fn zero(x: &CubeTensor) {
    let size = vector(elements(x), x.dtype);
    // SAFETY: the kernel stops at the end of `x`.
    unsafe {
        zero_kernel::launch_unchecked(
            &x.client.clone(),
            units(elements(x) / size),
            threads(),
            size,
            x.clone().into_buffer_arg(),
            element(x.dtype),
        );
    }
}

/// Copies `rows` into `target` from element `start` on.
pub(in super::super) fn write_at(rows: &CubeTensor, target: &CubeTensor, start: usize) {
    let (_, width) = rows_and_width(rows);
    let size = vector(width, rows.dtype).min(vector(start, rows.dtype));
    // SAFETY: callers pass a range inside `target`; the kernel stops at the end of `rows`.
    unsafe {
        write_at_kernel::launch_unchecked(
            &rows.client.clone(),
            units(elements(rows) / size),
            threads(),
            size,
            rows.clone().into_buffer_arg(),
            target.clone().into_buffer_arg(),
            start / size,
            element(rows.dtype),
        );
    }
}

/// σ(x) = 1 / (1 + exp(−x)).
#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0_f32);
    one / (one + (-x).exp())
}

/// y = x + branch.
#[cube(launch_unchecked)]
fn residual_sum_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    branch: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        y[i] = Vector::cast_from(
            Vector::<f32, N>::cast_from(x[i]) + Vector::<f32, N>::cast_from(branch[i]),
        );
    }
}

/// x += branch.
#[cube(launch_unchecked)]
fn residual_add_kernel<F: Float, N: Size>(
    x: &mut [Vector<F, N>],
    branch: &[Vector<F, N>],
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < x.len() {
        x[i] = Vector::cast_from(
            Vector::<f32, N>::cast_from(x[i]) + Vector::<f32, N>::cast_from(branch[i]),
        );
    }
}

/// y = silu(gate) · up.
#[cube(launch_unchecked)]
fn swiglu_forward_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        let g = Vector::<f32, N>::cast_from(gate[i]);
        y[i] = Vector::cast_from(g * sigmoid::<N>(g) * Vector::<f32, N>::cast_from(up[i]));
    }
}

/// dgate = dy · up · σ (1 + g (1 − σ)), dup = dy · g σ.
#[cube(launch_unchecked)]
fn swiglu_backward_kernel<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    dgate: &mut [Vector<F, N>],
    dup: &mut [Vector<F, N>],
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < dy.len() {
        let one = Vector::<f32, N>::new(1.0_f32);
        let d = Vector::<f32, N>::cast_from(dy[i]);
        let g = Vector::<f32, N>::cast_from(gate[i]);
        let u = Vector::<f32, N>::cast_from(up[i]);
        let s = sigmoid::<N>(g);
        dgate[i] = Vector::cast_from(d * u * s * (one + g * (one - s)));
        dup[i] = Vector::cast_from(d * g * s);
    }
}

/// x = 0.
#[cube(launch_unchecked)]
fn zero_kernel<F: Float, N: Size>(x: &mut [Vector<F, N>], #[define(F)] _dtype: ElemType) {
    let i = ABSOLUTE_POS;
    if i < x.len() {
        x[i] = Vector::cast_from(Vector::<f32, N>::new(0.0_f32));
    }
}

/// cache[start + i] = rows[i], counted in vectors.
#[cube(launch_unchecked)]
fn write_at_kernel<F: Float, N: Size>(
    rows: &[Vector<F, N>],
    cache: &mut [Vector<F, N>],
    start: usize,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < rows.len() {
        cache[start + i] = rows[i];
    }
}

/// `x` (B, T, H, D) rotated by `cos`, `sin` (T, D/2): y. `direction` is 1 forward, −1 backward.
/// One thread rotates `N` pairs; `half` = D/2 / N.
#[cube(launch_unchecked)]
fn rotate_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    time: usize,
    heads: usize,
    direction: f32,
    #[comptime] half: usize,
    #[define(F)] _dtype: ElemType,
) {
    let pair = ABSOLUTE_POS;
    if pair < y.len() / 2 {
        let row = pair / half;
        let i = pair % half;
        let angle = (row / heads % time) * half + i;
        let low = row * 2 * half + i;
        let high = low + half;
        let a = Vector::<f32, N>::cast_from(x[low]);
        let b = Vector::<f32, N>::cast_from(x[high]);
        let c = cos[angle];
        let s = sin[angle] * Vector::<f32, N>::new(direction);
        y[low] = Vector::cast_from(a * c - b * s);
        y[high] = Vector::cast_from(b * c + a * s);
    }
}

/// [`rotate_kernel`] within one tensor.
#[cube(launch_unchecked)]
fn rotate_in_place_kernel<F: Float, N: Size>(
    x: &mut [Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    time: usize,
    heads: usize,
    direction: f32,
    #[comptime] half: usize,
    #[define(F)] _dtype: ElemType,
) {
    let pair = ABSOLUTE_POS;
    if pair < x.len() / 2 {
        let row = pair / half;
        let i = pair % half;
        let angle = (row / heads % time) * half + i;
        let low = row * 2 * half + i;
        let high = low + half;
        let a = Vector::<f32, N>::cast_from(x[low]);
        let b = Vector::<f32, N>::cast_from(x[high]);
        let c = cos[angle];
        let s = sin[angle] * Vector::<f32, N>::new(direction);
        x[low] = Vector::cast_from(a * c - b * s);
        x[high] = Vector::cast_from(b * c + a * s);
    }
}
