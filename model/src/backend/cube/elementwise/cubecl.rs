//! Element by element: residual, SwiGLU, accumulation, zeroing, copies.

use cubecl::prelude::*;

/// σ(x) = 1 / (1 + exp(−x)).
#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0_f32);
    one / (one + (-x).exp())
}

/// y = x + branch.
#[cube(launch_unchecked)]
pub fn residual_sum<F: Float, N: Size>(
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
pub fn residual_add<F: Float, N: Size>(
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
pub fn swiglu_forward<F: Float, N: Size>(
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
pub fn swiglu_backward<F: Float, N: Size>(
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

/// sum += term, in f32.
#[cube(launch_unchecked)]
pub fn accumulate<N: Size>(sum: &mut [Vector<f32, N>], term: &[Vector<f32, N>]) {
    let i = ABSOLUTE_POS;
    if i < sum.len() {
        sum[i] += term[i];
    }
}

/// x = 0.
#[cube(launch_unchecked)]
pub fn fill_zero<F: Float, N: Size>(x: &mut [Vector<F, N>], #[define(F)] _dtype: ElemType) {
    let i = ABSOLUTE_POS;
    if i < x.len() {
        x[i] = Vector::cast_from(Vector::<f32, N>::new(0.0_f32));
    }
}

/// cache[start + i] = rows[i], counted in vectors.
#[cube(launch_unchecked)]
pub fn write_at<F: Float, N: Size>(
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
