//! Rotary position embedding: the pair (x_i, x_{i+D/2}) turned by the angle of its position.

use cubecl::prelude::*;

/// `x` (B, T, H, D) turned by `cos`, `sin` (T, D/2): y. `direction` is 1 forward, −1 backward.
/// One thread turns `N` pairs; `half` = D/2 / N.
#[cube(launch_unchecked)]
pub fn rotate<F: Float, N: Size>(
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

/// [`rotate`] within one tensor.
#[cube(launch_unchecked)]
pub fn rotate_in_place<F: Float, N: Size>(
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
