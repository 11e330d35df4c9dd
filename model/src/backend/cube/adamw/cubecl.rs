//! AdamW in place, with the bf16 copy of the weight in the same pass.

use cubecl::prelude::*;

/// The numbers of a step that do not depend on the element.
#[derive(CubeType, CubeLaunch)]
pub struct Factors {
    /// 1 − lr · λ.
    pub keep: f32,
    /// lr / (1 − β₁ᵗ).
    pub rate: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub root_correction: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub grad_scale: f32,
}

/// Updates element `i` of `m` and `v`; the new parameter.
#[cube]
fn updated<N: Size>(
    param: Vector<f32, N>,
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    grad: Vector<f32, N>,
    i: usize,
    factors: &Factors,
) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0_f32);
    let beta1 = Vector::<f32, N>::new(factors.beta1);
    let beta2 = Vector::<f32, N>::new(factors.beta2);
    let g = grad * Vector::<f32, N>::new(factors.grad_scale);
    let new_m = beta1 * m[i] + (one - beta1) * g;
    let new_v = beta2 * v[i] + (one - beta2) * g * g;
    m[i] = new_m;
    v[i] = new_v;
    let root = new_v.sqrt() * Vector::<f32, N>::new(factors.root_correction);
    let step =
        Vector::<f32, N>::new(factors.rate) * new_m / (root + Vector::<f32, N>::new(factors.eps));
    param * Vector::<f32, N>::new(factors.keep) - step
}

/// One step on `param`, `m` and `v`.
#[cube(launch_unchecked)]
pub fn adamw<N: Size>(
    param: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    grad: &[Vector<f32, N>],
    factors: &Factors,
) {
    let i = ABSOLUTE_POS;
    if i < param.len() {
        param[i] = updated::<N>(param[i], m, v, grad[i], i, factors);
    }
}

/// [`adamw`], and `copy` = the new `param` in the type `F`.
#[cube(launch_unchecked)]
pub fn adamw_with_copy<F: Float, N: Size>(
    param: &mut [Vector<f32, N>],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    grad: &[Vector<f32, N>],
    copy: &mut [Vector<F, N>],
    factors: &Factors,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < param.len() {
        let new = updated::<N>(param[i], m, v, grad[i], i, factors);
        param[i] = new;
        copy[i] = Vector::cast_from(new);
    }
}
