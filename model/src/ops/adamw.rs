//! AdamW (Loshchilov and Hutter 2019), as PyTorch's `torch.optim.AdamW`. Derivation:
//! `docs/backward/adamw.md`.
//!
//! ```text
//! g ← scale · g                                       scale: the clipping factor
//! m ← β1 m + (1 − β1) g            m̂ = m / (1 − β1ᵗ)   t: the step, counted from 1
//! v ← β2 v + (1 − β2) g²           v̂ = v / (1 − β2ᵗ)
//! w ← w − lr λ w − lr m̂ / (√v̂ + ε)
//! ```

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::fast;
use crate::backend::{AdamWStep, TransformerOps};

/// One step in place on `param`, `m` and `v`; `copy`, if given, is the bf16 copy of `param` and is
/// written in the same pass.
pub fn adamw_step<const D: usize>(
    param: &mut Tensor<D>,
    m: &mut Tensor<D>,
    v: &mut Tensor<D>,
    grad: &Tensor<D>,
    copy: Option<&mut Tensor<D>>,
    hyper: &AdamWStep,
) {
    if !fast(param) {
        reference::step(param, m, v, grad, hyper);
        if let Some(copy) = copy {
            *copy = param.clone().cast(copy.dtype());
        }
        return;
    }
    let (p, moments, grad) = (
        param.extract().into_dispatch(),
        (m.extract().into_dispatch(), v.extract().into_dispatch()),
        grad.clone().into_dispatch(),
    );
    let (new_param, new_m, new_v) = match copy {
        None => Dispatch::adamw_step(p, moments.0, moments.1, grad, *hyper),
        Some(copy) => {
            let (p, m, v, written) = Dispatch::adamw_step_with_copy(
                p,
                moments.0,
                moments.1,
                grad,
                copy.extract().into_dispatch(),
                *hyper,
            );
            *copy = Tensor::from_dispatch(written);
            (p, m, v)
        }
    };
    *param = Tensor::from_dispatch(new_param);
    *m = Tensor::from_dispatch(new_m);
    *v = Tensor::from_dispatch(new_v);
}

/// The op in plain tensor operations.
pub mod reference {
    use burn::tensor::Tensor;

    use crate::backend::AdamWStep;

    /// See [`super::adamw_step`].
    pub fn step<const D: usize>(
        param: &mut Tensor<D>,
        m: &mut Tensor<D>,
        v: &mut Tensor<D>,
        grad: &Tensor<D>,
        hyper: &AdamWStep,
    ) {
        let [beta1, beta2] = [f64::from(hyper.beta1), f64::from(hyper.beta2)];
        let lr = f64::from(hyper.lr);
        let correction = |beta: f64| 1.0 - beta.powf(hyper.step as f64);
        let g = grad.clone().cast(param.dtype()) * f64::from(hyper.grad_scale);
        m.inplace(|m| m * beta1 + g.clone() * (1.0 - beta1));
        v.inplace(|v| v * beta2 + g.square() * (1.0 - beta2));
        let m_hat = m.clone() / correction(beta1);
        let v_hat = v.clone() / correction(beta2);
        param.inplace(|p| {
            let decayed = p * (1.0 - lr * f64::from(hyper.weight_decay));
            decayed - m_hat / (v_hat.sqrt() + f64::from(hyper.eps)) * lr
        });
    }
}
